"""`export_rows`: checks each row against what the trainer will read, writes its media, and the folder's data file.

The folder appears when everything is in it. Until then the work is in `FOLDER.part`, with a line for each row that is
done; the same export started again continues there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apr_plugin
from apr_plugin.errors import AprError
from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, VideoPart
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.models.families import tokens_of
from apr_plugin.models.prompt import Encoded, MediaPart
from apr_plugin.training.export.format import About, Format, Said, Skip, Skipped, Survey, said
from apr_plugin.training.export.media_files import MediaFolder
from apr_plugin.training.export.readme import readme
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.making import read_line
from apr_plugin.training.rows import NoRows, Row, RowError
from apr_plugin.training.student import Student

DONE = "done.jsonl"
"""In the unfinished folder: what is exported, and a line for each row that is done."""
SKIPPED = "skipped.jsonl"
"""A line for each row that is not in the data file."""


@dataclass
class Exported:
    """What an export wrote."""

    folder: Path
    rows: int = 0
    """Rows in the data file."""
    skipped: Counter[Skip] = field(default_factory=Counter)
    """Rows that are not in it."""
    resumed: int = 0
    """Rows that an earlier, unfinished export had done."""

    def told(self) -> str:
        """The skipped rows in words."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self.skipped.most_common()) or "none"


def export_rows(
    rows: Sequence[Row],
    loader: RowLoader,
    form: type[Format],
    out: str | Path,
    *,
    checkpoint: str | None = None,
    split: str = "train",
    told: Callable[[int], None] | None = None,
) -> Exported:
    """Write rows as the data of another trainer.

    Args:
        rows: The rows, all of one part of the data.
        loader: Rebuilds the rows for the student that the other trainer will train.
        form: The trainer's format, of `FORMATS`.
        out: The new folder.
        checkpoint: What the trainer loads, in the settings that are written; by default the student's name.
        split: Name of the part: the data file is `SPLIT.jsonl`.
        told: Called after each row with the number of rows that are done, to show progress.

    Raises:
        NoRows: no row could be exported; the message has the reasons.
        AprError: the folder is not empty, holds another unfinished export, or can't be written; or the trainer can't
            train the student's family.
    """
    folder = Path(out).absolute()
    work = folder.with_name(folder.name + ".part")
    _check_free(folder)
    student = loader.student
    survey = _survey(rows, student)
    made = form(student, survey)
    try:
        done, header = _begin(work, {"format": form.name, "split": split} | _identity(rows, student))
        found = Exported(folder, resumed=len(done))
        with (work / DONE).open("a", encoding="utf-8") as log:
            if header:
                log.write(header)
            for number, row in enumerate(rows):
                if number < len(done):
                    line = done[number]
                else:
                    line = _exported(row, loader, made, MediaFolder(work))
                    log.write(json.dumps(line, ensure_ascii=False) + "\n")
                    log.flush()
                if "skipped" in line:
                    found.skipped[Skip(line["skipped"])] += 1
                else:
                    found.rows += 1
                if told is not None:
                    told(number + 1)
        if not found.rows:
            raise NoRows(_nothing(found, work, made))
        _finish(work, folder, found, made, checkpoint or student.name, split)
    except OSError as error:
        raise RowError(
            f"{error.filename or work}: cannot write: {error.strerror or error}; what was done is kept, and the same "
            "command continues"
        ) from error
    return found


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AprError(f"{folder}: it exists and is not an empty folder; name a new one, or remove it")


