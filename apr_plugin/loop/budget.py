"""`Budget`: the limits of an episode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PATCH_PX = 28
"""Side in pixels of the square of one visual token of the released Qwen2.5-VL and -Omni (14-pixel patches merged two by
two), and of every policy that doesn't tell its own (`VisualToken`)."""

PATCH_PIXELS = PATCH_PX * PATCH_PX

LEAST_PATCHES = 4
"""Squares of the smallest picture: to fit a limit, frames are not made smaller than this; fewer are shown."""

LEAST_FRAME_PIXELS = LEAST_PATCHES * PATCH_PIXELS
"""Its pixels."""

FRAME_PAIR = 2
"""Number of frames of a clip that are read as one picture by every released checkpoint of `models/families.py`, and of
every policy that doesn't tell its own (`VisualToken`)."""

DAY_S = 86_400
"""The longest window of any look, in seconds."""

MOST_PIXELS = 2**26
"""The largest picture that a look may show, in pixels (8192 x 8192)."""

MOST_TOKENS = 10**9
"""The largest limit on tokens; `None` is no limit."""


@dataclass(frozen=True)
class VisualToken:
    """How much of a picture, or of a clip, one visual token covers."""

    side_px: int = PATCH_PX
    """Side of its square in pixels: the encoder's patch size times its merge size."""

    frames: int = FRAME_PAIR
    """Frames of a clip that are read as one picture."""

    def of_picture(self, width: int, height: int) -> int:
        """Visual tokens of one picture: one per square, sides rounded to whole squares, at least one square each.

        This is the rule of Qwen's processors, except for very narrow pictures and for limits of the processor itself.
        """
        return max(1, round(width / self.side_px)) * max(1, round(height / self.side_px))

    def of_clip(self, width: int, height: int, frames: int) -> int:
        """Visual tokens of a clip."""
        return self.of_picture(width, height) * self.groups(frames)

    def groups(self, frames: int) -> int:
        """Number of groups in which the frames of a clip are read; the last frame is repeated to fill its group."""
        return -(-frames // self.frames)

    def described(self) -> dict[str, Any]:
        """Part of a policy's description of itself; empty for the default, so that earlier runs keep their hash."""
        return {} if self == VISUAL_TOKEN else {"visual_token": {"side_px": self.side_px, "frames": self.frames}}

    @property
    def of_least_frame(self) -> int:
        """Visual tokens of the smallest picture."""
        return max(1, LEAST_FRAME_PIXELS // self.side_px**2)


VISUAL_TOKEN = VisualToken()
"""That of Qwen2.5-VL and -Omni."""


def visual_tokens(width: int, height: int) -> int:
    """Visual tokens of one picture by the 28-pixel rule, see `VisualToken.of_picture`."""
    return VISUAL_TOKEN.of_picture(width, height)


def frame_pairs(frames: int) -> int:
    """Number of pairs in which the frames of a clip are read, see `VisualToken.groups`."""
    return VISUAL_TOKEN.groups(frames)


class Budget(BaseModel):
    """What one episode may spend.

    The defaults suit a 7B model with a 32K context; `PROFILES["omniagent"]` holds the published values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: int | None = Field(default=None, ge=1, le=10_000)
    """A fixed number of turns; with `None` the number grows with the video's length up to `max_turns`."""

    min_turns: int = Field(default=5, ge=1, le=10_000)
    """Turns for a video of length 0."""

    max_turns: int = Field(default=32, ge=1, le=10_000)
    """Largest number of turns."""

    frames_per_look: int = Field(default=60, ge=1, le=100_000)
    """Most frames that one `get_frames` may ask for."""

    audio_s: float = Field(default=300.0, gt=0, le=DAY_S)
    """Most seconds that one `get_audio` may ask for."""

    min_audio_s: float = Field(default=0.1, ge=0, le=DAY_S)
    """Fewest seconds that one `get_audio` must ask for."""

    clip_s: float = Field(default=60.0, gt=0, le=DAY_S)
    """Most seconds that one `get_clip` may ask for; also the unit of length from which the number of turns is
    computed."""

    min_clip_frames: int = Field(default=4, ge=1, le=10_000)
    """Fewest frames of the file that one `get_clip` must span."""

    clip_fps: float = Field(default=2.0, gt=0, le=1000)
    """Frames per second at which a clip is sampled."""

    frame_pixels: int = Field(default=448 * 448, ge=LEAST_FRAME_PIXELS, le=MOST_PIXELS)
    """Pixels of one frame; larger ones are scaled down."""

    clip_pixels: int = Field(default=336 * 336, ge=LEAST_FRAME_PIXELS, le=MOST_PIXELS)
    """Pixels of one frame of a clip."""

    visual_tokens_per_look: int | None = Field(default=16_384, ge=LEAST_PATCHES, le=MOST_TOKENS)
    """Visual tokens of one look. A look that would cost more is shown with fewer pixels, then with fewer frames, and
    the model is told."""

    visual_tokens_per_episode: int | None = Field(default=None, ge=LEAST_PATCHES, le=MOST_TOKENS)
    """Visual tokens of all looks together; a look that exceeds this is refused."""

    prompt_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Tokens of one prompt, including media; in addition to the limit of the model's context."""

    tokens_per_episode: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Prompt and completion tokens of all turns together, as the policy counts them. After this limit, only an answer
    is asked for."""

    wall_clock_s: float | None = Field(default=None, ge=0.1, le=366 * DAY_S)
    """Seconds that an episode may take; a generation that is still running then is stopped."""

    refuse_blind_answer: bool = True
    """Whether an answer on the first turn, before any look, is refused."""

    on_last_turn: Literal["force", "fail"] = "force"
    """What happens when the turns are used up without an answer: ask once more for the answer alone, or fail (the
    published behaviour)."""

    def turns_for(self, duration_s: float) -> int:
        """The number of turns for a question about `duration_s` seconds of video.

        It is `min(min_turns + floor(duration / clip_s), max_turns)`. With several videos their durations are added.
        OmniAgent (arXiv 2606.19341) counts the same way, with 5, 60 s and 22 (training) or 32.
        """
        if self.turns is not None:
            return self.turns
        return min(self.min_turns + math.floor(duration_s / self.clip_s), self.max_turns)
