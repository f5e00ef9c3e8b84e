"""Opening, seeking, decoding, resampling. No torch, no agent."""

from typing import TYPE_CHECKING, Any

from apr_plugin.media.digest import media_digest
from apr_plugin.media.errors import (
    MediaDecodeError,
    MediaError,
    MediaOpenError,
    MediaTimeout,
    MediaWorkerKilled,
    WindowError,
)
from apr_plugin.media.info import OUTLASTS_S, MediaInfo
from apr_plugin.media.local import fit
from apr_plugin.media.sound import SAMPLE_RATE
from apr_plugin.media.video import Clip, Frames, Video, Waveform

if TYPE_CHECKING:
    from apr_plugin.media.settings import MediaSettings

__all__ = [
    "OUTLASTS_S",
    "SAMPLE_RATE",
    "Clip",
    "Frames",
    "MediaDecodeError",
    "MediaError",
    "MediaInfo",
    "MediaOpenError",
    "MediaSettings",
    "MediaTimeout",
    "MediaWorkerKilled",
    "Video",
    "Waveform",
    "WindowError",
    "fit",
    "media_digest",
]


def __getattr__(name: str) -> Any:
    """Load the settings on first use: they need pydantic. A worker process does not need it, and is started often."""
    if name == "MediaSettings":
        from apr_plugin.media.settings import MediaSettings

        return MediaSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
