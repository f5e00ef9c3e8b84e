"""`AppServer`: the page on a socket of this machine, with the routes of uploads and downloads.

The server runs in a thread of its own, with an event loop of its own, in which every episode runs too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from apr_plugin.errors import AprError, require
from apr_plugin.harnesses.app.desk import Desk
from apr_plugin.harnesses.app.examples import Example
from apr_plugin.harnesses.app.guard import Guard
from apr_plugin.harnesses.app.records import Records, Reporting
from apr_plugin.harnesses.app.uploads import Limits, TooLarge, check_size, discard, receive
from apr_plugin.harnesses.app.visitor import BUSY, House, Visitors
from apr_plugin.loop.decoding import Decoding
from apr_plugin.runs.settings import Settings
from apr_plugin.terminal import one_line

STARTING_S = 60.0
"""Longest time until the server answers."""

ENDING_S = 2
"""Seconds that open connections have to end."""


@dataclass(frozen=True)
class Options:
    """How the page is served."""

    host: str = "127.0.0.1"
    """A loopback address, unless the page is for others too."""
    port: int = 7860
    """0 takes a free one."""
    out: Path | None = None
    """Where trajectories are kept."""
    places: int | None = None
    """Investigations at once; default: the model_arg `concurrency`."""
    waiting: int = 16
    """Investigations that may wait."""
    limits: Limits = field(default_factory=Limits)
    """What an upload may be."""
    timeout_s: float | None = 600.0
    """Seconds that an investigation may take."""


class AppServer:
    """The page of one policy. It is a context manager that stops the server, and not the policy, when it ends.

    Args:
        settings: The policy and its limits.
        reporting: How pictures are made small, and a report page is written.
        examples: The videos that are offered.
        options: How it is served.

    Raises:
        AprError: Gradio is not installed, or the port is taken.
    """

    def __init__(
        self, settings: Settings, reporting: Reporting, examples: Sequence[Example], options: Options | None = None
    ) -> None:
        options = options or Options()
        for module in ("gradio", "fastapi", "uvicorn"):
            require(module, "demo")
        try:
            self._socket = socket.create_server(
                (options.host, options.port), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
            )
        except OSError as error:
            raise AprError(
                f"cannot listen on {options.host}:{options.port}: {error.strerror or error}; choose another with --port"
            ) from error
        self.port = int(self._socket.getsockname()[1])
        """Where it listens."""
        shown = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"http://{shown}:{self.port}/"
        """The page's address."""
        self.loopback = is_loopback(options.host)
        """Whether only this machine can reach it."""
        names = {shown, "localhost", "127.0.0.1", "[::1]"}
        self._hosts = {f"{name}:{self.port}" for name in names} if self.loopback else None
        self._settings = settings
        self._reporting = reporting
        self._examples = examples
        self._options = options
        self._folder = TemporaryDirectory(prefix="apr-app-")
        self._records = Records(options.out, settings.policy)
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self.visitors: Visitors | None = None
        """Who the open tabs are, once it is started."""

    def start(self) -> Self:
        """Serve in a thread, and return when the page can be opened.

        Raises:
            AprError: the server did not start.
        """
        import uvicorn

        config = uvicorn.Config(
            Guard(self._app(), self._hosts), log_level="error", timeout_graceful_shutdown=ENDING_S, lifespan="on"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="apr-app", daemon=True
        )
        self._thread.start()
        until = time.monotonic() + STARTING_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                self.close()
                raise AprError("the page's server did not start")
            time.sleep(0.02)
        return self

    def wait(self) -> None:
        """Wait until the server ends, or Ctrl-C is pressed."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.2)

    def close(self) -> None:
        """Stop every investigation and the server, and remove what visitors brought."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(ENDING_S + 10)
        self._socket.close()
        self._records.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _app(self) -> Any:
        """The FastAPI application: our routes, and Gradio's page below them."""
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["GRADIO_TEMP_DIR"] = f"{self._folder.name}/gradio"
        os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # no statistics of events, which nobody reads
        import gradio
        from fastapi import FastAPI

        from apr_plugin.harnesses.app.page import build
        from apr_plugin.harnesses.app.render import style

        options, settings = self._options, self._settings
        decoding = Decoding(settings.decode_threads, settings.decoded_bytes)
        house = House(
            settings=settings,
            desk=Desk(options.places or settings.concurrency, options.waiting),
            decoding=decoding,
            records=self._records,
            reporting=self._reporting,
            limits=options.limits,
            timeout_s=options.timeout_s,
        )
        visitors = self.visitors = Visitors(house, Path(self._folder.name))

        @contextlib.asynccontextmanager
        async def life(_: Any) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await visitors.close()
                decoding.close()

        app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
        _routes(app, visitors)
        fonts = ["system-ui", "sans-serif"]
        mounted: Any = gradio.mount_gradio_app(
            app,
            build(visitors, self._examples),
            "/",
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,
            theme=gradio.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
            css=style(),
        )
        return mounted


