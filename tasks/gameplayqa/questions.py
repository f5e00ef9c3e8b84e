"""Makes a question of a row of GameplayQA's table.

A question has its videos and their numbers, its options in the official order, and the kind of each wrong option.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from apr_plugin.tasks.common import Row, Unreadable, each, number
from apr_plugin.tasks.common.choices import bucket_name

LEVELS = ("1", "2", "3")
TASKS = (
    "Action Recognition", "State Recognition", "Object Recognition", "Event Recognition", "Static Object Count",
    "Cross-Entity Referring", "Timestamp Referring", "Time Localization", "Absence Recognition", "Occurrence Count",
    "Ordering",
    "Intent Identification", "Sync-Referring", "Cross-Video Ordering", "POV Identification",
)  # fmt: skip
"""The 15 values of `task_name`, five of level 1, seven of level 2, three of level 3 (Table 2 of the paper)."""
GAMES = {
    "apex": "apex_legends", "arc": "arc_raiders", "battlefield": "battlefield_6", "counterstrike": "counter_strike_2",
    "cs2": "counter_strike_2",
    "cyberpunk": "cyberpunk_2077", "elden": "elden_ring", "minecraft": "minecraft", "nomans": "no_mans_sky",
    "valheim": "valheim",
}  # fmt: skip
"""The beginning of `game_name`, without blanks and punctuation and in small letters -> the bucket of the game."""
KINDS = ("lexical", "scene", "temporal", "role", "cross_video")
"""The five kinds of distractor of the paper's taxonomy."""
OTHER_KIND = "other"
"""Other kinds of wrong options: a count, a reason, an order, or the opposite of true or false."""

_SEED = 13
_EXIST = re.compile(r"EXIST-(Lexical|Scene|Temporal|Role|Cross-?Video)$", re.IGNORECASE)


def rows(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    """The rows of `qa.csv`, in its order."""
    yield from each(_row, contents[0])


def _row(row: Row) -> list[Row]:
    row = {name: (value or "").strip() for name, value in row.items()}
    files = [row[name] for name in (f"video_{number}_file_name" for number in range(1, 6)) if row[name]]
    options = list(_options(row))
    # The official order: one shuffle by a generator seeded with the first 16 hex digits of SHA-256("13:<id>").
    random.Random(int(hashlib.sha256(f"{_SEED}:{row['id']}".encode()).hexdigest()[:16], 16)).shuffle(options)
    kept = (
        "id",
        "instance_id",
        "game_name",
        "question_code",
        "task_name",
        "question_level",
        "question",
        "answer_start",
        "answer_end",
    )
    return [
        {
            **{name: row[name] for name in kept},
            "files": files,
            "video_numbers": [index + 1 for index in _indices(row["video_indices"], len(files))],
            "video_start": number(row["video_start"]),
            "video_end": number(row["video_end"]),
            "options": [text for text, _ in options],
            "option_kinds": [kind for _, kind in options],
            "answer": "ABCD"[[kind for _, kind in options].index("")],
        }
    ]


def buckets_of(row: Mapping[str, Any]) -> list[str]:
    """The buckets of a row: its level, task, game and number of videos."""
    plain = re.sub(r"[^a-z0-9]", "", row["game_name"].lower())
    game = next((name for start, name in GAMES.items() if plain.startswith(start)), "other_game")
    task = bucket_name(row["task_name"]) if row["task_name"] in TASKS else "other_task"
    return [f"level_{row['question_level']}", task, game, f"videos_{len(row['files'])}"]


def statement_kind(code: str) -> str | None:
    """The kind of distractor that a statement to be judged true or false is ("SA-EXIST-Temporal": `temporal`).

    `None` if the statement is not a distractor.
    """
    found = _EXIST.search(code)
    return None if found is None else found[1].lower().replace("-", "").replace("crossvideo", "cross_video")


def _options(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(text, kind) of each option; the right one comes first and has the kind ""."""
    if "EXIST" in row["question_code"]:
        true = row["correct_option"].lower() == "true"
        yield from ((str(true), ""), (str(not true), OTHER_KIND))
        return
    yield row["correct_option"], ""
    for place in (1, 2, 3):
        if text := row[f"distractor_{place}"]:
            kind = bucket_name(row[f"distractor_{place}_type"])
            yield text, kind if kind in KINDS else OTHER_KIND


def _indices(listed: str, count: int) -> list[int]:
    """The indices of the instance's videos in `video_indices` ("0, 2").

    They are all indices, in order, if the column does not fit the files.
    """
    found = [int(part) for part in listed.split(",") if re.fullmatch(r"\s*\d+\s*", part)]
    return found if len(found) == count else list(range(count))
