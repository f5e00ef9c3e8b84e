"""`Episode`: one question, from reset to trajectory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

from apr_plugin.errors import told
from apr_plugin.loop.action import Answer, Look, offered_actions
from apr_plugin.loop.answer import TakenAnswer, strict_answer
from apr_plugin.loop.asking import Asking, ContextFull, WallClock
from apr_plugin.loop.config import EpisodeConfig, package_versions
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.environment import Environment
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.parse import ParsedTurn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.plan import LookPlan
from apr_plugin.loop.policy import Generation, ImagePart, Policy, PolicyUnavailable, Prompt
from apr_plugin.loop.question import Question
from apr_plugin.loop.record import turn_of
from apr_plugin.loop.reply import AnswerReply, read_answer, read_answer_strictly, read_turn, read_turn_strictly
from apr_plugin.loop.text import printable
from apr_plugin.loop.timeline import Callers, OnSpan, Span
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.loop.wires import WIRES, VideoMeta
from apr_plugin.media import MediaError

_In = TypeVar("_In")
_Out = TypeVar("_Out")

OnTurn = Callable[[int, Turn], None]
"""Called after each turn with its number (from 1)."""

Pictures = Callable[[int | None], Sequence[ImagePart]]
"""Reads a question's pictures, each with at most so many pixels; called in a thread."""

PICTURES_BYTES = 32 * 2**20
"""Memory set aside for a question's pictures (ten megapixels) before they are read."""


