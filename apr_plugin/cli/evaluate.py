"""`apr eval`: lmms-eval's command line with our tasks included and errors in one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.errors import UNANSWERED, AprError, require
from apr_plugin.files import check_regular
from apr_plugin.harnesses.lmms_eval import ending
from apr_plugin.harnesses.lmms_eval.command import check_options, say_unused
from apr_plugin.harnesses.lmms_eval.task_files import parsed_by_libyaml
from apr_plugin.installed import explain, importing, is_import_fault
from apr_plugin.policies import did_you_mean
from apr_plugin.runs.arguments import check_once
from apr_plugin.runs.settings import check_arguments
from apr_plugin.terminal import complain, console, guard_logs, plain, print_traceback, quoted, shortened

HELP = """\
Usage: apr eval [OPTIONS OF LMMS-EVAL]

lmms-eval's own command line, with these differences: the model is 'apr' unless --model names another; our task folder
is included in addition to your --include_path; trajectories are written to OUTPUT_PATH/trajectories; exit status 1 is
a failed run, 2 wrong usage, 3 unanswered questions.

  apr eval --tasks apr_needle --model_args policy=needle --output_path out
  apr eval --tasks videomme --model_args policy=needle,arm=passive,passive_frames=32 --limit 8

model_args: policy=NAME, then limits (max_turns=, frames_per_look=, …), sampling (temperature=, …), the policy's own
arguments, and
  arm=agent|passive|blind|single_frame|shuffled|oracle  passive_frames=32  profile=default|omniagent
  wire=apr|omniagent|compact  parsing=repair|strict  system_prompt=FILE
  seed=0  concurrency=4  trajectories=DIR  resume=auto|never
`apr tasks` lists our tasks; `lmms-eval eval --help` lists every option; --verbosity DEBUG shows tracebacks.
If a run is stopped, the same command continues it.
"""


def tasks_dir() -> Path:
    """Folder of the task YAMLs of this package, for lmms-eval's `--include_path`."""
    import apr_plugin.tasks

    return Path(next(iter(apr_plugin.tasks.__path__))).resolve()


def run_eval(arguments: Sequence[str]) -> int:
    """Run lmms-eval and return the exit status.

    Raises:
        MissingExtra: lmms-eval is not installed.
    """
    try:
        _check_words(arguments)
    except _WrongUsage as error:
        complain(str(error))
        return 2
    require("lmms_eval", "lmms")
    sys.argv = ["lmms-eval", *_with_defaults(list(arguments))]
    with console(stderr=True).status("loading lmms-eval …"), importing("lmms-eval", "lmms"):
        import lmms_eval.__main__ as lmms_main
    guard_logs()  # lmms-eval has imported loguru

    ending.FAILURES.clear()
    ending.exit_status_is_set = True
    run_one = lmms_main.cli_evaluate_single

    def guarded(args: Any) -> Any:
        try:
            _prepare(args)
            results = run_one(args)
            if args.output_path and results[0] is not None:
                _check_results(Path(args.output_path), results[0])
        except _WrongUsage as error:
            complain(str(error))
            raise SystemExit(2) from None
        except Exception as error:  # noqa: BLE001 - whatever lmms-eval raises becomes one message
            if args.verbosity == "DEBUG":
                print_traceback()
            complain(_explain(error, args))
            raise SystemExit(1) from None  # lmms-eval's loop catches exceptions, prints a traceback and exits with 0
        return results

    lmms_main.cli_evaluate_single = guarded
    try:
        with parsed_by_libyaml():
            lmms_main.cli_evaluate()
    finally:
        lmms_main.cli_evaluate_single = run_one
    if failures := ending.FAILURES:
        complain(
            f"{len(failures)} questions could not be answered and count as wrong; the first: {failures[0]}. "
            "The same command asks only those again."
        )
    status = UNANSWERED if failures else 0
    ending.end_rank(status)
    return status


def _check_words(arguments: Sequence[str]) -> None:
    """Check the command line itself: an option that is given twice, and a configuration that is not a file.

    lmms-eval takes the last value of an option that is given twice.
    """
    words = [word.partition("=") for word in arguments]
    for name, count in Counter(name for name, _, _ in words if name.startswith("--")).items():
        if count > 1:
            raise _WrongUsage(f"{shortened(name, 60)} is given {count} times; give it only once")
    for number, (name, _, value) in enumerate(words):
        if name == "--config" and (value or len(words) > number + 1):
            try:
                check_regular(value or arguments[number + 1])
            except (OSError, ValueError) as error:
                raise _WrongUsage(
                    f"--config {value or arguments[number + 1]}: {getattr(error, 'strerror', None) or error}"
                ) from error


