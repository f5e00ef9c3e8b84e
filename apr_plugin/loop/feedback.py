"""Mistakes in an action, as values that the model reads. Model output never raises; every mistake costs a turn."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """The reasons to refuse an action."""

    MALFORMED_JSON = "MALFORMED_JSON"
    """The turn has no JSON object that can be read."""

    MISSING_KEY = "MISSING_KEY"
    """A key that the format requires is absent."""

    UNKNOWN_KEY = "UNKNOWN_KEY"
    """The object has a key that the format does not know (with `parsing=strict`)."""

    WRONG_TYPE = "WRONG_TYPE"
    """A value has the wrong type."""

    NOT_FINITE = "NOT_FINITE"
    """A number is NaN or infinite."""

    UNKNOWN_ACTION = "UNKNOWN_ACTION"
    """The action's type is not one of those offered."""

    UNKNOWN_VIDEO = "UNKNOWN_VIDEO"
    """The question has no video with that index."""

    UNKNOWN_FRAME = "UNKNOWN_FRAME"
    """The action or the answer names a frame that was never shown, or one of another video (`loop.references`)."""

    OUT_OF_RANGE = "OUT_OF_RANGE"
    """Part of the window is outside the video."""

    REVERSED_WINDOW = "REVERSED_WINDOW"
    """The window ends before it begins."""

    TOO_MANY_FRAMES = "TOO_MANY_FRAMES"
    """More frames were asked for than one look may show."""

    TOO_FEW_FRAMES = "TOO_FEW_FRAMES"
    """Fewer than one frame was asked for."""

    TOO_LONG = "TOO_LONG"
    """The audio or clip is longer than one look may be."""

    TOO_SHORT = "TOO_SHORT"
    """The audio or clip is too short to show anything."""

    NO_AUDIO = "NO_AUDIO"
    """The video has no audio track."""

    NO_PICTURE = "NO_PICTURE"
    """The file has only sound."""

    UNREADABLE = "UNREADABLE"
    """The sound of the window can't be decoded."""

    REPEATED_LOOK = "REPEATED_LOOK"
    """The same look at the same window was made before."""

    NO_TOKENS_LEFT = "NO_TOKENS_LEFT"
    """The look would cost more tokens than the episode, or the context of the model, has left."""

    EARLY_ANSWER = "EARLY_ANSWER"
    """An answer was given on the first turn, before anything was looked at."""

    ANSWER_FORM = "ANSWER_FORM"
    """The answer is not in the form that the question asks for."""

    ANSWER_EXPECTED = "ANSWER_EXPECTED"
    """It is the last turn, and only an answer counts."""

    ELSEWHERE = "ELSEWHERE"
    """Another program refused it, for a reason that has no code here; only in imported runs."""


@dataclass(frozen=True)
class ActionError:
    """A refused action."""

    code: ErrorCode
    """What was wrong."""

    message: str
    """One sentence that names the given value and the limit."""

    def feedback(self) -> str:
        """The text that the model reads in place of a percept."""
        return (
            f"[ERROR] {self.code}: {self.message} Nothing was shown and the turn is spent; correct this in your "
            "next turn."
        )
