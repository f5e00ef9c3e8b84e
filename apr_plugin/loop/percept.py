"""`Percept`: what the environment hands back for one look. It renders itself with media, and as a text placeholder once the media is gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.budget import visual_tokens
from apr_plugin.loop.policy import AudioPart, ImagePart, Part, TextPart, VideoPart
from apr_plugin.loop.trajectory import Shown

OMITTED = "[MEDIA OMITTED - Refer to your Observation]"
"""Ends every placeholder; the form released checkpoints were trained with (arXiv 2606.19341, appendix B)."""


@dataclass(frozen=True)
class Percept:
    """One look: frames, a waveform, or a clip."""

    kind: Literal["frames", "audio", "clip"]
    video: int
    """Index of the question's video."""
    start_s: float
    """Beginning of the window asked for."""
    end_s: float
    """End of the window asked for."""
    images: NDArray[np.uint8] | None = None
    """Frames, shape (n, height, width, 3), RGB."""
    times_s: tuple[float, ...] = ()
    """True time of each frame."""
    fps: float = 0.0
    """Frames per second of a clip."""
    waveform: NDArray[np.float32] | None = None
    """Sound, shape (samples,), mono."""
    sample_rate: int = 16_000
    """Samples per second of the sound."""
    remark: str = ""
    """What differs from what was asked for (fewer pixels, padded sound), told to the model."""
    several: bool = False
    """Whether the question has several videos, so that headings name this one."""
    mode: str = "exact"
    """How frames were chosen: `exact`, `keyframe` or `mixed`."""
    packets: int = 0
    """Packets decoded for it."""
    decode_s: float = 0.0
    """Seconds of decoding, summed over workers."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens by the 28-pixel rule; a clip's frames count in pairs (Qwen2.5-VL merges two)."""
        if self.images is None:
            return 0
        n, height, width = (int(side) for side in self.images.shape[:3])
        return visual_tokens(width, height) * (n if self.kind == "frames" else -(-n // 2))

    def parts(self) -> tuple[Part, ...]:
        """The percept with its media, for the one generation that sees it."""
        remark = f" {self.remark}" if self.remark else ""
        match self.kind:
            case "frames":
                assert self.images is not None
                parts: list[Part] = [TextPart(f"{self._heading()}.{remark}")]
                for time_s, image in zip(self.times_s, self.images, strict=True):
                    parts += [TextPart(f"\nFrame {time_s:.2f}s:"), ImagePart(image)]
                return tuple(parts)
            case "audio":
                assert self.waveform is not None
                return (TextPart(f"{self._heading()}{remark}"), AudioPart(self.waveform, self.sample_rate))
            case "clip":
                assert self.images is not None
                sound = AudioPart(self.waveform, self.sample_rate) if self.waveform is not None else None
                return (TextPart(f"{self._heading()}{remark}"), VideoPart(self.images, self.times_s, self.fps, sound))

    def placeholder(self) -> str:
        """What stays in the prompt when the media is gone: the same heading and the true times."""
        if self.kind == "frames":
            stamps = ", ".join(f"{t:.2f}s" for t in self.times_s)
            return f"{self._heading()}. Timestamps: [{stamps}] {OMITTED}"
        return f"{self._heading()} {OMITTED}"

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
        )

    def _heading(self) -> str:
        video = f"Video {self.video}: " if self.several else ""
        if self.kind == "frames":
            if len(self.times_s) == 1:
                return f"{video}Frame at {self.times_s[0]:.2f}s (num=1)"
            return f"{video}Frames {self.start_s:.2f}s-{self.end_s:.2f}s (num={len(self.times_s)})"
        return f"{video}{'Audio' if self.kind == 'audio' else 'Clip'} {self.start_s:.2f}s-{self.end_s:.2f}s"
