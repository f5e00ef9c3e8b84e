"""`apr eval` and plain `lmms-eval` from a user's view.

Bad input, kills, two runs at once, a full disk, several ranks.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import apr_plugin.tasks
from apr_plugin.loop.trajectory import StopReason, Trajectory

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.xdist_group("lmms_commands")  # one process has lmms-eval loaded

RunApr = Callable[..., list[Any]]


def _saved(folder: Path) -> list[Trajectory]:
    return [
        trajectory
        for path in sorted(folder.rglob("*.jsonl"))
        if "_samples_" not in path.name
        for trajectory in Trajectory.iterate(path)
    ]


def _writer(folder: Path) -> int:
    """The process that is writing trajectories there; 0 if there is none."""
    return next(
        (int(words[1]) for lock in folder.glob("*/.lock.rank0") if len(words := lock.read_text().split()) == 2), 0
    )


def _answered(folder: Path) -> int:
    return sum(not trajectory.stop_reason.failed for trajectory in _saved(folder))


def _lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl") if "_samples_" not in path.name)


@pytest.fixture(scope="module")
def answers_a(bench: Any) -> Path:
    path: Path = bench.script("answers_a", bench.look(0, 2, 3), bench.answer("A"))
    return path


def test_bad_input_gets_one_line_and_a_way_out(bench: Any, run_apr: RunApr, answers_a: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ours = ["eval", "--include_path", bench.tasks]
    mcq = [*ours, "--tasks", "bench_mcq", "--limit", "1"]
    out = ["--output_path", tmp_path / "out"]
    good = ["--model_args", f"policy=scripted,script={answers_a}"]
    cases: list[tuple[list[Any], int, str]] = [
        ([*ours, "--tasks", "bench_mqc", *good, *out], 1, "there is no task 'bench_mqc' (did you mean 'bench_mcq'?)"),
        ([*ours, *good, *out], 2, "--tasks is missing"),
        (
            ["eval", "--include_path", tmp_path / "gone", "--tasks", "bench_mcq", *good],
            1,
            f"{tmp_path / 'gone'}: no such folder",
        ),
        ([*mcq, *out], 2, "model_args need policy=NAME; the policies are"),
        ([*mcq, *out, "--model_args", "policy=scriptd"], 2, "there is no policy 'scriptd' (did you mean 'scripted'?)"),
        (
            [*mcq, *out, "--model_args", "policy=guess,max_turn=3"],
            2,
            "unknown model_arg 'max_turn' (did you mean 'max_turns'?)",
        ),
        (
            [*mcq, *out, "--model_args", f"{good[1]},arm=oracle"],
            2,
            "arm=oracle: task 'bench_mcq' does not say where the evidence is",
        ),
        (
            [*mcq, *out, "--model_args", "policy=guess,concurrency=0"],
            2,
            "concurrency=0: it must be a whole number from 1 to 10,000",
        ),
        (
            [*mcq, *good, "--output_path", tmp_path / "file" / "out"],
            1,
            f"--output_path {tmp_path / 'file' / 'out'}: cannot write there",
        ),
        ([*mcq, "--model_args", f"{good[1]},trajectories={tmp_path / 'file' / 't'}"], 1, f"{tmp_path / 'file' / 't'}"),
        ([*mcq, *out, "--model_args", "policy"], 2, "every part must be key=value"),
        ([*mcq, *good, "--model", "aprr"], 1, "aprr"),
        ([*mcq, *good, "--log_samples"], 1, "--output_path"),
    ]
    *ended, everything = run_apr(*(case[0] for case in cases), [*ours, "--tasks", "list"])
    for (_, status, words), end in zip(cases, ended, strict=True):
        assert end.status == status, end.text
        assert "Traceback" not in end.text
        errors = [line for line in end.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0], end.text
    assert everything.status == 0 and {"bench_mcq", "videomme", "apr_needle_glyph"} <= set(everything.out.split())


def test_bad_videos_among_good_ones(bench: Any, run_apr: RunApr, answers_a: Path, tmp_path: Path) -> None:
    command = [
        "eval",
        "--include_path",
        bench.tasks,
        "--tasks",
        "bench_bad",
        "--output_path",
        tmp_path,
        "--log_samples",
    ]
    command += ["--model_args", f"policy=scripted,script={answers_a}"]
    (done,) = run_apr(command)
    assert done.status == 3 and "Traceback" not in done.text
    stops = {t.question.doc_id: t.stop_reason for t in _saved(tmp_path)}
    unreadable = [doc for doc, reason in stops.items() if reason is StopReason.MEDIA_UNREADABLE]
    assert sorted(unreadable) == ["1", "3", "4", "5"], stops
    assert stops["0"] is stops["2"] is stops["7"] is StopReason.ANSWERED
    (summary,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert summary.startswith(
        "error: 4 questions could not be answered and count as wrong; the first: bench_bad doc 1: media_unreadable: "
    )
    assert str(bench.videos["missing"]) in summary
    (samples,) = tmp_path.rglob("*_samples_bench_bad.jsonl")
    scores = {json.loads(line)["doc_id"]: json.loads(line)["score"] for line in samples.read_text().splitlines()}
    assert len(scores) == 8 and all(scores[int(doc)] == 0 for doc in unreadable)


def test_plain_lmms_eval_ends_with_3_for_unanswered_questions(
    bench: Any, start_apr: Callable[..., Any], answers_a: Path, tmp_path: Path
) -> None:
    """lmms-eval's own command line returns 0 in every case.

    The status is set when the process ends, after everything that lmms-eval has to do.
    """
    command = [
        "lmms-eval",
        "--model",
        "apr",
        "--include_path",
        bench.tasks,
        "--tasks",
        "bench_bad,bench_mcq",
        "--output_path",
        tmp_path,
    ]
    command += ["--model_args", f"policy=scripted,script={answers_a},trajectories={tmp_path / 't'}"]
    (done,) = start_apr(command).end(status=3)
    assert done.status == 0 and "Traceback" not in done.text, "what lmms-eval itself returned"
    assert "4 of 14 questions were NOT answered" in done.text
    assert "|bench_bad|" in (table := done.out.replace(" ", "")) and "|bench_mcq|" in table, (
        "the table is printed whole"
    )
    assert len(list(tmp_path.rglob("*_results.json"))) == 1

    (again,) = start_apr([*command[:6], "bench_mcq", *command[7:]]).end(status=0)
    assert "6 resumed" in again.text


def _strange(bench: Any) -> str:
    """A task whose second and third row name no possible file, and whose fourth row is read by code that fails."""
    names = [bench.videos["sound"], "a<NUL>b.mp4", "<LONE>.mp4", "<FAULT>", "x" * 5000, bench.videos["sound"]]
    docs = [
        {"question": f"Say A, number {n}.\nA. red\nB. blue", "answer": "A", "video": str(name)}
        for n, name in enumerate(names)
    ]
    return str(bench.task("bench_strange", docs, visual="strange"))


def test_a_row_that_nobody_can_handle_costs_its_own_question(
    bench: Any, start_apr: Callable[..., Any], answers_a: Path, tmp_path: Path
) -> None:
    """One NUL byte in a file's name used to end the run and each resumed run, and plain lmms-eval reported success."""
    command = [
        "lmms-eval",
        "--model",
        "apr",
        "--include_path",
        bench.tasks,
        "--tasks",
        _strange(bench),
        "--output_path",
        tmp_path,
    ]
    command += ["--model_args", f"policy=scripted,script={answers_a},trajectories={tmp_path / 't'}"]
    for resumed in (False, True):
        (done,) = start_apr(command).end(status=3)
        assert done.status == 0 and "Traceback" not in done.text, done.text
        assert "4 of 6 questions were NOT answered" in done.text and ("2 resumed" in done.text) == resumed
        stops = {t.question.doc_id: t for t in _saved(tmp_path / "t")}
        assert [doc for doc, t in sorted(stops.items()) if t.stop_reason is StopReason.ANSWERED] == ["0", "5"]
        assert all(
            t.stop_reason is StopReason.MEDIA_UNREADABLE and t.stop_detail for doc, t in stops.items() if doc in "1234"
        )
        assert "this row is cursed" in stops["3"].stop_detail
    results = [
        json.loads(path.read_text())["results"]["bench_strange"]["score,none"]
        for path in tmp_path.rglob("*_results.json")
    ]
    assert results == pytest.approx([2 / 6] * len(results)) and results


