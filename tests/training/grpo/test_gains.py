"""How likely the right answer is after each prompt, and the rule of credit that reads it, in a trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from grpo_making import recipe_of, scripted, write_questions  # noqa: E402 - after the libraries it needs

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop.parse import parse_turn  # noqa: E402
from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.policies.hf import sample  # noqa: E402
from apr_plugin.scoring.truth import Truth  # noqa: E402
from apr_plugin.training.grpo.gains import asked, before_and_after, forced_turn  # noqa: E402
from apr_plugin.training.grpo.making import make_trainer  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe  # noqa: E402
from apr_plugin.training.synthesis.questions import load_questions  # noqa: E402

VL = "qwen2_5_vl"


@pytest.mark.parametrize("answer", ["A", "[[12.5, 20.0], [33.0, 41.2]]", 'a "red" café', "7"])
def test_a_forced_turn_is_read_as_that_answer(student: Callable[..., Any], answer: str) -> None:
    """What counts are the tokens of the answer, at most with the quotation marks beside it."""
    reads = student(VL)
    forced = forced_turn(answer, reads)
    assert forced.ids[-1] == reads.end and len(forced.counted) == len(forced.ids) and not forced.counted[-1]
    action = parse_turn(reads.text(forced.ids)).action
    assert action is not None and action.type == "answer" and action.content == answer
    counted = reads.text(token for token, count in zip(forced.ids, forced.counted, strict=True) if count)
    assert answer.replace('"', '\\"') in counted and len(counted) <= len(answer) + 8
    with pytest.raises(AprError, match=r"can't be forced: it has a special token"):
        forced_turn("<|im_end|>", reads)
    with pytest.raises(AprError, match="without text"):
        forced_turn(" ", reads)


def test_probabilities_before_and_after() -> None:
    """The geometric mean over the tokens that count; the likeliest of several right answers; a missing turn."""
    found = before_and_after({1: 0.2, 2: 0.5, 4: 0.4})
    assert found[1] == (0.2, 0.5) and found[2] == (0.5, 0.4)
    assert found[4][0] == 0.4 and math.isnan(found[4][1]) and before_and_after({}) == {}


def test_the_trainer_computes_information_gain(
    tiny: Any,
    student: Callable[..., Any],
    shared_videos: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By whole forwards and IGPO's formulas by hand; the log says what it costs; padding where forwards are packed."""
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"])
    recipe = GrpoRecipe.model_validate(
        recipe_of(
            tiny(VL), questions, credit={"rule": "information_gain", "gamma": 0.5}, forward={"token_budget": 3000}
        )
    )
    reads, questions_asked = student(VL), load_questions(recipe.questions)
    trainer = make_trainer(recipe, questions_asked, {}, reads, tmp_path / "out")
    monkeypatch.setattr(sample, "_draw", scripted(reads, recipe))
    try:
        (part,) = trainer._generate_and_score_completions([{"question": 0}] * 2)
    finally:
        trainer.rollouts.close()
    rows = {row.where: row for pack in part.packs for row in pack if row.trained}
    places = [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert set(rows) == {f"q/sound, trajectory {at}, turn {number}" for at, number in places}
    forced = forced_turn("A", reads)
    known = {}
    for at, number in places:
        encoded = reads.encoder.encode(rows[f"q/sound, trajectory {at}, turn {number}"].prompt)
        batch = batch_of([Example(encoded, forced.ids)], reads.family, pad=0)
        batch.pop("labels")
        with torch.no_grad():
            values = trainer.model(**batch).logits[0, len(encoded.ids) - 1 : -1].float()
        values[:, list(reads.encoder.never_written)] = -torch.inf
        each = values.log_softmax(1).gather(1, torch.tensor(forced.ids)[:, None])[:, 0]
        known[at, number] = float(each[torch.tensor(forced.counted)].mean().exp())
    # Trajectory 0 is right, 1 is wrong; the last turn of each has the outcome.
    rewards = np.array([known[0, 2] - known[0, 1], 1.0, known[1, 2] - known[1, 1], known[1, 3] - known[1, 2], 0.0])
    scaled = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    wanted = [
        scaled[0] + 0.5 * scaled[1],
        scaled[1],
        scaled[2] + 0.5 * scaled[3] + 0.25 * scaled[4],
        scaled[3] + 0.5 * scaled[4],
        scaled[4],
    ]
    found = [rows[f"q/sound, trajectory {at}, turn {number}"].advantage for at, number in places]
    assert found == pytest.approx(wanted, abs=1e-3)
    shown = {name: values for name, values in trainer._metrics["train"].items() if name.startswith("gain/")}
    assert shown["gain/mean"] == pytest.approx([np.mean([*rewards[[0, 2, 3]]])], abs=1e-5)
    assert shown["gain/rows"] == [5] and shown["gain/forwards"][0] < 5 and shown["gain/seconds"][0] > 0
    share = shown["gain/forwards"][0] / (shown["gain/forwards"][0] + len(part.packs))
    assert shown["gain/share_of_forwards"] == pytest.approx([share])
    assert not trainer._metrics["train"].get("sampling/logp_difference"), "forced turns are compared with nothing"


def test_of_several_right_answers_the_likeliest_counts(student: Callable[..., Any]) -> None:
    from apr_plugin.loop.policy import Message, Prompt, TextPart

    prompt = Prompt((Message("user", (TextPart("?"),)),))
    one = asked(prompt, (), Truth(("A", "B")), student(VL), "turn 1")
    assert len(one.rows) == 2 and not any(row.trained for row in one.rows)
    low, high = (np.full(len(row.target), value) for row, value in zip(one.rows, (-3.0, -1.0), strict=True))
    assert one.probability([low, high]) == pytest.approx(math.exp(-1))
    with pytest.raises(AprError, match="turn 1: its truth has no right answer"):
        asked(prompt, (), Truth(()), student(VL), "turn 1")
