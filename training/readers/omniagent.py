"""Reader of OmniAgent's rows: one for each turn, with its purged prompt (`raw_input`) and what was written (`output`).

The format is that of `apr_plugin.runs.foreign.omniagent_rows`, which reads it. The prompts that our episode makes must
have the same words and the same media in the same places as the recorded ones; a trajectory whose prompts differ is
left out. A turn whose row is missing is found in the prompts of later rows; it is then no target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, TextPart
from apr_plugin.loop.profiles import PROFILES
from apr_plugin.loop.wires import WIRES
from apr_plugin.runs.foreign.omniagent_rows import (
    Flat,
    Row,
    flat_messages,
    info_of,
    is_row,
    limits_of,
    media_mark,
    question_of,
    steps,
    texts_of,
    together,
)
from apr_plugin.runs.foreign.records import Left, Unmapped, records
from apr_plugin.training.readers.acting import Imported, Stage, find_video


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
    for done, found in enumerate(together(_rows(file, stage)), 1):
        rows = [row for _, row in found]
        traj_id = str(rows[0]["traj_id"])
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


def _rows(file: str | Path, stage: Stage) -> Iterator[tuple[str, Row]]:
    for where, row in records(file):
        if is_row(row):
            yield where, row
        else:
            stage.skip(Left(Unmapped.BAD_RECORD, "it is no row with a traj_id"), where)


def _play(stage: Stage, given: Sequence[Mapping[str, Any]], named: tuple[str, str, int], videos: str | Path) -> None:
    rows = steps(given)
    prompts = {step: flat_messages(row.get("raw_input")) for step, row in rows.items()}
    texts, prompt = texts_of(rows)
    info = info_of(rows[max(rows)])
    system = next((text for role, text in prompt if role == "system"), None)
    if system is None:
        raise Left(Unmapped.BAD_RECORD, "the prompt has no system message")
    config = EpisodeConfig(
        budget=_budget(info),
        wire="omniagent",
        parsing="strict",
        sampling=WIRES["omniagent"].sampling,
        system_prompt=system,
    )
    question = question_of(info, [str(find_video(info.get("video"), videos))], named)
    done, seen = stage.play(question, config, lambda turn, _: texts[min(turn, len(texts)) - 1])
    for step in sorted(rows):
        if step > len(seen):
            raise Left(Unmapped.PROMPT_DIFFERS, f"the episode ended before step {step}: {done.stop_reason}")
        _compare(step, _flat_prompt(seen[step - 1]), prompts[step])
    stage.keep(done, sorted(rows))


def _budget(info: Mapping[str, Any]) -> Budget:
    try:
        return Budget.model_validate(PROFILES["omniagent"].budget.model_dump() | limits_of(info))
    except ValidationError as error:
        raise Left(Unmapped.BAD_RECORD, f"env_config: {error.errors()[0]['msg']}") from error


def _flat_prompt(prompt: Prompt) -> Flat:
    flat: Flat = []
    for message in prompt.messages:
        texts = []
        for part in message.parts:
            match part:
                case TextPart(text):
                    texts.append(text)
                case ImagePart():
                    texts.append(media_mark("image"))
                case AudioPart():
                    texts.append(media_mark("audio"))
                case _:
                    texts.append(media_mark("video"))
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
