"""The page of `apr app` in a real browser, headless, on a real server with a policy that needs no model.

They need Chromium (Debian: `apt install chromium`), and the packages `gradio` and `playwright`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "report"))

from app_making import HOSTILE, Running, asked, running
from report_making import CHROMIUM_OPTIONS, chromium

from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.runs.opened import open_run

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'apr-plugin[demo]'")
pytestmark = [
    pytest.mark.xdist_group("chromium"),
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt install chromium"),
]

WAIT_MS = 30_000


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("app")) as made:
        yield made


@pytest.fixture(scope="module")
def browser(app: Running) -> Iterator[Any]:
    """One browser for this file; no name but the loopback address is found in it."""
    names = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with playwright_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=[*CHROMIUM_OPTIONS, names])
        yield started
        started.close()


class Tab:
    """A visitor's tab, with what its console said and what it requested from outside."""

    def __init__(self, app: Running, browser: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True)
        self.faults: list[str] = []
        own = (app.url, "data:", "blob:")
        self.context.on("request", lambda one: None if one.url.startswith(own) else self.faults.append(one.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", lambda one: self.faults.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(app.url)
        self.page.wait_for_selector("[data-token]:not([data-token=''])", state="attached")
        self._before = ""

    def upload(self, file: Path) -> None:
        video = "document.querySelector('#apr-video video')?.src"
        before = self.page.evaluate(video) or ""
        self.page.set_input_files("#apr-upload input", str(file))
        self.page.wait_for_function(f"{video} && {video} !== {before!r}")
        assert file.name in self.page.inner_text("#apr-video figcaption")

    def write(self, doc: dict[str, Any]) -> None:
        self.page.fill("#apr-question textarea", doc["question"])
        self.page.fill("#apr-options textarea", "\n".join(doc["options"]))

    def ask(self) -> None:
        self._before = self.address("report")
        self.page.click("#apr-ask")

    def address(self, kind: str) -> str:
        link = self.page.query_selector(f".apr-downloads a[href*='{kind}']")
        return "" if link is None else str(link.evaluate("(one) => one.href"))

    def ended(self) -> str:
        """The end of what was asked last, in words."""
        after = f"(one) => one && one.href !== {self._before!r}"
        self.page.wait_for_function(f"({after})(document.querySelector('.apr-downloads a'))")
        return str(self.page.inner_text(".apr-ending"))

    def refused(self, words: str) -> None:
        self.page.wait_for_selector(f".apr-status[data-stage=refused]:has-text('{words}')")

    def close(self) -> None:
        self.context.close()
        assert self.faults == [], "errors, and requests to outside"


@pytest.fixture(scope="module")
def shared(app: Running, browser: Any) -> Iterator[Tab]:
    """A visitor of several tests; opening a page takes seconds."""
    tab = Tab(app, browser)
    yield tab
    tab.close()


def test_an_upload_is_asked_about_watched_and_exported(app: Running, browser: Any, tmp_path: Path) -> None:
    tab, doc = Tab(app, browser), app.doc("sound")
    page = tab.page
    assert "several" in page.inner_text("#apr-policy") and not page.locator("#apr-turns .apr-turn").count()
    tab.upload(Path(doc["video"]))
    assert "60.0 s" in page.inner_text("#apr-video") and "with sound" in page.inner_text("#apr-video")
    page.wait_for_function("document.querySelector('#apr-video video').readyState >= 1")
    tab.write(doc)
    app.policy.held.add(doc["question"])
    tab.ask()
    page.wait_for_selector(".apr-saw img")
    assert page.locator(".apr-wrote").count() == 1 and "scan" in page.inner_text(".apr-wrote"), "thought and look"
    assert page.locator(".apr-ruler .apr-bar").count() == 1 and not page.locator(".apr-ending").count()
    assert "Looking" in page.inner_text(".apr-status") and "of 6" in page.inner_text(".apr-status")
    seconds = "[...document.querySelectorAll('.apr-status dt')].find((one) => one.innerText === 'seconds')"
    before = page.evaluate(f"{seconds}.nextElementSibling.innerText")
    page.wait_for_function(f"{seconds}.nextElementSibling.innerText !== '{before}'")
    assert page.locator(".apr-saw img").first.evaluate("(one) => one.decode().then(() => one.naturalWidth)") == 160
    app.policy.held.discard(doc["question"])
    assert f"answer {doc['answer']}" in tab.ended()
    assert page.locator(".apr-wave").count() == 1 and page.locator(".apr-audio .apr-bar").count() == 1
    assert "entropy not given" in page.inner_text("#apr-turns") and "Ended" in page.inner_text(".apr-status")

    with tab.context.expect_page() as opened:
        page.click("text=report page")
    report = opened.value
    report.wait_for_selector("body[data-ready]")
    report.focus(".list")
    report.keyboard.press("Enter")
    report.wait_for_selector("[role=dialog] .ruler .bar")
    assert report.locator("[role=dialog] .thumbs img").count() >= 60 and "Investigation" in report.title()
    assert app.folder not in report.content()
    with page.expect_download() as saved:
        page.click("text=save the trajectory")
    saved.value.save_as(tmp_path / "it.jsonl")
    (told,) = Trajectory.read(tmp_path / "it.jsonl")
    assert told.answer == doc["answer"] and told.question.videos[0].path == Path(doc["video"]).name
    with page.expect_download() as saved:
        page.click("text=save the page")
    assert saved.value.suggested_filename == "investigation.html"

    kept = next(one for one in open_run(app.out, latest=True) if one.question.text == doc["question"])
    assert kept.answer == doc["answer"], "it is under --out, too"
    where = tab.address("report")
    film = app.visitors.with_finished(where.rpartition("/")[2]).film
    assert film.own and film.path.is_file() and str(film.path).startswith(app.folder)
    tab.close()
    until = time.monotonic() + 20
    while film.path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not film.path.exists(), "the upload is removed when its tab is closed"
    assert asked(where)[0] == 404


def test_an_example_fills_the_form_and_limits_hold(app: Running, shared: Tab) -> None:
    page = shared.page
    shared.ask()
    shared.refused("upload a video first")
    page.click("#apr-example input")
    page.click("[role=option]:has-text('When is')")
    page.wait_for_selector("#apr-video video")
    assert "When is" in page.input_value("#apr-question textarea")
    assert page.input_value("#apr-kind input") == "time spans"
    page.fill("#apr-most-turns input", "1")
    page.keyboard.press("Tab")
    shared.ask()
    assert "answer [[" in shared.ended() and "1 of 1" in page.inner_text(".apr-status")
    page.fill("#apr-most-turns input", "7")
    page.keyboard.press("Tab")
    shared.ask()
    shared.refused("a whole number from 1 to 6")
    page.fill("#apr-most-turns input", "6")
    page.click("#apr-kind input")
    page.click("[role=option]:has-text('by the options')")


def test_one_visitor_stops_while_another_goes_on(app: Running, browser: Any, shared: Tab) -> None:
    other = Tab(app, browser)
    docs = [app.doc(kind) for kind in ("sound", "glyph")]
    for tab, doc in zip((shared, other), docs, strict=True):
        tab.upload(Path(doc["video"]))
        tab.write(doc)
        app.policy.held.add(doc["question"])
        tab.ask()
        tab.page.wait_for_selector(f".apr-status:has-text('{doc['question'][:40]}')")
        tab.page.wait_for_selector(".apr-saw")
    other.page.click("#apr-ask")  # does nothing while one runs
    assert app.visitors.house.desk.taken == 2
    other.page.click("#apr-stop")
    assert "not answered: stopped" in other.ended()
    assert app.policy.cancelled == [docs[1]["question"]] and app.visitors.house.desk.taken == 1
    assert not shared.page.locator(".apr-ending").count()
    app.policy.held.clear()
    assert f"answer {docs[0]['answer']}" in shared.ended()
    other.ask()
    assert f"answer {docs[1]['answer']}" in other.ended(), "a stopped visitor can ask again"
    other.close()


def test_what_a_model_writes_does_nothing(app: Running, shared: Tab) -> None:
    page = shared.page
    if not page.locator("#apr-video video").count():
        shared.upload(Path(app.docs[0]["video"]))
    shared.write({"question": f"hostile {HOSTILE}", "options": []})
    shared.ask()
    shared.ended()
    words = page.text_content("#apr-turns")
    assert words.count(HOSTILE) >= 4 and page.text_content(".apr-answer b") == HOSTILE
    assert page.text_content(".apr-status bdi").startswith(f"hostile {HOSTILE[:40]}")
    assert "UNKNOWN_ACTION" in words and "MALFORMED_JSON" in words and "entropy 1.00 nats" in words
    inside = "#apr-status, #apr-ruler, #apr-turns, #apr-ending"
    found = f"[...document.querySelectorAll('{inside}')].flatMap((one) => [...one.querySelectorAll('*')])"
    assert page.evaluate(f"{found}.filter((one) => ['SCRIPT', 'IFRAME'].includes(one.tagName)).length") == 0
    assert page.evaluate(f"{found}.flatMap((one) => [...one.attributes]).filter((a) => /^on/.test(a.name)).length") == 0
    assert page.locator("#apr-turns img:not([src^='data:image/webp;base64,'])").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0 and page.evaluate("window.hacked") is None
    with shared.context.expect_page() as opened:
        page.click("text=report page")
    report = opened.value
    report.wait_for_selector("body[data-ready]")
    report.focus(".list")
    report.keyboard.press("Enter")
    assert report.text_content("[role=dialog]").count(HOSTILE) >= 4 and report.evaluate("window.hacked") is None


def test_a_policy_that_fails_and_a_file_that_is_no_film_are_said(app: Running, shared: Tab, tmp_path: Path) -> None:
    page = shared.page
    (tmp_path / "letter.mp4").write_text("Dear Sir or Madam")
    page.set_input_files("#apr-upload input", str(tmp_path / "letter.mp4"))
    page.wait_for_selector("#apr-upload p:has-text('can\\'t be used')")
    assert app.folder not in page.inner_text("#apr-upload")
    assert "400" in shared.faults.pop()
    (tmp_path / "large.mp4").write_bytes(bytes(2**20 + 1))
    page.set_input_files("#apr-upload input", str(tmp_path / "large.mp4"))
    page.wait_for_selector("#apr-upload p:has-text('larger than the 1 MiB')")
    shared.upload(Path(app.docs[0]["video"]))
    shared.write({"question": "broken?", "options": []})
    shared.ask()
    assert "The question was not answered" in shared.ended()
    assert "the model's server is gone" in page.inner_text(".apr-ending")
    assert page.get_attribute(".apr-ending", "data-stop") == StopReason.POLICY_UNAVAILABLE
