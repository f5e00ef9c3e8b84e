"""`apr vlmeval`: VLMEvalKit's own runner with model `apr`, our tasks, and aliases of its video data sets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr_plugin import interrupt
from apr_plugin.errors import UNANSWERED, AprError, WrongUsage, require
from apr_plugin.harnesses.vlmeval.arguments import Command, new_folder, read_command
from apr_plugin.harnesses.vlmeval.host import variable
from apr_plugin.harnesses.vlmeval.registry import MODEL, task_of
from apr_plugin.harnesses.vlmeval.task_files import read_task
from apr_plugin.policies import did_you_mean
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.terminal import complain, console, guard_logs, guarded_streams, quoted, warn

HELP = """\
Usage: apr vlmeval --data NAME [NAME …] [--model_args KEY=VALUE,…] [OPTIONS OF VLMEVALKIT]

VLMEvalKit's own runner, with these differences: the model is 'apr' unless --model names another; our tasks are data
sets (apr tasks), and every video data set has an alias for the agent (Video-MME_agent); trajectories are written to
WORK_DIR/trajectories; exit status 1 is a failed run, 2 wrong usage, 3 unanswered questions.

  apr vlmeval --data apr_needle --model_args policy=needle --work-dir out
  apr vlmeval --data Video-MME_agent --model_args policy=vllm,pretrained=NAME --work-dir out
  apr vlmeval --data apr_needle_64frame --model Qwen2.5-VL-7B-Instruct --work-dir out

--limit N asks only the first N questions of each data set. docs/vlmeval.md lists the data sets, and
docs/lmms-eval.md the model_args. If a run is stopped, the same command continues it.
"""


def run_vlmeval(arguments: Sequence[str]) -> int:
    """Run VLMEvalKit and return the exit status.

    Raises:
        MissingExtra: VLMEvalKit is not installed.
        AprError: it can't run, or a data set was not evaluated.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)  # noqa: T201
        return 0
    command = read_command(arguments)
    require("vlmeval", "vlmeval")
    _check_environment(command)
    from apr_plugin.harnesses.vlmeval.registry import register

    with console(stderr=True).status("loading VLMEvalKit, which can take a minute …"):
        host = register(command.settings, limit=command.limit)
    guard_logs()
    _check_data(command, host)
    if command.ours:
        return _run_ours(command, host)
    began = time.time()
    with _options(command, host):
        host.run(command.for_host(command.work_dir))
    stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(began))
    return _end(command, host, command.work_dir, stamp, since=began)


def _run_ours(command: Command, host: Any) -> int:
    from apr_plugin.harnesses.vlmeval.model import session_of

    assert command.settings is not None
    folder, stamp = new_folder(command.work_dir)
    with session_of(command.settings) as session:
        with _options(command, host):
            host.run(command.for_host(folder))
        interrupt.check()
        if session.fault is not None:
            raise session.fault
        status = _end(command, host, folder, stamp, session=session)
    console(stderr=True).print(f"apr: {session.summary()}")
    if lost := session.unanswered:
        for line in lost[:5]:
            complain(line)
        complain(
            f"{len(lost)} questions could not be answered; whatever VLMEvalKit's figures make of them, they count as "
            "wrong here. The same command asks only those again."
        )
    return status or (UNANSWERED if lost else 0)


def _end(command: Command, host: Any, folder: Path, stamp: str, *, session: Any = None, since: float = 0.0) -> int:
    """Write the results in our form, and say which data sets were not evaluated; 1 if any was not."""
    from apr_plugin.harnesses.vlmeval.asked import DATASETS
    from apr_plugin.harnesses.vlmeval.results import read_status, score_rows, write_results

    finished, model = read_status(folder, since=since)
    trajectories = {} if session is None else session.trajectories
    versions: dict[str, str] = {}
    stems = [one.predictions.stem for one in finished.values() if one.predictions is not None]
    for name, one in finished.items():
        dataset = DATASETS.get(name)
        if dataset is None:  # not `or`: a data set has no length after its evaluation
            dataset = DATASETS.get(task_of(name) or "")
        if one.problem or dataset is None:
            continue
        one.rows = list(score_rows(one, dataset, trajectories, stems))
        if one.rows and not any("score" in row for row in one.rows):
            warn(f"{name}: VLMEvalKit wrote no score of single questions, so apr compare can't use them")
        if (task := getattr(dataset, "task", None)) is not None:
            versions[task.name] = task.version
    run = (
        None if session is None else {"config_hash": session.config_hash, "folder": str(session.store.folder.resolve())}
    )
    write_results(
        command.work_dir,
        stamp,
        finished,
        model=MODEL if session is not None else model,
        host=host.version,
        arguments=command.settings or {},
        run=run,
        versions=versions,
        asked=command.record() if session is not None else None,
    )
    infer_only = "mode_infer"
    missing = [name for name in command.data if name not in finished]
    failed = {name: one.problem for name, one in finished.items() if one.problem and one.problem != infer_only}
    for name, why in [*failed.items(), *((name, "VLMEvalKit skipped it; its messages say why") for name in missing)]:
        complain(f"{name} was not evaluated: {why}")
    return 1 if failed or missing else 0