def _with_defaults(arguments: list[str]) -> list[str]:
    names = {argument.partition("=")[0] for argument in arguments}
    if "--model" not in names and "--config" not in names:
        arguments += ["--model", "apr"]
    if "--verbosity" not in names:
        arguments += ["--verbosity", "WARNING"]
    return arguments


_LISTS: dict[str, tuple[str, ...]] = {
    "list": (),
    "list_groups": ("subtasks", "tags"),
    "list_tags": ("groups", "subtasks"),
    "list_subtasks": ("groups", "tags"),
}
"""Values of --tasks that print a list, and what each list leaves out.

lmms-eval itself only logs the lists, below the level that is shown.
"""


class _WrongUsage(AprError):
    """The command line itself is wrong."""


def _prepare(args: Any) -> None:
    """Check what can be checked early, and fill in our task folder and the folder of the trajectories."""
    given = args.include_path
    args.include_path = [str(tasks_dir()), *([given] if isinstance(given, str) else given or [])]
    if not args.tasks:
        raise _WrongUsage("--tasks is missing; list the tasks with: apr tasks, or apr eval --tasks list")
    if args.tasks in _LISTS:
        _print_list(args)
        raise SystemExit(0)
    _check_paths(args)
    if args.model == "apr":
        _check_model_args(args.model_args)
        try:
            check_options(vars(args))
        except AprError as error:
            raise _WrongUsage(str(error)) from None
        if args.gen_kwargs:
            say_unused(args.gen_kwargs)
            args.gen_kwargs = ""
        if args.output_path and "trajectories=" not in args.model_args:
            args.model_args = ",".join(
                filter(None, [args.model_args, f"trajectories={Path(args.output_path) / 'trajectories'}"])
            )


def _print_list(args: Any) -> None:
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=args.include_path)
    left_out = {f"list_{kind}": False for kind in _LISTS[args.tasks]}
    print(plain(manager.list_all_tasks(**left_out) if left_out else "\n".join(sorted(manager.all_tasks))))  # noqa: T201


def _check_model_args(text: str) -> None:
    """Report mistakes before lmms-eval loads its tasks and the policy loads its model, which take longer."""
    from lmms_eval.utils import simple_parse_args_string

    try:
        check_once(text)
        check_arguments(simple_parse_args_string(text))
    except ValueError:
        raise _WrongUsage(f"--model_args {text}: every part must be key=value") from None
    except AprError as error:
        raise _WrongUsage(str(error)) from None


def _check_paths(args: Any) -> None:
    for folder in args.include_path:
        if not Path(folder).is_dir():
            raise AprError(f"--include_path {folder}: no such folder")
    path = args.output_path
    if not path:
        return
    if "," in path:
        raise AprError(f"--output_path {path}: lmms-eval can't take a path with a comma; choose another")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        probe = Path(path) / f".apr-write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise AprError(
            f"--output_path {path}: cannot write there: {error.strerror}. Choose a folder you can write to."
        ) from error


def _check_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Check that lmms-eval wrote its results; if it can't, it only logs that and exits with 0.

    The file has the run's date in its name and these scores in it.
    """
    for path in folder.rglob(f"{str(results.get('date', '*')).replace(':', '-')}_results.json"):
        with contextlib.suppress(ValueError, OSError):
            written = json.loads(path.read_bytes())
            if isinstance(written, dict) and list(written.get("results", ())) == list(results.get("results", ())):
                return
    raise AprError(
        f"--output_path {folder}: lmms-eval could not write its results there. Make room and run the same "
        "command again."
    )


def _explain(error: BaseException, args: Any) -> str:
    attempt = getattr(error, "last_attempt", None)
    # lmms-eval tries some steps several times, and then names only that.
    if attempt is not None and attempt.exception() is not None:
        error = attempt.exception()
    text = str(error)
    if text.startswith("Tasks not found: "):
        from lmms_eval.tasks import TaskManager

        missing = text.removeprefix("Tasks not found: ").split(". Try ")[0]
        known = TaskManager("ERROR", include_path=args.include_path).all_tasks
        named = ", ".join(f"{quoted(task)}{did_you_mean(task, known)}" for task in missing.split(", "))
        return f"there is no task {named}; list them with: apr tasks, or apr eval --tasks list"
    if isinstance(error, AprError):
        return text
    if is_import_fault(error):
        return f"lmms-eval can't run: {explain(error, 'lmms')}"
    return f"lmms-eval: {type(error).__name__}: {text or 'no message'} (the traceback is shown with --verbosity DEBUG)"
