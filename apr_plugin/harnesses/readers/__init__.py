"""Readers: each turns a harness's request (raw doc, prompt) into a question, and the answer into text for the scorer.

Scorers misread sentences (one reads "Based on …" as B, another reads "A man walks" as A). So a reader returns the
shortest text that the task's own scorer reads correctly. No reader looks at a column that contains the right answer.
The table of tasks is in `docs/readers.md`.
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
