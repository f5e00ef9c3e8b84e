"""The report of `grpo_learning`: tables with intervals, curves, and what they mean, from the results of the runs."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from apr_plugin.compare.stats import holm
from apr_plugin.report.card_files import to_yaml
from apr_plugin.report.machine import hardware
from apr_plugin.training.sft.card import versions
from benchmarks.trails.making import TEACHER, start_seconds
from benchmarks.trails.teacher import FOLLOW, WANDER

MEASURES = {
    "greedy": "held-out reward, greedy",
    "sampled": "held-out reward, sampled",
    "curve": "mean reward of all rollouts",
}
"""What rules are compared by."""

LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over seeds and Student's t interval; without spread it has no width, with one seed it is not known."""
    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return mean, mean - half, mean + half


def p_of(differences: Sequence[float]) -> float | None:
    """Of the paired t-test against no difference; `None` without spread or with one seed."""
    found = np.asarray(differences, dtype=float)
    if len(found) < 2 or float(found.std(ddof=1)) == 0:
        return None
    return float(stats.ttest_1samp(found, 0.0).pvalue)


def measured(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """By measure, rule and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {name: {} for name in MEASURES}
    for one in results:
        values = {
            "greedy": one["after"]["greedy"]["reward"],
            "sampled": one["after"]["sampled"]["reward"],
            "curve": float(np.mean([step["reward"] for step in one["steps"]])),
        }
        for name, value in values.items():
            found[name].setdefault(one["rule"], {})[one["seed"]] = value
    return found


def differences(found: Mapping[str, Mapping[str, Mapping[int, float]]]) -> list[dict[str, Any]]:
    """Every pair of rules by every measure, paired by seed; `p_holm` is over all pairs and measures together."""
    made = []
    for measure, rules in found.items():
        for a, b in itertools.combinations(rules, 2):
            seeds = sorted(set(rules[a]) & set(rules[b]))
            apart = [rules[b][seed] - rules[a][seed] for seed in seeds]
            mean, low, high = interval(apart)
            made.append({"measure": measure, "a": b, "b": a, "seeds": len(seeds), "mean": mean, "low": low})
            made[-1] |= {"high": high, "p": p_of(apart)}
    for one, corrected in zip(made, holm([one["p"] for one in made]), strict=True):
        one["p_holm"] = corrected
    return made


def rises(before: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How far the reward of each rule rose, over seeds."""
    made = []
    for rule in dict.fromkeys(one["rule"] for one in results):
        runs = [one for one in results if one["rule"] == rule]
        row: dict[str, Any] = {"rule": rule, "seeds": len(runs)}
        for way in ("greedy", "sampled"):
            after = [one["after"][way]["reward"] for one in runs]
            row[way] = (interval(after)[0], interval([value - before[way]["reward"] for value in after]))
        n = max(1, len(runs[0]["steps"]) // 4)
        firsts = [float(np.mean([step["reward"] for step in one["steps"][:n]])) for one in runs]
        lasts = [float(np.mean([step["reward"] for step in one["steps"][-n:]])) for one in runs]
        row["quarters"] = (float(np.mean(firsts)), float(np.mean(lasts)))
        row["training_rise"] = interval([last - first for first, last in zip(firsts, lasts, strict=True)])
        row["cpu_s"] = float(np.mean([one["cpu_s"] for one in runs]))
        row["wall_s"] = float(np.mean([one["wall_s"] for one in runs]))
        made.append(row)
    return made


def verdict(found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the intervals allow to say, whichever way they fall."""
    said = []
    for row in rows:
        low = row["greedy"][1][1]
        rose = "rises" if low > 0 else "falls" if row["greedy"][1][2] < 0 else "shows no clear change"
        said.append(f"- `{row['rule']}`: the greedy reward {rose} (interval {_range(row['greedy'][1])}).")
    for name, title in MEASURES.items():
        own = [one for one in found if one["measure"] == name]
        apart = [one for one in own if one["low"] > 0 or one["high"] < 0]
        firm = [one for one in own if one["p_holm"] is not None and one["p_holm"] < 1 - LEVEL]
        words = [f"`{one['a']}` {'above' if one['mean'] > 0 else 'below'} `{one['b']}`" for one in apart]
        kept = [f"`{one['a']}` and `{one['b']}`" for one in firm]
        said.append(
            f"- {title[0].upper()}{title[1:]}: "
            + (f"intervals without zero: {', '.join(words)}; " if words else "no difference between rules seen; ")
            + (
                f"after Holm's correction {', '.join(kept)} differ."
                if kept
                else "after Holm's correction none is left."
            )
        )
    return said


def write_report(
    out: Path,
    before: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    args: argparse.Namespace,
) -> None:
    """Write README.md, steps.csv, runs.csv, pairs.csv, learning.svg, recipe.yaml and card.json."""
    out.mkdir(parents=True, exist_ok=True)
    rows, found = rises(before, results), differences(measured(results))
    _csv(
        out / "steps.csv",
        [{"rule": one["rule"], "seed": one["seed"], **step} for one in results for step in one["steps"]],
    )
    _csv(out / "runs.csv", [_run_row(one) for one in results])
    _csv(out / "pairs.csv", found)
    told = json.loads(json.dumps(recipe))
    told["student"]["pretrained"], told["questions"] = "WORK/sft/final", ["WORK/films/learned.jsonl"]
    told["system_prompt"] = "WORK/instructions.txt"
    (out / "recipe.yaml").write_text(to_yaml(told))
    card = {
        "before": {way: {name: before[way][name] for name in ("reward", "turns", "episodes")} for way in before},
        "cpu_s_of_the_start": start_seconds(args.work),
        "parameters": json.loads((args.work / "sft" / "final" / "training.json").read_text())["parameters"],
        "runs": len(results),
        "cpu_s_of_all_runs": round(sum(one["cpu_s"] for one in results), 1),
        "machine": hardware(),
        "versions": versions(),
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    plot(results, before, out / "learning.svg")
    (out / "README.md").write_text("\n".join(_page(before, results, rows, found, card, args)))


def _page(
    before: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    card: Mapping[str, Any],
    args: argparse.Namespace,
) -> list[str]:
    seeds = len({one["seed"] for one in results})
    rules = ",".join(row["rule"] for row in rows)
    steps = len(results[0]["steps"])
    first = card["cpu_s_of_the_start"]
    total = card["cpu_s_of_all_runs"] + sum(first.values())
    teacher = json.loads((args.work / TEACHER).read_text())
    machine = card["machine"]
    return [
        "# Does reinforcement on whole investigations learn, and does the rule of credit matter?",
        "",
        f"    python -m benchmarks.grpo_learning --seeds {seeds} --rules {rules} --steps {steps}",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, no GPU used. CPU time (user and system): "
        f"{', '.join(f'{name} {value:.0f} s' for name, value in first.items())}; {len(results)} runs with their "
        f"evaluations {card['cpu_s_of_all_runs']:.0f} s; {total / 60:.1f} minutes in all. {args.processes} "
        "processes at a time, one thread each. Wall time depends on what else runs; `runs.csv` has both for each run.",
        "",
        "A film has six scenes of one colour each. The colour of a scene says which scene is next on a trail that "
        "begins at the first scene; the question asks for the colour of the third scene on it. That takes three looks, "
        "each where the last one points, and an answer. A colour from anywhere else is right in one of five cases. The "
        f"teacher sees well and acts badly: at each fork it follows the trail in {FOLLOW:.0%} of the cases, goes to "
        f"the next scene of the film in {WANDER:.0%}, and answers too early in the rest; {teacher['right']} of its "
        f"{teacher['episodes']} episodes ended with a right answer. A Qwen2.5-VL of {_million(card)} million weights "
        "imitates it, and is the checkpoint that all runs begin with. Rewards are 1 for a right answer and 0 "
        "otherwise. Films of the teacher, of reinforcement and of the evaluation have disjoint seeds, and no held-out "
        "film has the colours of one of the others.",
        "",
        f"Before: {before['greedy']['reward']:.3f} greedy ({before['greedy']['episodes']} held-out questions, "
        f"{before['greedy']['turns']:.2f} turns), {before['sampled']['reward']:.3f} sampled at temperature 1 "
        f"({before['sampled']['episodes']} episodes).",
        "",
        f"## After {steps} steps, mean over {seeds} seeds, with {LEVEL:.0%} intervals (Student's t over seeds)",
        "",
        "| rule | greedy after | rise | sampled after | rise | rollouts, first and last quarter | rise | CPU s |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| `{row['rule']}` | {row['greedy'][0]:.3f} | {_with_range(row['greedy'][1])} | {row['sampled'][0]:.3f} | "
            f"{_with_range(row['sampled'][1])} | {row['quarters'][0]:.3f}, {row['quarters'][1]:.3f} | "
            f"{_with_range(row['training_rise'])} | {row['cpu_s']:.0f} |"
            for row in rows
        ),
        "",
        "![reward by step](learning.svg)",
        "",
        "## Rules against each other, paired by seed",
        "",
        "All rules of a seed ask the same questions in the same order and begin with the same rollout. An interval is "
        f"of one comparison alone; there are {len(found)}, so about {0.05 * len(found):.1f} of them would leave out "
        "zero by chance if no rule differed. `p (Holm)` is corrected for all of them.",
        "",
        "| measure | difference | mean | interval | p | p (Holm) |",
        "|---|---|---|---|---|---|",
        *(
            f"| {MEASURES[one['measure']]} | `{one['a']}` - `{one['b']}` | {one['mean']:+.3f} | {_range(one)} | "
            f"{_p(one['p'])} | {_p(one['p_holm'])} |"
            for one in found
        ),
        "",
        "## What it means",
        "",
        *verdict(found, rows),
        *_ceiling(rows),
        "",
        f"Mean entropy of a token by turn, in nats, in the rollouts of all runs: {_entropies(results)}. The second and "
        "third turn are those at which the teacher errs; a fifth turn is one more than a trail takes.",
        "",
        "It is one small world, one checkpoint, one learning rate and few steps, and the sampled evaluation has one "
        "episode for each held-out question. Nothing here tells how a rule does on a large model, and a difference "
        "that was not seen may still exist.",
        "",
        "`steps.csv`: each step of each run; `runs.csv`, `pairs.csv`: the tables; `recipe.yaml`: the recipe of one run "
        "(rule and seeds vary; `WORK` is the folder of `--work`); `card.json`: machine and versions.",
        "",
    ]


def _ceiling(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    high = [row["rule"] for row in rows if row["greedy"][0] > 0.9]
    if len(high) < 2:
        return []
    return ["- Greedy rewards above 0.9 are near their limit of 1, so that measure can hardly tell rules apart."]


def _entropies(results: Sequence[Mapping[str, Any]]) -> str:
    steps = [step for one in results for step in one["steps"]]
    names = sorted({name for step in steps for name in step if name.startswith("entropy/turn_")})
    means = {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}
    return ", ".join(f"turn {int(name[-2:])} {value:.3f}" for name, value in means.items())


def _million(card: Mapping[str, Any]) -> str:
    return f"{card['parameters']['all'] / 1e6:.2f}"


def _run_row(one: Mapping[str, Any]) -> dict[str, Any]:
    after = {f"{way}_{name}": one["after"][way][name] for way in one["after"] for name in ("reward", "turns")}
    times = {name: one[name] for name in ("train_cpu_s", "train_wall_s", "cpu_s", "wall_s")}
    return {"rule": one["rule"], "seed": one["seed"], **after, **times}


def _csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        )


def _range(found: Any) -> str:
    low, high = (found["low"], found["high"]) if isinstance(found, Mapping) else found[1:]
    return f"{low:+.3f} to {high:+.3f}" if math.isfinite(low) else "one seed has none"


def _with_range(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} ({_range(found)})"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def plot(results: Sequence[Mapping[str, Any]], before: Mapping[str, Any], file: Path) -> None:
    """The reward of rollouts by step: the mean over seeds, with a band from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "apr"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for rule in dict.fromkeys(one["rule"] for one in results):
        curves = np.array([[step["reward"] for step in one["steps"]] for one in results if one["rule"] == rule])
        smooth = np.array([_smoothed(curve) for curve in curves])
        at = np.arange(1, smooth.shape[1] + 1)
        (line,) = axes.plot(at, smooth.mean(0), label=rule)
        axes.fill_between(at, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(before["sampled"]["reward"], color="gray", linestyle=":", label="checkpoint, held out, sampled")
    axes.set(xlabel="step (mean of three)", ylabel="reward of the rollout", ylim=(0, 1))
    axes.legend(loc="lower right")
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def _smoothed(curve: Any) -> Any:
    return [float(np.mean(curve[max(0, at - 1) : at + 2])) for at in range(len(curve))]
