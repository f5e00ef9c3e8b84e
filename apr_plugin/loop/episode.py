"""`Episode`: answers one question, from reset to trajectory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from apr_plugin.errors import told
from apr_plugin.loop.answer import TakenAnswer, strict_answer
from apr_plugin.loop.arms import ARMS
from apr_plugin.loop.asking import Asking, WallClock
from apr_plugin.loop.config import EpisodeConfig, package_versions
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.environment import Environment
from apr_plugin.loop.events import Event, OnEvent, Opened, Thought, TurnEnded
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.parse import ParsedTurn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import (
    Generation,
    ImagePart,
    Policy,
    PolicyUnavailable,
    Prompt,
    visual_token_of,
)
from apr_plugin.loop.question import Question
from apr_plugin.loop.record import turn_of
from apr_plugin.loop.references import FrameNames
from apr_plugin.loop.text import printable
from apr_plugin.loop.timeline import Callers, OnPhase, Phase
from apr_plugin.loop.trajectory import Film, Shown, StopReason, Timings, Trajectory, Turn, episode_name
from apr_plugin.loop.wires import VideoMeta
from apr_plugin.media import MediaError

_In = TypeVar("_In")
_Out = TypeVar("_Out")

OnTurn = Callable[[int, Turn], None]
"""Called after each turn with its number (from 1)."""

OnPrompt = Callable[[Prompt, Generation], None]
"""Called with each prompt and the text that the policy wrote; `Prompt.asked` gives the episode and the turn."""

ReadPictures = Callable[[int | None], Sequence[ImagePart]]
"""Reads a question's pictures, each with at most so many pixels; it is called in a thread."""


