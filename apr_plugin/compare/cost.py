"""What a question costs: turns, frames, sound, tokens, seconds and money; per arm, per bucket, per hour of video.

Prices come from a file that the user writes, because they change, and a price needs its date and its source. JSON, or
YAML where the name ends in .yaml or .yml; an entry for each model, by its name in the run's card:

    {
      "NAME-OF-A-SERVED-MODEL": {
        "input": 1.0, "cached_input": 0.25, "output": 4.0,
        "date": "2026-11-27", "source": "https://PROVIDER/pricing"
      },
      "NAME-OF-A-CHECKPOINT-HERE": {"gpu_hour": 2.0, "date": "2026-11-27", "source": "invoice of November"}
    }

`input`, `cached_input` (by default as `input`) and `output` are US dollars for a million tokens; `gpu_hour` is US
dollars for an hour of the GPUs that run the model. The numbers above are examples, not prices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.pairs import buckets_of, clusters_of
from apr_plugin.compare.resampling import LEVEL
from apr_plugin.compare.stats import Interval, means, ratio
from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.policies import did_you_mean
from apr_plugin.runs.meter import audio_s
from apr_plugin.runs.opened import Key
from apr_plugin.terminal import one_line, quoted

QUANTITIES = (
    "turns", "frames", "audio_s", "visual_tokens", "audio_tokens", "prompt_tokens", "cached_tokens",
    "completion_tokens", "seconds", "model_s", "media_s", "gpu_s", "usd",
)  # fmt: skip
"""What a question can cost, as `cost_of` explains each."""

Cost = Mapping[str, float | None]
"""By the names of `QUANTITIES`; `None` is unknown."""


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars: by tokens, or by the hour of its GPUs."""

    date: str
    """When it was so, as ISO date."""
    source: str
    """Where it can be read."""
    input: float | None = None
    """A million prompt tokens."""
    cached_input: float | None = None
    """A million prompt tokens that came from a cache; `None` is as `input`."""
    output: float | None = None
    """A million tokens written."""
    gpu_hour: float | None = None
    """An hour of the GPUs that run the model."""


def cost_of(trajectory: Trajectory, price: Price | None = None) -> dict[str, float | None]:
    """What one question cost.

    Args:
        trajectory: The question.
        price: Of the model that answered it.

    Returns:
        By the names of `QUANTITIES`; `None` is unknown. `visual_tokens` are by the rule of the budget; all other tokens
        are the policy's own count, over all turns, and each turn's whole prompt counts. `prompt_tokens` and
        `completion_tokens` are `None` where a turn was not counted. `cached_tokens` and `audio_tokens` are `None` where
        no turn has them, and else leave out turns that don't. `seconds` is the whole time of the question, of which
        `model_s` was spent in the policy and `media_s` decoding; `None` where no time was recorded. An imported
        question lacks what its record lacks (`Imported.absent`). `gpu_s` is the
        engine's own time, prefill and decoding, without the queue; requests that ran at the same time shared the GPU,
        so it is at most that. `usd` is by tokens, with tokens that may have been cached at the full price where that is
        not known; or by the hour, for `gpu_s`, and `model_s` where that is not known.
    """
    usages = [turn.usage for turn in trajectory.turns]
    times, timings = [turn.timings for turn in trajectory.turns], trajectory.timings
    has = trajectory.has
    timed = timings.total_s > 0
    gpu = [None if one.prefill_s is None or one.decode_s is None else one.prefill_s + one.decode_s for one in times]
    cost: dict[str, float | None] = {
        "turns": len(trajectory.turns),
        "frames": trajectory.frames if has(Figure.FRAMES) else None,
        "audio_s": audio_s(trajectory) if has(Figure.AUDIO) else None,
        "visual_tokens": trajectory.visual_tokens if has(Figure.VISUAL_TOKENS) else None,
        "audio_tokens": _reported(usage.audio_tokens for usage in usages),
        "prompt_tokens": _counted(usage.prompt_tokens for usage in usages),
        "cached_tokens": _reported(usage.cached_tokens for usage in usages),
        "completion_tokens": _counted(usage.completion_tokens for usage in usages),
        "seconds": timings.total_s if timed and has(Figure.TOTAL_SECONDS) else None,
        "model_s": timings.model_s if timed and has(Figure.MODEL_SECONDS) else None,
        "media_s": timings.media_s if timed and has(Figure.MEDIA_SECONDS) else None,
        "gpu_s": _counted(gpu),
    }
    cost["usd"] = None if price is None else _usd(cost, price)
    return {name: cost[name] for name in QUANTITIES}


