"""`write_cards`: a finished run as `card.yaml` (for programs, and for `apr reproduce`) and `card.md` (a page to read).

Keys of `card.yaml`:

| key | what it holds |
|---|---|
| `schema`, `version` | `apr.run-card` and the version of this list |
| `content_digest` | SHA-256 of everything else, as JSON with sorted keys; tells whether the file was edited |
| `made` | when the card was written, UTC |
| `config_hash`, `arm` | name of the configuration; which way of answering |
| `model` | `name` and `revision` as the policy states them; `null` where it states none |
| `policy` | the policy's description of itself |
| `prompt_hash`, `prompts` | hash and texts of the prompts |
| `configuration`, `per_question` | the whole resolved configuration: budget, media, sampling, parsing, wire, seed |
| `decoder` | which library decoded the videos, how frames were picked, its release |
| `versions` | packages that decide pixels and answers, as the run recorded them when it began |
| `environment` | `python`, `hardware` and every installed package, of the machine on which the card was written |
| `seeds` | of the run and of the harness |
| `questions` | counts: `asked`, `answered`, `failed`, `no_answer`, `wrong_form`, `scored`; the same for each task |
| `missing` | questions that failed or have no score, with the reason (`LISTED` at most, the rest counted in `more`) |
| `data` | digest of what was asked, in order of task, split and doc id; digest of the videos' digests; how many |
| `time` | seconds summed over questions; wall-clock seconds of each command of lmms-eval |
| `called` | the command line that wrote the card, where it was given |
| `commands` | what `apr reproduce` runs again: `tasks`, `model_args`, `limit`, `offset`, `repeats`, `seed` |
| | of VLMEvalKit: `harness`, `tasks` (its data), `model_args`, `limit`, `judge`; `other_options` by name alone |
| `harness` | the harness, its release, and what lmms-eval reports of itself |
| `tasks` | each task's `version`, `hash`, `n`, `of`, and the `scores` that lmms-eval reports |
| `answers` | task -> `split/doc_id/repeat` -> the answer; a long one as its SHA-256 |
| `problems` | what is cut off, damaged or missing |

Secrets are left out by name and by form (`cleaning`); no environment variable is read for a card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.report.card_page import page
from apr_plugin.report.cleaning import clean
from apr_plugin.report.machine import hardware, packages
from apr_plugin.runs.arguments import without_arguments
from apr_plugin.runs.opened import Key, Run
from apr_plugin.runs.scores import RESULTS, Evaluation

SCHEMA = "apr.run-card"
VERSION = 1
CARD_YAML, CARD_MD = "card.yaml", "card.md"

LISTED = 200
"""Questions that `missing` lists one by one."""

LONGEST_ANSWER = 200
"""Characters of an answer that is kept as it is."""

_MODEL_KEYS = ("model", "pretrained")
_REVISION_KEYS = ("revision", "weights")


def write_cards(run: Run, folder: Path, *, command: str | None = None) -> tuple[Path, Path]:
    """Write both cards of a run.

    Args:
        run: From `open_run`.
        folder: Where they go; it is made.
        command: The command line that is making them.

    Returns:
        The paths of `card.yaml` and `card.md`.

    Raises:
        AprError: the run has no question, or the files can't be written.
        MissingExtra: pyyaml is not installed.
    """
    data = card_data(run, command=command)
    written = folder / CARD_YAML, folder / CARD_MD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(written, (to_yaml(data), page(data)), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AprError(f"{folder}: cannot write the card there: {error.strerror or error}") from error
    return written


def to_yaml(data: Any) -> str:
    """Plain values as YAML, without anchors and tags.

    Raises:
        MissingExtra: pyyaml is not installed.
    """
    require("yaml", "report")
    import yaml  # type: ignore[import-untyped]

    dumper = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda self, value: True})
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=False, width=120))


def content_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a card's content without its own digest, in hex."""
    rest = {name: value for name, value in data.items() if name != "content_digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def card_data(run: Run, *, command: str | None = None) -> dict[str, Any]:
    """Everything in `card.yaml`, as plain values.

    Raises:
        AprError: the run has no question.
    """
    if not len(run) and not run.without_trajectory:
        raise AprError(f"{run.folder}: the run has no question yet, so there is nothing to write a card of")
    card = run.card
    read = _Read(run)
    results = [(evaluation, _results(evaluation)) for evaluation in run.evaluations]
    configuration = _mapping(card.get("config"))
    policy = _mapping(card.get("policy"))
    versions = _mapping(card.get("versions"))
    media = _mapping(configuration.get("media"))
    data = {
        "schema": SCHEMA,
        "version": VERSION,
        "content_digest": "",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_hash": run.config_hash,
        "arm": configuration.get("arm") or read.arm,
        "model": {
            "name": _first(policy, _MODEL_KEYS) or policy.get("name"),
            "revision": _first(policy, _REVISION_KEYS),
        },
        "policy": policy,
        "prompt_hash": card.get("prompt_hash"),
        "prompts": card.get("prompts") or {},
        "configuration": configuration,
        "per_question": card.get("per_question"),
        "decoder": {"media": media.get("decoder"), "mode": media.get("mode"), "av": versions.get("av")},
        "versions": versions,
        "environment": {**_python(), "hardware": hardware(), "packages": packages()},
        "seeds": {"run": configuration.get("seed"), "harness": _seeds(results)},
        "questions": read.counts(run),
        "missing": read.missing(run),
        "data": read.data,
        "time": {
            **{name: _number(seconds) for name, seconds in read.seconds.items()},
            "evaluations": [
                {"time": one.time, "seconds": _number(found.get("total_evaluation_time_seconds"))}
                for one, found in results
            ],
        },
        "called": command,
        "commands": commands(results),
        "harness": {
            **_harness(results, versions),
            "reported": next(
                (found["lmms_eval_version"] for _, found in results if "lmms_eval_version" in found), None
            ),
        },
        "tasks": _tasks(run, results),
        "answers": read.answers,
        "problems": run.problems,
    }
    cleaned: dict[str, Any] = clean(data)
    return cleaned | {"content_digest": content_digest(cleaned)}


def commands(results: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What was asked of lmms-eval, one entry for each set of options; each task as its newest evaluation asked it."""
    found: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for evaluation, content in results:  # the newest first
        config = _mapping(content.get("config"))
        options = _mapping(config.get("resolved_cli_args"))
        of_vlmeval = _mapping(options.get("apr_vlmeval"))
        tasks = [task for task in _mapping(content.get("configs")) or evaluation.metrics if task not in taken]
        if not tasks or not (of_vlmeval or options.get("tasks") or options.get("model_args")):
            continue  # a run that was imported, or one of VLMEvalKit of an earlier release
        taken.update(tasks)
        if of_vlmeval:
            asked = {name: of_vlmeval.get(name) for name in ("model_args", "limit", "judge", "other_options")}
            one = {"harness": "vlmeval", **asked}
            names = [str(name) for name in of_vlmeval.get("data") or ()]
            found.setdefault(json.dumps(one, sort_keys=True, default=str), {"tasks": [], **one})["tasks"] += names
            continue
        seed = options.get("seed")
        one = {
            "model_args": without_arguments(str(options.get("model_args") or ""), "trajectories", "resume"),
            "limit": options.get("limit"),
            "offset": options.get("offset") or 0,
            "repeats": options.get("repeats") or 1,
            "seed": ",".join(map(str, seed)) if isinstance(seed, list) else seed,
            "own_tasks": len(options.get("include_path") or []) > 1,
        }
        names = _with_groups(tasks, str(options.get("tasks") or "").split(","), _mapping(content.get("group_subtasks")))
        found.setdefault(json.dumps(one, sort_keys=True, default=str), {"tasks": [], **one})["tasks"] += names
    return [{**one, "tasks": sorted(one["tasks"])} for one in found.values()]


def _with_groups(tasks: Sequence[str], asked: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    """The tasks, where those of a group are replaced by the group that was asked for: it has scores of its own."""

    def leaves(name: str, above: tuple[str, ...] = ()) -> set[str]:
        below = parts.get(name)
        if not isinstance(below, list) or not below or name in above:
            return {name}
        return {leaf for one in below for leaf in leaves(str(one), (*above, name))}

    groups = {name: of for name in asked if name in parts and (of := leaves(name)) <= set(tasks)}
    covered = {leaf for of in groups.values() for leaf in of}
    return [*groups, *(task for task in tasks if task not in covered)]


def _harness(
    results: Sequence[tuple[Evaluation, Mapping[str, Any]]], versions: Mapping[str, Any]
) -> dict[str, str | None]:
    """Name and release of the harness that scored the run; other ones than lmms-eval name themselves."""
    for _, content in results:
        named = _mapping(content.get("config")).get("harness")
        if isinstance(named, str) and named:
            name, _, version = named.partition(" ")
            return {"name": name, "version": version or None}
    return {"name": "lmms-eval" if results else None, "version": versions.get("lmms-eval")}


class _Read:
    """What one pass over the trajectories gives."""

    def __init__(self, run: Run) -> None:
        self.arm = ""
        self.answers: dict[str, dict[str, str | None]] = {}
        self.seconds: dict[str, float | None] = {"questions_s": 0.0, "model_s": 0.0, "media_s": 0.0}
        """`None` where a trajectory of another program did not record it."""
        self.states: dict[Key, tuple[str, str]] = {}
        asked: dict[Key, str] = {}
        answers: dict[Key, str | None] = {}
        videos: set[str] = set()
        unknown = 0
        for trajectory in run:
            key = trajectory.question.key
            self.arm = self.arm or trajectory.arm
            self.states[key] = _state(trajectory)
            for name, figure, value in (
                ("questions_s", Figure.TOTAL_SECONDS, trajectory.timings.total_s),
                ("model_s", Figure.MODEL_SECONDS, trajectory.timings.model_s),
                ("media_s", Figure.MEDIA_SECONDS, trajectory.timings.media_s),
            ):
                so_far = self.seconds[name]
                self.seconds[name] = so_far + value if so_far is not None and trajectory.has(figure) else None
            asked[key], answers[key] = trajectory.question_hash, _answer(trajectory.answer)
            digests = [film.digest for film in trajectory.videos]
            videos.update(digest for digest in digests if digest)
            unknown += len(trajectory.question.videos) - sum(map(bool, digests))
        for key in run.without_trajectory:
            self.states[key] = ("missing", "it has a score but no trajectory")
        ordered = sorted(asked, key=_order)
        for task, split, doc_id, repeat in ordered:
            self.answers.setdefault(task, {})[f"{split}/{doc_id}/{repeat}"] = answers[task, split, doc_id, repeat]
        self.data = {
            "questions": len(ordered),
            "questions_sha256": _digest(f"{'/'.join(map(str, key))} {asked[key]}" for key in ordered),
            "videos": len(videos),
            "videos_sha256": _digest(sorted(videos)),
            "videos_without_digest": unknown,
        }

    def counts(self, run: Run) -> dict[str, Any]:
        """How many questions ended how, all together and for each task."""
        by_task: dict[str, dict[str, int]] = {}
        total = dict.fromkeys(("asked", "answered", "failed", "no_answer", "wrong_form", "missing", "scored"), 0)
        for key, (state, _) in self.states.items():
            for counted in (total, by_task.setdefault(key[0], dict.fromkeys(total, 0))):
                counted["asked"] += 1
                counted[state] += 1
                counted["scored"] += key in run.scores and run.scores[key].value is not None
        return {**total, "by_task": dict(sorted(by_task.items()))}

    def missing(self, run: Run) -> dict[str, Any]:
        """Every question that failed, has no trajectory, or has no score."""
        found = []
        reasons: dict[str, int] = {}
        for key in sorted(self.states, key=_order):
            state, why = self.states[key]
            if state not in ("failed", "missing"):
                if not run.scores or key in run.scores:
                    continue
                state, why = "without_score", "the harness logged no score of it"
            reasons[why.partition(":")[0]] = reasons.get(why.partition(":")[0], 0) + 1
            task, split, doc_id, repeat = key
            found.append(
                {"task": task, "split": split, "doc_id": doc_id, "repeat": repeat, "state": state, "why": why[:300]}
            )
        return {"reasons": reasons, "questions": found[:LISTED], "more": max(0, len(found) - LISTED)}


def _state(trajectory: Trajectory) -> tuple[str, str]:
    if trajectory.stop_reason.failed:
        return "failed", f"{trajectory.stop_reason}: {trajectory.stop_detail}"
    if trajectory.answer is None:
        return "no_answer", str(trajectory.stop_reason)
    return ("answered", "") if trajectory.answer_valid else ("wrong_form", str(trajectory.stop_reason))


def _answer(answer: str | None) -> str | None:
    if answer is None or len(answer) <= LONGEST_ANSWER:
        return answer
    return f"sha256:{hashlib.sha256(answer.encode('utf-8', 'replace')).hexdigest()}"


def _tasks(run: Run, results: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for evaluation, content in results:
        counted, versions, hashes = (_mapping(content.get(name)) for name in ("n-samples", "versions", "task_hashes"))
        for task, metrics in evaluation.metrics.items():
            samples = _mapping(counted.get(task))
            one = {
                "version": versions.get(task),
                "hash": hashes.get(task),
                "n": samples.get("effective"),
                "of": samples.get("original"),
                "evaluated": evaluation.time,
                "scores": {name: value for name, value in metrics.items() if name != "alias"},
            }
            found.setdefault(task, one)
    for task in sorted({key[0] for key in run.keys}):
        found.setdefault(task, {"version": None, "hash": None, "n": None, "of": None, "scores": {}})
    return dict(sorted(found.items()))


def _results(evaluation: Evaluation) -> Mapping[str, Any]:
    """The content of its results file; empty where it has none that can be read (`Run.problems` says so)."""
    try:
        found = json.loads(read_regular(evaluation.folder / f"{evaluation.time}{RESULTS}"))
    except (OSError, ValueError, RecursionError):
        return {}
    return _mapping(found)


def _seeds(results: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> dict[str, Any] | None:
    for _, content in results:
        config = _mapping(content.get("config"))
        if config:
            return {name: config.get(name) for name in ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")}
    return None


def _python() -> dict[str, str]:
    import platform

    return {"python": f"{platform.python_implementation()} {platform.python_version()}"}


def _digest(lines: Iterator[str] | Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((value for name in names if isinstance(value := values.get(name), str) and value), None)


def _number(value: Any) -> float | None:
    try:
        return round(float(value), 3)
    except (TypeError, ValueError):
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _order(key: Key) -> tuple[Any, ...]:
    task, split, doc_id, repeat = key
    number = doc_id.isdecimal() and len(doc_id) < 20
    return task, split, (0, int(doc_id), "") if number else (1, 0, doc_id), repeat
