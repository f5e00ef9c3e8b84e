"""An answer as a cell of the table that VLMEvalKit writes and reads back before it scores."""

from __future__ import annotations

NOTHING = frozenset(
    (
        "", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a", "na", "null",
        "nan", "none", "nat",
    )
)  # fmt: skip
"""What pandas reads back as a missing value, in lower case (`pandas.read_csv`, `na_values`)."""

LONGEST = 32_000
"""Most characters; a cell of a spreadsheet holds 32,767, and what is longer is cut without a word."""


def cell(text: str) -> str:
    """The text in a form that is read back as the same words.

    "None" gets a full stop, because it would be read as no answer at all. A text that begins with "=" gets a space,
    because it would be stored as a formula.
    """
    text = text[:LONGEST]
    if text.strip().lower() in NOTHING:
        return f"{text.strip()}."
    return f" {text}" if text.startswith("=") else text
