"""The cases that `omniagent_parity` plays on both sides: films with numbered frames, and episodes of scripted turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

BITS = 12
"""The number of columns that encode a frame's number, which is below 4096."""


@dataclass(frozen=True)
class Film:
    """A file that is made for the comparison."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    fps: Fraction
    seconds: float
    sound: bool = True

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)


FILMS = {
    "1080p": Film((1920, 1080), Fraction(30), 6),
    "720p": Film((1280, 720), Fraction(24000, 1001), 20),
    "portrait": Film((720, 1280), Fraction(25), 8),
    "long": Film((480, 270), Fraction(25), 130),
    "silent": Film((320, 240), Fraction(30), 70, sound=False),
    "odd": Film((427, 241), Fraction(25), 6),
    "tiny": Film((64, 48), Fraction(25), 6),
}


def make_film(path: Path, film: Film) -> Path:
    """Write a film: H.264 with B-frames; sides that are odd need 4:4:4.

    Its sound consists of tones that differ at every moment.
    """
    width, height = film.size
    pixels = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    sides = (height, width) if pixels == "yuv444p" else (height // 2, width // 2)
    colour = [
        np.linspace(low, high, sides[0] * sides[1]).reshape(sides).astype(np.uint8)
        for low, high in ((110, 146), (150, 106))
    ]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=film.fps)
        stream.width = width
        stream.height = height
        stream.pix_fmt = pixels
        stream.codec_context.time_base = 1 / film.fps
        stream.options = {
            "preset": "ultrafast",
            "crf": "18",
            "x264-params": "keyint=50:min-keyint=50:scenecut=0:bframes=2:b-adapt=0",
        }
        track: Any = out.add_stream("aac", rate=48_000, layout="mono") if film.sound else None
        packets: list[Any] = []
        for number in range(film.frames):
            frame = av.VideoFrame(width, height, pixels)
            for plane, values in zip(frame.planes, (_columns(number, width, height), *colour), strict=True):
                rows = np.zeros((values.shape[0], plane.line_size), np.uint8)
                rows[:, : values.shape[1]] = values
                plane.update(rows.tobytes())
            frame.pts = number
            frame.time_base = 1 / film.fps
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if track is not None:
            samples = tones(film.frames / float(film.fps))
            for at in range(0, len(samples), 1024):
                block = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], format="fltp", layout="mono")
                block.sample_rate = 48_000
                block.pts = at
                block.time_base = Fraction(1, 48_000)
                packets += track.encode(block)
            packets += track.encode(None)
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        out.mux(packets)
    return path


def _columns(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """The luma of a frame that encodes `number` as dark and light columns, the highest bit first."""
    row = np.full(width, 128, np.uint8)
    for bit in range(BITS):
        row[bit * width // BITS : (bit + 1) * width // BITS] = 205 if number >> (BITS - 1 - bit) & 1 else 40
    return np.tile(row, (height, 1))


def number_of(image: np.ndarray[Any, Any]) -> int:
    """The number that a frame encodes, at any scale.

    Raises:
        ValueError: the frame encodes no number.
    """
    height, width = image.shape[:2]
    number = 0
    for bit in range(BITS):
        value = float(image[height // 2, int((bit + 0.5) * width / BITS)].mean())
        if 100 < value < 150:
            raise ValueError(f"bit {bit} of a frame is unreadable: {value:.0f}")
        number = number * 2 + (value > 125)
    return number


def tones(seconds: float) -> np.ndarray[Any, Any]:
    """Sound at 48 kHz, shape (samples,): a new pitch of 200 to 2000 Hz every twentieth of a second."""
    total = round(seconds * 48_000)
    pitch = np.random.default_rng(0).uniform(200, 2000, total // 2400 + 1)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(np.repeat(pitch, 2400)[:total]) / 48_000)).astype(np.float32)


@dataclass(frozen=True)
class Piece:
    """A part of a message of either side."""

    kind: Literal["text", "image", "video", "audio"]
    text: str = ""
    pictures: np.ndarray[Any, Any] | None = None
    """Shape (n, height, width, 3), RGB, 8 bit; n is 1 for an image."""
    fps: float | None = None
    """The declared frames per second of a clip."""
    sound: np.ndarray[Any, Any] | None = None
    """Mono samples of an audio piece, or of a clip with sound, shape (samples,)."""
    rate: int = 16_000


Message = tuple[str, tuple[Piece, ...]]
"""Role and pieces; neighbouring texts are joined."""


@dataclass
class Played:
    """What one side showed and reported while the turns of a case were played."""

    prompts: list[list[Message]]
    """The prompt of each turn, without the system message."""
    errors: list[str | None]
    """The error code of each turn."""
    steps: int
    """The number of turns that were allowed."""
    ended: Literal["answer", "failed", "open"]
    """Whether it ended with an accepted answer, without one, or not yet when the turns ran out."""
    reward: float


def merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces with neighbouring texts joined, as a chat template writes them."""
    out: list[Piece] = []
    for piece in pieces:
        if piece.kind == "text" and out and out[-1].kind == "text":
            out[-1] = Piece("text", out[-1].text + piece.text)
        elif piece.kind != "text" or piece.text:
            out.append(piece)
    return tuple(out)


