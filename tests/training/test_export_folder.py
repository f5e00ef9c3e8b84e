"""An export as a folder: what stands beside the data, stops and full disks, the command."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

from export_making import data_of, export

from apr_plugin.errors import AprError
from apr_plugin.training.commands import app
from apr_plugin.training.export import FORMATS
from apr_plugin.training.rows import NoRows, RowError, RowSet, write_rows

Tiny = Callable[[str], Path]
BOTH = sorted(FORMATS)


def test_what_stands_beside_the_data(to_export: Any, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    learner, rows = to_export("qwen2_5_vl")
    longest = max(row.tokens for row in rows.rows) + 1
    export(rows, learner, "swift", tmp_path / "swift", checkpoint="/a folder/it's", split="validation")
    script = (tmp_path / "swift/train.sh").read_text()
    assert "--model '/a folder/it'\"'\"'s' --model_type qwen2_5_vl --template qwen2_5_vl" in script
    assert "--dataset validation.jsonl" in script and len(data_of(tmp_path / "swift", "validation")) == len(rows)
    room = int(script.partition("--max_length ")[2].split()[0])
    assert longest < room <= longest + 64
    export(rows, learner, "llamafactory", tmp_path / "factory", checkpoint="Qwen/Qwen2.5-VL-7B-Instruct")
    settings = yaml.safe_load((tmp_path / "factory/train.yaml").read_text())
    assert settings["mask_history"] is True and settings["template"] == "qwen2_vl" and settings["cutoff_len"] == room
    assert settings["model_name_or_path"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    info = json.loads((tmp_path / "factory/dataset_info.json").read_text())[settings["dataset"]]
    assert (tmp_path / "factory" / info["file_name"]).is_file() and info["formatting"] == "sharegpt"
    assert set(data_of(tmp_path / "factory")[0]) == set(info["columns"])
    for folder in ("swift", "factory"):
        words = (tmp_path / folder / "README.md").read_text()
        assert "not position-exact" in words and "No row was left out." in words
    hearing, heard = to_export("qwen2_5_omni")
    export(heard, hearing, "swift", tmp_path / "omni")
    words = (tmp_path / "omni/README.md").read_text()
    assert "not position-exact" not in words and "whole checkpoint" in words


@pytest.mark.parametrize("form", BOTH)
def test_a_stopped_export_continues_and_is_the_same(to_export: Any, tmp_path: Path, form: str) -> None:
    learner, rows = to_export("qwen2_5_vl")
    whole = export(rows, learner, form, tmp_path / "whole")

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(rows, learner, form, out, told=stop)
    assert not out.exists() and (tmp_path / "out.part").is_dir()
    with (tmp_path / "out.part/done.jsonl").open("a") as log:
        log.write('{"record": {"mess')  # a kill in the middle of a line
    (tmp_path / "out.part/images").mkdir(exist_ok=True)
    (tmp_path / "out.part/images/half.part").write_bytes(b"PNG")
    with pytest.raises(AprError, match=r"unfinished export .* differs in rows; remove it, or name another"):
        export(RowSet(rows.rows[:1]), learner, form, out)
    out.mkdir()  # an empty folder is taken
    done = export(rows, learner, form, out)
    assert (done.resumed, done.rows, done.skipped) == (2, whole.rows, whole.skipped)
    assert not list(tmp_path.glob("*.part"))

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(AprError, match="it exists and is not an empty folder; name a new one, or remove it"):
        export(rows, learner, form, out)


def test_a_damaged_log_of_an_unfinished_export(to_export: Any, tmp_path: Path) -> None:
    learner, rows = to_export("qwen2_5_vl")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part/done.jsonl").write_text("not JSON\n")
    with pytest.raises(AprError, match=r"it is damaged .*; remove .*out.part and export again"):
        export(rows, learner, "swift", tmp_path / "out")
    (tmp_path / "out.part/done.jsonl").write_text('{"format": "swi')  # killed before the first line was whole
    assert export(rows, learner, "swift", tmp_path / "out").rows == len(rows)


@contextlib.contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_and_a_folder_that_can_t_be_made(to_export: Any, tmp_path: Path) -> None:
    learner, rows = to_export("qwen2_5_vl")
    out = tmp_path / "out"
    with (
        no_file_over(600),
        pytest.raises(RowError, match=r"cannot write: .*; what was done is kept, and the same command continues"),
    ):
        export(rows, learner, "llamafactory", out)
    assert not out.exists()
    done = export(rows, learner, "llamafactory", out)
    assert done.rows == len(rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(RowError, match="cannot write: Not a directory"):
        export(rows, learner, "swift", tmp_path / "file/out")
    with pytest.raises(AprError, match="it exists and is not an empty folder"):
        export(rows, learner, "swift", tmp_path / "file")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command(to_export: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    learner, rows = to_export("qwen2_5_vl")
    file, checkpoint = tmp_path / "rows.jsonl", tiny("qwen2_5_vl")
    write_rows(file, RowSet(rows.rows, about={"student": {"name": learner.name, "digest": learner.digest}}))
    wanted = (file, "--student", checkpoint)
    said = run(*wanted, "--format", "swift", "--out", tmp_path / "out", "--limit", 3)
    assert said.exit_code == 0, said.output
    assert f"3 of 3 rows for ms-swift in {tmp_path / 'out'}" in said.output and "not exported: none" in said.output
    assert "warning" not in said.output and len(data_of(tmp_path / "out")) == 3
    for arguments, words in (
        (("--format", "verl", "--out", tmp_path / "a"), "it is swift or llamafactory"),
        (("--format", "swift", "--out", tmp_path / "a", "--split", "test"), "it is train or validation"),
        (("--format", "swift", "--out", tmp_path / "a", "--split", "validation"), "no row in the part 'validation'"),
        (("--format", "swift", "--out", tmp_path / "out"), "not an empty folder"),
    ):
        said = run(*wanted, *arguments)
        assert said.exit_code != 0 and words in str(said.exception), (arguments, said.exception)
    write_rows(file, RowSet(rows.rows, about={"student": {"name": "another", "digest": "0"}}))
    said = run(*wanted, "--format", "llamafactory", "--out", tmp_path / "b", "--limit", 1)
    assert said.exit_code == 0 and "the rows were made for another" in said.output
    write_rows(file, RowSet([row for row in rows.rows if row.visual_tokens]))
    said = run(file, "--student", tiny("qwen3_vl"), "--format", "swift", "--out", tmp_path / "c")
    assert said.exit_code == 1 and isinstance(said.exception, NoRows), said.output
    assert not list(tmp_path.glob("*.part"))
