"""Which decoded picture is on screen at each requested time, and for which times damage makes that unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Image = NDArray[np.uint8]

BEGINNING = -(2**62)
"""The `key` of a run that is decoded from the beginning of the file."""


@dataclass
class Effort:
    """What reading cost."""

    packets: int = 0
    """Number of packets given to a decoder."""
    decode_s: float = 0.0
    """Seconds of seeking, demuxing, decoding and scaling, summed over workers."""

    def __iadd__(self, other: Effort) -> Effort:
        self.packets += other.packets
        self.decode_s += other.decode_s
        return self


@dataclass
class Stretch:
    """Requested times of one stretch that begins at a keyframe.

    They are given as the latest acceptable presentation times, in the stream's ticks.
    """

    key: int
    """Time of the keyframe, or `BEGINNING`."""
    limits: list[int]
    """The times, rising."""
    aim: int | None = None
    """Where to seek, if not to the keyframe before the first time."""
    trusted: bool = False
    """Whether pictures are taken even if the keyframe itself did not come out. After a gradual refresh, some decoders
    call a picture complete that is not, so one more refresh is decoded."""


@dataclass
class Found:
    """The result of a run."""

    shown: dict[int, tuple[Image, int]] = field(default_factory=dict)
    """For each limit, the picture and its presentation time in ticks."""
    faults: dict[int, str] = field(default_factory=dict)
    """For each limit without a picture, libav's message."""
    early: list[int] = field(default_factory=list)
    """Limits for which nothing came out, although nothing is damaged. Decoding can't begin at that keyframe (gradual
    refresh, leading pictures of an open GOP), so an earlier one has to be tried."""
    effort: Effort = field(default_factory=Effort)

    def retried(self, again: Found) -> None:
        """Take over the results of another run for the limits in `early`."""
        for limit in self.early:
            self.faults.pop(limit, None)
        self.shown |= again.shown
        self.faults |= again.faults
        self.early = again.early
        self.effort += again.effort


