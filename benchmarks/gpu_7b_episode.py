"""What `benchmarks.gpu_7b` plays: a drawn film, looks of published number and size, turns of published length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from benchmarks.films import pictures, repeat

TURNS, FIRST_FRAMES, LOOK_FRAMES = 10, 35, 21
"""Nine looks of 203 frames in all, then the answer."""
FRAMES = FIRST_FRAMES + (TURNS - 2) * LOOK_FRAMES
FILM_FPS, PART_S = 2, 50
ARMS = ("agent", "passive", "passive_24k", "passive_98k", "passive_equal")
WORDS = (
    "the a person in red coat walks past white car near door of shop while another stands by window and turns left "
    "then right at corner sign reads open light changes camera pans over street crowd scene shows table cup hand "
    "holds small box room dark bright moves toward stairs evidence seen here does not yet tell which option holds so "
    "next look must narrow interval between these times because earlier frames show only ground and blocks"
)
"""What observations are made of."""


@dataclass(frozen=True)
class Scale:
    """How large everything is. The agent always has its 203 frames in ten turns."""

    title: str
    film: tuple[int, int]
    """Width and height in pixels."""
    seconds: int
    turn_tokens: tuple[int, int, int]
    """Tokens of the first turn, of a later look and of the answer."""
    tokens_a_frame: dict[str, int]
    """Most visual tokens of a frame, by arm."""
    passive_frames: int = 768
    passive_tokens: int = 2
    """A label and the end of the turn."""


FULL = Scale(
    "published",
    (1280, 720),
    3600,
    # Means of the twelve turns of OmniAgent's data/example_train_sft.jsonl (18725bc), counted with Qwen's vocabulary,
    # and one for the end of the turn.
    (135, 209, 265),
    {"agent": 1024, "passive": 64, "passive_24k": 32, "passive_98k": 128, "passive_equal": 1024},
)
SMALL = Scale(
    "small",
    (320, 180),
    200,
    (5, 7, 9),
    dict.fromkeys(ARMS, 4) | {"agent": 16, "passive_equal": 16},
    passive_frames=192,
)


def film(folder: Path, scale: Scale, tell: Callable[[str], None]) -> Path:
    """The film, drawn once: H.264, 2 pictures a second, a keyframe every 10 s, one stretch repeated to full length."""
    width, height = scale.film
    path = folder / f"{width}x{height}-{scale.seconds}s.mp4"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    tell(f"drawing {path}")
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as out:
        stream: Any = out.add_stream("libx264", rate=FILM_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "30", "x264-params": "keyint=20:min-keyint=20:scenecut=0"}
        for image in pictures(PART_S * FILM_FPS, width, height):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    repeat(part, path, scale.seconds // PART_S)
    part.unlink()
    return path


def actions(seconds: int) -> Iterator[dict[str, Any]]:
    """One wide look, eight narrower ones, the answer."""
    yield {"type": "get_frames", "start": 0.0, "end": seconds - 1.0, "num": FIRST_FRAMES}
    for number in range(TURNS - 2):
        long = seconds / (6, 12, 24, 24)[number % 4]
        start = round((number + 0.5) / (TURNS - 2) * (seconds - long), 2)
        yield {"type": "get_frames", "start": start, "end": round(start + long, 2), "num": LOOK_FRAMES}
    yield {"type": "answer", "content": "B"}


def script(scale: Scale, tokens_of: Callable[[str], int]) -> list[tuple[str, int]]:
    """Words and tokens of each of the agent's turns; an observation is as long as the turn has room for."""
    rng = random.Random(0)
    first, look, answer = scale.turn_tokens
    turns = []
    for number, action in enumerate(actions(scale.seconds)):
        wanted = first if number == 0 else answer if number == TURNS - 1 else look
        seen: list[str] = []
        missing = 1
        while missing > 0:
            note = {"observation": " ".join(seen), "think": "so", "confidence": 0.5, "action": action}
            text = json.dumps(note)
            missing = wanted - 1 - tokens_of(text)
            seen += rng.choices(WORDS.split(), k=max(0, missing))
        turns.append((text, wanted))
    return turns
