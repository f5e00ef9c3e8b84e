"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

from typing import Any

from apr_plugin.loop.question import Question
from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import NOT_READ, File, Row, Source, check_readable, lmms, reply, unreadable
from apr_plugin.tasks.common.choices import ask, bucket_name, lettered, question_of
from apr_plugin.tasks.gameplayqa.questions import (
    GAMES,
    KINDS,
    LEVELS,
    OTHER_KIND,
    TASKS,
    buckets_of,
    rows,
    statement_kind,
)


def asked(doc: Row) -> Question:
    """Make the question.

    It counts videos from 1 and may leave some out, but looks count from 0; so both numbers of each video precede it.
    """
    numbers = doc["video_numbers"]
    names = "; ".join(
        f'"Video {number}" in the question or its options is video {index} of a look'
        for index, number in enumerate(numbers)
    )
    asked_of: Question = question_of(
        doc, f"The videos show the same time from different players. {names}." if len(numbers) > 1 else ""
    )
    return asked_of


SOURCE = Source(
    task="apr_gameplayqa",
    folder="gameplayqa",
    title="GameplayQA",
    kind="mcq",
    n=2365,
    licence="MIT",
    homepage="https://hats-ict.github.io/gameplayqa/",
    files=(File("qa.csv", hub="wangyz1999/GameplayQA"),),
    videos_of=lambda row: row["files"],
    labels_of=lambda row, seconds: buckets_of(row),
    buckets=(
        *(f"level_{level}" for level in LEVELS),
        *map(bucket_name, TASKS),
        "other_task",
        *dict.fromkeys(GAMES.values()),
        "other_game",
        *(f"videos_{number}" for number in range(1, 6)),
    ),
    rows_of=rows,
    question_of=asked,
    truth_of=lambda doc: Truth(doc["answer"]),
)


def docs(_stub: Any) -> Any:
    """The rows of the main set."""
    return lmms.docs(SOURCE)


def doc_to_visual(doc: Row) -> list[dict[str, Any]]:
    """Each video's path with the window that the question is about."""
    check_readable(doc)
    window = {"video_start": doc["video_start"], "video_end": doc["video_end"]}
    return [{"type": "video", "path": path, **window} for path in doc["apr_videos"]]


def doc_to_text(doc: Row, lmms_eval_specific_kwargs: Any = None) -> str:
    """The question and its options; for several videos, first the names that the question uses."""
    if unreadable(doc):
        return str(NOT_READ)
    text: str = ask(doc)
    if len(doc["video_numbers"]) == 1:
        return text
    names = ", ".join(f"Video {number}" for number in doc["video_numbers"])
    return f"These videos show the same time from different players. In their order they are {names}.\n{text}"


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """1 if the right option is named, overall and in each bucket; and the kind of distractor of an error.

    `error_<kind>` has a true-or-false question in its denominator if the statement is a distractor of that kind.
    `picked_<kind>` has a question in its denominator if an option of that kind is offered, and is 1 if such an option
    was chosen.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    letters = lettered(doc)
    letter = match_option(reply(results), letters)
    right = float(letter == doc["answer"])
    more: dict[str, Any] = {"no_answer": float(letter is None)}
    if (statement := statement_kind(doc["question_code"])) is not None:
        more |= {f"error_{statement}": 1.0 - right, f"n_error_{statement}": 1}
    picked = next((kind for (own, _), kind in zip(letters, doc["option_kinds"], strict=True) if own == letter), "")
    for kind in (*KINDS, OTHER_KIND):
        if kind in doc["option_kinds"]:
            more |= {f"picked_{kind}": float(picked == kind), f"n_picked_{kind}": 1}
    scored: dict[str, Any] = SOURCE.scored(doc, right, **more)
    return scored
