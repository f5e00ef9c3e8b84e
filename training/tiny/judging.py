"""`policy=needle_notes_judge`: rates a step by what the small agent's notes say, for `apr train audit`.

A look follows if the teacher (`notes.teach`) takes it or one near it from the same notes; an answer follows if the
notes contain it. A judge is not told earlier thoughts, so what the teacher does is asked for each thought that may have
been before. It knows the needle world, so its figures are an upper bound and tell nothing about a model that judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apr_plugin.scoring.answers import match_option
from apr_plugin.scoring.intervals import Span, hull_iou, set_iou
from apr_plugin.scoring.times import parse_spans
from apr_plugin.tasks.needle.questions import ParsedQuestion, parse_question
from apr_plugin.training.synthesis.scripted import NeedleJudge, sections
from apr_plugin.training.tiny.notes import FRAMES, Move
from apr_plugin.training.tiny.playing import entries
from apr_plugin.training.tiny.teacher import TEACHERS, noted
from apr_plugin.training.tiny.worlds import Label

_LOOK = re.compile(r"get_frames ([\d.]+)s-([\d.]+)s")
_BEFORE = ("", *FRAMES)
"""Words that the thought before may have had."""


class NotesJudge(NeedleJudge):
    """Rates a step of a trajectory of `policy=needle_notes`, or of the small agent."""

    name = "needle_notes_judge"

    def rated(self, text: str) -> tuple[int | None, str]:
        """The rating of the step in a judge's prompt, and the reason."""
        return rate(text)


@dataclass(frozen=True)
class _Step:
    """What a judge's prompt tells."""

    asked: ParsedQuestion
    options: Sequence[tuple[str, str]]
    duration_s: float
    labels: tuple[Label, ...]
    """What was noted of the newest look."""
    times_s: tuple[float, ...]
    """Its frames' times, as far as its window tells them."""
    action: Mapping[str, Any]


def rate(text: str) -> tuple[int | None, str]:
    """The rating of the step in a judge's prompt, and the reason; no rating if it is none of such a trajectory."""
    try:
        step = _read(sections(text))
        teach = TEACHERS[step.asked.kind]
        moves = [teach(step.asked, step.labels or None, before) for before in _BEFORE]
        return _rate_answer(step, moves) if step.action["type"] == "answer" else _rate_look(step, moves)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None, "this is not a step about a needle question with notes of frames"


def _read(told: Mapping[str, str]) -> _Step:
    question = json.loads(told["QUESTION"])
    notes = [json.loads(line) for line in told["NOTES FROM BEFORE"].splitlines() if line != "none"]
    video = json.loads(told["WHAT THE AGENT KNOWS OF THE VIDEO"])[0]
    last = told["NEW OBSERVATION"]
    observed = [str(note["observation"]) for note in notes] + [json.loads(last) if last.startswith('"') else ""]
    labels: tuple[Label, ...] = ()
    times: tuple[float, ...] = ()
    for number in reversed(range(len(observed))):
        if not (found := entries(observed[number])):
            continue
        labels = tuple(noted(*found[name]) for name in sorted(found))
        looked = next(note for note in reversed(notes[:number]) if "refused" not in note)
        window = _LOOK.match(looked["action"])
        if window is not None:
            times = tuple(np.linspace(float(window[1]), float(window[2]), len(labels)).tolist())
        break
    return _Step(
        parse_question(question["text"]),
        list(question.get("options", {}).items()),
        float(video["duration_s"]),
        labels,
        times,
        json.loads(told["ACTION"]),
    )


def _rate_answer(step: _Step, moves: Sequence[Move]) -> tuple[int, str]:
    given = str(step.action["content"])
    answers = [move for move in moves if not move.num]
    if not answers:
        return 1, "the notes do not contain the answer"
    for move in answers:
        if step.options:
            same = match_option(given, step.options) == match_option(move.words, step.options)
        else:
            same = set_iou(parse_spans(given), [_window(step, move)]) >= 0.5
        if same:
            return 5, f"the notes say it: {move.think}"
    return 1, f"the notes do not say {given[:60]}"


def _rate_look(step: _Step, moves: Sequence[Move]) -> tuple[int, str]:
    given: Span = (float(step.action["start"]), float(step.action["end"]))
    near = max((hull_iou(given, _window(step, move)) for move in moves if move.num), default=0.0)
    if near >= 0.8:
        return 5, "the notes point there" if step.labels else "nothing is known yet, and it looks at the whole video"
    if near >= 0.5:
        return 3, "the notes point there, but not only there"
    return 2, "the notes do not point there"


def _window(step: _Step, move: Move) -> Span:
    if not move.start or not step.times_s:
        return (0.0, step.duration_s)
    return (step.times_s[move.start - 1], step.times_s[move.end - 1])
