"""Wires: how a question, a look and the remaining turns are written for a model, and which pictures a look has.

There is one file for each. A model that was trained on such a form answers best in that form. A new wire is a subclass
of `Wire` in its own file, and a line in `_CLASSES`.
"""

from __future__ import annotations

from functools import cache

from apr_plugin.loop.wires.apr import VideoMeta, Wire
from apr_plugin.loop.wires.compact import CompactWire
from apr_plugin.loop.wires.omniagent import OmniAgentWire

_CLASSES: dict[str, type[Wire]] = {wire.name: wire for wire in (Wire, OmniAgentWire, CompactWire)}


@cache
def _made(name: str, references: bool, frame_times: bool) -> Wire:
    return _CLASSES[name](references, frame_times)


def wire_of(name: str, references: bool | None = None, frame_times: bool | None = None) -> Wire:
    """A wire by its name, with or without references; equal arguments give the same object.

    Args:
        name: A name in `WIRES`.
        references: Whether shown frames have names; `None` is the wire's default.
        frame_times: Whether the label of a frame with a name has its time too; `None` is the wire's default.

    Raises:
        KeyError: there is no such wire.
        ValueError: frames would have neither a name nor a time.
    """
    wire = _CLASSES[name]
    return _made(
        name,
        wire.references if references is None else references,
        wire.frame_times if frame_times is None else frame_times,
    )


WIRES: dict[str, Wire] = {name: wire_of(name) for name in _CLASSES}
"""Every wire by its name, with its defaults."""

__all__ = ["WIRES", "CompactWire", "OmniAgentWire", "VideoMeta", "Wire", "wire_of"]
