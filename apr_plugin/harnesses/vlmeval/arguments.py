"""The command line of `apr vlmeval`: VLMEvalKit's own with a few options of ours, checked before anything is loaded."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.harnesses.readers.registry import OURS
from apr_plugin.harnesses.vlmeval.host import variable
from apr_plugin.harnesses.vlmeval.registry import MODEL, expanded, task_of
from apr_plugin.harnesses.vlmeval.task_files import known
from apr_plugin.policies import did_you_mean
from apr_plugin.runs.arguments import parse_model_args, without_arguments
from apr_plugin.runs.settings import check_arguments
from apr_plugin.terminal import quoted, shortened

_REFUSED = {
    "--config": "name the data with --data and the model's arguments with --model_args",
    "--reuse": "the same command continues from the trajectories",
    "--reuse-aux": "the same command continues from the trajectories",
    "--keep-failed": "the same command asks only the questions again that failed",
    "--ignore": "the same command asks only the questions again that failed",
    "--base-url": "give base_url= in --model_args with policy=openai",
    "--use-vllm": "choose policy=vllm in --model_args",
    "--custom-prompt": "the loop writes its own prompts",
    "--temperature": "give temperature= in --model_args",
    "--top-p": "give top_p= in --model_args",
    "--top-k": "give top_k= in --model_args",
    "--max-tokens": "give max_new_tokens= in --model_args",
}
"""Option of VLMEvalKit -> what replaces it for model apr."""


@dataclass(frozen=True)
class Command:
    """What was asked for."""

    model: tuple[str, ...]
    """Names of models, `apr` alone or VLMEvalKit's."""
    data: tuple[str, ...]
    """Names of data sets, groups resolved."""
    work_dir: Path
    """Where everything goes."""
    settings: dict[str, Any] | None
    """model_args of model apr; `None` for another model."""
    limit: int | None
    """Only the first questions of each data set."""
    judge: str | None
    """The judge that was chosen for all data sets."""
    rest: tuple[str, ...]
    """Options that VLMEvalKit reads itself."""
    model_args: str = ""
    """model_args as they were typed."""

    @property
    def ours(self) -> bool:
        """Whether model apr answers."""
        return self.settings is not None

    def record(self) -> dict[str, Any]:
        """What a card needs to run it again: other options of VLMEvalKit are only named."""
        names = sorted({word.partition("=")[0] for word in self.rest if word.startswith("--")})
        return {
            "data": list(self.data),
            "model_args": without_arguments(self.model_args, "trajectories", "resume"),
            "limit": self.limit,
            "judge": self.judge,
            "other_options": names,
        }

    def for_host(self, folder: Path) -> list[str]:
        """The command line for VLMEvalKit, which writes into this folder."""
        words = ["--model", *self.model, "--data", *self.data, "--work-dir", str(folder)]
        if self.settings is not None and not any(word.partition("=")[0] in _THREADS for word in self.rest):
            words += ["--api-nproc", str(int(float(self.settings.get("concurrency", 4))))]
        words += ["--judge", self.judge] if self.judge is not None else []
        return [*words, *self.rest]


_THREADS = ("--api-nproc", "--nproc")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(message)


def read_command(arguments: Sequence[str]) -> Command:
    """Read and check a command line.

    Raises:
        WrongUsage: an option can't apply, is missing, is given twice, or has a bad value.
        AprError: the folder can't be written.
    """
    for name, count in Counter(word.partition("=")[0] for word in arguments if word.startswith("--")).items():
        if count > 1:
            raise WrongUsage(f"{shortened(name, 60)} is given {count} times; give it only once")
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", default=[MODEL])
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--work-dir", "--work_dir", type=Path, default=None)
    parser.add_argument("--model_args", "--model-args", default=None)
    parser.add_argument("--limit", type=_count, default=None)
    parser.add_argument("--judge", default=None)
    parser.add_argument("--mode", default="all")
    found, rest = parser.parse_known_args(list(arguments))
    ours = MODEL in found.model
    if ours and len(found.model) > 1:
        raise WrongUsage(
            f"--model {' '.join(map(str, found.model))}: run model apr and other models one after the other"
        )
    if not found.data:
        raise WrongUsage("--data is missing; our tasks are listed by: apr tasks, and aliases in docs/vlmeval.md")
    if not ours and found.model_args is not None:
        raise WrongUsage(f"--model_args are for model apr, not for {shortened(found.model[0], 60)}")
    if found.mode == "eval" and ours:
        raise WrongUsage("--mode eval can't apply to model apr: the same command with --mode all asks nothing again")
    if ours:
        _refuse(rest)
    settings = _settings(found.model_args or "", found.work_dir) if ours else None
    names = [one for name in found.data for one in expanded(name)]
    for name in names:
        if name.startswith(OURS) and task_of(name) is None:
            raise WrongUsage(
                f"there is no task {quoted(name, 60)}{did_you_mean(name, known())}; list them with: apr tasks"
            )
    if found.mode != "all":
        rest += ["--mode", found.mode]
    return Command(
        tuple(found.model),
        tuple(dict.fromkeys(names)),
        _folder(found.work_dir),
        settings,
        found.limit,
        found.judge,
        tuple(rest),
        found.model_args or "",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{quoted(text, 40)} is not a whole number above 0")
    return int(text)


def _refuse(rest: Sequence[str]) -> None:
    for word in rest:
        name = word.partition("=")[0]
        if name in _REFUSED:
            raise WrongUsage(f"{name} can't apply to model apr: {_REFUSED[name]}; leave it out")


def _settings(text: str, work_dir: Path | None) -> dict[str, Any]:
    """The model's arguments, with the folder of the trajectories; mistakes are found before anything is loaded."""
    try:
        settings = parse_model_args(text)
        settings.setdefault("trajectories", str((work_dir or _default_folder()) / "trajectories"))
        check_arguments(settings)
    except WrongUsage:
        raise
    except AprError as error:
        raise WrongUsage(str(error)) from None
    return settings


def _default_folder() -> Path:
    return Path(variable("MMEVAL_ROOT") or "outputs")  # VLMEvalKit's own variable and default


def _folder(given: Path | None) -> Path:
    folder = (given or _default_folder()).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".apr-write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise AprError(
            f"--work-dir {folder}: cannot write there: {error.strerror}. Choose a folder you can write to."
        ) from error
    return folder


def new_folder(work_dir: Path) -> tuple[Path, str]:
    """A new folder for one evaluation, and its time, which is its name.

    VLMEvalKit takes the predictions of an earlier run from its folder without being asked (ms-vlmeval 0.0.20), and then
    asks no question again, not even those that failed.
    """
    while True:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        try:
            (work_dir / stamp).mkdir()
        except FileExistsError:
            time.sleep(0.2)
            continue
        except OSError as error:
            raise AprError(f"--work-dir {work_dir}: cannot write there: {error.strerror}") from error
        return work_dir / stamp, stamp