def _routes(app: Any, visitors: Visitors) -> None:
    """Uploads, the chosen video, and the downloads; each address has a name that only its visitor knows."""
    from fastapi import Request
    from fastapi.responses import FileResponse, PlainTextResponse, Response
    from starlette.requests import ClientDisconnect

    def refused(error: AprError) -> Any:
        return PlainTextResponse(one_line(str(error)), 413 if isinstance(error, TooLarge) else 400)

    gone = "this is gone: its tab was closed, or another question was asked; ask again"

    async def upload(token: str, request: Any, name: str = "video") -> Any:
        visitor = visitors.with_token(token)
        if visitor is None:
            return PlainTextResponse("this tab is not known any more; load the page again", 404)
        limits = visitor.house.limits
        if visitor.uploading or visitor.busy:
            return PlainTextResponse(BUSY if visitor.busy else "an upload of this tab is still on its way", 409)
        visitor.uploading = True
        try:
            check_size(request.headers.get("content-length"), limits)
            file = await receive(request.stream(), visitor.folder, name, limits)
            if visitors.with_token(token) is not visitor:  # it left in the meantime
                discard(file)
                return PlainTextResponse("the tab was closed", 404)
            film = await visitor.uploaded(file)
        except AprError as error:
            return refused(error)
        except ClientDisconnect:
            return PlainTextResponse("the upload was broken off", 400)
        finally:
            visitor.uploading = False
        return PlainTextResponse(film.name)

    async def video(token: str) -> Any:
        visitor = visitors.with_token(token)
        if visitor is None or visitor.film is None or not visitor.film.path.is_file():
            return PlainTextResponse("no video is chosen", 404)
        return FileResponse(visitor.film.path, headers={"Cache-Control": "no-store"})

    async def report(name: str, save: str = "") -> Any:
        visitor = visitors.with_finished(name)
        if visitor is None:
            return PlainTextResponse(gone, 404)
        try:
            page = await visitor.page(name)
        except KeyError:
            return PlainTextResponse(gone, 404)
        except AprError as error:
            return PlainTextResponse(f"the page can't be made: {one_line(str(error))}", 503)
        kind = "attachment" if save else "inline"
        headers = {"Cache-Control": "no-store", "Content-Disposition": f'{kind}; filename="investigation.html"'}
        return FileResponse(page, media_type="text/html; charset=utf-8", headers=headers)

    async def trajectory(name: str) -> Any:
        visitor = visitors.with_finished(name)
        if visitor is None:
            return PlainTextResponse(gone, 404)
        line = await asyncio.to_thread(visitor.finished[name].line)
        headers = {"Cache-Control": "no-store", "Content-Disposition": 'attachment; filename="investigation.jsonl"'}
        return Response(line.encode("utf-8", "replace"), media_type="application/x-ndjson", headers=headers)

    upload.__annotations__["request"] = Request
    app.put("/apr/upload/{token}")(upload)
    app.get("/apr/video/{token}")(video)
    app.get("/apr/report/{name}")(report)
    app.get("/apr/trajectory/{name}")(trajectory)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
