"""The functions of the YAML's `!function`; lmms-eval loads this file again for every reference, so it has no state."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common import Bins, File, Row, Source, Unreadable, each, lmms, reply, unreadable
from apr_plugin.tasks.common.choices import bucket_name, question_of, without_labels

BINS = Bins.of_minutes(0, 1, 5, 10, math.inf)
TYPES = (
    "counting", "causal reasoning", "temporal understanding", "reference reasoning", "fine-grained perception",
    "sentiment analysis", "ego reasoning",
    "spatial understanding", "summarization", "background&music understanding", "relationship reasoning",
    "hypothetical reasoning",
    "attribute comparison",
)  # fmt: skip
SOUNDS = ("Speech", "Sound", "Music")
COMMIT = "1915466a319302dcae1a4bad05de9698b1d3f85d"

_BOXED = re.compile(r"(?:/box|\\boxed)\{([^}]{1,200})\}")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _rows(contents: Sequence[Any]) -> Iterator[Row | Unreadable]:
    yield from each(_of_video, contents[0])


def _of_video(video: Row) -> Iterator[Row | Unreadable]:
    shared = {name: video[name] for name in ("video", "video_type", "duration")}

    def of_question(asked: Row) -> list[Row]:
        own = {name: asked[name] for name in ("question", "question_type", "audio_type", "answer", "correct_option")}
        return [{**shared, **own, "options": without_labels(asked["options"])}]

    yield from each(of_question, video["questions"])


def _seconds(row: Row) -> float:
    """The seconds of `duration`, which is MM:SS."""
    minutes, seconds = row["duration"].split(":")
    return 60.0 * int(minutes) + int(seconds)


SOURCE = Source(
    task="apr_omnivideobench",
    folder="omnivideobench",
    title="OmniVideoBench",
    kind="mcq",
    n=1000,
    licence="CC BY-NC-SA 4.0; videos on request",
    homepage="https://github.com/NJU-LINK/OmniVideoBench",
    files=(
        File(
            "data.json",
            url=f"https://raw.githubusercontent.com/NJU-LINK/OmniVideoBench/{COMMIT}/data_example/data.json",
        ),
    ),
    videos_of=lambda row: [f"{row['video']}.mp4"],
    labels_of=lambda row, seconds: [
        BINS.name(seconds),
        bucket_name(row["question_type"]),
        bucket_name(row["audio_type"]),
    ],
    buckets=(*BINS.names, *map(bucket_name, TYPES), *map(bucket_name, SOUNDS)),
    rows_of=_rows,
    needs=("question", "correct_option"),
    seconds_of=_seconds,
    question_of=question_of,
    truth_of=lambda doc: Truth(doc["correct_option"].upper()),
)


def docs(_stub: Any) -> Any:
    """The official rows."""
    return lmms.docs(SOURCE)


def cleaned(reply: str) -> str:
    """The part of a reply that the official scorer compares with the letter.

    It is what is boxed, otherwise all of it; "B. red" is "b", punctuation is dropped.
    """
    boxed = _BOXED.search(reply)
    text = (boxed[1].strip() if boxed else reply.strip()).lower()
    return " ".join((text[0] if text[1:2] == "." else text).translate(_NO_PUNCTUATION).split())


def process_results(doc: Row, results: list[Any]) -> dict[str, Any]:
    """1 if the cleaned reply is the right letter, overall, by duration, by question type and by kind of sound.

    The official scorer excludes questions that failed from the denominator; here they count as wrong.
    """
    if unreadable(doc):
        return dict(SOURCE.scored(doc, 0.0))
    right = cleaned(reply(results)) == doc["correct_option"].lower()
    scored: dict[str, Any] = SOURCE.scored(doc, float(right))
    return scored
