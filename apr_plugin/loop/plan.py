"""`LookPlan`: what a look will show, computed from the video's data before anything is decoded.

So the tokens and bytes that it will need are known in advance. A look that would not fit is planned again with fewer
pixels or pictures (`Environment.plan`), and decoded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from apr_plugin.loop.action import Look
from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.percept import Percept
from apr_plugin.media import SAMPLE_RATE

_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class LookPlan:
    """One look that is not yet carried out."""

    kind: Literal["frames", "audio", "clip"]
    """What will be shown."""
    video: int
    """Index of the question's video."""
    start_s: float
    """Beginning of the window, in seconds of the video."""
    end_s: float
    """End of the window."""
    action: Look | None = None
    """The action that asked for it; `None` for the passive arm."""
    times_s: tuple[float, ...] = ()
    """Time of each picture, in seconds of the video."""
    width: int = 0
    """Width of the pictures as they will be shown, in pixels."""
    height: int = 0
    """Their height."""
    asked: int = 0
    """Number of pictures asked for; a limit may allow fewer."""
    fps: float = 0.0
    """Frames per second of a clip."""
    sound: bool = False
    """Whether the sound of the window comes with it."""
    remarks: tuple[str, ...] = ()
    """What a limit changed; the model is told."""
    subtitles: str = ""
    """What the subtitles say at its times, in words (`apr_plugin.media.subtitles.in_words`)."""
    several: bool = False
    """Whether the question has several videos."""
    fitted: bool = False
    """Whether a limit other than the budget's made it smaller: the room left in the model's context."""
    look: int = 0
    """Number that the look will have in the episode, from 1; 0 outside of one."""
    token: VisualToken = VISUAL_TOKEN
    """What one visual token of the policy covers."""

    def in_words(self, remarks: Sequence[str]) -> str:
        """These remarks, then the subtitles: what stands beside the media."""
        return " ".join([*remarks, self.subtitles] if self.subtitles else remarks)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens by the rule of the policy."""
        return self.blank().visual_tokens

    @property
    def bytes(self) -> int:
        """Memory that the pictures (8-bit RGB) and samples (32-bit) will need."""
        return len(self.times_s) * self.width * self.height * 3 + (self._samples * 4 if self.sound else 0)

    def blank(self) -> Percept:
        """The largest percept that it can become, black and silent.

        It uses no memory and serves to count tokens, which depend only on sizes.
        """
        size = (len(self.times_s), self.height, self.width, 3)
        return Percept(
            self.kind,
            self.video,
            self.start_s,
            self.end_s,
            images=np.broadcast_to(np.zeros((), np.uint8), size) if self.times_s else None,
            times_s=self.times_s,
            asked_s=self.times_s if self.kind == "frames" else (),
            fps=self.fps,
            waveform=np.broadcast_to(np.zeros((), np.float32), (self._samples,)) if self.sound else None,
            remark=self.in_words(self.remarks),
            several=self.several,
            fitted=self.fitted,
            look=self.look,
            token=self.token,
        )

    @property
    def _samples(self) -> int:
        return max(1, round((self.end_s - self.start_s) * SAMPLE_RATE))


def refuse_length(
    what: Literal["audio", "clip"],
    asked_s: float,
    least: tuple[float, str],
    most_s: float,
    edge_s: float,
    duration_s: float,
    instead: str,
) -> ActionError | None:
    """The error in the length of a window, if there is one.

    If no window of the video can be right, the model is told so.

    Args:
        what: The action.
        asked_s: Length of the window, in seconds.
        least: Fewest seconds, and a remark on them.
        most_s: Most seconds.
        edge_s: By how much they may be exceeded.
        duration_s: Length of the video.
        instead: What else the model can do.
    """
    least_s, remark = least
    shortest = (
        f"{math.ceil(round(least_s * 100, 6)) / 100:.2f}s{remark}"  # as much as the model must ask for, in two decimals
    )
    name = "audio" if what == "audio" else "a clip"
    if least_s > min(most_s + edge_s, duration_s) + _ROUNDING_S:
        limits = f"{name} must last at least {shortest} and at most {most_s:g}s, and the video lasts {duration_s:.2f}s"
        return ActionError(ErrorCode.TOO_SHORT, f"get_{what} is not possible for this video: {limits}; {instead}.")
    if asked_s > most_s + edge_s + _ROUNDING_S:
        return ActionError(
            ErrorCode.TOO_LONG, f"{name} of {asked_s:.2f}s was asked for; one look plays at most {most_s:g}s."
        )
    if asked_s < least_s - _ROUNDING_S:
        return ActionError(
            ErrorCode.TOO_SHORT, f"{name} of {asked_s:.2f}s was asked for; it must last at least {shortest}."
        )
    return None
