"""The connections to one server.

A reply is read up to a limit, and inflated and decoded outside the event loop; no redirect leads to another server.

`openai` makes the requests with a client of ours, so that what it receives is short and plain. Import this module
inside functions, because `openai` is an optional dependency.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import openai

from apr_plugin.loop.text import printable
from apr_plugin.policies.openai.failure import Failure, Refused, retry_after
from apr_plugin.policies.openai.reply import BadReply, decode

_T = TypeVar("_T")

CONNECT_S = 10.0
"""Most seconds for making a connection."""
ERROR_BYTES = 64 * 1024
"""How much of an error's body is read, inflated; the rest has no use."""
INLINE_BYTES = 128 * 1024
"""A longer reply is decoded in a thread, so that the other requests of the event loop continue."""
REDIRECTS = 5
"""Most redirects within a server that are followed."""
_MIB = 1024 * 1024
_CODINGS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_DESCRIBING = ("content-encoding", "content-length", "transfer-encoding")
"""Headers of a body as it was sent."""
_LIBRARY = openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]  # httpx, or httpx2 since openai 3
_Response: Any = sys.modules[_LIBRARY].Response


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """A client that reads every reply whole, up to a limit, and follows redirects only within a server.

    Args:
        most: Longest reply in bytes, inflated.
    """

    def __init__(self, most: int) -> None:
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": ", ".join(_CODINGS)})
        self._most = most

    async def send(self, request: Any, *, stream: bool = False, **more: Any) -> Any:
        """Send a request and return the reply with its body read.

        Raises:
            Refused: the reply is too long, can't be inflated, or points to another server.
        """
        more["follow_redirects"] = False
        response = await super().send(request, stream=True, **more)
        for _ in range(REDIRECTS):
            if response.next_request is None:
                break
            await response.aclose()
            response = await super().send(_followed(response), stream=True, **more)
        try:
            if response.next_request is not None:
                raise Refused(
                    f"HTTP {response.status_code}: more than {REDIRECTS} redirects", status=response.status_code
                )
            body = await self._body(response)
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _DESCRIBING]
        told: dict[str, Any] = {
            key: response.extensions[key] for key in ("http_version", "reason_phrase") if key in response.extensions
        }
        return type(response)(
            response.status_code, headers=headers, content=body, request=response.request, extensions=told
        )

    async def _body(self, response: Any) -> bytes:
        bad = response.status_code >= 400
        most = ERROR_BYTES if bad else self._most
        coding = response.headers.get("content-encoding", "").strip().lower().removeprefix("x-")
        if coding not in ("", "identity", *_CODINGS):
            if bad:
                return b""  # its status says enough
            raise Refused(f"the reply is written as {_short(coding)} (Content-Encoding), which was not requested")
        raw = bytearray()
        async for piece in response.aiter_raw():
            raw += piece[: most + 1 - len(raw)]
            if len(raw) > most:
                break
        body: bytes | bytearray = raw
        if coding in _CODINGS:
            body = await asyncio.to_thread(_inflated, raw, coding, most + 1, part=bad)
        if len(body) > most and not bad:
            raise Refused(f"the reply is longer than {most / _MIB:g} MiB; if that is right, raise max_reply_mib")
        return bytes(body[:most] if len(body) > most else body)


