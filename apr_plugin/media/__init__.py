"""Opening, seeking, decoding, resampling. No torch, no agent."""

from apr_plugin.media.errors import MediaDecodeError, MediaError, MediaOpenError, WindowError
from apr_plugin.media.video import SAMPLE_RATE, Clip, Frames, Video, Waveform, fit

__all__ = ["SAMPLE_RATE", "Clip", "Frames", "MediaDecodeError", "MediaError", "MediaOpenError", "Video", "Waveform", "WindowError", "fit"]
