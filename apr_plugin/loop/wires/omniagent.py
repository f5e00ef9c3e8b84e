"""`OmniAgentWire`: the form that the released OmniAgent checkpoints were trained on and evaluated with.

Source: HarryHsing/OmniAgent at 18725bc, `agent_system/environments/env_package/video_env.py` (short: V) and its
`qwen-vl-utils`; its released example rows (`data/example_train_sft.jsonl`) have the same form. The texts are part of
the format; `benchmarks/omniagent_parity.py` compares both sides. The table of differences from the default form, with
reasons, is in docs/wires.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from apr_plugin.loop.budget import FRAME_PAIR, LEAST_FRAME_PIXELS, PATCH_PIXELS, PATCH_PX, VISUAL_TOKEN, VisualToken
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Sampling
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.wires.apr import Size, VideoMeta, Wire, floored

LEAST_CLIP_PIXELS = 128 * PATCH_PIXELS
"""Smaller frames of a clip are scaled up to this many pixels."""

CLIP_PIXELS = int(128_000 * PATCH_PIXELS * 0.9)
"""Half of the pixels that all frames of a clip may have together, because frames count in pairs."""

MOST_CLIP_FRAMES = 768
"""Most frames of a clip."""

_GUIDES = {
    QuestionKind.MCQ: "ONE uppercase letter (A, B, C …).",
    QuestionKind.GROUNDING: "a JSON array of timestamp pairs such as [[10.5, 20.0]].",
    QuestionKind.FREE_FORM: "**your free-form answer text**.",
    QuestionKind.NUMBER: "**ONE number**, e.g. 42 or 3.14159.",
}
_SIZE_GUIDE = "**ONE number**, e.g. e.g., 203 or 10.3."


class OmniAgentWire(Wire):
    """Differences from the default form; each method names the place in the official code."""

    name = "omniagent"
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=20, stop=("```",))
    """`demo/omniagent_demo_pro.py`, lines 243-250: the settings of the published evaluation."""

    tells_form = True
    repeats = True
    distinct = False
    edge_s = 0.0

    def opening(self, question: Question, videos: Sequence[VideoMeta], modalities: Collection[str]) -> str:
        """Like the default, and also says how the answer is written (V 601-637), with its unit.

        Numbers with a unit are asked for in the same way as VSI-Bench's in training.
        """
        guide, hint = _GUIDES[question.kind], question.answer_hint
        if hint and question.kind is QuestionKind.NUMBER:
            guide = _SIZE_GUIDE
        # The unit of a size may be in the question; then the hint is blank.
        unit = f" ({hint})" if hint.strip() and question.kind in (QuestionKind.NUMBER, QuestionKind.FREE_FORM) else ""
        return f"{super().opening(question, videos, modalities)}\nWhen answering, set action.content to {guide}{unit}"

    def _meta(self, name: str, video: VideoMeta, modalities: Collection[str]) -> str:
        """Use lengths that are rounded down, and Python's words for true and false (V 606-608)."""
        heard = video.has_audio and "audio" in modalities
        fps = floored(video.fps) if video.fps else "unknown"
        return f"{name}\n- duration_seconds: {floored(video.duration_s)}\n- fps: {fps}\n- has_audio: {heard}"

    def notice(self, turn: int, turns: int) -> str:
        """Count finished steps (V 1136-1185)."""
        left = turns - turn + 1
        if left <= 1:
            return "\n[NOTICE] FINAL STEP! You MUST provide your answer now."
        return f"\n[NOTICE] Step {turn - 1}/{turns}. {left} steps remaining."

    def times(self, percept: Percept) -> tuple[float, ...]:
        """The requested times (V 746-780)."""
        return percept.asked_s or percept.times_s

    def _label(self, number: int, time_s: float) -> str:
        return f"Frame {self._stamp(number, time_s)}:"

    def frame_size(self, width: int, height: int, max_pixels: int, token: VisualToken = VISUAL_TOKEN) -> Size:
        """Sides in whole squares of 28 pixels, rounded down if the limit is exceeded; the same for every policy.

        Source: `smart_resize` of qwen-vl-utils.
        """
        return whole_squares(width, height, LEAST_FRAME_PIXELS, max_pixels)

    def clip_size(
        self, width: int, height: int, max_pixels: int, frames: int, token: VisualToken = VISUAL_TOKEN
    ) -> Size:
        """Like `frame_size`, with at least 128 squares; many frames get fewer pixels each.

        Source: `fetch_video` of qwen-vl-utils.
        """
        most = max(CLIP_PIXELS * FRAME_PAIR // max(1, frames), int(LEAST_CLIP_PIXELS * 1.05))
        return whole_squares(width, height, LEAST_CLIP_PIXELS, min(max_pixels, most))

    def clip_count(self, length_s: float, fps: float, file_fps: float | None) -> int:
        """An even number, rounded down, at least 2 and at most as many as the window has.

        Source: `smart_nframes` of qwen-vl-utils.
        """
        there = _frames_of(0.0, length_s, file_fps or fps)
        wanted = min(max(there / (file_fps or fps) * fps, FRAME_PAIR), MOST_CLIP_FRAMES, there)
        return max(1, int(wanted) // FRAME_PAIR * FRAME_PAIR)

    def clip_times(
        self, start_s: float, end_s: float, frames: int, fps: float, file_fps: float | None
    ) -> tuple[float, ...]:
        """Times evenly over the frames of the window, including the first and the last.

        Source: `_read_video_torchcodec` of qwen-vl-utils.
        """
        rate = file_fps or fps
        first, there = math.ceil(start_s * rate - 1e-3), _frames_of(start_s, end_s, rate)
        chosen = [round(i * (there - 1) / max(1, frames - 1)) for i in range(frames)]
        # The middle of the time that a frame is on screen, because its beginning is rounded to ticks.
        return tuple((first + i + 0.5) / rate for i in chosen)


def whole_squares(width: int, height: int, least: int, most: int) -> Size:
    """(width, height) in whole squares of 28 pixels, from `least` to `most` pixels if the shape allows it.

    This is the rule of Qwen's processors.
    """
    least = min(least, most)
    wide, high = max(PATCH_PX, round(width / PATCH_PX) * PATCH_PX), max(PATCH_PX, round(height / PATCH_PX) * PATCH_PX)
    if wide * high < least:
        grow = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * grow / PATCH_PX) * PATCH_PX for side in (width, height))
    if wide * high > most:
        shrink = math.sqrt(width * height / most)
        wide, high = (max(PATCH_PX, math.floor(side / shrink / PATCH_PX) * PATCH_PX) for side in (width, height))
    if wide * high > most:  # this is a strip, whose short side can't be made smaller
        longest = most // PATCH_PIXELS * PATCH_PX
        wide, high = min(wide, longest), min(high, longest)
    return wide, high


def _frames_of(start_s: float, end_s: float, rate: float) -> int:
    """Number of frames of the file whose time is in the window."""
    return max(1, math.ceil(end_s * rate - 1e-3) - math.ceil(start_s * rate - 1e-3))