class Connections:
    """The connections to one server, of one event loop.

    Args:
        base_url: The address of its API.
        key: Sent with every request.
        timeout_s: Longest pause between two pieces of a reply.
        most: Longest reply in bytes, inflated.
        scrub: Removes secrets from what a server says.
    """

    def __init__(
        self, base_url: str, key: str | None, timeout_s: float, most: int, scrub: Callable[[str], str]
    ) -> None:
        timeout = openai.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        self._scrub = scrub
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key or "EMPTY", max_retries=0, timeout=timeout, http_client=BoundedClient(most)
        )

    async def ask(self, url: str, body: Mapping[str, Any] | None, read: Callable[[Any], _T], timeout_s: float) -> _T:
        """Post a body, or get if there is none.

        Args:
            url: The whole address.
            body: The request.
            read: Makes the result from the reply's JSON; it runs in a thread if the reply is long.
            timeout_s: Seconds until everything is done.

        Raises:
            Failure: there is no reply, or an error.
            BadReply: the reply is not JSON; `read` may raise other errors.
        """
        clock = asyncio.timeout(timeout_s)  # the client's own limit applies to each read
        try:
            async with clock:
                if body is None:
                    response = await self._client.get(url, cast_to=_Response)
                else:
                    response = await self._client.post(url, body=dict(body), cast_to=_Response)
                content, kind = response.content, response.headers.get("content-type", "")
                if len(content) <= INLINE_BYTES:
                    return read(decode(content, kind))
                return await asyncio.to_thread(lambda: read(decode(content, kind)))
        except BadReply:
            raise
        except TimeoutError:
            raise Failure(f"no answer within {timeout_s:g} s", again=True) from None
        except (openai.OpenAIError, Refused, ValueError) as error:
            raise self._failure(error, timeout_s) from None  # not chained: the original message may contain the key

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _failure(self, error: Exception, timeout_s: float) -> Failure:
        why = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
        if isinstance(why, Refused):  # bare, or wrapped by older releases
            return Failure(one_line(self._scrub(why.words)), again=why.again, status=why.status)
        match error:
            case openai.APITimeoutError():
                return Failure(f"no answer within {timeout_s:g} s", again=True)
            case openai.APIConnectionError():
                told = "" if why is None else f" ({type(why).__name__}{f': {why}' if str(why) else ''})"
                return Failure(one_line(self._scrub(f"the connection failed{told}")), again=True, unreachable=True)
            case openai.APIStatusError():
                status = error.status_code
                words = _words(error.body) or error.response.reason_phrase
                spent = error.code == "insufficient_quota"  # a 429 that does not go away after a pause
                again = (status in (408, 409, 429) or status >= 500) and not spent
                words = one_line(self._scrub(f"HTTP {status}: {words}"))
                return Failure(words, again=again, status=status, wait_s=retry_after(error.response.headers))
        return Failure(one_line(self._scrub(f"{type(error).__name__}: {error}")), again=False)


def one_line(text: str) -> str:
    """What a server or a library said, as one line without control characters."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(printable(text).split()))


def _followed(response: Any) -> Any:
    """The request that a redirect asks for; it is refused if it leads to another server, or would lose its body."""
    before, after = response.request, response.next_request
    status, target = response.status_code, after.url
    shown = _short(str(target.copy_with(username=None, password=None, query=None, fragment=None)))
    if (before.url.scheme, before.url.host, before.url.port) != (target.scheme, target.host, target.port):
        words = (
            f"HTTP {status}: it points to {shown}, another server, where nothing is sent; if that is the right "
            "one, give it as base_url="
        )
    elif target.userinfo:
        words = f"HTTP {status}: it points to {shown} with a user or password, which is not followed"
    elif before.method != after.method:
        words = f"HTTP {status}: it points to {shown} without the request; correct base_url"
    else:
        return after
    raise Refused(words, status=status)


def _inflated(raw: bytearray, coding: str, most: int, *, part: bool) -> bytes:
    """The first `most` bytes of a body; `part` allows the body to be cut off."""
    # Some servers leave out deflate's header.
    for bits in (_CODINGS[coding], -zlib.MAX_WBITS) if coding == "deflate" else (_CODINGS[coding],):
        inflater = zlib.decompressobj(bits)
        try:
            body = inflater.decompress(raw, most)
        except zlib.error:
            continue
        if len(body) < most and not inflater.eof and not part:
            raise Refused(f"the reply breaks off ({coding})", again=True)
        return body
    if part:
        return b""
    raise Refused(f"the reply is not {coding}, as its Content-Encoding says", again=True)


def _words(body: object) -> str:
    """The message in an error's body, in one line."""
    try:
        if isinstance(body, Mapping):
            told = body.get("message") or body.get("detail") or body.get("error") or dict(body)
            return " ".join(str(told).split())[:500]
        return " ".join(str(body or "").split())[:300]
    except RecursionError:
        return "its words are nested too deeply"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