class Episode:
    """Answers one question.

    Args:
        question: What is asked.
        policy: Who answers.
        config: Limits, arm, sampling.
        pictures: Reads the images that come with a question without a video; they are shown in its one turn.
        on_turn: Called after each turn.
        on_span: Called with what the episode did from when to when.
        decoding: Shared limits on reading; without it the episode has its own.
        config_hash: `config.hash(policy)`, where it is known already.
    """

    def __init__(
        self,
        question: Question,
        policy: Policy,
        config: EpisodeConfig,
        *,
        pictures: Pictures | None = None,
        on_turn: OnTurn | None = None,
        on_span: OnSpan | None = None,
        decoding: Decoding | None = None,
        config_hash: str | None = None,
    ) -> None:
        self.question, self.policy, self.config = question, policy, config
        self._pictures, self._on_turn, self._on_span = pictures, on_turn, on_span
        self._decoding, self._own_decoding = decoding or Decoding(), decoding is None
        self._held = 0
        self._strict = config.parsing == "strict"
        self._config_hash = config_hash or config.hash(policy)
        self._seed = config.seed_for(question)
        self._asking = Asking(policy, config.sampling, self._seed, self._seconds_left, config.budget.prompt_tokens)
        self._turns: list[Turn] = []
        self._environment = Environment(config.budget, config.media, policy.modalities, WIRES[config.wire])
        self._first_shown: tuple[Shown, ...] = ()
        self._durations: tuple[float, ...] = ()
        self._allowed = 1
        self._started = time.perf_counter()
        self._opened_s = 0.0
        self._callers = Callers()

    async def run(self) -> Trajectory:
        """Run the episode to its end.

        Whatever the policy writes, the file holds or the code of others raises (also lack of memory, and the panics of libraries in Rust), this
        returns a trajectory. What it raises is: cancelling the task (`asyncio.CancelledError`; `cancelled()` then tells how far it came), what asks
        the process to end (`KeyboardInterrupt`, `SystemExit`), and what the caller's own `on_turn` or `on_span` raised.
        """
        self._started = time.perf_counter()
        try:
            began = time.perf_counter()
            await self._read(self._environment.reset, self.question, "open")
            self._opened_s = time.perf_counter() - began
            self._durations = self._environment.durations_s
            passive = self.config.arm == "passive" or not self.question.videos
            return await (self._run_passive() if passive else self._run_agent())
        except WallClock:
            return self._end(StopReason.WALL_CLOCK, detail=f"the episode took longer than {self.config.budget.wall_clock_s:g}s")
        except MediaError as error:
            return self._end(StopReason.MEDIA_UNREADABLE, detail=str(error))
        except PolicyUnavailable as error:
            return self._end(StopReason.POLICY_UNAVAILABLE, detail=str(error))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # one question's failure, not the run's
            if error is self._callers.raised:
                raise
            return self._end(StopReason.ERROR, detail=told(error))
        finally:
            self._environment.cancelled.set()  # a read still under way in its thread ends at once
            self._environment.close()
            self._let_go()
            if self._own_decoding:
                self._decoding.close()

    def cancelled(self) -> Trajectory:
        """The trajectory of an episode that was stopped from outside."""
        return self._end(StopReason.CANCELLED, detail="the run was stopped")

    async def _run_agent(self) -> Trajectory:
        notebook = self._notebook()
        offered = offered_actions(self.policy.modalities)
        self._allowed = turns = self.config.budget.turns_for(sum(self._durations))
        for number in range(1, turns + 1):
            try:
                generation, model_s = await self._generate(notebook.prompt(number, turns), number)
            except ContextFull:
                if self._strict:
                    return self._end(StopReason.TOKENS, detail=self._asking.context.full)
                return await self._force(notebook, StopReason.TOKENS, self._asking.context.full)
            notebook.forget_media()
            self._let_go()
            if self._strict:
                parsed = read_turn_strictly(generation, offered=offered, several=len(self.question.videos) > 1)
            else:
                parsed = read_turn(generation, offered=offered)
            last = number == turns
            outcome: Percept | ActionError | None = parsed.error
            media_s = 0.0
            reached = "" if last else self._limit_reached()
            if isinstance(parsed.action, Answer):
                checked = self._check(parsed.action, number, turns)
                if isinstance(checked, TakenAnswer):
                    self._note(parsed, generation, model_s)
                    return self._end(StopReason.ANSWERED, answer=checked.text, valid=checked.valid, detail=checked.remark)
                outcome = checked
            elif parsed.action is not None and (last or reached):
                outcome = ActionError(ErrorCode.ANSWER_EXPECTED, "only an answer counts now.")
            elif parsed.action is not None:
                began = time.perf_counter()
                try:
                    outcome = await self._look(parsed.action, partial(_shown_next, notebook, generation.text, number + 1, turns))
                except MediaError:
                    self._note(parsed, generation, model_s, media_s=time.perf_counter() - began)
                    raise
                except ContextFull:
                    outcome = ActionError(ErrorCode.NO_TOKENS_LEFT, self._asking.context.full)
                    self._note(parsed, generation, model_s, outcome)
                    return self._end(StopReason.TOKENS, detail=outcome.message)
                media_s = time.perf_counter() - began
            self._note(parsed, generation, model_s, outcome, media_s)
            notebook.add(generation.text, outcome)
            reached = reached or ("" if last else self._limit_reached())
            if reached:
                return await self._force(notebook, StopReason.TOKENS, reached)
        return await self._force(notebook, StopReason.TURNS, f"All {turns} turns are used up.")

    async def _look(self, action: Look, prompt: Callable[[list[Percept]], Prompt]) -> Percept | ActionError:
        """Carry out a look as far as budget and context allow; `prompt` is what will show it.

        Raises:
            ContextFull: the prompt would be too long, and nothing is made smaller in strict parsing.
        """
        plan = self._environment.plan(action)
        if isinstance(plan, ActionError):
            return plan
        if self._strict:
            measured = await self._asking.context.over(prompt([plan.blank()]))
            if measured is not None and measured[0] > 0:
                raise ContextFull

        def again(limit: int) -> list[LookPlan]:
            smaller = self._environment.plan(action, limit)
            return [smaller] if isinstance(smaller, LookPlan) else []

        fitting = await self._asking.context.fit([plan], again, prompt)
        if isinstance(fitting, ActionError):
            return fitting
        await self._hold(fitting[0].bytes)
        outcome = await self._read(self._environment.look, fitting[0], "look")
        refused = await self._asking.context.check(outcome, fitting[0], prompt) if isinstance(outcome, Percept) else outcome
        if refused is not None:
            self._let_go()
            return refused
        return outcome

    def _check(self, action: Answer, number: int, turns: int) -> TakenAnswer | ActionError:
        if number == 1 < turns and self.config.budget.refuse_blind_answer:
            return ActionError(ErrorCode.EARLY_ANSWER, "this is turn 1 and nothing has been looked at yet; an answer is taken from turn 2 on.")
        return self._taken(action.content, self._strict)

    def _checked(self, reply: AnswerReply, strict: bool) -> TakenAnswer | ActionError:
        return reply.fault or self._taken(reply.content, strict)

    def _taken(self, content: str, strict: bool) -> TakenAnswer | ActionError:
        if strict:
            return strict_answer(self.question, content, max(self._durations, default=None))
        answer = self._environment.check_answer(content)
        return answer if isinstance(answer, ActionError) else TakenAnswer(answer)

    async def _read(self, read: Callable[[_In], _Out], argument: _In, what: Literal["open", "look"]) -> _Out:
        """Read media in a thread; whatever a decoder raises becomes a `MediaError`."""
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

    async def _hold(self, size: int) -> None:
        """Wait for memory for what will be shown; `_let_go` gives it back once the policy has seen it."""
        asked = time.perf_counter()
        clock = asyncio.timeout(self._seconds_left())
        try:
            async with clock:
                await self._decoding.hold(size)
        except TimeoutError as error:
            raise WallClock from error
        self._held += size
        self._spent("wait", asked)

    def _let_go(self) -> None:
        self._decoding.let_go(self._held)
        self._held = 0

    def _spent(self, what: Literal["open", "wait", "look", "generate"], began: float, ended: float | None = None) -> None:
        if self._on_span is not None:
            turn = 0 if what == "open" else len(self._turns) + (what in ("generate", "wait", "look"))
            self._callers(self._on_span, Span(self.question.key, turn, what, began, time.perf_counter() if ended is None else ended))

    def _seconds_left(self) -> float | None:
        limit = self.config.budget.wall_clock_s
        return None if limit is None else limit - (time.perf_counter() - self._started)

    def _limit_reached(self) -> str:
        limit = self.config.budget.tokens_per_episode
        if limit is not None and self._asking.tokens >= limit:
            return f"The episode's {limit} tokens are used up."
        if self._environment.exhausted:
            return f"The episode's {self.config.budget.visual_tokens_per_episode} visual tokens are used up."
        return ""

    async def _force(self, notebook: Notebook, reason: StopReason, why: str) -> Trajectory:
        """Ask for the answer alone, or end without one where the budget says so."""
        if self.config.budget.on_last_turn == "fail":
            return self._end(reason, detail=why)
        forced = await self._asking.context.forced(notebook, why)
        if forced is None:
            return self._end(reason, detail=f"{why} Not even the question alone fits, so no answer was asked for.")
        prompt, left_out = forced
        if left_out:
            why += f" The notes of the first {left_out} turns did not fit and were left out."
        generation, model_s = await self._generate(prompt, len(self._turns) + 1)
        reply = read_answer_strictly(generation) if self._strict else read_answer(generation, self.question)
        checked, content = self._checked(reply, self._strict), reply.content
        error = checked if isinstance(checked, ActionError) else None
        if error is not None and reply.bare and reply.fault is None:  # words, and not the answer itself
            content, checked = "", reply.parsed.error or error
        self._note(reply.parsed, generation, model_s, error, forced=True)
        if isinstance(checked, TakenAnswer):
            return self._end(StopReason.FORCED, answer=checked.text, valid=checked.valid, detail=f"{why} {checked.remark}".strip())
        if content:
            return self._end(StopReason.FORCED, answer=content, valid=False, detail=f"{why} {checked.message}")
        return self._end(reason, detail=f"{why} The forced call brought no answer: {checked.message}")

    async def _run_passive(self) -> Trajectory:
        notes = [] if self.question.videos else ["the request had no video, so it was answered in one passive turn"]
        began = time.perf_counter()
        if "frames" not in self.policy.modalities and (self._pictures is not None or self.config.passive_frames > 0):
            notes.append("the policy takes in no pictures, so it was asked blind")
            prompt: Prompt | None = self._notebook().passive_prompt([])
        elif self.question.videos:
            prompt = await self._passive_frames(notes)
        else:
            prompt = await self._passive_pictures(notes)
        media_s = time.perf_counter() - began
        try:
            if prompt is None:
                raise ContextFull
            generation, model_s = await self._generate(prompt, 1)
        except ContextFull:
            return self._end(StopReason.TOKENS, detail="; ".join([*notes, f"{self._asking.context.full} The question does not fit into it."]))
        self._let_go()
        reply = read_answer(generation, self.question)
        checked, content = self._checked(reply, strict=False), reply.content
        error = checked if isinstance(checked, ActionError) else None
        self._note(replace(reply.parsed, error=None), generation, model_s, error, media_s)
        if isinstance(checked, TakenAnswer):
            return self._end(StopReason.ANSWERED, answer=checked.text, valid=True, detail="; ".join(notes))
        notes.append(checked.message)
        if not content:
            return self._end(StopReason.TURNS, detail="; ".join(notes))
        return self._end(StopReason.ANSWERED, answer=content, valid=False, detail="; ".join(notes))

    async def _passive_frames(self, notes: list[str]) -> Prompt | None:
        """What the passive arm sees of the videos; `None` where nothing of it fits into the context."""
        notebook, wanted = self._notebook(), self.config.passive_frames
        unseen = [str(number) for number, opened in enumerate(self._environment.videos) if not opened.video.has_video]
        if unseen and wanted:
            notes.append(f"video {', '.join(unseen)} has no picture, and the passive arm hears nothing")
        whole = self._environment.plan_uniform(wanted) if wanted else []
        if not whole:
            return notebook.passive_prompt([])
        plans = await self._asking.context.fit(whole, partial(self._environment.plan_uniform, wanted), notebook.passive_prompt)
        if isinstance(plans, ActionError):
            return None
        if plans != whole:
            notes.append(f"shown with fewer pixels or frames to fit the model's context of {self.policy.context_tokens} tokens")
        await self._hold(sum(plan.bytes for plan in plans))
        percepts = await self._read(lambda asked: [self._environment.show(plan) for plan in asked], plans, "look")
        self._first_shown = tuple(percept.shown() for percept in percepts)
        return notebook.passive_prompt(percepts)

    async def _passive_pictures(self, notes: list[str]) -> Prompt | None:
        """What is asked of a question without a video, with its pictures; `None` where they don't fit into the context."""
        shown = partial(self._notebook().passive_prompt, [])
        if self._pictures is None:
            return shown()
        await self._hold(PICTURES_BYTES)
        pictures = await self._read(self._pictures, None, "look")
        pixels = await self._asking.context.fit_pictures(pictures, shown)
        if pixels is not None:
            if not pixels:
                return None
            notes.append(f"pictures scaled down to {pixels} pixels to fit the model's context of {self.policy.context_tokens} tokens")
            pictures = await self._read(self._pictures, pixels, "look")
        if not pictures:
            return shown()
        height, width = pictures[0].image.shape[:2]
        remark = f"{len(pictures)} pictures that came with the question"
        self._first_shown = (Shown(kind="images", width=width, height=height, remark=remark),)
        return shown(pictures)

    def _notebook(self) -> Notebook:
        videos = [VideoMeta(each.duration_s, each.video.fps, each.video.has_audio, each.longer_sound_s) for each in self._environment.videos]
        return Notebook(self.question, videos, self.config.budget, self.config.system_prompt, self.policy.modalities, self._environment.wire)

    async def _generate(self, prompt: Prompt, number: int) -> tuple[Generation, float]:
        began = time.perf_counter()
        try:
            return await self._asking.generate(prompt, number)
        finally:
            self._spent("generate", began)

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
        turn = turn_of(parsed, generation, outcome, model_s=model_s, media_s=media_s, forced=forced)
        self._turns.append(turn)
        if self._on_turn is not None:
            self._callers(self._on_turn, len(self._turns), turn)

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
            config_hash=self._config_hash,
            question_hash=self.question.content_hash(),
            versions=package_versions(),
        )


def _shown_next(notebook: Notebook, text: str, number: int, turns: int, percepts: list[Percept]) -> Prompt:
    """The next turn's prompt, if this turn's look brings this percept."""
    return notebook.with_turn(text, percepts[0]).prompt(number, turns)
