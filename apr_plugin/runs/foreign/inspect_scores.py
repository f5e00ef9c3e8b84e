"""The scores in inspect_ai's logs as numbers. Values as in `scorer/_metric.py` (`value_to_float`), release 0.3.285."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apr_plugin.loop.text import printable

WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Correct, partly correct, incorrect, no answer."""


def score_of(scores: Mapping[str, Any], scorer: str) -> tuple[float | None, dict[str, float], str | None]:
    """The score of a sample.

    Args:
        scores: Scorer -> its score.
        scorer: Which one gives the score; empty takes the only one, or the one called `score`.

    Returns:
        The score, if it is in [0, 1]; every number by scorer and name; the answer that the scorer read.
    """
    metrics: dict[str, float] = {}
    answers: dict[str, str] = {}
    for name, given in scores.items():
        told = given if isinstance(given, Mapping) else {}
        value = told.get("value")
        for part, number in _numbers(printable(str(name))[:200], value).items():
            metrics[part] = number
        if isinstance(told.get("answer"), str):
            answers[name] = printable(told["answer"])
        extra = told.get("metadata")
        own = extra.get("metrics") if isinstance(extra, Mapping) else None
        metrics |= _numbers("", own) if isinstance(own, Mapping) else {}
    chosen = scorer or (next(iter(scores)) if len(scores) == 1 else "score")
    value = metrics.get(chosen)
    return value if value is not None and 0 <= value <= 1 else None, metrics, answers.get(chosen)


def task_metrics(results: Mapping[str, Any], scorer: str) -> dict[str, float]:
    """What was reported for the whole task: `metric` of the only or the chosen scorer, else `scorer_metric`."""
    found: dict[str, float] = {}
    listed = results.get("scores")
    scores = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    for one in scores:
        name = str(one.get("name") or one.get("scorer") or "")[:200]
        plain = len(scores) == 1 or name == scorer
        metrics = one.get("metrics")
        for metric, told in metrics.items() if isinstance(metrics, Mapping) else ():
            number = _number(told.get("value") if isinstance(told, Mapping) else None)
            if number is not None:
                found[str(metric)[:200] if plain else f"{name}_{metric}"[:400]] = number
    return found


def _numbers(name: str, value: object) -> dict[str, float]:
    if isinstance(value, Mapping):
        head = f"{name}." if name else ""
        found = {printable(f"{head}{part}")[:400]: _number(one) for part, one in value.items()}
    else:
        found = {name: _number(value)}
    return {part: number for part, number in found.items() if number is not None}


def _number(value: object) -> float | None:
    if isinstance(value, str):
        if value in WORDS:
            return WORDS[value]
        word = value.strip().lower()
        if word in ("yes", "true"):
            return 1.0
        if word in ("no", "false"):
            return 0.0
        try:
            value = float(word)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
