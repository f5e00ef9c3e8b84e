"""Fixtures that all tests share; what tests import is in `apr_testing.py`; a folder may have its own `conftest`.

`pytest --update-golden` writes the golden prompts of `tests/loop/golden` again; read the difference before you commit
it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from apr_testing import make_video_file
from bundled_testing import SmallAgent, made_run
from vllm_server import tiny_checkpoint, vllm_server  # noqa: F401 - fixtures

from apr_plugin.models import bundled

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background processes with Ctrl-C ignored, and every process below inherits that: the tests that
    # press it would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden prompts again instead of comparing with them"
    )


LONGEST_FIRST = ("vllm", "lmms_eval", "lmms_commands", "ranks", "vlmeval", "package", "chromium")
"""Groups (`xdist_group`) that run before all others when workers share the tests, so that none ends long after them."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist's order is by the number of tests; ours is below
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers and their commands share the cores


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, keep a file's tests on one worker, and start with what takes long.

    Tests outside of a group would be spread over the workers, and each worker would make the fixtures of the file.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    cost: Counter[str] = Counter()
    groups: dict[pytest.Item, str] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        groups[item] = group = mark.args[0] if mark else item.path.stem
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(group))
        trains = "training" in item.path.parts
        cost[group] += 100 if item.get_closest_marker("slow") else 10 if trains else 1
    cost.update({group: 1_000_000 * (len(LONGEST_FIRST) - n) for n, group in enumerate(LONGEST_FIRST)})
    items.sort(key=lambda item: -cost[groups[item]])


@pytest.fixture(autouse=True)
def _own_schedule() -> Iterator[None]:
    """Check that no test leaves its process with another scheduling policy.

    With a real-time policy it would take the machine's processors for the rest of the run.
    """
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    yield
    if before is not None and (after := os.sched_getscheduler(0)) != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
        pytest.fail(
            f"the test left the scheduling policy {after} where it was {before}: see benchmarks.films.own_schedule"
        )


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """`make_video("name.mp4", ...)`: a real file in the test's own folder; the arguments are `make_video_file`'s."""
    return lambda name="video.mp4", **wanted: make_video_file(tmp_path / name, **wanted)


@pytest.fixture(scope="session")
def shared_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few files that many tests read.

    `sound` (6 s, with sound), `silent` (6 s), `ears` (sound only), `long` (75 s, small).
    """
    folder = tmp_path_factory.mktemp("videos")
    return {
        "sound": make_video_file(folder / "sound.mp4", frames=60, sound_s=6.0),
        "silent": make_video_file(folder / "silent.mp4", frames=60),
        "ears": make_video_file(folder / "ears.mka", codec=None, sound_s=4.0, audio_codec="flac"),
        "long": make_video_file(folder / "long.mp4", frames=150, fps=2, gop=10, sound_s=75.0, audio_rate=16_000),
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("qwen2_5_vl")`: the folder of a small random model, made when it is first needed.

    The names are those of `tiny_models.FAMILIES`.
    """
    pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    import torch
    from tiny_models import save_tiny

    from apr_plugin.models.compat import LINEAR_ATTENTION_SINCE, release

    torch.set_num_threads(1)  # for models this small, a second thread costs more than it gains

    @cache
    def make(name: str) -> Path:
        if name.startswith("qwen3_5") and release() < LINEAR_ATTENTION_SINCE:
            pytest.skip("this release of transformers can't run Qwen3.5")
        return save_tiny(name, tmp_path_factory.mktemp(name))

    return make


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small agent with random weights."""
    for module in ("torch", "torchvision", "transformers", "trl"):
        pytest.importorskip(module)
    return made_run(tmp_path_factory.mktemp("small-run"))


@pytest.fixture(scope="session")
def small_agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallAgent:
    """The small agent that is shipped; where none is, one of its shape with random weights, shipped from a run."""
    for module in ("torch", "torchvision", "transformers"):
        pytest.importorskip(module)
    import torch

    torch.set_num_threads(1)
    if bundled.is_shipped():
        return SmallAgent(bundled.FOLDER, True)
    from apr_plugin.training.tiny.shipping import ship

    return SmallAgent(ship(request.getfixturevalue("small_run"), tmp_path_factory.mktemp("agent") / "apr-tiny"), False)
