"""Runs task folders in the real lmms-eval with the real model `apr`, on a small data set of the same schema.

bench = TaskBench(tmp_path, monkeypatch)
bench.place(SOURCE, [rows of the first file, ...], {"data/a.mp4": 6.0})
results = bench.run("apr_videomme", {"What colour is it?": "B", "How many?": FAILS})
results["apr_videomme"]["acc_short"]
"""

from __future__ import annotations

import csv
import functools
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from apr_testing import make_video_file

import apr_plugin.tasks
from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.policies import POLICIES
from apr_plugin.scoring.truth import score
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.lmms import docs

TASKS = Path(next(iter(apr_plugin.tasks.__path__))).resolve()

FAILS = None
"""In place of an answer: the policy is not available for this question."""


class Knows(PolicyDefaults):
    """A policy that looks at one frame of the first video, then answers what a file says for the question.

    Args:
        answers: A JSON file: words of a question -> its answer, or null if the policy has to fail. The longest matching
            words count.
    """

    name = "knows"

    def __init__(self, answers: str) -> None:
        self.answers: dict[str, str | None] = json.loads(Path(answers).read_text("utf-8"))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        user = next(message for message in prompt.messages if message.role == "user")
        words = max((words for words in self.answers if words in user.text), key=len, default=None)
        assert words is not None, f"the test has no answer for: {user.text}"
        answer = self.answers[words]
        if answer is None:
            raise PolicyUnavailable("the test wants it to fail")
        first = not prompt.final and not any(message.role == "assistant" for message in prompt.messages)
        action: dict[str, Any] = (
            {"type": "get_frames", "start": 0, "end": 1, "num": 1} if first else {"type": "answer", "content": answer}
        )
        return Generation(json.dumps({"observation": "seen", "think": "so", "confidence": 0.5, "action": action}))

    def describe(self) -> dict[str, Any]:
        return self.answers


@functools.cache
def _manager() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager("ERROR", include_path=str(TASKS), include_defaults=False, model_name="apr")


class TaskBench:
    """A separate data folder, and runs on it; nothing is downloaded from the hub."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.data = root / "data"
        self.hub = root / "hub"
        self.runs = 0
        self._films: dict[float, Path] = {}
        for name, value in {
            "APR_DATA": self.data,
            "APR_HOME": root / "home",
            "HF_HOME": self.hub,
            "HF_HUB_OFFLINE": 1,
        }.items():
            patch.setenv(name, str(value))
        patch.setitem(POLICIES, "knows", f"{__name__}:Knows")

    def film(self, seconds: float, path: Path | None = None) -> Path:
        """A real video of that length in whole seconds, at `path` or anywhere.

        It has a picture every second or, if it is long, every minute.
        """
        if seconds not in self._films:
            film, step = self.root / f"film_{seconds:g}.mp4", 60 if seconds > 120 else 1
            shown = list(range(0, round(seconds), step))
            self._films[seconds] = make_video_file(
                film,
                frames=len(shown),
                fps=1,
                size=(64, 32),
                pts=shown,
                last_duration=round(seconds) - shown[-1],
                gop=10,
            )
        if path is None:
            return self._films[seconds]
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self._films[seconds], path))

    def place(self, source: Any, contents: Sequence[Any], videos: Mapping[str, float] | None = None) -> Path:
        """Write a source's annotation files, in their order, and its videos (official name -> seconds).

        Returns the source's folder.
        """
        home = self.data / source.folder
        for file, content in zip(source.files, contents, strict=True):
            write(home / file.name, content)
        for name, seconds in (videos or {}).items():
            self.film(seconds, home / "videos" / name)
        return home

    def run(self, tasks: str, answers: Mapping[str, str | None], arguments: str = "", **more: Any) -> dict[str, Any]:
        """Run lmms-eval's own `simple_evaluate`.

        Args:
            tasks: Names, comma-separated.
            answers: The answers of `Knows`.
            arguments: More model_args, each with a comma before it.
            more: More arguments of `simple_evaluate`.

        Returns:
            Task -> metric -> value, as in results.json but without the filter's name (`acc_short`,
            `acc_short_stderr_clt`); `samples` has the logged samples of each task in order of their documents,
            `trajectories` the run's folder, and `raw` everything.
        """
        from lmms_eval.evaluator import simple_evaluate

        self.runs += 1
        told = self.root / f"answers_{self.runs}.json"
        told.write_text(json.dumps(answers), "utf-8")
        folder = self.root / f"run_{self.runs}"
        model_args = f"policy=knows,answers={told},trajectories={folder},concurrency=2{arguments}"
        raw: dict[str, Any] = simple_evaluate(
            model="apr",
            model_args=model_args,
            tasks=tasks.split(","),
            task_manager=_manager(),
            log_samples=True,
            verbosity="ERROR",
            **more,
        )
        results: dict[str, Any] = {
            task: {name.removesuffix(",none"): value for name, value in numbers.items()}
            for task, numbers in raw["results"].items()
        }
        samples = {task: sorted(logged, key=lambda sample: sample["doc_id"]) for task, logged in raw["samples"].items()}
        return results | {"samples": samples, "trajectories": folder, "raw": raw}


def trajectories(folder: Path) -> dict[tuple[str, str], Trajectory]:
    """Every trajectory of a run, by task and doc id."""
    found = (trajectory for path in sorted(folder.rglob("*.jsonl")) for trajectory in Trajectory.iterate(path))
    return {(trajectory.question.task, trajectory.question.doc_id): trajectory for trajectory in found}


def check_truths(results: Mapping[str, Any], *tasks: str) -> None:
    """Check that the score of every answer by its row's truth is the one that lmms-eval computed; some are right.

    Args:
        results: The return value of `TaskBench.run`.
        tasks: The tasks to check.
    """
    answered = trajectories(results["trajectories"])
    scores = []
    for task in tasks:
        source = sources()[task]
        for sample in results["samples"][task]:
            trajectory, truth = answered[task, str(sample["doc_id"])], source.truth(sample["doc"])
            assert truth is not None
            scores.append(score(trajectory.answer, truth, trajectory.question.kind, source.rules))
            assert scores[-1] == pytest.approx(sample["score"], abs=1e-6), (
                task,
                sample["doc_id"],
                trajectory.answer,
                truth,
            )
    assert {0.0, 1.0} <= set(scores)


def counted(source: Any, numbers: Mapping[str, Any]) -> int:
    """The number of buckets of a source that are in its results.

    Each must have its mean, count and standard error, and the counts are whole.

    Args:
        source: The task's source.
        numbers: Its results, from `TaskBench.run`.
    """
    found = [name for name in (*source.buckets, "other") if f"n_{name}" in numbers]
    for name in found:
        mean = f"{source.prefixes.get(name, source.prefix)}_{name}"
        assert 0 <= numbers[mean] <= 1 and 1 <= numbers[f"n_{name}"] <= numbers["n"], name
        error = numbers[f"{mean}_stderr_clt"]
        assert error == "N/A" or error >= 0 if numbers[f"n_{name}"] == 1 else error >= 0, (name, error)
    return len(found)


def write(path: Path, content: Any) -> Path:
    """Write rows in the format of the path's suffix; text and bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(content)), path)
    else:
        path.write_text(json.dumps(content), "utf-8")
    return path


