"""The page runs the small agent of this package by default: in a real browser, on a real server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "report"))

from app_making import outside
from bundled_testing import SmallAgent, shipped
from report_making import CHROMIUM_OPTIONS, chromium

from apr_plugin.cli import page
from apr_plugin.cli.page import reporting, run_app
from apr_plugin.harnesses.app.about import BUNDLED, about_policy, default_model_args
from apr_plugin.harnesses.app.examples import found
from apr_plugin.harnesses.app.form import Form, question_of
from apr_plugin.harnesses.app.server import AppServer, Options
from apr_plugin.loop.question import MediaRef
from apr_plugin.models import bundled
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.settings import read_settings
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle
from apr_plugin.tasks.needle.read import asked

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'apr-plugin[demo]'")
pytestmark = pytest.mark.xdist_group("chromium")


@pytest.fixture(scope="module")
def needle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A needle set: a video of a minute with a question of each kind."""
    spec = NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1)
    return Path(make_needle(tmp_path_factory.mktemp("set"), spec, 1))


def test_the_default_is_the_small_agent_where_it_is_and_else_no_model(
    small_agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shipped(small_agent):
        assert default_model_args() == "policy=hf,pretrained=apr-tiny"
        policy = read_settings(parse_model_args(default_model_args())).policy
        assert about_policy(policy) == f"policy=hf, apr-tiny, {BUNDLED}"
        policy.close()
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    assert default_model_args() == "policy=needle"


def test_a_question_of_the_form_is_the_benchmarks(needle: Path) -> None:
    """Or a model that was trained on the benchmark's prompts would read another one on the page."""
    examples = {example.text: example for example in found(needle)}
    for doc in load_docs(needle):
        example, wanted = examples[doc["question"]], asked(dict(doc))
        made = question_of(
            Form(example.text, "\n".join(example.options), example.kind), MediaRef(path=doc["video"]), "0"
        )
        if doc["kind"] in ("glyph", "when", "order"):
            assert (made.text, made.kind, made.options, made.answer_hint) == (
                wanted.text,
                wanted.kind,
                wanted.options,
                wanted.answer_hint,
            )


def test_the_command_offers_what_the_agent_was_taught(
    small_agent: SmallAgent, needle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[list[str]] = []

    class Ended(Exception):
        pass

    def begun(settings: Any, reporting: Any, examples: Any, options: Any) -> Any:
        offered.append([settings.policy.name, *(example.text for example in examples)])
        raise Ended

    monkeypatch.setattr(page, "AppServer", begun)
    monkeypatch.setattr("apr_plugin.harnesses.app.examples.made", lambda: needle)
    with shipped(small_agent):
        for model_args in (None, "policy=needle"):
            with pytest.raises(Ended):
                run_app(model_args, None, None, Options(port=0))
        taught = bundled.needle_kinds()
    texts = {doc["kind"]: doc["question"] for doc in load_docs(needle)}
    assert offered[0][0] == "hf" and set(offered[0][1:]) == {texts[kind] for kind in taught}
    assert offered[1][0] == "needle" and set(offered[1][1:]) == set(texts.values())


@pytest.fixture(scope="module")
def url(small_agent: SmallAgent, needle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with its default policy."""
    with shipped(small_agent):
        settings = read_settings(parse_model_args(default_model_args()))
    options = Options(port=0, out=tmp_path_factory.mktemp("kept"), timeout_s=120.0)
    try:
        with outside() as connected:
            with AppServer(settings, reporting(), found(needle), options) as server:
                yield server.start().url
            assert connected == []
    finally:
        settings.policy.close()


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt install chromium")
def test_a_visitor_watches_it_look(url: str, small_agent: SmallAgent) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as driver:
        names = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = driver.chromium.launch(executable_path=chromium(), args=[*CHROMIUM_OPTIONS, names])
        tab = browser.new_page()
        tab.set_default_timeout(60_000)
        faults: list[str] = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(url)
        tab.wait_for_selector("[data-token]:not([data-token=''])", state="attached")
        assert "apr-tiny, the small model that comes with this package" in tab.inner_text("#apr-policy")
        tab.click("#apr-example input")
        tab.click("[role=option]:has-text('When is')")
        tab.wait_for_selector("#apr-video video")
        tab.click("#apr-ask")
        tab.wait_for_selector(".apr-downloads a")
        assert tab.locator("#apr-turns .apr-turn").count() >= 1 and faults == []
        if small_agent.trained:
            assert "answer [[" in tab.inner_text(".apr-ending") and tab.locator(".apr-saw img").count()
        browser.close()
