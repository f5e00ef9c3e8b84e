"""`Trajectory`: what happened in one episode, as a line of a versioned JSON Lines file.

It contains no media: timestamps and windows, never pixels.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from apr_plugin.errors import AprError, told
from apr_plugin.loop.action import Action
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.imported import Figure, Imported
from apr_plugin.loop.policy import GenerationTimings, LogprobsOf, Usage
from apr_plugin.loop.question import Question
from apr_plugin.loop.references import FrameNames, Named, NamedLook
from apr_plugin.loop.text import printable

SCHEMA = "apr.trajectory"
VERSION = 2
"""It is raised if a reader of the older version could misread a newer line."""


_OPENING = f'{{"schema":"{SCHEMA}","version":{VERSION},'


class StopReason(StrEnum):
    """Why an episode ended. Every question ends with exactly one of these."""

    ANSWERED = "answered"
    """The policy took the `answer` action, or replied in its one passive turn."""

    FORCED = "forced"
    """A limit was reached, and the answer came from a last, text-only call."""

    TURNS = "turns"
    """The turns were used up without an answer."""

    TOKENS = "tokens"
    """The episode's tokens were used up without an answer."""

    WALL_CLOCK = "wall_clock"
    """The episode took longer than allowed, and has no answer."""

    MEDIA_UNREADABLE = "media_unreadable"
    """A video could not be opened or decoded; the question was not answered."""

    POLICY_UNAVAILABLE = "policy_unavailable"
    """The policy could not be reached or failed; the question was not answered."""

    CANCELLED = "cancelled"
    """The run was stopped from outside before the question was answered."""

    ERROR = "error"
    """Something else failed: the content of the data set's row, a task's code, or this program. The question was not
    answered."""

    @property
    def failed(self) -> bool:
        """Whether nothing is known about how the policy would have answered; a resumed run asks again."""
        return self in (
            StopReason.MEDIA_UNREADABLE,
            StopReason.POLICY_UNAVAILABLE,
            StopReason.CANCELLED,
            StopReason.ERROR,
        )


OnDamaged = Callable[[int, int, "DamagedLine"], None]
"""Called with where a damaged line begins and ends in its file, in bytes, and the fault."""


class TrajectoryError(AprError):
    """A trajectory file can't be read or written; the message names the file, the line and what to do."""


class DamagedLine(TrajectoryError):
    """A line of a file is not a trajectory that can be read."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


PerToken = tuple[Annotated[float | None, BeforeValidator(_finite)], ...]
"""A number for each sampled token; `None` if the engine gave none, or gave NaN or an infinity, which JSON can't
represent."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Shown(_Record):
    """What one look showed."""

    kind: Literal["frames", "audio", "clip", "images"]
    """The modality; `images` are pictures that came with a question without a video."""
    video: int = 0
    """Index of the question's video."""
    start_s: float = 0.0
    """Beginning of the requested window, in seconds of the video."""
    end_s: float = 0.0
    """End of the window."""
    times_s: tuple[float, ...] = ()
    """True presentation time of each frame shown."""
    width: int = 0
    """Width of the frames as shown, in pixels."""
    height: int = 0
    """Height of the frames as shown, in pixels."""
    audio_s: float = 0.0
    """Seconds of sound played."""
    visual_tokens: int = 0
    """Visual tokens by the rule in `loop.budget`."""
    remark: str = ""
    """What differed from the request."""
    mode: str = ""
    """How frames were chosen: `exact`, `keyframe` (the nearest one to each time), or `mixed`; empty for sound."""
    packets: int = 0
    """Packets decoded."""
    decode_s: float = 0.0
    """Seconds of decoding, summed over workers; the turn's `media_s` is how long the episode waited."""
    asked_s: tuple[float, ...] = ()
    """The time for which each frame was requested, in seconds of the video; empty for clips."""
    file_s: tuple[float, ...] = ()
    """True presentation time of each frame, in seconds of the file; the question's video may be a window of the
    file."""
    sound_file_s: tuple[float, float] | None = None
    """Window of the sound, in seconds of the file; `None` if no sound was played."""
    fps: float = 0.0
    """Frames per second of a clip, as the policy was told."""
    untimed: bool = False
    """Whether the frames were shown without their times."""
    fitted: bool = False
    """Whether it was made smaller than the budget allows, so that the prompt fits into the model's context."""
    look: int = 0
    """Number of the look in the episode, from 1, by which its frames are named (`loop.references`); 0 in an arm of one
    turn, and in lines written before it was recorded."""

    @property
    def names(self) -> NamedLook | None:
        """The names that it gave; `None` if it has none."""
        if self.kind == "images" or self.untimed:
            return None
        return NamedLook(self.kind, self.video, self.times_s if self.kind == "frames" else (self.start_s, self.end_s))


