"""Training questions with their truths: from a JSON Lines file, or from a needle set.

A line of the file is an object with these fields; `id`, `question`, `kind`, `answer` and a video are needed:

| field | value |
|---|---|
| `task` | text; the set's name, in file names and reports (default: the file's name without its suffix) |
| `split` | text (default: empty) |
| `id` | text or a whole number; unique within `task` and `split` |
| `video` / `videos` | a path, or a list of them, relative to the file's folder; an entry may be \
`{"path": …, "start_s": …, "end_s": …}`, a window of the file |
| `question` | text, without the options |
| `kind` | `mcq`, `grounding`, `number` or `free_form` |
| `options` | a list of texts, with or without labels ("A. red"); only for `mcq` |
| `answer` | `mcq`: a label; `grounding`: `[[start, end], …]` in seconds; `number`: a number; \
`free_form`: a text, or a list of texts that are all right |
| `exact` | true if a number must be equal, as a count (default: false) |
| `hint` | how to write the answer, if the kind does not say everything ("in centimetres") |
| `evidence` | where the answer can be seen: `[[start, end], …]` in seconds, or `[start, end, video]` with an index |
| `duration_s` | seconds of all its videos together; only for the estimate of the cost |
| `source` | text: the data set that the question comes from; compared with the contamination list |

The truth never reaches a policy.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apr_plugin.agent import make_question
from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.question import MediaRef, Question, QuestionKind
from apr_plugin.policies import did_you_mean
from apr_plugin.scoring.intervals import valid_span
from apr_plugin.scoring.truth import Evidence, Truth, spans_text
from apr_plugin.terminal import one_line, quoted

SCHEMA = "apr.training_question"
VERSION = 1

SHOWN_FAULTS = 5
"""Most faults of a file that one message names."""

DocKey = tuple[str, str, str]
"""Task, split and id, which all attempts of a question share."""


@dataclass(frozen=True)
class TrainingQuestion:
    """What is asked, what is right, and where it comes from."""

    question: Question
    """The first attempt (`repeat` 0)."""
    truth: Truth
    """Never shown to a policy."""
    source: str = ""
    """The data set that it comes from."""
    exact: bool = False
    """Whether a number must be equal, not only close."""
    duration_s: float | None = None
    """Seconds of all its videos together, where it is known before they are opened."""

    @property
    def key(self) -> DocKey:
        """What identifies it."""
        return self.question.key[:3]

    def attempt(self, number: int) -> Question:
        """The question as it is asked for the attempt of this number, counted from 0."""
        return self.question.model_copy(update={"repeat": number})

    def to_json(self) -> str:
        """A line that `read_questions` reads, with absolute paths."""
        asked = self.question
        answer: Any = self.truth.answer if isinstance(self.truth.answer, str) else list(self.truth.answer)
        if asked.kind is QuestionKind.GROUNDING:
            answer = json.loads(self.truth.answers[0])
        data = {
            "schema": SCHEMA,
            "version": VERSION,
            "task": asked.task,
            "split": asked.split,
            "id": asked.doc_id,
            "videos": [ref.model_dump(exclude_none=True) for ref in asked.videos],
            "question": asked.text,
            "kind": str(asked.kind),
            "options": [f"{option.label}. {option.text}" for option in asked.options],
            "answer": answer,
            "exact": self.exact,
            "hint": asked.answer_hint,
            "evidence": [[part.start_s, part.end_s, part.video] for part in self.truth.evidence],
            "duration_s": self.duration_s,
            "source": self.source,
        }
        return json.dumps(data, ensure_ascii=False)


_Text = Annotated[str, Field(min_length=1)]


class _Window(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    path: _Text
    start_s: Annotated[float, Field(ge=0, strict=False)] | None = None
    end_s: Annotated[float, Field(gt=0, strict=False)] | None = None


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_: str = Field(default=SCHEMA, alias="schema")
    version: int = VERSION
    task: str = ""
    split: str = ""
    id: _Text | int
    video: _Text | _Window | None = None
    videos: list[_Text | _Window] | None = None
    question: _Text
    kind: str
    options: list[_Text] = []
    answer: Any
    exact: bool = False
    hint: str = ""
    evidence: list[list[float]] = []
    duration_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    source: str = ""


class _Fault(Exception):
    """What is wrong with a field."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")


