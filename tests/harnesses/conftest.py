"""A folder of small lmms-eval tasks on real video files, and a way to run several commands of `apr` in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TASK = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.json
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function bench_utils.{visual}
doc_to_text: !function bench_utils.text
doc_to_target: answer
process_results: !function bench_utils.score
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
metadata:
  version: 1.0
"""

UTILS = """\
from PIL import Image


def video(doc):
    return [doc["video"]]


def image(doc):
    return [Image.open(doc["video"])]


def nothing(doc):
    return []


def strict(doc):
    import os
    import sys

    if not os.path.exists(doc["video"]):
        sys.exit("video path:" + doc["video"] + " does not exist, please check")
    return [doc["video"]]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer with the option's letter from the given choices directly."


def score(doc, results):
    return {"score": float(results[0] == doc["answer"])}
"""

OPTIONS = "\nA. red\nB. green\nC. blue\nD. none of them"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Bench:
    """Where the small benchmark stands."""

    tasks: Path
    """For `--include_path`."""
    hub: Path
    """For `HF_HOME`."""
    videos: Mapping[str, Path]

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("APR_", "LMMS_EVAL_"))}
        return kept | {"HF_HOME": str(self.hub), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "TOKENIZERS_PARALLELISM": "false"}

    @staticmethod
    def look(start: float, end: float, num: int = 2) -> dict[str, Any]:
        action = {"type": "get_frames", "start": start, "end": end, "num": num}
        return {"observation": "seen", "think": "look", "confidence": 0.5, "action": action}

    @staticmethod
    def answer(content: str) -> dict[str, Any]:
        return {"observation": "seen", "think": "sure", "confidence": 0.9, "action": {"type": "answer", "content": content}}

    def task(self, name: str, docs: Sequence[Mapping[str, Any]], visual: str = "video") -> str:
        """Write a task; a doc is `question`, `answer`, `video`."""
        (self.tasks / f"{name}.json").write_text(json.dumps(list(docs)))
        (self.tasks / f"{name}.yaml").write_text(TASK.format(name=name, visual=visual))
        return name

    def script(self, name: str, *turns: Mapping[str, Any]) -> Path:
        """Write a file for `policy=scripted`."""
        path = self.tasks / f"{name}.script"
        path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
        return path


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, shared_videos: Mapping[str, Path]) -> Bench:
    pytest.importorskip("lmms_eval")
    root = tmp_path_factory.mktemp("bench")
    tasks, hub = root / "tasks", root / "hub"
    tasks.mkdir()
    (hub / "videomme" / "data").mkdir(parents=True)
    (tasks / "bench_utils.py").write_text(UTILS)
    videos = dict(shared_videos)
    for name, data in {
        "truncated.mp4": videos["long"].read_bytes()[: videos["long"].stat().st_size // 2],
        "empty.mp4": b"",
        "words.mp4": b"these are words, not a video\n" * 50,
    }.items():
        videos[name.removesuffix(".mp4")] = root / name
        (root / name).write_bytes(data)
    videos["missing"] = root / "missing.mp4"
    videos["picture"] = root / "picture.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(videos["picture"])
    for name in ("one", "two"):
        shutil.copy(videos["sound"], hub / "videomme" / "data" / f"{name}.mp4")
    bench = Bench(tasks, hub, videos)
    says = "ABCDAB"
    bench.task("bench_mcq", [_doc(f"Say {letter}, number {n}.{OPTIONS}", letter, videos["sound"]) for n, letter in enumerate(says)])
    bench.task("bench_text", [_doc(f"Say B.{OPTIONS}", "B", "")], visual="nothing")
    bench.task("bench_image", [_doc(f"Say C.{OPTIONS}", "C", videos["picture"])], visual="image")
    bench.task(
        "bench_bad",
        [_doc(f"Say A, number {name}.{OPTIONS}", "A", videos[name]) for name in ("sound", "missing", "silent", "truncated", "empty", "words", "ears")]
        + [_doc("Say A without options.", "A", videos["sound"])],
    )
    bench.task("bench_strict", [_doc(f"Say A, number {name}.{OPTIONS}", "A", videos[name]) for name in ("missing", "sound")], visual="strict")
    bench.task("bench_many", [_doc(f"Say A, number {n}.{OPTIONS}", "A", videos["sound"]) for n in range(40)])
    _packaged(bench)
    return bench


def _doc(question: str, right: str, video: Path | str) -> dict[str, str]:
    return {"question": question, "answer": right, "video": str(video)}


def _packaged(bench: Bench) -> None:
    """Tasks of lmms-eval itself, their data sets replaced by small ones with the same columns."""
    import importlib.util

    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None and spec.submodule_search_locations
    packaged = Path(spec.submodule_search_locations[0]) / "tasks"
    videomme = [
        {
            "videoID": name,
            "question_id": f"00{n}-1",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Law",
            "task_type": "Counting Problem",
            "question": "What colour is it?",
            "options": ["A. red", "B. green", "C. blue", "D. none of them"],
            "answer": "B",
        }
        for n, name in enumerate(("one", "two"))
    ]
    timelens = [{"video_path": str(bench.videos["sound"]), "query": "the door opens", "span": [[1.0, 3.0]], "duration": 6.0}]
    for name, yaml, split, docs in (
        ("videomme_bench", packaged / "videomme" / "videomme.yaml", "test", videomme),
        ("timelens_bench", packaged / "timelens" / "timelens_charades.yaml", "charades", timelens),
    ):
        (bench.tasks / f"{name}.json").write_text(json.dumps(docs))
        (bench.tasks / f"{name}.yaml").write_text(
            f"include: {yaml}\ntask: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    {split}: {bench.tasks / name}.json\n"
        )


DRIVER = """
import json, os, sys
commands, folder = json.load(open(sys.argv[1])), sys.argv[2]
from apr_plugin.cli import main
for number, command in enumerate(commands):
    sys.stdout.flush(); sys.stderr.flush()
    for fd, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, fd)
        os.close(file)
    if command[0] == "sh":
        status = os.system(command[1])
    else:
        sys.argv = ["apr", *command]
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 99
    sys.stdout.flush(); sys.stderr.flush()
    open(f"{folder}/{number}.status", "w").write(str(status))
"""


@pytest.fixture(scope="session")
def run_apr(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Ended]]:
    """Run several `apr` commands after each other in one new process: loading lmms-eval takes longer than any of them."""

    def run(*commands: Sequence[str | Path], timeout: float = 240, **environment: str) -> list[Ended]:
        folder = tmp_path_factory.mktemp("commands")
        (folder / "commands.json").write_text(json.dumps([[str(word) for word in command] for command in commands]))
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(folder / "commands.json"), str(folder)],
            cwd=folder,
            env=bench.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [
            Ended(int((folder / f"{n}.status").read_text()), (folder / f"{n}.out").read_text(), (folder / f"{n}.err").read_text())
            for n in range(len(commands))
        ]

    return run
