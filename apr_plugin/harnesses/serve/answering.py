"""`Answering`: the response to one request, from its body to the last byte, whole or as a stream.

The episode, the connection's end and the sender are three tasks. When the client leaves, the episode is cancelled and
saved, and its slot is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response

from apr_plugin.harnesses.serve.body import ClientGone, Receive, gone, read_body
from apr_plugin.harnesses.serve.completion import (
    DONE,
    Completion,
    about,
    content_of,
    data_line,
    fault_of,
    finish_reason,
    reasoning,
    told_event,
    usage_of,
)
from apr_plugin.harnesses.serve.limits import KEEP_ALIVE_S, PIECE_BYTES, SEND_S
from apr_plugin.harnesses.serve.question import Asked, read_question
from apr_plugin.harnesses.serve.refused import Refused
from apr_plugin.harnesses.serve.request import Wanted, read_chat
from apr_plugin.harnesses.serve.service import Service, gather_cancelled
from apr_plugin.harnesses.serve.slots import stopping
from apr_plugin.harnesses.serve.uploads import Received
from apr_plugin.loop.events import Event, Opened, Thought
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.terminal import one_line

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Sends a message to a connection (ASGI)."""

FIRST_S = 5.0
"""How long a stream waits for its first turn, so that a question that fails at once gets a proper status."""

_log = logging.getLogger(__name__)


class Answering(Response):  # type: ignore[misc]
    """Answers one request for a chat completion.

    Args:
        service: What answers.
    """

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.service = service

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        one = _One(self.service, receive, send)
        began = time.monotonic()
        try:
            with self.service.slots.place():
                await one.answer(headers)
        except Refused as fault:
            await one.refuse(fault)
        except ClientGone:
            one.outcome = "499 the client left"
        except TimeoutError:
            one.outcome = "499 the client does not read"
            scope.get("state", {}).get("abort", _nothing)()  # else what it does not read would stay in memory
        except asyncio.CancelledError:
            await one.refuse(stopping())
            raise
        except Exception:  # noqa: BLE001 - the client is told nothing of what is inside
            _log.exception("%s", one.name)
            await one.refuse(Refused(500, "something went wrong in the server; its log says what", "internal_error"))
        finally:
            seconds = time.monotonic() - began
            _log.info("%s", one_line(f"{one.name} {one.outcome} ({seconds:.2f} s)", 400))


def _nothing() -> None:
    pass