def read_questions(path: str | Path, *, task: str = "", source: str = "") -> list[TrainingQuestion]:
    """Read a file of training questions.

    Args:
        path: The JSON Lines file.
        task: The task of lines that name none; default: the file's name without its suffix.
        source: The source of lines that name none.

    Raises:
        AprError: the file can't be read, has no question, or a line is wrong; the message names lines and fields.
    """
    file = Path(path).expanduser()
    try:
        text = read_regular(file).decode("utf-8")
    except (OSError, ValueError) as error:
        raise AprError(f"{file}: cannot read the questions: {getattr(error, 'strerror', None) or error}") from error
    found: dict[DocKey, tuple[int, TrainingQuestion]] = {}
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = _read_line(line, file, task or file.stem, source)
            if one.key in found:
                raise _Fault("id", f"{quoted(one.key[2], 60)} is also the id of line {found[one.key][0]}")
            found[one.key] = (number, one)
        except _Fault as fault:
            faults.append(f"line {number}: {one_line(str(fault), 300)}")
    if faults:
        more = f"; and {len(faults) - SHOWN_FAULTS:,} more lines" if len(faults) > SHOWN_FAULTS else ""
        raise AprError(f"{file}: {'; '.join(faults[:SHOWN_FAULTS])}{more} (docs/training.md has the fields)")
    if not found:
        raise AprError(f"{file}: it has no question")
    return [one for _, one in found.values()]


def needle_questions(folder: str | Path) -> list[TrainingQuestion]:
    """The questions of a needle set (`apr needle make --out FOLDER`), one task for each kind.

    Raises:
        AprError: the folder contains no finished set, or a document of it can't be read.
    """
    from apr_plugin.tasks.needle.make import load_docs

    home = Path(folder).expanduser()
    found: list[TrainingQuestion] = []
    try:
        found += [needle_question(doc) for doc in load_docs(home)]
    except FileNotFoundError as error:
        raise AprError(str(error)) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AprError(
            f"{home}: this needle set can't be read ({type(error).__name__}: {error}); make it again"
        ) from error
    if not found:
        raise AprError(f"{home}: this needle set has no question")
    return found


def needle_question(doc: Mapping[str, Any]) -> TrainingQuestion:
    """The question of one document of a needle set (`tasks.needle.questions.Doc`).

    Raises:
        ValueError, KeyError, TypeError: it can't be read.
    """
    from apr_plugin.tasks.needle.questions import Kind
    from apr_plugin.tasks.needle.read import asked, truth_of

    named = {"task": f"needle_{doc['kind']}", "split": "train", "doc_id": str(doc["id"])}
    question = asked(doc).model_copy(update={"videos": (MediaRef(path=str(doc["video"])),), **named})
    exact = doc["kind"] == Kind.COUNT
    return TrainingQuestion(question, truth_of(doc), "needle", exact, float(doc["duration_s"]))


def load_questions(sources: Sequence[str]) -> list[TrainingQuestion]:
    """The questions of several sources: files, and needle sets written as `needle:FOLDER`.

    Raises:
        AprError: one can't be read, or two questions have the same task, split and id.
    """
    if not sources:
        raise AprError("no questions: give --questions FILE.jsonl, or needle:FOLDER for a needle set")
    found: dict[DocKey, TrainingQuestion] = {}
    for name in sources:
        kind, colon, rest = name.partition(":")
        read = needle_questions(rest) if colon and kind == "needle" else read_questions(name)
        for one in read:
            if one.key in found:
                raise AprError(f"{name}: {'/'.join(filter(None, one.key))} is also in an earlier source")
            found[one.key] = one
    return list(found.values())


