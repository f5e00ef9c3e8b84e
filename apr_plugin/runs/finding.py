"""Find the runs in a folder; a run is the trajectories of one configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin import __version__
from apr_plugin.errors import AprError
from apr_plugin.files import check_regular, read_regular
from apr_plugin.loop.card import CARD_FILE, Card, CardError
from apr_plugin.loop.card import SCHEMA as CARD_SCHEMA
from apr_plugin.loop.files import lines
from apr_plugin.loop.trajectory import SCHEMA

CARDS = (CARD_FILE, "config.json")
"""File names of the card, the second in runs of earlier releases; the first that exists is read."""

_HASH = re.compile(r"[0-9a-f]{16}")
"""The store's name for the folder of a configuration, which is its hash."""


@dataclass(frozen=True)
class FoundRun:
    """The files of one run."""

    folder: Path
    """Where they are."""

    config_hash: str
    """The configuration's hash; empty if the lines name none."""

    files: tuple[Path, ...]
    """Files that may contain its trajectories; none if the run ended before its first question."""

    @property
    def about(self) -> str:
        """Its policy, arm and number of lines, as far as they are known, for choosing one of several runs."""
        card = read_card(self.folder)
        inner = card["config"] if isinstance(card.get("config"), dict) else card
        policy = card.get("policy") or inner.get("policy")
        named = [policy.get("name") if isinstance(policy, dict) else policy, inner.get("arm")]
        return ", ".join(
            [*(str(name)[:60] for name in named if name), f"{sum(newlines(file) for file in self.files):,} lines"]
        )


def find_runs(path: Path) -> list[FoundRun]:
    """The runs in a file, or in a folder and below it; empty if there are none.

    Raises:
        AprError: there is no such file or folder.
        TrajectoryError: a file can't be read.
    """
    files = trajectory_files(path)
    found: dict[tuple[Path, str], dict[Path, None]] = {}
    for file in files:
        for config_hash in [file.parent.name] if _HASH.fullmatch(file.parent.name) else _hashes(file):
            found.setdefault((file.parent, config_hash), {})[file] = None
    if path.is_dir():
        try:
            cards = sorted(card for name in CARDS for card in path.rglob(name))
        except OSError as error:
            raise AprError(f"{path}: cannot read it: {error.strerror or error}") from error
        for card in cards:
            if _HASH.fullmatch(card.parent.name):
                found.setdefault((card.parent, card.parent.name), {})
    return [FoundRun(folder, config_hash, tuple(own)) for (folder, config_hash), own in sorted(found.items())]


def trajectory_files(path: Path) -> list[Path]:
    """The files of trajectories in a folder and below it, or the one file that was given.

    Raises:
        AprError: there is no such file or folder.
    """
    try:
        if path.is_dir():
            return [file for file in sorted(path.rglob("*.jsonl")) if file.is_file() and not _foreign(file)]
        check_regular(path)
    except FileNotFoundError:
        raise AprError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:  # a name with a null character
        raise AprError(f"{path}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    return [path]


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a run; empty if there is none that can be read."""
    for name in CARDS:
        try:
            card = json.loads(read_regular(folder / name))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(card, dict):
            return card
    return {}


def card_problem(path: Path, card: Mapping[str, Any], config_hash: str) -> str | None:
    """What is wrong with the card of a run, if it was changed after the run began.

    The card of another release can't be checked, because another release may describe a configuration otherwise.
    """
    versions = card.get("versions")
    ours = isinstance(versions, dict) and versions.get("apr-plugin") == __version__
    if card.get("schema") != CARD_SCHEMA or not ours:
        return None
    try:
        if Card.read(path).content_hash == config_hash:
            return None
    except CardError as error:
        return f"{error}; the card was changed"
    return f"{path}: the card was changed; it does not describe the configuration {config_hash}"


def _foreign(file: Path) -> bool:
    """Whether a JSON Lines file in a folder is not ours, such as the samples that lmms-eval writes."""
    try:
        with file.open("rb") as opened:
            first = json.loads(opened.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return not isinstance(first, dict) or first.get("schema") != SCHEMA


def _hashes(file: Path) -> Iterable[str]:
    """The configurations that the lines of a file name, in order.

    A file without a whole line counts as one configuration without a name.
    """
    found: dict[str, None] = {}
    for _, _, line in lines(file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue  # reported when the run is read
        if isinstance(value, dict) and isinstance(value.get("config_hash", ""), str):
            found[value.get("config_hash", "")] = None
    return found or {"": None}


def newlines(file: Path) -> int:
    """The number of whole lines in a file."""
    with file.open("rb") as opened:
        return sum(block.count(b"\n") for block in iter(lambda: opened.read(2**20), b""))