@dataclass(frozen=True)
class Case:
    """One episode."""

    name: str
    film: str
    turns: tuple[str, ...]
    """The turns that the model writes."""
    type: str = "MCQ"
    """The official name of the question's type."""
    truth: Any = ("B",)
    question: str = "Which one is it?"
    options: tuple[str, ...] = ("A. red", "B. blue, (or so)", "C. none of these")
    limits: Mapping[str, float] = field(default_factory=dict)
    """`frames`, `audio_s`, `clip_s`, `steps`, if they are not the published ones."""
    tokens: int = 1000
    """The assumed number of tokens of a prompt of three turns or more."""


SHORT_PROMPT = 6
"""The number of messages of a prompt from which on `Case.tokens` applies.

These are the system's, the question, two turns and what they brought.
"""

PUBLISHED = {"frames": 60, "audio_s": 300, "clip_s": 60, "steps": 32}


def turn(action: object, **more: object) -> str:
    return json.dumps(
        {"observation": "seen", "think": "so", "confidence": 0.5, "action": action} | more, ensure_ascii=False
    )


def frames(start: object, end: object, num: object, **more: object) -> str:
    return turn({"type": "get_frames", "start": start, "end": end, "num": num} | more)


def audio(start: object, end: object) -> str:
    return turn({"type": "get_audio", "start": start, "end": end})


def clip(start: object, end: object) -> str:
    return turn({"type": "get_clip", "start": start, "end": end})


def answer(content: object) -> str:
    return turn({"type": "answer", "content": content})


def cases() -> Iterator[Case]:
    """Every case, cheap ones first."""
    yield from errors()
    yield from replies()
    yield from answers()
    yield from endings()
    yield from looks()


def looks() -> Iterator[Case]:
    """Each kind of look on each film."""
    for name, film in FILMS.items():
        end = film.frames / float(film.fps)
        told = int(end * 100) / 100
        middle = round(end / 2 + 0.013, 3)
        yield Case(
            f"frames on {name}",
            name,
            (frames(0.0, told, 5), frames(middle, middle, 1), frames(1.1, 2.9, 7), frames(0.0, told, 5), answer("B")),
        )
        yield Case(
            f"clips on {name}",
            name,
            (clip(0.0, 4.0), clip(1.23, 3.77), clip(round(told - 3.5, 2), told), clip(2, 2.4), answer("B")),
        )
        if film.sound:
            yield Case(
                f"sound of {name}",
                name,
                (audio(0.5, 3.5), audio(0, 1), audio(round(told - 2, 2), told), audio(2.0, 2.1), answer("B")),
            )
    narrow = (frames(5.0, 5.2, 20), frames(3.0, 3.0, 4), frames(3.001, 3.002, 2), frames(5.0, 5.2, 20), answer("B"))
    yield Case("dense, empty and repeated windows", "tiny", narrow)
    yield Case(
        "a window denser than its frames",
        "silent",
        (frames(5.0, 5.2, 20), frames(5.0, 5.2, 3), frames(69.5, 70.0, 20), answer("B")),
    )
    yield Case("repeated sound and clip", "tiny", (audio(0, 2), audio(0, 2), clip(0, 2), clip(0, 2), answer("B")))
    yield Case(
        "the very ends",
        "long",
        (frames(130.0, 130.0, 1), frames(129.0, 130.0, 11), frames(0, 0, 1), clip(129.5, 130.0), audio(129.7, 130.0)),
    )
    yield Case(
        "whole minutes",
        "long",
        (clip(0, 60), clip(70.0, 130.0), audio(0.0, 130.0), audio(64.9, 127.3), frames(0, 130, 20), answer("B")),
    )
    yield Case("a minute of the silent film", "silent", (clip(0, 60.0), clip(12.34, 69.99), answer("B")))
    yield Case("60 frames of 1080p", "1080p", (frames(0.0, 6.0, 60), answer("A")))
    short = (clip(1.0, 1.16), clip(1.0, 1.2), clip(1.0, 1.33), clip(1.0, 1.75), answer("B"))
    yield Case("shortest clips", "tiny", short)


