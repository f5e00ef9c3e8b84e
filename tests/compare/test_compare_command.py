"""`apr compare` and `apr report` where nothing has to be run: what is refused first, and what a report keeps."""

from __future__ import annotations

import base64
import json
import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from making import answered, arm_of, look, store_run, trajectory

from apr_plugin.cli import compare
from apr_plugin.cli.compare import run_compare, run_report, run_sweep
from apr_plugin.compare.joined import arm_of_run, join
from apr_plugin.compare.running import Plan, write_plan
from apr_plugin.compare.specs import read_specs
from apr_plugin.compare.summary import summarise
from apr_plugin.errors import AprError
from apr_plugin.report.write import write_all

for module in ("lmms_eval", "scipy", "statsmodels", "matplotlib", "pandas"):
    pytest.importorskip(module)


KEPT = (".json", ".md", ".html", ".csv", ".yaml")
"""Files of a report that hold words."""


def _compare(folder: Path, against: str = "blind", prices: Path | None = None) -> int:
    return run_compare(
        [], tasks="apr_needle", agents=["policy=needle"], against=[against], out=folder / "out", limit=None,
        include_path=None, again=False, prices=prices, thumbnails=False,
    )  # fmt: skip


def test_mistakes_are_found_before_an_arm_runs(tmp_path: Path) -> None:
    torn, prices, empty = tmp_path / "rows.jsonl", tmp_path / "prices.json", tmp_path / "empty"
    torn.write_text('{"task": "apr_needle_glyph", "doc_')
    prices.write_text('{"needle": {"input": -1}}')
    empty.mkdir()
    for against, file, words in (
        (f"rows:{torn}", None, "line 1: no row"), (f"run:{empty}", None, "empty"), ("blind", prices, "input=-1"),
    ):  # fmt: skip
        with pytest.raises(AprError, match=words):
            _compare(tmp_path, against, file)
    assert not (tmp_path / "out").exists()
    with pytest.raises(AprError, match="finished runs stay as they are"):
        run_compare(
            [tmp_path], tasks="", agents=[], against=[], out=None, limit=3, include_path=None, again=False,
            prices=None, thumbnails=False,
        )  # fmt: skip


def test_a_report_that_is_written_again_says_the_same(tmp_path: Path) -> None:
    for name, right in (("few", 1.0), ("many", 0.0)):
        made = [trajectory(n, [look(0, 50), answered("A")], "A") for n in range(3)]
        store_run(tmp_path / name, made, {str(n): right for n in range(3)}, seed=len(name))
    arms = [f"run:{tmp_path / name},label=turns={name}" for name in ("few", "many")]
    sweep = {"setting": "turns", "values": {"turns=few": 6.0, "turns=many": 12.0, "turns=unfinished": 22.0}}
    out = tmp_path / "out"
    write_plan(read_specs([], [*arms, "published:lvbench"]), Plan("apr_made", out, title="A title", sweep=sweep))
    assert run_report([out], None) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["title"] == "A title" and summary["published"][0]["benchmark"] == "lvbench"
    assert [point["value"] for point in summary["sweep"]["points"]] == [6.0, 12.0]


def test_values_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(compare, "compare_specs", lambda *_, sweep, **__: asked.append(sweep["values"]) or 0)
    sweep = partial(run_sweep, tasks="t", agent="policy=guess", out=None, limit=None, include_path=None, again=False)
    assert sweep("turns=6,12") == 0 and sweep("temperature=0.5,1.0") == 0 and sweep("stop=nan,x,7") == 0
    assert [list(map(repr, values.values())) for values in asked] == [
        ["6", "12"], ["0.5", "1"], ["'nan'", "'x'", "7"],
    ]  # fmt: skip


def test_no_key_reaches_a_report(tmp_path: Path) -> None:
    made = [trajectory(n, [look(0, 50), answered("A")], "A") for n in range(3)]
    run = store_run(tmp_path / "run", made, {str(n): 1.0 for n in range(3)})
    arm, other = arm_of_run("ours", run), arm_of("secret", dict.fromkeys(range(3), 1.0), kind="lmms")
    arm.about |= {
        "model_args": "api_key=KEY-1234,model=m",
        "command": ["apr", "eval", "--model_args", "token=KEY-1234"],
    }
    other.about |= {"model_args": "base_url=https://me:KEY-1234@host/v1"}
    comparison = join([arm, other])
    summary = summarise(comparison, command="apr compare --against lmms:openai,api_key=KEY-1234,model=m")
    write_all(comparison, summary, tmp_path / "out")
    texts = {file.name: file.read_text() for file in (tmp_path / "out").rglob("*") if file.suffix in KEPT}
    assert not [name for name, text in texts.items() if "KEY-1234" in text]
    page = [unpack(block) for block in re.findall(r'id="(?:index|q\d+)">([^<]+)<', texts["report.html"])]
    assert len(page) == 4 and "KEY-1234" not in json.dumps(page)
    for told in (texts["summary.json"], texts["table.md"], json.dumps(page[0])):
        assert "api_key=(left out),model=m" in told
    assert "left out" in next(line for line in texts["card.yaml"].splitlines() if line.startswith("called:"))


def unpack(block: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(block), -15))
