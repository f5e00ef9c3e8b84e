"""References: the names of shown frames, which an action or an answer may give in place of times.

`#4` is frame 4 of the newest look with frames, `#2.4` frame 4 of look 2. Frames are counted from 1 within a look, looks
from 1 over the episode: frames, sound and clips alike, also those whose media is gone. A look that was refused has no
number, and a frame that a limit left out has no name. The start of a sound or a clip is frame 1 of its look, its end
frame 2; `#1` alone never means one of them. Look 0 is the whole video: `#0.1` its start, `#0.2` its end.

`FrameNames` belongs to the environment, which knows what was shown. The parser asks it for the time of a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.question import QuestionKind
from apr_plugin.scoring.text import answer_part
from apr_plugin.scoring.thought import split_thought

_NAME = r"#([0-9]{1,9})(?:\.([0-9]{1,9}))?"
_ALONE = re.compile(_NAME)
_QUOTED = re.compile(rf"\"{_NAME}\"|'{_NAME}'|(?<![\w#&.]){_NAME}(?!\w)")


class Named(BaseModel):
    """What a model wrote in a turn where the recorded action has times."""

    model_config = ConfigDict(frozen=True)

    start: str | None = None
    """The name of a frame, as the beginning of the window; `None` if it was given in seconds."""
    end: str | None = None
    """The same for its end."""
    content: str | None = None
    """The answer with names of frames in it; `None` if it has none."""


@dataclass(frozen=True)
class Reference:
    """A name, read."""

    frame: int
    """Number of the frame in its look, from 1."""
    look: int | None = None
    """Number of the look, from 1; `None`: the newest with frames."""

    def __str__(self) -> str:
        return f"#{self.frame}" if self.look is None else f"#{self.look}.{self.frame}"


def read_reference(text: str) -> Reference | None:
    """The reference that a text is, blanks around it aside; `None` if it is none. It never raises."""
    found = _ALONE.fullmatch(text.strip())
    return None if found is None else _reference(found[1], found[2])


def _reference(first: str, second: str | None) -> Reference:
    return Reference(int(first)) if second is None else Reference(int(second), int(first))


@dataclass(frozen=True)
class NamedLook:
    """The names that one look gave."""

    kind: Literal["frames", "audio", "clip"]
    """What was shown."""
    video: int
    """Index of its video."""
    times_s: tuple[float, ...]
    """True time of each frame shown, in order; of a sound or a clip its start and its end."""


@dataclass(frozen=True)
class FrameNames:
    """Every name in an episode so far."""

    kind: QuestionKind
    """What the question asks for; names are read in answers of the kinds `grounding` and `number`."""
    looks: tuple[NamedLook, ...] = ()
    """The looks, in order."""
    durations_s: tuple[float, ...] = ()
    """Length of each video, in seconds."""

    def with_look(self, look: NamedLook) -> FrameNames:
        """The names after one more look."""
        return replace(self, looks=(*self.looks, look))

    def time(self, text: str, what: str, video: int | None) -> float | ActionError:
        """The time of a named frame, in seconds of its video.

        Args:
            text: What the model wrote; it begins with `#`.
            what: The field, for the error.
            video: The video that a window is of; `None` for an answer, which may name a frame of any.
        """
        reference = read_reference(text)
        if reference is None:
            shown = repr(text if len(text) <= 60 else text[:57] + "...")
            return ActionError(
                ErrorCode.WRONG_TYPE,
                f"{what} must be a number of seconds, or the name of a shown frame such as #4 or #2.4, not {shown}.",
            )
        return self._of(reference, what, video)

    def in_answer(self, content: str) -> str | ActionError:
        """An answer with times in place of the names in it; unchanged if it has none.

        A `grounding` answer may have names anywhere (`[["#6", "#9"]]`, `[[#6, #9]]`, `#6-#9`, quoted or not). A
        `number` answer that is one name alone is the time of that frame. Names in a block of thought don't count.
        """
        if "#" not in content or split_thought(content).unclosed:
            return content
        words = answer_part(content)
        if self.kind is QuestionKind.NUMBER:
            alone = words.strip().strip("\"'")
            if read_reference(alone) is None:
                return content
            time_s = self.time(alone, "the answer", None)
            return time_s if isinstance(time_s, ActionError) else _seconds(time_s)
        if self.kind is not QuestionKind.GROUNDING:
            return content
        errors: list[ActionError] = []

        def timed(found: re.Match[str]) -> str:
            first, second = next((found[n], found[n + 1]) for n in (1, 3, 5) if found[n] is not None)
            time_s = self._of(_reference(first, second), "the answer", None)
            if isinstance(time_s, ActionError):
                errors.append(time_s)
                return found[0]
            return _seconds(time_s)

        resolved, count = _QUOTED.subn(timed, words)
        return errors[0] if errors else resolved if count else content

    def _of(self, reference: Reference, what: str, video: int | None) -> float | ActionError:
        number = reference.look
        if number is None:
            number = max(
                (n for n, look in enumerate(self.looks, 1) if look.kind == "frames" and video in (None, look.video)),
                default=0,
            )
            if not number:
                others = any(look.kind == "frames" for look in self.looks)
                where = f" of video {video}" if others else ""
                return _unknown(what, reference, f"no frames{where} have been shown yet; give seconds")
        if number == 0 and reference.frame in (1, 2) and 0 <= (video or 0) < len(self.durations_s):
            return 0.0 if reference.frame == 1 else self.durations_s[video or 0]
        if not 1 <= number <= len(self.looks):
            there = {0: "no look has been shown yet", 1: "only look 1 was shown"}
            return _unknown(
                what, reference, there.get(len(self.looks), f"only looks 1 to {len(self.looks)} were shown")
            )
        look = self.looks[number - 1]
        if video is not None and look.video != video:
            return _unknown(
                what,
                reference,
                f'look {number} is of video {look.video}, and the action of video {video}; add "video": {look.video}, '
                f"or name a frame of video {video}",
            )
        if not 1 <= reference.frame <= len(look.times_s):
            names = f"#{number}.1" + (f" to #{number}.{len(look.times_s)}" if len(look.times_s) > 1 else "")
            which = {"frames": "frames", "audio": "sound's edges", "clip": "clip's edges"}[look.kind]
            return _unknown(what, reference, f"look {number} has the {which} {names}")
        return look.times_s[reference.frame - 1]


def _unknown(what: str, reference: Reference, why: str) -> ActionError:
    return ActionError(ErrorCode.UNKNOWN_FRAME, f"{what} names {reference}, which was never shown: {why}.")


def _seconds(time_s: float) -> str:
    return f"{time_s:.3f}"
