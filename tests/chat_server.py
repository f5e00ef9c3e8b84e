"""A small server of the chat-completions protocol over a real socket.

It plays turns in order, answers like vLLM, and fails on demand.

    with ChatServer([look(0, 2), answer("B")]) as server:
        server.mishaps += [drop, status(429, retry_after="1")]
        OpenAIPolicy(model="m", base_url=server.url)

Tokens follow simple rules: one for four characters of text, one for a 28-pixel square of a picture, 25 for a second of
sound. The server decodes what it receives, so pictures and sound that can't be decoded give an error 400, as does a
prompt longer than its context.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import ssl
import threading
import time
import wave
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import av
import pytest
from PIL import Image


@pytest.fixture(autouse=True, scope="module")
def one_tls_context() -> Iterator[None]:
    """Read the certificates of all authorities only once.

    Every client reads them (27 ms), even for plain HTTP.

    Import it to use it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


Mishap = Callable[["_Handler"], None]


class ChatServer:
    """The server.

    Args:
        turns: What the model writes, by the number of turns in the prompt; the last one is repeated.
        model: Name of its one model.
        engine: The engine that the server reports.
        context_tokens: Most tokens of prompt and turn together, or `None` if it does not report it.
        key: The key that it expects in the header; a wrong one is repeated in the error, as some servers do.
        latency_s: Seconds of each turn.
        port: A fixed port, for a server that replaces an earlier one.
        tokenizes: Whether it has vLLM's /tokenize.
        gives_details: Whether its usage has cached, visual and audio tokens.
        trusts_kwargs: Whether requests may say how media is read (vLLM's --trust-request-mm-kwargs).
    """

    def __init__(
        self,
        turns: Sequence[str] = ("a turn",),
        *,
        model: str = "small",
        engine: str = "vllm",
        context_tokens: int | None = 32_768,
        key: str | None = None,
        latency_s: float = 0.0,
        port: int = 0,
        tokenizes: bool = True,
        gives_details: bool = True,
        trusts_kwargs: bool = True,
    ) -> None:
        self.turns = list(turns)
        self.model = model
        self.engine = engine
        self.context_tokens = context_tokens
        self.key = key
        self.latency_s = latency_s
        self.tokenizes = tokenizes
        self.gives_details = gives_details
        self.trusts_kwargs = trusts_kwargs
        self.mishaps: deque[Mishap] = deque()
        """Mishaps, which the requests for a turn take one after the other."""
        self.always: Mishap | None = None
        """A mishap that happens to every request for a turn."""
        self.chats: list[dict[str, Any]] = []
        """Bodies of the requests for a turn, whatever their outcome."""
        self.raw: list[bytes] = []
        """The same bodies as raw bytes."""
        self.tokenized: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str, str | None]] = []
        """Method, path and `Authorization` of every request."""
        self.models: Mishap | None = None
        """The reply to /models."""
        self.counts: Mishap | None = None
        """The reply to /tokenize."""
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        """When each request for a turn arrived (`time.monotonic`)."""
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._http = _Quiet(("127.0.0.1", port), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop like a killed server: the port is closed and every connection is broken."""
        if not self.stopping.is_set():
            self.stopping.set()
            self._http.shutdown()
            self._http.break_connections()
            self._http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: ChatServer

    def __init__(self, *arguments: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, address: Any) -> None:
        self._open.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for request in list(self._open):
            self.shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Ignore a client that goes away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Quiet
    asked: dict[str, Any]

    @property
    def owner(self) -> ChatServer:
        return self.server.owner

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, value: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in ({"Content-Type": kind, "Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, words: str, **headers: str) -> None:
        self.reply({"error": {"message": words, "type": "error", "param": None, "code": status}}, status, **headers)

    def parse_request(self) -> bool:
        read = super().parse_request()
        if read:
            self.owner.seen.append((self.command, self.path, self.headers.get("Authorization")))
        return read

    def do_GET(self) -> None:
        if not self._key_fits():
            return
        if self.owner.models is not None:
            return self.owner.models(self)
        if self.path != "/v1/models":
            return self.error(404, "not found")
        card = {
            "id": self.owner.model,
            "object": "model",
            "owned_by": self.owner.engine,
            "root": f"/models/{self.owner.model}",
        }
        if self.owner.context_tokens is not None:
            card["max_model_len"] = self.owner.context_tokens
        self.reply({"object": "list", "data": [card]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(data)
        owner = self.owner
        if not owner.trusts_kwargs and ("mm_processor_kwargs" in body or "media_io_kwargs" in body):
            return self.error(400, "Per-request mm_processor_kwargs are disabled.")
        if self.path == "/tokenize" and owner.tokenizes:
            owner.tokenized.append(body)
            if owner.counts is not None:
                return owner.counts(self)
            return self.reply(
                {
                    "count": sum(count_tokens(body["messages"]).values()),
                    "max_model_len": owner.context_tokens,
                    "tokens": [],
                }
            )
        if self.path != "/v1/chat/completions":
            return self.error(404, "not found")
        self.asked = body
        with owner.lock:
            owner.chats.append(body)
            owner.raw.append(data)
            owner.headers.append({name.lower(): value for name, value in self.headers.items()})
            owner.times.append(time.monotonic())
            owner.busy += 1
            owner.busiest = max(owner.busiest, owner.busy)
            mishap = owner.mishaps.popleft() if owner.mishaps else owner.always
        try:
            if self._key_fits():
                (mishap or _Handler.chat)(self)
        finally:
            with owner.lock:
                owner.busy -= 1

    def _key_fits(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.owner.key is None or given == f"Bearer {self.owner.key}":
            return True
        self.error(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}")
        return False

    def chat(self) -> None:
        owner, body = self.owner, self.asked
        if body.get("model") != owner.model:
            return self.error(404, f"The model `{body.get('model')}` does not exist.")
        try:
            counts = count_tokens(body["messages"])
        except Exception as error:  # noqa: BLE001 - what a decoder refuses
            return self.error(400, f"bad media: {error}")
        prompt, limit = sum(counts.values()), body.get("max_tokens", body.get("max_completion_tokens"))
        if owner.context_tokens is not None and prompt + limit > owner.context_tokens:
            return self.error(
                400,
                f"This model's maximum context length is {owner.context_tokens} tokens. However, you "
                f"requested {prompt + limit}.",
            )
        owner.stopping.wait(owner.latency_s)
        number = sum(message["role"] == "assistant" for message in body["messages"])
        text = owner.turns[min(number, len(owner.turns) - 1)]
        if body.get("temperature", 1.0) > 0:
            text += f" {body.get('seed', 0) % 97}"
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        finish = "stop" if len(pieces) <= limit else "length"
        pieces = pieces[:limit]
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(pieces)},
            "finish_reason": finish,
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_logprob(piece, body.get("top_logprobs", 0)) for piece in pieces]}
        if body.get("return_token_ids"):
            choice["token_ids"] = list(range(len(pieces)))
        details = {
            "cached_tokens": prompt // 128 * 128,
            "multimodal_tokens": {key: n for key, n in counts.items() if key != "text" and n},
        }
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": len(pieces),
            "total_tokens": prompt + len(pieces),
        }
        if owner.gives_details:
            usage["prompt_tokens_details"] = details
        ids = {"prompt_token_ids": list(range(prompt))} if body.get("return_token_ids") else {}
        self.reply({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage} | ids)


def _logprob(piece: str, k: int) -> dict[str, Any]:
    """Half of the probability on the first token, half of the rest on the next, and so on."""
    listed = [{"token": f"{n}", "logprob": math.log(0.5 ** (n + 1)), "bytes": None} for n in range(k)]
    return {"token": piece, "logprob": math.log(0.5), "bytes": None, "top_logprobs": listed}


def count_tokens(messages: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count the tokens of messages by kind; decode every picture, sound and clip."""
    found = {"text": 3, "image": 0, "audio": 0, "video": 0}
    for message in messages:
        found["text"] += 4
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            match part["type"]:
                case "text":
                    found["text"] += -(-len(part["text"]) // 4)
                case "image_url":
                    with Image.open(io.BytesIO(_data(part["image_url"]["url"]))) as image:
                        found["image"] += 2 + max(1, round(image.width / 28)) * max(1, round(image.height / 28))
                case "input_audio":
                    found["audio"] += 2 + _sound_tokens(base64.b64decode(part["input_audio"]["data"]))
                case "audio_url":
                    found["audio"] += 2 + _sound_tokens(_data(part["audio_url"]["url"]))
                case "video_url":
                    with av.open(io.BytesIO(_data(part["video_url"]["url"]))) as file:
                        frames = [frame for frame in file.decode(video=0)]
                        found["video"] += 2 + -(-len(frames) // 2) * max(1, round(frames[0].width / 28)) * max(
                            1, round(frames[0].height / 28)
                        )
                    with av.open(io.BytesIO(_data(part["video_url"]["url"]))) as file:
                        if file.streams.audio:
                            found["audio"] += 2 + math.ceil(
                                sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0)) * 25
                            )
    return found


