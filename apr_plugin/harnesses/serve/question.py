"""A request becomes a question: its words are read like a harness's prompt, its files become videos or pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image, UnidentifiedImageError

from apr_plugin.agent import make_question
from apr_plugin.errors import AprError
from apr_plugin.harnesses.media import nothing, picture
from apr_plugin.harnesses.readers import Reading, read_prompt
from apr_plugin.harnesses.readers.prompt import paragraphs, strip_instructions
from apr_plugin.harnesses.serve.limits import MOST_IMAGE_PIXELS, MOST_IMAGES, MOST_VIDEOS
from apr_plugin.harnesses.serve.places import Inline, place
from apr_plugin.harnesses.serve.refused import Refused, malformed
from apr_plugin.harnesses.serve.request import (
    AudioUrlPart,
    ChatRequest,
    Extras,
    ImagePart,
    InputAudioPart,
    MediaPart,
    Message,
    TextPart,
    VideoPart,
)
from apr_plugin.harnesses.serve.uploads import Received, ending_of
from apr_plugin.loop.episode import ReadPictures
from apr_plugin.loop.policy import ImagePart as Picture
from apr_plugin.loop.question import MediaRef, Question
from apr_plugin.loop.text import printable
from apr_plugin.media.confine import confine
from apr_plugin.media.opening import descriptor

TASK = "serve"
"""The task of every question that comes this way."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pictures that are read. PIL knows others, some of which it passes to other programs."""


@dataclass(frozen=True)
class Asked:
    """A request that is answered."""

    question: Question
    write: Callable[[str], str]
    """Turns the canonical answer into the text that goes back, as with a harness's prompt (`Reading.write`)."""
    pictures: ReadPictures | None = None
    """Reads the pictures of a question without a video."""


def read_question(
    request: ChatRequest, roots: Sequence[str], received: Received, doc_id: str, *, ask_anyway: bool = False
) -> Asked:
    """The question of a request; it decodes and writes the files that the request brings along.

    Args:
        request: The request.
        roots: Folders whose files it may name.
        received: The files that it brings along.
        doc_id: Its name.
        ask_anyway: Whether a question with files that can't be used is still asked: it ends as `media_unreadable`, and
            is stored and counted, as in a harness of this package.

    Raises:
        Refused: there is no question, or a file that can't be used.
    """
    reading = _read(_prompt(request.messages), request.extras)
    try:
        videos, images = _media(request.messages, roots, received)
    except Refused as fault:
        if not ask_anyway or fault.status != 400:
            raise
        videos, images = [nothing("media", fault)], []
    question = Question(
        text=reading.text,
        kind=reading.kind,
        options=reading.options,
        answer_hint=reading.answer_hint,
        videos=tuple(videos),
        task=TASK,
        doc_id=doc_id,
        reader="request" if request.extras.options or request.extras.kind else "prompt",
    )
    return Asked(
        question, reading.write, partial(_pictures, tuple(images), (*roots, str(received.folder))) if images else None
    )


def _prompt(messages: Sequence[Message]) -> str:
    """The words: what the system says, the conversation before the last question, and that question.

    A beginning of the reply that is written for the model, as some data sets do, is left out.
    """
    spoken = [message for message in messages if message.role not in ("system", "developer")]
    while spoken and spoken[-1].role == "assistant":
        spoken.pop()
    replies = [number for number, message in enumerate(spoken) if message.role == "assistant"]
    begin = replies[-1] + 1 if replies else 0
    system = "\n".join(_words(message) for message in messages if message.role in ("system", "developer"))
    before = "\n".join(f"{message.role}: {_words(message)}" for message in spoken[:begin])
    asked = "\n".join(filter(None, (_words(message) for message in spoken[begin:])))
    if not asked.strip():
        raise malformed("messages: the last message of the user has no text, so there is no question", "messages")
    return paragraphs(
        strip_instructions(printable(system)),
        before and printable(f"The conversation so far:\n{before}"),
        printable(asked),
    )


def _words(message: Message) -> str:
    return "\n".join(part.text.strip("\n") for part in message.parts if isinstance(part, TextPart) if part.text.strip())


def _read(prompt: str, extras: Extras) -> Reading:
    reading, hint = read_prompt({}, prompt), printable(extras.hint)
    if not extras.options and extras.kind in (None, reading.kind):
        return replace(reading, answer_hint=hint)
    try:
        asked = make_question((), strip_instructions(prompt) or prompt, options=extras.options, kind=extras.kind)
    except AprError as error:
        raise malformed(f"apr: {error}", "apr.options") from None
    return Reading(asked.text, asked.kind, asked.options, hint)


def _media(messages: Sequence[Message], roots: Sequence[str], received: Received) -> tuple[list[MediaRef], list[str]]:
    videos: list[MediaRef] = []
    images: list[str] = []
    pixels = 0
    for number, message in enumerate(messages):
        for at, part in enumerate(message.parts):
            if isinstance(part, TextPart):
                continue
            param = f"messages.{number}.content.{at}"
            path = _path(part, roots, received, param)
            if isinstance(part, ImagePart):
                pixels += _pixels(path, param)
                images.append(path)
            elif isinstance(part, InputAudioPart):
                videos.append(MediaRef(path=path))
            else:
                window = part.video_url if isinstance(part, VideoPart) else part.audio_url
                videos.append(MediaRef(path=path, start_s=window.start_s, end_s=window.end_s))
            if len(videos) > MOST_VIDEOS or len(images) > MOST_IMAGES:
                most = f"{MOST_VIDEOS} videos and sounds and {MOST_IMAGES} pictures"
                raise malformed(f"{param}: a request may have {most}", param, "too_many_files")
            if pixels > MOST_IMAGE_PIXELS:
                most = f"at most {MOST_IMAGE_PIXELS // 1_000_000} million pixels"
                raise malformed(
                    f"{param}: the pictures of a request may have {most} together", param, "too_many_pixels"
                )
    if videos and images:
        raise malformed(
            "messages: pictures beside a video can't be shown; send the video, or the pictures, alone",
            "messages",
            "unsupported_media",
        )
    return videos, images


def _path(part: MediaPart, roots: Sequence[str], received: Received, param: str) -> str:
    if isinstance(part, InputAudioPart):
        return received.keep(part.input_audio.data, part.input_audio.format.lower(), param)
    address = (
        part.image_url
        if isinstance(part, ImagePart)
        else part.audio_url
        if isinstance(part, AudioUrlPart)
        else part.video_url
    )
    found = place(address.url, roots, param)
    return received.keep(found.base64, ending_of(found.mime), param) if isinstance(found, Inline) else found


def _pixels(path: str, param: str) -> int:
    """The size of a picture, from its header."""
    try:
        with descriptor(path) as fd, open(fd, "rb", closefd=False) as file, Image.open(file, formats=_FORMATS) as image:
            return image.width * image.height
    except (OSError, ValueError, SyntaxError, AprError, Image.DecompressionBombError, UnidentifiedImageError):
        raise malformed(
            f"{param}: not a picture that can be read ({', '.join(_FORMATS)})", param, "media_unreadable"
        ) from None


def _pictures(paths: Sequence[str], roots: tuple[str, ...], pixels: int | None) -> list[Picture]:
    """The pictures, each with at most `pixels` pixels."""
    shown = []
    for path in paths:
        confine(path, roots)
        with descriptor(path) as fd, open(fd, "rb", closefd=False) as file:
            shown.append(picture(Image.open(file, formats=_FORMATS), None, pixels))
    return shown
