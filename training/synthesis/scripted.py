"""A scripted teacher that errs and a scripted judge, both for needle videos: the demo and the tests need no model.

`NeedleTeacher` is the reference policy of the needle tasks that sometimes slips (an action that is refused) and
sometimes answers too early with a guess. `NeedleJudge` rates a step by what the notes say. It knows the needle world,
so its figures are an upper bound and tell nothing about a model that judges.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling
from apr_plugin.scoring.intervals import Span, hull_iou, set_iou
from apr_plugin.scoring.times import parse_spans
from apr_plugin.tasks.needle.ladder import Case, answer, decide
from apr_plugin.tasks.needle.palette import GLYPH_COLOURS, GLYPH_SHAPES
from apr_plugin.tasks.needle.policy import read_case, write_turn
from apr_plugin.tasks.needle.questions import parse_question

FORMS = {"mcq": "label", "grounding": "span", "number": "number", "free_form": "words"}


class NeedleTeacher(PolicyDefaults):
    """The needle policy with mistakes. The same seed makes the same mistakes.

    Args:
        hasty: Chance that a turn after the first is an early answer, guessed.
        slips: Chance that a turn's action is one that is refused; the next turns recover.
    """

    name = "needle_teacher"

    def __init__(self, hasty: float = 0.2, slips: float = 0.1) -> None:
        for name, value in (("hasty", hasty), ("slips", slips)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise AprError(f"policy needle_teacher: {name}={value!r}: it must be from 0 to 1")
        self.hasty, self.slips = float(hasty), float(slips)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn."""
        sound = json.loads(await asyncio.to_thread(write_turn, prompt))
        chance = random.Random(sampling.seed)
        first = not any(message.role == "assistant" for message in prompt.messages)
        draw = chance.random()
        if prompt.final or first or sound["action"]["type"] == "answer" or draw >= self.hasty + self.slips:
            return Generation(json.dumps(sound))
        if draw < self.hasty:
            case = read_case(next(message.text for message in prompt.messages if message.role == "user"))
            guess = _random_answer(case, chance)
            sound |= {"think": chance.choice(_CONFIDENT), "confidence": 0.9}
            sound["action"] = {"type": "answer", "content": guess}
        else:
            sound["think"] = "I look a little further than I noted."
            sound["action"] |= {"end": sound["action"]["end"] + 100_000.0}
        return Generation(json.dumps(sound))

    def describe(self) -> dict[str, Any]:
        """Its chances; the version counts changes of behaviour."""
        return {"policy": self.name, "version": 1, "hasty": self.hasty, "slips": self.slips}


_CONFIDENT = ("My notes settle it, so I answer.", "I have seen enough to answer.", "This must be it.")


def _random_answer(case: Case, chance: random.Random) -> str:
    if case.options:
        return chance.choice([label for label, _ in case.options])
    if case.asked is not None and case.asked.kind == "count":
        return str(chance.randint(1, 5))
    start = round(chance.uniform(0, max(0.0, case.duration_s - 2)), 2)
    return f"[[{start}, {round(start + 2, 2)}]]"


class NeedleJudge(PolicyDefaults):
    """Rates a step of a needle trajectory by comparing it with what the notes allow.

    An answer follows if the notes say it. A look follows if it is near the one that a careful reader of the notes takes
    next. A thought that names a glyph which is in no note and not in the question is refused. Times in a thought are
    not checked.
    """

    name = "needle_judge"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write a verdict."""
        text = next((message.text for message in prompt.messages if message.role == "user"), "")
        rating, reason = self.rated(text)
        return Generation(json.dumps({"rating": rating, "reason": reason}))

    def rated(self, text: str) -> tuple[int | None, str]:
        """The rating of the step in a judge's prompt, and the reason."""
        return rate(text)

    def describe(self) -> dict[str, Any]:
        """There are no settings; the version counts changes of behaviour."""
        return {"policy": self.name, "version": 1}


def rate(text: str) -> tuple[int | None, str]:
    """The rating of the step in a judge's prompt, and the reason; no rating if it is not about a needle video."""
    try:
        told = sections(text)
        question, action = json.loads(told["QUESTION"]), json.loads(told["ACTION"])
        video = json.loads(told["WHAT THE AGENT KNOWS OF THE VIDEO"])[0]
        notes = [json.loads(line) for line in told["NOTES FROM BEFORE"].splitlines() if line != "none"]
        with suppress(ValueError):
            told["NEW OBSERVATION"] = json.loads(told["NEW OBSERVATION"])
        case = _case(question, video, notes, told["NEW OBSERVATION"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None, "this is not a step of a needle trajectory"
    if case.asked is None:
        return None, "this is not a needle question"
    known = json.dumps([question, notes, told["NEW OBSERVATION"]])
    for glyph in _GLYPH.findall(told["THOUGHT"]):
        if glyph not in known:
            return 1, f"the thought names a {glyph}, which was never noted"
    return _rate_answer(case, action) if action["type"] == "answer" else _rate_look(case, action, bool(notes))


_GLYPH = re.compile(rf"(?:{'|'.join(GLYPH_COLOURS)}) (?:{'|'.join(GLYPH_SHAPES)})")
_LOOK = re.compile(r"(get_\w+) ([\d.]+)s-([\d.]+)s")


def sections(text: str) -> dict[str, str]:
    """The parts of a judge's prompt about one step (`judge.jinja`), by their titles."""
    _, _, step = text.partition("\n---\n")
    found = re.split(r"^([A-Z][A-Z ]+)\n", step, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(found[1::2], found[2::2], strict=True)}


def _case(question: Mapping[str, Any], video: Mapping[str, Any], notes: list[dict[str, Any]], seen: str) -> Case:
    asked = None
    with suppress(ValueError):
        asked = parse_question(question["text"])
    options = list(question.get("options", {}).items())
    case = Case(question["text"], asked, options, video["duration_s"], video["fps"] or 0.0, video["has_audio"])
    case.form = FORMS[question["kind"]]
    for note in notes:
        case.take(note["observation"])
        if "refused" in note:
            case.errors.append(note["refused"])
        if (look := _LOOK.match(note["action"] or "")) is not None:
            case.tried.add((look[1], float(look[2]), float(look[3])))
    case.take(seen)
    return case


def _rate_answer(case: Case, action: Mapping[str, Any]) -> tuple[int, str]:
    step = answer(case, "")
    said, given = str(step.action["content"]), str(action["content"]).strip()
    if step.confidence < 0.5:
        return 1, "the notes do not contain the answer"
    agree = set_iou(parse_spans(given), parse_spans(said)) >= 0.5 if case.form == "span" else given == said
    return (5, f"the notes say {said}") if agree else (1, f"the notes say {said}, not {given[:60]}")


def _rate_look(case: Case, action: Mapping[str, Any], noted: bool) -> tuple[int, str]:
    window: Span = (float(action["start"]), float(action["end"]))
    if not noted or not case.points:
        whole = hull_iou(window, (0.0, case.duration_s)) >= 0.9
        return (
            (5, "nothing is known yet, and it looks at the whole video")
            if whole
            else (
                2,
                "nothing is known yet, and nothing tells why it looks there",
            )
        )
    expected = decide(case, False).action
    if expected["type"] == "answer":
        return 3, "the notes already contain the answer; to look again does no harm"
    near = hull_iou(window, (expected["start"], expected["end"]))
    if near >= 0.5:
        return 5, "the notes point there"
    if near > 0:
        return 3, "the notes point there, but not only there"
    return 2, f"the notes point to {expected['start']:.0f}-{expected['end']:.0f} s, not there"
