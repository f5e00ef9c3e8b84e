"""Trajectories on disk (`--out`), and the downloads of a finished investigation."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.store import TrajectoryStore


@dataclass(frozen=True)
class Reporting:
    """What the page needs of the report, which is above it; the command gives it."""

    thumbnail: Callable[[NDArray[np.uint8]], str]
    """A frame of shape (height, width, 3), RGB, as base64 of a small WebP picture."""
    waveform: Callable[[NDArray[np.float32]], list[int]]
    """Samples as loudness from 0 to 100."""
    write_page: Callable[[Path, Path], object]
    """Writes the report page of a run's folder to a file. It reads the videos again, so that takes a moment."""


class Records:
    """The trajectories that the page keeps: a run's folder for each configuration, as `apr eval` writes them.

    Args:
        out: The folder; `None` keeps nothing.
        policy: The policy that answers.

    Raises:
        AprError: the folder can't be written.
    """

    def __init__(self, out: Path | None, policy: Policy) -> None:
        self._out = out
        self._policy = policy
        self._lock = threading.Lock()
        self._stores: dict[str, TrajectoryStore] = {}
        self._open = ExitStack()
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=out).close()
            except OSError as error:
                raise AprError(f"--out {out}: cannot write there: {error.strerror or error}") from error

    def keep(self, trajectory: Trajectory, config: EpisodeConfig) -> None:
        """Write a finished trajectory, and return when it is on disk; several threads may call this.

        Raises:
            TrajectoryError: the folder can't be written, or another program holds it.
        """
        if self._out is None:
            return
        with self._lock:
            store = self._stores.get(trajectory.config_hash)
            if store is None:
                card = Card.of(config, self._policy)
                store = self._open.enter_context(TrajectoryStore(self._out, trajectory.config_hash, card))
                self._stores[trajectory.config_hash] = store
        store.save(trajectory)

    def close(self) -> None:
        """Let the folders go."""
        self._open.close()


@dataclass(frozen=True)
class Finished:
    """A finished investigation, as long as its visitor stays."""

    trajectory: Trajectory
    """Everything that happened."""
    config: EpisodeConfig
    """Its configuration."""
    folder: Path
    """A folder of its own, inside the visitor's."""

    def line(self) -> str:
        """The trajectory as JSON Lines, with the names of its videos in place of their paths on this machine."""
        return without_places(self.trajectory).to_json() + "\n"

    def page(self, policy: Policy, reporting: Reporting) -> Path:
        """Its report page, made when it is first wanted. It takes a moment; call it in a thread, one at a time.

        Raises:
            AprError: it can't be made.
        """
        file = self.folder / "report.html"
        if not file.exists():
            card = Card.of(self.config, policy)
            with TrajectoryStore(self.folder / "run", self.trajectory.config_hash, card, resume="never") as store:
                detail = without_places(self.trajectory).stop_detail
                store.save(self.trajectory.model_copy(update={"stop_detail": detail}))
            reporting.write_page(self.folder / "run", file)
        return file


def without_places(trajectory: Trajectory) -> Trajectory:
    """The trajectory without the folders of its videos: names only, also in the detail of its end."""
    question, detail = trajectory.question, trajectory.stop_detail
    for ref in question.videos:
        detail = detail.replace(ref.path, Path(ref.path).name)
    videos = tuple(ref.model_copy(update={"path": Path(ref.path).name}) for ref in question.videos)
    return trajectory.model_copy(
        update={"question": question.model_copy(update={"videos": videos}), "stop_detail": detail}
    )
