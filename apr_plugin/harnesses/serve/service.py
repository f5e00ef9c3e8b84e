"""`Service`: one policy behind an endpoint, with its places, its limits and its store.

The episodes are run by `runs.run_episodes`, each on its own, and all of them share the policy (which batches what is
asked at the same time), the decoding threads and the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from apr_plugin.errors import AprError
from apr_plugin.harnesses.serve.limits import ServeLimits
from apr_plugin.harnesses.serve.question import TASK, Asked
from apr_plugin.harnesses.serve.slots import Slots
from apr_plugin.harnesses.serve.uploads import Received, Uploads
from apr_plugin.loop.card import Card
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.events import OnEvent
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.settings import Settings
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.terminal import one_line

_log = logging.getLogger(__name__)

Unanswered = Literal["status", "null"]
"""What a client gets for a question that could not be asked: an error status, or a completion that says `(null)`."""


class Service:
    """What the endpoint answers with; a context manager.

    Args:
        settings: Policy, configuration, decoding limits and the store's folder. The service closes the policy.
        limits: Limits of requests.
        roots: Folders whose files a request may name; with none, only uploads are read.
        model: The model's name in requests.
        unanswered: What a question that could not be asked becomes.

    Raises:
        AprError: a root is no folder, or (on entering) the store's folder can't be written.
    """

    def __init__(
        self,
        settings: Settings,
        limits: ServeLimits,
        *,
        roots: Sequence[Path] = (),
        model: str = "apr",
        unanswered: Unanswered = "status",
    ) -> None:
        self.limits = limits
        self.model = model
        self.unanswered = unanswered
        self.roots = tuple(_folder(root) for root in roots)
        """Folders that a request may name files in."""
        self.started = int(time.time())
        self.policy = settings.policy
        self.uploads = Uploads()
        budget = settings.config.budget
        wall_clock_s = min(filter(None, (budget.wall_clock_s, limits.timeout_s)))
        self.config = settings.config.model_copy(
            update={
                "budget": budget.model_copy(update={"wall_clock_s": wall_clock_s}),
                "media": settings.config.media.model_copy(update={"root": (*self.roots, str(self.uploads.folder))}),
            }
        )
        self.strict = self.config.parsing == "strict"
        self.config_hash = self.config.hash(self.policy)
        self.slots = Slots(limits.concurrent, limits.queue)
        self.store = TrajectoryStore(
            settings.trajectories,
            self.config_hash,
            Card.of(self.config, self.policy),
            resume=settings.resume,
            remember=False,
        )
        self._decode_threads, self._decoded_bytes = settings.decode_threads, settings.decoded_bytes
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._inside.callback(self.policy.close)
        self._inside.enter_context(self.uploads)
        try:
            self._inside.enter_context(self.store)
        except BaseException:
            self._inside.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.close()

    @functools.cached_property
    def decoding(self) -> Decoding:
        """Threads and memory for what episodes look at."""
        decoding = Decoding(self._decode_threads, self._decoded_bytes)
        self._inside.callback(decoding.close)
        return decoding

    @functools.cached_property
    def bodies(self) -> Decoding:
        """Threads that read bodies, and a limit on the bytes of all bodies in memory."""
        bodies = Decoding(2, self.limits.bodies_bytes)
        self._inside.callback(bodies.close)
        return bodies

    def received(self, name: str) -> Received:
        """The place for the files of a request."""
        return Received(self.uploads.folder / name, self.limits.upload_bytes)

    async def answer(self, asked: Asked, on_event: OnEvent | None = None) -> Trajectory:
        """Wait for a slot, run the episode, and return it when it is saved.

        An episode that is cancelled is saved as `cancelled`, and its slot is free when this has ended.

        Raises:
            Refused: the server stops.
            AprError: the trajectory could not be saved.
        """
        async with self.slots.slot():
            (trajectory,) = await run_episodes(
                [asked.question],
                self.policy,
                self.config,
                store=self.store,
                pictures={asked.question.key: asked.pictures} if asked.pictures is not None else None,
                on_event=on_event,
                decoding=self.decoding,
            )
        if trajectory.stop_reason.failed:
            told = one_line(f"{asked.question.doc_id}: {trajectory.stop_reason}: {trajectory.stop_detail}", 600)
            _log.warning("%s", told)
        return trajectory

    def where(self) -> Path:
        """The file of the stored trajectories."""
        return self.store.path(TASK)


def _folder(root: Path) -> str:
    path = root.expanduser()
    if "\0" in str(path) or not path.is_dir():
        raise AprError(f"--root {root}: no such folder")
    return str(path.resolve())


async def gather_cancelled(*tasks: asyncio.Task[object]) -> None:
    """Cancel tasks and wait until they have ended, whatever they raise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
