"""Files that requests bring along: private, within a limit, and deleted when their request ends."""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from apr_plugin.harnesses.serve.limits import MIB
from apr_plugin.harnesses.serve.refused import Refused, malformed
from apr_plugin.media.pool import POOL

_BLANK = re.compile(r"\s+")
_FOLDERS = re.compile(r"media_root=[^;\"]*")
"""The folders in the words of `media.confine`."""
_ENDINGS = {"quicktime": "mov", "x-matroska": "mkv", "mpeg": "mp3", "x-wav": "wav", "x-msvideo": "avi", "jpeg": "jpg"}
"""Endings of types that are not named like their files; libav looks at one only if the content does not tell."""


class Uploads:
    """The folder of all uploads of a server; nobody else may read it. A context manager that deletes it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="apr-serve-")).resolve()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        POOL.close_gone()


class Received:
    """The files of one request.

    Args:
        folder: The request's own folder; it is made with the first file.
        most_bytes: The limit for all files together, decoded.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self.bytes = 0
        self.names: dict[str, str] = {}
        """What a client is told in place of each path."""

    def keep(self, encoded: str, ending: str, param: str) -> str:
        """Decode a file, write it, and return its path.

        Its name is a digest of its content, so that two requests with the same file ask the same question.

        Raises:
            Refused: it is not base64, it is empty, or the files are too large.
        """
        if _BLANK.search(encoded[:100]) or encoded[-2:].isspace():
            encoded = _BLANK.sub("", encoded)
        if self.bytes + len(encoded) * 3 // 4 > self.most_bytes + 2:
            raise too_large(self.most_bytes)
        try:
            data = binascii.a2b_base64(encoded, strict_mode=True)
        except (binascii.Error, ValueError) as error:  # a ValueError for characters that are not ASCII
            raise malformed(f"{param}: not base64: {error}", param, "invalid_base64") from None
        if not data:
            raise malformed(f"{param}: the file is empty", param, "media_unreadable")
        self.bytes += len(data)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{hashlib.sha256(data).hexdigest()[:16]}.{ending or 'bin'}"
        path = self.folder / name
        if str(path) not in self.names:
            self.names[str(path)] = f"upload-{len(self.names) + 1}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
        return str(path)

    def told(self, text: str) -> str:
        """The text for a client: without paths of this server that the client does not know."""
        for path, name in self.names.items():
            text = text.replace(path, name)
        return _FOLDERS.sub("the allowed folders (--root)", text)

    def delete(self) -> None:
        """Delete the files."""
        if self.names:
            shutil.rmtree(self.folder, ignore_errors=True)
            POOL.close_gone()


def ending_of(mime: str) -> str:
    """The usual ending of files of a type; empty if it is not plain."""
    kind, _, name = mime.partition("/")
    if kind not in ("video", "audio", "image"):
        return ""
    name = _ENDINGS.get(name, name) if (kind, name) != ("video", "mpeg") else "mpg"
    return name if re.fullmatch(r"[a-z0-9]{1,8}", name) else ""


def too_large(most_bytes: int) -> Refused:
    """The error for files over the limit."""
    return Refused(
        413,
        f"the files of a request may have {most_bytes / MIB:g} MiB together, decoded (--max-upload-mib); put "
        "larger ones under an allowed folder (--root) and name them as file:///PATH",
        "request_too_large",
    )
