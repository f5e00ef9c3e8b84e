"""`replay`: rebuilds the prompts that the policy saw (text, pictures, sound) from a trajectory and its run's card.

Media is never stored. It is read again from the files, which must be the same: their name, size and digest are
compared, and so is the time of every picture. A change raises a `ReplayError`; a different picture is never returned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card
from apr_plugin.loop.config import package_versions
from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.open_video import OpenVideo
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.percepts import Decoded, Percepts, look_key
from apr_plugin.loop.policy import ImagePart, Prompt
from apr_plugin.loop.question import MediaRef
from apr_plugin.loop.trajectory import Shown, Trajectory, Turn
from apr_plugin.loop.wires import VideoMeta
from apr_plugin.media import SAMPLE_RATE, MediaError, media_digest
from apr_plugin.media.confine import confine

_TICK_S = 1e-6


class ReplayError(AprError):
    """The prompts of a trajectory can't be rebuilt; the message names what is missing or what has changed."""


class FilmError(ReplayError):
    """A video of a trajectory is gone, or is another one now."""


def replay(
    trajectory: Trajectory,
    card: Card,
    *,
    find: Callable[[str], str | Path] | None = None,
    pictures: Sequence[ImagePart] = (),
    other_versions: bool = False,
    turns: Collection[int] | None = None,
    blank: bool = False,
    words: Callable[[int, Turn], str] | None = None,
    percepts: Percepts | None = None,
    most_pixels: int | None = None,
) -> Iterator[tuple[Prompt, Turn]]:
    """Each prompt of the episode, exactly as the policy saw it, with the turn that the policy wrote.

    Args:
        trajectory: A finished episode, in version 2 of the format.
        card: The card of its run.
        find: Gives the present path of a file from the path in the question; by default the path is unchanged.
        pictures: The pictures of a question without a video, as they were shown; they are not stored.
        other_versions: Whether to continue with another release of PyAV, although its pixels may differ.
        turns: Numbers (from 1) of the turns whose prompts are wanted; only the media of these prompts is read. By
            default all.
        blank: Whether media is black and silent, of the true sizes. The files are opened and compared, but nothing is
            decoded, so that tokens can be counted quickly.
        words: Gives what a turn reads like in later prompts, from its number and the turn; by default, and in an
            episode, word for word what the policy wrote.
        percepts: Where the media of looks is kept. A look that is found there is not decoded, and its video is not
            opened; the file is still compared by name, size and digest. Not used with `blank`.
        most_pixels: Most pixels of a picture, for a reader of smaller ones than the policy saw: the files are read
            again in a smaller size, as an episode with this `frame_pixels` and `clip_pixels` reads them. By default
            pictures are those that the policy saw.

    Raises:
        ReplayError: something is missing or has changed; no prompt after it is returned. It is a `FilmError` if that
            is a video.
    """
    question, budget, config = trajectory.question, trajectory.budget, card.config
    where = f"{question.task} doc {question.doc_id}"
    if budget is None:
        raise ReplayError(
            f"{where}: the line is of version 1, which does not record what prompts are rebuilt from (budget, "
            "file times, clip rates)"
        )
    if trajectory.config_hash != card.config_hash:
        raise ReplayError(
            f"{where}: it was made with the configuration {trajectory.config_hash}, and the card is of "
            f"{card.config_hash}"
        )
    modalities = card.modalities
    if config.words(modalities) != card.prompt_hash:
        raise ReplayError(
            f"{where}: this release words or lays out prompts differently from the run's "
            f"({card.versions.get('apr-plugin', 'unknown')})"
        )
    made_with, now = trajectory.versions.get("av"), package_versions().get("av")
    if trajectory.looks and made_with != now and not other_versions:
        raise ReplayError(
            f"{where}: its pictures were decoded with PyAV {made_with}, and {now} is installed; "
            "other_versions=True continues"
        )
    notebook = Notebook(
        question,
        [VideoMeta(film.duration_s, film.fps, film.has_audio, film.audio_s) for film in trajectory.videos],
        budget,
        config.system_prompt,
        modalities,
        config.form,
        trajectory.episode,
        config.system_prompt_template,
        config.passive_wire,
    )
    wanted = range(1, len(trajectory.turns) + 1) if turns is None else turns
    with _Films(trajectory, card, find, blank, percepts, most_pixels) as films:
        if trajectory.arm == "agent":
            yield from _turn_by_turn(trajectory, notebook, films, wanted, words)
        else:
            yield from _at_once(trajectory, notebook, films, pictures, wanted)


