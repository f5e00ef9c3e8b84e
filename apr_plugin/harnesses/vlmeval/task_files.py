"""Our task files, read without lmms-eval: a folder of `tasks/` has a YAML file for each task, and functions.

Only what this package's own files use is read: `include`, groups, `!function`, documents from `process_docs`, one
answer for each question. So a task is written once, and runs under both harnesses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import quoted

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure of a task."""

    name: str
    aggregate: Callable[[Sequence[Any]], Any]
    """The values of the questions that have it -> the figure; `None` where it has none."""
    higher_is_better: bool


@dataclass(frozen=True)
class TaskFile:
    """One task, as its YAML file defines it."""

    name: str
    split: str
    version: str
    process_docs: Callable[[Any], Sequence[Document]]
    doc_to_visual: Callable[[Document], Sequence[Any]]
    doc_to_text: Callable[..., str]
    doc_to_target: Callable[[Document], Any]
    process_results: Callable[[Document, list[Any]], Mapping[str, Any]]
    metrics: tuple[Metric, ...]
    prompt_options: Mapping[str, Any] | None
    """`lmms_eval_specific_kwargs` for any model."""

    def documents(self) -> Sequence[Document]:
        """The questions, as lmms-eval has them; they are read once.

        Raises:
            AprError: the annotations can't be found or read.
        """
        return _documents(self.name)

    def prompt(self, document: Document) -> str:
        """The text that a passive model is shown."""
        return (
            self.doc_to_text(document)
            if self.prompt_options is None
            else self.doc_to_text(document, self.prompt_options)
        )

    def aggregated(self, scored: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The figures of the whole task, from the results of its questions; one that has no value is left out.

        Args:
            scored: What `process_results` returned for each question.
        """
        found: dict[str, float] = {}
        for metric in self.metrics:
            values = [one[metric.name] for one in scored if metric.name in one]
            figure = metric.aggregate(values) if values else None
            if isinstance(figure, int | float):
                found[metric.name] = float(figure)
        return found


@cache
def known() -> dict[str, tuple[str, ...]]:
    """Every task and group of this package -> the tasks that it stands for, sorted."""
    found: dict[str, tuple[str, ...]] = {}
    for path in _files():
        content = _content(path)
        if isinstance(content.get("task"), list):
            found[content["group"]] = tuple(content["task"])
        elif "task" in content:
            found[content["task"]] = (content["task"],)
    return dict(sorted(found.items()))


@cache
def read_task(name: str) -> TaskFile:
    """A task of this package.

    Raises:
        AprError: there is no such task.
    """
    for path in _files():
        content = _content(path)
        if content.get("task") == name:
            return _task(content)
    raise AprError(f"there is no task {quoted(name, 60)}{did_you_mean(name, known())}; list them with: apr tasks")


@cache
def _documents(name: str) -> Sequence[Document]:
    require("loguru", "lmms")  # the tasks report what is missing with it
    return read_task(name).process_docs(None)


def _files() -> Iterator[Path]:
    import apr_plugin.tasks

    yield from sorted(Path(next(iter(apr_plugin.tasks.__path__))).resolve().glob("*/*.yaml"))


def _task(content: Mapping[str, Any]) -> TaskFile:
    target = content["doc_to_target"]
    options = content.get("lmms_eval_specific_kwargs")
    return TaskFile(
        name=content["task"],
        split=content["test_split"],
        version=str(content.get("metadata", {}).get("version", "")),
        process_docs=content["process_docs"],
        doc_to_visual=content["doc_to_visual"],
        doc_to_text=content["doc_to_text"],
        doc_to_target=target if callable(target) else lambda document: document[target],
        process_results=content["process_results"],
        metrics=tuple(
            Metric(one["metric"], _aggregation(one["aggregation"]), bool(one["higher_is_better"]))
            for one in content["metric_list"]
        ),
        prompt_options=None if options is None else dict(options.get("default") or {}),
    )


def _aggregation(value: Any) -> Callable[[Sequence[Any]], Any]:
    if callable(value):
        return value  # type: ignore[no-any-return]
    if value != "mean":
        raise AprError(f"aggregation {quoted(value, 60)}: it must be mean or a !function")
    return lambda values: sum(values) / len(values)


@cache
def _content(path: Path) -> dict[str, Any]:
    """A YAML file with what it includes; a `!function` is imported when the value is read."""
    require("yaml", "vlmeval")
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A loader of its own, because a constructor is added to the class."""

    def function(loader: Any, node: Any) -> Callable[..., Any]:
        return _Function(path.parent.name, loader.construct_scalar(node))

    Loader.add_constructor("!function", function)
    content = yaml.load(path.read_text("utf-8"), Loader)
    included = content.pop("include", None)
    return {**_content(path.parent / included), **content} if included else dict(content)


class _Function:
    """A function that a YAML file names: `utils.score` of the same folder, or a path from the top."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        module, _, attribute = self._name.rpartition(".")
        place = f"apr_plugin.tasks.{self._folder}.{module}" if module == "utils" else module
        return getattr(importlib.import_module(place), attribute)(*arguments, **named)