def _identity(rows: Sequence[Row], student: Student) -> dict[str, str]:
    """What an unfinished export must have in common with the one that continues it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.file} {row.start} {row.digest} {row.turn} {row.content}\n".encode())
    return {"rows": digest.hexdigest()[:16], "student": student.digest, "version": apr_plugin.__version__}


def _begin(work: Path, identity: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """The rows that an unfinished export has done, and the first line of a new one."""
    log = work / DONE
    header = json.dumps(identity)
    work.mkdir(parents=True, exist_ok=True)
    if not log.exists():
        return [], header + "\n"
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):  # a kill cut the last line off
        log.write_bytes(whole)
    lines = whole.decode("utf-8", "replace").splitlines()
    if not lines:
        return [], header + "\n"
    try:
        first, *done = (json.loads(line) for line in lines)
    except ValueError as error:
        raise AprError(f"{log}: it is damaged ({error}); remove {work} and export again") from error
    if first != identity:
        differs = [name for name in identity if not isinstance(first, dict) or first.get(name) != identity[name]]
        raise AprError(
            f"{work}: an unfinished export is there that differs in {', '.join(differs)}; remove it, or name another "
            "folder"
        )
    return done, ""


def _exported(row: Row, loader: RowLoader, form: Format, media: MediaFolder) -> dict[str, Any]:
    """The line of a row: its record, or why it is skipped."""
    try:
        messages, target, tokens = _checked(row, loader, form)
    except Skipped as why:
        return {"skipped": str(why.reason), "row": row.where, "detail": why.detail}
    lists: dict[str, list[Any]] = {"images": [], "videos": [], "audios": []}
    for message in messages:
        for part in message.parts:
            if not isinstance(part, str):
                for name, entry in form.files(part, media).items():
                    lists[name].append(entry)
    return {"record": form.record(messages, target, lists), "tokens": tokens}


def _checked(row: Row, loader: RowLoader, form: Format) -> tuple[list[Said], str, int]:
    """The messages of a row, the words of its target, and how many tokens the trainer reads.

    Raises:
        Skipped: it would read something else than the student.
    """
    student = loader.student
    try:
        prompt, target = loader.prompt(row)
    except AprError as error:
        raise Skipped(Skip.GONE, str(error)) from error
    encoded = _encoded(row, prompt, target, student)
    messages = said(prompt, student)
    words = student.text(target[:-1] if target[-1] in student.ends else target)
    texts = [*(part for message in messages for part in message.parts if isinstance(part, str)), words]
    for text in texts:
        if found := form.taken.search(text):
            raise Skipped(Skip.TAG, f"its words contain {found[0][:80]!r}, which {form.title} takes for a medium")
    parts = [part for message in messages for part in message.parts if not isinstance(part, str)]
    for part, medium in zip(parts, encoded.media, strict=True):
        _check_medium(part, form, tokens_of(medium.runs))
    theirs, own = form.prompt_ids(messages), encoded.ids.tolist()
    if theirs != own:
        raise Skipped(Skip.PROMPT_TOKENS, f"{len(theirs)} tokens there, {len(own)} here, not equal")
    learned = form.target_ids(words)
    if learned[: len(target)] != list(target) or form.target_ids("") != [student.end, *learned[len(target) :]]:
        raise Skipped(Skip.TARGET_TOKENS, f"{len(learned)} tokens there with a line break, {len(target)} here")
    return messages, words, len(theirs) + len(learned)


def _encoded(row: Row, prompt: Prompt, target: tuple[int, ...], student: Student) -> Encoded:
    try:
        encoded = student.encoder.lay_out(prompt)
    except ValueError as error:
        raise Skipped(Skip.MEDIUM, str(error)) from error
    size = encoded.size
    mine = (size.total, len(target), size.visual, size.audio)
    its = (row.prompt_tokens, row.target_tokens, row.visual_tokens, row.audio_tokens)
    if mine != its:
        names = ("prompt", "target", "visual", "audio")
        differs = (
            f"{name} {one}, not {other}" for name, one, other in zip(names, mine, its, strict=True) if one != other
        )
        raise Skipped(Skip.OTHER_STUDENT, f"tokens with {student.name}: {', '.join(differs)}")
    return encoded


def _check_medium(part: MediaPart, form: Format, own: tuple[int, int]) -> None:
    theirs = tokens_of(form.pieces(part))
    if theirs != own:
        kind = {ImagePart: "picture", AudioPart: "sound", VideoPart: "clip"}[type(part)]
        raise Skipped(
            Skip.MEDIA_TOKENS,
            f"the {kind} has {theirs[0]} visual and {theirs[1]} audio tokens there, {own[0]} and {own[1]} here",
        )


def _survey(rows: Sequence[Row], student: Student) -> Survey:
    """What most clips have in common, from the trajectories; a line that can't be read is counted later."""
    rates: Counter[float] = Counter()
    sound: Counter[bool] = Counter()
    for row, trajectory in _trajectories(rows):
        shown = trajectory.turns[row.turn - 2].shown if 1 < row.turn <= len(trajectory.turns) + 1 else None
        if shown is not None and shown.kind == "clip" and row.visual_tokens:
            rates[shown.fps] += 1
            sound[shown.audio_s > 0] += 1
    usual = max(rates, key=lambda fps: (rates[fps], fps), default=2.0)
    return Survey(usual, student.family.hears and sound[True] >= sound[False] and sound[True] > 0)


def _trajectories(rows: Sequence[Row]) -> Iterator[tuple[Row, Trajectory]]:
    place, last = None, None
    for row in rows:
        if (row.file, row.start) != place:
            place = (row.file, row.start)
            try:
                last = Trajectory.from_json(read_line(*place).decode("utf-8", "replace"), row.where)
            except AprError:
                last = None
        if last is not None:
            yield row, last


def _finish(work: Path, folder: Path, found: Exported, form: Format, checkpoint: str, split: str) -> None:
    """Write the data file and what is beside it, and give the folder its name."""
    longest = 0
    with (
        (work / DONE).open(encoding="utf-8") as lines,
        (work / f"{split}.jsonl").open("w", encoding="utf-8") as data,
        (work / SKIPPED).open("w", encoding="utf-8") as skipped,
    ):
        next(lines)
        for text in lines:
            line = json.loads(text)
            if "record" in line:
                data.write(json.dumps(line["record"], ensure_ascii=False) + "\n")
                longest = max(longest, int(line["tokens"]))
            else:
                skipped.write(json.dumps(line, ensure_ascii=False) + "\n")
    counts = {str(reason): count for reason, count in found.skipped.most_common()}
    about = About(checkpoint, f"{split}.jsonl", found.rows, counts, longest)
    for name, words in (form.settings(about) | {"README.md": readme(form, about)}).items():
        (work / name).write_text(words, encoding="utf-8")
    for part in work.rglob("*.part"):  # a medium that a kill cut off
        part.unlink()
    (work / DONE).unlink()
    if folder.exists():
        folder.rmdir()
    work.replace(folder)


def _nothing(found: Exported, work: Path, form: Format) -> str:
    """Why no row is left, with the first detail of the most frequent reason; the unfinished folder is removed."""
    detail = ""
    if found.skipped:
        reason = found.skipped.most_common(1)[0][0]
        for text in (work / DONE).read_text(encoding="utf-8").splitlines()[1:]:
            line = json.loads(text)
            if line.get("skipped") == reason:
                detail = f"; first {reason}: {line['row']}: {line['detail']}"
                break
    shutil.rmtree(work)
    return f"no row can be exported to {form.title}: {found.told()}{detail}"
