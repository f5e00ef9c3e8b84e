"""VLMEvalKit's model `apr`: it turns messages into episodes, and answers into the text that each scorer reads.

It is a `BaseModel` and not a `BaseAPI`: that one keeps the system prompts of earlier samples and shows them to later
ones (`vlmeval/api/base.py`), and drops what it can't name of a part. `is_api` makes VLMEvalKit ask several questions at
once.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

from vlmeval.vlm.base import BaseModel

from apr_plugin.harnesses.replies import reply_of
from apr_plugin.harnesses.vlmeval.asked import read_request
from apr_plugin.harnesses.vlmeval.cells import cell
from apr_plugin.harnesses.vlmeval.session import Session
from apr_plugin.scoring.text import NO_ANSWER

_log = logging.getLogger(__name__)

SESSIONS: dict[str, Session] = {}
"""The sessions of this process, by their arguments: instances with the same arguments share one."""

_MAKING = threading.Lock()


def session_of(arguments: Mapping[str, Any]) -> Session:
    """The session of these model_args, made when it is first asked for.

    Raises:
        AprError: an argument is missing, unknown, or has a bad value.
    """
    key = json.dumps(arguments, sort_keys=True, default=str)
    with _MAKING:
        if key not in SESSIONS:
            SESSIONS[key] = Session(arguments)
        return SESSIONS[key]


class ActivePerception(BaseModel):  # type: ignore[misc]
    """The `apr` model. Its arguments are those of lmms-eval's `--model_args` (docs/lmms-eval.md)."""

    is_api = True
    INTERLEAVE = True
    VIDEO_LLM = True
    """So that data sets pass the path of the video and not frames of it."""
    allowed_types = ("text", "image", "video", "audio")

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.session = session_of(arguments)

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """Answer one message. It never raises, and never returns an empty text.

        VLMEvalKit's local mode drops the whole data set on an exception, and its API mode then waits for ever.
        """
        try:
            settings = self.session.settings
            asked = read_request(message, str(dataset or "vlmeval"), settings.config.media.root)
            trajectory = self.session.answer(asked.asking)
            if trajectory is None:
                return NO_ANSWER
            return cell(reply_of(trajectory, asked.write, strict=settings.config.parsing == "strict"))
        except Exception:  # noqa: BLE001 - nothing may leave this method
            _log.exception("apr: a question of %s", dataset)
            return NO_ANSWER

    def generate_inner(self, message: Any, dataset: str | None = None) -> str:
        """Answer one message, like `generate`."""
        return self.generate(message, dataset)
