"""Which decoded picture is on screen at which time wanted, and which times a damage in the file makes unknowable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Image = NDArray[np.uint8]

BEGINNING = -(2**62)
"""Key of a run that is decoded from the beginning of the file."""


@dataclass
class Effort:
    """What reading cost."""

    packets: int = 0
    """Packets given to a decoder."""
    decode_s: float = 0.0
    """Seconds seeking, demuxing, decoding and scaling, summed over workers."""

    def __iadd__(self, other: Effort) -> Effort:
        self.packets += other.packets
        self.decode_s += other.decode_s
        return self


@dataclass
class Stretch:
    """Times wanted of one stretch that begins at a keyframe, as the latest acceptable presentation times in the stream's ticks."""

    key: int
    """Time of the keyframe, or `BEGINNING`."""
    limits: list[int]
    """The times, rising."""
    aim: int | None = None
    """Where to seek, when not to the keyframe before the first time."""
    trusted: bool = False
    """Whether pictures are taken although the keyframe itself did not come out: after a gradual refresh, some decoders
    call a picture whole that is not, so one refresh more is decoded."""


@dataclass
class Found:
    """What a run brought."""

    shown: dict[int, tuple[Image, int]] = field(default_factory=dict)
    """For each limit, the picture and its presentation time in ticks."""
    faults: dict[int, str] = field(default_factory=dict)
    """For each limit without a picture, libav's words."""
    early: list[int] = field(default_factory=list)
    """Limits for which nothing came out yet, though nothing is damaged: the keyframe was only the beginning of one
    (gradual refresh, leading pictures of an open GOP), and an earlier one has to be tried."""
    effort: Effort = field(default_factory=Effort)

    def retried(self, again: Found) -> None:
        """Take over what another run brought for the limits in `early`."""
        for limit in self.early:
            self.faults.pop(limit, None)
        self.shown |= again.shown
        self.faults |= again.faults
        self.early = again.early
        self.effort += again.effort


class Pick:
    """Takes decoded frames in order of presentation and keeps for each limit the last that is not after it.

    After a damaged packet, whatever was decoded later may be built on it, up to the next keyframe: none of that is
    shown. A decoder tells of some damage only when the picture comes out, after others that were built on it; those are
    taken back.

    Args:
        limits: Times wanted, rising.
        key: Time of the keyframe that decoding begins with; pictures before it lack what they are built on.
        found: Where results go.
        render: Makes the array of a frame.
        late: How many ticks after the last picture of the file a time may lie and still show it.
        slack: By how many packets the order of times may differ from the order of decoding, where times do not tell.
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
        self._limits, self._key, self._found, self._render, self._late, self._slack = (
            limits,
            key,
            found,
            render,
            late,
            slack,
        )
        self._trusted = trusted or key == BEGINNING
        self._next = 0
        self._frame: VideoFrame | None = None
        self._image: Image | None = None
        self._at = BEGINNING
        self._turn: int | None = None  # which packet, in decoding order, brought the frame
        self._packets: list[int | None] = []  # times of all packets, in decoding order
        self._turns: dict[int, int] = {}  # the reverse
        self._shown: list[tuple[int, int]] = []  # limit and packet of what was shown
        self._fault: int | None = None  # the first damaged packet since decoding began at a keyframe
        self._words = ""
        self._last = (
            BEGINNING,
            0,
        )  # the packet shown last: when, and for how long, which PyAV 14 does not hand on to its picture
        self._awaited: set[int] = (
            set()
        )  # times of packets whose picture has to come out, for decoders that drop what they can't read without a word

    @property
    def done(self) -> bool:
        """Whether every limit has its picture, or has none."""
        return self._next == len(self._limits)

    @property
    def damaged(self) -> bool:
        """Whether what is decoded now may be built on a damaged packet."""
        return self._fault is not None

    @property
    def latest(self) -> int | None:
        """Time of the packet sent last."""
        return self._packets[-1] if self._packets else None

    def sent(self, at: int | None, must_come: bool = False, lasts: int = 0) -> None:
        """A packet with this time goes to the decoder now, for a picture that lasts so many ticks; `must_come` if its picture has to come out."""
        if at is not None:
            self._last = max(self._last, (at, lasts))
            self._turns[at] = len(self._packets)
            if must_come and at >= self._key:
                self._awaited.add(at)
        self._packets.append(at)

    def fault(self, words: str, turn: int | None = None) -> None:
        """The packet sent last (or that of the given turn) is damaged."""
        turn = max(0, (turn if turn is not None else len(self._packets) - 1) - self._slack)
        if self._fault is None or turn < self._fault:
            self._fault, self._words = turn, words
        for limit, built in self._shown:
            if built > self._fault and limit in self._found.shown:
                del self._found.shown[limit]
                self._found.faults[limit] = words

    def take(self, frame: VideoFrame, at: int | None) -> None:
        """The decoder brought a frame whose presentation time is `at`."""
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
        if (
            self._frame is not None or self._key != BEGINNING
        ):  # before the first picture of the file, the first is shown
            self._settle(at)
        if self._fault is None or (turn is not None and turn < self._fault):
            self._frame, self._at, self._turn, self._image = frame, at, turn, None

    def account(self, until: int) -> None:
        """Pictures before `until` that have not come out will not come any more."""
        lost = {at for at in self._awaited if at < until}
        if lost:
            self._awaited -= lost
            self.fault("a picture did not come out of the decoder", min(self._turns[at] for at in lost))

    def restart(self, key: int, tick: int) -> None:
        """The decoder was reset and begins again at a keyframe; `tick` is the usual time from one picture to the next."""
        if self._at + tick < key:
            self._packets.append(self._at + tick)  # pictures that lead the keyframe come after it, and are lost too
        self._settle(key)
        self._fault, self._frame, self._image, self._key, self._at, self._trusted = (
            None,
            None,
            None,
            key,
            BEGINNING,
            True,
        )

    def finish(self, at_end: bool) -> None:
        """No more frames come.

        At the end of the file the last one stays on screen for as long as it lasts, and a little longer.
        """
        if self._frame is not None and at_end:
            self._settle(self._at + max(self._late, self._last[1]) + 1)
            self._frame = None
            self._words = self._words or "the pictures end before it"
        self._settle(2**62)

    def _settle(self, until: int) -> None:
        """Every limit before `until` has its picture now, or has none."""
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
        """Whether a picture that can't be trusted belongs between the one at hand and `limit`."""
        return self._fault is not None and any(
            at is None or self._at < at <= limit for at in self._packets[self._fault :]
        )
