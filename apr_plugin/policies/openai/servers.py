"""One or more servers of the same model: where a request is sent, when it is tried again, and when it is given up.

A request is tried again on 408, 409, 429 and 5xx, on a broken connection, when no answer came in time, and when the
reply can't be read. The wait doubles from half a second to `LONGEST_BACKOFF_S`, with jitter. `Retry-After` (seconds or
a date, up to `LONGEST_RETRY_AFTER_S`) applies to all requests to that server, and never shortens a wait. With several
servers the next attempt goes to another one at once.

Requests of one episode stay with one server, which has the episode's prefix in its cache; new episodes go to the least
loaded one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from apr_plugin.loop.policy import PolicyUnavailable
from apr_plugin.policies.openai.failure import Failure
from apr_plugin.policies.openai.reply import BadReply

if TYPE_CHECKING:
    from apr_plugin.policies.openai.http import Connections

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0
"""The longest pause before a server is asked again, even if it asks for a longer one; that counts as an attempt."""
LOOK_UP_S = 20.0
"""Most seconds of a request before the first question."""
SECRET_CHARS = 8
"""A shorter key (`EMPTY`) is not a secret."""
EPISODES_REMEMBERED = 10_000
"""For how many episodes the server is remembered."""


@dataclass(eq=False)
class Server:
    """One server."""

    url: str
    """The address of its API, usually ending in /v1."""
    hold_until: float = 0.0
    """Nothing is sent before this time (`time.monotonic`)."""
    in_flight: int = 0
    """Requests sent or waiting for a free connection."""
    episodes: int = 0
    """The number of episodes given to it."""

    @property
    def name(self) -> str:
        """The address as messages show it: without user, password or query."""
        scheme, mark, rest = re.split(r"[?#]", self.url, maxsplit=1)[0].rpartition("://")
        return scheme + mark + rest.rpartition("@")[2]

    @property
    def host(self) -> str:
        """The host's name."""
        return urlsplit(self.url).hostname or ""

    @property
    def root(self) -> str:
        """The address without the version; vLLM's own endpoints are there."""
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


@dataclass
class _Lines:
    """The clients and slots of one event loop."""

    connections: dict[Server, Connections] = field(default_factory=dict)
    slots: dict[Server, asyncio.Semaphore] = field(default_factory=dict)
    closer: AsyncGenerator[None, None] | None = None


