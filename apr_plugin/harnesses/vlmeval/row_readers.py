"""Readers of the rows of VLMEvalKit's own video data sets: a row and its prompt become a question.

As with the readers of lmms-eval's tasks, no reader looks at a column that has the right answer, and the shortest text
that the data set's own scorer reads is returned. A row that does not fit is read from its prompt.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from apr_plugin.harnesses.readers import DocError, Reading, column, read_prompt
from apr_plugin.harnesses.readers.choices import by_position, by_prefix, mcq, printed
from apr_plugin.harnesses.readers.mcq import read_question_column, read_tempcompass_captions, read_tempcompass_yes_no
from apr_plugin.harnesses.readers.other import read_vsibench
from apr_plugin.harnesses.readers.prompt import strip_instructions
from apr_plugin.loop.question import Option, QuestionKind
from apr_plugin.scoring.intervals import parse_spans, valid_span
from apr_plugin.scoring.writing import write_number

Row = Mapping[str, Any]

RowReader = Callable[[Row, str], Reading]

MOST_SPANS = 5
"""Time spans of an answer that CG-Bench counts."""


def listed(value: Any) -> list[Any]:
    """A column that has a list, or the text of one (VLMEvalKit evaluates it; here only literals are read).

    Raises:
        DocError: it has none.
    """
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(value, list | tuple):
        raise DocError("a column with options has no list")
    return list(value)


def options_in(name: str, label: Callable[[Iterable[object]], tuple[Option, ...]]) -> RowReader:
    """A reader of multiple-choice rows whose options are in the column `name`."""

    def read(row: Row, prompt: str) -> Reading:
        return mcq(column(row, "question"), label(listed(column(row, name))))

    return read


def read_lines(row: Row, prompt: str) -> Reading:
    """Video-MME-v2: `options` is one text of labelled lines."""
    return mcq(column(row, "question"), printed(column(row, "options")))


def read_cgbench(row: Row, prompt: str) -> Reading:
    """CG-Bench, multiple choice and grounding: three rows for each question, told apart by `task_mode`.

    In `miou` rows the evidence is asked for, as fractions of the duration, which the scorer tells from seconds by
    whether all are at most 1 (`vlmeval/dataset/utils/cgbench.py`, `post_process`).
    """
    question, options = str(column(row, "question")).strip(), by_position(listed(column(row, "choices")))
    if column(row, "task_mode") != "miou":
        return mcq(question, options)
    lines = "\n".join(f"{option.label}. {option.text}" for option in options)
    return Reading(
        text=f"In which parts of the video is what one has to see to answer this question?\n{question}\n{lines}",
        kind=QuestionKind.GROUNDING,
        answer_hint="one to five time spans in seconds",
        write=partial(write_fractions, duration_s=float(column(row, "duration"))),
    )


def write_fractions(text: str, *, duration_s: float) -> str:
    """Spans as CG-Bench asks for them: fractions of the duration, in JSON; of more than five, the longest five.

    Args:
        text: The canonical answer, `[[start, end], ...]` in seconds.
        duration_s: The duration by the row, with which the scorer multiplies.
    """
    spans = parse_spans(text) if text.lstrip().startswith("[") else []
    if not spans or not all(valid_span(span) for span in spans) or not 0 < duration_s < math.inf:
        return text
    kept = sorted(sorted(spans, key=lambda span: span[0] - span[1])[:MOST_SPANS])
    parts = [[round(min(1.0, max(0.0, second / duration_s)), 9) for second in span] for span in kept]
    return f"```json\n{json.dumps({'result': parts})}\n```"


def read_spans(row: Row, prompt: str) -> Reading:
    """OMTG-Bench: `question`; its scorer reads the canonical answer."""
    return Reading(
        text=strip_instructions(str(column(row, "question"))),
        kind=QuestionKind.GROUNDING,
        answer_hint="every time span in seconds",
    )


def read_vsi(row: Row, prompt: str) -> Reading:
    """VSI-Bench: like lmms-eval's, with the options in `candidates`."""
    options = row.get("candidates")
    return read_vsibench({**row, "options": listed(options) if isinstance(options, str) and options else None}, prompt)


def read_revsi(row: Row, prompt: str) -> Reading:
    """ReVSI: `question`, and labelled `options` where there are any; else a number is asked for."""
    options = row.get("options")
    if isinstance(options, str) and len(options.strip("[] ")) > 0:
        return mcq(column(row, "question"), by_prefix(listed(options)))
    return _number(row, "")


def read_count(row: Row, prompt: str) -> Reading:
    """VSI-SUPER Count: `question`, answered by a number."""
    return _number(row, "a whole number")


def _number(row: Row, hint: str) -> Reading:
    text = str(column(row, "question")).strip()
    return Reading(text, QuestionKind.NUMBER, answer_hint=hint, write=write_number)


def read_sti(row: Row, prompt: str) -> Reading:
    """STI-Bench: `question` about a window, `options` without labels."""
    window = f"From {column(row, 'time_start')} seconds to {column(row, 'time_end')} seconds."
    return mcq(f"{window} {column(row, 'question')}", by_position(listed(column(row, "options"))))


def read_holmes(row: Row, prompt: str) -> Reading:
    """Video-Holmes: labelled `candidates`; its scorer reads only what is between answer marks."""
    options = by_prefix(listed(column(row, "candidates")))
    written = {option.label: f"<answer>{option.label}</answer>" for option in options}
    return mcq(column(row, "question"), options, written=written)


def read_mmmu(row: Row, prompt: str) -> Reading:
    """Video-MMMU: `question`, `question_type`, `options` without labels (JSON) where there are any."""
    question = str(column(row, "question")).strip()
    if options := listed(row.get("options") or "[]"):
        return mcq(question, by_position(options))
    return Reading(question, QuestionKind.FREE_FORM, answer_hint="a short answer, or a number with its unit")


def read_embedded(row: Row, prompt: str) -> Reading:
    """Q-Bench-Video, multiple choice: the options are in `question`."""
    return read_question_column(row, prompt)


def read_yes_no(row: Row, prompt: str) -> Reading:
    """TempCompass, yes or no."""
    return read_tempcompass_yes_no(row, prompt)


def read_tempcompass(row: Row, prompt: str) -> Reading:
    """TempCompass, multiple choice and caption matching: the options are in `question`."""
    if row.get("task_type") == "caption_matching":
        return read_tempcompass_captions(row, prompt)
    return read_question_column(row, prompt)


def read_av_counting(row: Row, prompt: str) -> Reading:
    """CG-AV-Counting: a number, time spans of events, or boxes in pictures, which are read from the prompt."""
    if column(row, "task_mode") != "clue_acc":
        return read_count(row, prompt)
    if column(row, "category") != "event":
        return read_prompt(row, prompt)
    return Reading(
        text=f"When does each event happen that one has to count for this question? {column(row, 'question')}",
        kind=QuestionKind.GROUNDING,
        answer_hint="the time span of each event in seconds",
        write=_in_answer_marks,
    )


def _in_answer_marks(text: str) -> str:
    return f"<answer>{text}</answer>" if text.lstrip().startswith("[") else text


LABELLED = partial(options_in, label=by_prefix)
"""Options that have their labels ("A. red")."""

UNLABELLED = partial(options_in, label=by_position)
"""Options without labels."""
