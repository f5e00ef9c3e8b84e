"""The form of a request: OpenAI's chat completion, and the parts `video_url` and `audio_url` that vLLM added.

`ChatRequest` is also the schema in /openapi.json. docs/serve.md says what is honoured, ignored and refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from apr_plugin.harnesses.serve.limits import LONGEST_TEXT, MOST_JSON_VALUES, MOST_MESSAGES, MOST_PARTS
from apr_plugin.harnesses.serve.refused import Refused, malformed
from apr_plugin.loop.question import QuestionKind
from apr_plugin.terminal import one_line, shortened

_Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
_Second = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Part):
    """Words."""

    type: Literal["text"]
    text: _Text


class Address(_Part):
    """Where a picture or a sound is."""

    url: str = Field(min_length=1)
    """A `data:` URL in base64, or a file under an allowed folder: `file:///…`, or its absolute path."""


class VideoAddress(Address):
    """Where a video is, and which part of it the question is about."""

    start_s: _Second | None = None
    """Where the part begins, in seconds of the file."""
    end_s: _Second | None = None
    """Where it ends."""


class InputAudio(_Part):
    """A sound file."""

    data: str = Field(min_length=1)
    """The file in base64."""
    format: str = Field(pattern=r"^[A-Za-z0-9]{1,8}$")
    """The ending that such a file has: `wav`, `mp3`, `flac`."""


class ImagePart(_Part):
    """A picture. Pictures are shown in one passive turn, and not beside a video."""

    type: Literal["image_url"]
    image_url: Address


class VideoPart(_Part):
    """A video that the agent looks at."""

    type: Literal["video_url"]
    video_url: VideoAddress


class AudioUrlPart(_Part):
    """A sound that the agent listens to."""

    type: Literal["audio_url"]
    audio_url: VideoAddress


class InputAudioPart(_Part):
    """A sound that the agent listens to, as OpenAI's API takes it."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | VideoPart | AudioUrlPart | InputAudioPart, Field(discriminator="type")]
MediaPart = ImagePart | VideoPart | AudioUrlPart | InputAudioPart

_Content = Annotated[
    Annotated[_Text, Tag("words")] | Annotated[list[Part], Field(max_length=MOST_PARTS), Tag("parts")],
    Discriminator(lambda value: "words" if isinstance(value, str) else "parts"),
]


class Message(_Part):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content | None = None

    @property
    def parts(self) -> list[Part]:
        """Its parts; a bare text is one part."""
        if self.content is None:
            return []
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(_Part):
    """What a stream has besides the answer."""

    include_usage: bool | None = None


class ResponseFormat(_Part):
    """The form of the answer; the question's own kind decides it."""

    type: str


class Extras(BaseModel):
    """Fields of this endpoint, under `apr` (`extra_body={"apr": {…}}` in OpenAI's client)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trajectory: bool = False
    """Whether the response has the whole trajectory."""
    kind: QuestionKind | None = None
    """How the question is answered; without it, `mcq` where the text lists options, else `free_form`."""
    options: list[Annotated[str, Field(min_length=1, max_length=4000)]] = Field(default=[], max_length=64)
    """The options, if the text does not list them."""
    hint: str = Field(default="", max_length=4000)
    """How to write the answer, if the kind does not say everything ("in centimetres")."""


class ChatRequest(BaseModel):
    """A request for an answer."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str = Field(min_length=1, max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    apr: Extras | None = None
    n: Literal[1] | None = None
    """Only one answer is given."""
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    modalities: list[Literal["text"]] | None = None
    response_format: ResponseFormat | None = None

    @property
    def extras(self) -> Extras:
        """The fields of this endpoint."""
        return self.apr or Extras()

    def wanted(self) -> Wanted:
        """What is needed once the question has been read; it holds none of the files."""
        given = self.model_extra or {}
        ignored = sorted(shortened(one_line(name), 64) for name, value in given.items() if value is not None)[:32]
        usage = self.stream_options is not None and bool(self.stream_options.include_usage)
        return Wanted(bool(self.stream), usage, self.extras.trajectory, tuple(ignored))


@dataclass(frozen=True)
class Wanted:
    """The form of the response."""

    stream: bool
    include_usage: bool
    """Whether a stream ends with the usage."""
    trajectory: bool
    """Whether the trajectory is returned."""
    ignored: tuple[str, ...]
    """Parameters that were given and have no effect, at most 32 of them."""


_REFUSED = {
    "n": "only one answer is given for a request (n=1)",
    "logprobs": "an episode has no log-probabilities of its answer; the stored trajectory has those of its turns",
    "top_logprobs": "an episode has no log-probabilities of its answer; the stored trajectory has those of its turns",
    "tools": "the loop has its own actions; the tools of a request can't be called",
    "functions": "the loop has its own actions; the functions of a request can't be called",
    "modalities": "only text is written",
}


def read_chat(body: bytes | bytearray) -> ChatRequest:
    """Read a body.

    Raises:
        Refused: it is not JSON, or not a request that can be answered; the message says where.
    """
    if sum(body.count(sign) for sign in (b"[", b"{", b",")) > MOST_JSON_VALUES:
        raise malformed(f"the body has more than {MOST_JSON_VALUES:,} JSON values", code="too_many_values")
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
        raise _told(fault["type"], tuple(fault["loc"]), str(fault["msg"])) from None
    _check(request)
    return request


def _told(kind: str, where: tuple[Any, ...], message: str) -> Refused:
    if kind == "json_invalid":
        return malformed(f"the body is not JSON: {shortened(message, 300)}", code="invalid_json")
    if where and (why := _REFUSED.get(str(where[0]))) is not None:
        return malformed(f"{where[0]}: {why}", str(where[0]), "unsupported_parameter")
    name = shortened(one_line(".".join(map(str, where))), 200)
    name = re.sub(r"(content)\.(?:parts|words)(?=\.|$)", r"\1", name)
    name = re.sub(r"(content\.\d+)\.[a-z_]+(?=\.)", r"\1", name)
    code = "missing_required_parameter" if kind == "missing" else "invalid_value"
    return malformed(f"{name or 'the body'}: {shortened(one_line(message), 300)}", name or None, code)


def _check(request: ChatRequest) -> None:
    if request.response_format is not None and request.response_format.type != "text":
        raise malformed(
            "response_format: only text is written; the kind of the question decides its form (apr.kind)",
            "response_format",
            "unsupported_parameter",
        )
    parts = [part for message in request.messages for part in message.parts]
    if len(parts) > MOST_PARTS:
        raise malformed(f"messages: {len(parts)} parts; at most {MOST_PARTS} are read", "messages", "too_many_parts")
    if sum(len(part.text) for part in parts if isinstance(part, TextPart)) > LONGEST_TEXT:
        raise malformed(f"messages: more than {LONGEST_TEXT:,} characters of text", "messages", "text_too_long")
