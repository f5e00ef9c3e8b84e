"""`load_host`: VLMEvalKit, imported once, and its own runner.

It is either `ms-vlmeval` from the package index, whose runner is `vlmeval.run`, or a checkout of the upstream
repository on the import path, whose runner is the file `run.py` beside the package.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.harnesses.vlmeval.contained import contained
from apr_plugin.installed import importing, version_of


def variable(name: str) -> str:
    """One of VLMEvalKit's own environment variables (`MMEVAL_ROOT`, `PRED_FORMAT`, `WORLD_SIZE`); empty if unset."""
    return os.environ.get(name, "").strip()


@dataclass(frozen=True)
class Host:
    """VLMEvalKit in this process."""

    runner: ModuleType
    """Its `run.py`, as the module `vlmeval.run`."""

    packaged: bool
    """Whether it is the package of the index."""

    version: str
    """`ms-vlmeval 0.0.20`, or `VLMEvalKit 0.2rc1` of a checkout."""

    @property
    def models(self) -> dict[str, Any]:
        """Name -> what makes the model (`vlmeval.config.supported_VLM`)."""
        found: dict[str, Any] = importlib.import_module("vlmeval.config").supported_VLM
        return found

    @property
    def video_datasets(self) -> dict[str, Any]:
        """Name -> what makes the data set (`vlmeval.dataset.video_dataset_config.supported_video_datasets`)."""
        module = importlib.import_module("vlmeval.dataset.video_dataset_config")
        found: dict[str, Any] = module.supported_video_datasets
        return found

    @property
    def environment_file(self) -> Path:
        """The file of keys for judges that its command line reads."""
        return Path(str(importlib.import_module("vlmeval").__file__)).parents[1] / ".env"

    def run(self, arguments: Sequence[str]) -> None:
        """Run its command line in this process; it catches its own errors and writes them to `status.json`."""
        before, sys.argv = sys.argv, ["vlmeval", *arguments]
        root = os.environ.pop("MMEVAL_ROOT", None)  # it would take the place of --work-dir, in one of its two modes
        try:
            if self.environment_file.is_file():  # as its own command does; here the policy has read its keys already
                self.runner.load_env()
            self.runner.main()
        finally:
            sys.argv = before
            if root is not None:
                os.environ["MMEVAL_ROOT"] = root


@cache
def load_host() -> Host:
    """Import VLMEvalKit, without what the import changes in this process.

    Raises:
        MissingExtra: it is not installed.
        BrokenInstall: it can't be imported.
    """
    require("vlmeval", "vlmeval")
    with importing("VLMEvalKit", "vlmeval"), contained():
        logging.disable(logging.ERROR)  # which of its hundreds of optional packages and files are missing
        package = importlib.import_module("vlmeval")
        packaged = importlib.util.find_spec("vlmeval.run") is not None
        runner = importlib.import_module("vlmeval.run") if packaged else _runner_beside(package)
    if packaged:
        _mend_shortcuts(runner)
    _mend_waiting()
    version = version_of("ms-vlmeval") if packaged else None
    name = (
        f"ms-vlmeval {version}" if version else f"VLMEvalKit {getattr(package, '__version__', 'of an unknown version')}"
    )
    return Host(runner, packaged, name)


def _runner_beside(package: ModuleType) -> ModuleType:
    """The runner of a checkout; under another name its messages would not be shown (`vlmeval/smp/log.py`)."""
    place = Path(str(package.__file__)).resolve().parents[1] / "run.py"
    spec = importlib.util.spec_from_file_location("vlmeval.run", place)
    if spec is None or spec.loader is None or not place.is_file():
        raise AprError(
            f"VLMEvalKit is in {place.parent} without its run.py: install ms-vlmeval, or put a checkout of the whole "
            "repository on PYTHONPATH (a wheel that pip builds from it lacks files)"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules["vlmeval.run"] = module
    spec.loader.exec_module(module)
    return module


def _mend_shortcuts(runner: Any) -> None:
    """Let the runner of the package make the data sets of its own short names.

    It passes every option of the command line to them (ms-vlmeval 0.0.20, `run.py:643`), and none of them takes these.
    """
    build = runner.build_dataset
    known = importlib.import_module("vlmeval.dataset.video_dataset_config").supported_video_datasets
    runner.build_dataset = lambda name, **options: known[name]() if name in known else build(name, **options)


def _mend_waiting() -> None:
    """Let the API mode end when a question was lost.

    It waits for the evaluation of each data set, and evaluates one only when all of its questions came back. A question
    whose answer it could not store (a full disk) never does, and it would wait for ever (`inference_api.py`, `_worker`
    and `_monitor_loop`). Such a data set ends with an error here.
    """
    module: Any = importlib.import_module("vlmeval.inference_api")
    wait = module.APIEvalPipeline._monitor_loop

    async def monitor(pipeline: Any) -> Any:
        waiting = asyncio.ensure_future(wait(pipeline))
        try:
            while not (await asyncio.wait([waiting], timeout=1))[0]:
                for name, state in pipeline.states.items() if pipeline.all_infer_done else ():
                    if state.eval_status is module.EvalStatus.Pending and state.processed < state.total_samples:
                        lost = f"{state.total_samples - state.processed} of its questions were lost in VLMEvalKit"
                        state.eval_status = module.EvalStatus.Error
                        pipeline._upsert_dataset_status(name, status="done", error_message=lost)
            return await waiting
        finally:
            waiting.cancel()

    module.APIEvalPipeline._monitor_loop = monitor