class Servers:
    """The servers of one policy.

    Args:
        urls: Their addresses.
        key: The key that is sent to each of them; it is in no message.
        timeout_s: Most seconds of one attempt.
        retries: Attempts after the first.
        max_connections: Requests in flight to one server; the others wait.
        reply_bytes: Longest reply, inflated.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        *,
        timeout_s: float,
        retries: int,
        max_connections: int,
        reply_bytes: int,
    ) -> None:
        self.servers = [Server(url) for url in urls]
        self._key = key
        self._timeout_s = timeout_s
        self._retries = retries
        self._max_connections = max_connections
        self._reply_bytes = reply_bytes
        self._homes: OrderedDict[Hashable, Server] = OrderedDict()
        self._all_down = False
        self._lines: dict[asyncio.AbstractEventLoop, _Lines] = {}

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""
        return self._key is not None

    def scrub(self, text: str) -> str:
        """Remove the key from a text, also if only the key's beginning is there.

        Fewer than `SECRET_CHARS` letters are not a secret.
        """
        key = self._key or ""
        if len(key) < SECRET_CHARS:
            return text
        pieces, at = [], 0
        while (found := text.find(key[:SECRET_CHARS], at)) >= 0:
            pieces += [text[at:found], "[key]"]
            at = found + next(n for n in range(len(key), 0, -1) if text.startswith(key[:n], found))
        return "".join([*pieces, text[at:]])

    def now(self, server: Server, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Get or post something before the first question, and return the reply's JSON.

        Args:
            server: The server to ask; it is asked a second time if that may help.
            url: The whole address.
            body: The request.

        Raises:
            Failure: the server can't be reached, or refuses.
        """
        seconds = min(LOOK_UP_S, self._timeout_s)

        async def asked() -> Any:
            connections = self._connect(server)
            try:
                for pause in (FIRST_BACKOFF_S, None):
                    try:
                        return await connections.ask(url, body, lambda data: data, seconds)
                    except BadReply as error:
                        raise Failure(self._line(str(error)), again=False) from None
                    except Failure as failure:
                        if pause is None or not failure.again:
                            raise
                        await asyncio.sleep(pause)
            finally:
                await connections.close()

        with ThreadPoolExecutor(1) as pool:  # the caller may run in an event loop
            return pool.submit(lambda: asyncio.run(asked())).result()

    async def ask(
        self, path: str, body: Mapping[str, Any], read: Callable[[float, Any], _T], episode: Hashable = None
    ) -> _T:
        """Post a request until a readable reply comes.

        Args:
            path: Below the server's address.
            body: The request.
            read: Makes the result from the seconds it waited here and the reply's JSON; raises `BadReply` for a reply
                that can't be used.
            episode: The key of its episode; requests of one episode stay with one server.

        Raises:
            PolicyUnavailable: the server refused, or every attempt failed; the message names the server and its last
                error.
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
                        continue  # the server asked for a pause while this request waited, and another is free
                    await self._wait(server)
                    waited = time.monotonic() - began
                    tries += 1
                    url = server.url.rstrip("/") + path
                    result = await lines.connections[server].ask(url, body, partial(read, waited), self._timeout_s)
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
        """Post a small request to the least loaded server, or to the next if that can't answer it now.

        No server is asked twice.

        Args:
            path: Below the server's address without the version.
            body: The request.

        Raises:
            Failure: a server refused, or none of them could answer.
            BadReply: its reply is not JSON.
        """
        lines = await self._here()
        failures: list[Failure] = []
        for server in sorted(self.servers, key=lambda server: (server.held, server.in_flight)):
            try:
                return await lines.connections[server].ask(
                    server.root + path, body, lambda data: data, min(self._timeout_s, 60.0)
                )
            except BadReply as error:
                raise BadReply(self._line(str(error))) from None
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

    async def _give_up_or_pause(
        self, server: Server, failure: Failure, failed: set[Server], tries: int, began: float
    ) -> None:
        # After a request was given up because servers are dead, the next requests fail at once.
        rounds = 1 if self._all_down else 1 + self._retries
        if not failure.unreachable:
            self._all_down = False
        if not failure.again or tries >= rounds * len(self.servers):
            self._all_down = self._all_down or failure.unreachable
            after = f" ({tries} tries in {time.monotonic() - began:.0f} s)" if tries > 1 else ""
            raise PolicyUnavailable(f"{server.name}: {failure.words}{after}") from None
        pause = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        _log.info("%s: %s; trying again", server.name, failure.words)
        if failure.unreachable or failure.wait_s is not None:
            hold = pause if failure.wait_s is None else min(LONGEST_RETRY_AFTER_S, failure.wait_s)
            server.hold_until = max(server.hold_until, time.monotonic() + hold)
        if len(failed) == len(self.servers):
            if not failure.unreachable:
                await asyncio.sleep(pause)  # never less, even if the server asks for 0 s
            failed.clear()

    def _choose(self, episode: Hashable, failed: set[Server]) -> Server:
        ready = [server for server in self.servers if not server.held]
        others = [server for server in ready if server not in failed] or ready
        home = self._homes.get(episode) if episode is not None else None
        if home is not None and home in others:
            return home
        chosen = (
            min(others, key=lambda s: (s.in_flight, s.episodes))
            if others
            else min(self.servers, key=lambda s: s.hold_until)
        )
        if episode is not None and chosen is not home:
            chosen.episodes += 1
            self._homes[episode] = chosen
            if len(self._homes) > EPISODES_REMEMBERED:
                self._homes.popitem(last=False)
        return chosen

    async def _wait(self, server: Server) -> None:
        """Wait until the server may be asked again, with jitter, so that requests do not all come at once."""
        while not self._all_down and (left := server.hold_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, min(1.0, 0.25 * left)))

    def _connect(self, server: Server) -> Connections:
        from apr_plugin.policies.openai.http import Connections

        return Connections(server.url, self._key, self._timeout_s, self._reply_bytes, self.scrub)

    def _line(self, text: str) -> str:
        from apr_plugin.policies.openai.http import one_line

        return one_line(self.scrub(text))

    async def _here(self) -> _Lines:
        """The clients and slots of the running loop; a harness may run every task in a separate loop.

        They are closed when the loop ends: `asyncio.run` finishes every generator that was begun in it.
        """
        loop = asyncio.get_running_loop()
        if (lines := self._lines.get(loop)) is None:
            lines = self._lines[loop] = _Lines()
            for server in self.servers:
                lines.connections[server] = self._connect(server)
                lines.slots[server] = asyncio.Semaphore(self._max_connections)
            lines.closer = self._closing(loop, lines)
            await anext(lines.closer)
        return lines

    async def _closing(self, loop: asyncio.AbstractEventLoop, lines: _Lines) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._lines.pop(loop, None)
            for connections in lines.connections.values():
                await connections.close()
