"""Reader of OmniAgent's rows: one for each turn, with its purged prompt (`raw_input`) and what was written (`output`).

Format: HarryHsing/OmniAgent at 18725bc, `data/example_train_sft.jsonl`: `question_id`, `traj_id`, `step` (from 1),
`raw_input` (messages of parts; media as placeholders), `output`, and `extra_info` with the question, the video and the
limits. The prompts that our episode makes must have the same words and the same media in the same places as the
recorded ones; a trajectory whose prompts differ is left out. A turn whose row is missing is found in the prompts of
later rows; it is then no target. The rows of a trajectory must be one after the other in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, TextPart
from apr_plugin.loop.profiles import PROFILES
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.wires import WIRES
from apr_plugin.training.readers.acting import Imported, Left, Stage, Unmapped, find_video, number, records

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


def read_omniagent(
    file: str | Path,
    videos: str | Path,
    out: str | Path,
    *,
    name: str = "omniagent",
    told: Callable[[int], None] | None = None,
) -> Imported:
    """Play the trajectories of a file of OmniAgent's rows.

    Args:
        file: The rows, `.jsonl`, `.json` or `.parquet`.
        videos: The folder to which `extra_info.video` is relative.
        out: A new folder for the trajectories.
        name: Name of the source.
        told: Called after each trajectory with the number of those that were read, to show progress.

    Raises:
        AprError: the file can't be read, or the folder already has trajectories.
    """
    stage, seen, attempts = Stage(out, "omniagent"), set[str](), dict[str, int]()
    for done, (traj_id, rows) in enumerate(_trajectories(file, stage), 1):
        question_id = str(rows[0].get("question_id"))[:200]
        repeat = attempts[question_id] = attempts.get(question_id, -1) + 1
        try:
            if traj_id in seen:
                raise Left(Unmapped.BAD_RECORD, "its rows are not together in the file; sort it by traj_id")
            seen.add(traj_id)
            _play(stage, rows, (name, question_id, repeat), videos)
        except Left as left:
            stage.skip(left, traj_id)
        if told is not None:
            told(done)
    return stage.done(name)


def _trajectories(file: str | Path, stage: Stage) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The rows of one trajectory after the other; only one is held in memory."""
    rows: list[Mapping[str, Any]] = []
    for where, row in records(file):
        if not isinstance(row, dict) or not isinstance(row.get("traj_id"), str):
            stage.skip(Left(Unmapped.BAD_RECORD, "it is no row with a traj_id"), where)
            continue
        if rows and rows[0]["traj_id"] != row["traj_id"]:
            yield rows[0]["traj_id"], rows
            rows = []
        rows.append(row)
    if rows:
        yield rows[0]["traj_id"], rows


def _play(stage: Stage, given: Sequence[Mapping[str, Any]], named: tuple[str, str, int], videos: str | Path) -> None:
    rows = _steps(given)
    prompts = {step: _flat_messages(row.get("raw_input")) for step, row in rows.items()}
    last = max(rows)
    written = {step: str(row["output"]) for step, row in rows.items()}
    before = [text for role, text in prompts[last] if role == "assistant"]
    if len(before) != last - 1:
        raise Left(Unmapped.MISSING_STEPS, f"the prompt of step {last} has {len(before)} earlier turns")
    texts = [written.get(step, before[step - 1]) for step in range(1, last)] + [written[last]]
    info = rows[last].get("extra_info")
    if not isinstance(info, dict):
        raise Left(Unmapped.BAD_RECORD, "extra_info is missing")
    system = next((text for role, text in prompts[last] if role == "system"), None)
    if system is None:
        raise Left(Unmapped.BAD_RECORD, "the prompt has no system message")
    config = EpisodeConfig(
        budget=_budget(info),
        wire="omniagent",
        parsing="strict",
        sampling=WIRES["omniagent"].sampling,
        system_prompt=system,
    )
    question = _question(info, find_video(info.get("video"), videos), named)
    done, seen = stage.play(question, config, lambda turn, _: texts[min(turn, len(texts)) - 1])
    for step in sorted(rows):
        if step > len(seen):
            raise Left(Unmapped.PROMPT_DIFFERS, f"the episode ended before step {step}: {done.stop_reason}")
        _compare(step, _flat_prompt(seen[step - 1]), prompts[step])
    stage.keep(done, sorted(rows))


