"""`serve`: a run's report page on this machine, which follows the run while it goes on.

A small server on the loopback address gives one page and its version. The page asks for the version every two seconds
and loads itself again when it has changed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Self

from apr_plugin.compare.joined import Comparison, arm_of_run, join
from apr_plugin.errors import AprError, told
from apr_plugin.report.page import write_page
from apr_plugin.runs.opened import open_run
from apr_plugin.terminal import one_line

Maker = Callable[[], tuple[Comparison, dict[str, Any]]]
"""Reads the runs as they are now and makes the comparison and its summary."""

FOLLOWED = ("*.jsonl", "*.ndjson", "*.json")
"""The files that a run or a harness writes."""

SHORTEST_S = 2.0
"""Between two times that the page is made; longer where making it takes long."""


class Viewer:
    """A page that is served; made by `serve`. It is a context manager that stops the server when it ends."""

    def __init__(self, maker: Maker, followed: Iterable[Path], host: str, port: int) -> None:
        self._maker = maker
        self._followed = [Path(path) for path in followed]
        self._lock = threading.Lock()
        self._folder = TemporaryDirectory(prefix="apr-view-")
        self._page = Path(self._folder.name) / "page.html"
        self._made: str | None = None
        self._next = 0.0
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self))
        except OSError as error:
            self._folder.cleanup()
            raise AprError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        """Where it listens."""
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/"
        """The page's address."""
        self.hosts = {f"{name}:{self.port}" for name in (shown, "localhost", "127.0.0.1", "[::1]")}
        """What a request's Host header may be."""
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()
        return self

    def run(self) -> None:
        """Serve until it is interrupted (Ctrl-C)."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()
            self._folder.cleanup()

    def close(self) -> None:
        """Stop a server that `start` began."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def version(self) -> str:
        """The version of the page that a request for it would get now."""
        with self._lock:
            return self._current()

    def page(self) -> bytes:
        """The page, made again where the files have changed.

        Raises:
            AprError: the runs can't be read and no page was made yet.
        """
        with self._lock:
            version = self._current()
            if version != self._made:
                began = time.monotonic()
                comparison, summary = self._maker()
                write_page(comparison, summary, self._page, live=version)
                self._made, took = version, time.monotonic() - began
                self._next = time.monotonic() + max(SHORTEST_S, 4 * took)
            return self._page.read_bytes()

    def _current(self) -> str:
        if self._made is not None and time.monotonic() < self._next:
            return self._made
        return fingerprint(self._followed)


def serve(
    run: Path | Maker, port: int = 0, host: str = "127.0.0.1", *, followed: Iterable[Path] = (), **options: Any
) -> Viewer:
    """A server for the page of a run, or of a comparison.

    Args:
        run: A run's folder, as `open_run` takes it; or what makes the comparison and its summary.
        port: Where to listen; 0 takes a free one.
        host: A loopback address; the page is for this machine only.
        followed: The folders whose files say when the page is old; for a run, its folder.
        options: For `open_run`, with a run's folder: `config`, `latest`, `results`.

    Returns:
        A server that is not started yet: `start()` serves in a thread, `run()` until Ctrl-C.

    Raises:
        AprError: the address is not a loopback one, the port is taken, or there is no run.
    """
    if host != "localhost" and not _is_loopback(host):
        raise AprError(f"host={host}: the page is served to this machine only; use 127.0.0.1")
    if isinstance(run, str | Path):
        folder = Path(run).expanduser()
        open_run(folder, **options)  # says what is wrong before anything is served

        def made() -> tuple[Comparison, dict[str, Any]]:
            found = open_run(folder, **options)
            comparison = join([arm_of_run(folder.resolve().name or "run", found)])
            return comparison, plain_summary(comparison)

        return Viewer(made, [folder, *followed], host, port)
    return Viewer(run, followed, host, port)


def plain_summary(comparison: Comparison) -> dict[str, Any]:
    """Counts and means of each arm as they are so far, without intervals and without a comparison."""

    def mean(values: Iterable[Any]) -> dict[str, Any] | None:
        known = [float(value) for value in values if value is not None]
        return {"value": fmean(known), "low": None, "high": None, "n": len(known)} if known else None

    def about(arm_name: str, rows: list[Mapping[str, Any]], status: list[str], scores: list[float]) -> dict[str, Any]:
        names = ("turns", "frames", "audio_s", "visual_tokens", "prompt_tokens", "completion_tokens", "seconds")
        return {
            "name": arm_name,
            "n": len(status),
            "scored": status.count("scored"),
            "failed": status.count("failed"),
            "missing": status.count("missing"),
            "score": mean(scores),
            "cost": {name: mean(row.get(name) for row in rows) for name in names},
            "stops": dict(Counter(str(row["stop_reason"]) for row in rows)),
        }

    arms = []
    for arm in comparison.arms:
        outcomes = [arm.outcome(key) for key in comparison.keys]
        scores = [outcome.score for outcome in outcomes if outcome.status == "scored"]
        rows = [outcome.row for outcome in outcomes if outcome.row]
        found = about(arm.name, rows, [outcome.status for outcome in outcomes], scores)
        arms.append({**found, "kind": arm.kind, "about": {}, "notes": arm.notes})
    return {
        "title": ", ".join(arm.name for arm in comparison.arms),
        "tasks": sorted({key[0] for key in comparison.keys}),
        "n": len(comparison.keys),
        "common": len(comparison.common),
        "arms": arms,
        "notes": comparison.notes,
    }


def fingerprint(paths: Iterable[Path]) -> str:
    """16 hex digits that change when a file of a run is written, added or removed."""
    found = []
    for path in paths:
        files = (file for form in FOLLOWED for file in path.rglob(form)) if path.is_dir() else [path]
        for file in files:
            try:
                about = file.stat()
            except OSError:
                continue
            found.append((str(file), about.st_size, about.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _handler(viewer: Viewer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "apr", ""
        timeout = 30

        def do_GET(self) -> None:
            if self.headers.get("Host", "") not in viewer.hosts:  # a name of another site that points here
                self._say(421, "this server answers for the loopback address only")
            elif self.path == "/version":
                self._say(200, viewer.version())
            elif self.path == "/":
                try:
                    self._send(200, viewer.page(), "text/html; charset=utf-8")
                except Exception as error:  # noqa: BLE001 - said to the reader; the next request tries again
                    words = str(error) if isinstance(error, AprError) else told(error)
                    self._say(503, f"the page can't be made: {one_line(words)}")
            else:
                self._say(404, "there is only one page here: /")

        def _say(self, status: int, words: str) -> None:
            self._send(status, words.encode("utf-8", "replace"), "text/plain; charset=utf-8")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
                ("Referrer-Policy", "no-referrer"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    return Handler
