"""What OmniAgent's rows say: one row for each turn, with its purged prompt (`raw_input`) and what was written.

Format: HarryHsing/OmniAgent at 18725bc, `data/example_train_sft.jsonl`: `question_id`, `traj_id`, `step` (from 1),
`raw_input` (messages of parts; media as placeholders), `output`, `step_reward`, `done`, `episode_reward`, and
`extra_info` with the question, the right answer, the video and the limits. The rows of a trajectory must be one after
the other in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.runs.foreign.records import Left, Unmapped, number

Row = Mapping[str, Any]
"""One turn as it was recorded."""

KINDS = {
    "MCQ": QuestionKind.MCQ,
    "TR": QuestionKind.GROUNDING,
    "FF": QuestionKind.FREE_FORM,
    "NUM": QuestionKind.NUMBER,
    "SIZE": QuestionKind.NUMBER,
}
"""The kinds of questions by the beginning of `question_type`."""

Flat = list[tuple[str, str]]
"""Messages as role and text, with a mark for each medium."""


def is_row(row: object) -> bool:
    """Whether a record can be a row of a trajectory."""
    return isinstance(row, dict) and isinstance(row.get("traj_id"), str)


def together(found: Iterable[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
    """The rows of one trajectory after the other, each with its place; only one trajectory is held in memory."""
    rows: list[tuple[str, Row]] = []
    for where, row in found:
        if rows and rows[0][1]["traj_id"] != row["traj_id"]:
            yield rows
            rows = []
        rows.append((where, row))
    if rows:
        yield rows


def steps(rows: Iterable[Row]) -> dict[int, Row]:
    """The rows by the number of their turn.

    Raises:
        Left: a number is no number from 1, or comes twice, or a row has no output.
    """
    found: dict[int, Row] = {}
    for row in rows:
        step = int(number(row.get("step"), "step"))
        if step < 1 or step in found or not isinstance(row.get("output"), str):
            raise Left(Unmapped.BAD_RECORD, f"step {step} is there twice, or has no output")
        found[step] = row
    return found


def flat_messages(messages: object) -> Flat:
    """Recorded messages; a part of media is a mark of its kind (`media_mark`).

    Raises:
        Left: they are no messages.
    """
    if not isinstance(messages, list):
        raise Left(Unmapped.BAD_RECORD, "raw_input is no list of messages")
    flat: Flat = []
    for message in messages:
        if not isinstance(message, dict):
            raise Left(Unmapped.BAD_RECORD, "a message is no object")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Left(Unmapped.BAD_RECORD, "a message has no parts")
        texts = [
            str(part.get("text")) if part.get("type") == "text" else media_mark(str(part.get("type"))) for part in parts
        ]
        flat.append((str(message.get("role")), "".join(texts)))
    return flat


def media_mark(kind: str) -> str:
    """What stands for a medium in `Flat`."""
    return f"\0{kind}\0"


def texts_of(rows: Mapping[int, Row]) -> tuple[list[str], Flat]:
    """What was written in each turn, also in those whose row is missing, and the last turn's prompt.

    Raises:
        Left: turns are missing that the last prompt does not have.
    """
    last = max(rows)
    prompt = flat_messages(rows[last].get("raw_input"))
    before = [text for role, text in prompt if role == "assistant"]
    if len(before) != last - 1:
        raise Left(Unmapped.MISSING_STEPS, f"the prompt of step {last} has {len(before)} earlier turns")
    written = {step: str(row["output"]) for step, row in rows.items()}
    return [written.get(step, before[step - 1]) for step in range(1, last)] + [written[last]], prompt


def info_of(row: Row) -> Mapping[str, Any]:
    """What a row says of the question and the limits.

    Raises:
        Left: it has nothing.
    """
    info = row.get("extra_info")
    if not isinstance(info, dict):
        raise Left(Unmapped.BAD_RECORD, "extra_info is missing")
    return info


def limits_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of the episode, with the names of `Budget`.

    Raises:
        Left: they are missing or are no numbers.
    """
    limits = info.get("env_config")
    if not isinstance(limits, dict):
        raise Left(Unmapped.BAD_RECORD, "extra_info.env_config is missing")
    return {
        "turns": int(number(limits.get("actual_max_steps", info.get("max_steps")), "actual_max_steps")),
        "frames_per_look": int(number(limits.get("actual_max_frames"), "actual_max_frames")),
        "audio_s": number(limits.get("actual_max_audio"), "actual_max_audio"),
        "clip_s": number(limits.get("actual_max_clip"), "actual_max_clip"),
    }


def question_of(info: Mapping[str, Any], videos: Sequence[str], named: tuple[str, str, int]) -> Question:
    """The question.

    Args:
        info: From `info_of`.
        videos: What its videos are called here.
        named: Task, doc id and repeat.

    Raises:
        Left: it can't be read.
    """
    kind = str(info.get("question_type")).split("_", 1)[0].upper()
    if kind not in KINDS:
        raise Left(Unmapped.UNKNOWN_KIND, kind[:80])
    if not isinstance(info.get("question"), str):
        raise Left(Unmapped.BAD_RECORD, "extra_info.question is missing")
    options = []
    if kind == "MCQ":
        given = info.get("options") or ()
        for each in given if isinstance(given, list | tuple) else ():
            label, dot, text = str(each).partition(". ")
            if not dot or not re.fullmatch(r"[A-Z]", label):
                raise Left(Unmapped.BAD_RECORD, f"an option has no label: {str(each)[:80]!r}")
            options.append(Option(label=label, text=text))
    task, doc_id, repeat = named
    return Question(
        text=info["question"],
        kind=KINDS[kind],
        options=tuple(options),
        videos=tuple(MediaRef(path=path) for path in videos),
        # A size has its unit in the question.
        answer_hint=" " if kind == "SIZE" else "",
        task=task,
        doc_id=doc_id,
        repeat=repeat,
    )
