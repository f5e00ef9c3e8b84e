"""What reaches a terminal, and how commands end if their output can't be written or their input is not a file."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin import terminal
from apr_plugin.loop.trajectory import Trajectory

EVIL = (
    "\x1b[31mEVIL\x1b]52;c;aGk=\x07"
    "\x1b]8;;http://evil\x1b\\L\x9b2J\u202egnp\r\x08\x0e[bold]b[/bold][link=http://evil]l[/link][/nonsense] "
    ":smile:"
)
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
COLOURS = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]*[AK]|\?25[lh])|\r")
CONDITIONS = ("pipe", "colours", "ascii", "closed", "full", "none")
Done = Mapping[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_videos: Mapping[str, Path]) -> Path:
    """Files that somebody else wrote, full of sequences that a terminal would obey."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "v \u00e9\x1b[31mEVIL [bold]x.mp4").write_bytes(shared_videos["sound"].read_bytes())
    turns = [{"type": "get_frames", "start": 0, "end": 2, "num": 2}, {"type": "answer", "content": EVIL}]
    lines = [json.dumps({"observation": EVIL, "think": EVIL, "confidence": 0.5, "action": action}) for action in turns]
    (folder / "script").write_text(
        "\n".join(["no JSON " + EVIL.replace("\r", "").replace("\n", ""), *lines][1:]) + "\n"
    )
    query = {
        "query_id": 0,
        "gt": [[0, 1]],
        "duration_category": "short",
        "query_format": "keyword",
        "query_modality": "vision",
    }
    (folder / "truth.json").write_text(json.dumps([query]))
    (folder / f"p{EVIL[:8]}.json").write_text(json.dumps([{"query_id": 0, "answer": [[0, 1]]}]))
    (folder / "bad.json").write_text(json.dumps([query | {"query_modality": EVIL}]))
    os.mkfifo(folder / "pipe")
    (folder / "runs").mkdir()
    os.mkfifo(folder / "runs" / "a.jsonl")
    return folder


def _commands(made: Path | None) -> dict[str, list[str]]:
    folder = made or Path("/nowhere")
    video, predictions = (str(next(folder.glob(name), name)) for name in ("v *.mp4", "p*.json"))
    ask = [
        "ask",
        video,
        f"Which {EVIL}?",
        "-o",
        f"A. {EVIL}",
        "-o",
        "B. b",
        "-m",
        f"policy=scripted,script={folder / 'script'}",
    ]
    return {
        "show": ["show", str(folder / "evil.jsonl")],
        "show table": ["show", str(folder / "runs")],
        "probe": ["probe", video],
        "doctor": ["doctor", "--fast"],
        "published": ["published", "lvbench"],
        "published json": ["published", "lvbench", "--json"],
        "score": ["score", "vue_tr", "--ground-truth", str(folder / "truth.json"), "--predictions", predictions],
        "score wrong": ["score", "vue_tr", "--ground-truth", str(folder / "bad.json"), "--predictions", predictions],
        "tasks list": ["tasks", "list"],
        "tasks path": ["tasks", "--path"],
        "tasks check": ["tasks", "check", f"apr_{EVIL}"],
        "ask": ask,
        "help": ["--help"],
        "eval help": ["eval"],
        "wrong usage": ["probe", f"a{EVIL}", f"b{EVIL}"],
        "no such option": ["show", f"--x{EVIL}"],
        "wrong argument": [*ask[:-1], f"policy={EVIL}"],
    }


NAMES = tuple(_commands(None))
WRONG = {"score wrong": 1, "tasks check": 1, "wrong usage": 2, "no such option": 2, "wrong argument": 1}
"""Commands that end with an error, and their status.

They print nothing on standard output, so its state does not matter.
"""

NO_FILE = {
    "show": ["show", "PIPE"],
    "show a device": ["show", "/dev/zero"],
    "probe": ["probe", "PIPE"],
    "probe a device": ["probe", "/dev/zero"],
    "probe a folder": ["probe", "FOLDER"],
    "ask, script": ["ask", "VIDEO", "q", "-m", "policy=scripted,script=PIPE"],
    "ask, endless script": ["ask", "VIDEO", "q", "-m", "policy=scripted,script=/dev/zero"],
    "ask, prompt": ["ask", "VIDEO", "q", "-m", "policy=guess,system_prompt=PIPE"],
    "ask, save": ["ask", "VIDEO", "q", "-m", "policy=guess", "--save", "PIPE"],
    "score, truth": ["score", "vue_tr", "--ground-truth", "PIPE", "--predictions", "PIPE"],
    "eval, config": ["eval", "--config", "PIPE"],
    "eval, config=": ["eval", "--config=PIPE"],
    "tasks check, videos": ["tasks", "check", "apr_lvbench", "--videos", "PIPE"],
    "needle make": ["needle", "make", "--out", "PIPE"],
}


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[tuple[str, str], Done]:
    """The result of every command under every condition, by command and condition."""
    video = str(next(folder.glob("v *.mp4")))
    saved = _run(
        folder,
        [],
        [{"arguments": [*_commands(folder)["ask"], "--save", str(folder / "evil.jsonl")], "condition": "pipe"}],
    )
    assert saved[0]["status"] == 0, saved
    (trajectory,) = Trajectory.read(folder / "evil.jsonl")
    question = trajectory.question.model_copy(update={"task": EVIL, "doc_id": EVIL, "split": EVIL})
    trajectory = trajectory.model_copy(
        update={"question": question, "stop_detail": EVIL, "arm": EVIL, "config_hash": EVIL}
    )
    (folder / "evil.jsonl").write_text(trajectory.to_json() + "\n")
    (folder / "runs" / "b.jsonl").write_text(2 * (trajectory.to_json() + "\n"))
    cases = {
        (name, how): {"arguments": words, "condition": how}
        for name, words in _commands(folder).items()
        for how in CONDITIONS
    }
    places = {"PIPE": str(folder / "pipe"), "FOLDER": str(folder), "VIDEO": video}
    for name, words in NO_FILE.items():
        cases["no file", name] = {
            "arguments": [re.sub("PIPE|FOLDER|VIDEO", lambda m: places[m[0]], word) for word in words],
            "condition": "pipe",
        }
    return dict(zip(cases, _run(folder, list(_commands(folder).values()), list(cases.values())), strict=True))


def _run(folder: Path, warm: list[list[str]], cases: list[dict[str, Any]]) -> list[Done]:
    environment = {
        "COLUMNS": "150",
        "APR_DATA": str(folder / EVIL[:12]),
        "APR_HOME": str(folder / "home [bold]x"),
        "APR_NEEDLE_DIR": "",
    }
    order = json.dumps({"environment": environment, "warm": warm, "cases": cases})
    program = Path(__file__).with_name("conditions.py")
    done = subprocess.run(
        [sys.executable, str(program)], input=order, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [
        {key: value.encode("latin-1").decode() if isinstance(value, str) else value for key, value in one.items()}
        for one in json.loads(done.stdout)
    ]


@pytest.mark.parametrize("how", CONDITIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_command_under_every_condition(name: str, how: str, done: dict[tuple[str, str], Done]) -> None:
    one = done[name, how]
    expected = WRONG.get(name, {"closed": 141, "full": 1}.get(how, 0))
    assert one["status"] == expected, one
    text = one["out"] + one["err"]
    assert "Traceback" not in text and "Exception ignored" not in text
    assert not CONTROLS.search(COLOURS.sub("", text) if how == "colours" else text), ascii(text)
    if name in WRONG:
        assert (
            one["err"].startswith("\x1b[1;31merror: " if how == "colours" else "error: ")
            and one["err"].count("\n") == 1
        ), one["err"]
    elif how == "full":
        assert one["err"] == "error: standard output: No space left on device\n"
    elif how == "closed":
        assert one["err"] == ""
    if how == "ascii":
        assert text.isascii()
    if how == "pipe" and name in ("show", "show table", "ask"):
        assert "[bold]b[/bold][link=http://evil]l[/link][/nonsense] :smile:"[
            : 150 if name != "show table" else 6
        ] in one["out"].replace("\n", "")


def test_output_for_programs_is_exact(done: dict[tuple[str, str], Done]) -> None:
    for how in ("pipe", "ascii"):
        rows = json.loads(done["published json", how]["out"])
        assert [row["benchmark"] for row in rows] == ["lvbench"] * len(rows) and rows
        assert Path(done["tasks path", how]["out"].removesuffix("\n")).is_dir()


@pytest.mark.parametrize("name", NO_FILE)
def test_a_pipe_or_a_device_in_place_of_a_file(name: str, done: dict[tuple[str, str], Done]) -> None:
    """A pipe or a device is refused at once, because opening it could block for ever, and reading it may never end."""
    one = done["no file", name]
    assert one["status"] in (1, 2) and one["err"].count("\n") == 1 and "Traceback" not in one["err"], one


def test_a_real_ascii_locale(folder: Path, done: dict[tuple[str, str], Done]) -> None:
    """In the C locale, Python reads names and arguments differently too."""
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-m", "apr_plugin.cli", "probe", str(next(folder.glob("v *.mp4")))]
    one = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
    assert one.returncode == 0 and one.stdout.isascii() and b"\x1b" not in one.stdout, one.stderr


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b[]\x07\x9b\u202e\r\n\t\ud800;m0"))))
def test_plain_text_holds_nothing_to_obey(text: str) -> None:
    shown = terminal.plain(text)
    assert not CONTROLS.search(shown) and shown.encode().decode() == shown
    assert len(shown) == len(text) and all(a in (b, "�", "?") for a, b in zip(shown, text, strict=True))
    assert not {unicodedata.category(char) for char in shown if char not in "\n\t"} & {"Cc", "Cs"}
    line = terminal.one_line(text)
    assert "\n" not in line and "\t" not in line and len(line) <= terminal.LONGEST


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.just("x" * 5000), st.just(10**5000)))
def test_quoted_values_are_short(value: object) -> None:
    assert len(terminal.quoted(value)) < 1700 and not CONTROLS.search(terminal.plain(terminal.quoted(value)))


def test_a_message_keeps_its_ends() -> None:
    name = "x" * 5000
    line = terminal.one_line(f"/videos/{name}.mp4: cannot open: no such file\nat all")
    assert (
        line.startswith("/videos/xxx")
        and line.endswith("xxx.mp4: cannot open: no such file at all")
        and len(line) < 500
    )


def test_a_console_takes_every_string_for_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also cells of tables, titles and rules; and no text becomes a link or gets its own colour."""
    from rich.table import Table

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    out = io.StringIO()
    console = terminal.console()
    console.file = out
    table = Table(EVIL, title=EVIL, width=280)
    table.add_row(EVIL)
    for printed in (EVIL, table):
        console.print(printed)
    console.rule(EVIL)
    text = COLOURS.sub("", out.getvalue())
    assert not CONTROLS.search(text), ascii(text)
    assert text.count("[link=http://evil]l[/link][/nonsense] :smile:") == 5


def test_what_libraries_log_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    loguru = pytest.importorskip("loguru")
    factory, core = logging.getLogRecordFactory(), loguru.logger._core.patcher
    stream = io.StringIO()
    handler, sink = (
        logging.StreamHandler(stream),
        loguru.logger.add(stream, format="{message}", backtrace=True, diagnose=True),
    )
    logger = logging.getLogger("evil")
    logger.addHandler(handler)
    try:
        terminal.guard_logs()
        logger.warning("said %s", EVIL)
        loguru.logger.warning("said {}", EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.exception("raised")
            loguru.logger.exception("raised")
    finally:
        logging.setLogRecordFactory(factory)
        loguru.logger.configure(patcher=core)
        logger.removeHandler(handler)
        loguru.logger.remove(sink)
    text = stream.getvalue()
    assert text.count("EVIL") == 4 + text.count("raise ValueError(EVIL)") and text.count("Traceback") == 2
    assert not CONTROLS.search(text), ascii(text)


def test_what_a_library_prints_passes_the_streams_without_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours and progress bars pass; a title, a link or the clipboard does not.

    A character that is not in the encoding is replaced.
    """
    file = (tmp_path / "out").open("w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", file)
    with terminal.guarded_streams():
        print(
            "\x1b[1;31mred\x1b[0m \r bar \x1b[A\x1b[2K",
            "\x1b]0;title\x07",
            "\x1b]8;;http://x\x1b\\",
            "\x9b5n",
            "\x1bc",
            "\x1b[5n",
            "é \ud800 –",  # noqa: RUF001
        )
        sys.stdout.writelines(["a\x07", "b"])
    assert sys.stdout is file and not file.closed
    file.close()
    text = (tmp_path / "out").read_bytes().decode()
    assert text.startswith("\x1b[1;31mred\x1b[0m \r bar \x1b[A\x1b[2K ?]0;title?")
    assert "\x1b]" not in text and "\x1bc" not in text and "\x1b[5n" not in text and "\x07" not in text
