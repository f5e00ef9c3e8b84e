"""What VLMEvalKit passes to a model: a list of parts, read into texts, files and our own mark. It is untrusted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.loop.text import printable
from apr_plugin.media.confine import Roots

MARK = "apr"
"""The key of a part under which our data sets name the row (`mark`); other models ignore it."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Heard:
    """One message."""

    prompt: str
    """The texts of the user, in order. The beginning of a reply that some data sets write for the model is left out."""

    system: str
    """The texts with the role `system` of this message alone."""

    films: tuple[str, ...]
    """Paths of videos and sound files, in order."""

    images: tuple[str, ...]
    """Paths of pictures, in order."""

    marked: Mapping[str, str]
    """`dataset` and `index` of the row, and `fault` if the data set could not build the message; else empty."""

    media_root: Roots = None
    """A folder that has to contain every picture."""

    def digest(self) -> str:
        """16 hex digits over what is asked, for a message that does not name its row."""
        content = [self.prompt, self.system, self.films, self.images]
        return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def mark(message: Sequence[Any] | None, **values: str) -> list[dict[str, Any]]:
    """The message with a mark on its first part; without a message, one that only says so.

    Nothing of the row itself is put into the mark, because a row has the right answer.
    """
    nothing: dict[str, Any] = {"type": "text", "value": "(there is no question)"}
    parts = [dict(part) for part in message or ()] or [nothing]
    parts[0][MARK] = values
    return parts


def read_message(message: Any) -> Heard:
    """Read a message in any of VLMEvalKit's forms: a text, a part, or a list of texts and parts.

    Raises:
        ValueError, TypeError, KeyError: it has none of these forms.
    """
    parts = [message] if isinstance(message, str | Mapping) else list(message)
    texts: list[str] = []
    system: list[str] = []
    films: list[str] = []
    images: list[str] = []
    marked: Mapping[str, str] = {}
    for part in parts:
        kind, value, role = _read_part(part)
        if kind in ("video", "audio"):
            films.append(value)
        elif kind == "image":
            images.append(value)
        elif kind != "text":
            raise ValueError(f"a part of the type {kind!r}")
        elif role == "system":
            system.append(value)
        elif role != "assistant":
            texts.append(value)
        if isinstance(part, Mapping) and isinstance(part.get(MARK), Mapping):
            marked = part[MARK]
    return Heard(_joined(texts), _joined(system), tuple(films), tuple(images), marked)


def _read_part(part: Any) -> tuple[str, str, str]:
    """Type, value and role of a part; a bare text that names a file is that file, as in VLMEvalKit."""
    if isinstance(part, str):
        ending = Path(part).suffix.lower() if len(part) < 4096 and "\n" not in part and "\0" not in part else ""
        there = bool(ending) and Path(part).is_file()
        return ("image" if ending in _IMAGES else "video") if there else "text", part, "user"
    if not isinstance(part["value"], str):
        raise TypeError(f"{type(part['value']).__name__} instead of a text or a path")
    return str(part["type"]), part["value"], str(part.get("role") or "user")


def _joined(texts: Sequence[str]) -> str:
    return printable("\n".join(text.strip("\n") for text in texts if text.strip()))
