"""`summarise`: everything that a comparison says, as plain values for tables, plots, the page and `summary.json`.

The headline counts a question that an arm failed, or has no score for, as wrong. The second score is over the common
subset, the questions for which every arm has a score. Tests are paired by question and intervals are clustered by video
(`compare.stats`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from apr_plugin.compare import aiming, cost, power, stats
from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.runs.opened import Key

NAMED = ("turns", "visual_tokens", "seconds")
"""Costs whose growth with duration is fitted."""


def summarise(
    comparison: Comparison,
    *,
    title: str = "",
    command: str = "",
    published: Sequence[Mapping[str, Any]] = (),
    prices: Any = None,
    sweep: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of a comparison; everything in it can be written as JSON.

    Args:
        comparison: From `joined.join`.
        title: What is compared.
        command: What was typed.
        published: Figures of others, as `report.published` has them; they are only shown.
        prices: From `cost.read_prices`; without it no money is counted.
        sweep: `setting` and the values by arm name, for a sweep.
    """
    arms = [_arm(comparison, arm, prices) for arm in comparison.arms]
    pairs = [_pair(comparison, comparison.arms[0], other) for other in comparison.arms[1:]]
    ladder = aiming.ladder(comparison)
    summary: dict[str, Any] = {
        "title": title or " and ".join(dict.fromkeys(key[0] for key in comparison.keys)),
        "command": command,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": sorted({key[0] for key in comparison.keys}),
        "n": len(comparison.keys),
        "common": len(comparison.common),
        "arms": arms,
        "buckets": _buckets(comparison),
        "pairs": pairs,
        "aiming": {arm.name: _dicts(aiming.summarise(comparison, arm)) for arm in comparison.arms if arm.run},
        "ladder": ladder,
        "sweep": None if sweep is None else _sweep(arms, sweep),
        "published": [dict(figure) for figure in published],
        "notes": [*comparison.notes, *(note for arm in comparison.arms for note in arm.notes)],
    }
    summary["headline"] = _headline(comparison, summary)
    return summary


def _dicts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.to_dict() for name, value in values.items()}


def _scores(arm: Arm, keys: Sequence[Key]) -> list[float]:
    return [arm.outcome(key).score for key in keys]


def _clusters(comparison: Comparison, keys: Sequence[Key]) -> list[str]:
    return [comparison.cluster(key) for key in keys]


def _arm(comparison: Comparison, arm: Arm, prices: Any) -> dict[str, Any]:
    keys, common = comparison.keys, comparison.common
    outcomes = [arm.outcome(key) for key in keys]
    clusters = _clusters(comparison, keys)
    states = Counter(outcome.status for outcome in outcomes)
    stops = Counter(str(outcome.row["stop_reason"]) for outcome in outcomes if outcome.row)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "about": arm.about,
        "n": len(keys),
        "scored": states["scored"],
        "failed": states["failed"],
        "missing": states["missing"],
        "score": stats.mean(_scores(arm, keys), clusters).to_dict(),
        "common_score": stats.mean(_scores(arm, common), _clusters(comparison, common)).to_dict() if common else None,
        "accuracy": stats.proportion([outcome.right for outcome in outcomes], clusters).to_dict(),
        "cost": _dicts(cost.costs(comparison, arm, prices)) if arm.run else None,
        "slope": _dicts({name: found for name, found in cost.slopes(comparison, arm).items() if name in NAMED})
        if arm.run
        else None,
        "stops": dict(sorted(stops.items())),
        "notes": arm.notes,
    }


def _in_buckets(comparison: Comparison) -> dict[str, list[Key]]:
    """The questions of each duration bucket, the shortest videos first."""
    found: dict[str, list[Key]] = {}
    seconds: dict[str, list[float]] = {}
    for key in comparison.keys:
        bucket = comparison.bucket(key)
        found.setdefault(bucket, []).append(key)
        known = [row["duration_s"] for arm in comparison.arms if (row := arm.outcome(key).row)]
        seconds.setdefault(bucket, []).extend(known[:1])
    return dict(
        sorted(found.items(), key=lambda item: (sum(seconds[item[0]]) / max(1, len(seconds[item[0]])), item[0]))
    )


