"""`apr vlmeval` without VLMEvalKit: its command line, our task files, what it writes, and what an import may change."""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apr_plugin.cli.vlmeval import run_vlmeval
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.harnesses.vlmeval.arguments import new_folder, read_command
from apr_plugin.harnesses.vlmeval.contained import contained
from apr_plugin.harnesses.vlmeval.results import Finished, read_status, write_results
from apr_plugin.harnesses.vlmeval.task_files import known, read_task
from apr_plugin.runs.scores import find_evaluations, read_samples
from apr_plugin.tasks.common.catalogue import sources


def test_a_command_line_for_the_agent(tmp_path: Path) -> None:
    data, settings = ["apr_needle", "Video-MME_agent"], "policy=guess,concurrency=7"
    where = ["--work-dir", str(tmp_path / "out")]
    command = read_command(["--data", *data, "--model_args", settings, "--api-mode", "--verbose", *where])
    assert command.ours and command.model == ("apr",)
    assert command.data[:2] == ("apr_needle_glyph", "apr_needle_when") and command.data[-1] == "Video-MME_agent"
    assert command.settings is not None and command.settings["trajectories"] == str(tmp_path / "out" / "trajectories")
    words = command.for_host(tmp_path / "x")
    assert words[words.index("--work-dir") + 1] == str(tmp_path / "x")
    assert words[words.index("--api-nproc") + 1] == "7"
    assert {"--api-mode", "--verbose"} <= set(words) and "--model_args" not in words


def test_a_command_line_for_another_model(tmp_path: Path) -> None:
    command = read_command(
        ["--model", "Qwen2-VL-7B", "--data", "apr_needle_64frame", "--reuse", "--work-dir", str(tmp_path)]
    )
    assert not command.ours and command.settings is None
    assert command.data[0] == "apr_needle_glyph_64frame" and len(command.data) == 5
    assert "--reuse" in command.for_host(tmp_path) and "--api-nproc" not in command.for_host(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model_args policy=guess", "--data is missing"),
        ("--data X", "need policy=NAME"),
        ("--data apr_needle_glif --model_args policy=guess", "did you mean 'apr_needle_glyph'"),
        ("--data X --model_args policy=gess", "did you mean 'guess'"),
        ("--data X --model_args policy=guess,policy=guess", "given 2 times"),
        ("--data X --model_args policy=guess,max_turns=-1", "max_turns"),
        ("--data X --model_args guess", "not key=value"),
        ("--data X --data Y --model_args policy=guess", "--data is given 2 times"),
        ("--data X --model apr other --model_args policy=guess", "one after the other"),
        ("--data X --model other --model_args policy=guess", "are for model apr"),
        ("--data X --model_args policy=guess --reuse", "--reuse can't apply"),
        ("--data X --model_args policy=guess --mode eval", "--mode eval can't apply"),
        ("--data X --model_args policy=guess --temperature=1", "--temperature can't apply"),
        ("--data X --model_args policy=guess --config c.json", "--config can't apply"),
        ("--data X --model_args policy=guess --limit 0", "whole number above 0"),
        ("--data X --model_args policy=guess --limit", "expected one argument"),
    ],
)
def test_wrong_usage_is_one_message(words: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=told):
        read_command([*words.split(), "--work-dir", str(tmp_path)])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AprError, match="cannot write there"):
        read_command(["--data", "X", "--model_args", "policy=guess", "--work-dir", str(tmp_path / "file")])


def test_every_evaluation_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """In VLMEvalKit's own, it would take the earlier answers without asking."""
    first, second = new_folder(tmp_path), new_folder(tmp_path)
    assert first[0] != second[0] and first[1] < second[1]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_needs_no_vlmevalkit(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_vlmeval(words) == 0
    assert "Usage: apr vlmeval" in capsys.readouterr().out and "vlmeval" not in sys.modules


def test_wrong_usage_ends_with_status_2_before_anything_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "apr_plugin.cli.vlmeval", "--data", "X", "--work-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_no_other_module_loads_vlmevalkit() -> None:
    """Only the modules that an evaluation needs import it."""
    folder = Path(read_command.__code__.co_filename).resolve().parents[2]
    importers = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith(("import vlmeval", "from vlmeval"))
    }
    assert importers == {f"harnesses/vlmeval/{name}.py" for name in ("model", "task_dataset")}


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_task_is_read_as_lmms_eval_reads_it(name: str) -> None:
    """Its functions can be imported, and its metrics have the names that its source can return."""
    task = read_task(name)
    assert task.name == name and task.split == "test" and task.version
    assert {metric.name for metric in task.metrics} >= {"score", "n"}
    assert task.aggregated([{"score": 1.0, "n": 1}, {"score": 0.5, "n": 1}]) == {"score": 0.75, "n": 2.0}
    assert known()[name] == (name,)


def test_groups_and_unknown_tasks() -> None:
    assert known()["apr_needle"] == tuple(f"apr_needle_{kind}" for kind in ("glyph", "when", "sound", "count", "order"))
    with pytest.raises(AprError, match="did you mean"):
        read_task("apr_needle_glif")