def _counted(values: Iterable[float | None]) -> float | None:
    """The sum, if all are known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None


def _reported(values: Iterable[float | None]) -> float | None:
    """The sum of those that are known, if any is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _usd(cost: Cost, price: Price) -> float | None:
    if price.gpu_hour is not None:
        seconds = cost["model_s"] if cost["gpu_s"] is None else cost["gpu_s"]
        return None if seconds is None else seconds / 3600 * price.gpu_hour
    read, written = cost["prompt_tokens"], cost["completion_tokens"]
    if read is None or written is None or price.input is None or price.output is None:
        return None
    cached = min(read, cost["cached_tokens"] or 0)
    cheap = price.input if price.cached_input is None else price.cached_input
    return ((read - cached) * price.input + cached * cheap + written * price.output) / 1e6


def read_prices(path: str | Path) -> dict[str, Price]:
    """Prices by the name of the model, from a file in the form that this module explains.

    Raises:
        AprError: the file can't be read, or an entry is not a price; names the file, the model and the field.
        MissingExtra: it is YAML, and PyYAML is not installed.
    """
    file = Path(path)
    try:
        text = read_regular(file).decode("utf-8")
    except OSError as error:
        raise AprError(f"{file}: cannot read these prices: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AprError(f"{file}: cannot read these prices: it is not UTF-8") from error
    found = _yaml(file, text) if file.suffix in (".yaml", ".yml") else _json(file, text)
    if not isinstance(found, dict) or not found:
        raise AprError(f"{file}: it must hold an entry for each model, by its name")
    return {str(model): _price(entry, f"{file}, {one_line(str(model), 100)}") for model, entry in found.items()}


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AprError(f"{file}: this is not JSON: {one_line(str(error), 200)}") from error


def _yaml(file: Path, text: str) -> Any:
    require("yaml", "report")
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AprError(f"{file}: this is not YAML: {one_line(str(error), 200)}") from error


_AMOUNTS = ("input", "cached_input", "output", "gpu_hour")


def _price(entry: object, where: str) -> Price:
    if not isinstance(entry, dict):
        raise AprError(f"{where}: {quoted(entry, 60)} is not an entry; it needs date, source, and the prices")
    known = (*_AMOUNTS, "date", "source")
    for name in entry:
        if name not in known:
            raise AprError(
                f"{where}: there is no field {quoted(name, 60)}{did_you_mean(str(name), known)}; the fields are "
                f"{', '.join(known)}"
            )
    amounts: dict[str, float] = {}
    for name in _AMOUNTS:
        amount = entry.get(name)
        if amount is None:
            continue
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not number or not 0 <= amount < 1e12:
            raise AprError(f"{where}: {name}={quoted(amount, 60)}: it must be US dollars, a number of at least 0")
        amounts[name] = float(amount)
    tokens = [name for name in _AMOUNTS[:3] if name in amounts]
    if ("gpu_hour" in amounts) == bool(tokens) or (tokens and not {"input", "output"} <= set(tokens)):
        raise AprError(f"{where}: it needs either input and output (US dollars for a million tokens), or gpu_hour")
    return Price(_date(entry.get("date"), where), _source(entry.get("source"), where), **amounts)


def _date(value: object, where: str) -> str:
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise AprError(f"{where}: date={quoted(value, 60)}: it must say when, as 2026-11-27") from error


def _source(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise AprError(f"{where}: source={quoted(value, 60)}: it must say where the price can be read")
    return value.strip()


def price_of(arm: Arm, prices: Mapping[str, Price]) -> Price | None:
    """The price of an arm's model, by the name in its card; `None` where there is no card or no such price."""
    policy = {} if arm.run is None else arm.run.card.get("policy")
    names = [policy.get(name) for name in ("model", "pretrained")] if isinstance(policy, Mapping) else []
    return next((prices[name] for name in names if isinstance(name, str) and name in prices), None)


@dataclass(frozen=True)
class Row:
    """What one question cost."""

    cost: Cost
    hours: float | None
    """Length of its videos; `None` where it is not known."""


def row_of(trajectory: Trajectory, price: Price | None = None) -> Row:
    """What one question cost, with the length of its videos."""
    seconds = sum(trajectory.video_durations_s) or sum(film.duration_s for film in trajectory.videos)
    known = math.isfinite(seconds) and seconds > 0
    return Row(cost_of(trajectory, price), seconds / 3600 if known else None)


def rows_of(comparison: Comparison, arm: Arm, prices: Mapping[str, Price] | None = None) -> dict[Key, Row]:
    """What each question cost an arm that has trajectories; questions that failed are left out."""
    price = price_of(arm, prices or {})
    found: dict[Key, Row] = {}
    for key in comparison.keys:
        trajectory = arm.trajectory(key)
        if trajectory is not None and not trajectory.stop_reason.failed:
            found[key] = row_of(trajectory, price)
    return found


def costs(
    comparison: Comparison,
    arm: Arm,
    prices: Mapping[str, Price] | None = None,
    *,
    keys: Sequence[Key] | None = None,
    rows: Mapping[Key, Row] | None = None,
) -> dict[str, Interval | None]:
    """The mean cost of a question, with intervals clustered by video.

    Args:
        comparison: The arm's comparison.
        arm: The arm.
        prices: From `read_prices`.
        keys: The questions to count; by default all that are compared.
        rows: From `rows_of`, where they are known already.

    Returns:
        By the names of `QUANTITIES`; `None` where no question has the quantity. `n` of each says how many have it.
    """
    rows = rows_of(comparison, arm, prices) if rows is None else rows
    chosen = [key for key in (comparison.keys if keys is None else keys) if key in rows]
    columns = {name: [rows[key].cost[name] for key in chosen] for name in QUANTITIES}
    return means(columns, clusters_of(comparison, chosen))


def costs_by_bucket(
    comparison: Comparison,
    arm: Arm,
    prices: Mapping[str, Price] | None = None,
    *,
    rows: Mapping[Key, Row] | None = None,
) -> dict[str, dict[str, Interval | None]]:
    """The mean cost of a question in each duration bucket, as `costs` gives it."""
    rows = rows_of(comparison, arm, prices) if rows is None else rows
    return {name: costs(comparison, arm, keys=keys, rows=rows) for name, keys in buckets_of(comparison).items()}


def slopes(
    comparison: Comparison,
    arm: Arm,
    prices: Mapping[str, Price] | None = None,
    *,
    rows: Mapping[Key, Row] | None = None,
) -> dict[str, Interval | None]:
    """By how much each cost grows with an hour of video: least squares, with errors that are robust to clusters.

    The interval is that of t with one degree of freedom less than there are videos; with fewer than three videos there
    is none.

    Returns:
        By the names of `QUANTITIES`; `None` where no question has the quantity, or all videos are of one length.
    """
    rows = rows_of(comparison, arm, prices) if rows is None else rows
    return {name: _slope(comparison, rows, name) for name in QUANTITIES}


def turns_per_hour(
    comparison: Comparison,
    arm: Arm,
    prices: Mapping[str, Price] | None = None,
    *,
    rows: Mapping[Key, Row] | None = None,
) -> Interval | None:
    """All turns over all hours of video, each question's video counted once for the question; `None` without hours."""
    rows = rows_of(comparison, arm, prices) if rows is None else rows
    known = [(key, row.cost["turns"], row.hours) for key, row in rows.items() if row.hours is not None]
    turns = [float(value or 0) for _, value, _ in known]
    hours = [value for _, _, value in known if value is not None]
    return ratio(turns, hours, clusters_of(comparison, [key for key, _, _ in known]))


def _slope(comparison: Comparison, rows: Mapping[Key, Row], name: str) -> Interval | None:
    require("statsmodels", "report")
    from statsmodels.regression.linear_model import OLS  # type: ignore[import-untyped]

    known = [(key, row.hours, row.cost[name]) for key, row in rows.items()]
    points = [(key, hours, value) for key, hours, value in known if hours is not None and value is not None]
    hours = np.array([hours for _, hours, _ in points])
    if len(points) < 2 or not np.ptp(hours) > 1e-9:
        return None
    names = clusters_of(comparison, [key for key, _, _ in points])
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    model = OLS(np.array([value for _, _, value in points], dtype=float), np.column_stack((np.ones(len(hours)), hours)))
    if len(numbers) < 3:
        return Interval(float(model.fit().params[1]), None, None, len(points))
    groups = np.array([numbers[name] for name in names])
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    low, high = (float(bound) for bound in fit.conf_int(alpha=1 - LEVEL)[1])
    bounded = math.isfinite(low) and math.isfinite(high)
    return Interval(float(fit.params[1]), low if bounded else None, high if bounded else None, len(points))
