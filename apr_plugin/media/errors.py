"""Errors between a path and a frame. Each error names the file, the stage and the reason that libav gives."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.errors import AprError


class MediaError(AprError):
    """A media file could not be read.

    Args:
        path: The file.
        stage: What was being done: `open`, `seek`, `decode frames`, `decode audio`.
        reason: What went wrong, in libav's words if it has any.
    """

    def __init__(self, path: str | Path, stage: str, reason: str) -> None:
        self.path = str(path)
        self.stage = stage
        self.reason = reason
        super().__init__(f"{self.path}: cannot {stage}: {reason}")


class MediaOpenError(MediaError):
    """The file is missing, empty, not a media file, or has neither picture nor sound."""


class MediaTooLarge(MediaOpenError):
    """Its pictures have more pixels than may be decoded in the process that opened it."""


class MediaDecodeError(MediaError):
    """The file was opened, but the requested part can't be decoded."""


class MediaTimeout(MediaError):
    """The read took too long, or was cancelled."""


class MediaWorkerKilled(MediaError):
    """The process that read the file hung and was killed, or died in two attempts; the next read starts a new one.

    Each attempt has its own process.
    """


class WindowError(ValueError):
    """The caller asked for a time outside the video, or for a stream it does not have. Such times are never clamped."""


def words(error: BaseException) -> str:
    """The message of an error of libav or the system, without error numbers and Python's additions."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
