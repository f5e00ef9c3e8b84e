"""The benchmarks of learning and of cost: their statistics, and both of them shrunk, from films to files.

Nothing is claimed of learning here; two steps of a student that imitates next to nothing can't show any.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from benchmarks import grpo_cost, grpo_learning
from benchmarks.grpo_learning_report import differences, interval, measured, rises, verdict
from benchmarks.trails.films import COLOURS, LOOKS, colours_of, letter, trail
from benchmarks.trails.making import HELD_OUT, LEARN, TEACH, Sizes


def result(rule: str, seed: int, greedy: float, rewards: list[float]) -> dict[str, Any]:
    steps = [{"step": number, "reward": value} for number, value in enumerate(rewards, 1)]
    after = {way: {"reward": greedy, "turns": 4.0} for way in ("greedy", "sampled")}
    return {"rule": rule, "seed": seed, "after": after, "steps": steps, "cpu_s": 1.0, "wall_s": 2.0}


def test_rules_are_compared_within_seeds() -> None:
    """Student's t over the differences of the same seeds: 2.776 for five of them."""
    values = [0.1, 0.2, 0.3, 0.2, 0.2]
    mean, low, high = interval(values)
    assert mean == pytest.approx(0.2)
    assert high - mean == pytest.approx(2.776445 * 0.0707107 / math.sqrt(5), rel=1e-5) == pytest.approx(mean - low)
    results = [result("none", seed, 0.1 * seed, [0.1, 0.1]) for seed in range(5)]
    results += [result("taura", seed, 0.1 * seed + 0.2 + 0.01 * seed, [0.1, 0.3]) for seed in range(5)]
    found = differences(measured(results))
    greedy = next(one for one in found if one["measure"] == "greedy")
    assert (greedy["a"], greedy["b"], greedy["seeds"]) == ("taura", "none", 5)
    assert greedy["mean"] == pytest.approx(0.22) and 0.19 < greedy["low"] < greedy["high"] < 0.25
    assert greedy["p"] < 1e-4 and greedy["p_holm"] > greedy["p"]
    before = {way: {"reward": 0.1} for way in ("greedy", "sampled")}
    rows = rises(before, results)
    said = "\n".join(verdict(found, rows))
    assert "`taura` above `none`" in said and "`none`: the greedy reward shows no clear change" in said
    equal = [result(rule, seed, 0.5, [0.5]) for rule in ("none", "taura") for seed in range(5)]
    said = "\n".join(verdict(differences(measured(equal)), rises(before, equal)))
    assert "no difference between rules seen" in said and "above" not in said


def test_trails_need_three_looks_and_sets_are_disjoint() -> None:
    answers = []
    for seed in range(200):
        colours = colours_of(seed)
        scenes = trail(colours)
        assert scenes[0] == 0 and len(set(scenes)) == LOOKS
        answers.append(letter(colours[scenes[-1]]))
    assert all(25 <= answers.count(letter(colour)) <= 55 for colour in COLOURS), "no answer is right by habit"
    sizes = Sizes()
    assert TEACH + sizes.taught <= LEARN and LEARN + sizes.learned <= HELD_OUT
    known = {*range(TEACH, TEACH + sizes.taught), *range(LEARN, LEARN + sizes.learned)}
    held = {colours_of(HELD_OUT + number) for number in range(sizes.held_out)}
    assert not held & {colours_of(seed) for seed in known}, "no held-out film looks like one of the others"


@pytest.mark.slow
def test_the_benchmark_of_learning_runs_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed, two rules, two steps; the same command again repeats only what has no result."""
    out, work = tmp_path / "out", tmp_path / "work"
    words = ["--seeds", "1", "--rules", "none,taura", "--steps", "2", "--taught", "24", "--sft-steps", "6"]
    words += ["--held-out", "4", "--processes", "1", "--work", str(work), "--out", str(out)]
    assert grpo_learning.main(words) == 0
    names = {"README.md", "steps.csv", "runs.csv", "pairs.csv", "learning.svg", "recipe.yaml", "card.json"}
    assert {file.name for file in out.iterdir()} == names
    steps = list(csv.DictReader((out / "steps.csv").open()))
    assert [(row["rule"], row["step"]) for row in steps] == [(rule, n) for rule in ("none", "taura") for n in "12"]
    assert steps[0]["reward"] == steps[2]["reward"], "the first rollouts of a seed are the same for all rules"
    page = (out / "README.md").read_text()
    assert "| `none` |" in page and "| `taura` |" in page and str(tmp_path) not in page
    assert str(tmp_path) not in (out / "recipe.yaml").read_text() + (out / "card.json").read_text()
    card = json.loads((out / "card.json").read_text())
    assert card["runs"] == 2 and card["cpu_s_of_all_runs"] > 0 and card["versions"]["trl"]
    files = {name: work / "runs" / name / "result.json" for name in ("none-0", "taura-0")}
    was = files["none-0"].stat().st_mtime_ns
    files["taura-0"].unlink()  # as after a kill in the middle of it
    assert grpo_learning.main(words) == 0
    assert files["none-0"].stat().st_mtime_ns == was and files["taura-0"].is_file()
    assert "2 runs, of which 1 are finished" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has runs of other settings"):
        grpo_learning.main([*words, "--steps", "3"])


@pytest.mark.slow
def test_the_benchmark_of_cost_counts_forwards_and_memory(tmp_path: Path) -> None:
    """A second pass occurs with several updates of a rollout only, and as often with plain GRPO."""
    file = tmp_path / "cost.json"
    words = ["--rollouts", "1", "--questions", "1", "--lengths", "300,2400", "--numbers", "1,4", "--json", str(file)]
    assert grpo_cost.main(words) == 0
    found = json.loads(file.read_text())
    one, two = found["1 update of a rollout"], found["2 updates of a rollout"]
    for rule in ("none", "taura"):
        counts = one[rule]["forwards"]
        assert counts["extra"] == 0 and counts["update"] == counts["packs"] == counts["rows"] == one["turns"] > 0
        assert counts["rollout"] == one["none"]["forwards"]["rollout"] > one["turns"]
        again = two[rule]["forwards"]
        assert again["extra"] == again["update"] == again["packs"]
        assert two[rule]["seconds"]["old log-probabilities"] > 0 == one[rule]["seconds"]["old log-probabilities"]
    mib = {(row["rows"], row["longest"] > 1000): row["mib"] for row in found["memory"]}
    assert mib[1, True] > 2 * mib[1, False], "a longer row needs more memory"
    assert mib[4, True] < 1.5 * mib[1, True], "more rows do not"
