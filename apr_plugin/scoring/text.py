"""Where in a reply the answer stands. Pure functions."""

from __future__ import annotations


def answer_part(text: str) -> str:
    """What stands after the last `</think>`, and of that what the last `<answer>` holds; the text itself where there are no such marks."""
    text = text.rpartition("</think>")[2]
    before, mark, inside = text.rpartition("<answer>")
    return (inside.partition("</answer>")[0] if mark else before + inside).strip()
