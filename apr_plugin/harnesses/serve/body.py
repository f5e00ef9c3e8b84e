"""Reads the body of a request: within its limit while it arrives, and within a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from apr_plugin.harnesses.serve.limits import BODY_RATE, BODY_S, MIB
from apr_plugin.harnesses.serve.refused import Refused, malformed
from apr_plugin.loop.decoding import Decoding

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
"""The next message of a connection (ASGI)."""


class ClientGone(Exception):
    """The client closed the connection; nobody reads a response."""


@contextlib.asynccontextmanager
async def read_body(
    headers: Mapping[str, str], receive: Receive, most: int, bodies: Decoding
) -> AsyncIterator[bytearray]:
    """Read a body, and hold its memory until the end of the context.

    Args:
        headers: The request's headers.
        receive: The connection.
        most: The longest body, in bytes.
        bodies: The memory of all bodies together; where there is no room, this body is read later.

    Raises:
        Refused: it is not JSON by its header, too long, or does not arrive in time.
        ClientGone: the connection was closed.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site could send any other type without being asked
        raise Refused(415, "the Content-Type must be application/json", "unsupported_media_type")
    try:
        announced = int(headers.get("content-length", most))
    except ValueError:
        raise malformed("the Content-Length is no number") from None
    if announced > most:
        await _discard(receive, most)
        raise _too_long(most)
    try:
        async with asyncio.timeout(BODY_S + announced / BODY_RATE):
            await bodies.hold(announced)
    except TimeoutError:
        raise Refused(429, "too many requests are being received; try again later", "busy", retry_after_s=5) from None
    try:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S + announced / BODY_RATE):
                async for part in _parts(receive):
                    if len(body) + len(part) > most:
                        raise _too_long(most)
                    body += part
        except TimeoutError:
            raise Refused(408, "the request did not arrive in time", "request_timeout") from None
        yield body
    finally:
        bodies.let_go(announced)


async def gone(receive: Receive) -> None:
    """Wait until the client closes the connection; its whole request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _discard(receive: Receive, most: int) -> None:
    """Read on for a moment, because a client that still sends would not see why it is refused."""
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            async for part in _parts(receive):
                read += len(part)
                if read > most:
                    return


def _too_long(most: int) -> Refused:
    return Refused(
        413, f"the body is too long; at most {most / MIB:.0f} MiB are read (--max-upload-mib)", "request_too_large"
    )
