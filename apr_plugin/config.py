"""Where this package keeps files on this machine; only this module reads environment variables.

| variable | what it moves | default |
|---|---|---|
| `APR_HOME` | everything the package keeps between runs | `$XDG_CACHE_HOME/apr`, else `~/.cache/apr` |
| `APR_NEEDLE_DIR` | the needle benchmark's videos and questions | `<APR_HOME>/needle` |
| `APR_DATA` | annotations and videos of the other benchmarks, a folder for each | `<APR_HOME>/data` |
| `HF_HOME` | where the hub's client, and lmms-eval's own tasks, keep downloads | `~/.cache/huggingface` |
| `OPENAI_API_KEY`, or the name in `api_key_env=` | the key that `policy=openai` sends; kept only in memory | none |
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for what the package keeps between runs; it is not created here."""
    home = os.environ.get("APR_HOME")
    if home:
        return Path(home).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "apr"


def needle_dir() -> tuple[Path, bool]:
    """Folder of the needle benchmark, and whether the user named it (`APR_NEEDLE_DIR`).

    Nothing is made in a folder that the user named, unless the user asks for it.
    """
    named = os.environ.get("APR_NEEDLE_DIR")
    return (Path(named).expanduser(), True) if named else (cache_dir() / "needle", False)


def data_dir() -> Path:
    """Folder of the benchmarks' annotations and videos, one folder for each benchmark inside."""
    named = os.environ.get("APR_DATA")
    return Path(named).expanduser() if named else cache_dir() / "data"


def hub_dir() -> Path:
    """Folder of the hub's client, in which lmms-eval unpacks the videos of its own tasks."""
    named = os.environ.get("HF_HOME")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "huggingface"


def api_key(variable: str) -> str | None:
    """The key of a model server from the environment; `None` if it is unset or empty.

    The key is kept in memory and is never written.
    """
    return os.environ.get(variable, "").strip() or None
