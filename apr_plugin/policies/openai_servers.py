"""One or more servers of the same model: which one a request goes to, when it is tried again, and when it is given up.

A request is tried again on 408, 409, 429 and 5xx, on a broken connection, when no answer came in time, and when the reply can't be read. The wait
doubles from half a second to `LONGEST_BACKOFF_S`, with jitter; `Retry-After` (seconds or a date, up to `LONGEST_RETRY_AFTER_S`) is obeyed for
everything that goes to that server. With several servers the next try goes to another one at once.

Requests of one episode stay with one server, which has the episode's prefix in its cache; new episodes go to the least loaded one.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from apr_plugin.loop.policy import PolicyUnavailable
from apr_plugin.loop.text import printable

from .openai_reply import BadReply

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0
"""A server that asks for a longer pause is asked again after this one; it counts as a try."""
CONNECT_S = 10.0
"""Seconds a connection may take to be made."""
EPISODES_REMEMBERED = 10_000
"""How many episodes' servers are remembered."""


@dataclass(eq=False)
class Server:
    """One server."""

    url: str
    """Where its API begins, usually ending in /v1."""
    hold_until: float = 0.0
    """Nothing is sent before this time (`time.monotonic`)."""
    in_flight: int = 0
    """Requests sent or waiting for a free connection."""
    episodes: int = 0
    """Episodes given to it."""

    @property
    def name(self) -> str:
        """The address as messages show it: without user, password or query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def host(self) -> str:
        """The host's name."""
        return urlsplit(self.url).hostname or ""

    @property
    def root(self) -> str:
        """The address without the version, where vLLM keeps what is not of the protocol."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def held(self) -> bool:
        """Whether nothing may be sent to it now."""
        return self.hold_until > time.monotonic()

    @property
    def local(self) -> bool:
        """Whether it runs on this machine."""
        try:
            return ip_address(self.host).is_loopback or ip_address(self.host).is_unspecified
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")


@dataclass(eq=False)
class Failure(Exception):
    """One try that came to nothing."""

    words: str
    """What happened, in the server's words where it said any."""
    again: bool
    """Whether another try may help."""
    unreachable: bool = False
    """Whether no server answered at all."""
    status: int | None = None
    """HTTP status, where there was one."""
    wait_s: float | None = None
    """What `Retry-After` asks for."""


@dataclass
class _Lines:
    """What belongs to one event loop."""

    clients: dict[Server, Any] = field(default_factory=dict)
    slots: dict[Server, asyncio.Semaphore] = field(default_factory=dict)
    closer: AsyncGenerator[None, None] | None = None


