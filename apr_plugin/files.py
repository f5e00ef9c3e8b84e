"""Reading of files that a user names.

A pipe or a device in place of a file could block for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def check_regular(path: str | Path) -> None:
    """Check that an existing path is a regular file, before it is opened.

    Raises:
        OSError: it is missing, or something other than a file; `strerror` says what.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    what = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise OSError(errno.EINVAL, f"it is {what}, not a file", str(path))


def read_regular(path: str | Path) -> bytes:
    """Read all bytes of a regular file.

    Raises:
        OSError: it can't be read, or is not a regular file.
    """
    check_regular(path)
    return Path(path).read_bytes()
