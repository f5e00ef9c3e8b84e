"""The policies that need no model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.errors import AprError
from apr_plugin.loop import Budget, Episode, EpisodeConfig, MediaRef, Option, Question, StopReason, Trajectory
from apr_plugin.policies import make_policy, policy_arguments
from apr_plugin.policies.guess import GuessPolicy
from apr_plugin.policies.scripted import ScriptedPolicy

Videos = dict[str, Path]
LETTERS = tuple(Option(label=label, text=f"text {label}") for label in "ABCD")


def run(question: Question, policy: Any, **config: Any) -> Trajectory:
    return asyncio.run(Episode(question, policy, EpisodeConfig(budget=Budget(turns=4), **config)).run())


def ask(
    path: Path | None, text: str = "what?", kind: str = "mcq", options: tuple[Option, ...] = LETTERS, doc_id: str = "0"
) -> Question:
    videos = (MediaRef(path=str(path)),) if path is not None else ()
    return Question(text=text, kind=kind, options=options if kind == "mcq" else (), videos=videos, doc_id=doc_id)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mcq", "grounding", "number", "free_form"])
@pytest.mark.parametrize("arm", ["agent", "passive"])
@pytest.mark.parametrize("how", ["random", "first"])
def test_a_guess_has_the_right_form_for_every_kind(shared_videos: Videos, kind: str, arm: str, how: Any) -> None:
    for path in (shared_videos["long"], None):
        done = run(ask(path, kind=kind), GuessPolicy(how), arm=arm)
        assert done.stop_reason == StopReason.ANSWERED and done.answer_valid, done
        if how == "first" and kind != "grounding":
            assert done.answer == ("A" if kind == "mcq" else "1")
        if how == "first" and kind == "grounding" and path is not None:
            assert done.answer == "[[0.0, 7.5]]"


def test_brackets_in_somebody_elses_instructions_are_no_question_for_spans(shared_videos: Videos) -> None:
    theirs = "Spans are written as [[1.0, 2.0]], counts as numbers."
    for kind, answered in (("number", "1"), ("mcq", "A"), ("grounding", "[[0.0, 0.6]]")):
        done = run(ask(shared_videos["sound"], kind=kind), GuessPolicy("first"), system_prompt=theirs)
        assert (done.answer, done.stop_reason) == (answered, StopReason.ANSWERED), done


def test_random_guesses_are_seeded_and_spread(shared_videos: Videos) -> None:
    questions = [ask(None, doc_id=str(i)) for i in range(120)]
    guesses = [run(q, GuessPolicy()).answer for q in questions]
    assert guesses == [run(q, GuessPolicy()).answer for q in questions]
    assert all(15 <= count <= 45 for count in Counter(guesses).values()) and len(set(guesses)) == 4
    with pytest.raises(ValueError, match="random or first"):
        GuessPolicy("best")  # type: ignore[arg-type]


def test_turns_of_a_script_are_played_in_order(tmp_path: Path, shared_videos: Videos) -> None:
    script = tmp_path / "turns.jsonl"
    script.write_text("\n".join([look(0, 5), "", json.dumps("not JSON \u2028 at all"), answer("C")]) + "\n", "utf-8")
    done = run(ask(shared_videos["sound"]), ScriptedPolicy(str(script)))
    assert [t.text for t in done.turns] == [look(0, 5), "not JSON \u2028 at all", answer("C")] and done.answer == "C"


def test_a_trajectory_is_replayed_for_its_own_question(tmp_path: Path, shared_videos: Videos) -> None:
    swapped = LETTERS[::-1]
    asked = [
        (ask(shared_videos["sound"], "what is it"), "A"),
        (ask(shared_videos["sound"], "what is it doing"), "B"),
        (ask(shared_videos["sound"], "what is it", options=swapped), "C"),
        (ask(shared_videos["long"], "what is it"), "D"),
        (ask(shared_videos["sound"], "what is it", kind="free_form"), "a pot"),
        (ask(None, "what is it", kind="free_form"), "a lid"),
    ]
    path = tmp_path / "t.jsonl"
    for order in (asked, asked[::-1]):
        path.unlink(missing_ok=True)
        for question, letter in order:
            run(question, Playback([look(0, 3), answer(letter)] if question.videos else [letter])).write(path)
        policy = ScriptedPolicy(str(path))
        assert [run(question, policy).answer for question, _ in asked] == [letter for _, letter in asked]
    other = run(ask(shared_videos["sound"], "what"), policy)
    assert other.stop_reason == StopReason.POLICY_UNAVAILABLE and "no turns for this question" in other.stop_detail


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        ("", "has no turns"),
        (look(0, 1) + "\n\n{broken\n", "line 3: not JSON"),
        ('{"schema": 1}', "line 1"),
    ],
)
def test_a_bad_script_names_the_file_and_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "script.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AprError, match=words) as caught:
        ScriptedPolicy(str(path))
    assert str(path) in str(caught.value)


def test_policies_are_made_by_name() -> None:
    assert isinstance(make_policy("guess", how="first"), GuessPolicy) and policy_arguments("scripted") == ("script",)
    with pytest.raises(AprError, match="did you mean 'guess'"):
        make_policy("gues")
    with pytest.raises(AprError, match=r"policy guess: .*hwo"):
        make_policy("guess", hwo="first")
