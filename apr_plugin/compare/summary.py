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

from apr_plugin.compare import aiming, cost, pairs
from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.ladder import ladder
from apr_plugin.compare.power import ALPHA, LEAST_CLUSTERS
from apr_plugin.compare.stats import Interval
from apr_plugin.runs.opened import Key

GROWS = ("turns", "visual_tokens", "seconds")
"""Costs whose growth with duration is fitted."""

FEW_VIDEOS = 10
"""With fewer, a note says that intervals and tests over videos say little."""


def summarise(
    comparison: Comparison,
    *,
    title: str = "",
    command: str = "",
    published: Sequence[Mapping[str, Any]] = (),
    prices: Mapping[str, cost.Price] | None = None,
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
    rows = {arm.name: cost.rows_of(comparison, arm, prices) for arm in comparison.arms if arm.run is not None}
    arms = [_arm(comparison, arm, rows.get(arm.name)) for arm in comparison.arms]
    first, *others = comparison.arms
    steps = ladder(comparison)
    summary: dict[str, Any] = {
        "title": title or " and ".join(dict.fromkeys(key[0] for key in comparison.keys)),
        "command": command,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": sorted({key[0] for key in comparison.keys}),
        "n": len(comparison.keys),
        "common": len(comparison.common),
        "arms": arms,
        "buckets": _buckets(comparison, rows),
        "pairs": [_pair(comparison, first, other) for other in others if not _unscored(comparison, first, other)],
        "aiming": _aiming(comparison),
        "ladder": steps.to_dict() if len(steps.arms) > 1 else None,
        "sweep": None if sweep is None else _sweep(arms, sweep),
        "published": [dict(figure) for figure in published],
        "notes": list(
            dict.fromkeys(
                [
                    *_few(comparison),
                    *_priced(comparison, prices),
                    *comparison.notes,
                    *(note for arm in comparison.arms for note in arm.notes),
                ]
            )
        ),
    }
    summary["headline"] = _headline(comparison, summary)
    return summary


def _dict(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_dict()


def _dicts(values: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {name: _dict(value) for name, value in values.items()}


def _aiming(comparison: Comparison) -> dict[str, Any]:
    """By arm; an arm without looks at known evidence is left out."""
    found = {arm.name: aiming.summarise(comparison, arm) for arm in comparison.arms if arm.run is not None}
    return {
        name: _dicts(values) for name, values in found.items() if any(value is not None for value in values.values())
    }


def _arm(comparison: Comparison, arm: Arm, rows: Mapping[Key, cost.Row] | None) -> dict[str, Any]:
    outcomes, open_ = [arm.outcome(key) for key in comparison.keys], bool(_unscored(comparison, arm))
    states = Counter(outcome.status for outcome in outcomes)
    stops = Counter(str(outcome.row["stop_reason"]) for outcome in outcomes if outcome.row)
    grows = None if rows is None else cost.slopes(comparison, arm, rows=rows)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "imported": "imported" in arm.about,
        "about": arm.about,
        "n": len(outcomes),
        "scored": states["scored"],
        "failed": states["failed"],
        "missing": states["missing"],
        "score": None if open_ else _dict(pairs.score(comparison, arm)),
        "common_score": _dict(pairs.score(comparison, arm, comparison.common)),
        "accuracy": None if open_ else _dict(pairs.accuracy(comparison, arm)),
        "cost": None if rows is None else _dicts(cost.costs(comparison, arm, rows=rows)),
        "slope": None if grows is None else _dicts({name: grows[name] for name in GROWS}),
        "turns_per_hour": None if rows is None else _dict(cost.turns_per_hour(comparison, arm, rows=rows)),
        "stops": dict(sorted(stops.items())),
        "notes": arm.notes,
    }


def _hours(comparison: Comparison, keys: Sequence[Key]) -> float | None:
    """Mean length of the questions' videos, as far as an arm knows it."""
    seconds = [
        next((row["duration_s"] for arm in comparison.arms if (row := arm.outcome(key).row)), None) for key in keys
    ]
    known = [value / 3600 for value in seconds if value]
    return sum(known) / len(known) if known else None


def _in_buckets(comparison: Comparison) -> list[tuple[str, list[Key], float | None]]:
    """Name, questions and mean hours of each duration bucket, the shortest videos first."""
    found = [(name, keys, _hours(comparison, keys)) for name, keys in pairs.buckets_of(comparison).items()]
    return sorted(found, key=lambda bucket: (bucket[2] is None, bucket[2] or 0.0, bucket[0]))


def _buckets(comparison: Comparison, rows: Mapping[str, Mapping[Key, cost.Row]]) -> list[dict[str, Any]]:
    spent = {
        arm.name: cost.costs_by_bucket(comparison, arm, rows=rows[arm.name])
        for arm in comparison.arms
        if arm.name in rows
    }
    return [
        {
            "name": name,
            "n": len(keys),
            "hours": hours,
            "arms": {
                arm.name: None if _unscored(comparison, arm) else _dict(pairs.score(comparison, arm, keys))
                for arm in comparison.arms
            },
            "cost": {arm: _dicts(of_arm[name]) for arm, of_arm in spent.items()},
        }
        for name, keys, hours in _in_buckets(comparison)
    ]


def _pair(comparison: Comparison, a: Arm, b: Arm) -> dict[str, Any]:
    right, scores = pairs.differences(comparison, a, b), pairs.score_differences(comparison, a, b)
    power = pairs.power_between(comparison, a, b)
    assert right is not None and scores is not None and power is not None  # a comparison has questions
    order = [name for name, _, _ in _in_buckets(comparison)]
    buckets = sorted(pairs.differences_by_bucket(comparison, a, b), key=lambda bucket: order.index(bucket.name))
    return {
        "a": a.name,
        "b": b.name,
        "n": right.n,
        "only_a": right.only_a,
        "only_b": right.only_b,
        "diff": right.diff.to_dict(),
        "p": right.p_read,
        "test": right.test_read,
        "p_mcnemar": right.p,
        "score_diff": scores.diff.to_dict(),
        "score_p": scores.p_read,
        "score_test": scores.test_read,
        "needed": power.needed,
        "visible": power.visible,
        "buckets": [
            {
                "name": bucket.name,
                "n": bucket.n,
                "diff": bucket.paired.diff.to_dict(),
                "p": bucket.paired.p_read,
                "p_holm": bucket.p_holm,
            }
            for bucket in buckets
        ],
    }


def _sweep(arms: Sequence[Mapping[str, Any]], sweep: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {arm["name"]: arm for arm in arms}
    points = [
        {"value": value, "arm": name}
        | {"score": by_name[name]["score"]}
        | {quantity: (by_name[name]["cost"] or {}).get(quantity) for quantity in ("turns", "frames")}
        for name, value in sweep["values"].items()
        if name in by_name  # else it has not begun
    ]
    return {"setting": sweep["setting"], "points": points}


def _headline(comparison: Comparison, summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know first, in sentences."""
    said = []
    for pair in summary["pairs"]:
        difference, p = pair["diff"], pair["p"]
        sign = -1 if p < ALPHA and difference["value"] < 0 else 1  # "fewer" is said in words
        value = f"{sign * difference['value'] * 100:.1f} percentage points"
        if difference["low"] is not None:
            low, high = sorted(sign * difference[end] * 100 for end in ("low", "high"))
            value += f" ({low:+.1f} to {high:+.1f})"
        if p < ALPHA:
            more = "more" if difference["value"] > 0 else "fewer"
            said.append(
                f"{pair['a']} is right on {value} {more} of the questions than {pair['b']} "
                f"(p = {p:.2g}, n = {pair['n']})."
            )
        else:
            shows = "" if pair["visible"] is None else f", which can show {pair['visible'] * 100:.1f} points or more"
            said.append(
                f"{pair['a']} and {pair['b']} can't be told apart: the difference is {value} "
                f"(p = {p:.2g}) over {pair['n']} questions{shows}."
            )
    right = {arm["name"]: arm["accuracy"]["value"] for arm in summary["arms"] if arm["accuracy"] is not None}
    known = [arm for arm in comparison.arms if arm.name in right]
    for agent in known:
        for other in known:
            below = right[agent.name] < right[other.name]
            if agent.kind == "agent" and other.kind == "passive" and below and _same_base(agent, other):
                said.append(
                    f"{agent.name} is below the passive arm {other.name} of the same model "
                    f"({right[agent.name] * 100:.1f} against {right[other.name] * 100:.1f}% right): a prompt with "
                    "tools can cost more than looking gains. Compare the two before you report the agent alone."
                )
    for arm in summary["arms"]:
        if arm["name"] not in right:
            said.append(f"{arm['name']} has no scores yet, so nothing is said about how right it is.")
        elif lost := arm["failed"] + arm["missing"]:
            said.append(
                f"{arm['name']}: {lost} of {arm['n']} questions have no answer or no score and count as wrong; the "
                f"common subset has the {summary['common']} questions that every arm has a score for."
            )
    return said


def _unscored(comparison: Comparison, *arms: Arm) -> list[str]:
    """The arms without any score: a run that goes on has none, and must not look as if all its answers were wrong."""
    return [arm.name for arm in arms if all(arm.outcome(key).status == "missing" for key in comparison.keys)]


def _few(comparison: Comparison) -> list[str]:
    videos, n = len({comparison.cluster(key) for key in comparison.keys}), len(comparison.keys)
    if videos >= FEW_VIDEOS or videos == n:
        return []
    told = "1 video" if videos == 1 else f"{videos} videos"
    never = f"; with fewer than {LEAST_CLUSTERS} no difference can reach p < {ALPHA}" if videos < LEAST_CLUSTERS else ""
    return [
        f"the {n} questions are about {told}: intervals and tests over so few say little, whatever the number of "
        f"questions{never}"
    ]


def _priced(comparison: Comparison, prices: Mapping[str, cost.Price] | None) -> list[str]:
    """Where each arm's prices are from, or that there are none for its model."""
    said = []
    for arm in comparison.arms if prices is not None else ():
        price = cost.price_of(arm, prices or {})
        if price is not None:
            said.append(f"{arm.name}: US dollars by the prices of {price.date} ({price.source})")
        elif arm.run is not None:
            said.append(f"{arm.name}: the file of prices has no entry for its model, so its cost in money is unknown")
    return said


def _same_base(a: Arm, b: Arm) -> bool:
    def model(arm: Arm) -> Any:
        policy = (arm.run.card.get("policy") if arm.run is not None else None) or {}
        return {name: value for name, value in policy.items() if name not in ("modalities",)}

    return bool(model(a) == model(b))
