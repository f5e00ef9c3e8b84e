"""Arms: ways to answer the same questions, one file each.

`Episode` gives them methods to read media, hold memory, ask the policy and end.

A new arm is a coroutine that takes the episode and returns its trajectory, and a line in `ARMS`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from apr_plugin.loop.arms import agent, blind, oracle, passive, shuffled, single_frame

if TYPE_CHECKING:
    from apr_plugin.loop.episode import Episode
    from apr_plugin.loop.trajectory import Trajectory

ARMS: dict[str, Callable[[Episode], Awaitable[Trajectory]]] = {
    "agent": agent.run,
    "passive": passive.run,
    "blind": blind.run,
    "single_frame": single_frame.run,
    "shuffled": shuffled.run,
    "oracle": oracle.run,
}
"""Every arm by its name."""
