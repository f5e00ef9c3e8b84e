"""A name for a file's content, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from apr_plugin.media.opening import descriptor

CHUNK = 2**16
"""Number of bytes that are read at the beginning, in the middle and at the end."""


def media_digest(path: str | Path) -> tuple[int, str]:
    """Size in bytes, and 16 hex digits of a hash.

    The hash covers the size and 64 KiB at the beginning, in the middle and at the end. Two films differ there, because
    lengths, tables and compressed pictures differ. The hash is no protection against somebody who makes two files equal
    there on purpose.

    Raises:
        MediaOpenError: the file can't be read.
    """
    with descriptor(str(path)) as fd:
        size = os.fstat(fd).st_size
        summed = hashlib.sha256(str(size).encode())
        for start in (0, size // 2, max(0, size - CHUNK)):
            summed.update(os.pread(fd, CHUNK, start))
    return size, summed.hexdigest()[:16]
