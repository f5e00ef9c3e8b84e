"""`benchmarks.omniagent_parity` without the official code: our side plays its cases, and differences are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_plugin.loop import MediaRef
from apr_plugin.media import Video
from benchmarks.omniagent_cases import (
    FILMS,
    Case,
    Piece,
    Played,
    answer,
    audio,
    cases,
    clip,
    frames,
    make_film,
    merged,
    number_of,
)
from benchmarks.omniagent_parity import Tally, compare, play

FILM = FILMS["tiny"]
TURNS = (frames(1.0, 5.0, 3), audio(1, 2), clip(1.0, 3.0), answer("B"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("parity") / "tiny.mp4", FILM)


@pytest.fixture(scope="module")
def played(film: Path) -> Played:
    return play(Case("a case", "tiny", TURNS), MediaRef(path=str(film)))


def differences(one: Played, other: Played) -> list[str]:
    return [each.what for each in compare(one, other, FILM, Tally())]


def changed(played: Played, prompt: int, number: int, **to: object) -> Played:
    """The same prompts with one piece of a prompt's newest message changed."""
    role, pieces = played.prompts[prompt][-1]
    pieces = (*pieces[:number], replace(pieces[number], **to), *pieces[number + 1 :])  # type: ignore[arg-type]
    prompts = list(played.prompts)
    prompts[prompt] = [*played.prompts[prompt][:-1], (role, pieces)]
    return replace(played, prompts=prompts)


def test_frames_carry_their_number(film: Path) -> None:
    with Video.open(film) as video:
        shown = video.frames([0.0, 1.0, 5.98], 10**6, "exact")
    assert [number_of(image) for image in shown.images] == [0, 25, 149]
    with pytest.raises(ValueError, match="bit 0 of a frame is unreadable"):
        number_of(np.full((48, 64, 3), 128, np.uint8))


def test_our_side_plays_a_case(played: Played) -> None:
    assert (played.steps, played.ended, played.reward, played.errors) == (5, "answer", 1.0, [None] * 4)
    assert [[piece.kind for piece in prompt[-1][1]] for prompt in played.prompts] == [
        ["text"],
        ["text", "image", "text", "image", "text", "image", "text"],
        ["text", "audio", "text"],
        ["text", "video", "text"],
    ]
    assert differences(played, played) == []


def test_what_differs_is_found(played: Played) -> None:
    def of(prompt: int, number: int) -> Piece:
        return played.prompts[prompt][-1][1][number]

    picture, movie, sound = of(1, 1).pictures, of(3, 1).pictures, of(2, 1).sound
    assert picture is not None and movie is not None and sound is not None
    assert differences(played, changed(played, 0, 0, text=of(0, 0).text.replace("Step 0", "Step 1"))) == ["notice"]
    assert differences(played, changed(played, 0, 0, text=of(0, 0).text.replace("True", "true"))) == ["question"]
    assert differences(played, changed(played, 1, 2, text="\n" + of(1, 2).text)) == ["label"]
    assert differences(played, changed(played, 1, 1, pictures=of(1, 3).pictures)) == ["which frames (image)"]
    assert differences(played, changed(played, 1, 1, pictures=picture[:, :28])) == ["size of image of 64x48"]
    assert differences(played, changed(played, 2, 1, sound=sound[:-800])) == ["seconds of sound of audio"]
    assert differences(played, changed(played, 2, 1, sound=np.roll(sound, 160))) == ["samples of audio"]
    assert differences(played, changed(played, 2, 1, rate=48_000)) == ["sample rate"]
    assert differences(played, changed(played, 3, 1, sound=None)) == ["sound of video"]
    assert differences(played, changed(played, 3, 1, pictures=movie[:-1])) == ["frames of a clip"]
    assert differences(played, changed(played, 3, 1, fps=1.5)) == ["frames per second of a clip"]
    assert differences(played, changed(played, 1, 1, kind="video")) == ["parts"]
    assert differences(played, replace(played, steps=6, reward=0.5)) == ["steps allowed", "reward"]
    assert differences(played, replace(played, errors=[None, None, "X"], ended="failed")) == [
        "error or not",
        "turns taken",
        "end",
    ]


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names)) > 200


def test_neighbouring_texts_are_one() -> None:
    parts = [Piece("text", "a"), Piece("text", ""), Piece("text", "b"), Piece("image"), Piece("text", "c")]
    assert merged(parts) == (Piece("text", "ab"), Piece("image"), Piece("text", "c"))
