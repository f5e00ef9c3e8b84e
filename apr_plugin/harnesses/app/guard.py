"""`Guard`: which requests reach the page's server, and what its answers forbid the browser.

Gradio answers many addresses that this page does not need: it copies files and downloads addresses that a request
names (a value with `path` and `meta`), it forwards to other servers, and it shows its interface to programs. So only
the addresses that the page itself uses are answered, and a request with such a value is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 256 * 1024
"""Of the body of a request to Gradio."""

_ANSWERED = re.compile(
    r"/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?"
    r"|/(?:assets|static)/.*"
    r"|/gradio_api/(?:queue/(?:join|data)/?|heartbeat/[^/]+|startup-events|app_id/?|cancel/?|reset/?|info)"
    r"|/apr/(?:upload|video|report|trajectory)/[^/]+"
)
"""The addresses that are answered."""

_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's own page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """An ASGI application in front of another.

    Args:
        app: The other.
        hosts: What a request's Host header may be; `None` for a page that is not only for this machine.
    """

    def __init__(self, app: App, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._hosts is not None and headers.get(b"host", b"").decode("latin-1") not in self._hosts:
            await _say(send, 421, "this server answers for the loopback address only")  # a name that points here
            return
        path = scope["path"]
        if not _ANSWERED.fullmatch(path):
            await _say(send, 404, "there is nothing here")
            return
        if scope["method"] == "POST":
            body = await _body(receive)
            if body is None:
                await _say(send, 413, "the request is too large")
                return
            if _names_file(body):
                await _say(send, 400, "a request may not name a file")
                return
            receive = _again(body, receive)
        await self._app(scope, receive, _with_headers(send, own=path.startswith("/apr/")))


async def _body(receive: Receive) -> bytes | None:
    """The whole body; `None` if it is too large, or the client has gone."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if size > MOST_BYTES:
            return None
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _names_file(body: bytes) -> bool:
    """Whether a JSON body holds an object with a path, at any depth; what is no JSON holds none that Gradio reads."""
    try:
        waiting = [json.loads(body)] if body.strip() else []
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value or "meta" in value:
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _with_headers(send: Send, own: bool) -> Send:
    """Add our headers; the report page has a content security policy of its own, in its head."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = HEADERS if own else (*HEADERS, (b"content-security-policy", _POLICY.encode()))
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sent


async def _say(send: Send, status: int, words: str) -> None:
    body = words.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
