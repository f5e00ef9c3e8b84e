"""The server of `apr app` without a browser: which requests it answers, its uploads, and the command."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from app_making import Running, asked, running

from apr_plugin.cli.app import app as commands
from apr_plugin.cli.page import run_app
from apr_plugin.errors import AprError
from apr_plugin.harnesses.app.about import DEFAULT_MODEL_ARGS
from apr_plugin.harnesses.app.server import AppServer, Options, is_loopback
from apr_plugin.runs.settings import read_settings

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'apr-plugin[demo]'")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("app")) as made:
        yield made


def test_the_page_names_nothing_outside_and_forbids_it(app: Running) -> None:
    status, page, headers = asked(app.url)
    assert status == 200
    fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?([^\"' >]+)", page)
    assert fetched and not [one for one in fetched if re.match(r"(?i)(https?:)?//", one)]
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file/etc/passwd",
        "gradio_api/proxy=https://example.org/",
        "gradio_api/run/predict",
        "gradio_api/call/ask",
        "gradio_api/deep_link",
        "gradio_api/upload",
        "gradio_api//upload",
        "gradio_api/../gradio_api/upload",
        "%67radio_api/upload",
        "gradio_api/mcp/",
        "monitoring",
        "docs",
        "openapi.json",
        "assets/../gradio_api/upload",
        "assets/..%2f..%2f..%2f..%2fetc/passwd",
        "static/../../../../../../../../etc/passwd",
        "apr/report/../../x/y",
        "apr/video/",
    ],
)
def test_what_the_page_does_not_need_is_not_answered(app: Running, path: str) -> None:
    for method in ("GET", "POST"):
        assert asked(app.url + path, method, b"{}" if method == "POST" else None)[0] in (403, 404, 405)


def test_a_request_can_not_name_a_file_or_another_host(app: Running, tmp_path: Path) -> None:
    for path in ("/etc/hostname", "http://127.0.0.1:9/x"):
        named = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [named, "", "", 1, 1], "fn_index": 3, "session_hash": "x"}).encode()
        assert asked(f"{app.url}gradio_api/queue/join", "POST", body, **{"Content-Type": "application/json"})[:2] == (
            400,
            "a request may not name a file",
        )
    assert asked(f"{app.url}gradio_api/queue/join", "POST", bytes(300_000))[0] == 413
    assert asked(f"{app.url}gradio_api/queue/join", "POST", b"{not json")[0] == 400
    assert asked(app.url, Host="evil.example")[0] == 421
    assert asked(app.url, Host=f"localhost:{app.server.port}")[0] == 200


def test_an_upload_needs_a_visitor_and_keeps_to_the_limits(app: Running, shared_videos: dict[str, Path]) -> None:
    assert asked(f"{app.url}apr/upload/nobody", "PUT", b"x")[0] == 404
    assert asked(f"{app.url}apr/upload/caf%C3%A9", "PUT", b"x")[0] == 404
    visitor = app.visitors.of("one of these tests")
    own = f"{app.url}apr/upload/{visitor.token}"
    assert asked(f"{app.url}apr/video/{visitor.token}")[0] == 404
    declared = http.client.HTTPConnection("127.0.0.1", app.server.port, timeout=20)
    declared.putrequest("PUT", f"/apr/upload/{visitor.token}?name=large.mp4")
    declared.putheader("Content-Length", str(2**20 + 1))
    declared.endheaders()  # it is refused before anything of it is sent
    refused = declared.getresponse()
    assert (refused.status, refused.read()) == (413, b"this file is larger than 1 MiB, the most that can be uploaded")
    declared.close()
    unsized = http.client.HTTPConnection("127.0.0.1", app.server.port, timeout=20)
    unsized.request("PUT", f"/apr/upload/{visitor.token}", iter([bytes(2**20), b"x"]), encode_chunked=True)
    assert unsized.getresponse().status == 413
    unsized.close()
    status, said, _ = asked(f"{own}?name=long.mp4", "PUT", shared_videos["long"].read_bytes())
    assert status == 400 and "lasts 1.2 minutes; at most 1.1 minutes are allowed" in said
    assert list(visitor.folder.iterdir()) == []
    data = Path(app.docs[0]["video"]).read_bytes()
    assert asked(f"{own}?name=../../it%20is.mp4", "PUT", data)[:2] == (200, "it_is.mp4")
    assert asked(f"{app.url}apr/video/{visitor.token}", Range="bytes=4-7")[:2] == (206, "ftyp")
    for kind in ("report", "trajectory"):
        assert asked(f"{app.url}apr/{kind}/{visitor.token}")[0] == 404


def test_a_port_that_is_taken_and_an_address_that_is_none(app: Running) -> None:
    settings = read_settings({"policy": "needle"})
    with pytest.raises(AprError, match=rf"cannot listen on 127\.0\.0\.1:{app.server.port}: .*--port"):
        AppServer(settings, app.visitors.house.reporting, [], Options(port=app.server.port))
    with pytest.raises(AprError, match=r"cannot listen on 192\.0\.2\.1"):
        AppServer(settings, app.visitors.house.reporting, [], Options(host="192.0.2.1", port=0))
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    with pytest.raises(AprError, match=r"gradio is not installed; add it with: pip install 'apr-plugin\[demo\]'"):
        run_app(None, None, None, Options())


def test_the_command_serves_until_ctrl_c_and_leaves_nothing(app: Running, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-P", "-m", "apr_plugin", "app", "--port", "0", "--examples", str(app.needle)]
    process = subprocess.Popen(
        [*command, "--model_args", "policy=needle,max_turns=3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        assert "scripted policy, not a model" in said[0]
        url = said[1].split()[0]
        assert "Most turns (1 to 3)" in asked(f"{url}config")[1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    until = time.monotonic() + 5
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < until:
        time.sleep(0.1)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model_args": "policy=nobody"}, "there is no policy"),
        ({"model_args": "policy=needle,max_turns=0"}, "max_turns=0"),
        ({"examples": Path("/no/such/folder")}, "no such folder"),
    ],
)
def test_a_wrong_argument_of_the_command_is_said(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(AprError, match=said):
        run_app(**{"model_args": None, "examples": None, "root": None, "options": Options(port=0)} | arguments)


def test_the_documented_options_are_those_of_the_command() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "app.md").read_text("utf-8")
    command = typer.main.get_command(commands).get_command(None, "app")
    options = {name for one in command.params for name in one.opts if name.startswith("--")} - {"--model-args"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - {"--out"} == options - {"--out"}
    assert f"`{DEFAULT_MODEL_ARGS}`" in text