@pytest.mark.parametrize("command", ["apr", "lmms-eval"])
def test_a_row_that_cannot_be_read_costs_its_own_question(
    command: str, start_apr: Callable[..., Any], tmp_path: Path
) -> None:
    """One number beyond 64 bits, or one text among numbers, used to end the run before the model was asked."""
    from apr_plugin.tasks.needle.make import DOCS_NAME, NeedleSpec, make_needle

    spec = NeedleSpec(buckets=("1m",), videos_per_bucket=1, fps=5)
    out, told = tmp_path / "out", make_needle(tmp_path / "needle", spec, workers=1, progress=False) / DOCS_NAME
    docs = [json.loads(line) for line in told.read_text().splitlines() if '"when"' in line]
    spoil: list[Any] = [
        {**docs[0], "duration_s": 10**30}, {**docs[0], "answer_spans": "soon"},
        {**docs[0], "answer_spans": [[0, float("nan")]]},
        {**docs[0], "video": ["a"]}, {**docs[0], "seed": True, "id": [1]}, {"kind": "when"},
        {**docs[0], "more": {"a": [1, "b"]}},
    ]  # fmt: skip
    told.write_text("".join(json.dumps(doc) + "\n" for doc in (*spoil, *docs)) + "{")
    start = ["eval"] if command == "apr" else ["lmms-eval", "--model", "apr"]
    start += [
        "--include_path",
        str(next(iter(apr_plugin.tasks.__path__))),
        "--tasks",
        "apr_needle_when",
        "--output_path",
        str(out),
    ]
    start += ["--model_args", f"policy=needle,trajectories={out / 't'}"]
    for resumed in (False, True):
        (done,) = start_apr(start, environment={"APR_NEEDLE_DIR": str(told.parent)}).end(
            status=0 if command == "apr" else 3
        )
        assert done.status == (3 if command == "apr" else 0) and "Traceback" not in done.text, done.text
        assert f"{len(spoil)} of {len(spoil) + len(docs)} questions were NOT answered" in done.text
        assert (f"{len(docs)} resumed" in done.text) == resumed
    stops = {int(t.question.doc_id): t for t in _saved(out / "t")}
    assert [t.stop_reason for _, t in sorted(stops.items())] == [StopReason.MEDIA_UNREADABLE] * len(spoil) + [
        StopReason.ANSWERED
    ] * len(docs)
    assert (
        all("can't be read: " in stops[n].stop_detail for n in range(len(spoil)))
        and "at most 64 are allowed" in stops[0].stop_detail
    )
    results = [
        json.loads(path.read_text())["results"]["apr_needle_when"]["score,none"] for path in out.rglob("*_results.json")
    ]
    assert len(results) == 2 and all(
        0.8 * len(docs) < found * (len(spoil) + len(docs)) <= len(docs) for found in results
    ), "pictures are 0.2 s apart"