def errors() -> Iterator[Case]:
    """Each way in which a look can be refused, one per case, after a good one."""
    good = frames(2.0, 2.0, 1)
    bad = {
        "frames beyond the end by 0.004": frames(0, 6.004, 2),
        "frames beyond the end": frames(0, 6.5, 2),
        "frames before the start": frames(-1, 5, 2),
        "frames reversed": frames(5, 2, 2),
        "61 frames": frames(0, 5, 61),
        "no frames": frames(0, 5, 0),
        "minus frames": frames(0, 5, -3),
        "3.0 frames": frames(0, 5, 3.0),
        "frames as text": frames(0, 5, "3"),
        "true frames": frames(0, 5, True),
        "start as text": frames("1.5", 5, 3),
        "start null": frames(None, 5, 3),
        "frames without num": turn({"type": "get_frames", "start": 0, "end": 5}),
        "frames without end": turn({"type": "get_frames", "start": 0, "num": 2}),
        "frames with content": frames(0, 5, 2, content=""),
        "frames of video 0": frames(0, 5, 2, video=0),
        "frames with an unknown key": frames(0, 5, 2, zoom=2),
        "frames from minus zero": frames(-0.0, 5, 2),
        "very many frames": frames(0, 5, 10**30),
        "frames from true": frames(True, 5, 2),
        "clip to true": clip(0, True),
        "frames from NaN": frames(float("nan"), 5, 2),
        "frames to infinity": frames(0, float("inf"), 2),
        "sound beyond the end": audio(0, 6.5),
        "sound before the start": audio(-0.5, 2),
        "sound reversed": audio(5, 3),
        "no sound": audio(5, 5),
        "sound of 0.05 s": audio(1, 1.05),
        "sound as text": audio("1", 2),
        "sound without end": turn({"type": "get_audio", "start": 1}),
        "clip beyond the end": clip(0, 6.5),
        "clip before the start": clip(-0.5, 2),
        "clip reversed": clip(5, 3),
        "no clip": clip(5, 5),
        "clip of 3 frames": clip(1, 1.12),
        "clip as text": clip("1", 2),
        "unknown action": turn({"type": "zoom", "start": 0, "end": 1}),
        "null action": turn(None),
        "action of no type": turn({"start": 0, "end": 1}),
    }
    for name, reply in bad.items():
        yield Case(name, "tiny", (good, reply, answer("B")))
    for name, reply in {
        "clip of 60.005 s": clip(0, 60.005),
        "clip of 61 s": clip(0, 61.0),
        "sound where there is none": audio(0, 5),
    }.items():
        yield Case(name, "silent", (good, reply, answer("B")))
    yield Case(
        "sound of 41 s where 40 may be",
        "long",
        (good, audio(0, 41.0), audio(0, 40.005), answer("B")),
        limits={"audio_s": 40},
    )
    yield Case(
        "9 frames where 8 may be",
        "tiny",
        (good, frames(0, 5, 9), frames(0, 5, 8), answer("B")),
        limits={"frames": 8, "steps": 4},
    )
    yield Case(
        "an error after a clip, then one after that",
        "tiny",
        (clip(1, 3), clip(5, 3), clip(1, 1.12), audio(1, 2), answer("B")),
    )
    yield Case("a clip too short after a clip", "tiny", (clip(1, 3), clip(1, 1.12), frames(1, 1, 1), answer("B")))


