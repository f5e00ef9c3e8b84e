"""Which reader a task has: the registry, and one call that never fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from apr_plugin.harnesses.readers.prompt import read_prompt
from apr_plugin.harnesses.readers.reading import DocError, Reader, Reading

OURS = "apr_"
"""The prefix of the names of this package's tasks."""

OWN = "task"
"""The name of the reader for a task that defines itself what its rows ask."""

_READERS: dict[str, tuple[str, Reader]] = {}
"""Pattern on the task name -> the reader's name and the reader."""


def register_reader(*patterns: str) -> Callable[[Reader], Reader]:
    """Register a reader for the tasks that match a pattern; its name is the function's without `read_`.

    Args:
        patterns: Task names, or fnmatch patterns on them ("mvbench_*").

    Raises:
        ValueError: A pattern already has a reader.
    """

    def register(reader: Reader) -> Reader:
        name = getattr(reader, "__name__", type(reader).__name__).removeprefix("read_")
        for pattern in patterns:
            if pattern in _READERS:
                raise ValueError(f"task pattern {pattern!r} already has the reader {_READERS[pattern][0]!r}")
            _READERS[pattern] = (name, reader)
        return reader

    return register


def find_reader(task: str) -> tuple[str, Reader]:
    """The reader of a task and its name, else `("prompt", read_prompt)`.

    An exact name beats a pattern; of two patterns the one with more literal characters wins. A task of this package
    defines itself what its rows ask (`Source.question_of`), or corresponds to one of lmms-eval's ("apr_videomme") and
    is read like that one.
    """
    if task in _READERS:
        return _READERS[task]
    if (reader := _own_reader(task)) is not None:
        return OWN, reader
    matching = [pattern for pattern in _READERS if fnmatchcase(task, pattern)]
    if not matching:
        return find_reader(task.removeprefix(OURS)) if task.startswith(OURS) else ("prompt", read_prompt)
    return _READERS[max(matching, key=lambda pattern: (len(pattern.replace("*", "").replace("?", "")), pattern))]


def _own_reader(task: str) -> Reader | None:
    """The reader that a task of this package defines for its own questions."""
    if not task.startswith(OURS):
        return None
    from apr_plugin.tasks.common.catalogue import sources

    source = sources().get(task)
    if source is None or source.question_of is None:
        return None
    question_of, write = source.question_of, source.write

    def reader(doc: Mapping[str, Any], prompt: str) -> Reading:
        asked = question_of(doc)
        return Reading(
            text=asked.text, kind=asked.kind, options=asked.options, answer_hint=asked.answer_hint, write=write
        )

    return reader


def known_tasks() -> list[tuple[str, str]]:
    """Every registered pattern with its reader's name, sorted."""
    return sorted((pattern, name) for pattern, (name, _) in _READERS.items())


def read(task: str, doc: Mapping[str, Any], prompt: str) -> tuple[str, Reading]:
    """Read a request with the task's reader, or from the prompt if the doc does not fit it; this never raises.

    Args:
        task: The task's name in the harness.
        doc: The raw document.
        prompt: The prompt as the harness would show it.

    Returns:
        The reader's name for the record, with the reason if the doc did not fit: `prompt (videomme reader: no column
        'options')`.
    """
    name, reader = find_reader(task)
    try:
        return name, reader(doc, prompt)
    except DocError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the doc comes from others; the prompt can still be read
        reason = f"{type(error).__name__}: {error}"
    return f"prompt ({name} reader: {reason})", read_prompt(doc, prompt)