def test_a_scorer_that_fails_ends_in_a_status(
    bench: Any, start_apr: Callable[..., Any], answers_a: Path, tmp_path: Path
) -> None:
    """lmms-eval's command line catches the error, logs it and returns 0."""
    yaml = (bench.tasks / "bench_text.yaml").read_text().replace("task: bench_text", "task: bench_unscored")
    (bench.tasks / "bench_unscored.yaml").write_text(
        yaml.replace("aggregation: mean", "aggregation: !function bench_utils.text")
    )
    command = ["lmms-eval", "--model", "apr", "--include_path", bench.tasks, "--tasks", "bench_unscored"]
    (done,) = start_apr([*command, "--model_args", f"policy=scripted,script={answers_a},trajectories={tmp_path}"]).end(
        status=1
    )
    assert done.status == 0 and "Error during evaluation" in done.out
    assert len(_saved(tmp_path)) == 1, "what was answered is kept"


def test_ctrl_c_stops_in_any_phase(bench: Any, start_apr: Callable[..., Any], tmp_path: Path) -> None:
    """A phase is recognized by the file that it writes; while requests are read, a task's code swallows Ctrl-C."""
    script = bench.script("slowly", *(bench.look(n / 10, n / 10 + 4, 40) for n in range(12)), bench.answer("A"))
    runs = {}
    for number, (command, phase) in enumerate(
        (("apr", "building"), ("apr", "scoring"), ("lmms-eval", "running"), ("lmms-eval", "scoring"))
    ):
        folder = tmp_path / str(number) / phase
        folder.mkdir(parents=True)
        doc = {"answer": "A", "video": str(bench.videos["sound"]), "marks": str(folder)}
        docs = [
            {**doc, "question": f"Say A, number {n}.\nA. red\nB. blue"} for n in range(40 if phase == "running" else 2)
        ]
        task = bench.task(f"bench_phase_{number}", docs, visual="deaf")
        args = f"policy=scripted,script={script},turns=14,concurrency=2,trajectories={folder / 't'}"
        start = ["eval"] if command == "apr" else ["lmms-eval", "--model", "apr"]
        runs[folder] = start_apr(
            [*start, "--include_path", bench.tasks, "--tasks", task, "--model_args", args, "--output_path", folder]
        )
    waiting = dict(runs)
    while waiting:
        for folder, run in list(waiting.items()):
            assert not run.ended, folder
            if (_lines(folder) >= 3) if folder.name == "running" else (folder / folder.name).exists():
                os.kill(run.pid, signal.SIGINT)
                del waiting[folder]
        time.sleep(0.02)
    for folder, run in runs.items():
        run.wait_for(lambda run=run: run.ended, running=False)
        assert run.status == 130, folder
        assert not list(folder.rglob("*_results.json"))
        kept = [t for t in _saved(folder) if not t.stop_reason.failed]
        assert len(kept) == {"building": 0, "scoring": 2}.get(folder.name, len(kept)) and len(kept) < 40


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
        != 0
    ):
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=False)


