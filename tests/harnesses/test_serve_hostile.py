"""Hostile requests: paths out of the allowed folders, bombs, slow clients, and what schemathesis makes of them."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from PIL import Image
from serve_testing import Served, chat, data_url, video_part, wait_for

import apr_plugin.harnesses.serve.answering as answering_module
import apr_plugin.harnesses.serve.body as body_module
import apr_plugin.harnesses.serve.serving as serving_module
from apr_plugin.harnesses.serve.limits import ServeLimits
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling

MOST = 2**20


class Plain(PolicyDefaults):
    """Looks once and answers."""

    name = "plain"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        looked = prompt.final or any(message.role == "assistant" for message in prompt.messages)
        return Generation(answer("B") if looked else look(0, 1))

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def ground(shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root`, which may be read, and `secret`, which may not."""
    folder = tmp_path_factory.mktemp("ground")
    root, secret = folder / "root", folder / "secret"
    (root / "sub").mkdir(parents=True)
    secret.mkdir()
    shutil.copy(shared_videos["silent"], root / "own.mp4")
    shutil.copy(shared_videos["silent"], root / "a b#1%20?.mp4")
    shutil.copy(shared_videos["sound"], secret / "film.mp4")
    Image.new("RGB", (9, 9)).save(secret / "face.png")
    (root / "link.png").symlink_to(secret / "face.png")
    (root / "link.mp4").symlink_to(secret / "film.mp4")
    (root / "away").symlink_to(secret)
    (root / "loop").symlink_to(root / "loop")
    (root / "inside.mp4").symlink_to(root / "own.mp4")
    (root / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\n{secret / 'film.mp4'}\n")
    (root / "list.mp4").write_text(f"ffconcat version 1.0\nfile {secret / 'film.mp4'}\n")
    os.mkfifo(root / "pipe.mp4")
    return folder


@pytest.fixture(scope="module")
def guarded(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = ServeLimits(upload_bytes=MOST)
    with Served(tmp_path_factory.mktemp("out"), ground / "root", policy=Plain(), limits=limits) as server:
        yield server


ESCAPES = (
    "file://{secret}/film.mp4",
    "{secret}/film.mp4",
    "file://{root}/../secret/film.mp4",
    "file://{root}/sub/../../secret/film.mp4",
    "file://{root}/%2e%2e/secret/film.mp4",
    "file://{root}/..%2fsecret%2ffilm.mp4",
    "file://{root}/%252e%252e/secret/film.mp4",
    "file://{root}/link.mp4",
    "file://{root}/away/film.mp4",
    "file://{secret}/face.png",
    "file://{root}/link.png",
    "file://{root}/away/face.png",
    "file://{root}/loop",
    "file://{root}/list.m3u8",
    "file://{root}/list.mp4",
    "file://{root}/pipe.mp4",
    "file://{root}/sub",
    "file://{root}",
    "file://{root}/own.mp4%00.mp4",
    "file://{root}/own.mp4\0",
    "file://evil.example{root}/own.mp4",
    "file:/{root}/own.mp4",
    "file:own.mp4",
    "own.mp4",
    "~/own.mp4",
    "",
    "file:///proc/self/environ",
    "file:///dev/zero",
    "http://127.0.0.1:1/film.mp4",
    "HTTPS://example.org/film.mp4",
    "ftp://example.org/film.mp4",
    "rtsp://example.org/film",
    "concat:{secret}/film.mp4|{secret}/film.mp4",
    "subfile,,start,0,end,0,,:{secret}/film.mp4",
    "cache:{secret}/film.mp4",
    "fd:0",
    "pipe:0",
    "data:video/mp4,plain",
    "data:video/mp4;base64,",
    "data:text/plain;base64,aGVsbG8=",
    "file://{root}/" + "x" * 5000,
    "x" * 20000,
)


@pytest.mark.parametrize("number", range(len(ESCAPES)))
def test_no_file_outside_the_folders_is_read(guarded: Served, ground: Path, number: int) -> None:
    url = ESCAPES[number].format(root=ground / "root", secret=ground / "secret")
    before = len(guarded.stored())
    for kind in ("video_url", "image_url", "audio_url"):
        status, _, reply = guarded.post(chat("Which?", {"type": kind, kind: {"url": url}}))
        assert status == 400, reply
        told = json.dumps(reply)
        assert reply["error"]["code"] and "Traceback" not in told and "media_root" not in told and "#EXTM3U" not in told
    later = guarded.stored()[before:]
    assert all(trajectory.stop_reason == "media_unreadable" and not trajectory.turns for trajectory in later)
    wait_for(guarded.idle)


def test_it_is_not_told_which_files_are_outside(guarded: Served, ground: Path) -> None:
    told = set()
    for name in ("film.mp4", "none.mp4", "face.png/film.mp4"):
        for url in (f"file://{ground / 'secret' / name}", f"file://{ground / 'root' / 'away' / name}"):
            status, _, reply = guarded.post(chat("Which?", {"type": "video_url", "video_url": {"url": url}}))
            told.add((status, reply["error"]["code"], reply["error"]["message"].replace(url[7:], "")))
    assert len(told) == 1 and next(iter(told))[:2] == (400, "media_not_allowed")


@pytest.mark.parametrize(
    "url",
    [
        "file://{root}/own.mp4",
        "file://localhost{root}/own.mp4",
        "{root}/own.mp4",
        "file://{root}/sub/../own.mp4",
        "file://{root}/inside.mp4",
        "file://{root}/a b#1%20?.mp4",
        "file://{root}/a%20b%231%2520%3F.mp4",
    ],
)
def test_files_inside_are_read_however_they_are_written(guarded: Served, ground: Path, url: str) -> None:
    status, _, reply = guarded.post(chat("Which?", video_part("x")) | _with(url.format(root=ground / "root")))
    assert status == 200 and reply["choices"][0]["message"]["content"] == "B", reply


def _with(url: str) -> dict[str, Any]:
    part = {"type": "video_url", "video_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}]}


def test_without_a_folder_no_file_is_read(tmp_path: Path, ground: Path) -> None:
    with Served(tmp_path, policy=Plain()) as server:
        status, _, reply = server.post(chat("Which?", video_part(ground / "root" / "own.mp4")))
        assert status == 400 and "no folder of this server may be read" in reply["error"]["message"]
        upload = {"type": "video_url", "video_url": {"url": data_url(ground / "root" / "own.mp4")}}
        assert server.post(chat("Which?", upload))[0] == 200


def _png(width: int, height: int) -> bytes:
    """The head of a picture that would be very large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _picture(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_encoded(data)}"}}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n"

BOMBS = {
    "not json": (b"{", 400, "invalid_json"),
    "no body": (b"", 400, "invalid_json"),
    "not utf-8": (b'{"model": "\xff"}', 400, "invalid_json"),
    "a lone surrogate": (
        b'{"model": "apr", "messages": [{"role": "user", "content": "\\ud800"}]}',
        400,
        "invalid_json",
    ),
    "a list": (b"[]", 400, "invalid_value"),
    "nested": (b'{"x":' + b"[" * 90_000, 400, "invalid_json"),
    "many values": (b'{"x":[' + b"0," * 200_000 + b"0]}", 400, "too_many_values"),
    "many lists": (b'{"x":[' + b"[]," * 200_000 + b"0]}", 400, "too_many_values"),
    "a long number": (b'{"model": "apr", "n": ' + b"9" * 100_000 + b', "messages": []}', 400, None),
    "infinity": (json.dumps(chat("x") | {"n": float("inf")}).encode(), 400, "unsupported_parameter"),
    "a long text": (json.dumps(chat("x" * 1_100_000)).encode(), 400, None),
    "a long name": (json.dumps(chat("x") | {"model": "m" * 100_000}).encode(), 400, None),
    "many messages": (json.dumps(chat("x") | {"messages": chat("x")["messages"] * 300}).encode(), 400, None),
    "many parts": (json.dumps(chat("x", *[{"type": "text", "text": "x"}] * 2000)).encode(), 400, None),
    "many pictures": (json.dumps(chat("x", *[_picture(_png(1, 1))] * 300)).encode(), 400, "too_many_files"),
    "a huge picture": (json.dumps(chat("x", _picture(_png(60_000, 60_000)))).encode(), 400, None),
    "large pictures": (json.dumps(chat("x", *[_picture(_png(6000, 6000))] * 3)).encode(), 400, "too_many_pixels"),
    "a program": (json.dumps(chat("x", _picture(EPS))).encode(), 400, "media_unreadable"),
    "a window": (
        json.dumps(chat("x", {"type": "video_url", "video_url": {"url": "/x", "start_s": -1}})).encode(),
        400,
        "invalid_value",
    ),
    "wrong base64": (
        json.dumps(chat("x", {"type": "input_audio", "input_audio": {"data": "a*b", "format": "wav"}})).encode(),
        400,
        "invalid_base64",
    ),
    "an ending that is a path": (
        json.dumps(chat("x", {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "../x"}})).encode(),
        400,
        "invalid_value",
    ),
    "words as a film": (
        json.dumps(chat("x", {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp4"}})).encode(),
        400,
        "media_unreadable",
    ),
    "a large file": (json.dumps(chat("x", _picture(b"x" * (MOST + 10)))).encode(), 413, "request_too_large"),
    "large together": (json.dumps(chat("x", *[_picture(_png(1, 1) + b"x" * (MOST // 2))] * 3)).encode(), 413, None),
    "a large body": (json.dumps(chat("x")).encode() + b" " * (6 * MOST), 413, "request_too_large"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(guarded: Served, name: str) -> None:
    body, status, code = BOMBS[name]
    began = time.monotonic()
    ended, _, reply = guarded.post(body)
    assert ended == status and (code is None or reply["error"]["code"] == code), reply
    assert len(json.dumps(reply)) < 2000 and time.monotonic() - began < 20
    wait_for(guarded.idle)


def test_a_body_without_a_length_is_limited_while_it_is_read(guarded: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * MOST:
            sent += 2**16
            yield b" " * 2**16

    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    with pytest.raises(OSError):
        connection.request("POST", "/v1/chat/completions", endless(), {"Content-Type": "application/json"})
    connection.close()
    assert sent < 30 * MOST
    wait_for(guarded.idle)


def test_uploads_are_private_and_deleted(guarded: Served, ground: Path) -> None:
    folder = guarded.service.uploads.folder
    upload = {"type": "video_url", "video_url": {"url": data_url(ground / "root" / "own.mp4")}}
    assert guarded.post(chat("Which?", upload))[0] == 200
    assert folder.stat().st_mode & 0o777 == 0o700
    wait_for(guarded.idle)
    held = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [path for path in held if str(folder) in path], "a deleted file is not kept open"


def _closed(connection: socket.socket, within_s: float) -> bytes:
    connection.settimeout(within_s)
    read = b""
    while part := connection.recv(2**16):
        read += part
    return read


def test_slow_clients_do_not_hold_a_place(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "HEADERS_S", 0.3)
    monkeypatch.setattr(body_module, "BODY_S", 0.3)
    with Served(tmp_path, policy=Plain()) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        assert _closed(silent, 5) == b""
        drips = socket.create_connection(("127.0.0.1", server.port))
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 5:
                drips.sendall(b"X")
                time.sleep(0.05)
        slow = socket.create_connection(("127.0.0.1", server.port))
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        told = _closed(slow, 5)
        assert told.startswith(b"HTTP/1.1 408") and b"request_timeout" in told
        for connection in (silent, drips, slow):
            connection.close()
        wait_for(server.idle)


class Writes(PolicyDefaults):
    """Answers at once, after a thought of many megabytes."""

    name = "writes"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        return Generation("<think>" + "so " * 4_000_000 + "</think>B")

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering_module, "SEND_S", 0.5)
    with Served(tmp_path, policy=Writes()) as server:
        body = json.dumps(chat("Yes?", apr={"trajectory": True})).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        deaf = socket.create_connection(("127.0.0.1", server.port))
        deaf.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_for(lambda: len(server.stored()) == 1)
        wait_for(server.idle)
        assert 0 < len(_closed(deaf, 10)) < 12_000_000, "the connection is closed, and the rest is dropped"
        deaf.close()


@pytest.mark.slow
def test_what_schemathesis_makes_of_the_schema(tmp_path: Path) -> None:
    """No request that follows the schema, or almost follows it, brings an undocumented response."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    logging.getLogger("schemathesis").setLevel(logging.ERROR)
    statuses: list[int] = []
    with Served(tmp_path, policy=Plain(), key="k", limits=ServeLimits(concurrent=8)) as server:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        checks = [
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ]
        for operation in schema.get_all_operations():
            own = operation.ok()
            posts = own.method.upper() == "POST"
            for mode in GenerationMode if posts else (GenerationMode.POSITIVE,):

                @settings(
                    max_examples=40 if posts else 5,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=own.as_strategy(generation_mode=mode))
                def check(case: Any) -> None:
                    response = case.call(headers={"Authorization": "Bearer k"}, timeout=20)
                    statuses.append(response.status_code)
                    case.validate_response(response, checks=checks)

                check()
        wait_for(server.idle)
    assert {200, 400, 404} <= set(statuses) and len(statuses) > 70
