"""`Session`: one run, answered question by question by threads that are not async.

VLMEvalKit calls its model from several threads at once, and in its API mode makes an instance of the model for each
data set. All of them share a session: one policy, one event loop in a thread of its own, one store. A question that an
earlier run of the same configuration has answered comes from the store at once, so VLMEvalKit's own checkpoints are
not needed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from apr_plugin import interrupt
from apr_plugin.errors import AprError, told
from apr_plugin.loop.card import Card
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.episode import ReadPictures
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.meter import per_question
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.settings import read_settings
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.runs.truths import DocKey, write_truths
from apr_plugin.scoring.truth import Truth
from apr_plugin.terminal import one_line

_log = logging.getLogger(__name__)

_POLL_S = 0.2
"""How often a thread that waits for its answer checks whether the run was stopped."""

_END_S = 30.0
"""How long the end of the run waits for episodes that were cancelled."""

_Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Truths:
    """What is right in a data set."""

    dataset: str
    """Its name."""
    read: Callable[[], Mapping[DocKey, Truth]]
    """Reads it."""


@dataclass(frozen=True)
class Asking:
    """What a session is asked."""

    question: Question
    pictures: ReadPictures | None = None
    """Reads the images of a question without a video."""
    evidence: tuple[tuple[float, float], ...] = ()
    """Where the evidence is, in seconds of the first video: what the arm `oracle` shows."""
    truths: Truths | None = None
    """What is right in the whole data set; it is kept once, before the first question of it is asked."""


class Session:
    """One run behind every instance of the model in this process.

    It begins with the first question, or when it is entered as a context manager.

    Args:
        arguments: model_args.

    Raises:
        AprError: an argument is missing, unknown, or has a bad value.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.settings = read_settings(arguments)
        self.config_hash = self.settings.config.hash(self.settings.policy)
        self.fault: AprError | None = None
        """What ended the run before its last question: nothing can be saved any more."""
        self.trajectories: dict[_Key, Trajectory] = {}
        """What was answered in this process, or read from the store, by question."""
        self.lost: dict[_Key, str] = {}
        """Questions that have no trajectory, and why."""
        self.seconds = 0.0
        """From the first question to the last answer."""
        self.store = TrajectoryStore(
            self.settings.trajectories,
            self.config_hash,
            Card.of(self.settings.config, self.settings.policy),
            resume=self.settings.resume,
        )
        self._lock = threading.Lock()
        self._inside = contextlib.ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = 0.0
        self._kept: set[str] = set()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> asyncio.AbstractEventLoop:
        """Lock the store, and start the event loop; once.

        Raises:
            AprError: another run holds the folder, or it can't be written.
        """
        with self._lock:
            if self._loop is None:
                self._inside.enter_context(self.store)
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._loop.run_forever, name="apr-session", daemon=True)
                thread.start()
                self._inside.callback(thread.join, 10)
                self._inside.callback(self._loop.call_soon_threadsafe, self._loop.stop)
                self._inside.callback(self._end_rest, self._loop)
                self._slots = asyncio.Semaphore(self.settings.concurrency)
                self._decoding = Decoding(self.settings.decode_threads, self.settings.decoded_bytes)
                self._inside.callback(self._decoding.close)
                self._began = time.perf_counter()
            return self._loop

    def close(self) -> None:
        """End the event loop, release what the policy holds, and merge the trajectory files; calling it again is fine.

        Raises:
            AprError: the files can't be written.
        """
        with self._lock:
            began, self._loop = self._loop is not None, None
        if began:
            try:
                self.store.merge(dict.fromkeys(key[0] for key in self.trajectories))
            finally:
                self._inside.close()
        self.settings.policy.close()

    def _keep(self, truths: Truths) -> None:
        """Write what is right beside the trajectories, as an evaluation under lmms-eval does; once for a data set."""
        with self._lock:
            if truths.dataset not in self._kept:
                write_truths(self.store.folder, truths.read())
                self._kept.add(truths.dataset)

    def answer(self, asked: Asking) -> Trajectory | None:
        """Answer one question, and wait for it; several threads may call this. It raises nothing.

        Returns:
            The trajectory; `None` if the run was stopped or has ended with `fault`, which is then counted in `lost`.
        """
        key = asked.question.key
        try:
            if interrupt.asked():
                raise concurrent.futures.CancelledError
            if self.fault is not None:
                raise self.fault
            loop = self._begin()
            if asked.truths is not None:
                self._keep(asked.truths)
            trajectory = self._result(asyncio.run_coroutine_threadsafe(self._answer(asked), loop))
        except AprError as error:
            self.fault = self.fault or error
            self.lost[key] = str(self.fault)
            return None
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            self.lost[key] = "the run was stopped"
            return None
        except BaseException as error:  # noqa: BLE001 - the harness would lose the whole data set, or wait for ever
            _log.exception("apr: %s doc %s", key[0], key[2])
            self.lost[key] = told(error)
            return None
        self.lost.pop(key, None)
        self.trajectories[key] = trajectory
        self.seconds = time.perf_counter() - self._began
        return trajectory

    def _result(self, future: concurrent.futures.Future[Trajectory]) -> Trajectory:
        while True:
            try:
                return future.result(_POLL_S)
            except TimeoutError:
                if future.done():  # the episode itself raised it
                    return future.result()
                if interrupt.asked():
                    future.cancel()

    async def _answer(self, asked: Asking) -> Trajectory:
        async with self._slots:
            (trajectory,) = await run_episodes(
                [asked.question],
                self.settings.policy,
                self.settings.config,
                store=self.store,
                pictures={asked.question.key: asked.pictures} if asked.pictures is not None else None,
                evidence={asked.question.key: asked.evidence} if asked.evidence else None,
                decoding=self._decoding,
            )
        return trajectory

    @staticmethod
    def _end_rest(loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what still runs, and wait until it is saved."""

        async def end() -> None:
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(end(), loop).result(_END_S)

    @property
    def unanswered(self) -> list[str]:
        """The questions that were not answered, one line each; a scorer counts them as wrong."""
        failed = [
            f"{t.question.task} doc {t.question.doc_id}: {t.stop_reason}: {t.stop_detail}"
            for t in self.trajectories.values()
            if t.stop_reason.failed
        ]
        return [
            one_line(line, 600)
            for line in [*failed, *(f"{key[0]} doc {key[2]}: {why}" for key, why in self.lost.items())]
        ]

    def summary(self) -> str:
        """Why the questions ended, what one cost on average, and where the trajectories are, in one line."""
        stops = Counter(str(t.stop_reason) for t in self.trajectories.values())
        cost = per_question(list(self.trajectories.values()))
        told_cost = (
            f"; {cost['turns_per_question']:.1f} turns, {cost['frames_per_question']:.0f} frames, "
            f"{cost['seconds_per_question']:.2f} s a question"
            if cost
            else ""
        )
        ends = ", ".join(f"{reason} {count}" for reason, count in stops.most_common()) or "no question"
        return f"{ends}{told_cost}; trajectories in {self.store.folder}"
