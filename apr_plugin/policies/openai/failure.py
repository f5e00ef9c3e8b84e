"""What can become of one try at a server, and how long it asks to be left alone."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(eq=False)
class Failure(Exception):
    """One try that came to nothing."""

    words: str
    """What happened, in the server's words where it said any."""
    again: bool
    """Whether another try may help."""
    unreachable: bool = False
    """Whether no server answered at all."""
    status: int | None = None
    """HTTP status, where there was one."""
    wait_s: float | None = None
    """What `Retry-After` asks for."""


@dataclass(eq=False)
class Refused(Exception):
    """A reply that is not read any further."""

    words: str
    """Why."""
    again: bool = False
    """Whether another try may help."""
    status: int | None = None
    """HTTP status of a redirect."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait (`Retry-After` as seconds or an HTTP date, or `retry-after-ms`); `None` where it says nothing usable."""
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
