"""Keeping the files that a data set or a client names inside folders."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.media.errors import MediaOpenError

Roots = str | tuple[str, ...] | None
"""The folder that must contain every file, or several, of which one must; `None` is no limit."""


def confine(path: str | Path, root: Path | Roots) -> None:
    """Check that a file is inside a folder, with every link followed; without a folder every file may be read.

    Args:
        path: The file.
        root: The folder, or several (with an empty tuple no file may be read), or `None`.

    Raises:
        MediaOpenError: it is outside.
    """
    if root is None:
        return
    roots = (root,) if isinstance(root, str | Path) else root
    told = ", ".join(map(str, roots))
    try:
        real = Path(path).resolve()
        inside = any(real.is_relative_to(Path(folder).resolve()) for folder in roots)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        # A name too long, a loop of links (a RuntimeError before Python 3.13), a null character.
        raise MediaOpenError(
            path, "open", f"its location can't be resolved ({error}); only files inside media_root={told} may be read"
        ) from error
    if not inside:
        raise MediaOpenError(path, "open", f"it is outside media_root={told}; only files inside may be read")
