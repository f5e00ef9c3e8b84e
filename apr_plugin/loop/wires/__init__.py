"""Wires: how a question, a look and the remaining turns are written for a model, and which pictures a look has.

There is one file for each. A model that was trained on such a form answers best in that form. A new wire is a subclass
of `Wire` in its own file, and a line in `WIRES`.
"""

from __future__ import annotations

from apr_plugin.loop.wires.apr import VideoMeta, Wire
from apr_plugin.loop.wires.omniagent import OmniAgentWire

WIRES: dict[str, Wire] = {wire.name: wire for wire in (Wire(), OmniAgentWire())}
"""Every wire by its name."""

__all__ = ["WIRES", "OmniAgentWire", "VideoMeta", "Wire"]
