"""What can go wrong between a path and a frame. Each error names the file, the stage and libav's own words."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.errors import AprError


class MediaError(AprError):
    """A media file could not be read.

    Args:
        path: The file.
        stage: What was being done: `open`, `seek`, `decode frames`, `decode audio`.
        reason: What went wrong, libav's words where it has any.
    """

    def __init__(self, path: str | Path, stage: str, reason: str) -> None:
        self.path, self.stage, self.reason = str(path), stage, reason
        super().__init__(f"{self.path}: cannot {stage}: {reason}")


class MediaOpenError(MediaError):
    """The file is missing, empty, not a media file, or has neither picture nor sound."""


class MediaTooLarge(MediaOpenError):
    """Its pictures have more pixels than may be decoded where it was opened."""


class MediaDecodeError(MediaError):
    """The file opened, but the part asked for can't be decoded."""


class MediaTimeout(MediaError):
    """The read took too long, or was cancelled."""


class MediaWorkerKilled(MediaError):
    """The process that read the file hung and was ended, or died twice, each time with another process; the next read gets a new one."""


class WindowError(ValueError):
    """The caller asked for a time outside the video, or for a stream it does not have. Never clamped silently."""


def words(error: BaseException) -> str:
    """What an error of libav or the system says, without numbers and Python's decoration."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
