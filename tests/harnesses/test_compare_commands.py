"""`apr compare`, `sweep` and `report` as a user runs them, through the real lmms-eval."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("statsmodels")
pytest.importorskip("matplotlib")

from apr_plugin.cli.compare import run_compare, run_report, run_sweep
from apr_plugin.errors import AprError
from apr_plugin.harnesses.lmms_eval import process

pytestmark = pytest.mark.xdist_group("lmms_commands")

NOTHING: dict[str, Any] = {
    "tasks": "", "agents": [], "against": [], "out": None, "limit": None, "include_path": None, "again": False,
    "prices": None, "thumbnails": False,
}  # fmt: skip
FILES = ("report.html", "table.md", "summary.json", "questions.csv", "turns.csv", "pairs.csv", "compare.json")


@pytest.fixture
def warm(run_apr: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Evaluations run in the warm process; the list has their arguments."""
    seen: list[list[str]] = []

    def evaluate(arguments: Sequence[str], log: Path, environment: Any = None) -> int:
        seen.append(list(arguments))
        (ended,) = run_apr(["eval", *arguments])
        log.write_text(ended.text)
        return int(ended.status)

    monkeypatch.setattr(process, "evaluate", evaluate)
    return seen


def test_compare_with_rows_of_others(bench: Any, tmp_path: Path) -> None:
    """One command, in a process of its own."""
    rows = tmp_path / "theirs.jsonl"
    rows.write_text("".join(json.dumps({"task": "bench_mcq", "doc_id": n, "score": 0}) + "\n" for n in range(2)))
    agent = f"policy=scripted,script={bench.script('cli_compared', bench.look(0, 2), bench.answer('A'))}"
    command = [sys.executable, "-m", "apr_plugin", "compare", "--tasks", "bench_mcq", "--agent", agent, "--limit", "2"]
    command += ["--against", f"rows:{rows}", "--against", "published:lvbench", "--include_path", str(bench.tasks)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env=bench.environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agent minus each other arm" in done.stdout and "not tested against" in done.stdout
    assert all((tmp_path / "out" / name).stat().st_size for name in FILES)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["agent", "theirs.jsonl"] and summary["published"]
    assert summary["command"].startswith("apr compare --tasks bench_mcq") and summary["n"] == summary["common"] == 2
    assert (tmp_path / "out" / "cards" / "agent" / "card.yaml").exists()


def test_sweep_and_reports_of_it(bench: Any, warm: list[list[str]], tmp_path: Path) -> None:
    agent = f"policy=scripted,script={bench.script('cli_swept', *[bench.look(0, 2)] * 3, bench.answer('A'))}"
    out, where = tmp_path / "out", str(bench.tasks)
    sweep: dict[str, Any] = {"tasks": "bench_mcq", "agent": agent, "out": out, "limit": 2, "include_path": where}
    assert run_sweep("turns=2,6", again=False, **sweep) == 0
    assert [argument for words in warm for argument in words if "max_turns" in argument] == [
        f"{agent},max_turns=2", f"{agent},max_turns=6",
    ]  # fmt: skip
    found = json.loads((out / "summary.json").read_text())["sweep"]
    assert found["setting"] == "turns" and [point["value"] for point in found["points"]] == [2, 6]
    assert [point["turns"]["value"] for point in found["points"]] == [3, 4]  # two and the forced call; all four
    assert run_sweep("turns=6,2", again=False, **sweep) == 0 and len(warm) == 2  # both were finished
    assert run_sweep("turns=6,2", again=True, **sweep) == 0 and len(warm) == 4

    runs = [out / "turns-2", out / "turns-6"]
    assert run_compare(runs, **NOTHING | {"out": tmp_path / "both"}) == 0
    both = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert [arm["name"] for arm in both["arms"]] == ["turns-2", "turns-6"] and len(warm) == 4
    assert run_report([out], None) == 0  # the comparison's own folder
    assert run_report([runs[0]], None) == 0 and (runs[0] / "report.html").exists()
    for setting, words in (("turns", "write SETTING=VALUE"), ("turns=2", "two or more"), ("turns=2,2", "different")):
        with pytest.raises(AprError, match=words):
            run_sweep(setting, again=False, **sweep)
    with pytest.raises(AprError, match="sets max_turns= already"):
        run_sweep("turns=2,6", again=False, **sweep | {"agent": agent + ",max_turns=3"})


@pytest.mark.parametrize(
    ("runs", "given", "words"),
    [
        ([], {}, "nothing to compare"),
        ([], {"agents": ["policy=needle"]}, "--tasks is missing"),
        (["out"], {"agents": ["policy=needle"]}, "not both"),
        (["nowhere"], {}, "nowhere: no such file or folder"),
        ([], {"agents": ["policy=nedle"], "tasks": "apr_needle"}, "did you mean 'needle'"),
        ([], {"agents": ["policy=needle"], "tasks": "t", "against": ["rows:nowhere"]}, "no such file"),
        ([], {"agents": ["policy=needle"], "tasks": "t", "against": ["published:lvbnch"]}, "did you mean lvbench"),
        ([], {"agents": ["policy=needle"], "tasks": "t", "against": ["passive:seed=x"]}, "passive: model_arg seed"),
    ],
)
def test_wrong_usage_ends_before_anything_runs(
    runs: list[str], given: dict[str, Any], words: str, warm: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(AprError, match=words):
        run_compare([Path(run) for run in runs], **NOTHING | {"out": tmp_path / "out"} | given)
    assert warm == [] and not (tmp_path / "out").exists()
