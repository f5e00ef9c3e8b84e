"""Many questions at once: `run_episodes` keeps `concurrency` episodes going and saves each when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from apr_plugin.loop.episode import Episode, EpisodeConfig
from apr_plugin.loop.policy import ImagePart, Policy
from apr_plugin.loop.question import Question
from apr_plugin.loop.store import TrajectoryStore
from apr_plugin.loop.trajectory import Trajectory

OnDone = Callable[[Trajectory, bool], None]
"""Called when a question is finished and saved; the flag tells whether it came from an earlier run."""


async def run_episodes(
    questions: Sequence[Question],
    policy: Policy,
    config: EpisodeConfig,
    *,
    concurrency: int = 1,
    store: TrajectoryStore | None = None,
    pictures: Mapping[tuple[str, str, str, int], Sequence[ImagePart]] | None = None,
    on_done: OnDone | None = None,
) -> list[Trajectory]:
    """Answer every question; the list has their order and length.

    A question that the store already holds is not asked again. When the task is cancelled, episodes under way are saved as `cancelled` and
    asked again by a later run.

    Raises:
        TrajectoryError: a trajectory could not be saved (the disk is full); the rest is stopped, and what was saved stays.
    """
    results: list[Trajectory | None] = [None] * len(questions)
    waiting = iter(range(len(questions)))

    async def work() -> None:
        for index in waiting:
            question = questions[index]
            saved = store.finished(question) if store is not None else None
            if saved is not None:
                results[index] = saved
                if on_done is not None:
                    on_done(saved, True)
                await asyncio.sleep(0)
                continue
            episode = Episode(question, policy, config, pictures=(pictures or {}).get(question.key, ()))
            try:
                trajectory = await episode.run()
            except asyncio.CancelledError:
                if store is not None:
                    store.save(episode.cancelled())
                raise
            if store is not None:
                store.save(trajectory)
            results[index] = trajectory
            if on_done is not None:
                on_done(trajectory, False)

    workers = [asyncio.create_task(work()) for _ in range(max(1, min(concurrency, len(questions))))]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return [result for result in results if result is not None]