def replies() -> Iterator[Case]:
    """Each way in which a turn can be written."""
    good = frames(2.0, 2.0, 1)
    look = {"type": "get_frames", "start": 1.5, "end": 4, "num": 1}
    whole = {"observation": "seen", "think": "so", "confidence": 0.5, "action": look}
    written = {
        f"without {key}": json.dumps({name: value for name, value in whole.items() if name != key}) for key in whole
    }
    written |= {f"{key} as a list": json.dumps(whole | {key: ["x"]}) for key in whole}
    good_look = json.dumps(whole)
    written |= {
        "confidence as text": json.dumps(whole | {"confidence": "0.5"}),
        "confidence above one": json.dumps(whole | {"confidence": 1.7}),
        "confidence true": json.dumps(whole | {"confidence": True}),
        "another top key": json.dumps(whole | {"plan": "x"}),
        "fenced": f"```json\n{good_look}\n```",
        "a fence alone": "```",
        "words before": f"Sure! {good_look}",
        "words after": f"{good_look} done",
        "two objects": f"{good_look}\n{frames(1, 3, 2)}",
        "white space around": f"\n  {good_look}\n\n",
        "over several lines": json.dumps(whole, indent=2),
        "trailing comma": good_look.replace('"num": 1}', '"num": 1,}'),
        "cut off": good_look[:-8],
        "a line break in a string": good_look.replace("seen", "se\nen"),
        "single quotes": good_look.replace('"', "'"),
        "quoted whole": json.dumps(good_look),
        "thought before": f"<think>hm</think>{good_look}",
        "a list": f"[{good_look}]",
        "empty": "",
        "words": "I think the answer is B.",
        "a letter": "B",
        "unknown letters": json.dumps(whole | {"observation": "Ω — “x” \u2028 \x7f"}, ensure_ascii=False),
        "control letters": json.dumps(whole | {"observation": "\x00 \x1b[31m \x07"}),
        "raw control letters": good_look.replace("seen", "se\x1b[31men"),
        "of 15,000 letters": json.dumps(whole | {"observation": "long " * 3000}),
        "of 25,000 letters": json.dumps(whole | {"observation": "long " * 5000}),
        "a key twice": good_look.replace('"think"', '"think": "a", "think"'),
    }
    for name, reply in written.items():
        yield Case(f"turn {name}", "tiny", (good, reply, answer("B")))


def answers() -> Iterator[Case]:
    """Each type of question, and answers in many forms."""
    good = frames(2.0, 2.0, 1)
    for content in (
        "B",
        "b",
        " B ",
        "B.",
        "(B)",
        "B. blue, (or so)",
        "blue, (or so)",
        "Z",
        "",
        "A",
        "The answer is B",
        "AB",
    ):
        yield Case(f"choice {content!r}", "tiny", (good, answer(content), answer("B")))
    yield Case("choice as a number", "tiny", (good, answer(2), answer("B")))
    yield Case("answer without content", "tiny", (good, turn({"type": "answer"}), answer("B")))
    spans = [
        "[[1.0, 2.5]]",
        "[1, 2.5]",
        "[[1, 2], [3.5, 5]]",
        "[]",
        "[[2.5, 1]]",
        "[[0, 6]]",
        "[[0, 60]]",
        "[[-1, 2]]",
        "[[1, 2, 3]]",
        "[[1.23456, 2.98765]]",
    ]
    spans += [
        "1-2.5",
        "from 1 to 2.5",
        '[["1", "2.5"]]',
        "[[1, 2], [1.5, 2.5]]",
        "[[1, NaN]]",
        "",
        "7",
        "{}",
        "null",
        "[[1, 2.5]",
    ]
    for content in spans:
        case = Case(
            f"spans {content!r}",
            "tiny",
            (good, answer(content), answer("[[1, 2.5]]")),
            "TR",
            [[1.0, 2.0], [4.0, 5.0]],
            options=(),
        )
        yield case
    for kind in ("NUM", "SIZE"):
        for content in (
            "3",
            "3.0",
            "3.004",
            "3.01",
            "3.2",
            "three",
            "2 or 3",
            "3 people, 4 dogs",
            "-3",
            ".5",
            "1,203",
            "1e3",
            "",
            "about 3 cm",
            "none",
            "150",
        ):
            for truth in ("3", "1203") if content == "1,203" else ("3",):
                name = f"{kind} {content!r} for {truth}"
                yield Case(
                    name, "tiny", (good, answer(content), answer(truth)), kind, [truth], "How many are there?", ()
                )
    for content, truth in (
        ("97.5", "100"),
        ("90", "100"),
        ("75.0001", "100"),
        ("55", "100"),
        ("49", "100"),
        ("0", "5"),
        ("12", "12.5"),
    ):
        yield Case(
            f"SIZE {content} for {truth}", "tiny", (good, answer(content)), "SIZE", [truth], "How large is it?", ()
        )
    yield Case("NUM_count", "tiny", (good, answer("3")), "NUM_count", ["3"], "How many?", ())
    for content in ("a red ball", " a red ball\n", ""):
        yield Case(
            f"free form {content!r}",
            "tiny",
            (good, answer(content), answer("a red ball")),
            "FF",
            ["a red ball"],
            "What is it?",
            (),
        )