POISONS: list[Any] = [
    None,
    10**30,
    -(10**30),
    float("nan"),
    float("inf"),
    True,
    7,
    2.5,
    "",
    "\ud800",
    "odd",
    [],
    [["odd"]],
    {},
    {"odd": {"odd": [1, "a"]}},
]
"""Values that may be there instead of the right one."""


def spoiled(item: Any, poisons: Sequence[Any] = POISONS) -> list[Any]:
    """Copies of a part of a file of annotations, each with one change at any depth.

    One value is replaced or removed, or one is added.
    """
    found: list[Any] = list(poisons)
    if isinstance(item, dict):
        for name, value in item.items():
            found += [{**item, name: other} for other in spoiled(value, poisons)]
            found.append({key: kept for key, kept in item.items() if key != name})
        found += [{**item, "more": poison} for poison in poisons]
    elif isinstance(item, list):
        for at, value in enumerate(item):
            found += [[*item[:at], other, *item[at + 1 :]] for other in spoiled(value, poisons)]
            found.append(item[:at] + item[at + 1 :])
    return found


def check_spoiled(bench: TaskBench, source: Any, contents: Sequence[Any], poisons: Sequence[Any] = POISONS) -> None:
    """Every way of damaging the first row of a task affects that row alone.

    All rows are loaded, asked and scored as lmms-eval does it.
    """
    first = contents[0]
    filled: Any
    if isinstance(first, str):
        line, *_ = first.splitlines()
        odd = [
            line[:at] + other + line[at + 1 :]
            for at in range(len(line))
            for other in ("", " ", "#", "nan", "1e999", "x")
        ]
        filled = "\n".join([*odd, first])
    elif isinstance(first, dict):
        name, part = next(iter(first.items()))
        odd = spoiled(part, poisons)
        filled = (
            {f"odd{n}{name}": other for n, other in enumerate(odd)}
            | {f"{n}{name}": part for n in range(len(odd))}
            | first
        )
    else:
        form = source.files[0].name.rpartition(".")[2]
        odd = [
            other
            for other in spoiled(first[0], poisons)
            if form[:4] == "json" or (isinstance(other, dict) and (form != "csv" or {*other} <= {*first[0]}))
        ]
        filled = [first[0], *odd, *[first[0]] * len(odd), *first]
    before = bench.place(source, contents) and docs(source)
    bench.place(source, [filled, *contents[1:]])
    task = _task(source.task)
    asked, n, all_numbers = list(task.test_docs()), 0, defaultdict(list)
    for doc in asked:
        assert isinstance(task.doc_to_text(doc), str)
        task.doc_to_target(doc)
        numbers = task.process_results(doc, [""])
        assert numbers["score"] == 0 or not doc.get("apr_unreadable")
        assert all(-1e9 < value < 1e9 for value in numbers.values() if isinstance(value, int | float)), (doc, numbers)
        for name, value in numbers.items():
            all_numbers[name].append(value)
        try:
            task.doc_to_visual(doc)
        except AprError as error:
            assert doc["apr_unreadable"] in str(error)
            n += 1
        else:
            assert not doc.get("apr_unreadable")
    assert 0 < n < len(asked) == len(all_numbers["score"])
    for name, values in all_numbers.items():
        if name in task.aggregation():
            task.aggregation()[name](values)
    for one, doc in zip(before, asked[-len(before) :], strict=True):
        assert {name: doc.get(name) for name in one if name != "index"} == {
            name: value for name, value in one.items() if name != "index"
        }


def _task(name: str) -> Any:
    from lmms_eval.tasks import get_task_dict

    return get_task_dict([name], _manager())[name]
