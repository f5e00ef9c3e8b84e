"""`Imported`: says of a trajectory that another program recorded where it comes from, and which figures it lacks.

Records of other programs rarely have everything that ours have. What one lacks has the default of its field in the
trajectory, often 0, and is named here; tables and pages then show nothing in its place, never 0.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Figure(StrEnum):
    """A figure of a trajectory whose field can't be empty. Others, such as tokens and confidence, are `None`."""

    FRAMES = "frames"
    """How many frames were shown, and when in the video each is."""
    AUDIO = "audio"
    """Seconds of sound that were played."""
    VISUAL_TOKENS = "visual_tokens"
    """Visual tokens, by the rule in `loop.budget`."""
    TOTAL_SECONDS = "total_seconds"
    """How long the question took."""
    MODEL_SECONDS = "model_seconds"
    """Seconds in the policy."""
    MEDIA_SECONDS = "media_seconds"
    """Seconds of decoding."""
    DURATION = "duration"
    """Length of the videos."""
    TURNS_ALLOWED = "turns_allowed"
    """Turns that the budget gave."""
    SEED = "seed"
    """Seed of the episode."""


class Imported(BaseModel):
    """Where a trajectory comes from that was not recorded by this package."""

    model_config = ConfigDict(frozen=True)

    format: str
    """Name of the format that was read (`runs.foreign.FORMATS`)."""
    place: str = ""
    """File and line, or the part of the file."""
    absent: tuple[Figure, ...] = ()
    """Figures that were not recorded; what their fields say means nothing."""