@pytest.mark.xdist_group("lmms_eval")  # loading lmms-eval takes longer than the test
def test_lmms_evals_loader_gives_the_same_tasks() -> None:
    """Names, versions, metrics and aggregations of every file, by lmms-eval's own reading of it."""
    utils = pytest.importorskip("lmms_eval.utils")
    import apr_plugin.tasks

    folder = Path(next(iter(apr_plugin.tasks.__path__)))
    for path in sorted(folder.glob("*/apr_*.yaml")):
        theirs = utils.load_yaml_config(str(path), mode="full")
        if isinstance(theirs["task"], list):
            assert known()[theirs["group"]] == tuple(theirs["task"])
            continue
        ours = read_task(theirs["task"])
        assert ours.version == str(theirs["metadata"]["version"])
        assert [metric.name for metric in ours.metrics] == [metric["metric"] for metric in theirs["metric_list"]]
        for mine, their in zip(ours.metrics, theirs["metric_list"], strict=True):
            if callable(their["aggregation"]) and "lmms_eval" not in getattr(their["aggregation"], "__module__", ""):
                values: list[Any] = [(["a"], 1.0), (["b"], 0.0)] if "macro" in their["aggregation"].__name__ else [1, 0]
                try:
                    expected = their["aggregation"](values)
                except (KeyError, TypeError, AttributeError):
                    continue  # it wants the records of its own benchmark
                assert mine.aggregate(values) == expected


def _status(folder: Path, **datasets: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"model_name": "apr", "datasets": datasets}))


def test_what_vlmevalkit_says_of_a_run(tmp_path: Path) -> None:
    done = {"status": "done", "prediction_file": "apr_A.xlsx", "metrics": {"score": 0.5, "name": "x"}}
    _status(
        tmp_path / "apr",
        A=done,
        B={"status": "done", "error_message": "KeyError: 'x'"},
        C={"status": "done", "skip_reason": "invalid_dataset"},
        D={"status": "infer"},
    )
    (tmp_path / "status.json").symlink_to(tmp_path / "apr" / "status.json")  # as VLMEvalKit links it
    found, model = read_status(tmp_path)
    assert model == "apr"
    assert found["A"].predictions == (tmp_path / "apr" / "apr_A.xlsx").resolve()
    assert found["A"].metrics == {"score": 0.5} and not found["A"].problem
    assert found["B"].problem == "KeyError: 'x'" and found["C"].problem == "invalid_dataset"
    assert "infer" in found["D"].problem


def test_a_damaged_status_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == ({}, "")


def test_results_are_read_as_those_of_lmms_eval(tmp_path: Path) -> None:
    rows = [
        {"task": "T", "split": "", "doc_id": n, "target": "A", "filtered_resps": ["A"], "score": float(n)}
        for n in (0, 1)
    ]
    finished = Finished("T_agent", None, {"overall": 0.5}, "exact_matching", "", rows)
    arguments: dict[str, Any] = {"policy": "guess"}
    run = {"config_hash": "0" * 16, "folder": str(tmp_path)}
    write_results(
        tmp_path,
        "20261127_120000",
        {"T_agent": finished},
        model="apr",
        host="ms-vlmeval 0.0.20",
        arguments=arguments,
        run=run,
        versions={"T": "1.0"},
    )
    said: list[str] = []
    (evaluation,) = find_evaluations(tmp_path, said.append)
    assert evaluation.config_hash == "0" * 16 and evaluation.metrics["T"] == {"overall,none": 0.5}
    assert evaluation.versions == {"T": "1.0"} and evaluation.asked == {"T": 2}
    assert [score.value for _, score in read_samples(evaluation.samples["T"], said.append)] == [0.0, 1.0]
    assert not said


def test_what_an_import_changed_is_undone() -> None:
    """Everything that importing VLMEvalKit changes, changed here by hand."""
    torch = pytest.importorskip("torch")
    np = pytest.importorskip("numpy")
    from PIL import Image

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = [torch.rand(1).item(), random.random(), np.random.rand()]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    os.environ["APR_TEST_KEPT"] = "before"
    context, pixels, digits, path = (
        ssl._create_default_https_context,
        Image.MAX_IMAGE_PIXELS,
        sys.get_int_max_str_digits(),
        list(sys.path),
    )
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    try:
        with pytest.raises(ImportError), contained():
            ssl._create_default_https_context = ssl._create_unverified_context
            torch.set_grad_enabled(False)
            torch.manual_seed(1234)
            random.seed(1)
            np.random.seed(1)
            os.environ.update(APR_TEST_KEPT="after", APR_TEST_NEW="new", VLMEVAL_PLACE="theirs")
            Image.MAX_IMAGE_PIXELS = None
            sys.set_int_max_str_digits(0)
            sys.path.append("./")
            logging.getLogger().addHandler(logging.NullHandler())
            logging.disable(logging.ERROR)
            raise ImportError("and an error does not matter")
        assert ssl._create_default_https_context is context
        assert torch.is_grad_enabled()
        assert [torch.rand(1).item(), random.random(), np.random.rand()] == expected
        assert os.environ["APR_TEST_KEPT"] == "before" and "APR_TEST_NEW" not in os.environ
        assert os.environ["VLMEVAL_PLACE"] == "theirs"
        assert (pixels, digits, path) == (Image.MAX_IMAGE_PIXELS, sys.get_int_max_str_digits(), sys.path)
        assert logging.getLogger().handlers == handlers and logging.root.manager.disable == disabled
    finally:
        for name in ("APR_TEST_KEPT", "VLMEVAL_PLACE"):
            os.environ.pop(name, None)
