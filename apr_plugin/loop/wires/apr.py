"""`Wire`: this project's own form, for models that were not trained on another one.

Other wires define only their differences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.percept import OMITTED, Percept
from apr_plugin.loop.policy import AudioPart, ImagePart, Part, Sampling, TextPart, VideoPart
from apr_plugin.loop.question import Question
from apr_plugin.loop.references import Named
from apr_plugin.loop.trajectory import Turn
from apr_plugin.media import fit

Size = tuple[int, int]
"""(width, height) in pixels."""


def frame_label(time_s: float) -> str:
    """The text before a frame."""
    return f"\nFrame {time_s:.2f}s:"


@dataclass(frozen=True)
class VideoMeta:
    """What a policy is told about a video before it looks."""

    duration_s: float
    fps: float | None
    has_audio: bool
    audio_s: float | None = None
    """End of the sound, if it is longer than the pictures."""


class Wire:
    """The default form: true times, each picture once, shapes kept."""

    name = "apr"
    """Its name in the setting `wire`."""

    sampling = Sampling()
    """How turns are sampled by default."""

    repeats = False
    """Whether the same look may be taken again."""

    distinct = True
    """Whether a picture that was asked for several times in one look is shown once."""

    tells_form = False
    """Whether the first user message says how the answer is written."""

    edge_s = 0.01
    """How far past a limit a window may reach: durations are given in two decimals, so the model can't know better."""

    references = False
    """Whether shown frames have names that an action or an answer may give in place of times (`loop.references`)."""

    frame_times = True
    """Whether the label of a frame with a name has its time too."""

    instructions: str | None = None
    """Its own instructions, as a template (`loop.notebook.render_instructions`); `None`: the default ones."""

    heading_end = "."
    """Follows the heading of frames that are shown."""

    noted = "[NOTICE] The turn was noted."
    """What comes back of a turn with neither a look nor an error."""

    def __init__(self, references: bool | None = None, frame_times: bool | None = None) -> None:
        """Make the wire, with or without references; `None` is its default.

        Raises:
            ValueError: frames would have neither a name nor a time.
        """
        self.references = type(self).references if references is None else references
        self.frame_times = type(self).frame_times if frame_times is None else frame_times
        if not (self.references or self.frame_times):
            raise ValueError(
                "frame_times=false needs frame_references=true: frames would have neither a name nor a time"
            )

    def opening(self, question: Question, videos: Sequence[VideoMeta], modalities: Collection[str]) -> str:
        """The first user message: what is known of each video, then the question."""
        blocks = [
            self._meta("Video META:" if len(videos) == 1 else f"Video {n} META:", video, modalities)
            for n, video in enumerate(videos)
        ]
        lines = [f"Question: {question.text}"]
        if question.options:
            lines.append("Options:")
            lines += [f"{option.label}. {option.text}" for option in question.options]
        return "\n\n".join([*blocks, "\n".join(lines)])

    def _meta(self, name: str, video: VideoMeta, modalities: Collection[str]) -> str:
        lines = [
            name,
            f"- duration_seconds: {floored(video.duration_s)}",
            f"- fps: {f'{video.fps:.2f}' if video.fps else 'unknown'}",
        ]
        if "audio" in modalities:  # this would mislead a policy that can't hear
            lines.append(f"- has_audio: {str(video.has_audio).lower()}")
            if video.audio_s is not None:
                lines.append(f"- audio_seconds: {floored(video.audio_s)}")
        return "\n".join(lines)

    def notice(self, turn: int, turns: int) -> str:
        """The end of the prompt of turn `turn` (counted from 1) of `turns`."""
        left = turns - turn
        if left <= 0:
            return (
                f"\n[NOTICE] Step {turn}/{turns}. FINAL STEP: only an answer counts now. Give the best answer "
                "that your notes allow."
            )
        return f"\n[NOTICE] Step {turn}/{turns}. {left} step{'' if left == 1 else 's'} remaining."

    def forced_notice(self, reason: str) -> str:
        """The end of the last call for an answer, which a limit made necessary."""
        return (
            f"\n[NOTICE] {reason} Nothing more can be looked at. Reply with one JSON object whose action is the "
            "answer, from your notes."
        )

    def left_out(self, which: str) -> str:
        """The end of the first user message if turns are left out: `turn 1` or `turns 1 to 3`."""
        return f"\n\n[NOTICE] Your notes of {which} do not fit any more and are left out."

    def error(self, error: ActionError) -> str:
        """A refused action, in place of a percept."""
        return error.feedback()

    def parts(self, percept: Percept) -> tuple[Part, ...]:
        """A percept with its media, for the one generation that sees it."""
        remark = f" {percept.remark}" if percept.remark else ""
        match percept.kind:
            case "frames":
                assert percept.images is not None
                parts: list[Part] = [TextPart(f"{self.heading(percept)}{self.heading_end}{remark}")]
                for number, (time_s, image) in enumerate(zip(self.times(percept), percept.images, strict=True), 1):
                    label = [] if percept.untimed else [TextPart(self._label(number, time_s))]
                    parts += [*label, ImagePart(image)]
                return tuple(parts)
            case "audio":
                assert percept.waveform is not None
                return (TextPart(f"{self.heading(percept)}{remark}"), AudioPart(percept.waveform, percept.sample_rate))
            case "clip":
                assert percept.images is not None
                sound = AudioPart(percept.waveform, percept.sample_rate) if percept.waveform is not None else None
                return (
                    TextPart(f"{self.heading(percept)}{remark}"),
                    VideoPart(percept.images, percept.times_s, percept.fps, sound),
                )

    def placeholder(self, percept: Percept) -> str:
        """What stays in the prompt without the media: the same heading and the same times."""
        if percept.kind == "frames":
            stamps = ", ".join(self._stamp(number, t) for number, t in enumerate(self.times(percept), 1))
            return f"{self.heading(percept)}. Timestamps: [{stamps}] {OMITTED}"
        return f"{self.heading(percept)} {OMITTED}"

    def heading(self, percept: Percept) -> str:
        """The beginning of a percept and of its placeholder."""
        look = f"Look {percept.look}: " if self.references and percept.look else ""
        video = look + (f"Video {percept.video}: " if percept.several else "")
        if percept.kind == "frames":
            times = self.times(percept)
            if percept.untimed:
                return f"{video}Frames in no order (num={len(times)})"
            if len(times) == 1:
                return f"{video}Frame at {times[0]:.2f}s (num=1)"
            return f"{video}Frames {percept.start_s:.2f}s-{percept.end_s:.2f}s (num={len(times)})"
        edges = f" (#{percept.look}.1 to #{percept.look}.2)" if look else ""
        kind = "Audio" if percept.kind == "audio" else "Clip"
        return f"{video}{kind} {percept.start_s:.2f}s-{percept.end_s:.2f}s{edges}"

    def times(self, percept: Percept) -> tuple[float, ...]:
        """The time written at each frame, in seconds of the video: the time at which it is on screen."""
        return percept.times_s

    def _label(self, number: int, time_s: float) -> str:
        """The text before the frame with this number."""
        return f"\nFrame {self._stamp(number, time_s)}:" if self.references else frame_label(time_s)

    def _stamp(self, number: int, time_s: float) -> str:
        """How the frame with this number is called: its name, its time or both."""
        name, time = f"#{number}" if self.references else "", f"{time_s:.2f}s" if self.frame_times else ""
        return " ".join(part for part in (name, time) if part)

    def written(self, turn: Turn, several: bool = False) -> str:
        """A turn in the one form in which it is taught: a line of JSON with the four keys, in their order.

        Frames that the turn names stay named.

        Args:
            turn: A turn with an action and a confidence.
            several: Whether the question has several videos; only then the action names one.
        """
        assert turn.action is not None and turn.confidence is not None
        whole = {
            "observation": turn.observation,
            "think": turn.think,
            "confidence": turn.confidence,
            "action": arguments(turn, several),
        }
        return json.dumps(whole, ensure_ascii=False)

    def frame_size(self, width: int, height: int, max_pixels: int, token: VisualToken = VISUAL_TOKEN) -> Size:
        """The size at which a frame is shown: its own shape, with at most `max_pixels`.

        It has no more visual tokens than that many pixels have. A processor rounds sides to whole squares of a token,
        also upwards, so the tokens are counted after rounding.
        """
        size = fit(width, height, max_pixels)
        side = token.side_px
        most, longer = max(1, max_pixels // side**2), max(size)
        while token.of_picture(*size) > most and longer > 1:
            longer = min(longer - 1, math.ceil((most + 0.5) * side))
            size = max(1, width * longer // max(width, height)), max(1, height * longer // max(width, height))
        return size

    def clip_size(
        self, width: int, height: int, max_pixels: int, frames: int, token: VisualToken = VISUAL_TOKEN
    ) -> Size:
        """The size at which each of a clip's frames is shown."""
        return self.frame_size(width, height, max_pixels, token)

    def clip_count(self, length_s: float, fps: float, file_fps: float | None) -> int:
        """How many frames a clip shows of a window, sampled at `fps`."""
        return max(1, round(length_s * fps))

    def clip_times(
        self, start_s: float, end_s: float, frames: int, fps: float, file_fps: float | None
    ) -> tuple[float, ...]:
        """Times of a clip's frames, in seconds of the file, evenly from the window's beginning on.

        Their spacing is the frame rate.

        Args:
            start_s: Beginning of the window, in seconds of the file.
            end_s: End of the window.
            frames: Number of frames: `clip_count`, or fewer if a limit leaves fewer.
            fps: Frames per second at which they are sampled.
            file_fps: The file's own frame rate, if it has one.
        """
        return tuple(t for t in (start_s + i / fps for i in range(frames)) if t < end_s)


def arguments(turn: Turn, several: bool) -> dict[str, str | int | float]:
    """The action of a turn as its JSON object, with the frames that it names."""
    action, named = turn.action, turn.named or Named()
    assert action is not None
    if isinstance(action, Answer):
        return {"type": action.type, "content": action.content if named.content is None else named.content}
    found: dict[str, str | int | float] = {
        "type": action.type,
        "start": action.start if named.start is None else named.start,
        "end": action.end if named.end is None else named.end,
    }
    found |= {"num": action.num} if isinstance(action, GetFrames) else {}
    return found | ({"video": action.video} if several else {})


def floored(value: float) -> str:
    """Two decimals, rounded down: the length that the model is told must not be past the end."""
    return f"{math.floor(value * 100) / 100:.2f}"