class _One:
    """One request."""

    def __init__(self, service: Service, receive: Receive, send: Send) -> None:
        self.service = service
        self.receive = receive
        self._send = send
        self.name = f"chatcmpl-{uuid.uuid4().hex}"
        self.outcome = ""
        self._begun = False
        self._streams = False
        self._thought = 0
        self._received: Received = service.received(self.name)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._completion = Completion(service.model, self.name, int(time.time()), service.config_hash)

    async def answer(self, headers: Mapping[str, str]) -> None:
        service = self.service
        try:
            async with read_body(headers, self.receive, service.limits.body_bytes, service.bodies) as body:
                (wanted, asked), _ = await service.bodies.read(self._read, body)
            work = asyncio.create_task(service.answer(asked, self._events.put_nowait))
            work.add_done_callback(lambda _: self._events.put_nowait(None))
            reply = asyncio.create_task(self._reply(wanted, asked, work))
            left = asyncio.create_task(gone(self.receive))
            try:
                await asyncio.wait({reply, left}, return_when=asyncio.FIRST_COMPLETED)
                if not reply.done():
                    raise ClientGone
                await reply
            finally:
                await gather_cancelled(work, reply, left)
        finally:
            await asyncio.to_thread(self._received.delete)

    def _read(self, body: bytearray) -> tuple[Wanted, Asked]:
        request = read_chat(body)
        body.clear()
        if request.model != self.service.model:
            raise Refused(
                404,
                f"there is no model {one_line(request.model, 80)!r}; this server has {self.service.model!r}",
                "model_not_found",
                param="model",
            )
        anyway = self.service.unanswered == "null"
        asked = read_question(request, self.service.roots, self._received, self.name, ask_anyway=anyway)
        return request.wanted(), asked

    async def _reply(self, wanted: Wanted, asked: Asked, work: asyncio.Task[Trajectory]) -> None:
        if wanted.stream:
            self._streams = True
            await self._stream(wanted, asked, work)
            return
        thoughts = []
        while (event := await self._events.get()) is not None:
            thoughts.append(self._words(event))
        trajectory = await self._finished(work)
        content, extra = self._written(wanted, asked, trajectory)
        await self._json(200, self._completion.whole(trajectory, content, extra, "".join(thoughts)), {})

    async def _stream(self, wanted: Wanted, asked: Asked, work: asyncio.Task[Trajectory]) -> None:
        first: list[Event] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                while not first or isinstance(first[-1], Opened):
                    event = await self._events.get()
                    if event is None:
                        break
                    first.append(event)
        if work.done():
            await self._finished(work)  # an error gets its own status
            self._events.put_nowait(None)
        await self._begin_stream()
        for event in first:
            await self._show(event)
        await self._follow(wanted, asked, work)

    def _words(self, event: Event) -> str:
        words = reasoning(event, self._thought)
        self._thought = event.number if isinstance(event, Thought) else self._thought
        return words

    async def _begin_stream(self) -> None:
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"})
        await self._body(self._completion.chunk({"role": "assistant", "content": ""}))

    async def _show(self, event: Event) -> None:
        words = self._words(event)
        await self._body(self._completion.chunk({"reasoning_content": words} if words else {}, told=told_event(event)))

    async def _follow(self, wanted: Wanted, asked: Asked, work: asyncio.Task[Trajectory]) -> None:
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), KEEP_ALIVE_S)
            except TimeoutError:
                await self._body(b": waiting\n\n")
                continue
            if event is None:
                break
            await self._show(event)
        trajectory = await self._finished(work)
        content, extra = self._written(wanted, asked, trajectory)
        await self._body(self._completion.chunk({"content": content}))
        await self._body(self._completion.chunk({}, finish=finish_reason(trajectory), told=extra))
        if wanted.include_usage:
            await self._body(self._completion.chunk(None, usage=usage_of(trajectory)))
        await self._body(DONE, more=False)

    async def _finished(self, work: asyncio.Task[Trajectory]) -> Trajectory:
        await asyncio.wait({work})
        if work.cancelled():  # not by us: the process was told to stop
            raise stopping()
        trajectory = work.result()
        fault = fault_of(trajectory, self._received)
        if fault is not None and self.service.unanswered == "status":
            raise fault
        self.outcome = f"200 {trajectory.stop_reason}, {len(trajectory.turns)} turns"
        return trajectory

    def _written(self, wanted: Wanted, asked: Asked, trajectory: Trajectory) -> tuple[str, dict[str, Any]]:
        extra = about(trajectory, self._received, whole=wanted.trajectory, ignored=list(wanted.ignored))
        return content_of(asked, trajectory, strict=self.service.strict), extra

    async def refuse(self, fault: Refused) -> None:
        """Send an error: with its status, or, after a stream has begun, as the stream's last event."""
        self.outcome = f"{fault.status} {fault.code}: {fault.message}"
        with contextlib.suppress(TimeoutError):
            if not self._begun:
                await self._json(fault.status, fault.body(), fault.headers())
            elif self._streams:
                await self._body(data_line(fault.body()))
                await self._body(DONE, more=False)

    async def _json(self, status: int, value: object, headers: Mapping[str, str]) -> None:
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        more = {"content-type": "application/json", "content-length": str(len(body))}
        if status in (408, 413, 415, 429) or status >= 500:
            more["connection"] = "close"  # the rest of a body that was not read would be taken for a request
        await self._start(status, more | dict(headers))
        await self._body(body, more=False)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._begun = True
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        pairs += [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
        await self._timed({"type": "http.response.start", "status": status, "headers": pairs})

    async def _body(self, body: bytes, *, more: bool = True) -> None:
        # In pieces: uvicorn takes any piece at once, and waits for the client before the next.
        for at in range(0, max(len(body), 1), PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body)
            piece = body[at : at + PIECE_BYTES]
            await self._timed({"type": "http.response.body", "body": piece, "more_body": more or not last})

    async def _timed(self, message: Mapping[str, Any]) -> None:
        """Send, but not to a client that reads nothing; a TimeoutError ends the request."""
        async with asyncio.timeout(SEND_S):
            await self._send(message)
