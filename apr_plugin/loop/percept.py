"""`Percept`: the result of one look.

A wire (`apr_plugin.loop.wires`) writes it with its media, and later as a placeholder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken
from apr_plugin.loop.trajectory import Shown
from apr_plugin.media import SAMPLE_RATE

OMITTED = "[MEDIA OMITTED - Refer to your Observation]"
"""Every placeholder ends with this; released checkpoints were trained with it (arXiv 2606.19341, appendix B)."""


@dataclass(frozen=True)
class Percept:
    """One look: frames, a waveform, or a clip."""

    kind: Literal["frames", "audio", "clip"]
    video: int
    """Index of the question's video."""
    start_s: float
    """Beginning of the requested window."""
    end_s: float
    """End of the requested window."""
    images: NDArray[np.uint8] | None = None
    """Frames, shape (n, height, width, 3), RGB."""
    times_s: tuple[float, ...] = ()
    """True time of each frame."""
    asked_s: tuple[float, ...] = ()
    """The time for which each frame was requested; the true time if the file is damaged there. Empty for clips."""
    file_s: tuple[float, ...] = ()
    """True time of each frame in seconds of the file."""
    sound_file_s: tuple[float, float] | None = None
    """Window of the sound in seconds of the file."""
    untimed: bool = False
    """Whether the frames are shown without their times."""
    fitted: bool = False
    """Whether it was made smaller to fit into the model's context."""
    look: int = 0
    """Number of the look in the episode, from 1; 0 if its frames have no names."""
    token: VisualToken = VISUAL_TOKEN
    """What one visual token of the policy covers."""
    fps: float = 0.0
    """Frames per second of a clip."""
    waveform: NDArray[np.float32] | None = None
    """Sound, shape (samples,), mono."""
    sample_rate: int = SAMPLE_RATE
    """Samples per second of the sound."""
    remark: str = ""
    """What differs from the request (fewer pixels, padded sound), and the subtitles of it; the model is told."""
    several: bool = False
    """Whether the question has several videos, so that headings name the video."""
    mode: str = "exact"
    """How frames were chosen: `exact`, `keyframe` or `mixed`."""
    packets: int = 0
    """Number of packets decoded for it."""
    decode_s: float = 0.0
    """Seconds of decoding, summed over workers."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens by the rule of the policy; a clip's frames count in groups (Qwen2.5-VL merges two)."""
        if self.images is None:
            return 0
        n, height, width = (int(side) for side in self.images.shape[:3])
        if self.kind == "frames":
            return n * self.token.of_picture(width, height)
        return self.token.of_clip(width, height, n)

    def shown(self) -> Shown:
        """What the trajectory keeps of it: times and sizes, never pixels or samples."""
        return Shown(
            kind=self.kind,
            video=self.video,
            start_s=self.start_s,
            end_s=self.end_s,
            times_s=self.times_s,
            width=self.images.shape[2] if self.images is not None else 0,
            height=self.images.shape[1] if self.images is not None else 0,
            audio_s=len(self.waveform) / self.sample_rate if self.waveform is not None else 0.0,
            visual_tokens=self.visual_tokens,
            remark=self.remark,
            mode=self.mode if self.images is not None else "",
            packets=self.packets,
            decode_s=round(self.decode_s, 6),
            asked_s=self.asked_s,
            file_s=self.file_s,
            sound_file_s=self.sound_file_s if self.waveform is not None else None,
            fps=self.fps,
            untimed=self.untimed,
            fitted=self.fitted,
            look=self.look,
        )
