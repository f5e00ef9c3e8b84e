"""A folder of small lmms-eval tasks on real video files, and commands of `apr` that need not load lmms-eval again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vlmeval_testing import Warm

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


def strange(doc):
    if doc["video"] == "<FAULT>":
        raise LookupError("this row is cursed")
    return [doc["video"].replace("<NUL>", "\\0").replace("<LONE>", "\\ud800")]


def deaf(doc):
    wait(doc, "building")
    return [doc["video"]]


def wait(doc, phase):
    # Leaves a mark, waits, and swallows whatever ends that.
    import pathlib
    import time

    folder = pathlib.Path(doc.get("marks") or "/nowhere")
    if folder.name == phase:
        (folder / phase).touch()
        try:
            time.sleep(5)
        except BaseException:
            pass


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer with the option's letter from the given choices directly."


def score(doc, results):
    wait(doc, "scoring")
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
    """The folder of the small benchmark."""

    tasks: Path
    """The folder for `--include_path`."""
    hub: Path
    """The folder for `HF_HOME`."""
    videos: Mapping[str, Path]

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("APR_", "LMMS_EVAL_"))}
        return kept | {
            "HF_HOME": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            "TOKENIZERS_PARALLELISM": "false",
        }

    @staticmethod
    def look(start: float, end: float, num: int = 2) -> dict[str, Any]:
        action = {"type": "get_frames", "start": start, "end": end, "num": num}
        return {"observation": "seen", "think": "look", "confidence": 0.5, "action": action}

    @staticmethod
    def answer(content: str) -> dict[str, Any]:
        return {
            "observation": "seen",
            "think": "sure",
            "confidence": 0.9,
            "action": {"type": "answer", "content": content},
        }

    def task(self, name: str, docs: Sequence[Mapping[str, Any]], visual: str = "video") -> str:
        """Write a task; a doc has `question`, `answer`, `video`."""
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
    bench.task(
        "bench_mcq",
        [_doc(f"Say {letter}, number {n}.{OPTIONS}", letter, videos["sound"]) for n, letter in enumerate(says)],
    )
    bench.task("bench_text", [_doc(f"Say B.{OPTIONS}", "B", "")], visual="nothing")
    bench.task("bench_image", [_doc(f"Say C.{OPTIONS}", "C", videos["picture"])], visual="image")
    bench.task(
        "bench_bad",
        [
            _doc(f"Say A, number {name}.{OPTIONS}", "A", videos[name])
            for name in ("sound", "missing", "silent", "truncated", "empty", "words", "ears")
        ]
        + [_doc("Say A without options.", "A", videos["sound"])],
    )
    bench.task(
        "bench_strict",
        [_doc(f"Say A, number {name}.{OPTIONS}", "A", videos[name]) for name in ("missing", "sound")],
        visual="strict",
    )
    bench.task("bench_many", [_doc(f"Say A, number {n}.{OPTIONS}", "A", videos["sound"]) for n in range(40)])
    _packaged(bench)
    return bench


def _doc(question: str, right: str, video: Path | str) -> dict[str, str]:
    return {"question": question, "answer": right, "video": str(video)}


def _packaged(bench: Bench) -> None:
    """Tasks of lmms-eval itself; their data sets are replaced by small ones with the same columns."""
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
    timelens = [
        {"video_path": str(bench.videos["sound"]), "query": "the door opens", "span": [[1.0, 3.0]], "duration": 6.0}
    ]
    for name, yaml, split, docs in (
        ("videomme_bench", packaged / "videomme" / "videomme.yaml", "test", videomme),
        ("timelens_bench", packaged / "timelens" / "timelens_charades.yaml", "charades", timelens),
    ):
        (bench.tasks / f"{name}.json").write_text(json.dumps(docs))
        (bench.tasks / f"{name}.yaml").write_text(
            f"include: {yaml}\ntask: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    {split}: "
            f"{bench.tasks / name}.json\n"
        )


class Command:
    """Commands that are running in their own process.

    Args:
        folder: The folder where `warm_commands` writes their output and status, and has written `pid`.
        commands: The number of commands.
    """

    def __init__(self, folder: Path, commands: int) -> None:
        self._folder = folder
        self._commands = commands
        self.pid = int((folder / "pid").read_text())

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return (self._folder / "ended").exists()

    def wait_for(self, condition: Callable[[], bool], *, running: bool = True, timeout_s: float = 500) -> None:
        """Wait until a condition is true, while the process runs."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert not (running and self.ended) and time.monotonic() < end, [
                path.read_text() for path in sorted(self._folder.glob("*.*"))
            ]
            time.sleep(0.05)

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for(lambda: self.ended, running=False)

    @property
    def status(self) -> int:
        """The result of the only command as a shell would see it, after its process has ended.

        The status is the one that it returned, or the one that its process made of it.
        """
        return int((self._folder / "ended").read_text()) or int((self._folder / "0.status").read_text())

    def end(self, status: int = 0) -> list[Ended]:
        """The result of each command, after all have ended and their process has ended with that status."""
        self.wait_for(lambda: self.ended, running=False)
        assert (self._folder / "ended").read_text() == str(status), [
            path.read_text() for path in sorted(self._folder.glob("*.*"))
        ]
        read = [
            [(self._folder / f"{n}.{name}").read_text() for name in ("status", "out", "err")]
            for n in range(self._commands)
        ]
        return [Ended(int(status), out, err) for status, out, err in read]


@pytest.fixture(scope="session")
def start_apr(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Start one or several `apr` or `lmms-eval` commands, one after the other in one new process."""
    warm = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm_commands.py"))],
        env=bench.environment,
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert warm.stdin is not None
    orders = warm.stdin

    def start(*commands: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Command:
        folder = tmp_path_factory.mktemp("commands")
        words = [[str(word) for word in command] for command in commands]
        orders.write(
            json.dumps({"commands": words, "folder": str(folder), "environment": dict(environment or {})}) + "\n"
        )
        orders.flush()
        started = folder / "pid"
        while not started.exists():
            assert warm.poll() is None, "the warm process has ended; its error is in the captured output"
            time.sleep(0.02)
        return Command(folder, len(commands))

    yield start
    os.killpg(warm.pid, signal.SIGKILL)  # with commands that a failed test left behind
    warm.wait()


@pytest.fixture(scope="session")
def run_apr(start_apr: Callable[..., Command]) -> Callable[..., list[Ended]]:
    """Run several `apr` commands one after the other in one new process, and wait for them."""
    return lambda *commands: start_apr(*commands).end()


@pytest.fixture(scope="session")
def vlmeval(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has VLMEvalKit loaded, and runs `apr vlmeval` and other commands in children of it."""
    if importlib.util.find_spec("vlmeval") is None:
        pytest.skip("VLMEvalKit is not installed: pip install 'apr-plugin[vlmeval]'")
    warm = Warm(tmp_path_factory.mktemp("vlmeval"))
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def served_needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A needle set with one video of a minute, which the endpoint is asked about."""
    from apr_plugin.tasks.needle.make import NeedleSpec, make_needle

    folder = tmp_path_factory.mktemp("serve") / "needle"
    make_needle(folder, NeedleSpec(buckets=("1m",), videos_per_bucket=1), workers=1, progress=False)
    return folder
