"""Plays what another system's model wrote in our own episode, and keeps the trajectories."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.card import CARD_FILE, Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling
from apr_plugin.loop.question import Question
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.media import MediaOpenError
from apr_plugin.media.confine import confine
from apr_plugin.runs.foreign.records import Left, Unmapped
from apr_plugin.training.making import Source
from apr_plugin.training.rows import Key

TRAJECTORY_FILE = "trajectories.jsonl"
"""The trajectories that a reader has played."""

KEPT_FILE = "kept.json"
"""Which of their turns may be targets, and what was left out."""

Write = Callable[[int, float], str]
"""The words of a turn, from its number (from 1) and the length of the first video in seconds."""


@dataclass
class Imported:
    """What was read from a foreign file."""

    source: Source
    """Its trajectories, for `make_rows`; which turns may be targets is in `kept`."""
    played: int = 0
    """Trajectories."""
    skipped: list[tuple[Unmapped, str, str]] = field(default_factory=list)
    """What was left out: reason, name, details."""

    def counts(self) -> dict[str, int]:
        """How many were left out for each reason."""
        return dict(Counter(str(reason) for reason, _, _ in self.skipped))


class _Actor(PolicyDefaults):
    """A policy that writes what another model wrote."""

    name = "imported"

    def __init__(self, format_name: str, about: Mapping[str, Any]) -> None:
        self._about = {"format": format_name, **about}
        self.write: Write = lambda number, _: ""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        asked = prompt.asked
        assert asked is not None
        return Generation(self.write(asked.turn, asked.durations_s[0] if asked.durations_s else 0.0))

    def describe(self) -> dict[str, Any]:
        return self._about


class Stage:
    """Plays trajectories and writes them to a folder: `trajectories.jsonl`, and a card for each configuration.

    Args:
        out: The folder; it must not have trajectories yet.
        format_name: Name of the foreign format, for the cards.
        about: Further settings of the reader, for the cards.

    Raises:
        AprError: the folder already has trajectories.
    """

    def __init__(self, out: str | Path, format_name: str, about: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(out)
        self.file = self.folder / TRAJECTORY_FILE
        if self.file.exists():
            raise AprError(f"{self.file} is there already; choose another folder, or remove it first")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.touch()
        self._actor = _Actor(format_name, about or {})
        self.kept: dict[Key, frozenset[int]] = {}
        self.played = 0
        self.skipped: list[tuple[Unmapped, str, str]] = []

    def play(self, question: Question, config: EpisodeConfig, write: Write) -> tuple[Trajectory, list[Prompt]]:
        """Play an episode.

        Args:
            question: The question.
            config: Its limits and form; it decides the card.
            write: What the model wrote.

        Returns:
            The trajectory, not yet written, and the text prompts of its turns (media included).

        Raises:
            Left: it could not be played.
        """
        self._actor.write = write
        base = config.model_copy(update={"budget": EpisodeConfig().budget})
        card = Card.of(base, self._actor)
        place = self.folder / card.config_hash
        if not place.exists():
            place.mkdir()
            (place / CARD_FILE).write_text(card.to_json(), "utf-8")
        prompts: list[Prompt] = []

        def keep(prompt: Prompt, _: Generation) -> None:
            prompts.append(prompt)

        episode = Episode(question, self._actor, config, on_prompt=keep, config_hash=card.config_hash)
        done = asyncio.run(episode.run())
        if done.stop_reason.failed:
            raise Left(Unmapped.UNREADABLE, done.stop_detail)
        return done, prompts

    def keep(self, trajectory: Trajectory, turns: Sequence[int]) -> None:
        """Write a trajectory; only these turns may be targets."""
        trajectory.write(self.file)
        self.kept[trajectory.question.key] = frozenset(turns)
        self.played += 1

    def skip(self, left: Left, name: str) -> None:
        """Count one that was left out."""
        self.skipped.append((left.reason, name, left.detail))

    def done(self, name: str) -> Imported:
        """What was read; `name` is that of the source. It is in the folder too, for `imported`."""
        about = {
            "name": name,
            "kept": [[key, sorted(turns)] for key, turns in self.kept.items()],
            "skipped": [[str(reason), *more] for reason, *more in self.skipped],
        }
        (self.folder / KEPT_FILE).write_text(json.dumps(about, ensure_ascii=False) + "\n", "utf-8")
        return Imported(Source(self.file, self.folder, name, "teacher", self.kept), self.played, self.skipped)


def imported(folder: str | Path) -> Imported:
    """What a reader has read into a folder.

    Raises:
        AprError: no reader has finished there.
    """
    place = Path(folder)
    try:
        about = json.loads(read_regular(place / KEPT_FILE))
        kept = {
            (task, split, doc_id, repeat): frozenset(turns) for (task, split, doc_id, repeat), turns in about["kept"]
        }
        skipped = [(Unmapped(reason), named, detail) for reason, named, detail in about["skipped"]]
        name = str(about["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AprError(
            f"{place / KEPT_FILE}: cannot be read ({getattr(error, 'strerror', None) or error}); run the reader again, "
            "with a new folder"
        ) from error
    return Imported(Source(place / TRAJECTORY_FILE, place, name, "teacher", kept), len(kept), skipped)


def find_video(path: object, root: str | Path) -> Path:
    """The file of a foreign path inside the folder of videos; such a path is untrusted.

    Raises:
        Left: it is no path, is outside, or is not there.
    """
    if not isinstance(path, str) or not path.strip():
        raise Left(Unmapped.NO_VIDEO, "it names no video")
    found = Path(root) / path.removeprefix("file://")
    try:
        confine(found, root)
        there = found.is_file()
    except (MediaOpenError, ValueError, OSError) as error:
        raise Left(Unmapped.NO_VIDEO, f"{path[:200]!r} is outside the folder of videos: {error}") from error
    if not there:
        raise Left(Unmapped.NO_VIDEO, f"{path[:200]!r} is not in the folder of videos")
    return found
