"""What a question costs: counts, money, means, and how it grows with the length of the video."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from making import answered, arm_of, key_of, look, store_run, trajectory

from apr_plugin.compare.cost import (
    QUANTITIES,
    Price,
    cost_of,
    costs,
    costs_by_bucket,
    price_of,
    read_prices,
    row_of,
    rows_of,
    slopes,
    turns_per_hour,
)
from apr_plugin.compare.joined import Arm, Comparison, arm_of_run, join
from apr_plugin.errors import AprError
from apr_plugin.loop.policy import GenerationTimings, Usage
from apr_plugin.loop.trajectory import StopReason, Timings, Trajectory, Turn

TOKENS = Price("2026-11-27", "here", input=2.0, cached_input=0.5, output=10.0)
HOURS = Price("2026-11-27", "here", gpu_hour=3.6)


def used(turn: Turn, usage: Usage, engine: GenerationTimings | None = None) -> Turn:
    return turn.model_copy(update={"usage": usage, "timings": engine or GenerationTimings()})


def test_the_cost_of_a_question() -> None:
    made = trajectory(0, [look(0, 50), look(10, 20, kind="audio"), answered("A")], "A")
    timings = Timings(total_s=3.0, model_s=1.4, media_s=0.4)
    found = cost_of(made.model_copy(update={"timings": timings}), TOKENS)
    assert tuple(found) == QUANTITIES
    assert found == pytest.approx(
        {
            "turns": 3, "frames": 4, "audio_s": 10.0, "visual_tokens": 80, "audio_tokens": None, "prompt_tokens": 1600,
            "cached_tokens": 600, "completion_tokens": 100, "seconds": 3.0, "model_s": 1.4, "media_s": 0.4,
            "gpu_s": None, "usd": (1000 * 2.0 + 600 * 0.5 + 100 * 10.0) / 1e6,
        }
    )  # fmt: skip
    assert cost_of(made)["usd"] is None
    assert cost_of(made, Price("2026-11-27", "here", input=2.0, output=10.0))["usd"] == pytest.approx(0.0042)


def test_what_the_policy_does_not_count_is_unknown() -> None:
    turns = [used(look(0, 9), Usage(prompt_tokens=5, completion_tokens=1)), used(answered("A"), Usage(prompt_tokens=7))]
    found = cost_of(trajectory(0, turns, "A"), TOKENS)
    assert (found["prompt_tokens"], found["completion_tokens"], found["usd"]) == (12, None, None)
    assert (found["cached_tokens"], found["audio_tokens"], found["gpu_s"]) == (None, None, None)
    heard = [used(look(0, 9, kind="audio"), Usage()), used(answered("A"), Usage(audio_tokens=225))]
    assert cost_of(trajectory(0, heard, "A"))["audio_tokens"] == 225
    unknown = cost_of(trajectory(0, turns, "A").model_copy(update={"timings": Timings()}))
    assert (unknown["seconds"], unknown["model_s"], unknown["media_s"]) == (None, None, None)


def test_money_by_the_hour() -> None:
    engine = GenerationTimings(queue_s=9.0, prefill_s=0.75, decode_s=1.25)
    turns = [used(look(0, 9), Usage(), engine), used(answered("A"), Usage(), engine)]
    found = cost_of(trajectory(0, turns, "A"), HOURS)
    assert found["gpu_s"] == 4.0 and found["usd"] == pytest.approx(4.0 / 1000)
    made = trajectory(0, [look(0, 9), answered("A")], "A")  # the engine does not tell: 0.9 s in the policy
    assert cost_of(made, HOURS)["usd"] == pytest.approx(0.9 / 1000)
    assert cost_of(made.model_copy(update={"timings": Timings()}), HOURS)["usd"] is None


def test_no_turns_cost_nothing() -> None:
    found = cost_of(trajectory(0, [], None, stop_reason=StopReason.TOKENS), TOKENS)
    assert (found["turns"], found["prompt_tokens"], found["usd"], found["seconds"]) == (0, 0, 0, None)


def test_lines_of_version_1_and_videos_of_unknown_length() -> None:
    made = trajectory(0, [look(0, 9), answered("A")], "A", duration_s=1800.0)
    assert row_of(made).hours == row_of(made.model_copy(update={"videos": ()})).hours == 0.5
    assert row_of(made.model_copy(update={"video_durations_s": ()})).hours == 0.5
    assert row_of(made.model_copy(update={"videos": (), "video_durations_s": ()})).hours is None


# --- prices


def prices(tmp_path: Path, text: str, name: str = "prices.json") -> dict[str, Price]:
    file = tmp_path / name
    file.write_text(text)
    return read_prices(file)


def test_prices_are_read(tmp_path: Path) -> None:
    entry = {"input": 2, "cached_input": 0.5, "output": 10, "date": "2026-11-27", "source": "here"}
    by_hour = {"gpu_hour": 3.6, "date": "2026-11-27", "source": "here"}
    assert prices(tmp_path, json.dumps({"m": entry, "own": by_hour})) == {"m": TOKENS, "own": HOURS}


def test_prices_in_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    text = "own:\n  gpu_hour: 3.6\n  date: 2026-11-27\n  source: here\n"  # YAML reads the date as a date
    assert prices(tmp_path, text, "prices.yaml") == {"own": HOURS}
    with pytest.raises(AprError, match="this is not YAML"):
        prices(tmp_path, "a: [", "prices.yml")
    with pytest.raises(AprError, match="this is not YAML"):
        prices(tmp_path, "!!python/object/apply:os.getcwd []", "prices.yml")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"inputs": 1, "output": 2}, "m: there is no field 'inputs' \\(did you mean 'input'\\?\\)"),
        ({"input": 1}, "either input and output"),
        ({"cached_input": 1}, "either input and output"),
        ({}, "either input and output"),
        ({"input": 1, "output": 2, "gpu_hour": 3}, "either input and output"),
        ({"input": -1, "output": 2}, "input=-1: it must be US dollars"),
        ({"input": "1", "output": 2}, "input='1': it must be US dollars"),
        ({"input": True, "output": 2}, "input=True: it must be US dollars"),
        ({"input": float("nan"), "output": 2}, "input=nan: it must be US dollars"),
        ({"gpu_hour": 1, "date": "yesterday"}, "date='yesterday': it must say when"),
        ({"gpu_hour": 1, "date": None}, "date=None: it must say when"),
        ({"gpu_hour": 1, "source": " "}, "source=' ': it must say where"),
        (3, "m: 3 is not an entry"),
    ],
)
def test_bad_prices_are_refused(tmp_path: Path, entry: object, words: str) -> None:
    whole = {"date": "2026-11-27", "source": "here"} | entry if isinstance(entry, dict) else entry
    with pytest.raises(AprError, match=words):
        prices(tmp_path, json.dumps({"m": whole}))


@pytest.mark.parametrize(
    ("text", "words"), [("{", "this is not JSON"), ("[]", "an entry for each"), ("{}", "an entry")]
)
def test_bad_price_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(AprError, match=words):
        prices(tmp_path, text)
    with pytest.raises(AprError, match="cannot read these prices"):
        read_prices(tmp_path / "missing.json")
    with pytest.raises(AprError, match="a folder, not a file"):
        read_prices(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(AprError, match="it is not UTF-8"):
        read_prices(tmp_path / "latin.json")


# --- over a comparison


def episode(number: int, hours: float, rng: random.Random) -> Trajectory:
    """Two turns, one more for each hour, give or take one; two questions for each video."""
    turns = 2 + round(hours) + rng.choice((-1, 0, 1))
    return trajectory(number, [look(0, 9)] * (turns - 1) + [answered("A")], "A", duration_s=3600 * hours)


def compared_run(tmp_path: Path, made: list[Trajectory]) -> tuple[Comparison, Arm]:
    arm = arm_of_run("agent", store_run(tmp_path, made, {one.question.doc_id: 1.0 for one in made}))
    return join([arm]), arm


def test_costs_and_slopes_of_an_arm(tmp_path: Path) -> None:
    rng = random.Random(1)
    made = [episode(n, n // 2 % 5 + 1.0, rng) for n in range(60)]
    made.append(trajectory(60, [], None, stop_reason=StopReason.MEDIA_UNREADABLE))
    compared, arm = compared_run(tmp_path, made)
    rows = rows_of(compared, arm)
    assert len(rows) == 60  # what failed says nothing of what an answer costs
    found = costs(compared, arm)
    assert tuple(found) == QUANTITIES and found == costs(compared, arm, rows=rows)
    turns = found["turns"]
    assert turns is not None and turns.n == 60 and turns.low is not None and turns.high is not None
    assert turns.value == pytest.approx(np.mean([len(one.turns) for one in made[:60]]))
    assert turns.low < turns.value < turns.high and found["usd"] is None
    for quantity in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        assert found[quantity] is not None
    grown = slopes(compared, arm)
    slope = grown["turns"]
    assert tuple(grown) == QUANTITIES and slope is not None and slope.low is not None and slope.high is not None
    assert slope.low < 1.0 < slope.high and slope.high - slope.low < 0.6 and slope.n == 60
    frames = grown["frames"]
    assert frames is not None and frames.value == pytest.approx(4 * slope.value)
    assert grown["audio_s"] is not None and (grown["audio_s"].low, grown["audio_s"].high) == (0.0, 0.0)
    per_hour = turns_per_hour(compared, arm, rows=rows)
    assert per_hour is not None and per_hour.value == pytest.approx(
        turns.value * 60 / sum(r.hours or 0 for r in rows.values())
    )
    assert set(costs_by_bucket(compared, arm)) == {"0-20min", "all"}  # the failed question's score has no bucket


def test_the_slope_is_that_of_least_squares(tmp_path: Path) -> None:
    from scipy.stats import linregress

    rng = random.Random(2)
    made = [episode(n, rng.choice((0.5, 1.0, 2.0, 4.0)), rng) for n in range(0, 60, 2)]  # one question for each video
    compared, arm = compared_run(tmp_path, made)
    found = slopes(compared, arm)["turns"]
    line = linregress([one.video_durations_s[0] / 3600 for one in made], [len(one.turns) for one in made])
    assert found is not None and found.value == pytest.approx(line.slope)
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(2.045 * line.stderr, rel=0.35)  # robust errors are near


def test_the_slopes_interval_is_that_of_clusters(tmp_path: Path) -> None:
    """The sandwich of K.-Y. Liang and S. Zeger (Biometrika 73, 1986), with the usual corrections, and t of 4."""
    from scipy.stats import t

    rng = random.Random(3)
    made = [episode(n, n // 2 + 1.0, rng) for n in range(10)]  # five videos of two questions each
    compared, arm = compared_run(tmp_path, made)
    found = slopes(compared, arm)["turns"]
    x = np.array([[1.0, one.video_durations_s[0] / 3600] for one in made])
    y = np.array([len(one.turns) for one in made])
    inverse = np.linalg.inv(x.T @ x)
    rest = (y - x @ (inverse @ x.T @ y))[:, None] * x
    sums = rest.reshape(5, 2, 2).sum(axis=1)
    error = np.sqrt((inverse @ sums.T @ sums @ inverse)[1, 1] * 5 / 4 * 9 / 8)
    assert found is not None and found.low is not None and found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(t.ppf(0.975, 4) * error)


def test_money_of_an_arm(tmp_path: Path) -> None:
    compared, arm = compared_run(tmp_path, [trajectory(n, [look(0, 9), answered("A")], "A") for n in range(4)])
    assert arm.run is not None and price_of(arm, {"m": TOKENS}) is None
    arm.run.card = {**arm.run.card, "policy": {"name": "openai", "model": "m"}}
    assert price_of(arm, {"m": TOKENS}) is TOKENS
    found = costs(compared, arm, {"m": TOKENS})["usd"]
    assert found is not None and found.value == pytest.approx((800 * 2.0 + 300 * 0.5 + 60 * 10.0) / 1e6)
    arm.run.card = {"policy": ["not", "a", "mapping"]}
    assert price_of(arm, {"m": TOKENS}) is None


def test_data_that_says_little(tmp_path: Path) -> None:
    rows = arm_of("rows", {0: 1.0}, kind="rows")
    nothing = join([rows])
    assert set(costs(nothing, rows).values()) == set(slopes(nothing, rows).values()) == {None}
    assert turns_per_hour(nothing, rows) is None and set(costs_by_bucket(nothing, rows)["0-20min"].values()) == {None}
    compared, arm = compared_run(tmp_path / "one", [trajectory(0, [look(0, 9), answered("A")], "A")])
    one = costs(compared, arm)["turns"]
    assert one is not None and (one.value, one.low, one.high, one.n) == (2.0, None, None, 1)
    assert slopes(compared, arm)["turns"] is None
    failed = [trajectory(n, [], None, stop_reason=StopReason.CANCELLED) for n in range(3)]
    compared, arm = compared_run(tmp_path / "failed", failed)
    assert rows_of(compared, arm) == {} and set(costs(compared, arm).values()) == {None}
    same = [trajectory(n, [look(0, 9), answered("A")], "A") for n in range(6)]
    compared, arm = compared_run(tmp_path / "same", same)
    turns = costs(compared, arm)["turns"]
    assert turns is not None and (turns.low, turns.value, turns.high) == (2.0, 2.0, 2.0)
    assert set(slopes(compared, arm).values()) == {None}  # all videos are of one length
    two = [trajectory(n, [look(0, 9)] * (n + 1), "A", duration_s=3600.0 * (n + 1)) for n in (0, 2)]
    compared, arm = compared_run(tmp_path / "two", two)
    slope = slopes(compared, arm)["turns"]
    assert slope is not None and (slope.value, slope.low) == (pytest.approx(1.0), None)
    assert (
        costs(compared, arm, keys=[key_of(0)])["turns"] is not None and costs(compared, arm, keys=[])["turns"] is None
    )
