"""A harness's scores of a run, read from the results and samples files that lmms-eval writes.

The files come from `--output_path` and `--log_samples`; lmms-eval itself is not loaded.

One command of lmms-eval writes `<time>_results.json` and, with `--log_samples`, one `<time>_samples_<task>.jsonl` for
each task, in a folder below its output folder. The results name the run that they belong to
(`config.resolved_cli_args.apr_run`; the model `apr` puts it there).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin.files import check_regular, read_regular
from apr_plugin.loop.text import printable
from apr_plugin.runs.meter import TokensSpent
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.terminal import plain

RESULTS = "_results.json"
SAMPLES = "_samples_"

_MODEL = "apr"
_OURS = "apr_"
_NOT_METRICS = (
    "doc_id",
    "doc",
    "target",
    "input",
    "arguments",
    "resps",
    "filtered_resps",
    "token_counts",
    "doc_hash",
    "input_media",
    "apr_repeat",
)

REPEAT = "apr_repeat"
"""Which repeat of its question a line has the score of, in samples of an imported run; lmms-eval logs the first."""

_REQUEST_FAILED = "[LMMS_EVAL_REQUEST_FAILED"
"""What such a reply begins with (lmms_eval/models/simple/openai.py); the scorer takes it for an answer."""

Say = Callable[[str], None]
"""A callable that takes one sentence about what is wrong with a file."""


@dataclass(frozen=True)
class Score:
    """The harness's score of one answer."""

    value: float | None
    """The score in [0, 1]: a number called `score`, or the only one called `…_score`, which may be inside a mapping.

    It is `None` if the task has neither.
    """

    metrics: Mapping[str, float]
    """Every number that the task's scorer returned, by its name."""

    buckets: tuple[str, ...]
    """The groups in which the question counts, the duration's group first; empty if the task has none."""

    target: str | None
    """The right answer as the task logs it."""

    answered: bool
    """Whether an answer was returned to the scorer."""

    tokens: TokensSpent | None
    """Tokens of the answer that was scored, if they are known."""

    scored: int
    """The number of answers that the scorer was given."""

    evaluation: str
    """The time in the name of its file."""

    repeat: int = 0
    """Which answer to its question it is the score of (`REPEAT`)."""

    request_failed: bool = False
    """Whether the reply is the text that lmms-eval's API models put in the place of a request that failed."""


@dataclass(frozen=True)
class Evaluation:
    """One command of lmms-eval, described by the files that it wrote."""

    time: str
    """When it began, as lmms-eval writes it into the files' names: `20261127_094501`.

    Later times sort after earlier ones.
    """

    folder: Path
    """Where the files are."""

    config_hash: str | None = None
    """The configuration of the run that it evaluated; `None` if its results don't say (or there are none)."""

    run_folder: Path | None = None
    """Where the trajectories of that run were."""

    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Task -> metric -> what lmms-eval reports for the whole task."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Task -> its version, as its YAML has it."""

    asked: Mapping[str, int] = field(default_factory=dict)
    """Task -> how many of its questions were asked."""

    splits: Mapping[str, str] = field(default_factory=dict)
    """Task -> the split of its questions."""

    voted: frozenset[str] = frozenset()
    """Tasks that asked each question several times (`--repeats`) and have their own filters.

    Such a filter may make one answer from several.
    """

    samples: Mapping[str, Path] = field(default_factory=dict)
    """Task -> its file of scored questions."""

    def is_of_first(self, task: str, score: Score) -> bool:
        """Whether a score belongs only to the first answer to its question, which is the one that lmms-eval takes."""
        return score.scored == 1 and task not in self.voted


def find_evaluations(folder: Path, say: Say, model: str = _MODEL) -> list[Evaluation]:
    """Every evaluation of a model of lmms-eval with its files in a folder or below it, the newest first."""
    results: dict[tuple[Path, str], Path] = {}
    samples: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in sorted(folder.rglob(f"*{RESULTS}")):
        results[path.parent, path.name.removesuffix(RESULTS)] = path
    for path in sorted(folder.rglob(f"*{SAMPLES}*.jsonl")):
        time, _, task = path.stem.partition(SAMPLES)
        samples.setdefault((path.parent, time), {})[task] = path
    found = []
    for place in results.keys() | samples.keys():
        read = _read_results(results[place], say, model) if place in results else {}
        if read is None:
            continue
        found.append(Evaluation(time=place[1], folder=place[0], samples=samples.get(place, {}), **read))
    return sorted(found, key=lambda evaluation: (evaluation.time, str(evaluation.folder)), reverse=True)