def _data(uri: str) -> bytes:
    assert uri.startswith("data:"), uri[:40]
    return base64.b64decode(uri.partition(",")[2], validate=True)


def _sound_tokens(data: bytes) -> int:
    with wave.open(io.BytesIO(data)) as file:
        return math.ceil(file.getnframes() / file.getframerate() * 25)


def drop(handler: _Handler) -> None:
    """Break the connection without a reply."""
    handler.close_connection = True
    handler.server.shutdown_request(handler.request)


def half(handler: _Handler) -> None:
    """Break the connection in the middle of the reply."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    drop(handler)


def hang(handler: _Handler) -> None:
    """Send no reply until the server stops."""
    handler.owner.stopping.wait(60)
    drop(handler)


def status(code: int, words: str = "the engine is unwell", **headers: str) -> Mishap:
    """Reply with an error of this status."""
    return lambda handler: handler.error(code, words, **headers)


def body(value: Any, kind: str = "application/json", status: int = 200, **headers: str) -> Mishap:
    """Reply with this body."""
    return lambda handler: handler.reply(value, status, kind, **headers)


def raw(first: bytes, again: bytes = b"", pause_s: float = 0.0) -> Mishap:
    """Send these bytes, then others without end, until the client goes away."""

    def send(handler: _Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(first)
        while again and not handler.owner.stopping.wait(pause_s):
            handler.wfile.write(again)

    return send


def head(status: int = 200, **headers: str) -> bytes:
    """Send the beginning of a reply, up to its body."""
    lines = [f"HTTP/1.1 {status} x", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def moved(status: int, target: str) -> Mishap:
    """Reply with a redirect."""
    return body(b"", status=status, location=target)


garbage = body(b'{"choices": [{"mess')
html = body(b"<html>it works</html>", "text/html")
no_choices = body({"choices": [], "usage": {}})
