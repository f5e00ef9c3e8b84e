"""Readers: a harness request (raw doc, prompt) becomes a question, and its answer the text that the task's own scorer reads right.

Scorers mis-parse sentences ("Based on …" is a B to one, "A man walks" an A to another), so the shortest text that each
reads right is returned. No reader looks at a column that contains the right answer. The table of tasks is in
`docs/readers.md`.
"""

from apr_plugin.harnesses.readers import mcq, other  # noqa: F401 - importing them registers their readers
from apr_plugin.harnesses.readers.prompt import read_prompt
from apr_plugin.harnesses.readers.reading import DocError, Reader, Reading, column
from apr_plugin.harnesses.readers.registry import find_reader, known_tasks, read, register_reader

__all__ = [
    "DocError",
    "Reader",
    "Reading",
    "column",
    "find_reader",
    "known_tasks",
    "read",
    "read_prompt",
    "register_reader",
]
