"""The report page in a real browser, headless: nothing that a model or a data set wrote acts, and everything can be
reached with the keyboard, on a narrow screen, in the dark and on paper.

They need Chromium (Debian: `apt install chromium`) and the package `playwright`, which drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer
from report_making import (
    CHROMIUM_OPTIONS,
    TASK,
    chromium,
    key_of,
    made_comparison,
    made_summary,
    made_trajectory,
    question_of,
)
from report_pages import HOSTILE, hostile_comparison, hostile_summary, pictured_comparison

from apr_plugin.compare.joined import Comparison
from apr_plugin.compare.summary import summarise
from apr_plugin.loop import Card, EpisodeConfig
from apr_plugin.report import view
from apr_plugin.report.page import write_page
from apr_plugin.runs.store import TrajectoryStore

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
pytestmark = [
    pytest.mark.xdist_group("chromium"),
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt install chromium"),
]

N = 60

UNNAMED = """() => [...document.querySelectorAll('button, input, select, svg[role=img]')].filter(
  (one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length"""
"""How many controls and pictures have no name for a screen reader."""

CONTRASTS = """() => {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  const names = ['body', '.lead', '.num small', '.row .where', '.flag', '.lost', 'summary'];
  return [paper, ...names.map((name) => ratio(light(getComputedStyle(document.querySelector(name)).color)))];
}"""
"""Luminance of the background, and the contrast of texts with it (WCAG 2.2)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return made_comparison(tmp_path_factory.mktemp("made"), N)


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, shared_videos: dict[str, Path], made: Comparison
) -> dict[str, Path]:
    """All pages, written before the browser starts: its event loop would keep `asyncio.run` out."""
    folder = tmp_path_factory.mktemp("pages")
    small = made_comparison(folder / "small", 8, (("agent", "agent", 0.6), ("passive", "passive", 0.5)))
    sweep = {"setting": "max_turns", "values": {"agent": 4, "passive": 8}}
    hostile = hostile_comparison(folder / "hostile")
    pictured = pictured_comparison(folder / "pictured", shared_videos["sound"])
    return {
        "made": write_page(made, made_summary(made), folder / "made.html"),
        "hostile": write_page(hostile, hostile_summary(hostile), folder / "hostile.html"),
        "real": write_page(small, summarise(small, sweep=sweep), folder / "real.html"),
        "pictured": write_page(pictured, {"title": "pictures"}, folder / "pictured.html", thumbnails=True),
        "bare": write_page(pictured, {}, folder / "bare.html"),
    }


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Any]:
    """One browser for this file. It ends with the file: later tests in this process run event loops of their own."""
    with playwright_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_OPTIONS))
        yield started
        started.close()


Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """`show("made", width=360)`: a tab with that page. What it writes to the console fails the test at its end."""
    said: list[str] = []
    contexts = []

    def show(name: str, *, width: int = 1280, height: int = 800, hash: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"error: {error}"))
        address = name if name.startswith("http") else f"file://{pages[name]}"
        own = ("data:", address)
        tab.on("request", lambda sent: None if sent.url.startswith(own) else said.append(f"request: {sent.url}"))
        tab.goto(address + hash)
        tab.wait_for_selector("body[data-ready]")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert said == []


def found(tab: Any) -> str:
    return str(tab.inner_text(".found"))


def is_open(tab: Any) -> bool:
    return bool(tab.locator("[role=dialog]").count())


def test_nothing_that_was_written_acts(show: Open) -> None:
    tab = show("hostile")
    visible = HOSTILE.replace("\u202e", "")
    assert visible in tab.text_content("body") and tab.title() == HOSTILE
    for press in ("", "Enter", "j"):
        if press:
            tab.keyboard.press(press)
        else:
            tab.focus(".list")
        for summary in tab.locator("summary").all():
            summary.evaluate("one => { one.parentElement.open = true; }")
        assert tab.locator("img, iframe, object, embed, link, base, form, a[href^=javascript]").count() == 0
        assert tab.evaluate(
            "[window.hacked, document.scripts.length, document.querySelectorAll('#app script').length]"
        )[::2] == [None, 0]
    assert is_open(tab)
    words = tab.text_content("[role=dialog]")
    assert words.count(visible) >= 12, "question, options, answers, notes, thoughts, errors, repairs, file name"
    assert tab.locator(".turn-card .error bdi").first.text_content() == HOSTILE
    assert tab.locator(".ruler figcaption bdi").first.text_content() == f"{HOSTILE.replace('/', '|')}.mp4"
    assert tab.locator(".q .said").text_content() == HOSTILE


