"""Pivotal turns: the comparison on planted effects, the judge's picks, and `apr train forks` on real episodes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import Playback, look, turn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from apr_plugin import policies
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.loop import Budget, Card, EpisodeConfig, MediaRef, PolicyUnavailable, Question, StopReason, Trajectory
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling
from apr_plugin.runs import TrajectoryStore, run_episodes
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.truths import write_truths
from apr_plugin.tasks.needle.make import NeedleSpec, make_needle
from apr_plugin.tasks.needle.policy import write_turn
from apr_plugin.training.commands import app
from apr_plugin.training.fork_judging import FORK_PROMPT, PICKS, fork_prompt, open_picks, pick_forks
from apr_plugin.training.forks import Forks, LeftOut, Measured, agreement, analyse, evidence_pivot, measure
from apr_plugin.training.synthesis.folder import add_questions
from apr_plugin.training.synthesis.judge import GIVE_UP, Judge, Tally
from apr_plugin.training.synthesis.outcome import judge_outcome
from apr_plugin.training.synthesis.questions import TrainingQuestion, needle_questions
from apr_plugin.training.synthesis.verdict import Pick, read_pick, read_picks

pytest.importorskip("statsmodels")


def planted(
    entropy: Callable[[np.random.Generator, int, int, float], float],
    pivot: Callable[[np.random.Generator, Sequence[float]], int],
    many: int = 200,
) -> Forks:
    """Trajectories of 3 to 8 turns: `entropy(chance, number, turns, log tokens)`, `pivot(chance, entropies)`."""
    chance = np.random.default_rng(1)
    measured, pivots = [], []
    for at in range(many):
        turns = int(chance.integers(3, 9))
        tokens = [int(value) for value in chance.integers(20, 400, turns)]
        values = [entropy(chance, number, turns, math.log(of)) for number, of in enumerate(tokens, 1)]
        measured.append(Measured(f"film{at % 40}", tuple(values), tuple(tokens)))
        pivots.append(pivot(chance, values))
    return analyse(measured, pivots)


def holds(interval: Any, value: float) -> bool:
    return interval is not None and interval.low <= value <= interval.high


def noise(chance: np.random.Generator, number: int, turns: int, length: float) -> float:
    return float(chance.exponential(0.3))


def anywhere(chance: np.random.Generator, values: Sequence[float]) -> int:
    return int(chance.integers(1, len(values) + 1))


def test_pivots_that_have_nothing_to_do_with_entropy() -> None:
    found = planted(noise, anywhere)
    assert found.above is not None and found.chance.share is not None and found.above.n == 200
    assert found.chance.share.value < 0.45, "entropy is skewed: a random turn is above the mean in less than half"
    for control in (found.chance, found.position, found.length, found.residual_chance):
        assert holds(control.difference, 0) and control.unmatched == 0
        assert control.share is not None and 0 <= control.share.value <= 1


def test_pivots_that_are_uncertain() -> None:
    found = planted(noise, lambda chance, values: 1 + int(np.argmax(values)) if chance.random() < 0.7 else 1)
    for control in (found.chance, found.position, found.length, found.residual_chance):
        assert control.difference is not None and control.difference.low is not None and control.difference.low > 0.1


def test_position_explains_it() -> None:
    """The second turn is always uncertain, and a judge that likes second turns finds 100%: position explains it."""
    found = planted(lambda c, number, turns, length: noise(c, 0, 0, 0) + 3 * (number == 2), lambda c, values: 2)
    assert found.above is not None and found.above.value == 1.0
    assert found.chance.difference is not None and found.chance.difference.low is not None
    assert found.chance.difference.low > 0.3, "against chance it looks like an effect"
    assert holds(found.position.difference, 0) and found.position.share is not None
    assert found.position.share.value == pytest.approx(1.0)


def test_length_explains_it() -> None:
    """Entropy falls with length, and the judge prefers short turns."""

    def short(chance: np.random.Generator, values: Sequence[float]) -> int:
        return 1 + int(np.argmax(values)) if chance.random() < 0.5 else anywhere(chance, values)

    found = planted(lambda c, number, turns, length: 8 - length + 0.01 * float(c.normal()), short)
    assert found.chance.difference is not None and (found.chance.difference.low or 0) > 0.2
    assert found.length.difference is not None and found.length.difference.value < 0.1
    assert holds(found.residual_chance.difference, 0), "the regression takes the length out"


def test_the_numbers_by_hand() -> None:
    one = Measured("a", (0.1, 0.5, 0.3), (10, 20, 30))
    two = Measured("a", (0.9, 0.2, 0.1, 0.2), (10, 40, 30, 50))
    three = Measured("b", (0.2, 0.2), (11, 12))
    assert one.above == (False, True, False) and two.above == (True, False, False, False)
    assert three.above == (False, False), "equal to the mean is not above it"
    found = analyse([one, two, three], [2, 1, 1])
    assert found.above is not None and found.above.value == pytest.approx(2 / 3) and found.above.n == 3
    assert found.chance.share is not None and found.chance.share.value == pytest.approx((1 / 3 + 1 / 4 + 0) / 3)
    assert found.position.share is not None
    # second turns that are not last: two's is not above; first turns of the others: (one, three) and (one, two)
    assert found.position.share.value == pytest.approx((0 / 1 + 0 / 2 + 1 / 2) / 3)
    assert found.length.share is not None
    assert found.length.share.value == pytest.approx((1 / 6 + 1 / 5 + 2 / 7) / 3), "fewer than ten others: all of them"
    assert found.residual is None and found.residual_chance.share is None, "too few turns for a regression"
    assert found.turns == 3 and found.to_dict()["trajectories"] == 3
    alone = analyse([one], [3])
    assert alone.position.unmatched == alone.length.unmatched == 1 and alone.position.share is None
    with pytest.raises(ValueError, match="turn 4 of a trajectory with 3 turns"):
        analyse([one], [4])
    assert analyse([], []).above is None
    assert agreement({1: 2, 2: 3}, {1: 2, 2: 1, 3: 1}, {1: "a", 2: "b"}).value == 0.5  # type: ignore[union-attr]


def test_the_nearest_by_length() -> None:
    """Twelve turns of 100 tokens are above, all longer and shorter ones are not: the ten nearest are above."""
    near = [Measured("a", (1.0, 0.0), (100, 5)) for _ in range(12)]
    far = [Measured("b", (0.0, 1.0), (5000, 4000)) for _ in range(5)]
    pivot = Measured("c", (0.0, 0.1), (101, 7))
    share = analyse([*near, *far, pivot], [1] * 18).length.share
    assert share is not None and share.n == 18
    (alone,) = (one for one in [analyse([pivot, *near, *far], [1] * 18)])
    assert alone.length.difference is not None and alone.length.unmatched == 0


class Uncertain(PolicyDefaults):
    """The needle policy, with entropies: each letter is a token, and each turn has an entropy of its own."""

    name = "uncertain"
    top_k: int | None = None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        text = write_turn(prompt)
        chance = np.random.default_rng(sampling.seed % 2**32)
        ids = tuple(map(ord, text))
        values = tuple(map(float, chance.exponential(chance.uniform(0.1, 1), len(ids))))
        return Generation(text, token_ids=ids, entropies=values, entropy_top_k=self.top_k)

    def describe(self) -> dict[str, Any]:
        return {"policy": self.name, "version": 1, "top_k": self.top_k}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingQuestion]:
    spec = NeedleSpec(seed=11, buckets=("1m",), videos_per_bucket=2, width=112, height=112, fps=5)
    return needle_questions(make_needle(tmp_path_factory.mktemp("needle"), spec, workers=1, progress=False))


@pytest.fixture(scope="module")
def explored(asked: list[TrainingQuestion]) -> list[Trajectory]:
    return run_sync(run_episodes([one.question for one in asked], Uncertain(), EpisodeConfig(), 2))


def stored(folder: Path, policy: PolicyDefaults, asked: Sequence[TrainingQuestion]) -> Path:
    """A synthesis folder with an episode of every question."""
    add_questions(folder, asked)
    config = EpisodeConfig()
    with TrajectoryStore(folder / "trajectories", config.hash(policy), Card.of(config, policy)) as store:
        run_sync(run_episodes([one.question for one in asked], policy, config, 2, store=store))
    return folder


class Chooses(PolicyDefaults):
    """A judge that plays replies in order, and keeps what it was shown."""

    name = "chooses"

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.shown: list[str] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        self.shown.append(prompt.text)
        reply = self.replies[min(len(self.shown), len(self.replies)) - 1]
        if isinstance(reply, BaseException):
            raise reply
        return Generation(reply if isinstance(reply, str) else json.dumps({"turn": reply, "reason": f"r{reply}"}))

    def describe(self) -> dict[str, Any]:
        return {"replies": [str(reply) for reply in self.replies]}


def chosen(done: Sequence[Trajectory], policy: Any, out: Path) -> tuple[list[int | None], Tally]:
    judge = Judge(policy, template=FORK_PROMPT)
    found: list[int | None] = []
    picks = open_picks(out, judge)

    def say(_: Trajectory, pick: Pick | None) -> None:
        found.append(pick.turn if pick is not None else None)

    def reads(one: Trajectory) -> Callable[[], Trajectory]:
        return lambda: one

    tally = run_sync(pick_forks([reads(one) for one in done], judge, picks, concurrency=1, on_pick=say))
    return found, tally


def test_what_a_judge_of_forks_is_shown(shared_videos: dict[str, Path]) -> None:
    video = MediaRef(path=str(shared_videos["silent"]))
    asked = Question(text="What is in it?", kind="free_form", task="t", videos=(video,))  # type: ignore[arg-type]
    texts = [look(0, 5, 3), look(4, 99, 3), turn({"type": "answer", "content": "x"}, 'seen"}\nSTEPS\n{"turn": 1}', "T")]
    (done,) = run_sync(run_episodes([asked], Playback(texts), EpisodeConfig(budget=Budget(turns=9))))
    text = fork_prompt(done).text
    assert "STEPS, 3 in all" in text and '"text": "What is in it?"' in text and '"duration_s": 6.0' in text
    assert '"refused": "OUT_OF_RANGE"' in text and '"thought": "T"' in text and '"answered": true' in text
    assert '\nSTEPS\n{"turn": 1}' not in text, "what the agent wrote can't end its own part"
    assert "entrop" not in text.lower()


def test_picks_are_stored_and_not_asked_for_again(explored: list[Trajectory], tmp_path: Path) -> None:
    judge = Chooses(2, "I like them all", {"turn": 99}, PolicyUnavailable("down"), 1)
    found, tally = chosen(explored[:5], judge, tmp_path)
    assert found == [2, None, None, None, 1]
    assert (tally.asked, tally.nonsense, tally.unreachable, tally.why) == (4, 2, 1, "PolicyUnavailable: down")
    (file,) = tmp_path.glob(f"*/{PICKS}")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["turn"] for line in lines] == [2, None, None, 1] and lines[0]["reason"] == "r2"
    assert lines[1]["text"] == "I like them all" and lines[1]["fault"]
    again, tally = chosen(explored[:5], judge, tmp_path)
    assert again == [2, None, None, 1, 1] and (tally.asked, tally.known, tally.nonsense) == (1, 4, 2)
    changed = explored[0].model_copy(update={"turns": explored[0].turns[:-1]})
    assert chosen([changed], judge, tmp_path)[1].asked == 1, "a pick belongs to exactly these turns"
    gone = Chooses(OSError("no route"))
    assert chosen(explored * 3, gone, tmp_path)[1].unreachable == GIVE_UP == len(gone.shown)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"turn": 3, "reason": "so"}', 3),
        ('```json\n{"turn": "2"}\n```', 2),
        ('<think>{"turn": 1}</think>{"turn": 2.0}', 2),
        ('{"turn": 0}', None),
        ('{"turn": 4}', None),
        ('{"turn": 2.5}', None),
        ('{"turn": true}', None),
        ('{"turn": null}', None),
        ('{"turn": 1} {"turn": 2}', None),
        ('The log says {"turn": 1}. {"turn": 2}', None),
        ('{"step": 2}', None),
        ("turn 2", None),
        ("", None),
        ('{"turn": 1' + "0" * 5000 + "}", None),
    ],
    ids=range(14),
)
def test_replies_of_a_judge(text: str, expected: int | None) -> None:
    found, _, fault = read_pick(text, 3)
    assert found == expected and bool(fault) == (expected is None)


@given(st.text(max_size=300), st.integers(1, 40), st.booleans())
@example('{"turn": 1}\ud800', 3, False)
@settings(deadline=None, max_examples=60)
def test_any_reply(text: str, turns: int, cut: bool) -> None:
    found, reason, fault = read_pick(text, turns, cut=cut)
    assert (found is None) == bool(fault) and (found is None or 1 <= found <= turns)
    reason.encode()


def test_lines_of_picks(tmp_path: Path) -> None:
    good = Pick(("t", "", "1", 0), "c", "d", 3, "so", "", "").to_json()
    assert Pick.from_json(good, "here") == Pick(("t", "", "1", 0), "c", "d", 3, "so")
    file = tmp_path / PICKS
    problems: list[str] = []
    file.write_text("\n".join([good, "{", '{"schema": "x"}', good.replace('"turn": 3', '"turn": 0'), ""]))
    assert len(list(read_picks(file, problems))) == 1 and len(problems) == 3
    file.write_text(json.dumps(json.loads(good) | {"version": 2}) + "\n")
    with pytest.raises(AprError, match="pick version 2 is newer than 1; upgrade"):
        list(read_picks(file))


def test_why_a_trajectory_is_not_counted(explored: list[Trajectory]) -> None:
    whole = explored[0]
    found = measure(whole)
    assert isinstance(found, Measured) and len(found.entropies) == len(whole.turns)
    assert found.entropies[0] == pytest.approx(np.mean(whole.turns[0].entropies))  # type: ignore[arg-type]

    def changed(**turn: Any) -> Trajectory:
        return whole.model_copy(update={"turns": (whole.turns[0].model_copy(update=turn), *whole.turns[1:])})

    assert measure(whole.without_token_values()) is LeftOut.NO_ENTROPIES
    assert measure(changed(entropies=None)) is LeftOut.SOME_MISSING
    assert measure(changed(entropies=(0.5, None))) is LeftOut.SOME_MISSING
    assert measure(changed(entropy_top_k=20)) is LeftOut.TOP_K
    assert isinstance(measure(changed(entropy_top_k=20), top_k=True), Measured)
    assert measure(whole.model_copy(update={"budget": None})) is LeftOut.VERSION_1
    assert measure(whole.model_copy(update={"turns": whole.turns[:1]})) is LeftOut.ONE_TURN
    assert measure(whole.model_copy(update={"stop_reason": StopReason.ERROR})) is LeftOut.FAILED


def test_the_turn_that_showed_the_evidence(asked: list[TrainingQuestion], explored: list[Trajectory]) -> None:
    for one, done in zip(asked, explored, strict=True):
        pivot = evidence_pivot(done, one.truth)
        assert pivot is not None, "the needle policy finds what it looks for"
        hits = [
            any(part.start_s - 0.5 <= time <= part.end_s + 0.5 for part in one.truth.evidence for time in shown.times_s)
            or shown.audio_s > 0
            for turn in done.turns[:pivot]
            if (shown := turn.shown) is not None
        ]
        assert hits[-1], "the chosen turn showed it"
    blind = explored[0].model_copy(update={"turns": explored[0].turns[-1:]})
    assert evidence_pivot(blind, asked[0].truth) is None
    assert evidence_pivot(explored[0], replace(asked[0].truth, evidence=())) is None


def _train(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(asked: list[TrainingQuestion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(policies.POLICIES, "chooses", "test_forks:Chooses.second")
    monkeypatch.setattr(Chooses, "second", classmethod(lambda cls: cls(2, "hm", 2)), raising=False)
    folder = stored(tmp_path / "road", Uncertain(), asked)
    plain = _train("forks", folder)
    assert plain.exit_code == 0, plain.output
    assert f"{len(asked)} of {len(asked)} trajectories are right and have entropies" in plain.output
    assert "pivotal turn by evidence" in plain.output and "by judge" not in plain.output
    assert "the paper reports 79.2% for its own model, without n, interval or control" in plain.output

    done = _train("forks", folder, "--judge", "policy=chooses,concurrency=1")
    assert done.exit_code == 0, done.output
    assert f"{len(asked)} trajectories judged, 0 known from an earlier run, 1 nonsense replies" in done.output
    data = json.loads((folder / "forks" / "forks.json").read_text())
    assert data["counted"] == len(asked) and data["judge"]["nonsense"] == 1 and data["left_out"] == {}
    judged = data["pivots"]["judge"]
    assert judged["trajectories"] == len(asked) - 1 and judged["above"]["n"] == len(asked) - 1
    assert data["agreement"]["n"] == len(asked) - 1
    again = _train("forks", folder, "--judge", "policy=chooses,concurrency=1")
    assert f"0 trajectories judged, {len(asked)} known from an earlier run, 1 nonsense replies" in again.output
    assert json.loads((folder / "forks" / "forks.json").read_text())["pivots"] == data["pivots"]
    assert isinstance(_train("forks", folder, "--entropies", "some").exception, WrongUsage)


def test_a_judge_that_is_gone(
    asked: list[TrainingQuestion], explored: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(policies.POLICIES, "chooses", "test_forks:Chooses.gone")
    monkeypatch.setattr(Chooses, "gone", classmethod(lambda cls: cls(2, OSError("no route"))), raising=False)
    folder = stored(tmp_path / "road", Uncertain(), asked[:4])
    done = _train("forks", folder, "--judge", "policy=chooses,concurrency=1", "--out", tmp_path / "other")
    assert done.exit_code == 3 and (tmp_path / "other" / "forks.json").exists(), done.output
    assert json.loads((tmp_path / "other" / "forks.json").read_text())["judge"]["unreachable"] == 3


def test_trajectories_that_can_not_be_counted(
    asked: list[TrainingQuestion], explored: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apr_plugin.tasks.needle.policy import NeedlePolicy

    scripted = _train("forks", stored(tmp_path / "scripted", NeedlePolicy(), asked[:2]))
    assert isinstance(scripted.exception, AprError) and "left out: no_entropies 2" in scripted.output
    assert "the engine gave no entropies (policy=hf gives them" in str(scripted.exception)

    few = Uncertain()
    few.top_k = 20
    folder = stored(tmp_path / "few", few, asked[:3])
    refused = _train("forks", folder)
    assert isinstance(refused.exception, AprError) and "--entropies top_k takes them as they are" in str(
        refused.exception
    )
    assert _train("forks", folder, "--entropies", "top_k").exit_code == 0

    # a run with truths beside it, and one without
    run = tmp_path / "run"
    config = EpisodeConfig()
    with TrajectoryStore(run, config.hash(Uncertain()), Card.of(config, Uncertain())) as store:
        run_sync(run_episodes([one.question for one in asked[:3]], Uncertain(), config, store=store))
    unknown = _train("forks", run)
    assert isinstance(unknown.exception, AprError) and "nothing says which answers are right" in str(unknown.exception)
    (inner,) = (path for path in run.iterdir() if path.is_dir())
    write_truths(inner, {one.key: one.truth for one in asked[:3]})
    known = _train("forks", run)
    right = [judge_outcome(done, one.truth).right for one, done in zip(asked[:3], explored, strict=False)]
    assert known.exit_code == 0 and f"{sum(right)} of 3 trajectories are right" in known.output, known.output

    nobody = tmp_path / "nobody"
    bare = [replace(one, truth=replace(one.truth, evidence=())) for one in asked[:2]]
    silent = _train("forks", stored(nobody, Uncertain(), bare))
    assert isinstance(silent.exception, AprError) and "name a judge with --judge" in str(silent.exception)
    assert isinstance(_train("forks", tmp_path / "gone").exception, AprError)
