"""Runs the endpoint: uvicorn on one socket, limits for slow clients, and an end that loses no running episode.

SIGTERM, or the first Ctrl-C, closes the socket, refuses those who wait, and lets the running episodes end (within
`drain_s`, after which they are cancelled and saved). A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from apr_plugin.errors import AprError
from apr_plugin.harnesses.serve.app import make_app
from apr_plugin.harnesses.serve.guard import Guard, is_loopback
from apr_plugin.harnesses.serve.limits import HEADERS_S
from apr_plugin.harnesses.serve.service import Service

_CONNECTIONS = 256
"""Connections beyond those that the places need."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        AprError: the address is unknown, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise AprError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port") from error
    # A peer that is gone without a word is noticed; accepted connections take these over.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


async def serve(
    service: Service,
    sock: socket.socket,
    *,
    host: str,
    key: str | None = None,
    started: Callable[[], None] | None = None,
) -> None:
    """Answer requests until the process is told to stop, or the task is cancelled.

    Args:
        service: What answers; it has been entered.
        sock: Where to listen.
        host: The address that the user named.
        key: The API key, if requests need one.
        started: Called when requests are accepted.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        Guard(make_app(service), key=key, loopback=is_loopback(host)),
        http=_Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(service.limits.drain_s)),
        limit_concurrency=service.limits.concurrent + service.limits.queue + _CONNECTIONS,
    )
    server = _Server(config)

    def stop() -> None:
        service.slots.close()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, RuntimeError):  # not in the main thread
        loop.add_signal_handler(signal.SIGTERM, stop)
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if started is not None and server.started:
            started()
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await running
        raise
    finally:
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)  # those that had to be cancelled
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.remove_signal_handler(signal.SIGTERM)


class _Server(uvicorn.Server):  # type: ignore[misc]
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn sends itself the signal again when it has ended."""
        yield


class _Impatient(H11Protocol):  # type: ignore[misc]
    """Closes a connection whose headers do not arrive in time; uvicorn waits for ever.

    A request finds in its state what ends its connection at once (`abort`).
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state: dict[str, Any] = {**self.app_state, "abort": transport.abort}
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def timeout_keep_alive_handler(self) -> None:
        """Drop a connection that is not used again, with what its client has not read by now."""
        self.transport.abort()

    def _watch(self) -> None:
        """Begin to count when headers are awaited, and stop when a request has begun."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self._close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
