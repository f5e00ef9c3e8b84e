"""What is alike in every task when lmms-eval calls it: the medium of a question, and the text of a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apr_plugin.harnesses.lmms_eval.ending import NO_ANSWER
from apr_plugin.tasks.common.rows import Row, check_readable


def doc_to_visual(doc: Row) -> list[str]:
    """The paths of a question's videos. For YAML: `!function apr_plugin.tasks.common.doc_to_visual`.

    Raises:
        AprError: the row can't be read.
    """
    check_readable(doc)
    return list(doc["apr_videos"])


def reply(results: Sequence[Any]) -> str:
    """The text of a model's reply; empty where there is no answer at all, for which no scorer may guess."""
    text = "" if not results or results[0] is None else str(results[0])
    return "" if text.strip() in ("", NO_ANSWER) else text
