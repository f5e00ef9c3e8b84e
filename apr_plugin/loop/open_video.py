"""`OpenVideo`: one of a question's videos, open while an episode looks at it."""

from __future__ import annotations

from collections.abc import Sequence

from apr_plugin.loop.question import MediaRef
from apr_plugin.loop.trajectory import Film
from apr_plugin.media import OUTLASTS_S, MediaOpenError, MediaSettings, media_digest
from apr_plugin.media.confine import confine
from apr_plugin.media.pool import POOL
from apr_plugin.media.subtitles import Cue, at_times, in_words, read_cues, within


class OpenVideo:
    """One of the question's videos: the file, or the window of it that the question is about."""

    def __init__(self, ref: MediaRef, settings: MediaSettings) -> None:
        self.video = POOL.borrow(ref.path, settings)
        self.offset_s = min(max(ref.start_s or 0.0, 0.0), self.video.duration_s)
        end_s = self.video.duration_s if ref.end_s is None else min(ref.end_s, self.video.duration_s)
        self.duration_s = max(end_s - self.offset_s, 0.0)
        sound_end_s = self.video.sound_s if ref.end_s is None else min(ref.end_s, self.video.sound_s)
        self.sound_s = max(sound_end_s - self.offset_s, self.duration_s)
        """End of the sound: later than the pictures if the sound is more than a second longer."""
        if self.sound_s - self.duration_s < OUTLASTS_S:
            self.sound_s = self.duration_s
        self.longer_sound_s = self.sound_s if self.sound_s > self.duration_s else None
        if not self.duration_s > 0:
            self.close()
            part = f"{_or(ref.start_s, 0)}s to {_or(ref.end_s, 'its end')}"
            raise MediaOpenError(
                ref.path,
                "open",
                f"the question's part of it, {part}, contains nothing of its {self.video.duration_s:.2f}s",
            )
        try:
            self.cues: tuple[Cue, ...] = ()
            if ref.subtitles is not None:
                confine(ref.subtitles.path, settings.root)
                self.cues = read_cues(ref.subtitles.path, ref.subtitles.from_s)
            self.bytes, self.digest = media_digest(ref.path)
        except MediaOpenError:
            self.close()
            raise

    def film(self) -> Film:
        """What the policy is told about it, and what identifies the file."""
        video = self.video
        return Film(
            duration_s=self.duration_s,
            fps=video.fps,
            has_audio=video.has_audio,
            audio_s=self.longer_sound_s,
            size=self.bytes,
            digest=self.digest,
        )

    def subtitles_at(self, times_s: Sequence[float]) -> str:
        """What the subtitles say at these times, in seconds of the question's part; empty if nothing."""
        return in_words(at_times(self.cues, [time + self.offset_s for time in times_s]), self.offset_s)

    def subtitles_within(self, start_s: float, end_s: float) -> str:
        """What the subtitles say in a window, in seconds of the question's part; empty if nothing."""
        return in_words(within(self.cues, start_s + self.offset_s, end_s + self.offset_s), self.offset_s)

    def close(self) -> None:
        """Return the file to the pool."""
        POOL.give_back(self.video)


def _or(value: float | None, otherwise: object) -> object:
    return otherwise if value is None else value
