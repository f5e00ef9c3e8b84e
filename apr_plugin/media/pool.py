"""Open files that are shared between questions about the same video, with a limit on how many stay open."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from apr_plugin.media.confine import confine
from apr_plugin.media.settings import MediaSettings
from apr_plugin.media.video import Video


class VideoPool:
    """Opens each file once and lends it to everyone who asks for it.

    Above the limit, unused files are closed, the least recently used first.

    Args:
        idle: How many unused files stay open.
    """

    def __init__(self, idle: int = 8) -> None:
        self._idle = idle
        self._lock = threading.Lock()
        self._videos: OrderedDict[tuple[object, ...], Video] = OrderedDict()
        self._uses: dict[int, int] = {}

    def borrow(self, path: str | Path, settings: MediaSettings) -> Video:
        """The open file; return it with `give_back`. A file that was replaced on disk is opened again.

        Raises:
            MediaOpenError: the file can't be used.
        """
        confine(path, settings.root)
        key = (str(path), _stamp(path), settings.isolation, settings.decoder)
        with self._lock:
            video = self._videos.get(key)
            if video is not None:
                self._videos.move_to_end(key)
                self._uses[id(video)] += 1
                return video
        # Not under the lock, so that other files need not wait.
        opened = Video.open(path, isolation=settings.isolation, decoder=settings.decoder)
        with self._lock:
            video = self._videos.setdefault(key, opened)
            self._uses[id(video)] = self._uses.get(id(video), 0) + 1
        if video is not opened:
            opened.close()
        return video

    def give_back(self, video: Video) -> None:
        """End one loan."""
        with self._lock:
            self._uses[id(video)] -= 1
            unused = [key for key, held in self._videos.items() if not self._uses[id(held)]]
            surplus = [self._videos.pop(key) for key in unused[: max(0, len(unused) - self._idle)]]
            for closing in surplus:
                del self._uses[id(closing)]
        for closing in surplus:
            closing.close()

    def close(self) -> None:
        """Close every unused file."""
        self._close_unused(lambda key: True)

    def close_gone(self) -> None:
        """Close the unused files that were deleted or replaced on disk, which would else take up room there."""
        self._close_unused(lambda key: _stamp(str(key[0])) != key[1])

    def _close_unused(self, chosen: Callable[[tuple[object, ...]], bool]) -> None:
        with self._lock:
            unused = [key for key, held in self._videos.items() if not self._uses[id(held)]]
            closing = [self._videos.pop(key) for key in unused if chosen(key)]
            for video in closing:
                del self._uses[id(video)]
        for video in closing:
            video.close()


def _stamp(path: str | Path) -> tuple[int, int, int] | None:
    """Values that change if the file is replaced."""
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


POOL = VideoPool()
"""The pool of this process."""