def _buckets(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for name, keys in _in_buckets(comparison).items():
        clusters = _clusters(comparison, keys)
        spent = {
            arm.name: {quantity: _mean_of(arm, keys, quantity) for quantity in cost.QUANTITIES}
            for arm in comparison.arms
            if arm.run
        }
        scores = {arm.name: stats.mean(_scores(arm, keys), clusters).to_dict() for arm in comparison.arms}
        hours = [
            row["duration_s"] / 3600 for arm in comparison.arms[:1] for key in keys if (row := arm.outcome(key).row)
        ]
        duration_h = sum(hours) / len(hours) if hours else None
        rows.append({"name": name, "n": len(keys), "hours": duration_h, "arms": scores, "cost": spent})
    return rows


def _mean_of(arm: Arm, keys: Sequence[Key], quantity: str) -> float | None:
    found = [value for key in keys if (value := arm.outcome(key).row.get(quantity)) is not None]
    return sum(found) / len(found) if found else None


def _pair(comparison: Comparison, a: Arm, b: Arm) -> dict[str, Any]:
    keys = comparison.keys
    clusters = _clusters(comparison, keys)
    right = [[float(arm.outcome(key).right) for key in keys] for arm in (a, b)]
    scores = [_scores(arm, keys) for arm in (a, b)]
    whole, graded = stats.paired(*right, clusters), stats.paired(*scores, clusters)
    buckets = []
    for name, own in _in_buckets(comparison).items():
        tested = stats.paired(*([arm.outcome(key).score for key in own] for arm in (a, b)), _clusters(comparison, own))
        buckets.append({"name": name, "n": len(own), "diff": tested.diff.to_dict(), "p": tested.p})
    for bucket, corrected in zip(buckets, stats.holm([bucket["p"] for bucket in buckets]), strict=True):
        bucket["p_holm"] = corrected
    needed, visible = power.of_pair(*right)
    return {
        "a": a.name,
        "b": b.name,
        "n": len(keys),
        "only_a": whole.only_a,
        "only_b": whole.only_b,
        "diff": whole.diff.to_dict(),
        "p": whole.p,
        "test": whole.test,
        "score_diff": graded.diff.to_dict(),
        "score_p": graded.p,
        "needed": needed,
        "visible": visible,
        "buckets": buckets,
    }


def _sweep(arms: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {arm["name"]: arm for arm in arms}
    points = [
        {"value": value, "arm": name}
        | {"score": by_name[name]["score"]}
        | {quantity: (by_name[name]["cost"] or {}).get(quantity) for quantity in ("turns", "frames")}
        for name, value in sweep["values"].items()
    ]
    return {"setting": sweep["setting"], "points": points}


def _headline(comparison: Comparison, summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know first, in sentences."""
    said = []
    for pair in summary["pairs"]:
        difference, p = pair["diff"]["value"], pair["p"]
        if p < 0.05:
            said.append(
                f"{pair['a']} answers {abs(difference):.1%} {'more' if difference > 0 else 'fewer'} of the questions "
                f"rightly than {pair['b']} (p = {p:.2g}, n = {pair['n']})."
            )
        else:
            said.append(
                f"{pair['a']} and {pair['b']} can't be told apart: a difference of {difference:+.1%} has "
                f"p = {p:.2g} with {pair['n']} questions"
                + (f", which can show {pair['visible']:.1%} or more." if pair["visible"] is not None else ".")
            )
    first = comparison.arms[0]
    for other, pair in zip(comparison.arms[1:], summary["pairs"], strict=True):
        if first.kind == "agent" and other.kind == "passive" and _same_base(first, other) and pair["diff"]["value"] < 0:
            said.append(
                f"The agent is below the passive arm {other.name} of the same model: being told about tools costs "
                "more than looking gains. Compare the two before you report the agent alone."
            )
    for arm in summary["arms"]:
        if lost := arm["failed"] + arm["missing"]:
            said.append(
                f"{arm['name']}: {lost} of {arm['n']} questions have no answer or no score and count as wrong; the "
                f"common subset has the {summary['common']} questions that every arm has a score for."
            )
    return said


def _same_base(a: Arm, b: Arm) -> bool:
    def model(arm: Arm) -> Any:
        policy = (arm.run.card.get("policy") if arm.run is not None else None) or {}
        return {name: value for name, value in policy.items() if name not in ("modalities",)}

    return model(a) == model(b)
