"""Figures that others published, each with its source.

They are data, in `results/published/BENCHMARK.json`, and were not measured here.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from apr_plugin.errors import AprError


class PublishedScore(BaseModel):
    """One figure of one paper, page or table."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    system: str = Field(min_length=1)
    """The model, and the agent around it if there is one."""

    benchmark: str = Field(min_length=1)
    """The benchmark: the name of the file and, if we have one, of the task without `apr_`."""

    metric: str = Field(min_length=1)
    """What was measured, with its unit if it isn't a count: `accuracy (%)`, `R@1, hull IoU 0.5 (%)`."""

    value: float = Field(allow_inf_nan=False, ge=0)
    """The figure as printed."""

    frames: float | None = Field(gt=0)
    """Frames shown for each question, on average; `None` if it isn't stated, or isn't one number."""

    source: str = Field(min_length=1)
    """Where the figure is printed."""

    note: str
    """What a comparison needs to know: kind of system, budget, split, doubts about the figure."""


@cache
def benchmarks() -> tuple[str, ...]:
    """The benchmarks with published figures, sorted."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json")))


def published(benchmark: str) -> list[PublishedScore]:
    """The published figures of one benchmark, metric by metric, the best first.

    Raises:
        AprError: there are none; the message lists the benchmarks and the one that was probably meant.
    """
    name = benchmark.strip().lower().replace("-", "_").removeprefix("apr_")
    if name not in benchmarks():
        close = difflib.get_close_matches(name, benchmarks(), n=1)
        meant = f"; did you mean {close[0]}?" if close else "."
        raise AprError(f"no published figures of '{benchmark}'{meant} There are: {', '.join(benchmarks())}")
    return TypeAdapter(list[PublishedScore]).validate_json((_folder() / f"{name}.json").read_bytes())


def _folder() -> Traversable:
    return files("apr_plugin.results") / "published"