def _check_environment(command: Command) -> None:
    if command.ours and variable("WORLD_SIZE") not in ("", "1"):
        raise WrongUsage("model apr answers in one process: start it without torchrun, and give concurrency=N")
    if variable("PRED_FORMAT") == "json":
        raise WrongUsage("PRED_FORMAT=json: VLMEvalKit's video data sets can't score such files; use xlsx or tsv")


def _check_data(command: Command, host: Any) -> None:
    """Check the names of the data sets, which VLMEvalKit would only skip."""
    from apr_plugin.harnesses.vlmeval.aliases import aliases

    ours = aliases(host)
    for name in command.data:
        if name in ours and ours[name].known.state == "no":
            raise AprError(f"{name}: the agent can't answer it: {ours[name].known.note}")
        if command.ours and name not in host.video_datasets and f"{name}_agent" in ours:
            raise WrongUsage(f"--data {name}: for model apr it is called {name}_agent")
        if command.ours and name not in host.video_datasets:
            raise WrongUsage(
                f"there is no video data set {quoted(name, 60)}{did_you_mean(name, host.video_datasets)}; "
                "our tasks are listed by: apr tasks, and aliases in docs/vlmeval.md"
            )
        task = task_of(name)
        if task is not None:
            read_task(task).documents()  # VLMEvalKit would only skip a task without its annotations
        elif command.ours and name not in ours:
            warn(f"{name}: its messages don't name the question, so no score is joined to its answer; use the alias")
        if command.limit is not None and name not in ours and task is None:
            raise WrongUsage(f"--limit does not work with {quoted(name, 60)}: use its alias, which ends with _agent")
        if name in ours and ours[name].several and ours[name].dataset in str(command.work_dir.resolve()):
            raise WrongUsage(
                f"--work-dir {command.work_dir}: VLMEvalKit would replace {ours[name].dataset!r} in this path when it "
                f"scores the parts of {name}; choose a folder without it"
            )
        if command.settings is not None and command.settings.get("arm") == "oracle" and not _has_evidence(task):
            raise WrongUsage(f"arm=oracle: {name} does not say where the evidence is; choose another arm")


def _has_evidence(task: str | None) -> bool:
    """Whether a task of ours says where the evidence of any of its questions is."""
    source = sources().get(task or "")
    if source is None or task is None:
        return False
    truths = (source.truth(document) for document in read_task(task).documents())
    return any(truth is not None and truth.spans() for truth in truths)


@contextmanager
def _options(command: Command, host: Any) -> Iterator[None]:
    """Choose exact matching for every data set whose scorer reads our answers without a judge, unless one was named.

    VLMEvalKit's default for these is a judge on a server: without a key it waits and then matches, or fails
    (Video-MME-v2).
    """
    from apr_plugin.harnesses.vlmeval.aliases import aliases

    exact = {name for name, alias in aliases(host).items() if not alias.known.judged}
    chosen = host.runner.get_judge_kwargs

    def judge(name: str, *rest: Any) -> dict[str, Any]:
        found: dict[str, Any] = chosen(name, *rest)
        if command.judge is None and (name in exact or task_of(name) is not None):
            found["model"] = "exact_matching"
        return found

    host.runner.get_judge_kwargs = judge
    try:
        yield
    finally:
        host.runner.get_judge_kwargs = chosen


def main() -> None:
    """Run the command by itself; errors that a user can act on are printed as one message."""
    with guarded_streams():
        guard_logs()
        try:
            with interrupt.heard():
                status = run_vlmeval(sys.argv[1:])
        except KeyboardInterrupt:
            complain("stopped; the same command continues where it was")
            status = interrupt.STATUS
        except AprError as error:
            complain(str(error))
            status = 2 if isinstance(error, WrongUsage) else 1
    raise SystemExit(status)


if __name__ == "__main__":
    main()
