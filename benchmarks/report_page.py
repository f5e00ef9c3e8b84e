"""The report page with 2,000 questions in a real browser: its size, and how quick it is.

    python -m benchmarks.report_page [--questions 2000] [--words 100] [--json FILE]

Three arms answer made questions (`tests/report/report_making.py`): two agents, whose notes have about 140 words a turn,
and 64 frames at once. Targets: a first
view under 2 s, a filter under 0.2 s, a question under 0.3 s, a file under 30 MB. Headless Chromium opens the file from
disk; each time is the median of several, until the frame after the change is painted. Needs Chromium and `playwright`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).resolve().parents[1] / "tests" / name) for name in ("", "report")]

from report_making import CHROMIUM_OPTIONS, chromium, made_comparison, made_summary

from apr_plugin.report.page import write_page

PAINTED = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"

TARGETS = {"first_view_s": 2.0, "filter_s": 0.2, "question_s": 0.3, "file_mb": 30.0}


def measure(page: Path, browser: Any, n: int) -> dict[str, float]:
    first: list[float] = []
    filters: list[float] = []
    questions: list[float] = []
    for _ in range(5):
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        one_visit(tab, page, first, filters, questions)
        tab.close()
    middle = statistics.median
    return {
        "questions": n,
        "file_mb": round(page.stat().st_size / 1e6, 2),
        "first_view_s": round(middle(first), 3),
        "filter_s": round(middle(filters), 3),
        "filter_worst_s": round(max(filters), 3),
        "question_s": round(middle(questions), 3),
        "question_worst_s": round(max(questions), 3),
    }


def one_visit(tab: Any, page: Path, first: list[float], filters: list[float], questions: list[float]) -> None:
    began = time.perf_counter()
    tab.goto(f"file://{page}", wait_until="commit")
    tab.wait_for_selector(".row")
    tab.evaluate(PAINTED)
    first.append(time.perf_counter() - began)
    tab.wait_for_load_state("load")
    for number in range(3):
        for words in (f"question {number}", "green door", ""):
            filters.append(timed(tab, lambda words=words: tab.fill("input[type=search]", words)))
        filters.append(timed(tab, lambda: tab.locator(".flag").first.click()))
        filters.append(timed(tab, lambda: tab.click(".clear")))
    tab.focus(".list")
    tab.keyboard.press("End")
    for _ in range(6):
        questions.append(timed(tab, lambda: tab.keyboard.press("Enter"), ".ruler .bar"))
        tab.keyboard.press("Escape")
        tab.wait_for_selector(".list:focus")
        tab.keyboard.press("k")


def timed(tab: Any, act: Any, selector: str | None = None) -> float:
    began = time.perf_counter()
    act()
    if selector is not None:
        tab.wait_for_selector(selector)
    tab.evaluate(PAINTED)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--words", type=int, default=100, help="random words in each note of an agent")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        print(
            "making the runs: each line of a trajectory is written to the disk, which takes a minute or two", flush=True
        )
        comparison = made_comparison(Path(folder), options.questions, words=options.words)
        began = time.perf_counter()
        page = write_page(comparison, made_summary(comparison), Path(folder) / "page.html")
        written = time.perf_counter() - began
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium(), args=list(CHROMIUM_OPTIONS))
            found = measure(page, browser, options.questions) | {"write_s": round(written, 2)}
            browser.close()
    for name, value in found.items():
        target = f"  (target: under {TARGETS[name]:g})" if name in TARGETS else ""
        print(f"{name:18} {value:10}{target}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
