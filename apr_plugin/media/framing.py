"""How a message between a reader and its worker process begins: with the length of its JSON object."""

import struct

LENGTH = struct.Struct(">I")
"""Bytes of the JSON object that follows; the arrays that it announces follow the object."""
