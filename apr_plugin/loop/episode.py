"""`Episode`: one question, from reset to trajectory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import metadata
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from apr_plugin import __version__
from apr_plugin.loop.action import Answer
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.environment import Environment
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.notebook import Notebook, VideoMeta, prompt_hash
from apr_plugin.loop.parse import ParsedTurn, parse_turn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Generation, ImagePart, Part, Policy, PolicyUnavailable, Prompt, Sampling, TextPart, Usage
from apr_plugin.loop.question import Question
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.media import MediaError, MediaSettings

_In = TypeVar("_In")
_Out = TypeVar("_Out")

OnTurn = Callable[[int, Turn], None]
"""Called after each turn with its number (from 1)."""


class EpisodeConfig(BaseModel):
    """Everything besides the question and the policy that decides an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    arm: Literal["agent", "passive"] = "agent"
    """`agent` looks for itself; `passive` gets `passive_frames` uniform frames and one turn."""
    passive_frames: int = Field(default=32, ge=0)
    """Frames of the passive arm; 0 asks blind."""
    budget: Budget = Budget()
    """Limits of the episode."""
    media: MediaSettings = MediaSettings()
    """How files are read: exact frames or keyframes, which decoder."""
    sampling: Sampling = Sampling()
    """How turns are sampled; its seed is replaced by one derived for each turn."""
    system_prompt: str | None = None
    """Instructions to use instead of ours."""
    seed: int = 0
    """Seed of the run."""

    def describe(self, policy: Policy) -> dict[str, Any]:
        """The configuration of a run as JSON values, with the policy's own."""
        config = self.model_dump(mode="json", exclude={"system_prompt": True, "media": {"isolation"}})
        return config | {"policy": {"name": policy.name} | policy.describe(), "prompt_hash": prompt_hash(self.system_prompt)}

    def hash(self, policy: Policy) -> str:
        """16 hex digits that name the configuration; trajectories of different ones are never mixed."""
        return hashlib.sha256(json.dumps(self.describe(policy), sort_keys=True).encode()).hexdigest()[:16]

    def seed_for(self, question: Question) -> int:
        """The question's own seed, from the run's seed and the question's key: the order of questions does not matter."""
        text = json.dumps([self.seed, *question.key])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@cache
