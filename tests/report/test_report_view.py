"""The served page: it follows a growing run, answers to nobody else, and says what is wrong."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_making import made_trajectory

from apr_plugin.errors import AprError
from apr_plugin.loop import Card, EpisodeConfig
from apr_plugin.policies.guess import GuessPolicy
from apr_plugin.report import view
from apr_plugin.report.view import Viewer, serve
from apr_plugin.runs.store import TrajectoryStore


class Growing:
    """A run that goes on: each call of `more` ends one question."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n = folder, 0
        self.config, self.policy = EpisodeConfig(), GuessPolicy()

    def more(self) -> None:
        config_hash = self.config.hash(self.policy)
        with TrajectoryStore(self.folder, config_hash, Card.of(self.config, self.policy)) as store:
            one = made_trajectory(self.n, "agent", 0, True)
            store.save(one.model_copy(update={"config_hash": config_hash, "arm": "agent"}))
        self.n += 1


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    run = Growing(tmp_path / "run")
    run.more()
    return run


@pytest.fixture
def viewer(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Viewer]:
    monkeypatch.setattr(view, "SHORTEST_S", 0.0)
    with serve(growing.folder).start() as served:
        yield served


def ask(viewer: Viewer, path: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=30)
    try:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8"), answer.headers
    finally:
        connection.close()


def questions(page: str) -> int:
    found = re.search(r'id="index">([^<]+)<', page)
    assert found
    return len(json.loads(zlib.decompress(base64.b64decode(found[1]), -15))["rows"])


def test_the_page_follows_the_run(viewer: Viewer, growing: Growing) -> None:
    status, page, headers = ask(viewer)
    version = ask(viewer, "/version")[1]
    assert status == 200 and questions(page) == 1 and f'data-live="{version}"' in page
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
    assert ask(viewer, "/version")[1] == version, "nothing has changed"
    growing.more()
    time.sleep(0.5)  # longer than making the page may have held the version
    later = ask(viewer, "/version")[1]
    assert later != version
    assert questions(ask(viewer)[1]) == 2 and ask(viewer, "/version")[1] == later


def test_the_page_is_not_made_again_too_soon(growing: Growing) -> None:
    with serve(growing.folder).start() as viewer:
        first = ask(viewer)[1]
        growing.more()
        assert ask(viewer)[1] == first and ask(viewer, "/version")[1] in first


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost"])
def test_another_name_for_this_address_is_refused(viewer: Viewer, host: str) -> None:
    for path in ("/", "/version"):
        status, body, _ = ask(viewer, path, host=host.format(port=viewer.port))
        assert status == 421 and "<" not in body
    for good in ("localhost", "127.0.0.1", "[::1]"):
        assert ask(viewer, host=f"{good}:{viewer.port}")[0] == 200


def test_there_is_only_the_page_and_its_version(viewer: Viewer) -> None:
    for path in ("/card.json", "/../etc/passwd", "/version/", "/%2e%2e/", "/?q"):
        assert ask(viewer, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert ask(viewer, method=method)[0] == 501


def test_a_fault_is_said_and_the_next_request_tries_again(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "SHORTEST_S", 0.0)
    with serve(growing.folder).start() as viewer:
        moved = growing.folder.rename(growing.folder.with_name("away"))
        status, body, headers = ask(viewer)
        assert status == 503 and "the page can't be made" in body and headers["Content-Type"].startswith("text/plain")
        moved.rename(growing.folder)
        assert ask(viewer)[0] == 200


def test_what_cant_be_served_is_refused(growing: Growing, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.0.1", "::", "example.com"):
        with pytest.raises(AprError, match="served to this machine only"):
            serve(growing.folder, host=host)
    with pytest.raises(AprError):
        serve(tmp_path / "nothing")
    with serve(growing.folder).start() as viewer, pytest.raises(AprError, match="choose another port"):
        serve(growing.folder, viewer.port)