class Episode:
    """Answers one question.

    Args:
        question: The question.
        policy: The policy that answers.
        config: Limits, arm, sampling.
        pictures: Reads the images that come with a question without a video; they are shown in its one turn.
        evidence: Where the evidence is, as (start, end) in seconds of the first video. The arm `oracle` shows it. It is
            in no prompt.
        on_turn: Called after each turn.
        on_prompt: Called with each prompt, including media, and the text that the policy wrote.
        on_phase: Called with each phase of the episode, and when it began and ended.
        on_event: Called with what happens, as it happens: the thought of a turn before its look, the turn after it
            (`apr_plugin.loop.events`).
        decoding: Shared limits on reading; by default the episode has its own.
        config_hash: `config.hash(policy)`, if it is already known.
    """

    def __init__(
        self,
        question: Question,
        policy: Policy,
        config: EpisodeConfig,
        *,
        pictures: ReadPictures | None = None,
        evidence: Sequence[tuple[float, float]] = (),
        on_turn: OnTurn | None = None,
        on_prompt: OnPrompt | None = None,
        on_phase: OnPhase | None = None,
        on_event: OnEvent | None = None,
        decoding: Decoding | None = None,
        config_hash: str | None = None,
    ) -> None:
        self.question = question
        self.policy = policy
        self.config = config
        self.pictures = pictures
        self.evidence = tuple(evidence)
        self.strict = config.parsing == "strict"
        """Whether turns and answers are read as in OmniAgent's environment."""
        self.seed = config.seed_for(question)
        """Seed of this episode."""
        self.environment = Environment(
            config.budget, config.media, policy.modalities, config.form, visual_token_of(policy)
        )
        self.asking = Asking(policy, config.sampling, self.seed, self._seconds_left, config.budget.prompt_tokens)
        self.turns: list[Turn] = []
        """The turns so far."""
        self.first_shown: tuple[Shown, ...] = ()
        """What was shown before the turn of an arm that has only one."""
        self.allowed = 1
        """Number of turns that the budget gives this question."""
        self._on_turn = on_turn
        self._on_prompt = on_prompt
        self._on_phase = on_phase
        self._on_event = on_event
        self._decoding = decoding or Decoding()
        self._own_decoding = decoding is None
        self._held = 0
        self._config_hash = config_hash or config.hash(policy)
        self._films: tuple[Film, ...] = ()
        self._started = time.perf_counter()
        self._opened_s = 0.0
        self._callers = Callers()

    async def run(self) -> Trajectory:
        """Run the episode to its end.

        This returns a trajectory whatever the policy writes, the file contains or other code raises (including lack of
        memory, and panics of Rust libraries). It raises only `asyncio.CancelledError` if the task is cancelled
        (`cancelled()` then has the episode so far), `KeyboardInterrupt`, `SystemExit`, and what the caller's own
        `on_turn`, `on_prompt`, `on_phase` or `on_event` raised.
        """
        self._started = time.perf_counter()
        try:
            began = time.perf_counter()
            await self.read(self.environment.reset, self.question, "open")
            self._opened_s = time.perf_counter() - began
            self._films = tuple(opened.film() for opened in self.environment.videos)
            self._tell(Opened(self.question.key, self._films))
            return await ARMS[self._arm](self)
        except WallClock:
            return self.end(
                StopReason.WALL_CLOCK, detail=f"the episode took longer than {self.config.budget.wall_clock_s:g}s"
            )
        except MediaError as error:
            return self.end(StopReason.MEDIA_UNREADABLE, detail=str(error))
        except PolicyUnavailable as error:
            return self.end(StopReason.POLICY_UNAVAILABLE, detail=str(error))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a failure of one question, not of the run
            if error is self._callers.raised:
                raise
            return self.end(StopReason.ERROR, detail=told(error))
        finally:
            self.environment.cancelled.set()  # a read that is still running in its thread ends at once
            self.environment.close()
            self.let_go()
            if self._own_decoding:
                self._decoding.close()

    def cancelled(self) -> Trajectory:
        """The trajectory of an episode that was stopped from outside."""
        return self.end(StopReason.CANCELLED, detail="the run was stopped")

    @property
    def _arm(self) -> str:
        """A question without a video is answered in one turn, because there is nothing to choose from."""
        return self.config.arm if self.question.videos or self.config.arm == "blind" else "passive"

    async def read(self, read: Callable[[_In], _Out], argument: _In, what: Literal["open", "look"]) -> _Out:
        """Read media in a thread; any exception of a decoder becomes a `MediaError`."""
        clock = asyncio.timeout(self._seconds_left())
        asked = time.perf_counter()
        try:
            async with clock:
                result, began = await self._decoding.read(read, argument)
        except MediaError:
            raise
        except Exception as error:
            if clock.expired():
                raise WallClock from error
            where = ", ".join(v.path for v in self.question.videos) or "the pictures of the question"
            raise MediaError(where, "read", told(error)) from error
        self._spent("wait", asked, began)
        self._spent(what, began)
        return result

    async def hold(self, size: int) -> None:
        """Wait for memory for what will be shown; `let_go` releases it after the policy has seen it."""
        asked = time.perf_counter()
        clock = asyncio.timeout(self._seconds_left())
        try:
            async with clock:
                await self._decoding.hold(size)
        except TimeoutError as error:
            raise WallClock from error
        self._held += size
        self._spent("wait", asked)

    def let_go(self) -> None:
        """Release the memory of what the policy has seen."""
        self._decoding.let_go(self._held)
        self._held = 0

    def _spent(
        self, what: Literal["open", "wait", "look", "generate"], began: float, ended: float | None = None
    ) -> None:
        if self._on_phase is not None:
            turn = 0 if what == "open" else len(self.turns) + (what in ("generate", "wait", "look"))
            self._callers(
                self._on_phase,
                Phase(self.question.key, turn, what, began, time.perf_counter() if ended is None else ended),
            )

    def _seconds_left(self) -> float | None:
        limit = self.config.budget.wall_clock_s
        return None if limit is None else limit - (time.perf_counter() - self._started)

    def limit_reached(self) -> str:
        """The token limit that is used up, in words; empty if there is none."""
        limit = self.config.budget.tokens_per_episode
        if limit is not None and self.asking.tokens >= limit:
            return f"The episode's {limit} tokens are used up."
        if self.environment.exhausted:
            return f"The episode's {self.config.budget.visual_tokens_per_episode} visual tokens are used up."
        return ""

    @property
    def names(self) -> FrameNames | None:
        """The frames that the policy may name in place of times; `None` if the wire has no references."""
        return self.environment.names if self.environment.wire.references else None

    def notebook(self) -> Notebook:
        """An empty notebook for the question."""
        return Notebook(
            self.question,
            [VideoMeta(film.duration_s, film.fps, film.has_audio, film.audio_s) for film in self._films],
            self.config.budget,
            self.config.system_prompt,
            self.policy.modalities,
            self.environment.wire,
            episode_name(self.question, self.seed),
            self.config.system_prompt_template,
            self.config.passive_wire,
        )

    def taken(self, content: str, strict: bool) -> TakenAnswer | ActionError:
        """An answer in its canonical form, or the error in it."""
        if strict:
            return strict_answer(self.question, content, max(self.environment.durations_s, default=None))
        answer = self.environment.check_answer(content)
        return answer if isinstance(answer, ActionError) else TakenAnswer(answer)

    async def generate(self, prompt: Prompt, number: int) -> tuple[Generation, float]:
        """The turn with this number, and the seconds it took; it raises the same errors as `Asking.generate`."""
        began = time.perf_counter()
        try:
            generation, seconds = await self.asking.generate(prompt, number)
        finally:
            self._spent("generate", began)
        if self._on_prompt is not None:
            self._callers(self._on_prompt, prompt, generation)
        return generation, seconds

    def note(
        self,
        parsed: ParsedTurn,
        generation: Generation,
        model_s: float,
        outcome: Percept | ActionError | None = None,
        media_s: float = 0.0,
        **more: Any,
    ) -> None:
        """Record a turn; `more` has further fields of it."""
        turn = turn_of(parsed, generation, outcome, model_s=model_s, media_s=media_s).model_copy(update=more)
        self.turns.append(turn)
        if self._on_turn is not None:
            self._callers(self._on_turn, len(self.turns), turn)
        self._tell(TurnEnded(self.question.key, len(self.turns), turn))

    def thought(self, parsed: ParsedTurn, number: int) -> None:
        """Tell the caller what the policy wrote, before its look is carried out."""
        self._tell(Thought(self.question.key, number, parsed))

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._callers(self._on_event, event)

    def end(
        self, reason: StopReason, *, answer: str | None = None, valid: bool = False, detail: str = ""
    ) -> Trajectory:
        """The finished trajectory."""
        total = time.perf_counter() - self._started
        model_s = sum(turn.model_s for turn in self.turns)
        media_s = self._opened_s + sum(turn.media_s for turn in self.turns)
        return Trajectory(
            question=self.question,
            arm=self._arm,
            turns=tuple(self.turns),
            first_shown=self.first_shown,
            answer=answer,
            answer_valid=valid,
            stop_reason=reason,
            stop_detail=printable(detail),
            turns_allowed=self.allowed,
            video_durations_s=tuple(film.duration_s for film in self._films),
            videos=self._films,
            budget=self.config.budget,
            timings=Timings(
                total_s=round(total, 6),
                model_s=round(model_s, 6),
                media_s=round(media_s, 6),
                other_s=round(max(0.0, total - model_s - media_s), 6),
            ),
            seed=self.seed,
            config_hash=self._config_hash,
            question_hash=self.question.content_hash(),
            versions=package_versions(),
        )
