"""A small HTTP server with the endpoints that a trainer uses of vLLM's, whose faults a test chooses."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "tiny"


@dataclass
class DevServer:
    """Its state, and what it was asked."""

    version: str = "default"
    context_tokens: int = 65_536
    logprobs_mode: str = "processed_logprobs"
    faults: dict[str, Any] = field(default_factory=dict)
    """By path: an HTTP status, or `slow`, `text`, `drop`."""
    held: int = 0
    """How often the prefix cache is still held."""
    forgets: bool = False
    """Whether it is started again after each loading."""
    reply: dict[str, Any] = field(default_factory=dict)
    """What it says to a chat completion."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """Paths and bodies, in order."""
    address: str = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, path: str, body: Any) -> dict[str, Any] | None:
        match path:
            case "/v1/models":
                return {"data": [{"id": NAME, "owned_by": "vllm", "max_model_len": self.context_tokens}]}
            case "/server_info":
                return {"vllm_config": {"model_config": {"logprobs_mode": self.logprobs_mode}}}
            case "/weight_info":
                return {"weight_version": self.version}
            case "/update_weight_version":
                self.version = body["new_version"]
                if self.forgets and not self.version.startswith("loading"):
                    self.version = "default"
                return {"success": True}
            case "/reset_prefix_cache":
                self.held -= 1
                return {"success": self.held < 0}
            case "/collective_rpc":
                return {"results": [None]}
            case "/v1/chat/completions":
                return self.reply
        return None  # vLLM says nothing after these


@contextlib.contextmanager
def dev_server(**state: Any) -> Iterator[DevServer]:
    """Run one on the loopback."""
    server = DevServer(**state)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(json.loads(raw) if raw else None)

        def _answer(self, body: Any) -> None:
            path = self.path.partition("?")[0]
            server.asked.append((path, body))
            fault = server.faults.get(path)
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "slow":
                time.sleep(1.5)
            told = {"error": {"message": "Worker failed"}} if isinstance(fault, int) else server.answer(path, body)
            raw = b"<html>" if fault == "text" else b"" if told is None else json.dumps(told).encode()
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(fault if isinstance(fault, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