def missing_videos(questions: Iterable[TrainingQuestion]) -> list[str]:
    """The paths of videos that do not exist, each once, in order."""
    paths = dict.fromkeys(ref.path for one in questions for ref in one.question.videos)
    return [path for path in paths if not _exists(path)]


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _read_line(line: str, file: Path, task: str, source: str) -> TrainingQuestion:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Fault("line", f"not JSON ({error})") from error
    if not isinstance(data, dict):
        raise _Fault("line", "not a JSON object")
    try:
        row = _Line.model_validate(data)
    except ValidationError as error:
        raise _fault_of(error) from error
    if row.schema_ != SCHEMA or row.version > VERSION:
        raise _Fault("version", f"{row.schema_} version {row.version} is not {SCHEMA} up to {VERSION}")
    try:
        question = make_question(
            list(_videos(row, file)), row.question, options=row.options, kind=row.kind, hint=row.hint
        )
    except AprError as error:
        raise _Fault("kind and options", str(error)) from error
    if row.options and question.kind is not QuestionKind.MCQ:
        raise _Fault("options", f"a question of kind {question.kind} has none")
    named = {"task": row.task or task, "split": row.split, "doc_id": str(row.id)}
    asked = question.model_copy(update=named)
    return TrainingQuestion(
        asked, Truth(_answer(row, asked), tuple(_evidence(row))), row.source or source, row.exact, row.duration_s
    )


def _fault_of(error: ValidationError) -> _Fault:
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = [("schema" if name == "schema_" else name) for name in _Line.model_fields]
        return _Fault(field, f"there is no such field{did_you_mean(field, known)}")
    if first["type"] == "missing":
        return _Fault(field, "it is missing")
    return _Fault(field, f"{first['msg']}, not {quoted(first['input'], 60)}")


def _videos(row: _Line, file: Path) -> Iterator[MediaRef]:
    if (row.video is None) == (not row.videos):
        raise _Fault("video", "give one of video and videos" if row.video is not None else "it is missing")
    for one in [row.video] if row.video is not None else row.videos or ():
        window = one if isinstance(one, _Window) else _Window(path=one)
        if window.end_s is not None and window.end_s <= (window.start_s or 0.0):
            raise _Fault("video", f"its window ends at {window.end_s:g} s, before it begins")
        path = os.path.abspath(file.parent / Path(window.path).expanduser())  # noqa: PTH100 - links are not resolved
        yield MediaRef(path=path, start_s=window.start_s, end_s=window.end_s)


def _answer(row: _Line, asked: Question) -> str | tuple[str, ...]:
    """The answer in canonical form."""
    given = row.answer
    match asked.kind:
        case QuestionKind.MCQ:
            labels = [option.label for option in asked.options]
            if given not in labels:
                raise _Fault("answer", f"{quoted(given, 60)} is not one of the labels {', '.join(labels)}")
            return str(given)
        case QuestionKind.NUMBER:
            if isinstance(given, str):
                with contextlib.suppress(ValueError):
                    given = float(given)
            if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < 1e15:
                raise _Fault("answer", f"{quoted(row.answer, 60)} is not a number")
            return f"{given:.9f}".rstrip("0").rstrip(".")
        case QuestionKind.GROUNDING:
            spans = given if isinstance(given, list) else []
            if not spans or not all(_is_span(span) and span[0] < span[1] for span in spans):
                raise _Fault(
                    "answer", f"{quoted(given, 60)} is not [[start, end], …] in seconds, each end after its start"
                )
            return spans_text(spans)
        case _:
            texts = given if isinstance(given, list) else [given]
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise _Fault("answer", f"{quoted(given, 60)} is not a text, nor a list of texts")
            return texts[0] if len(texts) == 1 else tuple(texts)


def _is_span(span: object) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) < 1e9 for edge in span)
        and valid_span((span[0], span[1]))
    )


def _evidence(row: _Line) -> Iterator[Evidence]:
    videos = len(row.videos or [row.video])
    for span in row.evidence:
        video = span[2] if len(span) == 3 else 0
        if len(span) not in (2, 3) or not _is_span(span[:2]) or video not in range(videos):
            raise _Fault("evidence", f"{span} is not [start, end] in seconds, or [start, end, video]")
        yield Evidence(span[0], span[1], int(video))
