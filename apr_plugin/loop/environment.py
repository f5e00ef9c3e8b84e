"""`Environment`: checks an action against the video and the budget, and returns a percept or an error the model can act on."""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import Self

import numpy as np

from apr_plugin.loop.action import GetAudio, GetClip, GetFrames, Look
from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.budget import PATCH_PIXELS, Budget, visual_tokens
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.question import MediaRef, Question
from apr_plugin.media import Frames, MediaOpenError, MediaSettings, fit
from apr_plugin.media.pool import POOL

MIN_FRAME_PIXELS = 4 * PATCH_PIXELS
"""Frames are not shrunk below this to fit a budget; fewer are shown instead."""

EDGE_S = 0.01
"""How far past the end a window may reach: durations are told to two decimals, so the model can't know better."""


class OpenVideo:
    """One of the question's videos: the file, or the window of it that the question is about."""

    def __init__(self, ref: MediaRef, settings: MediaSettings) -> None:
        self.video = POOL.borrow(ref.path, settings)
        self.offset_s = min(max(ref.start_s or 0.0, 0.0), self.video.duration_s)
        end_s = self.video.duration_s if ref.end_s is None else min(ref.end_s, self.video.duration_s)
        self.duration_s = max(end_s - self.offset_s, 0.0)
        if not self.duration_s > 0:
            self.close()
            part = f"{_or(ref.start_s, 0)}s to {_or(ref.end_s, 'its end')}"
            raise MediaOpenError(ref.path, "open", f"the question's part of it, {part}, holds nothing of its {self.video.duration_s:.2f}s")

    def close(self) -> None:
        """Give the file back."""
        POOL.give_back(self.video)