class Servers:
    """The servers behind one policy.

    Args:
        urls: Their addresses.
        key: Sent to each of them; appears in no message.
        timeout_s: Seconds one try may take.
        retries: Tries after the first.
        max_connections: Requests in flight to one server; the others wait.
    """

    def __init__(self, urls: Sequence[str], key: str | None, *, timeout_s: float, retries: int, max_connections: int) -> None:
        self.servers = [Server(url) for url in urls]
        self._key, self._timeout_s, self._retries, self._max_connections = key, timeout_s, retries, max_connections
        self._homes: OrderedDict[Hashable, Server] = OrderedDict()
        self._all_down = False
        self._lines: dict[asyncio.AbstractEventLoop, _Lines] = {}

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""
        return self._key is not None

    def scrub(self, text: str) -> str:
        """Text without the key, or its first letters where the text was cut off within it. Fewer than eight letters (`EMPTY`) are no secret."""
        if not self._key or len(self._key) < 8:
            return text
        text = text.replace(self._key, "[key]")
        cut = next((n for n in range(len(self._key) - 1, 7, -1) if text.endswith(self._key[:n])), 0)
        return f"{text[:-cut]}[key]" if cut else text

    def now(self, server: Server, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Get something, or post something, before any event loop runs; the reply's JSON.

        Raises:
            Failure: the server can't be reached, or refuses.
        """
        import openai

        seconds = min(20.0, self._timeout_s)
        client = openai.OpenAI(base_url=server.url, api_key=self._key or "EMPTY", max_retries=1, timeout=openai.Timeout(seconds, connect=CONNECT_S))
        with client:
            try:
                return client.get(url, cast_to=object) if body is None else client.post(url, body=dict(body), cast_to=object)
            except openai.OpenAIError as error:
                raise self._failure(error, seconds) from None
            except ValueError as error:
                raise Failure(self._line(f"it sent no JSON ({error})"), again=False) from None

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any, float], _T], episode: Hashable = None) -> _T:
        """Post a request until a readable reply comes.

        Args:
            path: Below the server's address.
            body: The request.
            read: Makes the result from the reply's JSON and the seconds it waited here; raises `BadReply` for one that is no use.
            episode: What it belongs to; requests of one episode stay with one server.

        Raises:
            PolicyUnavailable: the server refused, or every try failed; says which server, and its last words.
        """
        lines = await self._here()
        began = time.monotonic()
        failed: set[Server] = set()
        tries = 0
        while True:
            server = self._choose(episode, failed)
            server.in_flight += 1
            try:
                async with lines.slots[server]:
                    if server.held and not all(other.held for other in self.servers):
                        continue  # it was asked to pause while this request waited, and another is free
                    await self._wait(server)
                    waited = time.monotonic() - began
                    tries += 1
                    result = read(await self._post(lines, server, server.url.rstrip("/") + path, body, self._timeout_s), waited)
                    self._all_down = False
                    return result
            except BadReply as error:
                failure = Failure(self._line(str(error)), again=True)
            except Failure as error:
                failure = error
            finally:
                server.in_flight -= 1
            failed.add(server)
            await self._give_up_or_pause(server, failure, failed, tries, began)

    async def ask_each_once(self, path: str, body: Mapping[str, Any]) -> Any:
        """Post a small request to the least loaded server; while one can't answer it now, to the next. No server is asked twice.

        Args:
            path: Below the server's address without the version.
            body: The request.

        Raises:
            Failure: a server refused, or none of them could answer.
        """
        lines = await self._here()
        failures: list[Failure] = []
        for server in sorted(self.servers, key=lambda server: (server.held, server.in_flight)):
            try:
                return await self._post(lines, server, server.root + path, body, min(self._timeout_s, 60.0))
            except Failure as failure:
                if not failure.again:
                    raise
                if failure.unreachable:
                    server.hold_until = max(server.hold_until, time.monotonic() + FIRST_BACKOFF_S)
                failures.append(failure)
        raise failures[-1]

    def close(self) -> None:
        """Close the connections of loops that still run; those of a loop that ended were closed with it."""
        for loop, lines in list(self._lines.items()):
            if loop.is_running() and lines.closer is not None:
                asyncio.run_coroutine_threadsafe(lines.closer.aclose(), loop)
        self._lines.clear()

    async def _give_up_or_pause(self, server: Server, failure: Failure, failed: set[Server], tries: int, began: float) -> None:
        rounds = 1 if self._all_down else 1 + self._retries  # once a request was given up for dead servers, the next ones find out at once
        if not failure.unreachable:
            self._all_down = False
        if not failure.again or tries >= rounds * len(self.servers):
            self._all_down = self._all_down or failure.unreachable
            after = f" ({tries} tries in {time.monotonic() - began:.0f} s)" if tries > 1 else ""
            raise PolicyUnavailable(f"{server.name}: {failure.words}{after}") from None
        pause = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if failure.wait_s is not None:
            pause = min(LONGEST_RETRY_AFTER_S, failure.wait_s)
        _log.info("%s: %s; trying again", server.name, failure.words)
        if failure.unreachable or failure.wait_s is not None:
            server.hold_until = max(server.hold_until, time.monotonic() + pause)
        elif len(failed) == len(self.servers):
            await asyncio.sleep(pause)
        if len(failed) == len(self.servers):
            failed.clear()

    def _choose(self, episode: Hashable, failed: set[Server]) -> Server:
        ready = [server for server in self.servers if not server.held]
        others = [server for server in ready if server not in failed] or ready
        home = self._homes.get(episode) if episode is not None else None
        if home is not None and home in others:
            return home
        chosen = min(others, key=lambda s: (s.in_flight, s.episodes)) if others else min(self.servers, key=lambda s: s.hold_until)
        if episode is not None and chosen is not home:
            chosen.episodes += 1
            self._homes[episode] = chosen
            if len(self._homes) > EPISODES_REMEMBERED:
                self._homes.popitem(last=False)
        return chosen

    async def _wait(self, server: Server) -> None:
        """Until the server may be asked again; spread out, so that those who waited don't all come in the same moment."""
        while not self._all_down and (left := server.hold_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, min(1.0, 0.25 * left)))

    async def _post(self, lines: _Lines, server: Server, url: str, body: Mapping[str, Any], timeout_s: float) -> Any:
        """One request and its JSON, or a `Failure`."""
        import openai

        clock = asyncio.timeout(timeout_s)  # the client's own limit is for each read alone
        try:
            async with clock:
                return await lines.clients[server].post(url, body=dict(body), cast_to=object)
        except openai.OpenAIError as error:
            raise self._failure(error, timeout_s) from None  # not chained: the original's words may hold the key
        except TimeoutError:
            raise Failure(f"no answer within {timeout_s:g} s", again=True) from None
        except ValueError as error:
            raise Failure(self._line(f"the reply is no JSON ({error})"), again=True) from None

    def _failure(self, error: Exception, timeout_s: float) -> Failure:
        import openai

        match error:
            case openai.APITimeoutError():
                return Failure(f"no answer within {timeout_s:g} s", again=True)
            case openai.APIConnectionError():
                why = error.__cause__
                told = "" if why is None else f" ({type(why).__name__}{f': {why}' if str(why) else ''})"
                return Failure(self._line(f"the connection failed{told}"), again=True, unreachable=True)
            case openai.APIStatusError():
                status = error.status_code
                words = _words(error.body) or error.response.reason_phrase
                spent = error.code == "insufficient_quota"  # a 429 that no pause helps
                again = (status in (408, 409, 429) or status >= 500) and not spent
                return Failure(self._line(f"HTTP {status}: {words}"), again=again, status=status, wait_s=retry_after(error.response.headers))
        return Failure(self._line(f"{type(error).__name__}: {error}"), again=False)

    def _line(self, text: str) -> str:
        """What a server or a library said, as one line that can be shown: no key, no control characters."""
        return "".join(char if char.isprintable() else "?" for char in " ".join(printable(self.scrub(text)).split()))

    async def _here(self) -> _Lines:
        """Clients and slots of the running loop; a harness may run every task in a loop of its own.

        They are closed when the loop ends: `asyncio.run` finishes every generator that was begun in it.
        """
        loop = asyncio.get_running_loop()
        if (lines := self._lines.get(loop)) is None:
            import openai

            lines = self._lines[loop] = _Lines()
            for server in self.servers:
                timeout = openai.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s))
                lines.clients[server] = openai.AsyncOpenAI(base_url=server.url, api_key=self._key or "EMPTY", max_retries=0, timeout=timeout)
                lines.slots[server] = asyncio.Semaphore(self._max_connections)
            lines.closer = self._closing(loop, lines)
            await anext(lines.closer)
        return lines

    async def _closing(self, loop: asyncio.AbstractEventLoop, lines: _Lines) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._lines.pop(loop, None)
            for client in lines.clients.values():
                await client.close()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait (`Retry-After` as seconds or an HTTP date, or `retry-after-ms`); `None` where it says nothing usable."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, moment.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _words(body: object) -> str:
    """What an error's body says, in one line."""
    if isinstance(body, Mapping):
        told = body.get("message") or body.get("detail") or body.get("error") or dict(body)
        return " ".join(str(told).split())[:500]
    return " ".join(str(body or "").split())[:300]
