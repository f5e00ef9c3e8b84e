"""Shared code of the arms with one turn: everything that is shown, then the question, then one reply.

The reply is the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from apr_plugin.loop.answer import TakenAnswer
from apr_plugin.loop.asking import ContextFull
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.plan import LookPlan
from apr_plugin.loop.policy import Prompt
from apr_plugin.loop.reply import read_answer
from apr_plugin.loop.trajectory import Shown, StopReason, Trajectory

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode

Plan = Callable[[int | None], Sequence[LookPlan]]
"""Plans what is shown, under a limit of visual tokens for all of it."""

Change = Callable[[Sequence[Percept]], Sequence[Percept]]
"""Changes percepts before they are shown."""

PICTURES_BYTES = 32 * 2**20
"""Memory reserved for a question's pictures (ten megapixels) before they are read."""


async def answer_at_once(episode: Episode, plan: Plan | None, change: Change = list) -> Trajectory:
    """Ask once.

    Args:
        episode: The episode.
        plan: Plans what is shown of the videos, under a limit of visual tokens; with `None` nothing is shown. If there
            is no video, the question's pictures are shown.
        change: Changes the percepts after reading, before they are shown.
    """
    notes = [] if episode.question.videos else ["the request had no video, so it was answered in one passive turn"]
    began = time.perf_counter()
    if "frames" not in episode.policy.modalities and (episode.pictures is not None or plan is not None):
        notes.append("the policy takes in no pictures, so it was asked blind")
        prompt: Prompt | None = episode.notebook().passive_prompt([])
    elif episode.question.videos:
        prompt = await _with_frames(episode, plan, change, notes)
    else:
        prompt = await _with_pictures(episode, notes) if plan is not None else episode.notebook().passive_prompt([])
    media_s = time.perf_counter() - began
    try:
        if prompt is None:
            raise ContextFull
        generation, model_s = await episode.generate(prompt, 1)
    except ContextFull:
        return episode.end(
            StopReason.TOKENS,
            detail="; ".join([*notes, f"{episode.asking.context.full} The question does not fit into it."]),
        )
    episode.let_go()
    reply = read_answer(generation, episode.question, episode.names if episode.config.passive_wire else None)
    checked, content = reply.fault or episode.taken(reply.content, strict=False), reply.content
    error = checked if isinstance(checked, ActionError) else None
    episode.note(replace(reply.parsed, error=None), generation, model_s, error, media_s)
    if isinstance(checked, TakenAnswer):
        return episode.end(StopReason.ANSWERED, answer=checked.text, valid=True, detail="; ".join(notes))
    notes.append(checked.message)
    if not content:
        return episode.end(StopReason.TURNS, detail="; ".join(notes))
    return episode.end(StopReason.ANSWERED, answer=content, valid=False, detail="; ".join(notes))


async def _with_frames(episode: Episode, plan: Plan | None, change: Change, notes: list[str]) -> Prompt | None:
    """The prompt with what is shown of the videos; `None` if not even the smallest version fits into the context."""
    notebook = episode.notebook()
    unseen = [str(number) for number, opened in enumerate(episode.environment.videos) if not opened.video.has_video]
    if unseen and plan is not None:
        notes.append(f"video {', '.join(unseen)} has no picture, and a passive arm hears nothing")
    whole = plan(None) if plan is not None else []
    if plan is None or not whole:
        return notebook.passive_prompt([])
    plans = await episode.asking.context.fit(whole, plan, notebook.passive_prompt)
    if isinstance(plans, ActionError):
        return None
    if plans != whole:
        notes.append(
            f"shown with fewer pixels or frames to fit the model's context of {episode.policy.context_tokens} tokens"
        )
    await episode.hold(sum(each.bytes for each in plans))
    percepts = change(
        await episode.read(lambda asked: [episode.environment.show(each) for each in asked], plans, "look")
    )
    episode.first_shown = tuple(percept.shown() for percept in percepts)
    for percept in percepts:
        episode.environment.shown(percept)
    return notebook.passive_prompt(percepts)


async def _with_pictures(episode: Episode, notes: list[str]) -> Prompt | None:
    """The prompt of a question without a video, with its pictures; `None` if they don't fit into the context."""
    shown = partial(episode.notebook().passive_prompt, [])
    if episode.pictures is None:
        return shown()
    await episode.hold(PICTURES_BYTES)
    pictures = await episode.read(episode.pictures, None, "look")
    pixels = await episode.asking.context.fit_pictures(pictures, shown)
    if pixels is not None:
        if not pixels:
            return None
        notes.append(
            f"pictures scaled down to {pixels} pixels to fit the model's context of "
            f"{episode.policy.context_tokens} tokens"
        )
        pictures = await episode.read(episode.pictures, pixels, "look")
    if not pictures:
        return shown()
    height, width = pictures[0].image.shape[:2]
    remark = f"{len(pictures)} pictures that came with the question"
    episode.first_shown = (Shown(kind="images", width=width, height=height, remark=remark),)
    return shown(pictures)