def _steps(rows: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        step = int(number(row.get("step"), "step"))
        if step < 1 or step in found or not isinstance(row.get("output"), str):
            raise Left(Unmapped.BAD_RECORD, f"step {step} is there twice, or has no output")
        found[step] = row
    return found


def _budget(info: Mapping[str, Any]) -> Budget:
    limits = info.get("env_config")
    if not isinstance(limits, dict):
        raise Left(Unmapped.BAD_RECORD, "extra_info.env_config is missing")
    drawn: dict[str, Any] = {
        "turns": int(number(limits.get("actual_max_steps", info.get("max_steps")), "actual_max_steps")),
        "frames_per_look": int(number(limits.get("actual_max_frames"), "actual_max_frames")),
        "audio_s": number(limits.get("actual_max_audio"), "actual_max_audio"),
        "clip_s": number(limits.get("actual_max_clip"), "actual_max_clip"),
    }
    try:
        return Budget.model_validate(PROFILES["omniagent"].budget.model_dump() | drawn)
    except ValidationError as error:
        raise Left(Unmapped.BAD_RECORD, f"env_config: {error.errors()[0]['msg']}") from error


def _question(info: Mapping[str, Any], video: Path, named: tuple[str, str, int]) -> Question:
    kind = str(info.get("question_type")).split("_", 1)[0].upper()
    if kind not in KINDS:
        raise Left(Unmapped.UNKNOWN_KIND, kind[:80])
    if not isinstance(info.get("question"), str):
        raise Left(Unmapped.BAD_RECORD, "extra_info.question is missing")
    options = []
    if kind == "MCQ":
        for each in info.get("options") or ():
            label, dot, text = str(each).partition(". ")
            if not dot or not re.fullmatch(r"[A-Z]", label):
                raise Left(Unmapped.BAD_RECORD, f"an option has no label: {str(each)[:80]!r}")
            options.append(Option(label=label, text=text))
    task, doc_id, repeat = named
    return Question(
        text=info["question"],
        kind=KINDS[kind],
        options=tuple(options),
        videos=(MediaRef(path=str(video)),),
        # A size has its unit in the question.
        answer_hint=" " if kind == "SIZE" else "",
        task=task,
        doc_id=doc_id,
        repeat=repeat,
    )


def _flat_messages(messages: object) -> Flat:
    """Recorded messages; a part of media is a mark of its kind."""
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
        texts = [str(part.get("text")) if part.get("type") == "text" else f"\0{part.get('type')}\0" for part in parts]
        flat.append((str(message.get("role")), "".join(texts)))
    return flat


def _flat_prompt(prompt: Prompt) -> Flat:
    flat: Flat = []
    for message in prompt.messages:
        texts = []
        for part in message.parts:
            match part:
                case TextPart(text):
                    texts.append(text)
                case ImagePart():
                    texts.append("\0image\0")
                case AudioPart():
                    texts.append("\0audio\0")
                case _:
                    texts.append("\0video\0")
        flat.append((message.role, "".join(texts)))
    return flat


def _compare(step: int, ours: Flat, theirs: Flat) -> None:
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if mine != other:
            at = next((n for n, (a, b) in enumerate(zip(mine[1], other[1], strict=False)) if a != b), 0)
            here, there = (each[1][max(0, at - 20) : at + 40].replace("\0", "|") for each in (mine, other))
            raise Left(Unmapped.PROMPT_DIFFERS, f"step {step}, message {place}: {here!r} here, {there!r} there")
    if len(ours) != len(theirs):
        raise Left(Unmapped.PROMPT_DIFFERS, f"step {step}: {len(ours)} messages here, {len(theirs)} there")
