"""What a reader of another program's records gives: trajectories with what belongs to them, and what is said of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.foreign.records import Left
from apr_plugin.scoring.truth import Truth

LeftOut = Callable[[Left, str], None]
"""Called with why a record is left out, and its place."""


@dataclass(frozen=True)
class Found:
    """One question."""

    trajectory: Trajectory
    """Without a configuration's hash."""
    score: float | None = None
    """In [0, 1], as the other program scored it; `None` where it did not, or in another range."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers of its scorers, by name."""
    truth: Truth | None = None
    """What is right, where the record says it."""


@dataclass
class About:
    """What is said of all trajectories; a reader fills it while it reads."""

    model: str = ""
    """The model that answered."""
    program: str = ""
    """What recorded it, with its release."""
    time: str = ""
    """When it was evaluated, as `20261127_094501`."""
    configuration: dict[str, Any] = field(default_factory=dict)
    """Settings, as the record has them."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> metric -> what was reported for the whole task."""
    versions: dict[str, Any] = field(default_factory=dict)
    """Task -> its version."""
    notes: list[str] = field(default_factory=list)
    """What differs from a run of this package, one sentence each."""


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    task: str = ""
    """Name of the task; empty takes the record's own."""
    scorer: str = ""
    """Which of several scorers gives the score."""


class Reader(Protocol):
    """Reads the files of one format."""

    def __call__(self, files: Sequence[Path], wanted: Wanted, about: About, left: LeftOut) -> Iterator[Found]:
        """Give every trajectory of the files, one at a time.

        Raises:
            AprError: a file can't be read, or the files don't belong to one run.
        """
        ...
