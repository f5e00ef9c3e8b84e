"""`run_episodes` answers many questions: it keeps `concurrency` episodes running and saves each when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from apr_plugin import interrupt
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.episode import Episode, OnPrompt, ReadPictures
from apr_plugin.loop.events import OnEvent
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.question import Question
from apr_plugin.loop.timeline import OnPhase, Phase
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.config import RunConfig
from apr_plugin.runs.store import TrajectoryStore

OnDone = Callable[[Trajectory, bool], None]
"""Called when a question is finished and saved; the flag tells whether it came from an earlier run."""


async def run_episodes(
    questions: Sequence[Question],
    policy: Policy,
    config: RunConfig | None = None,
    concurrency: int = 1,
    *,
    store: TrajectoryStore | None = None,
    pictures: Mapping[tuple[str, str, str, int], ReadPictures] | None = None,
    evidence: Mapping[tuple[str, str, str, int], Sequence[tuple[float, float]]] | None = None,
    on_done: OnDone | None = None,
    on_prompt: OnPrompt | None = None,
    on_phase: OnPhase | None = None,
    on_event: OnEvent | None = None,
    decoding: Decoding | None = None,
) -> list[Trajectory]:
    """Answer every question; the list has their order and length.

    Each of `concurrency` workers takes the next question when its last has ended. So an episode exists only while
    it runs. Models are awaited in the event loop; decoding and saving happen in threads, so that one episode decodes
    while others generate. Memory is bounded by `decoding`: a look waits until there is room for what it will show.

    A question that is already in the store is not asked again. When the task is cancelled, running episodes are saved
    as `cancelled` and asked again by a later run. The same happens after a Ctrl-C that `interrupt` received, even if an
    engine swallowed the cancellation.

    Any other failure inside one episode becomes that question's reason (`Episode.run`).

    Args:
        questions: The questions to ask.
        policy: The policy that answers.
        config: Limits, arm, sampling, seed: an `EpisodeConfig`, or a `ConfigPerQuestion`, whose hash is in all its
            trajectories.
        concurrency: Episodes at once.
        store: Where each trajectory is saved when its episode ends. Token ids, log-probs and entropies are then only in
            its files.
        pictures: By question key, the function that reads the images of a question without a video.
        evidence: By question key, where the evidence is in the first video, in seconds: what the arm `oracle` shows.
        on_done: Called for each finished question.
        on_prompt: Called with each prompt and what the policy wrote, with or without a store.
        on_phase: Called with what each episode did, and when it began and ended (`Phase`), for a timeline of the run.
        on_event: Called with what happens in each episode, as it happens (`apr_plugin.loop.events`).
        decoding: Limits on memory and on the number of reads at once; by default one per processor and 4 GiB.

    Raises:
        TrajectoryError: a trajectory could not be saved (the disk is full); the rest is stopped, and what was saved
            stays.
    """
    chosen: RunConfig = config or EpisodeConfig()
    config_hash = chosen.hash(policy)
    reading = decoding or Decoding()
    results: list[Trajectory | None] = [None] * len(questions)
    waiting = iter(range(len(questions)))

    def finished(index: int, trajectory: Trajectory, resumed: bool) -> None:
        results[index] = trajectory if store is None else trajectory.without_token_values()
        if on_done is not None:
            on_done(trajectory, resumed)

    async def answer(index: int) -> None:
        question = questions[index]
        episode = Episode(
            question,
            policy,
            chosen.for_question(question),
            pictures=(pictures or {}).get(question.key),
            evidence=(evidence or {}).get(question.key, ()),
            on_prompt=on_prompt,
            on_phase=on_phase,
            on_event=on_event,
            decoding=reading,
            config_hash=config_hash,
        )
        try:
            trajectory = await episode.run()
        except asyncio.CancelledError:
            if store is not None:
                store.save(episode.cancelled())
            raise
        if store is not None:
            began = time.perf_counter()
            trajectory = await _to_the_end(store.save, trajectory)
            if on_phase is not None:
                on_phase(Phase(question.key, 0, "save", began, time.perf_counter()))
        finished(index, trajectory, False)

    async def work() -> None:
        for index in waiting:
            if interrupt.asked():  # an engine may have swallowed the cancellation
                raise asyncio.CancelledError
            saved = store.finished(questions[index]) if store is not None else None
            if saved is None:
                await answer(index)
            else:
                finished(index, saved, True)
                await asyncio.sleep(0)

    try:
        await run_workers(work, min(concurrency, len(questions)))
    finally:
        if decoding is None:
            reading.close()
    return [result for result in results if result is not None]


async def run_workers(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run so many copies of `work`, at least one, until all end; if one fails, the others are stopped first."""
    workers = [asyncio.create_task(work()) for _ in range(max(1, count))]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise


async def _to_the_end(save: Callable[[Trajectory], Trajectory], trajectory: Trajectory) -> Trajectory:
    """Save in a thread; a cancelled task still waits, so that the store is not closed during a write."""
    saving = asyncio.ensure_future(asyncio.to_thread(save, trajectory))
    try:
        return await asyncio.shield(saving)
    except asyncio.CancelledError:
        await saving
        raise
