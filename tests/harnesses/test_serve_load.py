"""The endpoint under load: a full queue, clients that leave, the end of the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from serve_testing import Served, chat, choices, letters, threads, user, video_part, wait_for

from apr_plugin.harnesses.serve.limits import ServeLimits
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling
from apr_plugin.loop.trajectory import StopReason, Trajectory

openai = pytest.importorskip("openai")


class Gate(PolicyDefaults):
    """Looks once, and answers when it is let through."""

    name = "gate"

    def __init__(self) -> None:
        self.open = threading.Event()
        self.at_once = 0
        self.busiest = 0

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if not any(message.role == "assistant" for message in prompt.messages):
            return Generation(look(0, 1))
        self.at_once += 1
        self.busiest = max(self.busiest, self.at_once)
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.01)
        finally:
            self.at_once -= 1
        return Generation(answer("B"))

    def describe(self) -> dict[str, Any]:
        return {}


def _send(served: Served, body: dict[str, Any]) -> socket.socket:
    """Send a request over a socket of its own, and read nothing."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall(head.encode() + data)
    return connection


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
def test_64_requests_at_once_of_which_half_leave(served_needles: Path, tmp_path: Path) -> None:
    docs = choices(served_needles)
    with Served(tmp_path, served_needles, limits=ServeLimits(concurrent=4, queue=60)) as server:
        first = server.post(chat(letters(docs[0]), video_part(docs[0]["video"])))
        assert first[0] == 200
        before, files = threads(), _open_files()
        leaving = []
        for number in range(32):
            doc = docs[number % len(docs)]
            stream = {"stream": True} if number % 2 else {}
            leaving.append(_send(server, chat(letters(doc), video_part(doc["video"]), **stream)))

        async def ask() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
                requests = []
                for number in range(32):
                    doc = docs[number % len(docs)]
                    messages = user(letters(doc), video_part(doc["video"]))
                    requests.append(client.chat.completions.create(model="apr", messages=messages))
                return await asyncio.gather(*requests)

        def leave() -> None:
            wait_for(lambda: server.service.slots.admitted > 40)
            for connection in leaving:
                connection.close()
                time.sleep(0.01)

        with_leavers = threading.Thread(target=leave)
        with_leavers.start()
        replies = asyncio.run(ask())
        with_leavers.join()
        assert [reply.choices[0].message.content for reply in replies] == [
            docs[number % len(docs)]["answer"] for number in range(32)
        ]
        wait_for(server.idle)
        assert server.service.slots.running == 0
        stored = server.stored()
        ids = {trajectory.question.doc_id for trajectory in stored}
        assert {reply.id for reply in replies} <= ids and len(ids) == len(stored), "each question is stored once"
        wait_for(lambda: _open_files() <= files + 1)
        assert threads() == before
        assert server.post(chat(letters(docs[0]), video_part(docs[0]["video"])))[0] == 200


def test_a_full_queue_is_told_and_a_client_that_leaves_frees_its_slot(
    tmp_path: Path, shared_videos: dict[str, Path]
) -> None:
    video, gate = shared_videos["silent"], Gate()
    request = chat("Which?\nA. red\nB. blue", video_part(video))
    with Served(tmp_path, video.parent, policy=gate, limits=ServeLimits(concurrent=2, queue=1)) as server:
        slots = server.service.slots
        held: list[socket.socket] = []
        for _ in range(3):  # one after the other, so that the last one is the one that waits
            held.append(_send(server, request))
            wait_for(lambda: slots.admitted == len(held) and gate.at_once == min(len(held), 2))
        wait_for(lambda: slots.waiting == 1)
        status, headers, reply = server.post(request)
        assert status == 429 and int(headers["retry-after"]) >= 1 and reply["error"]["type"] == "rate_limit_error"
        held[2].close()  # the one that waits
        wait_for(lambda: slots.admitted == 2)
        held[0].close()  # one that runs
        wait_for(lambda: slots.admitted == 1 and gate.at_once == 1)
        (left,) = server.stored()
        assert left.stop_reason is StopReason.CANCELLED and len(left.turns) == 1, "what it did is stored"
        gate.open.set()
        assert server.post(request)[2]["choices"][0]["message"]["content"] == "B"
        held[1].close()
        wait_for(server.idle)
        assert gate.busiest == 2