def test_the_keyboard_reaches_everything(show: Open) -> None:
    tab = show("made")
    active = lambda: int(tab.get_attribute(".row.active", "aria-posinset"))  # noqa: E731
    tab.keyboard.press("j")
    assert active() == 2 and tab.evaluate("document.activeElement.getAttribute('role')") == "listbox"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, place in (
        ("ArrowDown", 3),
        ("k", 2),
        ("ArrowUp", 1),
        ("ArrowUp", 1),
        ("End", N),
        ("j", N),
        ("PageUp", N - 10),
        ("Home", 1),
    ):
        tab.keyboard.press(key)
        assert active() == place, key
        row = tab.locator(".row.active").bounding_box()
        frame = tab.locator(".list").bounding_box()
        assert frame["y"] - 1 <= row["y"] and row["y"] + row["height"] <= frame["y"] + frame["height"] + 1, key
    assert tab.get_attribute(".list", "aria-activedescendant") == tab.get_attribute(".row.active", "id")
    tab.keyboard.press("Enter")
    assert is_open(tab) and "#q=" in tab.url and tab.evaluate("document.activeElement.getAttribute('role')") == "dialog"
    assert tab.evaluate("document.querySelector('.page').inert")
    first = tab.get_attribute("[role=dialog]", "aria-label")
    for key, other in (("j", True), ("k", False), ("ArrowRight", True), ("ArrowLeft", False)):
        tab.keyboard.press(key)
        assert (tab.get_attribute("[role=dialog]", "aria-label") != first) == other
    for _ in range(3):
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Close"
    tab.keyboard.press("Escape")
    tab.wait_for_selector(".list:focus")
    assert not is_open(tab) and "q=" not in tab.url
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.keyboard.type("jk/ question 17")
    assert found(tab) == f"0 of {N} questions" and not is_open(tab), "keys that are typed do nothing else"
    tab.fill("input[type=search]", "Question 17:")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    assert is_open(tab) and "Question 17:" in tab.inner_text(".q")
    assert tab.evaluate(UNNAMED) == 0


def test_filters_and_flips_list_the_right_questions(show: Open, made: Comparison) -> None:
    tab = show("made")
    a, _, passive = made.arms
    right = [(a.outcome(key).right, passive.outcome(key).right) for key in made.keys]
    cells = tab.locator(".flip").nth(1).locator(".cell")
    counts = [right.count(pair) for pair in ((True, False), (False, True), (True, True), (False, False))]
    assert [int(cells.nth(n).locator("b").inner_text()) for n in range(4)] == counts
    for n, wanted in enumerate(counts):
        cells.nth(n).click()
        assert found(tab) == f"{wanted} of {N} questions"
    tab.click(".clear")
    assert found(tab) == f"{N} questions"
    tab.select_option(".filters select >> nth=0", "20-60min")
    buckets = [made.bucket(key) == "20-60min" for key in made.keys]
    assert found(tab) == f"{sum(buckets)} of {N} questions"
    tab.select_option(".filters select >> nth=2", "wrong")
    wrong = [not x and bucket for (x, _), bucket in zip(right, buckets, strict=True)]
    assert found(tab) == f"{sum(wrong)} of {N} questions"
    tab.click(".clear")
    failed = [any(arm.outcome(key).status == "failed" for arm in made.arms) for key in made.keys]
    flag = tab.locator(".flag", has_text="failed")
    flag.click()
    assert flag.get_attribute("aria-pressed") == "true" and found(tab) == f"{sum(failed)} of {N} questions"
    flag.click()
    tab.fill("input[type=search]", "film0003")
    assert found(tab) == f"3 of {N} questions"


def test_the_ruler_has_a_bar_for_every_look_where_it_was(show: Open, made: Comparison) -> None:
    number = next(n for n in range(N) if question_of(n)[3] == "mcq" and n % 41 != 5)
    tab = show("made", hash=f"#q={TASK}/test/{number}/0")
    taken = [arm.trajectory(key_of(number)) for arm in made.arms]
    assert all(taken)
    looks = [shown for one in taken if one for shown in one.looks]
    tab.wait_for_selector(".ruler")
    bars = tab.locator(".ruler .bar")
    assert bars.count() == len(looks) and tab.locator(".ruler .name").count() == 3
    duration, spans = question_of(number)[1], question_of(number)[2].spans()
    left, right = (tab.locator(".ruler .axis path").first.bounding_box()["x"], tab.locator(".ruler svg").bounding_box())
    width = right["x"] + right["width"] - 12 - left
    boxes = {
        (round(box["x"] - left), round(box["width"]))
        for n in range(len(looks))
        if (box := bars.nth(n).locator(".body").bounding_box())
    }
    for shown in looks:
        start, long = shown.start_s / duration * width, (shown.end_s - shown.start_s) / duration * width
        assert any(abs(start - x) <= 5 and abs(max(3, long) - w) <= 5 for x, w in boxes), shown
    hits = [
        any(s <= t <= e for s, e in spans for t in shown.times_s) if shown.kind == "frames"
        else any(shown.start_s < e and s < shown.end_s for s, e in spans)
        for shown in looks
    ]  # fmt: skip
    assert tab.locator(".ruler .bar.hit .glyph").count() == sum(hits)
    assert tab.locator(".ruler .bar.miss .glyph").count() == len(hits) - sum(hits)
    assert tab.locator(".ruler .evidence rect").count() == len(spans)
    split = int(tab.locator(".key", has_text="first divergence").inner_text().split()[-1])
    agents = [[(s.kind, s.start_s, s.end_s) for s in one.looks] for one in taken[:2] if one]
    assert split == next(n for n in range(99) if agents[0][n : n + 1] != agents[1][n : n + 1]) + 1
    assert tab.locator(".turn-card .no", has_text="1").count() and tab.locator(".line .level").count() == 1
    card = tab.locator("#turn-0-2")
    card.hover()
    assert tab.locator(".ruler .bar.active").count() == 1 and "active" in card.get_attribute("class")
    assert tab.locator(".line circle.active").count() == 2, "its tokens and its entropy"


