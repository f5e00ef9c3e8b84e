"""A running page for the tests: a policy that answers as the question's text says, a needle set, one server."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr_testing import answer, look, turn

from apr_plugin.cli.page import reporting
from apr_plugin.harnesses.app.desk import Desk
from apr_plugin.harnesses.app.examples import found
from apr_plugin.harnesses.app.records import Records
from apr_plugin.harnesses.app.server import AppServer, Options, is_loopback
from apr_plugin.harnesses.app.uploads import Limits
from apr_plugin.harnesses.app.visitor import House
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling, Usage
from apr_plugin.runs.settings import read_settings
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle
from apr_plugin.tasks.needle.policy import NeedlePolicy

HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>[a link](javascript:window.hacked=1) '
    "${window.hacked=1} {{constructor}} `x` </div></template><svg onload=window.hacked=1>"
)
"""What a model may write."""


class Several(PolicyDefaults):
    """One policy for all tests of a server.

    It writes `HOSTILE` everywhere for a question that begins with "hostile", fails for "broken", and is the needle
    policy for the others. A question in `held` waits before its second turn until it is taken out.
    """

    name = "several"

    def __init__(self) -> None:
        self.needle = NeedlePolicy()
        self.held: set[str] = set()
        self.cancelled: list[str] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        text, number = prompt.asked.question.text, prompt.asked.turn
        if text.startswith("broken"):
            raise PolicyUnavailable("the model's server is gone")
        if text.startswith("hostile"):
            say = [look(0, 5, 2, note=HOSTILE), HOSTILE, turn({"type": HOSTILE}), answer(HOSTILE)][min(number, 4) - 1]
            said = say.replace('"seen"', json.dumps(HOSTILE)).replace('"so"', json.dumps(HOSTILE))
            return Generation(said, Usage(100, 0, 7), entropies=(0.5, 1.5))
        try:
            while number > 1 and text in self.held:
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        return await self.needle.generate(prompt, sampling)

    def describe(self) -> dict[str, Any]:
        return {"policy": self.name}


class Running:
    """A server and what the tests know about it."""

    def __init__(self, server: AppServer, policy: Several, needle: Path, out: Path) -> None:
        self.server = server
        self.policy = policy
        self.needle = needle
        self.out = out
        self.url = server.url
        self.visitors: Any = server.visitors
        self.folder = str(self.visitors.folder)
        """Where visitors' uploads are, which no visitor may learn."""
        self.docs = load_docs(needle)

    def doc(self, kind: str) -> dict[str, Any]:
        """A question of this kind."""
        return dict(next(doc for doc in self.docs if doc["kind"] == kind))


def house(policy: Several, folder: Path, places: int = 1, waiting: int = 1) -> House:
    """What visitors share, without a server. To be made inside an event loop."""
    settings = read_settings({"max_turns": 6, "frames_per_look": 60}, policy)
    return House(
        settings=settings,
        desk=Desk(places, waiting),
        decoding=Decoding(2),
        records=Records(folder / "kept", policy),
        reporting=reporting(),
        limits=Limits(1, 1.1),
        timeout_s=60.0,
    )


@contextmanager
def outside() -> Iterator[list[str]]:
    """Every address that is not of this machine and that this process connects to."""
    found: list[str] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(str(address[0])):
            found.append(str(address))
        return connect(self, address)

    socket.socket.connect = recorded  # type: ignore[method-assign]
    try:
        yield found
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Running]:
    """A page with two places and one that may wait."""
    policy = Several()
    needle = Path(
        make_needle(folder / "needle", NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1), 1)
    )
    out = folder / "kept"
    settings = read_settings({"max_turns": 6, "frames_per_look": 60}, policy)
    chosen = {"port": 0, "places": 2, "waiting": 1, "out": out, "limits": Limits(1, 1.1), "timeout_s": 60.0} | options
    with outside() as connected:
        with AppServer(settings, reporting(), found(needle), Options(**chosen)) as server:
            yield Running(server.start(), policy, needle, out)
        assert connected == [], "the page's server is to reach nothing outside"


def asked(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """The status, text and headers of an answer."""
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answered:
            return answered.status, answered.read().decode("utf-8", "replace"), dict(answered.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace"), dict(error.headers)