def test_a_full_disk(bench: Any, run_apr: RunApr, answers_a: Path, tiny_disk: Path) -> None:
    command = ["eval", "--include_path", bench.tasks, "--tasks", "bench_many"]
    command += ["--model_args", f"policy=scripted,script={answers_a},concurrency=2,trajectories={tiny_disk}"]
    elsewhere = [
        "--limit",
        "1",
        "--output_path",
        tiny_disk,
        "--model_args",
        f"policy=guess,trajectories={tiny_disk.parent}",
    ]
    full, count, _, results, _, again, recount = run_apr(
        command,
        ["sh", f"grep -vc cancelled {tiny_disk}/*/*.jsonl; tail -c 1 {tiny_disk}/*/*.jsonl | od -c"],
        ["sh", f"cat /dev/zero > {tiny_disk}/rest"],
        [*command[:5], *elsewhere],
        ["sh", f"mount -o remount,size=4m {tiny_disk}"],
        command,
        ["sh", f"cat {tiny_disk}/*/*.jsonl | wc -l"],
    )
    assert full.status == 1 and "Traceback" not in full.text
    (error,) = [line for line in full.err.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in error and str(tiny_disk) in error and "same command" in error
    assert results.status == 1 and f"--output_path {tiny_disk}: lmms-eval could not write its results" in results.err
    kept = int(count.out.split()[0])
    assert 0 < kept < 40 and "\\n" in count.out, "finished questions are kept, and no line is torn"
    assert again.status == 0 and f"{kept} resumed" in again.err
    assert int(recount.out) == 40
    keys = Counter(t.question.key for t in _saved(tiny_disk))
    assert len(keys) == 40 and set(keys.values()) == {1}


def _run(command: Sequence[str | Path], environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """Run a command in its own Python, without anything loaded: its status and output."""
    words = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(
        words,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=550,
        check=False,
    )
    return done.returncode, done.stdout


def test_options_that_cannot_apply_on_command_lines(bench: Any, run_apr: RunApr, tmp_path: Path) -> None:
    """`test_lmms_options.py` has what each of them says."""
    plain = ["lmms-eval", "--model", "apr", "--include_path", bench.tasks, "--tasks", "bench_text"]
    ours = ["eval", "--include_path", bench.tasks, "--tasks", "bench_text"]
    guess = ["--model_args", f"policy=guess,trajectories={tmp_path / 't'}"]
    cases: list[tuple[Sequence[Any], str]] = [
        ([*ours, *guess, "--num_fewshot", "2"], "--num_fewshot 2 can't apply"),
        ([*ours, *guess, "--apply_chat_template"], "--apply_chat_template can't apply"),
        ([*ours, *guess, "--force_simple"], "--force_simple can't apply"),
        ([*ours, *guess, "--limit", "nan"], "--limit nan"),
        ([*ours, *guess, "--tasks", "bench_mcq"], "--tasks is given 2 times"),
        ([*ours, *guess[:1], guess[1] + ",policy=needle"], "'policy' is given 2 times"),
        ([*plain, *guess, "--num_fewshot", "2"], "--num_fewshot 2 can't apply"),
        ([*plain, *guess, "--apply_chat_template"], "--apply_chat_template can't apply"),
        ([*plain, *guess[:1], guess[1] + ",seed=1,seed=2"], "'seed' is given 2 times: '1' and '2'"),
        ([*plain, "--model_args", "policy=\x1b[31mEVIL" + "x" * 5000], "there is no policy '\\x1b[31mEVILxxx"),
    ]
    out = tmp_path / "out"
    settings = ["--output_path", out, "--gen_kwargs", "num_beams=4,temperature=0.7"]
    *ended, done, plainly = run_apr(
        *(case for case, _ in cases), [*ours, *guess, *settings], [*plain, *guess, *settings]
    )
    for (case, words), end in zip(cases, ended, strict=True):
        errors = [line for line in end.err.splitlines() if line.startswith("error: ")]
        assert end.status == 2 and len(errors) == 1 and words in errors[0] and len(errors[0]) < 1500, (case, end.text)
        assert "Traceback" not in end.text and "\x1b[31mEVIL" not in end.text
    for end in (done, plainly):
        assert (
            end.status == 0
            and end.err.count("--gen_kwargs num_beams=4,temperature=0.7: model apr uses none of it") == 1
        ), end.text
        assert "gen_kwargs: ()" in end.out
    written = [path.read_text() for path in out.rglob("*_results.json")]
    assert written and not any("num_beams" in text for text in written)


def test_two_at_once_ctrl_c_and_kill(bench: Any, start_apr: Callable[..., Any], tmp_path: Path) -> None:
    """One run of 40 questions: nothing is asked twice.

    A second run is refused in the meantime, Ctrl-C and `kill -9` stop it, and plain `lmms-eval` finishes it.
    """
    out = tmp_path / "out"
    trajectories = out / "trajectories"
    slow = bench.script("slow", *(bench.look(n / 10, n / 10 + 4, 40) for n in range(12)), bench.answer("A"))
    model_args = f"policy=scripted,script={slow},turns=14,concurrency=2"
    command = [
        "eval",
        "--include_path",
        bench.tasks,
        "--tasks",
        "bench_many",
        "--output_path",
        out,
        "--model_args",
        model_args,
    ]

    runs = [start_apr(command), start_apr(command)]
    runs[0].wait_for(lambda: bool(_writer(trajectories)))
    winner, loser = sorted(runs, key=lambda run: run.pid != _writer(trajectories))
    os.kill(winner.pid, signal.SIGSTOP)  # on a busy machine it would answer all 40 before the other one is refused
    (refused,) = loser.end()
    assert refused.status == 1 and "Traceback" not in refused.text, refused.text
    assert f"process {winner.pid} is writing trajectories there" in refused.text and str(trajectories) in refused.text

    os.kill(winner.pid, signal.SIGCONT)
    winner.wait_for(lambda: _answered(trajectories) >= 3)
    os.kill(winner.pid, signal.SIGINT)
    (stopped,) = winner.end()
    assert stopped.status == 130 and "Traceback" not in stopped.text, stopped.text
    assert "which are saved; the same command continues there" in stopped.text
    finished = {t.question.doc_id for t in _saved(trajectories) if not t.stop_reason.failed}
    assert 3 <= len(finished) < 40
    assert _lines(trajectories) <= len(finished) + 4, (
        "at most two that were read too slowly while it was held up, and two under way when it was stopped"
    )

    third = start_apr(command)
    third.wait_for(lambda: _answered(trajectories) >= len(finished) + 3)
    third.kill()
    assert _answered(trajectories) < 40

    plain: list[str | Path] = ["lmms-eval", "--model", "apr", "--include_path", bench.tasks, "--tasks", "bench_many"]
    (done,) = start_apr([*plain, "--model_args", f"{model_args},trajectories={trajectories}"]).end(status=0)
    assert done.status == 0 and "Traceback" not in done.text, done.text
    asked = Counter(t.question.doc_id for t in _saved(trajectories) if not t.stop_reason.failed)
    assert len(asked) == 40 and set(asked.values()) == {1}
    assert len(list(trajectories.iterdir())) == 1


def test_plain_lmms_eval_says_a_typo_in_one_line(bench: Any, start_apr: Callable[..., Any]) -> None:
    """lmms-eval's own handling would be a traceback and exit status 0."""
    command = [
        "lmms-eval",
        "--model",
        "apr",
        "--include_path",
        bench.tasks,
        "--tasks",
        "bench_mcq",
        "--model_args",
        "policy=guess,max_turn=3",
    ]
    (done,) = start_apr(command).end()
    assert done.status == 2 and "Traceback" not in done.text
    assert done.text.count("unknown model_arg 'max_turn' (did you mean 'max_turns'?)") == 1


def test_two_ranks(bench: Any, answers_a: Path, tmp_path: Path) -> None:
    """Under torchrun every question is asked once, by one rank, and one file of trajectories remains.

    Rank 0 ends with 3 for the failures of all ranks.
    """
    command: list[str | Path] = [
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29531",
        "-m",
        "apr_plugin.cli",
        "eval",
    ]
    command += [
        "--include_path",
        bench.tasks,
        "--tasks",
        "bench_mcq,bench_text,bench_bad",
        "--output_path",
        tmp_path / "out",
    ]
    command += ["--model_args", f"policy=scripted,script={answers_a}"]
    status, text = _run(command, bench.environment | {"OMP_NUM_THREADS": "1"}, tmp_path)
    assert text.count("error: 4 questions could not be answered and count as wrong") == 1, text
    assert "|bench_bad" in text, "rank 0 was not stopped before it printed its table"
    assert status == 1 and re.findall(r"rank +: (\d).*\n +exitcode +: (-?\d+)", text) == [("0", "3")], text
    (folder,) = (tmp_path / "out" / "trajectories").iterdir()
    assert sorted(path.name for path in folder.glob("*.jsonl")) == [
        "bench_bad.jsonl",
        "bench_mcq.jsonl",
        "bench_text.jsonl",
    ]
    assert sorted(t.question.doc_id for t in Trajectory.iterate(folder / "bench_mcq.jsonl")) == list("012345")
    assert len(Trajectory.read(folder / "bench_text.jsonl")) == 1
    (results,) = [path for path in (tmp_path / "out").rglob("*_results.json")]
    assert json.loads(results.read_text())["results"]["bench_mcq"]["score,none"] == pytest.approx(2 / 6)