class Turn(_Record):
    """One generation and its result."""

    text: str
    """What the policy wrote, word for word."""
    observation: str = ""
    """Its note on the latest percept."""
    think: str = ""
    """Its reason for the action."""
    confidence: float | None = None
    """How sure it said it was, 0 to 1."""
    action: Action | None = None
    """The action, if one could be read; it has times where the policy named frames."""
    named: Named | None = None
    """What the policy wrote in place of these times; `None` if it named no frame."""
    error: ActionError | None = None
    """Why the action was refused, if it was."""
    shown: Shown | None = None
    """What the action returned."""
    repairs: tuple[str, ...] = ()
    """What the parser repaired."""
    forced: bool = False
    """Whether this turn is the last, text-only call for an answer."""
    forced_why: str = ""
    """The limit that was reached, in the words of that call."""
    left_out: int = 0
    """How many of the first turns that call left out, because not all fit."""
    finish_reason: str = "stop"
    """`stop`, or `length` if the turn was cut off."""
    usage: Usage = Usage()
    """Tokens in and out."""
    token_ids: tuple[int, ...] | None = None
    """The sampled tokens, if the engine gives them; training uses them, because the text may be tokenised
    differently."""
    logprobs: PerToken | None = None
    """Log-probability of each sampled token, if the engine gives them."""
    logprobs_of: LogprobsOf | None = None
    """The distribution to which they belong (`loop.policy.LogprobsOf`); `None` in lines written before it was
    recorded."""
    entropies: PerToken | None = None
    """Entropy (nats) of each sampled token's distribution, if the engine gives it."""
    entropy_top_k: int | None = None
    """With `None`, entropies are over the whole vocabulary. Otherwise over this many of the likeliest tokens,
    renormalised."""
    timings: GenerationTimings = GenerationTimings()
    """How the policy's seconds were spent, as far as the engine tells."""
    model_s: float = 0.0
    """Seconds in the policy."""
    media_s: float = 0.0
    """Seconds spent decoding what the action asked for."""


class Film(_Record):
    """One of the question's videos, as the policy was told about it."""

    duration_s: float
    """Seconds that can be looked at."""
    fps: float | None = None
    """Frames per second."""
    has_audio: bool = False
    """Whether it has sound."""
    audio_s: float | None = None
    """End of the sound, if it is longer than the pictures."""
    size: int = 0
    """Bytes of the file."""
    digest: str = ""
    """Identifies the file's content (`apr_plugin.media.media_digest`)."""


def episode_name(question: Question, seed: int) -> str:
    """The name of an episode in its prompts: the question's key and the episode's seed."""
    return f"{'/'.join(map(str, question.key))}:{seed}"


class Timings(_Record):
    """How an episode's seconds were spent."""

    total_s: float = 0.0
    model_s: float = 0.0
    media_s: float = 0.0
    other_s: float = 0.0