def endings() -> Iterator[Case]:
    """How an episode can end, with 4 steps unless the case says otherwise."""
    good, four = frames(2.0, 2.0, 1), {"steps": 4}
    again = [frames(float(end), float(end), 1) for end in range(1, 6)]
    yield Case("looks to the end", "tiny", tuple(again[:4]), limits=four)
    yield Case("a malformed turn at the end", "tiny", (*again[:3], "no JSON"), limits=four)
    yield Case("a refused look at the end", "tiny", (*again[:3], frames(0, 99, 2)), limits=four)
    yield Case("an answer at the end", "tiny", (*again[:3], answer("B")), limits=four)
    yield Case("a wrong answer at the end", "tiny", (*again[:3], answer("A")), limits=four)
    yield Case("a malformed answer at the end", "tiny", (*again[:3], answer("Z")), limits=four)
    yield Case(
        "malformed spans at the end", "tiny", (*again[:3], answer("soon")), "TR", [[1.0, 2.0]], options=(), limits=four
    )
    yield Case("no number at the end", "tiny", (*again[:3], answer("none")), "NUM", ["3"], options=(), limits=four)
    yield Case("an early answer", "tiny", (answer("B"), good, answer("B")))
    yield Case("an early answer twice", "tiny", (answer("B"), answer("B")))
    yield Case("an answer after errors alone", "tiny", ("bad", "bad", answer("B")))
    yield Case("errors alone", "tiny", ("bad",) * 4, limits=four)
    yield Case("one step", "tiny", (answer("B"),), limits={"steps": 1})
    yield Case("one step, a look", "tiny", (good,), limits={"steps": 1})
    yield Case("two steps", "tiny", (good, answer("B")), limits={"steps": 2})
    for tokens in (65_504, 65_505):
        yield Case(f"a prompt of {tokens} tokens", "tiny", (good, again[0], answer("B")), tokens=tokens)
    yield Case("sound in the last fifth of a second", "tiny", (good, audio(5.85, 6.0), answer("B")))
    yield Case("a clip in the last fifth of a second", "tiny", (good, clip(5.82, 6.0), answer("B")))
    yield Case("steps of a minute each", "long", (frames(100, 100, 1), answer("B")))
    yield Case("steps of 20 s each", "long", (frames(100, 100, 1), answer("B")), limits={"clip_s": 20})
    yield Case("steps at most", "long", (frames(100, 100, 1), answer("B")), limits={"clip_s": 20, "steps": 9})
    strange = "Wer “fällt” hin?  {braces} <b>\n- second line \n"
    yield Case(
        "a question of two lines",
        "silent",
        (good, answer("a")),
        question=strange,
        options=("A. {one}  ", "B. two\nlines", "C.  C. "),
    )
    yield Case(
        "many options",
        "silent",
        (good, answer("G")),
        truth=["G"],
        options=tuple(f"{label}. number {label}" for label in "ABCDEFG"),
    )
    yield Case(
        "options in another order", "silent", (good, answer("C")), truth=["C"], options=("C. one", "A. two", "B. three")
    )
