"""The four actions a policy may take, as validated values.

The JSON keys are the wire format that released OmniAgent checkpoints write (arXiv 2606.19341, appendix B): `type`,
`start`, `end`, `num`, `content`. This project adds `video`: the index of the video, for questions about several.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Action(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _Look(_Action):
    start: float
    """Beginning of the window, in seconds of the video."""

    end: float
    """End of the window, in seconds of the video."""

    video: int = 0
    """Which of the question's videos, counted from 0."""


class GetFrames(_Look):
    """Look at `num` frames, evenly spaced over the window, both ends included."""

    type: Literal["get_frames"] = "get_frames"
    num: int


class GetAudio(_Look):
    """Listen to the window."""

    type: Literal["get_audio"] = "get_audio"


class GetClip(_Look):
    """Watch the window as a moving clip, with its sound."""

    type: Literal["get_clip"] = "get_clip"


class Answer(_Action):
    """End the episode with an answer."""

    type: Literal["answer"] = "answer"
    content: str


Look = GetFrames | GetAudio | GetClip
Action = Annotated[GetFrames | GetAudio | GetClip | Answer, Field(discriminator="type")]

ACTIONS: dict[str, type[GetFrames] | type[GetAudio] | type[GetClip] | type[Answer]] = {
    "get_frames": GetFrames,
    "get_audio": GetAudio,
    "get_clip": GetClip,
    "answer": Answer,
}
"""Every action by its wire name."""


def offered_actions(modalities: Collection[str]) -> tuple[str, ...]:
    """The wire names of the actions for a policy that perceives these modalities (`frames`, `audio`, `clip`)."""
    return tuple(name for name in ACTIONS if name == "answer" or name.removeprefix("get_") in modalities)


def describe(action: Look | Answer) -> str:
    """One short line for traces: `get_frames 0.0s-60.0s x16`."""
    match action:
        case GetFrames():
            text = f"get_frames {action.start:.2f}s-{action.end:.2f}s x{action.num}"
        case GetAudio() | GetClip():
            text = f"{action.type} {action.start:.2f}s-{action.end:.2f}s"
        case Answer():
            return f"answer {action.content!r}"
    return text + (f" of video {action.video}" if action.video else "")