def _read_results(path: Path, say: Say, model: str) -> dict[str, Any] | None:
    """Fields of `Evaluation`; `None` where the results are another model's."""
    try:
        found = json.loads(read_regular(path))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        say(f"{path}: cannot read these results: {getattr(error, 'strerror', None) or error}")
        return {}
    config = _mapping(found.get("config"))
    if config.get("model", model) != model:
        return None
    run = _mapping(_mapping(config.get("resolved_cli_args")).get("apr_run"))
    tasks = {task: _mapping(config) for task, config in _mapping(found.get("configs")).items()}
    config_hash, folder = run.get("config_hash"), run.get("folder")
    return {
        "config_hash": config_hash if isinstance(config_hash, str) else None,
        "run_folder": Path(folder) if isinstance(folder, str) and "\0" not in folder else None,
        "metrics": {task: _numbers(values) for task, values in _mapping(found.get("results")).items()},
        "versions": {task: str(version) for task, version in _mapping(found.get("versions")).items()},
        "asked": {
            task: int(effective)
            for task, counts in _mapping(found.get("n-samples")).items()
            if isinstance(effective := _mapping(counts).get("effective"), int)
        },
        "splits": {
            task: split
            for task, config in tasks.items()
            if isinstance(split := config.get("test_split") or config.get("validation_split"), str)
        },
        "voted": frozenset(
            task for task, config in tasks.items() if config.get("filter_list") and config.get("repeats", 1) != 1
        ),
    }


def read_samples(path: Path, say: Say) -> Iterator[tuple[str, Score]]:
    """The doc id and score of every line of a samples file, one at a time.

    A line that can't be read is reported and left out.
    """
    time, _, task = path.stem.partition(SAMPLES)
    try:
        check_regular(path)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if not line.endswith(b"\n"):
                    say(
                        f"{path}, line {number}: its end is missing (lmms-eval was stopped while it wrote, or is "
                        "still writing); left out"
                    )
                    continue
                try:
                    row = json.loads(line)
                    yield printable(str(row["doc_id"])), _score(row, task, time)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    say(
                        f"{path}, line {number}: not a sample of lmms-eval ({type(error).__name__}: "
                        f"{plain(str(error), 200)}); left out"
                    )
    except OSError as error:
        say(f"{path}: cannot read these samples: {error.strerror or error}")


def _score(row: dict[str, Any], task: str, time: str) -> Score:
    replies = row["filtered_resps"]
    replies = replies if isinstance(replies, list) else [replies]
    metrics = {name: value for name, value in row.items() if name not in _NOT_METRICS}
    target = row.get("target")
    return Score(
        value=_value(metrics),
        metrics=_numbers(metrics),
        buckets=_buckets(metrics, task),
        target=None if target is None else printable(str(target)),
        answered=any(reply != NO_ANSWER for reply in replies),
        tokens=_tokens(row.get("token_counts")),
        scored=max(1, len(replies)),
        evaluation=time,
        repeat=row[REPEAT] if isinstance(row.get(REPEAT), int) else 0,
        request_failed=any(isinstance(reply, str) and reply.startswith(_REQUEST_FAILED) for reply in replies),
    )


def _value(metrics: Mapping[str, Any]) -> float | None:
    found = (
        [metrics["score"]]
        if "score" in metrics
        else [value for name, value in metrics.items() if name.endswith("_score")]
    )
    numbers = [
        number
        for value in found
        if (number := _number(value.get("score") if isinstance(value, dict) else value)) is not None
    ]
    return numbers[0] if len(numbers) == 1 and 0 <= numbers[0] <= 1 else None


def _buckets(metrics: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """The groups of a question.

    Our own tasks name them in their metrics (`n_0-20min`, in needle `acc_10m` or `miou_10m`); lmms-eval's tasks keep a
    `duration` within a metric.
    """
    if task.startswith(_OURS):
        counted = [name.removeprefix("n_") for name in metrics if name.startswith("n_") and name != "n_present"]
        return tuple(counted or [name.partition("_")[2] for name in metrics if name.startswith(("acc_", "miou_"))])
    within = [value for value in metrics.values() if isinstance(value, dict)]
    named = [
        value[name]
        for value in within
        for name in ("duration", "duration_group", "bucket")
        if isinstance(value.get(name), str)
    ]
    return tuple(dict.fromkeys(named))


def _tokens(counts: object) -> TokensSpent | None:
    if not isinstance(counts, Sequence) or len(counts) != 1:
        return None
    found = _mapping(counts[0])
    read, written = found.get("input_tokens"), found.get("output_tokens")
    return TokensSpent(read, written) if isinstance(read, int) and isinstance(written, int) else None


def _numbers(values: object) -> dict[str, float]:
    return {name: number for name, value in _mapping(values).items() if (number := _number(value)) is not None}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
