"""`Environment`: checks an action against the video and the budget, and returns a percept or an error.

The model can act on the error.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from apr_plugin.loop.action import GetAudio, GetClip, GetFrames, Look
from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.budget import LEAST_FRAME_PIXELS, VISUAL_TOKEN, Budget, VisualToken
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.open_video import OpenVideo
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.plan import LookPlan, refuse_length
from apr_plugin.loop.policy import EVERY_MODALITY, Modality
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.references import FrameNames
from apr_plugin.loop.wires import WIRES, Wire
from apr_plugin.loop.wires.apr import Size
from apr_plugin.media import Frames, MediaDecodeError, MediaSettings
from apr_plugin.scoring.intervals import merge


class Environment:
    """The videos that an episode looks at.

    Args:
        budget: Limits of the episode.
        settings: How files are read.
        modalities: What the policy can perceive; without `audio`, a clip is shown without its sound.
        wire: Which pictures a look has, and how large they are.
        token: What one visual token of the policy covers.
    """

    def __init__(
        self,
        budget: Budget,
        settings: MediaSettings | None = None,
        modalities: frozenset[Modality] = EVERY_MODALITY,
        wire: Wire = WIRES["apr"],
        token: VisualToken = VISUAL_TOKEN,
    ) -> None:
        self.budget = budget
        self.settings = settings or MediaSettings()
        self.modalities = modalities
        self.wire = wire
        self.token = token
        self.cancelled = threading.Event()
        """If it is set from another thread, the running read ends."""
        self.question: Question | None = None
        self.videos: list[OpenVideo] = []
        self.visual_tokens_spent = 0
        self.names = FrameNames(QuestionKind.FREE_FORM)
        """The frames shown so far, by which an action or an answer may name a time; `shown` adds to them."""
        self._taken: dict[tuple[object, ...], int] = {}

    def reset(self, question: Question) -> None:
        """Open the question's videos.

        Raises:
            MediaOpenError: one of them can't be read.
        """
        self.close()
        self.question = question
        self.visual_tokens_spent = 0
        self.names = FrameNames(question.kind)
        self._taken = {}
        for ref in question.videos:
            self.videos.append(OpenVideo(ref, self.settings))
            if self.cancelled.is_set():  # it was closed in the meantime by another thread
                self.close()
                return
        self.names = FrameNames(question.kind, durations_s=self.durations_s)

    def close(self) -> None:
        """Return the files to the pool."""
        for opened in self.videos:
            opened.close()
        self.videos = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            MediaError: the file could not be decoded there. This is not the model's mistake, so it ends the episode.
        """
        plan = self.plan(action)
        outcome = plan if isinstance(plan, ActionError) else self.look(plan)
        if isinstance(outcome, Percept):
            self.shown(outcome)
        return outcome

    def shown(self, percept: Percept) -> None:
        """Give the frames of a look their names, once it is certain that the model sees it.

        `step` does this itself. Whoever calls `plan` and `look` may still refuse the percept between them.
        """
        look = percept.shown().names
        if look is not None:
            self.names = self.names.with_look(look)

    def plan(self, action: Look, visual_tokens: int | None = None) -> LookPlan | ActionError:
        """Check an action against the video and the budget, and plan what it will show; nothing is decoded.

        Args:
            action: The requested action.
            visual_tokens: A limit for this look in addition to the budget's: if it is exceeded, fewer pixels are shown,
                then fewer pictures (at least one).
        """
        error = self._refuse(action)
        if error is not None:
            return error
        opened = self.videos[action.video]
        end = min(action.end, opened.sound_s if isinstance(action, GetAudio) else opened.duration_s)
        start = min(action.start, end)
        match action:
            case GetFrames(num=num):
                return self._plan_frames(
                    action.video, start, end, np.linspace(start, end, num).tolist(), visual_tokens, action
                )
            case GetAudio():
                return LookPlan(
                    "audio",
                    action.video,
                    start,
                    end,
                    action,
                    sound=True,
                    subtitles=opened.subtitles_within(start, end),
                    several=self._several,
                    fitted=visual_tokens is not None,
                    look=self._next_look,
                    token=self.token,
                )
            case GetClip():
                return self._plan_clip(action, start, end, visual_tokens)

    def look(self, plan: LookPlan) -> Percept | ActionError:
        """Carry out a planned look, and count it.

        Raises:
            MediaError: as in `step`.
        """
        try:
            percept = self.show(plan)
        except MediaDecodeError as error:
            if plan.kind != "audio":
                raise
            window = f"the sound from {plan.start_s:.2f}s to {plan.end_s:.2f}s"
            return ActionError(
                ErrorCode.UNREADABLE, f"{window} can't be decoded ({error.reason}); {self._instead('get_frames')}."
            )
        left = self._tokens_left()
        if left is not None and percept.visual_tokens > left:
            message = (
                f"this look costs {percept.visual_tokens} visual tokens and {left} are left; ask for fewer frames "
                "or a shorter clip, or answer."
            )
            return ActionError(ErrorCode.NO_TOKENS_LEFT, message)
        if plan.action is not None:
            self._taken[_identity(plan.action)] = plan.action.num if isinstance(plan.action, GetFrames) else 1
        self.visual_tokens_spent += percept.visual_tokens
        return percept

    def plan_uniform(self, num: int, visual_tokens: int | None = None) -> list[LookPlan]:
        """Plan the passive arm's one look: `num` frames in total, divided by the videos' lengths.

        Each video has at least one frame, and a file with sound only has none. Each frame is the middle of its part of
        the video, so that the first and last frames are avoided, as in passive samplers.

        Args:
            num: Number of frames.
            visual_tokens: A limit for all of them, divided in the same way.
        """
        seen = [number for number, opened in enumerate(self.videos) if opened.video.has_video]
        total = sum(self.videos[number].duration_s for number in seen)
        plans = []
        for number in seen:
            duration = self.videos[number].duration_s
            share = max(1, round(num * duration / total))
            limit = None if visual_tokens is None else max(1, int(visual_tokens * duration / total))
            plans.append(
                self._plan_frames(number, 0.0, duration, [duration * (i + 0.5) / share for i in range(share)], limit)
            )
        return plans

    def plan_spans(
        self, spans: Sequence[tuple[float, float]], num: int, visual_tokens: int | None = None
    ) -> list[LookPlan]:
        """Plan one look: `num` frames of the first video, spread over these spans by their length, in order of time.

        Args:
            spans: (start, end) in seconds of the video; parts outside it are left out.
            num: Number of frames.
            visual_tokens: A limit for all of them.
        """
        if not self.videos or not self.videos[0].video.has_video:
            return []
        duration = self.videos[0].duration_s
        inside = [(min(max(0.0, start), duration), min(max(0.0, end), duration)) for start, end in merge(spans)]
        total = sum(end - start for start, end in inside)
        times = []
        for i in range(num):
            left = total * (i + 0.5) / num
            for start, end in inside:
                if left <= end - start:
                    times.append(start + left)
                    break
                left -= end - start
        return [self._plan_frames(0, inside[0][0], inside[-1][1], times, visual_tokens)] if times else []

    def _tokens_left(self) -> int | None:
        if self.budget.visual_tokens_per_episode is None:
            return None
        return max(0, self.budget.visual_tokens_per_episode - self.visual_tokens_spent)

    @property
    def exhausted(self) -> bool:
        """Whether the rest of the episode's visual tokens is too small even for one small frame."""
        left = self._tokens_left()
        return left is not None and left < self.token.of_least_frame

    def _refuse(self, action: Look) -> ActionError | None:
        limits = self.budget
        if not 0 <= action.video < len(self.videos):
            known = (
                "no videos"
                if not self.videos
                else "only video 0"
                if len(self.videos) == 1
                else f"videos 0 to {len(self.videos) - 1}"
            )
            return ActionError(ErrorCode.UNKNOWN_VIDEO, f"there is no video {action.video}; the question has {known}.")
        opened = self.videos[action.video]
        start, end = action.start, action.end
        duration = opened.sound_s if isinstance(action, GetAudio) else opened.duration_s
        if end < start:
            return ActionError(
                ErrorCode.REVERSED_WINDOW, f"the window ends at {end:.2f}s, before it begins at {start:.2f}s."
            )
        if start < 0 or end > duration + self.wire.edge_s:
            lasts = f"which lasts from 0 to {_floor2(duration):.2f}s"
            if opened.sound_s > opened.duration_s:
                lasts = (
                    f"whose pictures last from 0 to {_floor2(opened.duration_s):.2f}s and whose sound lasts to "
                    f"{_floor2(opened.sound_s):.2f}s"
                )
            return ActionError(
                ErrorCode.OUT_OF_RANGE, f"the window [{start:.2f}, {end:.2f}] lies outside the video, {lasts}."
            )
        end = min(end, duration)
        start = min(start, end)
        match action:
            case GetFrames(num=num):
                if not opened.video.has_video:
                    return ActionError(ErrorCode.NO_PICTURE, f"the file has sound only; {self._instead('get_audio')}.")
                if num > limits.frames_per_look:
                    return ActionError(
                        ErrorCode.TOO_MANY_FRAMES,
                        f"{num} frames were asked for; one look shows at most {limits.frames_per_look}.",
                    )
                if num < 1:
                    return ActionError(ErrorCode.TOO_FEW_FRAMES, f"{num} frames were asked for; ask for at least 1.")
            case GetAudio():
                if not opened.video.has_audio:
                    return ActionError(
                        ErrorCode.NO_AUDIO, f"the video has no audio track; {self._instead('get_frames')}."
                    )
                least = (max(limits.min_audio_s, 0.001), "")
                error = refuse_length(
                    "audio", end - start, least, limits.audio_s, self.wire.edge_s, duration, self._instead("get_frames")
                )
                if error is not None:
                    return error
            case GetClip():
                if not opened.video.has_video:
                    return ActionError(ErrorCode.NO_PICTURE, f"the file has sound only; {self._instead('get_audio')}.")
                fps = opened.video.fps
                least = (limits.min_clip_frames / fps if fps else 0.001, f" ({limits.min_clip_frames} frames)")
                error = refuse_length(
                    "clip", end - start, least, limits.clip_s, self.wire.edge_s, duration, self._instead("get_frames")
                )
                if error is not None:
                    return error
        if not self.wire.repeats and (action.num if isinstance(action, GetFrames) else 1) <= self._taken.get(
            _identity(action), 0
        ):
            return ActionError(
                ErrorCode.REPEATED_LOOK,
                f"{action.type} on [{start:.2f}, {end:.2f}] was already taken; use your notes, or look "
                "elsewhere or closer.",
            )
        return None

    def show(self, plan: LookPlan) -> Percept:
        """Decode what was planned.

        Raises:
            MediaError: as in `step`.
        """
        opened = self.videos[plan.video]
        percept = Percept(
            plan.kind,
            plan.video,
            plan.start_s,
            plan.end_s,
            fps=plan.fps,
            several=plan.several,
            fitted=plan.fitted,
            look=plan.look,
            token=plan.token,
        )
        remarks = list(plan.remarks)
        if plan.times_s:
            mode = self.settings.mode if plan.kind == "frames" else "exact"
            file_times = [min(t + opened.offset_s, opened.video.duration_s) for t in plan.times_s]
            shown = opened.video.frames(file_times, mode=mode, size=(plan.width, plan.height), cancelled=self.cancelled)
            every = plan.kind == "clip" or not self.wire.distinct
            kept = [i for i, t in enumerate(shown.times_s) if every or t not in shown.times_s[:i]]
            remarks += self._missing(opened, shown)
            if len(kept) < len(plan.times_s) and not shown.missing_s:
                whole = len(plan.times_s) == plan.asked
                remarks.append(
                    f"(The window holds {len(kept)} different frames.)" if whole else f"({len(kept)} of them differ.)"
                )
            file_s = tuple(shown.times_s[i] for i in kept)
            own = self._own_times(opened, file_s)
            images = shown.images if len(kept) == len(shown.times_s) else shown.images[kept]
            asked = self._asked(plan, file_times, shown, kept, own) if plan.kind == "frames" else ()
            percept = replace(percept, images=images, times_s=own, asked_s=asked, file_s=file_s)
            percept = replace(percept, mode=shown.mode, packets=shown.packets, decode_s=shown.decode_s)
        if plan.sound:
            try:
                window = self._file_window(opened, plan.start_s, plan.end_s)
                heard = opened.video.audio(*window, cancelled=self.cancelled)
            except MediaDecodeError:
                if plan.kind == "audio":
                    raise
                return replace(percept, remark=plan.in_words([*remarks, "(Its sound can't be decoded.)"]))
            if plan.kind == "audio" and heard.padded_s > 0.05:
                remarks.append(f"({heard.padded_s:.1f}s of it have no sound in the file.)")
            packets, decode_s = percept.packets + heard.packets, percept.decode_s + heard.decode_s
            percept = replace(percept, waveform=heard.samples, sound_file_s=window, packets=packets, decode_s=decode_s)
        return replace(percept, remark=plan.in_words(remarks))

    def _plan_frames(
        self,
        video: int,
        start: float,
        end: float,
        times: list[float],
        limit: int | None,
        action: GetFrames | None = None,
    ) -> LookPlan:
        opened, asked = self.videos[video], len(times)
        whole = opened.video.size or (1, 1)
        size = partial(self.wire.frame_size, *whole, token=self.token)
        (width, height), count = self._affordable(size, self.budget.frame_pixels, asked, limit)
        if count < asked:
            times = [times[round(i * (len(times) - 1) / max(1, count - 1))] for i in range(count)]
            remarks = [f"(Only {count} of the frames asked for fit the token limit.)"]
        else:
            remarks = _scaled((width, height), size(self.budget.frame_pixels))
        return LookPlan(
            "frames",
            video,
            start,
            end,
            action,
            tuple(times),
            width,
            height,
            asked,
            remarks=tuple(remarks),
            subtitles=opened.subtitles_at(times),
            several=self._several,
            fitted=limit is not None,
            look=0 if action is None else self._next_look,
            token=self.token,
        )

    def _plan_clip(self, action: GetClip, start: float, end: float, limit: int | None) -> LookPlan:
        opened = self.videos[action.video]
        whole, file_fps = opened.video.size or (1, 1), opened.video.fps
        wanted = self.wire.clip_count(end - start, self.budget.clip_fps, file_fps)

        def size(pixels: int) -> Size:
            return self.wire.clip_size(*whole, pixels, wanted, self.token)

        (width, height), count = self._affordable(size, self.budget.clip_pixels, wanted, limit, per_pair=True)
        fps = self.budget.clip_fps if count >= wanted else count / (end - start)
        if count < wanted:
            remarks = [f"(Shown at {fps:.2f} frames per second to fit the token limit.)"]
        else:
            remarks = _scaled((width, height), size(self.budget.clip_pixels))
        times = self.wire.clip_times(start + opened.offset_s, end + opened.offset_s, count, fps, file_fps)
        return LookPlan(
            "clip",
            action.video,
            start,
            end,
            action,
            self._own_times(opened, times),
            width,
            height,
            wanted,
            fps,
            sound=opened.video.has_audio and "audio" in self.modalities,
            remarks=tuple(remarks),
            subtitles=opened.subtitles_within(start, end),
            several=self._several,
            fitted=limit is not None,
            look=self._next_look,
            token=self.token,
        )

    @property
    def _next_look(self) -> int:
        return len(self.names.looks) + 1

    @staticmethod
    def _asked(
        plan: LookPlan, file_times: list[float], shown: Frames, kept: list[int], own: tuple[float, ...]
    ) -> tuple[float, ...]:
        """The time for which each frame was requested; a frame that replaces a damaged one has its own time."""
        return tuple(t if file_times[i] in shown.missing_s else plan.times_s[i] for i, t in zip(kept, own, strict=True))

    def _missing(self, opened: OpenVideo, shown: Frames) -> list[str]:
        """The text for the model about a damaged stretch."""
        if not shown.missing_s:
            return []
        times = ", ".join(f"{t:.2f}s" for t in self._own_times(opened, shown.missing_s))
        return [f"(The file is damaged at {times}; what could be decoded next stands in, under its own time.)"]

    def _affordable(
        self, size: Callable[[int], Size], max_pixels: int, count: int, limit: int | None, *, per_pair: bool = False
    ) -> tuple[Size, int]:
        """Size and count of the pictures that fit the token limits: first fewer pixels, then fewer pictures.

        Args:
            size: Gives the size of a picture of at most so many pixels.
            max_pixels: Pixels that one picture may have.
            count: Number of pictures asked for.
            limit: Visual tokens of this look, in addition to the budget's limit.
            per_pair: Whether pictures count in groups, as in a clip.
        """
        width, height = size(max_pixels)
        limits = [n for n in (limit, self.budget.visual_tokens_per_look) if n is not None]
        if not limits:
            return (width, height), count
        most = min(limits)
        cost = self.token.of_picture
        units = self.token.groups(count) if per_pair else count
        while units * cost(width, height) > most and width * height > LEAST_FRAME_PIXELS:
            shrink = max(LEAST_FRAME_PIXELS, int(width * height * min(0.95, most / (units * cost(width, height)))))
            smaller = size(shrink)
            if smaller == (width, height):
                break
            width, height = smaller
        units = min(units, max(1, most // cost(width, height)))
        return (width, height), min(count, units * self.token.frames if per_pair else units)

    def _instead(self, action: str) -> str:
        offered = action.removeprefix("get_") in self.modalities
        return f"use {action}" if offered else "you can perceive nothing of it; answer"

    @property
    def _several(self) -> bool:
        return len(self.videos) > 1

    @staticmethod
    def _file_window(opened: OpenVideo, start: float, end: float) -> tuple[float, float]:
        return start + opened.offset_s, min(end + opened.offset_s, opened.video.sound_s)

    @staticmethod
    def _own_times(opened: OpenVideo, times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(max(0.0, t - opened.offset_s) for t in times)


def _scaled(size: Size, unlimited: Size) -> list[str]:
    return [] if size == unlimited else [f"(Scaled down to {size[0]}x{size[1]} to fit the token limit.)"]


def _identity(action: Look) -> tuple[object, ...]:
    """What makes two looks the same: the action, the video, and the window to a hundredth of a second.

    More frames of the same window are a new look.
    """
    return (action.type, action.video, round(action.start, 2), round(action.end, 2))


def _floor2(value: float) -> float:
    return math.floor(value * 100) / 100