class Environment:
    """What an episode looks at.

    Args:
        budget: Limits of the episode.
        settings: How files are read.
    """

    def __init__(self, budget: Budget, settings: MediaSettings | None = None) -> None:
        self.budget, self.settings = budget, settings or MediaSettings()
        self.cancelled = threading.Event()
        """Set from another thread, it ends the read under way."""
        self.question: Question | None = None
        self.videos: list[OpenVideo] = []
        self.visual_tokens_spent = 0
        self._taken: dict[tuple[object, ...], int] = {}

    def reset(self, question: Question) -> None:
        """Open the question's videos.

        Raises:
            MediaOpenError: one of them can't be read.
        """
        self.close()
        self.question = question
        self.visual_tokens_spent = 0
        self._taken = {}
        for ref in question.videos:
            self.videos.append(OpenVideo(ref, self.settings))

    def close(self) -> None:
        """Give the files back."""
        for opened in self.videos:
            opened.close()
        self.videos = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def durations_s(self) -> tuple[float, ...]:
        """Length of each video in seconds."""
        return tuple(opened.duration_s for opened in self.videos)

    def check_answer(self, content: str) -> str | ActionError:
        """The canonical form of an answer, or what is wrong with it."""
        assert self.question is not None
        return canonical_answer(self.question, content, max(self.durations_s, default=None))

    def step(self, action: Look) -> Percept | ActionError:
        """Carry out one look.

        Returns:
            The percept, or the error that the model reads.

        Raises:
            MediaError: the file could not be decoded there. That is nothing the model did, so it ends the episode.
        """
        error = self._refuse(action)
        if error is not None:
            return error
        percept = self._look(action)
        left = self._tokens_left()
        if left is not None and percept.visual_tokens > left:
            message = f"this look costs {percept.visual_tokens} visual tokens and {left} are left; ask for fewer frames or a shorter clip, or answer."
            return ActionError(ErrorCode.NO_TOKENS_LEFT, message)
        self._taken[_identity(action)] = action.num if isinstance(action, GetFrames) else 1
        self.visual_tokens_spent += percept.visual_tokens
        return percept

    def uniform(self, num: int) -> list[Percept]:
        """The passive arm's one look: `num` frames in all, shared out by the videos' lengths, at least one each; sound alone has none.

        A frame stands for the middle of its stretch, so that the very ends are avoided as passive samplers do.
        """
        seen = [number for number, opened in enumerate(self.videos) if opened.video.has_video]
        total = sum(self.videos[number].duration_s for number in seen)
        percepts = []
        for number in seen:
            duration = self.videos[number].duration_s
            share = max(1, round(num * duration / total))
            percepts.append(self._frames(number, 0.0, duration, [duration * (i + 0.5) / share for i in range(share)]))
        return percepts

    def _tokens_left(self) -> int | None:
        if self.budget.visual_tokens_per_episode is None:
            return None
        return max(0, self.budget.visual_tokens_per_episode - self.visual_tokens_spent)

    @property
    def exhausted(self) -> bool:
        """Whether not even one small frame fits into what is left of the episode's visual tokens."""
        left = self._tokens_left()
        return left is not None and left < MIN_FRAME_PIXELS // PATCH_PIXELS

    def _refuse(self, action: Look) -> ActionError | None:
        limits = self.budget
        if not 0 <= action.video < len(self.videos):
            known = "no videos" if not self.videos else "only video 0" if len(self.videos) == 1 else f"videos 0 to {len(self.videos) - 1}"
            return ActionError(ErrorCode.UNKNOWN_VIDEO, f"there is no video {action.video}; the question has {known}.")
        opened = self.videos[action.video]
        start, end, duration = action.start, action.end, opened.duration_s
        if end < start:
            return ActionError(ErrorCode.REVERSED_WINDOW, f"the window ends at {end:.2f}s, before it begins at {start:.2f}s.")
        if start < 0 or end > duration + EDGE_S:
            return ActionError(
                ErrorCode.OUT_OF_RANGE, f"the window [{start:.2f}, {end:.2f}] lies outside the video, which lasts from 0 to {_floor2(duration):.2f}s."
            )
        end = min(end, duration)
        start = min(start, end)
        match action:
            case GetFrames(num=num):
                if not opened.video.has_video:
                    return ActionError(ErrorCode.NO_PICTURE, "the file has sound only; use get_audio.")
                if num > limits.frames_per_look:
                    return ActionError(ErrorCode.TOO_MANY_FRAMES, f"{num} frames were asked for; one look shows at most {limits.frames_per_look}.")
                if num < 1:
                    return ActionError(ErrorCode.TOO_FEW_FRAMES, f"{num} frames were asked for; ask for at least 1.")
            case GetAudio():
                if not opened.video.has_audio:
                    return ActionError(ErrorCode.NO_AUDIO, "the video has no audio track; use get_frames.")
                if end - start > limits.audio_s + EDGE_S:
                    return ActionError(ErrorCode.TOO_LONG, f"{end - start:.2f}s of audio were asked for; one look plays at most {limits.audio_s:g}s.")
                if end - start < max(limits.min_audio_s, 0.001):
                    return ActionError(ErrorCode.TOO_SHORT, f"{end - start:.2f}s of audio were asked for; ask for at least {limits.min_audio_s:g}s.")
            case GetClip():
                if not opened.video.has_video:
                    return ActionError(ErrorCode.NO_PICTURE, "the file has sound only; use get_audio.")
                if end - start > limits.clip_s + EDGE_S:
                    return ActionError(ErrorCode.TOO_LONG, f"a clip of {end - start:.2f}s was asked for; one look plays at most {limits.clip_s:g}s.")
                fps = opened.video.fps
                shortest = limits.min_clip_frames / fps if fps else 0.001
                if end - start < shortest:
                    return ActionError(
                        ErrorCode.TOO_SHORT,
                        f"a clip of {end - start:.2f}s was asked for; it must last at least {shortest:.2f}s ({limits.min_clip_frames} frames).",
                    )
        if (action.num if isinstance(action, GetFrames) else 1) <= self._taken.get(_identity(action), 0):
            return ActionError(
                ErrorCode.REPEATED_LOOK, f"{action.type} on [{start:.2f}, {end:.2f}] was already taken; use your notes, or look elsewhere or closer."
            )
        return None

    def _look(self, action: Look) -> Percept:
        opened = self.videos[action.video]
        start, end = action.start, min(action.end, opened.duration_s)
        start = min(start, end)
        match action:
            case GetFrames(num=num):
                return self._frames(action.video, start, end, np.linspace(start, end, num).tolist())
            case GetAudio():
                heard = opened.video.audio(*self._file_window(opened, start, end), cancelled=self.cancelled)
                remark = f"({heard.padded_s:.1f}s of it have no sound in the file.)" if heard.padded_s > 0.05 else ""
                return Percept(
                    "audio",
                    action.video,
                    start,
                    end,
                    waveform=heard.samples,
                    remark=remark,
                    several=self._several,
                    packets=heard.packets,
                    decode_s=heard.decode_s,
                )
            case GetClip():
                width, height, count = self._affordable(
                    opened, max(1, round((end - start) * self.budget.clip_fps)), self.budget.clip_pixels, per_pair=True
                )
                fps = self.budget.clip_fps if count >= round((end - start) * self.budget.clip_fps) else count / (end - start)
                clip = opened.video.clip(*self._file_window(opened, start, end), fps=fps, max_pixels=width * height, cancelled=self.cancelled)
                remarks = [] if fps == self.budget.clip_fps else [f"(Shown at {fps:.2f} frames per second to fit the token limit.)"]
                remarks += self._missing(opened, clip.frames)
                sound = clip.audio
                return Percept(
                    "clip",
                    action.video,
                    start,
                    end,
                    images=clip.frames.images,
                    times_s=self._own_times(opened, clip.frames.times_s),
                    fps=fps,
                    waveform=sound.samples if sound is not None else None,
                    remark=" ".join(remarks),
                    several=self._several,
                    mode=clip.frames.mode,
                    packets=clip.frames.packets + (sound.packets if sound is not None else 0),
                    decode_s=clip.frames.decode_s + (sound.decode_s if sound is not None else 0.0),
                )

    def _frames(self, video: int, start: float, end: float, times: list[float]) -> Percept:
        opened = self.videos[video]
        asked = len(times)
        width, height, count = self._affordable(opened, asked, self.budget.frame_pixels)
        remarks = []
        if count < asked:
            times = [times[round(i * (len(times) - 1) / max(1, count - 1))] for i in range(count)]
            remarks.append(f"(Only {count} of the frames asked for fit the token limit.)")
        file_times = [min(t + opened.offset_s, opened.video.duration_s) for t in times]
        shown = opened.video.frames(file_times, width * height, self.settings.mode, cancelled=self.cancelled)
        if count == asked and (width, height) != fit(*(opened.video.size or (0, 0)), self.budget.frame_pixels):
            remarks.append(f"(Scaled down to {shown.images.shape[2]}x{shown.images.shape[1]} to fit the token limit.)")
        first = [i for i, t in enumerate(shown.times_s) if t not in shown.times_s[:i]]
        remarks += self._missing(opened, shown)
        if len(first) < len(times) and not shown.missing_s:
            remarks.append(f"(The window holds {len(first)} different frames.)" if count == asked else f"({len(first)} of them differ.)")
        own = self._own_times(opened, tuple(shown.times_s[i] for i in first))
        return Percept(
            "frames",
            video,
            start,
            end,
            images=shown.images[first],
            times_s=own,
            remark=" ".join(remarks),
            several=self._several,
            mode=shown.mode,
            packets=shown.packets,
            decode_s=shown.decode_s,
        )

    def _missing(self, opened: OpenVideo, shown: Frames) -> list[str]:
        """What the model is told of a damaged stretch."""
        if not shown.missing_s:
            return []
        times = ", ".join(f"{t:.2f}s" for t in self._own_times(opened, shown.missing_s))
        return [f"(The file is damaged at {times}; what could be decoded next stands in, under its own time.)"]

    def _affordable(self, opened: OpenVideo, count: int, max_pixels: int, *, per_pair: bool = False) -> tuple[int, int, int]:
        """(width, height, count) of the pictures that fit the look's token limit: first fewer pixels, then fewer pictures."""
        width, height = fit(*(opened.video.size or (1, 1)), max_pixels)
        limit = self.budget.visual_tokens_per_look
        if limit is None:
            return width, height, count
        units = -(-count // 2) if per_pair else count
        while units * visual_tokens(width, height) > limit and width * height > MIN_FRAME_PIXELS:
            shrink = max(MIN_FRAME_PIXELS, int(width * height * min(0.95, limit / (units * visual_tokens(width, height)))))
            smaller = fit(width, height, shrink)
            if smaller == (width, height):
                break
            width, height = smaller
        units = min(units, max(1, limit // visual_tokens(width, height)))
        return width, height, min(count, units * 2 if per_pair else units)

    @property
    def _several(self) -> bool:
        return len(self.videos) > 1

    @staticmethod
    def _file_window(opened: OpenVideo, start: float, end: float) -> tuple[float, float]:
        return start + opened.offset_s, min(end + opened.offset_s, opened.video.duration_s)

    @staticmethod
    def _own_times(opened: OpenVideo, times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(max(0.0, t - opened.offset_s) for t in times)


def _identity(action: Look) -> tuple[object, ...]:
    """What makes two looks the same: the action, the video and the window to a hundredth of a second. More frames of it are a new look."""
    return (action.type, action.video, round(action.start, 2), round(action.end, 2))


def _or(value: float | None, otherwise: object) -> object:
    return otherwise if value is None else value


def _floor2(value: float) -> float:
    return math.floor(value * 100) / 100
