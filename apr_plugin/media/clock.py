"""Clocks that start again inside a file: joined recordings, downloaded segments, an overflow of a 33-bit counter.

A file is one timeline: a piece whose clock starts again follows the piece before it, as in a copy of such a file that
ffmpeg makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apr_plugin.media.opening import descriptor

FORWARD_S = 10.0
"""A clock that jumps ahead by more than this, in all streams at once, has started again (ffmpeg's
`dts_delta_threshold`)."""

_BACK_S = 2.0  # the sound of a new piece may begin this much before the sound of the last one ended
_CONFIRM = 3  # packets that have to follow a jump, before it counts as more than one wrong stamp
_CHUNK = 20_000  # packets of a transport stream looked at together


@dataclass(frozen=True)
class Stamp:
    """One packet on its way through the file."""

    stream: int
    dts_s: float
    """Decoding time by the file."""
    step_s: float
    """Duration in seconds."""


def offsets(stamps: Sequence[Stamp], leader: int) -> tuple[list[float], list[float]]:
    """What to add to the time of each packet, so that time never starts again.

    Args:
        stamps: All packets in the order of the file.
        leader: The stream that decides, which is never allowed to go back: the pictures, if there are any.

    Returns:
        The seconds to add to each; and the times, on the new timeline, at which a clock started again.
    """
    ahead: dict[int, list[int]] = {}
    for number, stamp in enumerate(stamps):
        ahead.setdefault(stamp.stream, []).append(number)
    place = dict.fromkeys(ahead, 0)
    last: dict[int, float] = {}
    offset, found, jumps = 0.0, [], []
    for stamp in stamps:
        own = ahead[stamp.stream]
        at = place[stamp.stream]
        place[stamp.stream] = at + 1
        now, before = stamp.dts_s + offset, last.get(stamp.stream)
        if before is not None and now > before + stamp.step_s:
            following = [stamps[number].dts_s + offset for number in own[at + 1 : at + 1 + _CONFIRM]]
            # The later packets continue as before this one.
            if len(following) == _CONFIRM and all(before <= later < now for later in following):
                found.append(before + stamp.step_s - stamp.dts_s)
                continue
        if before is not None:
            back = now < before - (1e-6 if stamp.stream == leader else _BACK_S)
            if back or now > max(last.values()) + FORWARD_S:
                following = [stamps[number].dts_s - stamp.dts_s for number in own[at + 1 : at + 1 + _CONFIRM]]
                if (
                    len(following) == _CONFIRM
                    and all(0 <= later <= FORWARD_S for later in following)
                    and not (back and now + following[0] >= before + stamp.step_s - 1e-6)
                ):
                    offset += before + stamp.step_s - now
                    now = before + stamp.step_s
                    jumps.append(now)
                else:  # one wrong stamp does not mean that the clock started again
                    found.append(before + stamp.step_s - stamp.dts_s)
                    continue
        found.append(offset)
        last[stamp.stream] = max(now, before if before is not None else now)
    return found, jumps


def runs_steadily(path: str, pid: int) -> bool:
    """Whether the decoding times of one stream of an MPEG transport stream only rise; libav is not used.

    The whole file is read for it. The result is also `False` if the packets can't be found in the file, so that this
    can't be told.
    """
    stamps: list[NDArray[np.int64]] = []
    with descriptor(path) as fd, open(fd, "rb", closefd=False) as file:
        shape = _packets(file.read(4 * 204 + 8))
        if shape is None:
            return False
        size, lead = shape
        file.seek(0)
        while chunk := file.read(_CHUNK * size):
            whole = len(chunk) // size * size
            packets = np.frombuffer(chunk[:whole], np.uint8).reshape(-1, size)[:, lead : lead + 188]
            if not (packets[:, 0] == 0x47).all():
                return False
            stamps.append(_decoding_times(packets, pid))
    times = np.concatenate(stamps) if stamps else np.zeros(0, np.int64)
    steps = np.diff(times)
    return len(times) > 0 and bool((steps >= 0).all() and (steps <= FORWARD_S * 90_000).all())


def _packets(head: bytes) -> tuple[int, int] | None:
    """Size of a packet and the position of its sync byte: plain, with a time code (M2TS), or with check sums."""
    for size, lead in ((188, 0), (192, 4), (204, 0)):
        marks = head[lead::size][:3]
        if marks and set(marks) == {0x47}:
            return size, lead
    return None


def _decoding_times(packets: NDArray[np.uint8], pid: int) -> NDArray[np.int64]:
    """Decoding times that begin in these packets, in ticks of 90 kHz. Packets shape (n, 188)."""
    starts = ((packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]) == pid
    chosen = packets[starts & ((packets[:, 1] & 0x40) != 0) & ((packets[:, 3] & 0x10) != 0)].astype(np.int64)
    payload = 4 + np.where(chosen[:, 3] & 0x20, 1 + chosen[:, 4], 0)
    chosen, payload = chosen[payload <= 188 - 19], payload[payload <= 188 - 19]
    rows = np.arange(len(chosen))

    def byte(number: int, more: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
        return np.asarray(chosen[rows, payload + number + more])

    says = byte(7) >> 6
    more = np.where(says == 3, 5, 0)  # if both are given, the decoding time is the second
    times = (
        (byte(9, more) >> 1 & 7) << 30
        | byte(10, more) << 22
        | byte(11, more) >> 1 << 15
        | byte(12, more) << 7
        | byte(13, more) >> 1
    )
    return np.asarray(times[(byte(0) == 0) & (byte(1) == 0) & (byte(2) == 1) & (says >= 2)])