class Trajectory(_Record):
    """One finished question."""

    question: Question
    """What was asked, with its task, split and doc id."""
    arm: str = "agent"
    """The arm: `agent`, or `passive` (all frames at once, one turn), or another one."""
    turns: tuple[Turn, ...] = ()
    """The turns, in order."""
    first_shown: tuple[Shown, ...] = ()
    """What a passive arm was shown before its one turn, video by video."""
    answer: str | None = None
    """The answer in canonical form (see `loop.answer`); as it was written if a forced or passive answer, or any answer
    with `parsing=strict`, has a wrong form; `None` if there is none."""
    answer_valid: bool = False
    """Whether the answer has the form that the question asks for."""
    stop_reason: StopReason
    """Why the episode ended."""
    stop_detail: str = ""
    """Details of that, in words: the path and the decoder's message, or the limit that was reached."""
    turns_allowed: int = 0
    """Number of turns that the budget gave this question."""
    video_durations_s: tuple[float, ...] = ()
    """Measured length of each video, in seconds."""
    videos: tuple[Film, ...] = ()
    """Each of the question's videos as it was opened; empty in lines of version 1."""
    budget: Budget | None = None
    """The limits of this episode; `None` in lines of version 1, whose prompts can't be rebuilt."""
    timings: Timings = Timings()
    """How the seconds were spent."""
    seed: int = 0
    """Seed of this episode, derived from the run's seed and the question."""
    config_hash: str = ""
    """Identifies everything that decides the answer besides the question: policy, budget, prompt, arm, sampling,
    seed."""
    question_hash: str = ""
    """Identifies what the policy can see of the question."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that were used."""
    imported: Imported | None = None
    """Where it comes from and what it lacks, if another program recorded it."""

    def has(self, figure: Figure) -> bool:
        """Whether a figure was recorded; always, in a trajectory of this package."""
        return self.imported is None or figure not in self.imported.absent

    @property
    def episode(self) -> str:
        """Name of the episode, as in its prompts."""
        return episode_name(self.question, self.seed)

    @property
    def frames(self) -> int:
        """Number of frames shown in the whole episode."""
        return sum(len(s.times_s) for s in self.looks if s.kind in ("frames", "clip"))

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of everything shown."""
        return sum(s.visual_tokens for s in self.looks)

    @property
    def looks(self) -> list[Shown]:
        """Everything shown, in order."""
        return [*self.first_shown] + [turn.shown for turn in self.turns if turn.shown is not None]

    def names_before(self, turn: int) -> FrameNames:
        """The frames that the policy could name in the turn with this number, from 1."""
        shown = [*self.first_shown, *(each.shown for each in self.turns[: turn - 1] if each.shown is not None)]
        looks = [each.names for each in shown]
        named = tuple(look for look in looks if look is not None)
        return FrameNames(self.question.kind, named, self.video_durations_s)

    def to_json(self) -> str:
        """One line, without the newline."""
        try:
            return _OPENING + self.model_dump_json()[1:]  # this writes NaN and infinities as null
        except ValueError:  # lone surrogates, which UTF-8 can't represent
            data = _without_nan({"schema": SCHEMA, "version": VERSION} | self.model_dump(mode="json"))
            return printable(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False))

    def loadable(self) -> tuple[Self, str]:
        """This trajectory and its line, or a replacement and its line if this one could not be read back.

        The replacement ends with the reason.
        """
        try:
            line = self.to_json()
            type(self).from_json(line, "what happened")
        except Exception as error:  # noqa: BLE001 - bad values must not end the run, nor every resume
            reason = printable(f"its trajectory can't be kept: {told(error)}"[:1000])
            failed = self.model_copy(
                update={"turns": (), "first_shown": (), "answer": None, "answer_valid": False, "video_durations_s": ()}
                | {"stop_reason": StopReason.ERROR, "stop_detail": reason}
            )
            return failed, failed.to_json()
        return self, line

    def without_token_values(self) -> Self:
        """This trajectory without token ids, log-probs and entropies, which use most of its memory."""
        if all(turn.token_ids is None and turn.logprobs is None and turn.entropies is None for turn in self.turns):
            return self
        nothing = {"token_ids": None, "logprobs": None, "entropies": None}
        return self.model_copy(update={"turns": tuple(turn.model_copy(update=nothing) for turn in self.turns)})

    @classmethod
    def from_json(cls, line: str, where: str = "trajectory") -> Self:
        """Read one line.

        Args:
            line: The JSON text.
            where: File and line number, for messages.

        Raises:
            TrajectoryError: it is not a trajectory, it is damaged, or it has a newer version.
        """
        if line.startswith(_OPENING):  # a line of `to_json` in one step; the code below says why it fails
            with contextlib.suppress(ValidationError):
                return cls.model_validate_json(line)
        try:
            data: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedLine(f"{where}: not JSON ({error}); the line is damaged") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise DamagedLine(f"{where}: this is not an {SCHEMA} line")
        version = data.get("version")
        if not isinstance(version, int):
            raise DamagedLine(f"{where}: the line has no version of {SCHEMA}; it is damaged")
        if version > VERSION:
            raise TrajectoryError(
                f"{where}: trajectory version {version} is newer than {VERSION}, which this release reads; "
                "upgrade apr-plugin"
            )
        try:
            return cls.model_validate_json(
                json.dumps({k: v for k, v in data.items() if k not in ("schema", "version")})
            )
        except ValidationError as error:
            fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
            raise DamagedLine(f"{where}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
        except (ValueError, RecursionError) as error:  # numbers or nesting beyond the limits of the JSON reader
            raise DamagedLine(f"{where}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Append this trajectory to a file and wait until it is on disk.

        Raises:
            TrajectoryError: the disk is full or the file can't be written; nothing written before is damaged.
        """
        from apr_plugin.loop.files import append_line

        append_line(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> list[Self]:
        """All trajectories of a file, in order.

        Raises:
            TrajectoryError: the file can't be read, or a line is damaged (an unfinished last line, which a kill leaves,
                is left out).
        """
        return list(cls.iterate(path))

    @classmethod
    def iterate(cls, path: str | Path) -> Iterator[Self]:
        """Like `read`, one at a time."""
        return (trajectory for _, _, trajectory in cls.iterate_with_places(path))

    @classmethod
    def iterate_with_places(cls, path: str | Path, damaged: OnDamaged | None = None) -> Iterator[tuple[int, int, Self]]:
        """Like `iterate`, each with the offsets in bytes where its line begins and ends in the file.

        Args:
            path: The file. What other processes append from now on is not read.
            damaged: Called with a damaged line; without it, a damaged line is an error.
        """
        from apr_plugin.loop.files import lines

        file = Path(path)
        for number, start, line in lines(file):
            try:
                trajectory = cls.from_json(line.decode("utf-8", "replace"), f"{file}, line {number}")
            except DamagedLine as error:
                if damaged is None:
                    raise
                damaged(start, start + len(line), error)
            else:
                yield start, start + len(line), trajectory


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else _finite(value)
