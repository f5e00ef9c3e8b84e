"""A configuration that depends on the question.

It is drawn from the run's seed, named in the hash, used by the episode, and kept separate in the store.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.loop import Budget, Card, EpisodeConfig, MediaRef, Question, StopReason, replay
from apr_plugin.runs import ConfigPerQuestion, TrajectoryStore, open_run, run_episodes
from apr_plugin.runs.meter import run_sync

BASE = EpisodeConfig(seed=7)


def _turns(question: Question, chance: random.Random) -> Budget:
    return Budget(turns=chance.randint(2, 9))


DRAWN = ConfigPerQuestion("turns/1", _turns, BASE, {"turns": [2, 9]})


def _questions(path: Path, n: int = 8) -> list[Question]:
    return [
        Question(text="what?", kind="free_form", task="t", doc_id=str(i), videos=(MediaRef(path=str(path)),))
        for i in range(n)
    ]  # type: ignore[arg-type]


def test_each_question_has_its_own_and_the_run_one_hash(shared_videos: dict[str, Path], tmp_path: Path) -> None:
    questions, policy = _questions(shared_videos["silent"]), Playback([look(0, 2, 4), look(1, 3, 4), answer("a pot")])
    name = DRAWN.hash(policy)
    with TrajectoryStore(tmp_path, name, DRAWN.card(policy)) as store:
        done = run_sync(run_episodes(questions, policy, DRAWN, 3, store=store))
    expected = [DRAWN.for_question(question).budget.turns for question in questions]
    assert [t.turns_allowed for t in done] == expected and len(set(expected)) > 2
    assert {t.config_hash for t in done} == {name}
    assert {t.stop_reason for t in done} == {StopReason.ANSWERED, StopReason.FORCED}, (
        "two turns are too few for this script, and some have two"
    )
    assert [t.budget and t.budget.turns for t in done] == expected, "each line records its own budget"
    card = Card.read(tmp_path / name)
    assert (
        card.config_hash == name
        and card.config == BASE
        and card.per_question == {"name": "turns/1", "parameters": {"turns": [2, 9]}}
    )
    found = open_run(tmp_path)
    for trajectory in found:
        rebuilt = [prompt.text for prompt, _ in replay(trajectory, card)]
        assert len(rebuilt) == len(trajectory.turns) and f"Step 1/{trajectory.turns_allowed}." in rebuilt[0], (
            "the prompts of its own budget"
        )
    assert {t.question.doc_id: t.budget and t.budget.turns for t in found} == dict(
        zip("01234567", expected, strict=True)
    )

    asked = len(policy.prompts)
    with TrajectoryStore(tmp_path, name, DRAWN.card(policy)) as store:
        again = run_sync(run_episodes(questions[::-1], policy, DRAWN, store=store))
    assert len(policy.prompts) == asked and [t.turns_allowed for t in again] == expected[::-1], (
        "a finished run asks nothing"
    )


def test_what_the_hash_names_and_what_chance_comes_from(tmp_path: Path) -> None:
    policy, questions = Playback(["x"]), _questions(tmp_path / "none.mp4")
    others = [
        replace(DRAWN, name="turns/2"),
        replace(DRAWN, parameters={"turns": [2, 8]}),
        replace(DRAWN, base=EpisodeConfig(seed=8)),
    ]
    assert len({config.hash(policy) for config in (DRAWN, BASE, *others)}) == 5
    assert DRAWN.hash(policy) == replace(DRAWN, choose=lambda q, c: Budget()).hash(policy), (
        "the name stands for the function"
    )

    def drawn(config: ConfigPerQuestion) -> list[int | None]:
        return [config.for_question(question).budget.turns for question in questions]

    assert drawn(DRAWN) == drawn(DRAWN) != drawn(others[2])
    assert BASE.for_question(questions[0]) is BASE


def test_a_mistake_in_the_function_ends_the_run(shared_videos: dict[str, Path]) -> None:
    def broken(question: Question, chance: random.Random) -> Budget:
        raise LookupError("no such range")

    with pytest.raises(LookupError, match="no such range"):
        run_sync(
            run_episodes(_questions(shared_videos["silent"], 2), Playback(["x"]), ConfigPerQuestion("broken", broken))
        )
