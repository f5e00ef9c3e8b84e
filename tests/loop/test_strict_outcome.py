"""The outcome that strict parsing would have had in a run with repair, compared with its outcome for the same turns."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from apr_testing import Playback, answer, look, turn

from apr_plugin.loop import Budget, Episode, EpisodeConfig, MediaRef, Option, Question, QuestionKind, Trajectory
from apr_plugin.loop.strict import StrictEnding, strict_outcome

Videos = dict[str, Path]
OPTIONS = (Option(label="A", text="red"), Option(label="B", text="blue"))
FRAMES = {"type": "get_frames", "start": 0, "end": 1, "num": 2}
CONTENTS = {
    QuestionKind.MCQ: ["A", "b", "B.", "blue", "Z", ""],
    QuestionKind.GROUNDING: ["[[1, 2]]", "from 1 to 2", "[1, 2]", "[]", "[[2, 1]]", "[[1, 99]]", "soon"],
    QuestionKind.NUMBER: ["3", "three", "2 or 3", "1,000", "many"],
    QuestionKind.FREE_FORM: ["red", "<think>hm</think>red", ""],
}


def asked(kind: QuestionKind, video: Path) -> Question:
    return Question(
        text="which?",
        kind=kind,
        options=OPTIONS if kind is QuestionKind.MCQ else (),
        videos=(MediaRef(path=str(video)),),
    )


def played(
    question: Question, texts: list[str], *, strict: bool = False, forced_call: bool = True, arm: str = "agent"
) -> Trajectory:
    budget = Budget(turns=4, on_last_turn="force" if forced_call else "fail")
    config = EpisodeConfig(budget=budget, parsing="strict" if strict else "repair", arm=arm, passive_frames=2)  # type: ignore[arg-type]
    return asyncio.run(Episode(question, Playback(texts), config).run())


@pytest.mark.parametrize(
    ("kind", "texts", "ending", "number", "words"),
    [
        (QuestionKind.MCQ, [look(0, 1), answer("b")], StrictEnding.SAME, None, ""),
        (QuestionKind.MCQ, [answer("A"), look(0, 99), "words", look(0, 1), answer("A")], StrictEnding.SAME, None, ""),
        (QuestionKind.MCQ, [turn(FRAMES | {"fps": 3}, confidence=7), answer("A")], StrictEnding.SAME, None, ""),
        (QuestionKind.MCQ, [look(0, 1), answer("B.")], StrictEnding.WRONG, 2, "not a label alone"),
        (QuestionKind.MCQ, [look(0, 1), answer("Z"), answer("B")], StrictEnding.WRONG, 2, "not a label alone"),
        (QuestionKind.MCQ, [look(0, 1), f"So: {look(1, 2)}", answer("B")], StrictEnding.UNKNOWN, 2, "MALFORMED_JSON"),
        (QuestionKind.MCQ, [look(0, 1), turn(FRAMES | {"start": False}), answer("B")], StrictEnding.UNKNOWN, 2,
        "takes this turn"),
        (QuestionKind.GROUNDING, [look(0, 1), answer("from 1 to 2")], StrictEnding.UNKNOWN, 2, "ANSWER_FORM"),
        (QuestionKind.GROUNDING, [look(0, 1), answer("[[1, 99]]"), answer("[[1, 2]]")], StrictEnding.OTHER, 2,
        "was refused"),
        (QuestionKind.NUMBER, [look(0, 1), answer("1,000")], StrictEnding.OTHER, 2, "reads '1'"),
        (QuestionKind.MCQ, [look(0, 1), look(1, 2), look(2, 3), look(3, 4), answer("B")], StrictEnding.SAME, None, ""),
        (QuestionKind.MCQ, [look(0, 1), look(1, 2), look(2, 3), look(3, 4), "B"], StrictEnding.WRONG, 5, "forced call"),
        (QuestionKind.MCQ, [look(0, 1), look(1, 2), look(2, 3), look(3, 4), look(4, 5)], StrictEnding.SAME, None, ""),
    ],
)  # fmt: skip
def test_each_ending(
    shared_videos: Videos, kind: QuestionKind, texts: list[str], ending: StrictEnding, number: int | None, words: str
) -> None:
    outcome = strict_outcome(played(asked(kind, shared_videos["sound"]), texts))
    assert (outcome.ending, outcome.turn) == (ending, number) and words in outcome.why


def test_where_no_forced_call_follows_the_last_turn_is_the_end(shared_videos: Videos) -> None:
    texts = [look(0, 1), look(1, 2), look(2, 3), f"So: {answer('B')}"]
    done = played(asked(QuestionKind.MCQ, shared_videos["sound"]), texts, forced_call=False)
    assert (done.answer, strict_outcome(done, forced_call=False).ending, strict_outcome(done).ending) == (
        "B",
        StrictEnding.WRONG,
        StrictEnding.UNKNOWN,
    )


def test_a_passive_arm_is_as_it_was(shared_videos: Videos) -> None:
    done = played(asked(QuestionKind.MCQ, shared_videos["sound"]), ["The answer is B."], arm="passive")
    assert (done.answer, strict_outcome(done).ending) == ("B", StrictEnding.SAME)


def test_it_says_what_a_strict_run_of_the_same_turns_brings(shared_videos: Videos) -> None:
    """Random turns, played with both readings. A known outcome equals that of the strict run; if it is unknown, the
    runs differ from that turn on."""
    draw, seen = random.Random(3), Counter[StrictEnding]()
    for _ in range(120):
        kind = draw.choice(list(QuestionKind))
        texts = [_some_turn(draw, kind) for _ in range(5)]
        question, forced_call = asked(kind, shared_videos["sound"]), draw.random() < 0.5
        repaired, strict = (played(question, texts, strict=mode, forced_call=forced_call) for mode in (False, True))
        outcome = strict_outcome(repaired, forced_call=forced_call)
        seen[outcome.ending] += 1
        if outcome.turn is None:
            same = ("stop_reason", "answer", "answer_valid")
            assert [getattr(repaired, name) for name in same] == [getattr(strict, name) for name in same], texts
        elif outcome.ending is StrictEnding.UNKNOWN:
            ours, theirs = (run.turns[outcome.turn - 1] for run in (repaired, strict))
            assert (ours.error, ours.action) != (theirs.error, theirs.action), texts
        else:
            assert len(strict.turns) == outcome.turn or strict.turns[-1].error is not None, texts
            assert (strict.answer if strict.answer_valid else None) == outcome.answer, texts
        read = 4 if forced_call else 3  # number of turns whose errors a later prompt shows
        before = min(read, len(repaired.turns) if outcome.turn is None else outcome.turn - 1)
        assert [t.error for t in repaired.turns[:before]] == [t.error for t in strict.turns[:before]], texts
        again = strict_outcome(strict, forced_call=forced_call)
        assert again.ending in (StrictEnding.SAME, StrictEnding.WRONG) and (
            again.ending is StrictEnding.SAME or not strict.answer_valid
        ), texts
    assert all(seen[ending] >= 5 for ending in StrictEnding), seen


def _some_turn(draw: random.Random, kind: QuestionKind) -> str:
    start = draw.randint(0, 4)
    text = look(start, start + 1) if draw.random() < 0.55 else answer(draw.choice(CONTENTS[kind]))
    spoilt = [
        text,
        f"So: {text}",
        text[:-1] + ",}",
        text[:-1],
        f"```\n{text}\n```",
        text.replace("0.5", '"0.5"'),
        "words",
        text.replace("think", "thought"),
    ]
    return text if draw.random() < 0.7 else draw.choice(spoilt)
