"""The agent: it chooses what to look at, turn by turn, and writes notes; media is visible for one generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.action import Answer, Look, offered_actions
from apr_plugin.loop.answer import TakenAnswer
from apr_plugin.loop.asking import ContextFull
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.plan import LookPlan
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.reply import read_answer, read_answer_strictly, read_turn, read_turn_strictly
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.media import MediaError

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode


async def run(episode: Episode) -> Trajectory:
    """Run turns until an answer is taken or a limit is reached."""
    notebook = episode.notebook()
    offered = offered_actions(episode.policy.modalities)
    episode.allowed = turns = episode.config.budget.turns_for(sum(episode.environment.durations_s))
    for number in range(1, turns + 1):
        try:
            generation, model_s = await episode.generate(notebook.prompt(number, turns), number)
        except ContextFull:
            if episode.strict:
                return episode.end(StopReason.TOKENS, detail=episode.asking.context.full)
            return await _force(episode, notebook, StopReason.TOKENS, episode.asking.context.full)
        notebook.forget_media()
        episode.let_go()
        if episode.strict:
            parsed = read_turn_strictly(generation, offered=offered, several=len(episode.question.videos) > 1)
        else:
            parsed = read_turn(generation, offered=offered, names=episode.names)
        last = number == turns
        outcome: Percept | ActionError | None = parsed.error
        media_s = 0.0
        reached = "" if last else episode.limit_reached()
        if isinstance(parsed.action, Answer):
            checked = _check(episode, parsed.action, number, turns)
            if isinstance(checked, TakenAnswer):
                episode.note(parsed, generation, model_s)
                return episode.end(StopReason.ANSWERED, answer=checked.text, valid=checked.valid, detail=checked.remark)
            outcome = checked
        elif parsed.action is not None and (last or reached):
            outcome = ActionError(ErrorCode.ANSWER_EXPECTED, "only an answer counts now.")
        elif parsed.action is not None:
            began = time.perf_counter()
            episode.thought(parsed, number)
            try:
                outcome = await _look(
                    episode, parsed.action, partial(_shown_next, notebook, generation.text, number + 1, turns)
                )
            except MediaError:
                episode.note(parsed, generation, model_s, media_s=time.perf_counter() - began)
                raise
            except ContextFull:
                outcome = ActionError(ErrorCode.NO_TOKENS_LEFT, episode.asking.context.full)
                episode.note(parsed, generation, model_s, outcome)
                return episode.end(StopReason.TOKENS, detail=outcome.message)
            media_s = time.perf_counter() - began
        episode.note(parsed, generation, model_s, outcome, media_s)
        notebook.add(generation.text, outcome)
        reached = reached or ("" if last else episode.limit_reached())
        if reached:
            return await _force(episode, notebook, StopReason.TOKENS, reached)
    return await _force(episode, notebook, StopReason.TURNS, f"All {turns} turns are used up.")


async def _look(episode: Episode, action: Look, prompt: Callable[[list[Percept]], Prompt]) -> Percept | ActionError:
    """Carry out a look as far as budget and context allow; `prompt` makes the prompt that will show it.

    Raises:
        ContextFull: the prompt would be too long, and in strict parsing nothing is made smaller.
    """
    plan = episode.environment.plan(action)
    if isinstance(plan, ActionError):
        return plan

    def again(limit: int) -> list[LookPlan]:
        smaller = episode.environment.plan(action, limit)
        return [smaller] if isinstance(smaller, LookPlan) else []

    fitting: Sequence[LookPlan] | ActionError = [plan]
    if not episode.strict:
        fitting = await episode.asking.context.fit([plan], again, prompt)
    elif (measured := await episode.asking.context.over(prompt([plan.blank()]))) is not None and measured[0] > 0:
        raise ContextFull
    if isinstance(fitting, ActionError):
        return fitting
    await episode.hold(fitting[0].bytes)
    outcome = await episode.read(episode.environment.look, fitting[0], "look")
    refused = (
        await episode.asking.context.check(outcome, fitting[0], prompt) if isinstance(outcome, Percept) else outcome
    )
    if refused is not None:
        episode.let_go()
        return refused
    if isinstance(outcome, Percept):
        episode.environment.shown(outcome)
    return outcome


def _shown_next(notebook: Notebook, text: str, number: int, turns: int, percepts: list[Percept]) -> Prompt:
    """The next turn's prompt, if this turn's look returns this percept."""
    return notebook.with_turn(text, percepts[0]).prompt(number, turns)


def _check(episode: Episode, action: Answer, number: int, turns: int) -> TakenAnswer | ActionError:
    if number == 1 and (turns > 1 or episode.strict) and episode.config.budget.refuse_blind_answer:
        return ActionError(
            ErrorCode.EARLY_ANSWER,
            "this is turn 1 and nothing has been looked at yet; an answer is taken from turn 2 on.",
        )
    return episode.taken(action.content, episode.strict)


async def _force(episode: Episode, notebook: Notebook, reason: StopReason, why: str) -> Trajectory:
    """Ask for the answer alone, or end without one if the budget says so."""
    if episode.config.budget.on_last_turn == "fail":
        return episode.end(reason, detail=why)
    forced = await episode.asking.context.forced(notebook, why)
    if forced is None:
        return episode.end(reason, detail=f"{why} Not even the question alone fits, so no answer was asked for.")
    prompt, left_out = forced
    told = why
    if left_out:
        why += f" The notes of the first {left_out} turns did not fit and were left out."
    generation, model_s = await episode.generate(prompt, len(episode.turns) + 1)
    reply = (
        read_answer_strictly(generation) if episode.strict else read_answer(generation, episode.question, episode.names)
    )
    checked, content = reply.fault or episode.taken(reply.content, episode.strict), reply.content
    error = checked if isinstance(checked, ActionError) else None
    if error is not None and reply.bare and reply.fault is None:  # the reply has words, but not the answer itself
        content, checked = "", reply.parsed.error or error
    episode.note(reply.parsed, generation, model_s, error, forced=True, forced_why=told, left_out=left_out)
    if isinstance(checked, TakenAnswer):
        return episode.end(
            StopReason.FORCED, answer=checked.text, valid=checked.valid, detail=f"{why} {checked.remark}".strip()
        )
    if content:
        return episode.end(StopReason.FORCED, answer=content, valid=False, detail=f"{why} {checked.message}")
    return episode.end(reason, detail=f"{why} The forced call brought no answer: {checked.message}")
