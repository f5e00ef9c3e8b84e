"""Rows to export, with every kind of look, and prompts read back from an export's files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from apr_testing import look, turn
from PIL import Image
from row_making import Say, Speaker, played, question

from apr_plugin.loop import Budget, EpisodeConfig
from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, TextPart, VideoPart
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.training.chats import ChatSource, chat_rows
from apr_plugin.training.export import FORMATS
from apr_plugin.training.export.exporting import Exported, export_rows
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import RowSet
from apr_plugin.training.student import Student

EVERYTHING = RowSettings(validation=0.0)


def audio(start: float, end: float, **more: Any) -> str:
    return turn({"type": "get_audio", "start": start, "end": end} | more)


def clip(start: float, end: float, **more: Any) -> str:
    return turn({"type": "get_clip", "start": start, "end": end} | more)


def fenced(say: str) -> str:
    """A turn that the parser repairs, so that it is written again."""
    return f"Sure:\n```json\n{say}\n```"


def every_look(student: Student) -> list[str]:
    """Frames of two sizes, sound, clips of an even and an odd number of frames, a malformed and a repaired turn."""
    sound = [audio(0.3, 3.305)] if student.family.hears else []
    return [
        look(0, 4.5, 3),
        *sound,
        fenced(clip(1, 4)),
        look(0, 3, 2, video=1),
        "no JSON <image> <|im_start|> é\n",
        clip(0.5, 3.2),
        turn({"type": "answer", "content": "A"}, observation="é 中文 <b>"),
    ]


def rows_of(student: Student, folder: Path, *films: Path, says: Sequence[Say] = (), **more: Any) -> RowSet:
    """The rows of one episode, as a teacher wrote it, or the student itself (`writer="own"`)."""
    writer = more.pop("writer", "teacher")
    budget = Budget(turns=12, frame_pixels=20 * 784, clip_pixels=20 * 784, **more.pop("budget", {}))
    asked = question(*films, text="Wie heißt <video> it?", **more)
    run = played(folder, asked, Speaker(student, says or every_look(student)), EpisodeConfig(budget=budget))
    return make_rows([Source(run.file, run.card, writer=writer)], student, EVERYTHING)


def chats_of(student: Student, folder: Path) -> RowSet:
    """Rows of chats: with a system message and without one, replies with white space, two questions in a row."""
    system = {"role": "system", "content": "Be brief."}
    ask, reply = (
        {"role": "user", "content": "Was heißt <image> 中文?"},
        {"role": "assistant", "content": "\n\nNichts. é "},
    )
    chats = [[system, ask, reply, ask, reply], [ask, reply], [system, ask, ask, reply]]
    file = folder / "chats.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    rows, drops = chat_rows(ChatSource(file), student, EVERYTHING.model_copy(update={"deduplicate": False}))
    assert not drops, drops
    return RowSet(rows)


def export(rows: RowSet, student: Student, form: str, out: Path, **more: Any) -> Exported:
    """Export rows, by the name of a format."""
    return export_rows(rows.rows, RowLoader(student), FORMATS[form], out, **more)


def data_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of an export's data file."""
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def skips(folder: Path) -> list[tuple[str, str]]:
    """Reason and details of each row that an export left out."""
    lines = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    return [(line["skipped"], line["detail"]) for line in lines]


def prompt_of(record: dict[str, Any], folder: Path) -> tuple[Prompt, str]:
    """The prompt of an exported row, with its media read from the files, and the words of its target.

    Media is filled in as both trainers do: the first tag of a kind is the first entry of its list.
    """
    left = {kind: iter(record[f"{kind}s"]) for kind in ("image", "video", "audio")}
    messages = []
    for message in record["messages"][:-1]:
        parts: list[Part] = []
        for piece in re.split(r"(<video><audio>|<image>|<video>|<audio>)", message["content"]):
            match piece:
                case "<image>":
                    parts.append(ImagePart(picture(folder / next(left["image"]))))
                case "<audio>":
                    parts.append(AudioPart(samples(folder / next(left["audio"])), SAMPLE_RATE))
                case "<video>" | "<video><audio>":
                    entry = next(left["video"])
                    if isinstance(entry, str):
                        parts.append(moving(folder / entry))
                    else:
                        frames = np.stack([picture(folder / frame) for frame in entry])
                        sound = samples(folder / next(left["audio"])) if piece != "<video>" else None
                        parts.append(_clip(frames, 2.0, sound))
                case _:
                    parts.append(TextPart(piece))
        messages.append(Message(message["role"], tuple(parts)))
    assert not any(list(entries) for entries in left.values())
    assert record["messages"][-1]["role"] == "assistant"
    return Prompt(tuple(messages)), record["messages"][-1]["content"]


def picture(file: Path) -> np.ndarray:
    """The pixels of a PNG."""
    with Image.open(file) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.array(image)


def samples(file: Path) -> np.ndarray:
    """The sound of a file, which is mono and has the package's rate."""
    with av.open(str(file)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.nb_channels) == (SAMPLE_RATE, 1)
        found = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
    assert found.dtype == np.float32
    return found


def moving(file: Path) -> VideoPart:
    """The frames of a video file at its own rate, and its sound if it has any."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        rate, heard = float(stream.average_rate), bool(container.streams.audio)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    return _clip(frames, rate, samples(file) if heard else None)


def _clip(frames: np.ndarray, fps: float, sound: np.ndarray | None) -> VideoPart:
    times_s = tuple(number / fps for number in range(len(frames)))
    return VideoPart(frames, times_s, fps, None if sound is None else AudioPart(sound, SAMPLE_RATE))
