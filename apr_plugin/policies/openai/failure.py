"""How one attempt at a server can fail, and how long the server asks to wait."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(eq=False)
class Failure(Exception):
    """One attempt that failed."""

    words: str
    """What happened, in the server's words if it sent any."""
    again: bool
    """Whether another attempt may help."""
    unreachable: bool = False
    """Whether no server answered at all."""
    status: int | None = None
    """The HTTP status, if there was one."""
    wait_s: float | None = None
    """The wait that `Retry-After` asks for."""


@dataclass(eq=False)
class Refused(Exception):
    """A reply that is not read any further."""

    words: str
    """The reason."""
    again: bool = False
    """Whether another attempt may help."""
    status: int | None = None
    """HTTP status of a redirect."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; `None` if it says nothing usable.

    Source: `Retry-After` as seconds or an HTTP date, or `retry-after-ms`.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, moment.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
