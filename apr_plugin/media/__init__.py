"""Opening, seeking, decoding, resampling. No torch, no agent."""

from apr_plugin.media.errors import MediaDecodeError, MediaError, MediaOpenError, MediaTimeout, MediaWorkerKilled, WindowError
from apr_plugin.media.info import MediaInfo
from apr_plugin.media.local import fit
from apr_plugin.media.settings import MediaSettings
from apr_plugin.media.sound import SAMPLE_RATE
from apr_plugin.media.video import Clip, Frames, Video, Waveform

__all__ = [
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
]