def test_a_client_that_leaves_during_a_stream_or_a_body(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    video, gate = shared_videos["silent"], Gate()
    with Served(tmp_path, video.parent, policy=gate) as server:
        stream = server.client().chat.completions.create(
            model="apr", messages=user("Which?", video_part(video)), stream=True
        )
        for chunk in stream:
            if getattr(chunk, "apr", {}).get("event") == "turn":
                break
        stream.close()
        wait_for(server.idle)
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        wait_for(lambda: server.service.slots.admitted == 1)
        half.close()
        wait_for(server.idle)
        assert [t.stop_reason for t in server.stored()] == [StopReason.CANCELLED]


def test_a_server_that_stops_ends_what_runs_and_refuses_what_waits(
    tmp_path: Path, shared_videos: dict[str, Path]
) -> None:
    video, gate = shared_videos["silent"], Gate()
    request = chat("Which?\nA. red\nB. blue", video_part(video))
    ends: list[Any] = []
    with Served(tmp_path, video.parent, policy=gate, limits=ServeLimits(concurrent=1)) as server:
        askers = [threading.Thread(target=lambda: ends.append(server.post(request))) for _ in range(2)]
        askers[0].start()
        wait_for(lambda: gate.at_once == 1)
        askers[1].start()
        wait_for(lambda: server.service.slots.waiting == 1)
        server.loop.call_soon_threadsafe(server._task.cancel)
        askers[1].join(10)
        assert [end[0] for end in ends] == [503] and ends[0][2]["error"]["code"] == "stopping"
        gate.open.set()
        askers[0].join(10)
        assert ends[1][0] == 200 and ends[1][2]["choices"][0]["message"]["content"] == "B"
    assert [trajectory.stop_reason for trajectory in server.stored()] == [StopReason.ANSWERED]


SCRIPT = """\
import asyncio, sys
from pathlib import Path
from apr_plugin.loop.policy import PolicyDefaults, Generation
import apr_plugin.runs.settings as settings
from apr_plugin.cli import main

class Slow(PolicyDefaults):
    name = "slow"
    async def generate(self, prompt, sampling):
        if not any(message.role == "assistant" for message in prompt.messages):
            return Generation({look!r})
        Path({mark!r}).touch()
        await asyncio.sleep({seconds})
        return Generation({answer!r})
    def describe(self):
        return {{}}

make = settings.make_policy
settings.make_policy = lambda name, **given: Slow() if name == "guess" else make(name, **given)
sys.argv = ["apr", *{words!r}]
main()
"""


@contextmanager
def _command(folder: Path, video: Path, seconds: float, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`apr serve` in a process of its own, with a policy that takes so many seconds for its second turn."""
    own = ["serve", "-m", "policy=guess", "--root", str(video.parent), "--port", "0", "--out", str(folder / "out")]
    script = SCRIPT.format(
        look=look(0, 1), answer=answer("B"), seconds=seconds, mark=str(folder / "asked"), words=[*own, *words]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},  # one that is killed leaves its folder there
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split("/v1")[0]
    finally:
        process.kill()
        process.communicate()


def _ask(url: str, video: Path, ends: list[Any]) -> threading.Thread:
    def ask() -> None:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        try:
            messages = user("Which?\nA. red\nB. blue", video_part(video))
            ends.append(client.chat.completions.create(model="apr", messages=messages).choices[0].message.content)
        except openai.OpenAIError as error:
            ends.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def _stored(folder: Path) -> list[Trajectory]:
    return [trajectory for path in folder.rglob("*.jsonl") for trajectory in Trajectory.read(path)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_running_episodes(
    number: signal.Signals, tmp_path: Path, shared_videos: dict[str, Path]
) -> None:
    ends: list[Any] = []
    with _command(tmp_path, shared_videos["silent"], 1.0) as (process, url):
        asking = _ask(url, shared_videos["silent"], ends)
        wait_for((tmp_path / "asked").exists)
        process.send_signal(number)
        asking.join(60)
        _, told = process.communicate(timeout=60)
    assert ends == ["B"] and process.returncode == (0 if number is signal.SIGTERM else 130), told
    assert [trajectory.stop_reason for trajectory in _stored(tmp_path)] == [StopReason.ANSWERED]
    assert "Traceback" not in told


def test_what_does_not_end_in_time_is_stopped_and_saved(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    ends: list[Any] = []
    with _command(tmp_path, shared_videos["silent"], 60.0, "--drain-s", "1") as (process, url):
        asking = _ask(url, shared_videos["silent"], ends)
        wait_for((tmp_path / "asked").exists)
        process.send_signal(signal.SIGTERM)
        asking.join(60)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in told, told
    assert isinstance(ends[0], openai.OpenAIError)
    assert [trajectory.stop_reason for trajectory in _stored(tmp_path)] == [StopReason.CANCELLED]


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    ends: list[Any] = []
    with _command(tmp_path, shared_videos["silent"], 60.0) as (process, url):
        asking = _ask(url, shared_videos["silent"], ends)
        wait_for((tmp_path / "asked").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert time.monotonic() - began < 5
        asking.join(10)
    assert process.returncode == 130 and isinstance(ends[0], openai.OpenAIError)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "requests need a key"),
        (["--api-key-env", "APR_NO_SUCH_KEY"], "APR_NO_SUCH_KEY holds no key"),
        (["-m", "policy=needle,media_root=/tmp"], "is the option --root"),
        (["-m", "policy=nedle"], "did you mean 'needle'"),
        (["--root", "/no/such/folder"], "no such folder"),
        (["--unanswered", "maybe"], "must be status or null"),
        (["--host", "no.such.host.invalid", "--api-key-env", "PATH_KEY"], "cannot listen on"),
    ],
)
def test_wrong_usage_is_one_message(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from apr_plugin.cli import main

    monkeypatch.setenv("PATH_KEY", "k")
    monkeypatch.setattr(sys, "argv", ["apr", "serve", "--port", "0", "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code in (1, 2) and told in shown.err.replace("\n", " ") and "Traceback" not in shown.err


def test_a_key_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apr_plugin.cli.serve import _key
    from apr_plugin.errors import AprError

    monkeypatch.setenv("APR_TEST_KEY", "one")
    (tmp_path / "key").write_text("two\n")
    (tmp_path / "two").write_text("a\nb\n")
    assert _key("APR_TEST_KEY", None) == "one" and _key(None, tmp_path / "key") == "two" and _key(None, None) is None
    for variable, file, told in (
        ("APR_TEST_KEY", tmp_path / "key", "not both"),
        (None, tmp_path / "two", "holds no key"),
        (None, tmp_path / "none", "cannot be read"),
        (None, tmp_path, "it is a folder"),
    ):
        with pytest.raises(AprError, match=told):
            _key(variable, file)
