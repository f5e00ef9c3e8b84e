"""An endpoint in a thread of the test, and what tests ask it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from apr_plugin.harnesses.serve.limits import ServeLimits
from apr_plugin.harnesses.serve.service import Service, Unanswered
from apr_plugin.harnesses.serve.serving import listen, serve
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.settings import read_settings


class Served:
    """A server of the test's own process.

    Args:
        out: Folder of the trajectories.
        roots: Folders whose files may be named.
        policy: The policy, or its name.
        limits: Limits of requests.
        key: The API key.
        unanswered: As in `Service`.
        arguments: Further model_args.
    """

    def __init__(
        self,
        out: Path,
        *roots: Path,
        policy: Policy | str = "needle",
        limits: ServeLimits | None = None,
        key: str | None = None,
        unanswered: Unanswered = "status",
        **arguments: Any,
    ) -> None:
        given = {"trajectories": str(out)} | arguments
        settings = (
            read_settings({"policy": policy} | given) if isinstance(policy, str) else read_settings(given, policy)
        )
        self.service = Service(settings, limits or ServeLimits(), roots=roots, unanswered=unanswered)
        self.key = key
        self._socket = listen("127.0.0.1", 0)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="test-endpoint")

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        with self.service:
            self._task = asyncio.create_task(
                serve(self.service, self._socket, host="127.0.0.1", key=self.key, started=self._begun.set)
            )
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._socket.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def client(self, **more: Any) -> Any:
        """OpenAI's own client."""
        import openai

        return openai.OpenAI(base_url=self.url, api_key=self.key or "none", max_retries=0, **more)

    def post(self, body: object, headers: Mapping[str, str] | None = None, path: str = "/v1/chat/completions") -> Any:
        """Post JSON, or bytes as they are; returns status, headers and the parsed body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, data, {"Content-Type": "application/json"} | dict(headers or {}))
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), json.loads(response.read())
        finally:
            connection.close()

    def stored(self) -> list[Trajectory]:
        """What the store holds."""
        path = self.service.where()
        return Trajectory.read(path) if path.exists() else []

    def idle(self) -> bool:
        """Whether no request is in it, and nothing of one is left."""
        slots = self.service.slots
        free = not (slots.admitted or slots.running or slots.waiting or self.service.bodies.bytes)
        return free and not self.service.decoding.bytes and not list(self.service.uploads.folder.iterdir())


def wait_for(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def video_part(path: Path | str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"file://{path}"}}


def data_url(path: Path, mime: str = "video/mp4") -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def user(text: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of one question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chat(text: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole request."""
    return {"model": "apr", "messages": user(text, *parts)} | more


def letters(doc: Mapping[str, Any]) -> str:
    """A needle question as a harness writes it: options with letters, and how to answer."""
    options = "\n".join(f"{'ABCDEFGH'[n]}. {text}" for n, text in enumerate(doc["options"]))
    return f"{doc['question']}\n{options}\nAnswer with the option's letter from the given choices directly."


def choices(folder: Path) -> list[dict[str, Any]]:
    """The multiple-choice questions of a needle set, with the absolute paths of their videos."""
    from apr_plugin.tasks.needle.make import load_docs

    return [doc for doc in load_docs(folder) if doc["options"]]


def threads() -> list[str]:
    """Names of the threads that are alive, besides those of pools, whose number has a limit."""
    return sorted(t.name for t in threading.enumerate() if not t.name.startswith(("asyncio_", "apr-decode")))


@contextlib.contextmanager
def busy(served: Served) -> Iterator[None]:
    """Hold all memory for decoded media, so that every look waits."""
    decoding = served.service.decoding
    served.do(decoding.hold(decoding.held_bytes))
    try:
        yield
    finally:
        served.loop.call_soon_threadsafe(decoding.let_go, decoding.held_bytes)