def test_a_real_summary_fills_every_section(show: Open) -> None:
    tab = show("real")
    names = [link.inner_text() for link in tab.locator(".contents a").all()]
    assert names == ["Result", "Pairs", "Flips", "Duration", "Scaling", "Frames", "Stops", "Aiming", "Questions"]
    assert [tab.locator(f"section[id={name.lower()}]").count() for name in names] == [1] * len(names)
    assert tab.locator(".headline p").count() and tab.locator(".arms tbody tr").count() == 2
    assert "NaN" not in tab.inner_text("main") and "undefined" not in tab.inner_text("main")
    assert tab.locator(".plot canvas").count() == 4


def test_a_narrow_window_scrolls_in_one_direction(show: Open) -> None:
    tab = show("made", width=360, height=720, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.locator(".row").first.click()
    parts = tab.locator(".question .inner > *")
    assert is_open(tab) and parts.count() >= 4
    assert parts.evaluate_all("all => Math.max(...all.map((one) => one.getBoundingClientRect().right))") <= 360
    assert tab.evaluate("document.querySelector('.question').scrollWidth") == 360


def test_dark_and_light_follow_the_system_and_are_readable(show: Open) -> None:
    tab = show("made", color_scheme="dark")
    picture = "document.querySelector('.plot canvas').toDataURL()"
    dark, drawn = tab.evaluate(CONTRASTS), tab.evaluate(picture)
    tab.emulate_media(color_scheme="light")
    tab.wait_for_timeout(100)
    light = tab.evaluate(CONTRASTS)
    assert dark[0] < 0.05 and light[0] > 0.9 and min(dark[1:] + light[1:]) >= 4.5
    assert tab.evaluate(picture) != drawn, "charts are drawn again in the other colours"


def test_on_paper_there_is_the_summary_or_the_open_question(show: Open) -> None:
    tab = show("made", color_scheme="dark")
    tab.emulate_media(media="print")
    assert not tab.is_visible(".contents") and not tab.is_visible(".filters") and tab.is_visible(".arms")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.emulate_media(media="screen")
    tab.keyboard.press("j")
    tab.keyboard.press("Enter")
    tab.emulate_media(media="print")
    assert not tab.is_visible(".page") and tab.is_visible(".ruler") and not tab.is_visible(".steps")
    assert tab.pdf().startswith(b"%PDF")


def test_pictures_and_sound_of_a_look(show: Open) -> None:
    tab = show("pictured")
    tab.focus(".list")
    tab.keyboard.press("Enter")
    agent = tab.locator(".episode").first
    images = agent.locator(".thumbs img")
    assert images.count() == 5
    images.evaluate_all("all => Promise.all(all.map((one) => one.decode()))")
    assert images.evaluate_all("all => all.map((one) => [one.naturalWidth, one.naturalHeight])") == [[160, 32]] * 5
    assert (
        agent.locator(".thumbs figcaption").all_inner_texts()[0] == "0:01.0"
        and agent.locator(".wave path").count() == 1
    )
    assert tab.locator(".episode").nth(1).locator(".thumbs").count() == 2, "the passive arm saw both videos"
    assert tab.locator(".ruler").count() == 2
    bare = show("bare")
    bare.keyboard.press("j")
    bare.keyboard.press("Enter")
    assert bare.locator("img, .wave").count() == 0 and bare.locator(".look").count() == 4


def test_a_served_page_grows_with_its_run(show: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "SHORTEST_S", 0.0)
    config, policy = EpisodeConfig(), Playback([answer("A")])
    config_hash = config.hash(policy)

    def end(n: int) -> None:
        with TrajectoryStore(tmp_path, config_hash, Card.of(config, policy)) as store:
            store.save(made_trajectory(n, "agent", 0, True).model_copy(update={"config_hash": config_hash}))

    end(0)
    with view.serve(tmp_path).start() as viewer:
        tab = show(viewer.url)
        assert found(tab) == "1 question"
        end(1)
        tab.locator(".found", has_text="2 questions").wait_for(timeout=15_000)