def _percept(shown: Shown, several: bool) -> Percept:
    """A look without its media."""
    assert shown.kind != "images"
    return Percept(
        shown.kind,
        shown.video,
        shown.start_s,
        shown.end_s,
        times_s=shown.times_s,
        asked_s=shown.asked_s,
        file_s=shown.file_s,
        sound_file_s=shown.sound_file_s,
        untimed=shown.untimed,
        fitted=shown.fitted,
        look=shown.look,
        fps=shown.fps,
        remark=shown.remark,
        several=several,
        mode=shown.mode,
    )


def _blank(percept: Percept, shown: Shown) -> Percept:
    """A look with black pictures and silence of the true sizes; they use no memory."""
    size = (len(shown.file_s), shown.height, shown.width, 3)
    samples = (round(shown.audio_s * SAMPLE_RATE),)
    return replace(
        percept,
        images=np.broadcast_to(np.zeros((), np.uint8), size) if shown.file_s else None,
        waveform=None if shown.sound_file_s is None else np.broadcast_to(np.zeros((), np.float32), samples),
    )


def _turn_by_turn(
    trajectory: Trajectory,
    notebook: Notebook,
    films: _Films,
    wanted: Collection[int],
    words: Callable[[int, Turn], str] | None,
) -> Iterator[tuple[Prompt, Turn]]:
    several = len(trajectory.question.videos) > 1
    for number, turn in enumerate(trajectory.turns, 1):
        if turn.forced:
            if number in wanted:
                yield notebook.forced_prompt(turn.forced_why, turn.left_out), turn
            return
        if number in wanted:
            yield notebook.prompt(number, trajectory.turns_allowed), turn
        if number >= max(wanted, default=0):
            return
        outcome: Percept | ActionError | None = turn.error
        if turn.shown is not None:
            seen = number + 1 in wanted and not trajectory.turns[number].forced
            outcome = films.read(turn.shown) if seen else _percept(turn.shown, several)
        notebook.add(turn.text if words is None else words(number, turn), outcome)


def _at_once(
    trajectory: Trajectory,
    notebook: Notebook,
    films: _Films,
    pictures: Sequence[ImagePart],
    wanted: Collection[int],
) -> Iterator[tuple[Prompt, Turn]]:
    asked = [shown for shown in trajectory.first_shown if shown.kind == "images"]
    if asked and not pictures:
        raise ReplayError(
            f"{films.where}: its pictures came with the question and are not stored; give them as pictures="
        )
    percepts = [films.read(shown) for shown in trajectory.first_shown if shown.kind != "images"]
    for number, turn in enumerate(trajectory.turns, 1):
        if number in wanted:
            yield notebook.passive_prompt(percepts, pictures), turn