class Pick:
    """Takes decoded frames in order of presentation and keeps, for each limit, the last one at or before it.

    After a damaged packet, everything up to the next keyframe may depend on it, so none of that is shown. A decoder
    reports some damage only when the picture comes out, after others that depend on it; those are removed again.

    Args:
        limits: Requested times, rising.
        key: Time of the keyframe at which decoding begins; pictures before it lack the pictures that they depend on.
        found: Where the results are stored.
        render: Makes the array of a frame.
        late: How many ticks after the last picture of the file a time may be and still show it.
        slack: By how many packets the order of times may differ from the order of decoding, if times do not tell.
        trusted: See `Stretch.trusted`.
    """

    def __init__(
        self,
        limits: list[int],
        key: int,
        found: Found,
        render: Callable[[VideoFrame], Image],
        late: int,
        slack: int = 0,
        trusted: bool = True,
    ) -> None:
        self._limits = limits
        self._key = key
        self._found = found
        self._render = render
        self._late = late
        self._slack = slack
        self._trusted = trusted or key == BEGINNING
        self._next = 0
        self._frame: VideoFrame | None = None
        self._image: Image | None = None
        self._at = BEGINNING
        self._turn: int | None = None  # number of the packet, in decoding order, that gave the frame
        self._packets: list[int | None] = []  # times of all packets, in decoding order
        self._turns: dict[int, int] = {}  # numbers of packets by their times
        self._shown: list[tuple[int, int]] = []  # limit and packet of each picture shown
        self._fault: int | None = None  # the first damaged packet since decoding began at a keyframe
        self._words = ""
        # Time and duration of the packet shown last; PyAV 14 does not pass the duration on to the picture.
        self._last = (
            BEGINNING,
            0,
        )
        # Times of packets whose picture has to come out, for decoders that silently drop what they can't read.
        self._awaited: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether every limit is settled, with a picture or without one."""
        return self._next == len(self._limits)

    @property
    def damaged(self) -> bool:
        """Whether the pictures decoded now may depend on a damaged packet."""
        return self._fault is not None

    @property
    def latest(self) -> int | None:
        """Time of the packet sent last."""
        return self._packets[-1] if self._packets else None

    def sent(self, at: int | None, must_come: bool = False, lasts: int = 0) -> None:
        """Record that a packet with this time goes to the decoder now.

        Args:
            at: Time of the packet, in ticks.
            must_come: Whether its picture has to come out.
            lasts: Duration of the picture, in ticks.
        """
        if at is not None:
            self._last = max(self._last, (at, lasts))
            self._turns[at] = len(self._packets)
            if must_come and at >= self._key:
                self._awaited.add(at)
        self._packets.append(at)

    def fault(self, words: str, turn: int | None = None) -> None:
        """Record that the packet sent last (or the packet with this number) is damaged."""
        turn = max(0, (turn if turn is not None else len(self._packets) - 1) - self._slack)
        if self._fault is None or turn < self._fault:
            self._fault = turn
            self._words = words
        for limit, built in self._shown:
            if built > self._fault and limit in self._found.shown:
                del self._found.shown[limit]
                self._found.faults[limit] = words

    def take(self, frame: VideoFrame, at: int | None) -> None:
        """Take a frame from the decoder, with `at` as its presentation time."""
        if at is None:
            return
        self._awaited.discard(at)
        if at < self._key or at <= self._at:
            return
        self.account(at)
        turn = self._turns.get(at)
        if frame.is_corrupt:
            self.fault("the picture is damaged", turn)
        if not self._trusted and self._fault is None and self._frame is None and at > self._key:
            self._settle(2**62)
            return
        # For a time before the first picture of the file, the first one is shown.
        if self._frame is not None or self._key != BEGINNING:
            self._settle(at)
        if self._fault is None or (turn is not None and turn < self._fault):
            self._frame = frame
            self._at = at
            self._turn = turn
            self._image = None

    def account(self, until: int) -> None:
        """Record that pictures before `until` that have not come out are lost."""
        lost = {at for at in self._awaited if at < until}
        if lost:
            self._awaited -= lost
            self.fault("a picture did not come out of the decoder", min(self._turns[at] for at in lost))

    def restart(self, key: int, tick: int) -> None:
        """Begin again at a keyframe after the decoder was reset.

        Args:
            key: Time of the keyframe, in ticks.
            tick: Usual number of ticks from one picture to the next.
        """
        if self._at + tick < key:
            self._packets.append(self._at + tick)  # leading pictures come after the keyframe, and are lost too
        self._settle(key)
        self._fault = None
        self._frame = None
        self._image = None
        self._key = key
        self._at = BEGINNING
        self._trusted = True

    def finish(self, at_end: bool) -> None:
        """Settle the limits that are left: no more frames come.

        At the end of the file the last picture stays on screen for its duration, and a little longer.
        """
        if self._frame is not None and at_end:
            self._settle(self._at + max(self._late, self._last[1]) + 1)
            self._frame = None
            self._words = self._words or "the pictures end before it"
        self._settle(2**62)

    def _settle(self, until: int) -> None:
        """Settle every limit before `until`, with a picture or without one."""
        while self._next < len(self._limits) and self._limits[self._next] < until:
            limit = self._limits[self._next]
            self._next += 1
            if self._frame is None:
                self._found.faults[limit] = self._words or "no picture could be decoded there"
                if not self._words and self._key != BEGINNING:
                    self._found.early.append(limit)
            elif self._lost(limit):
                self._found.faults[limit] = self._words
            else:
                if self._image is None:
                    self._image = self._render(self._frame)
                self._found.shown[limit] = (self._image, self._at)
                if self._turn is not None:
                    self._shown.append((limit, self._turn))

    def _lost(self, limit: int) -> bool:
        """Whether a picture that can't be trusted belongs between the current one and `limit`."""
        return self._fault is not None and any(
            at is None or self._at < at <= limit for at in self._packets[self._fault :]
        )
