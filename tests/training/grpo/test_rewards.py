"""What episodes earn: the documented ranges whatever the answer, the stop reasons, and each option by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apr_plugin.loop import Budget, EpisodeConfig, MediaRef, Option, Question, StopReason, Trajectory
from apr_plugin.loop.trajectory import Shown, Turn
from apr_plugin.runs import run_episodes
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.grpo.rewards import (
    Reward,
    RewardError,
    RewardSettings,
    Sampled,
    episode_length,
    format_share,
    new_looks,
    pruner_weights,
    reward,
    shaped_by_length,
)
from apr_plugin.training.grpo.settings import SettingsError

OPTIONS = (Option(label="A", text="one"), Option(label="B", text="two"))
ALL = RewardSettings(format=0.1, looks=0.1, most_looks=5)


def ended(kind: str, said: str | None, stop: StopReason = StopReason.ANSWERED, **more: Any) -> Trajectory:
    """A finished episode with this answer."""
    options = OPTIONS if kind == "mcq" else ()
    asked = Question(text="?", kind=kind, options=options, task="t", doc_id="7")  # type: ignore[arg-type]
    return Trajectory(question=asked, answer=said, answer_valid=said is not None, stop_reason=stop, **more)


def played(shared_videos: dict[str, Path], texts: list[str], **budget: Any) -> Trajectory:
    video = MediaRef(path=str(shared_videos["silent"]))
    asked = Question(text="?", kind="mcq", options=OPTIONS, task="t", doc_id="1", videos=(video,))  # type: ignore[arg-type]
    (done,) = run_sync(run_episodes([asked], Playback(texts), EpisodeConfig(budget=Budget(**budget))))
    return done


@pytest.mark.parametrize(
    ("kind", "said", "right", "exact", "expected"),
    [
        ("mcq", "A", "A", False, 1.0),
        ("mcq", "B", "A", False, 0.0),
        ("grounding", "[[0.0, 10.0]]", "[[5.0, 15.0]]", False, 1 / 3),
        ("grounding", "[[5.0, 15.0]]", "[[5.0, 15.0]]", False, 1.0),
        ("number", "7", "10", False, 0.5),
        ("number", "7", "10", True, 0.0),
        ("number", "10", "10", True, 1.0),
        ("free_form", "A  Red pot", "a red pot", False, 1.0),
        ("free_form", "a pot", "a red pot", False, 0.0),
    ],
)
def test_the_answer(kind: str, said: str, right: str, exact: bool, expected: float) -> None:
    found = reward(ended(kind, said), Truth(right), exact=exact)
    assert found.total == found.score == pytest.approx(expected) and found.parts == {"answer": found.total}
    assert found.right == (expected >= 0.5)


@pytest.mark.parametrize(
    "said",
    [
        "[[0, 100], [900, 810]]",
        "[[0, 100], [900, 801]]",
        "[[0, 100], [20, 10], [20, 10], [20, 10]]",
        "[[0, 1000000000]]",
        "[[-50, 100]]",
        "[[0, 100], [NaN, 5], [5, NaN]]",
        "[[10, 20], [10, 20], [12, 18]] and [[0, 100]]",
        json.dumps([[10 + 0.01 * at, 10 + 0.01 * at + 0.005] for at in range(1000)]),
    ],
)
def test_tricks_with_spans_earn_nothing(said: str) -> None:
    """The first two score 1.00 and 10.0 with the published scorer, for a truth of 10 to 20 s."""
    truth = Truth("[[10.0, 20.0]]")
    plain = reward(ended("grounding", "[[0, 100]]"), truth).total
    assert plain == pytest.approx(0.1)
    found = reward(ended("grounding", said), truth).total
    assert found is not None and 0 <= found <= 0.51, "a comb of half of the seconds has half of them"


def test_beyond_the_end_of_the_video() -> None:
    truth = Truth("[[10.0, 20.0]]")
    inside, beyond = (reward(ended("grounding", said), truth).total for said in ("[[10, 20]]", "[[10, 20], [90, 95]]"))
    assert inside == 1 and beyond == pytest.approx(10 / 15), "seconds outside the video make the union longer"


_NUMBER = st.one_of(st.floats(), st.integers(-(10**9), 10**9))
_SPANS = st.lists(st.tuples(_NUMBER, _NUMBER), max_size=30)
_KINDS = st.sampled_from(["mcq", "grounding", "number", "free_form"])
TRUTHS = {"mcq": Truth("A"), "grounding": Truth("[[10.0, 20.0], [40.0, 41.0]]"), "number": Truth("3")}


@given(_KINDS, st.one_of(st.none(), st.text(max_size=60), _NUMBER.map(str), _SPANS.map(json.dumps)), st.booleans())
@example("grounding", "[[0, 1e308], [1e308, 1e309]]", False)
@example("number", "1e999", False)
@settings(deadline=None, max_examples=150)
def test_any_answer_earns_from_0_to_1(kind: str, said: str | None, exact: bool) -> None:
    found = reward(ended(kind, said), TRUTHS.get(kind, Truth("x")), exact=exact)
    assert found.total is not None and 0 <= found.total <= 1 and math.isfinite(found.total)
    mixed = reward(ended(kind, said), TRUTHS.get(kind, Truth("x")), RewardSettings(format=0.3))
    assert mixed.total is not None and 0 <= mixed.total <= 0.7 and mixed.parts["format"] == 0, "it has no turns"


@given(
    st.sampled_from([StopReason.ANSWERED, StopReason.FORCED, StopReason.TURNS]),
    st.lists(
        st.builds(
            Turn,
            text=st.just(""),
            repairs=st.sampled_from([(), ("closed the object",)]),
            shown=st.none() | st.builds(Shown, kind=st.just("audio"), start_s=st.floats(0, 50), end_s=st.floats(0, 50)),
        ),
        max_size=8,
    ),
)
@settings(deadline=None, max_examples=60)
def test_every_part_stays_in_its_range(stop: StopReason, turns: list[Turn]) -> None:
    done = ended("mcq", None if stop is StopReason.TURNS else "A", stop, turns=tuple(turns))
    found = reward(done, Truth("A"), ALL)
    assert found.total == pytest.approx(sum(found.parts.values()))
    assert found.total is not None and 0 <= found.total <= 1 + 0.1 * min(5, len(turns))
    assert 0 <= found.parts["answer"] <= 0.9 and 0 <= found.parts["format"] <= 0.1
    assert 0 <= found.parts["looks"] <= 0.5 and (found.right or found.parts["looks"] == 0)


@pytest.mark.parametrize("stop", [StopReason.TURNS, StopReason.TOKENS, StopReason.WALL_CLOCK])
def test_no_answer_is_zero(stop: StopReason) -> None:
    found = reward(ended("mcq", None, stop), Truth("A"))
    assert (found.total, found.reason) == (0.0, "no_answer")


@pytest.mark.parametrize("stop", [reason for reason in StopReason if reason.failed])
def test_what_failed_is_unscorable(stop: StopReason) -> None:
    found = reward(ended("mcq", None, stop), Truth("A"), ALL)
    assert (found.total, found.parts, found.reason) == (None, {}, str(stop))


def test_forced_answers_and_wrong_forms() -> None:
    assert reward(ended("mcq", "B", StopReason.FORCED), Truth("A")).total == 0
    assert reward(ended("mcq", "A", StopReason.FORCED), Truth("A")).total == 1
    wrong_form = ended("mcq", "the first").model_copy(update={"answer_valid": False})
    assert (reward(wrong_form, Truth("A")).total, reward(wrong_form, Truth("A")).reason) == (0.0, "wrong_form")


@pytest.mark.parametrize(
    ("kind", "truth", "words"),
    [
        ("mcq", Truth(()), "question t/7: its truth has no right answer, so no answer can earn anything"),
        ("mcq", Truth("C"), "its right answer 'C' is none of the labels A, B"),
        ("grounding", Truth("[[9.0, 3.0]]"), "covers no time"),
        ("grounding", Truth("soon"), "'soon' covers no time"),
        ("number", Truth("many"), "'many' is not a number"),
    ],
)
def test_truths_that_nothing_can_match(kind: str, truth: Truth, words: str) -> None:
    for stop in (StopReason.ANSWERED, StopReason.TURNS, StopReason.ERROR):
        with pytest.raises(RewardError, match=words):
            reward(ended(kind, None, stop), truth)


def test_format_and_looks_of_a_real_episode(shared_videos: dict[str, Path]) -> None:
    texts = [
        look(0, 5, 3),
        "```json\n" + look(1, 2, 3) + "\n```",  # repaired
        look(0, 99, 3),  # refused, but in the format
        look(0.05, 5, 3),  # nearly the same as the first
        look(0, 5, 9),  # the same window, closer
        "no JSON",
        answer("A"),
    ]
    done = played(shared_videos, texts, turns=9)
    assert [bool(turn.shown) for turn in done.turns] == [True, True, False, True, True, False, False]
    assert format_share(done) == pytest.approx(5 / 7) and new_looks(done) == 3
    found = reward(done, Truth("A"), RewardSettings(format=0.1, looks=0.1))
    assert found.parts == pytest.approx({"answer": 0.9, "format": 0.1 * 5 / 7, "looks": 0.3})
    assert found.total == pytest.approx(sum(found.parts.values()))
    assert reward(done, Truth("A"), RewardSettings(looks=0.1, most_looks=2)).parts["looks"] == pytest.approx(0.2)
    assert reward(done, Truth("B"), RewardSettings(looks=0.1)).total == 0, "only if the answer is right"
    assert episode_length(done, "turns") == 7 and episode_length(done, "visual_tokens") == done.visual_tokens > 0

    thinking = played(shared_videos, [f"<think>hm</think>{look(0, 5, 3)}", answer("A")])
    assert format_share(thinking) == 1, "a block of thought is in the format"
    forced = played(shared_videos, [look(0, 5, 3), look(1, 5, 3), answer("A")], turns=2)
    assert forced.stop_reason is StopReason.FORCED and format_share(forced) == 0
    assert reward(forced, Truth("A"), RewardSettings(format=0.1)).total == pytest.approx(0.9)


def test_shaping_by_length_by_hand() -> None:
    right, wrong, lost = Reward(1.0, {"answer": 1.0}, 1.0, True), Reward(0.0, {"answer": 0.0}), Reward(None)
    chosen = RewardSettings(length=0.2, length_from_step=10)
    shaped = shaped_by_length([right, wrong, right, wrong, lost], [2, 2, 10, 10, 99], chosen, step=10)
    assert [one.total for one in shaped] == pytest.approx([1.1, 0.0, 0.9, -0.1, None])
    assert shaped[0].parts == pytest.approx({"answer": 1.0, "length": 0.1}) and shaped[4] == lost
    assert shaped_by_length([right, wrong], [2, 9], chosen, step=9) == [right, wrong], "it begins later"
    assert shaped_by_length([right, wrong], [2, 9], RewardSettings()) == [right, wrong], "off"
    same = shaped_by_length([right, wrong], [4, 4], chosen, step=10)
    assert [one.total for one in same] == [1.0, 0.0] and same[0].parts["length"] == 0
    assert shaped_by_length([], [], chosen, step=10) == [] and shaped_by_length([lost], [3], chosen, step=10) == [lost]
    with pytest.raises(RewardError, match="1 rewards and 2 lengths"):
        shaped_by_length([right], [1, 2], chosen)
    with pytest.raises(RewardError, match="a length is -1"):
        shaped_by_length([right], [-1], chosen)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, max_size=8),
    st.floats(0.01, 1),
)
@settings(deadline=None)
def test_shaping_never_puts_a_wrong_answer_first(episodes: list[tuple[bool, int]], weight: float) -> None:
    rewards = [Reward(float(right), {"answer": float(right)}, float(right), right) for right, _ in episodes]
    chosen = RewardSettings(length=weight)
    shaped = shaped_by_length(rewards, [length for _, length in episodes], chosen)
    for before, after in zip(rewards, shaped, strict=True):
        assert before.total is not None and after.total is not None
        assert before.total - weight / 2 - 1e-9 <= after.total <= before.total + weight / 2 + 1e-9
        assert after.right or after.total <= 0
    right = [one.total for one in shaped if one.right and one.total is not None]
    assert min(right, default=1.0) >= 0.5 - 1e-9


def test_pruner_weights_by_hand() -> None:
    """Mean length 6, accuracy 0.5: weights before the normalisation are 3.5, 1.9, -2 (clipped) and -2."""
    question = [Sampled(3, True), Sampled(10, True), Sampled(3, False), Sampled(8, False)]
    (found,) = pruner_weights([question], keep=4)
    before = [6 / 3 - 1 + 2.5, 6 / 10 - 1 + 2.5, -1.5, -2.0]
    mean, spread = sum(before) / 4, (sum((x - sum(before) / 4) ** 2 for x in before) / 4) ** 0.5
    assert found == pytest.approx([(x - mean) / spread for x in before])
    (kept,) = pruner_weights([question], keep=2, seed=3)
    assert sum(weight is not None for weight in kept) == 2
    assert pruner_weights([question], keep=2, seed=3) == [kept]
    assert pruner_weights([[Sampled(4, True)] * 3, []]) != [] and pruner_weights([]) == []
    (equal,) = pruner_weights([[Sampled(4, True)] * 2])
    assert equal == [0.0, 0.0]
    (blind,) = pruner_weights([[Sampled(0, True), Sampled(500, True)]])
    assert blind[0] is not None and blind[1] is not None and blind[0] > blind[1], "no visual token at all is short"
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(RewardError, match=r"question 1: .* is no length"):
            pruner_weights([question, [Sampled(wrong, True)]])
    for bad in ({"alpha": -1}, {"low": 4.0}, {"keep": 0}):
        with pytest.raises(RewardError, match="alpha must be at least 0, low below high"):
            pruner_weights([question], **bad)  # type: ignore[arg-type]


@given(
    st.lists(
        st.lists(st.builds(Sampled, st.floats(0, 1e6), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    st.floats(0, 10),
)
@settings(deadline=None)
def test_pruner_weights_have_mean_0_and_deviation_1(questions: list[list[Sampled]], alpha: float) -> None:
    found = [w for weights in pruner_weights(questions, alpha=alpha) for w in weights if w is not None]
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert sum(w * w for w in found) / len(found) == pytest.approx(1) or set(found) == {0.0}


def test_settings_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"

    def read(text: str) -> RewardSettings:
        file.write_text(text)
        return RewardSettings.read(file)

    assert read("looks: 0.1\nformat: 0\nlength_of: visual_tokens\n").looks == 0.1
    assert read("# nothing\n") == RewardSettings() == RewardSettings.of({}) == RewardSettings.of(None)
    with pytest.raises(Exception, match="frozen"):
        RewardSettings().looks = 1.0  # type: ignore[misc]
    for text, words in {
        "lookz: 1": r"r.yaml: there is no setting 'lookz' \(did you mean 'looks'\?\); the settings are right_iou",
        "looks: '0.1'": "r.yaml: looks='0.1': Input should be a valid number",
        "looks: yes": "looks=True: Input should be a valid number",
        "looks: -1": "looks=-1: Input should be greater than or equal to 0",
        "format: .nan": "format=nan: Input should be a finite number",
        "right_iou: 0": "right_iou=0: Input should be greater than 0",
        "most_looks: 2.5": "most_looks=2.5: Input should be a valid integer",
        "length_of: frames": "length_of='frames': Input should be 'turns' or 'visual_tokens'",
        "- 1": "it must be a mapping of names to values",
        "looks: [": "cannot read this YAML",
        "a: &x 1\nb: *x": "it has YAML anchors",
        "looks: !!python/object/apply:os.getcwd []": "cannot read this YAML",
        "1: 2": "there is no setting",
    }.items():
        with pytest.raises(SettingsError, match=words):
            read(text)
    with pytest.raises(SettingsError, match="cannot read it: No such file"):
        RewardSettings.read(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="it is a folder"):
        RewardSettings.read(tmp_path)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(SettingsError, match="at most 1,000,000"):
        RewardSettings.read(file)