class _Films:
    """The question's videos, opened again when something has to be decoded."""

    def __init__(
        self,
        trajectory: Trajectory,
        card: Card,
        find: Callable[[str], str | Path] | None,
        blank: bool,
        percepts: Percepts | None,
        most_pixels: int | None,
    ) -> None:
        self.trajectory = trajectory
        self._blank = blank
        self._most_pixels = most_pixels
        self._form = card.config.form
        self._percepts = percepts
        self.where = f"{trajectory.question.task} doc {trajectory.question.doc_id}"
        self._media = card.config.media
        self._find = find
        self._open: dict[int, OpenVideo] = {}
        self._same: set[int] = set()

    def __enter__(self) -> _Films:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._open.values():
            opened.close()

    def read(self, shown: Shown) -> Percept:
        """Read again what one look showed."""
        percept = _percept(shown, several=len(self.trajectory.question.videos) > 1)
        shown = self._resized(shown)
        if self._blank:
            self._video(shown.video)
            return _blank(percept, shown)
        media = self._decode(shown) if self._percepts is None else self._kept(shown, self._percepts)
        return replace(percept, images=media.images, waveform=media.waveform)

    def _resized(self, shown: Shown) -> Shown:
        """The look with pictures of at most as many pixels as are wanted."""
        most, size = self._most_pixels, (shown.width, shown.height)
        if most is None or not shown.file_s or shown.width * shown.height <= most:
            return shown
        if shown.kind == "clip":
            width, height = self._form.clip_size(*size, most, len(shown.file_s))
        else:
            width, height = self._form.frame_size(*size, most)
        return shown.model_copy(update={"width": width, "height": height})

    def _kept(self, shown: Shown, percepts: Percepts) -> Decoded:
        """The media of a look: kept from an earlier time, or decoded and kept from now on."""
        trajectory, number = self.trajectory, shown.video
        key = look_key(shown, trajectory.videos[number], trajectory.question.videos[number], self._media)
        media = percepts.get(key)
        if media is not None:
            self._check_file(number)
            return media
        media = self._decode(shown)
        percepts.put(key, media)
        return media

    def _decode(self, shown: Shown) -> Decoded:
        video = self._video(shown.video).video
        images, waveform = None, None
        try:
            if shown.file_s:
                frames = video.frames(shown.file_s, size=(shown.width, shown.height))
                for was, now in zip(shown.file_s, frames.times_s, strict=True):
                    if abs(was - now) > _TICK_S:
                        raise FilmError(f"{self.where}: {video.path} shows the picture of {now:.6f}s at {was:.6f}s now")
                images = frames.images
            if shown.sound_file_s is not None:
                waveform = video.audio(*shown.sound_file_s).samples
        except MediaError as error:
            raise FilmError(f"{self.where}: {error}") from error
        return Decoded(images, waveform)

    def _path(self, number: int) -> str:
        """Where a video lies now."""
        was = self.trajectory.question.videos[number].path
        return str(was if self._find is None else self._find(was))

    def _check_file(self, number: int) -> None:
        """Check that the file of a video is there and is the same, without opening it as a video.

        Opening takes tens of milliseconds, this takes a fifth of one. What opening would tell besides (length, rate,
        sound) is part of the key of a kept look, which was compared when the look was decoded.
        """
        if number in self._open or number in self._same:
            return
        path = self._path(number)
        try:
            confine(path, self._media.root)
            size, digest = media_digest(path)
        except MediaError as error:
            raise FilmError(f"{self.where}: {error}") from error
        self._compare_file(number, path, size, digest)
        self._same.add(number)

    def _video(self, number: int) -> OpenVideo:
        if number not in self._open:
            ref, path = self.trajectory.question.videos[number], self._path(number)
            try:
                opened = OpenVideo(MediaRef(path=path, start_s=ref.start_s, end_s=ref.end_s), self._media)
            except MediaError as error:
                raise FilmError(f"{self.where}: {error}") from error
            self._open[number] = opened
            film, now = self.trajectory.videos[number], opened.film()
            self._compare_file(number, path, now.size, now.digest)
            if film != now:
                raise FilmError(f"{self.where}: {path} is read differently now: {now}; it was {film}")
        return self._open[number]

    def _compare_file(self, number: int, path: str, size: int, digest: str) -> None:
        was, film = self.trajectory.question.videos[number].path, self.trajectory.videos[number]
        if Path(was).name != Path(path).name:
            raise FilmError(f"{self.where}: the video was {Path(was).name}, and {path} has another name")
        if (film.size, film.digest) != (size, digest):
            raise FilmError(
                f"{self.where}: {path} is another file now: {size} bytes, digest {digest}; it was "
                f"{film.size}, {film.digest}"
            )
