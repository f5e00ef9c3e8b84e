"""`ServeLimits`: what one request, and all of them together, may use."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20

MOST_MESSAGES = 256
MOST_PARTS = 1024
"""Parts of all messages together."""

MOST_VIDEOS = 32
MOST_IMAGES = 256

MOST_IMAGE_PIXELS = 64_000_000
"""Pixels of all pictures of a request together; decoded they take three bytes each."""

LONGEST_TEXT = 1_000_000
"""Characters of all texts together; the subtitles of a long film have a tenth of that."""

LONGEST_ADDRESS = 8192
"""Characters of an address that is not a `data:` URL."""

MOST_JSON_VALUES = 100_000
"""Brackets, braces and commas in a body. Each may cost a hundred times its size once it is parsed, and base64 has
none."""

TEXT_BYTES = 4 * MIB
"""Room in a body for everything besides uploads."""

HEADERS_S = 10.0
"""Seconds within which the headers of a request have to arrive, on a new connection or on one that is used again."""

BODY_S = 30.0
"""Seconds for a small body; a large one has one second more for every `BODY_RATE` bytes."""

BODY_RATE = 2**19

SEND_S = 30.0
"""Seconds that a client may take to read a part of the response."""

PIECE_BYTES = 2**16
"""Bytes of such a part."""

KEEP_ALIVE_S = 10.0
"""Seconds between two lines of a stream, so that neither side takes the other for dead."""


@dataclass(frozen=True)
class ServeLimits:
    """The limits that the user sets."""

    concurrent: int = 4
    """Episodes at once."""

    queue: int = 64
    """Requests that wait for one of those places; further ones get status 429."""

    timeout_s: float = 600.0
    """Seconds that an episode may take, not counting the wait for its place."""

    upload_bytes: int = 64 * MIB
    """Bytes of all files that a request brings along, decoded."""

    drain_s: float = 60.0
    """Seconds that running episodes have to end when the server stops."""

    @property
    def body_bytes(self) -> int:
        """Bytes of the largest body: base64 is a third larger than what it encodes."""
        return self.upload_bytes * 4 // 3 + TEXT_BYTES

    @property
    def bodies_bytes(self) -> int:
        """Bytes of all bodies that are in memory at once; further requests wait before they are read."""
        return 4 * self.body_bytes
