"""The header of a message between a reader and its worker process: the length of the JSON object."""

import struct

LENGTH = struct.Struct(">I")
"""Number of bytes of the JSON object that follows. The arrays that the object announces come after it."""
