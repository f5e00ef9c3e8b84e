"""Keeping the files that a data set names inside one folder."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.media.errors import MediaOpenError


def confine(path: str | Path, root: str | Path | None) -> None:
    """Check that a file is inside a folder, with every link followed; without a folder every file may be read.

    Raises:
        MediaOpenError: it is outside.
    """
    if root is None:
        return
    try:
        inside = Path(path).resolve().is_relative_to(Path(root).resolve())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        # A name too long, a loop of links (a RuntimeError before Python 3.13), a null character.
        raise MediaOpenError(
            path, "open", f"its location can't be resolved ({error}); only files inside media_root={root} may be read"
        ) from error
    if not inside:
        raise MediaOpenError(path, "open", f"it is outside media_root={root}; only files inside may be read")
