"""What a teacher must share with its student: words, ends of turns, and everything that the student perceives."""

from __future__ import annotations

from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.student import Student

SHOWN = 3
"""Tokens that a message names."""


def check_teacher(teacher: Student, student: Student) -> None:
    """Compare the tokens of a teacher and its student.

    The teacher reads the same purged prompts with its own processor: its own chat template, placeholders, patches and
    positions. So it may be of another family. What the student writes must mean the same to both: every token but the
    placeholders of media has the same number in both tokenizers, and a turn ends with the same one.

    Raises:
        RecipeError: they differ; the message says where.
    """
    # Placeholders have other names in other families; what has the number of one is written by neither.
    never = {*teacher.encoder.never_written, *student.encoder.never_written}
    theirs, own = (
        {token: number for token, number in one.tokenizer.get_vocab().items() if number not in never}
        for one in (teacher, student)
    )
    differ = sorted(token for token in theirs.keys() | own.keys() if theirs.get(token) != own.get(token))
    if differ:
        shown = ", ".join(f"{token!r} ({theirs.get(token)} and {own.get(token)})" for token in differ[:SHOWN])
        raise RecipeError(
            f"teacher: {teacher.name} has another tokenizer than the student {student.name}: {len(differ):,} tokens "
            f"differ, such as {shown}; take a teacher with the student's tokenizer"
        )
    if teacher.end != student.end:
        raise RecipeError(
            f"teacher: {teacher.name} ends a turn with token {teacher.end}, and the student {student.name} with "
            f"{student.end}"
        )
    if lacks := student.family.modalities - teacher.family.modalities:
        raise RecipeError(
            f"teacher: {teacher.name} ({teacher.family.title}) can't perceive {', '.join(sorted(lacks))}, which the "
            f"student's prompts may have"
        )
    if teacher.context_tokens < student.context_tokens:
        raise RecipeError(
            f"teacher: {teacher.name} reads {teacher.context_tokens:,} tokens, and the student {student.name} "
            f"{student.context_tokens:,}; lower student.context_tokens"
        )
    if teacher.opened != student.opened:
        raise RecipeError(
            f"teacher: the chat template of {teacher.name} begins a turn with {teacher.opened!r}, and that of the "
            f"student with {student.opened!r}; a turn would not continue the same text"
        )