def package_versions() -> dict[str, str]:
    """Versions of what decides the pixels and the answers, where installed."""
    found = {"apr-plugin": __version__}
    for name in ("av", "numpy", "lmms-eval", "torch", "transformers", "vllm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class _WallClock(Exception):
    """The episode's wall-clock limit ran out during a generation."""


class Episode:
    """Answers one question.

    Args:
        question: What is asked.
        policy: Who answers.
        config: Limits, arm, sampling.
        pictures: Images that come with a question without a video; shown in its one turn.
        on_turn: Called after each turn.
    """

    def __init__(
        self, question: Question, policy: Policy, config: EpisodeConfig, *, pictures: Sequence[ImagePart] = (), on_turn: OnTurn | None = None
    ) -> None:
        self.question, self.policy, self.config = question, policy, config
        self._pictures, self._on_turn = tuple(pictures), on_turn
        self._seed = config.seed_for(question)
        self._turns: list[Turn] = []
        self._environment = Environment(config.budget, config.media)
        self._first_shown: tuple[Shown, ...] = ()
        self._durations: tuple[float, ...] = ()
        self._allowed = 1
        self._started = time.perf_counter()
        self._tokens = 0
        self._opened_s = 0.0

    async def run(self) -> Trajectory:
        """Run the episode to its end.

        Whatever the policy writes and whatever the file holds, this returns a trajectory; only cancelling the task raises
        (`asyncio.CancelledError`; `cancelled()` then tells how far it came).
        """
        self._started = time.perf_counter()
        try:
            began = time.perf_counter()
            await self._read(self._environment.reset, self.question)
            self._opened_s = time.perf_counter() - began
            self._durations = self._environment.durations_s
            passive = self.config.arm == "passive" or not self.question.videos
            return await (self._run_passive() if passive else self._run_agent())
        except _WallClock:
            return self._end(StopReason.WALL_CLOCK, detail=f"the episode took longer than {self.config.budget.wall_clock_s:g}s")
        except MediaError as error:
            return self._end(StopReason.MEDIA_UNREADABLE, detail=str(error))
        except PolicyUnavailable as error:
            return self._end(StopReason.POLICY_UNAVAILABLE, detail=str(error))
        finally:
            self._environment.cancelled.set()  # a read still under way in its thread ends at once
            self._environment.close()

    def cancelled(self) -> Trajectory:
        """The trajectory of an episode that was stopped from outside."""
        return self._end(StopReason.CANCELLED, detail="the run was stopped")

    async def _run_agent(self) -> Trajectory:
        budget = self.config.budget
        notebook = self._notebook()
        self._allowed = turns = budget.turns_for(sum(self._durations))
        for number in range(1, turns + 1):
            generation, model_s = await self._generate(notebook.prompt(number, turns), number)
            parsed = parse_turn(generation.text)
            last = number == turns
            outcome: Percept | ActionError | None = parsed.error
            media_s = 0.0
            reached = "" if last else self._limit_reached()
            if isinstance(parsed.action, Answer):
                checked = self._check(parsed.action, number, turns)
                if isinstance(checked, str):
                    self._note(parsed, generation, model_s)
                    return self._end(StopReason.ANSWERED, answer=checked, valid=True)
                outcome = checked
            elif parsed.action is not None and (last or reached):
                outcome = ActionError(ErrorCode.ANSWER_EXPECTED, "only an answer counts now.")
            elif parsed.action is not None:
                began = time.perf_counter()
                try:
                    outcome = await self._read(self._environment.step, parsed.action)
                except MediaError:
                    self._note(parsed, generation, model_s, media_s=time.perf_counter() - began)
                    raise
                media_s = time.perf_counter() - began
            self._note(parsed, generation, model_s, outcome, media_s)
            notebook.add(generation.text, outcome)
            reached = reached or ("" if last else self._limit_reached())
            if reached:
                return await self._force(notebook, StopReason.TOKENS, reached)
        return await self._force(notebook, StopReason.TURNS, f"All {turns} turns are used up.")

    def _check(self, action: Answer, number: int, turns: int) -> str | ActionError:
        if number == 1 < turns and self.config.budget.refuse_blind_answer:
            return ActionError(ErrorCode.EARLY_ANSWER, "this is turn 1 and nothing has been looked at yet; an answer is taken from turn 2 on.")
        return self._environment.check_answer(action.content)

    async def _read(self, read: Callable[[_In], _Out], argument: _In) -> _Out:
        """Run a reading method of the environment in a worker thread; whatever a decoder raises becomes a `MediaError`."""
        clock = asyncio.timeout(self._seconds_left())
        try:
            async with clock:
                return await asyncio.to_thread(read, argument)
        except MediaError:
            raise
        except Exception as error:
            if clock.expired():
                raise _WallClock from error
            raise MediaError(", ".join(v.path for v in self.question.videos), "read", f"{type(error).__name__}: {error}") from error

    def _seconds_left(self) -> float | None:
        limit = self.config.budget.wall_clock_s
        return None if limit is None else limit - (time.perf_counter() - self._started)

    def _limit_reached(self) -> str:
        limit = self.config.budget.tokens_per_episode
        if limit is not None and self._tokens >= limit:
            return f"The episode's {limit} tokens are used up."
        if self._environment.exhausted:
            return f"The episode's {self.config.budget.visual_tokens_per_episode} visual tokens are used up."
        return ""

    async def _force(self, notebook: Notebook, reason: StopReason, why: str) -> Trajectory:
        """Ask for the answer alone, or end without one where the budget says so."""
        if self.config.budget.on_last_turn == "fail":
            return self._end(reason, detail=why)
        generation, model_s = await self._generate(notebook.forced_prompt(why), len(self._turns) + 1)
        parsed = parse_turn(generation.text, answer_only=True)
        content = parsed.action.content if isinstance(parsed.action, Answer) else ""
        bare = generation.text.strip()
        if "{" not in bare and isinstance(self._environment.check_answer(bare), str):
            content = bare  # the answer itself, without the object around it
        checked = self._environment.check_answer(content) if content else parsed.error or _no_answer()
        error = checked if isinstance(checked, ActionError) else None
        self._note(parsed, generation, model_s, error, forced=True)
        if isinstance(checked, str):
            return self._end(StopReason.FORCED, answer=checked, valid=True, detail=why)
        if content:
            return self._end(StopReason.FORCED, answer=content, valid=False, detail=f"{why} {checked.message}")
        return self._end(reason, detail=f"{why} The forced call brought no answer: {checked.message}")

    async def _run_passive(self) -> Trajectory:
        percepts: list[Percept] = []
        media_s = 0.0
        notes = [] if self.question.videos else ["the request had no video, so it was answered in one passive turn"]
        if self.question.videos and self.config.passive_frames > 0:
            began = time.perf_counter()
            percepts = await self._read(self._environment.uniform, self.config.passive_frames)
            media_s = time.perf_counter() - began
            unseen = [str(number) for number, opened in enumerate(self._environment.videos) if not opened.video.has_video]
            notes += [f"video {', '.join(unseen)} has no picture, and the passive arm hears nothing"] if unseen else []
        self._first_shown = tuple(percept.shown() for percept in percepts)
        prompt = self._notebook().passive_prompt(percepts)
        if self._pictures:
            prompt = _with_pictures(prompt, self._pictures)
            height, width = self._pictures[0].image.shape[:2]
            remark = f"{len(self._pictures)} pictures that came with the question"
            self._first_shown = (Shown(kind="images", width=width, height=height, remark=remark),)
        self._allowed = 1
        generation, model_s = await self._generate(prompt, 1)
        parsed = parse_turn(generation.text, answer_only=True)
        content = parsed.action.content if isinstance(parsed.action, Answer) else generation.text.strip()
        checked = self._environment.check_answer(content) if content else _no_answer()
        error = checked if isinstance(checked, ActionError) else None
        self._note(replace(parsed, error=None), generation, model_s, error, media_s)
        if isinstance(checked, str):
            return self._end(StopReason.ANSWERED, answer=checked, valid=True, detail="; ".join(notes))
        notes.append(checked.message)
        if not content:
            return self._end(StopReason.TURNS, detail="; ".join(notes))
        return self._end(StopReason.ANSWERED, answer=content, valid=False, detail="; ".join(notes))

    def _notebook(self) -> Notebook:
        videos = [VideoMeta(opened.duration_s, opened.video.fps, opened.video.has_audio) for opened in self._environment.videos]
        return Notebook(self.question, videos, self.config.budget, self.config.system_prompt)

    async def _generate(self, prompt: Prompt, number: int) -> tuple[Generation, float]:
        left = self._seconds_left()
        if left is not None and left <= 0:  # a policy that never yields to the event loop outlasts any timeout
            raise _WallClock
        began = time.perf_counter()
        clock = asyncio.timeout(left)
        try:
            async with clock:
                generation = _plain(await self.policy.generate(prompt, replace(self.config.sampling, seed=(self._seed + number) % 2**32)))
        except (Exception, asyncio.CancelledError) as error:  # whatever an engine raises ends one question, not the run
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # stopped from outside, whatever the engine made of it
                raise asyncio.CancelledError from error
            if clock.expired():
                raise _WallClock from error
            if isinstance(error, PolicyUnavailable):
                raise
            raise PolicyUnavailable(f"the policy {self.policy.name} failed: {type(error).__name__}: {error}") from error
        self._tokens += (generation.usage.prompt_tokens or 0) + (generation.usage.completion_tokens or 0)
        return generation, time.perf_counter() - began

    def _note(
        self,
        parsed: ParsedTurn,
        generation: Generation,
        model_s: float,
        outcome: Percept | ActionError | None = None,
        media_s: float = 0.0,
        *,
        forced: bool = False,
    ) -> None:
        turn = Turn(
            text=generation.text,
            observation=parsed.observation,
            think=parsed.think,
            confidence=parsed.confidence,
            action=parsed.action,
            error=outcome if isinstance(outcome, ActionError) else None,
            shown=outcome.shown() if isinstance(outcome, Percept) else None,
            repairs=parsed.repairs,
            forced=forced,
            finish_reason=generation.finish_reason,
            usage=generation.usage,
            logprobs=generation.logprobs,
            entropies=generation.entropies,
            model_s=round(model_s, 6),
            media_s=round(media_s, 6),
        )
        self._turns.append(turn)
        if self._on_turn is not None:
            self._on_turn(len(self._turns), turn)

    def _end(self, reason: StopReason, *, answer: str | None = None, valid: bool = False, detail: str = "") -> Trajectory:
        total = time.perf_counter() - self._started
        model_s = sum(turn.model_s for turn in self._turns)
        media_s = self._opened_s + sum(turn.media_s for turn in self._turns)
        return Trajectory(
            question=self.question,
            arm="passive" if not self.question.videos else self.config.arm,
            turns=tuple(self._turns),
            first_shown=self._first_shown,
            answer=answer,
            answer_valid=valid,
            stop_reason=reason,
            stop_detail=printable(detail),
            turns_allowed=self._allowed,
            video_durations_s=self._durations,
            timings=Timings(
                total_s=round(total, 6), model_s=round(model_s, 6), media_s=round(media_s, 6), other_s=round(max(0.0, total - model_s - media_s), 6)
            ),
            seed=self._seed,
            config_hash=self.config.hash(self.policy),
            question_hash=self.question.content_hash(),
            versions=package_versions(),
        )


def _plain(generation: object) -> Generation:
    """What an engine returned, in values that any file and any later prompt takes.

    Raises:
        TypeError: it is no `Generation`, or one without text.
    """
    if not isinstance(generation, Generation) or not isinstance(generation.text, str):
        raise TypeError(f"it returned {generation!r:.100} instead of a Generation with text")
    usage, logprobs, entropies = generation.usage, generation.logprobs, generation.entropies
    return replace(
        generation,
        text=printable(generation.text),
        usage=Usage(**{key: None if n is None else int(n) for key, n in asdict(usage).items()}),
        finish_reason=str(generation.finish_reason),
        logprobs=None if logprobs is None else tuple(map(float, logprobs)),
        entropies=None if entropies is None else tuple(map(float, entropies)),
    )


def _no_answer() -> ActionError:
    return ActionError(ErrorCode.ANSWER_EXPECTED, "the reply held no answer.")


def _with_pictures(prompt: Prompt, pictures: Sequence[ImagePart]) -> Prompt:
    *head, last = prompt.messages
    parts: tuple[Part, ...] = (*pictures, TextPart("\n"), *last.parts)
    return Prompt((*head, replace(last, parts=parts)), prompt.final)
