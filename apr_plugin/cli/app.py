"""The commands and their options; each command is in a module of its own, which is imported when the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from apr_plugin import __version__, interrupt
from apr_plugin.cli import added
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.terminal import complain, guard_logs, guarded_streams, print_traceback


class _Commands(TyperGroup):
    def main(self, *arguments: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run the command line and report wrong usage in one line.

        typer's own form of that message prints what was typed as it is.
        """
        if not standalone_mode:
            return super().main(*arguments, standalone_mode=False, **more)  # type: ignore[misc]
        try:
            status = super().main(*arguments, standalone_mode=False, **more)  # type: ignore[misc]
        except typer.Abort:
            raise SystemExit(130) from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer has click's exceptions, or its own copies of them
                raise
            complain(f"{error.format_message()}{_where_help_is(error)}")
            raise SystemExit(getattr(error, "exit_code", 2)) from None
        raise SystemExit(status if isinstance(status, int) else 0)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of ours, or one that another package adds."""
        return super().get_command(ctx, cmd_name) or added.command(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Our commands, then those that other packages add."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in added.names() if name not in own)]

    def invoke(self, ctx: Any) -> Any:
        """Run a command and handle Ctrl-C here, because typer's own handling differs between releases."""
        try:
            with interrupt.heard():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; the same command continues where it was", file=sys.stderr)  # noqa: T201
            raise SystemExit(interrupt.STATUS) from None


def _where_help_is(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f" (see: {context.command_path} --help)" if context is not None else ""


app = typer.Typer(
    name="apr",
    cls=_Commands,
    help="Active perception for long video: a model that chooses what to look at, inside lmms-eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
needle = typer.Typer(
    help="The diagnostic benchmark that needs no download: real video files made from a seed.", no_args_is_help=True
)
app.add_typer(needle, name="needle")
tasks = typer.Typer(help="The tasks of this package and their data.", invoke_without_command=True)
app.add_typer(tasks, name="tasks")

DEFAULT_MODEL_ARGS = "policy=needle"


def main() -> None:
    """Run the command line; errors that a user can act on are printed as one message."""
    with guarded_streams():
        guard_logs()
        try:
            app()
        except AprError as error:
            complain(str(error))
            raise SystemExit(2 if isinstance(error, WrongUsage) else 1) from None
        except Exception:  # noqa: BLE001 - a bug of ours; its traceback contains text of others
            print_traceback()
            raise SystemExit(1) from None


def _version(asked: bool) -> None:
    if asked:
        print(f"apr-plugin {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the benchmark, results and trajectories.")] = Path("demo_out"),
    videos: Annotated[int, typer.Option(min=1, help="Videos for each duration (1, 10, 30, 60, 120 minutes).")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 4,
) -> None:
    """Make a small benchmark of real videos, compare an agent with four other arms on it, and write the page.

    After a stop or a kill, the same command continues where it was.
    """
    from apr_plugin.cli.demo import run_demo

    raise SystemExit(run_demo(out, videos_per_bucket=videos, concurrency=concurrency))


_TASKS = typer.Option("--tasks", help="Tasks of lmms-eval, separated by commas; `apr tasks` lists ours.")
_LIMIT = typer.Option(min=1, help="Only the first N questions of each task.")
_INCLUDE = typer.Option("--include-path", "--include_path", help="A folder with further tasks for lmms-eval.")
_AGAIN = typer.Option("--again", help="Run also the arms that are finished.")
_THUMBNAILS = typer.Option("--thumbnails", help="Put the frames that were shown into the page; reads the videos again.")
_PRICES = typer.Option(help="A file with the prices of models, for the cost in money (see docs/compare.md).")
_OUT = typer.Option(help="Folder of the report; an arm's folder in it has its results and trajectories.")


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Finished runs to compare, in place of arms to run.")
    ] = None,
    tasks: Annotated[str, _TASKS] = "",
    agent: Annotated[
        list[str] | None,
        typer.Option(help="model_args of an agent, for example policy=hf,pretrained=NAME. Repeatable."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another arm: passive:matched, passive:frames=N, blind, single_frame, shuffled, oracle, "
            "lmms:MODEL,ARGS, run:DIR, rows:FILE, published:NAME. Repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, _OUT] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    include_path: Annotated[str | None, _INCLUDE] = None,
    again: Annotated[bool, _AGAIN] = False,
    prices: Annotated[Path | None, _PRICES] = None,
    thumbnails: Annotated[bool, _THUMBNAILS] = False,
) -> None:
    """Run several arms on the same questions through lmms-eval, test the differences in pairs, and write a page.

    An arm that is finished is not run again, and one that was stopped continues. The report is written to
    results/runs/NAME without --out. Exit status 3: an arm has questions that could not be answered.
    """
    from apr_plugin.cli.compare import run_compare

    status = run_compare(
        runs or [],
        tasks=tasks,
        agents=agent or [],
        against=against or [],
        out=out,
        limit=limit,
        include_path=include_path,
        again=again,
        prices=prices,
        thumbnails=thumbnails,
    )
    raise SystemExit(status)


@app.command()
def sweep(
    setting: Annotated[str, typer.Argument(help="SETTING=VALUE,VALUE,…, for example turns=6,12,22 or frames=8,32.")],
    tasks: Annotated[str, _TASKS],
    agent: Annotated[str, typer.Option(help="model_args of the agent, without that setting.")],
    out: Annotated[Path | None, _OUT] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    include_path: Annotated[str | None, _INCLUDE] = None,
    again: Annotated[bool, _AGAIN] = False,
) -> None:
    """Run one agent with several values of a setting, such as its turns, and show how it scales."""
    from apr_plugin.cli.compare import run_sweep

    status = run_sweep(setting, tasks=tasks, agent=agent, out=out, limit=limit, include_path=include_path, again=again)
    raise SystemExit(status)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs, or the folder of a comparison.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the report; without it the run's own folder.")] = None,
    prices: Annotated[Path | None, _PRICES] = None,
    thumbnails: Annotated[bool, _THUMBNAILS] = False,
) -> None:
    """Write the page of finished runs: one file that needs no network, with every look of every question."""
    from apr_plugin.cli.compare import run_report

    raise SystemExit(run_report(runs, out, prices=prices, thumbnails=thumbnails))


@app.command()
def view(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs, or the folder of a comparison; they may still be going on.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on this machine; 0 chooses a free one.")] = 0,
) -> None:
    """Show the page in a browser, on this machine only, and refresh it while the runs go on. Ctrl-C stops."""
    from apr_plugin.cli.compare import run_view

    run_view(runs, port)


@app.command()
def export(
    board: Annotated[
        str,
        typer.Argument(
            help="lvbench, videomme, longvideobench, mlvu, vue_tr, vue_tr_v2, model_card, inspect (inspect_ai), "
            "lmms_trace (lmms-eval's agentic traces) or card."
        ),
    ],
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    out: Annotated[Path | None, typer.Option(help="The file, or for inspect, lmms_trace and card the folder.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="The benchmark's own file of questions.")] = None,
    config: Annotated[str | None, typer.Option(help="The run's configuration, if the folder has several.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Of several, the one that was evaluated last.")] = False,
) -> None:
    """Write a run in the form that a leaderboard takes, as a model card, as logs or traces of others, or as a card."""
    from apr_plugin.cli.export import run_export

    run_export(board, run, out, annotations=annotations, config=config, latest=latest)


@app.command()
def reproduce(
    card: Annotated[Path, typer.Argument(help="A card.yaml, or the folder that holds it.")],
    out: Annotated[Path | None, typer.Option(help="The new run's folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take servers, files and engine arguments from the card, too.")
    ] = False,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", "--include_path", help="The run's task folder; its code is run.")
    ] = None,
) -> None:
    """Run a card again and say what differs. Exit status 4: the scores differ."""
    from apr_plugin.cli.reproduce import run_reproduce

    raise SystemExit(run_reproduce(card, out=out, dry_run=dry_run, trust=trust, include_path=include_path))


@app.command(
    "eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def evaluate(context: typer.Context) -> None:
    """Evaluate with lmms-eval: its own command line, with our tasks found and clearer errors.

    Every option goes to lmms-eval. Differences: the model is 'apr' unless you name another; our task folder is included
    in addition to yours; trajectories are written to OUTPUT_PATH/trajectories; the exit status tells a failed run (1),
    wrong usage (2) and unanswered questions (3).
    """
    from apr_plugin.cli.evaluate import HELP, run_eval

    if not context.args or context.args[0] in ("--help", "-h"):
        print(HELP)  # noqa: T201
        raise typer.Exit
    raise SystemExit(run_eval(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def vlmeval(context: typer.Context) -> None:
    """Evaluate with VLMEvalKit: its own runner, with our tasks and an alias of each of its video data sets.

    Every option goes to VLMEvalKit. Exit status 3: some questions were not answered. docs/vlmeval.md has the details.
    """
    from apr_plugin.cli.vlmeval import run_vlmeval

    raise SystemExit(run_vlmeval(context.args))


@app.command()
def ask(
    video: Annotated[
        list[str],
        typer.Argument(
            help="VIDEO [VIDEO …] QUESTION: one or more files, then the question.", metavar="VIDEO... QUESTION"
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help='An option of a multiple-choice question, "A. red"; repeat it.'),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="mcq, grounding, number or free_form; default: mcq if there are options, else free_form."),
    ] = None,
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model-args",
            "-m",
            help="The same key=value list as for lmms-eval; default: the small agent of this package for what it was "
            "trained on, otherwise the scripted policy=needle.",
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Append the trajectory to this file.")] = None,
) -> None:
    """Ask one question and print each turn: thought, action, what came back, cost."""
    from apr_plugin.cli.ask import run_ask

    if len(video) < 2:
        raise typer.BadParameter("give at least one video and the question", param_hint="VIDEO... QUESTION")
    raise SystemExit(run_ask(video[:-1], video[-1], option or [], kind, model_args, save))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A trajectory file, or a folder of them.")],
    id: Annotated[str | None, typer.Option(help="Only this doc id, turn by turn.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only questions that could not be answered.")] = False,
) -> None:
    """Show trajectories: a table of all, or one of them turn by turn."""
    from apr_plugin.cli.show import run_show

    run_show(path, id, task, failed)


@app.command()
def strict(
    path: Annotated[
        Path,
        typer.Argument(help="A finished run: its output folder, its folder of trajectories, or a trajectory file."),
    ],
    samples: Annotated[
        Path | None,
        typer.Option(
            help="lmms-eval's samples (--log_samples), a folder or a file; default: those in PATH, if it is a folder."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, every question, scores from 0 to 1.")] = False,
) -> None:
    """Report what strict parsing (parsing=strict, as OmniAgent counts) would have made of a finished run.

    What can't be known from the run is reported as unknown.
    """
    from apr_plugin.cli.strict import run_strict

    run_strict(path, samples, json)


@app.command()
def probe(
    path: Annotated[Path, typer.Argument(help="A media file.")],
    media_root: Annotated[
        Path | None, typer.Option(help="Folder that must contain the file, after links are resolved.")
    ] = None,
) -> None:
    """Print what the reader finds in a file, with a warning for each oddity."""
    from apr_plugin.cli.probe import run_probe

    run_probe(path, media_root)


@app.command()
def doctor(
    fast: Annotated[bool, typer.Option("--fast", help="Only check what is installed; try nothing.")] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="Also say which profile this checkpoint (folder or hub name) carries."),
    ] = None,
) -> None:
    """Try what each command needs, and list the installed versions, extras and devices and what will work.

    Exit status 1: something that is installed does not work; the output names the package that breaks it and the
    command that repairs it. Or the checkpoint's profile can't be read.
    """
    from apr_plugin.cli.doctor import run_doctor

    raise SystemExit(run_doctor(fast, checkpoint))


@tasks.callback()
def tasks_all(
    context: typer.Context,
    path: Annotated[
        bool, typer.Option("--path", help="Print only the folder, for lmms-eval's --include_path.")
    ] = False,
) -> None:
    """List the tasks of this package, and the benchmarks whose questions are read from columns."""
    from apr_plugin.cli.tasks import run_tasks

    if context.invoked_subcommand is None:
        run_tasks(path)


@tasks.command("list")
def tasks_list() -> None:
    """List the tasks: what they ask, how they are scored, and which of their data is on this machine."""
    from apr_plugin.cli.tasks import run_list

    run_list()


@tasks.command("check")
def tasks_check(
    task: Annotated[str, typer.Argument(help="A task, such as apr_lvbench.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of its videos; default: where the task looks for them.")
    ] = None,
    hashes: Annotated[bool, typer.Option(help="Compute SHA-256 of every video, which reads all of it.")] = True,
    out: Annotated[Path | None, typer.Option(help="File for the manifest; default: in the cache.")] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that must contain every video, after links are resolved; others count as unreadable."
        ),
    ] = None,
) -> None:
    """Open every video of a task; name those that are missing, unreadable or of another length; write a manifest.

    Exit status 1: some are missing.
    """
    from apr_plugin.cli.tasks import run_check

    raise SystemExit(run_check(task, videos, hashes, out, media_root))


@app.command()
def score(
    benchmark: Annotated[str, typer.Argument(help="vue_tr or vue_tr_v2.")],
    ground_truth: Annotated[Path, typer.Option(help="The benchmark's own file of queries.")],
    predictions: Annotated[
        Path,
        typer.Option(help='JSON list or JSON Lines of {"query_id": 0, "answer": [[start, end], ...]}, in seconds.'),
    ],
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON (shares from 0 to 1) instead of a table (percent).")
    ] = False,
) -> None:
    """Score a file of predictions as the benchmark's own script does, and also with missing queries counted as zero."""
    from apr_plugin.cli.score import run_score

    run_score(benchmark, ground_truth, predictions, json)


@app.command()
def published(
    benchmark: Annotated[str | None, typer.Argument(help="Such as lvbench; default: list the benchmarks.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the figures that papers report for a benchmark, each with its source."""
    from apr_plugin.cli.published import run_published

    run_published(benchmark, json)


@app.command("omniagent-prompt")
def omniagent_prompt(
    clone: Annotated[Path, typer.Argument(help="Folder of a clone of github.com/HarryHsing/OmniAgent.")],
    out: Annotated[str, typer.Option(help="File for the prompt; - prints it.")] = "omniagent_prompt.txt",
    frames_per_look: Annotated[int, typer.Option(min=1, max=100_000, help="Most frames of one look.")] = 60,
    audio_s: Annotated[
        str, typer.Option(help="Seconds of sound, written as in the prompt (300 and 300.0 differ).")
    ] = "300",
    clip_s: Annotated[str, typer.Option(help="Seconds of a clip, written as in the prompt.")] = "60",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write the system prompt that OmniAgent's checkpoints were trained with, read from a clone of its repository.

    The clone's code is not run. Give the file to a run with model_args system_prompt=FILE and profile=omniagent.
    """
    from apr_plugin.cli.omniagent_prompt import run_omniagent_prompt

    run_omniagent_prompt(clone, out, frames_per_look, audio_s, clip_s, force)


@needle.command("make")
def needle_make(
    out: Annotated[Path | None, typer.Option(help="Folder; default: the cache, where the tasks find it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all videos and questions.")] = 0,
    buckets: Annotated[str, typer.Option(help="Durations, comma-separated.")] = "1m,10m,30m,60m,120m",
    videos: Annotated[int, typer.Option(help="Videos for each duration.")] = 2,
    questions: Annotated[int, typer.Option(help="Questions of each kind about each video.")] = 2,
    width: Annotated[int, typer.Option(help="Width of the frames in pixels.")] = 224,
    height: Annotated[int, typer.Option(help="Height of the frames in pixels.")] = 224,
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 10.0,
    gop: Annotated[float, typer.Option(help="Seconds between keyframes, 2 to 10.")] = 5.0,
    decoys: Annotated[float, typer.Option(help="Chance that a scene gets a distractor event, 0 to 1.")] = 0.5,
    lookalike: Annotated[
        bool, typer.Option("--lookalike", help="Chapter colours that are hard to tell apart.")
    ] = False,
    event_length: Annotated[
        float, typer.Option(help="Factor on the length of events, 1 to 3; longer is easier.")
    ] = 1.0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Write the videos and questions. Finished videos are kept, so a stopped command can be continued."""
    from apr_plugin.cli.needle import run_make

    run_make(
        out,
        workers,
        seed=seed,
        buckets=tuple(name.strip() for name in buckets.split(",") if name.strip()),
        videos_per_bucket=videos,
        questions_per_kind=questions,
        width=width,
        height=height,
        fps=fps,
        gop_s=gop,
        decoys=decoys,
        lookalike=lookalike,
        event_length=event_length,
    )


@app.command()
def serve(
    model_args: Annotated[
        str, typer.Option("--model_args", "--model-args", "-m", help="The policy and its limits, as for `apr eval`.")
    ] = DEFAULT_MODEL_ARGS,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder whose files requests may name; repeatable. Without it only uploads are read."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback it needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 chooses a free one.")] = 8000,
    out: Annotated[Path, typer.Option(help="Folder for the trajectories of all questions.")] = Path("apr_serve"),
    model_name: Annotated[str, typer.Option(help="Name of the model in requests.")] = "apr",
    max_concurrent: Annotated[int, typer.Option(min=1, max=10_000, help="Episodes at once.")] = 4,
    queue: Annotated[
        int, typer.Option(min=0, max=100_000, help="Requests that may wait; further ones get status 429.")
    ] = 64,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=1, max=1_000_000, help="Seconds that an episode may take.")
    ] = 600,
    max_upload_mib: Annotated[
        float, typer.Option(min=0, max=4096, help="MiB of all files that a request brings along.")
    ] = 64,
    drain_s: Annotated[
        float, typer.Option("--drain-s", min=1, max=86_400, help="Seconds that running episodes get when it stops.")
    ] = 60,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds the API key.")] = None,
    unanswered: Annotated[
        str,
        typer.Option(
            metavar="status|null",
            help="A question that could not be asked gets an error status, or (for harnesses) the answer (null).",
        ),
    ] = "status",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no line for each request.")] = False,
) -> None:
    """Serve the agent as an OpenAI-compatible endpoint: /v1/chat/completions and /v1/models.

    A request with a video and a question runs an episode; docs/serve.md has examples, statuses and limits. SIGTERM or
    Ctrl-C lets running episodes end; a second Ctrl-C ends at once.
    """
    from apr_plugin.cli.serve import run_serve

    run_serve(
        model_args,
        roots=root or [],
        host=host,
        port=port,
        out=out,
        name=model_name,
        max_concurrent=max_concurrent,
        queue=queue,
        timeout_s=timeout_s,
        max_upload_mib=max_upload_mib,
        drain_s=drain_s,
        api_key_env=api_key_env,
        api_key_file=api_key_file,
        unanswered=unanswered,
        quiet=quiet,
    )


@app.command("app")
def page(
    model_args: Annotated[
        str | None,
        typer.Option(
            "--model_args",
            "--model-args",
            "-m",
            help="The same key=value list as for `apr eval`; default: the small agent of this "
            "package, or else a policy that is no model.",
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="Folder of videos, or of a needle set; default: two needle videos, which are made."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that must contain the examples, after links are resolved.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 chooses a free one.")] = 7860,
    out: Annotated[Path | None, typer.Option(help="Folder for the trajectories; default: none are kept.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Investigations at once; default: model_arg concurrency.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, max=10_000, help="Investigations that may wait.")] = 16,
    max_upload_mib: Annotated[int, typer.Option(min=1, max=1_048_576, help="Largest upload, in MiB.")] = 512,
    max_upload_minutes: Annotated[float, typer.Option(min=0.01, max=10_080, help="Longest upload, in minutes.")] = 180,
    timeout_s: Annotated[float, typer.Option(min=1, max=604_800, help="Seconds that an investigation may take.")] = 600,
) -> None:
    """Serve a page on which a visitor asks about a video and watches the agent look. Ctrl-C stops.

    It needs no network and sends nothing to outside. docs/app.md has the details.
    """
    from apr_plugin.cli.page import run_app
    from apr_plugin.harnesses.app.server import Options
    from apr_plugin.harnesses.app.uploads import Limits

    options = Options(host, port, out, max_concurrent, queue, Limits(max_upload_mib, max_upload_minutes), timeout_s)
    run_app(model_args, examples, root, options)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A file of records that were made elsewhere, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="The new run's folder.")],
    format: Annotated[str, typer.Option(help="omniagent or inspect; default: as the files are.")] = "",
    task: Annotated[str, typer.Option(help="Name of the task; default: the record's own.")] = "",
    scorer: Annotated[str, typer.Option(help="Of several scorers of inspect_ai, the one that gives the score.")] = "",
    like: Annotated[
        Path | None, typer.Option(help="A run whose names of the same questions are taken, to compare with it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier import in that folder.")] = False,
) -> None:
    """Import a run that was made elsewhere, so that it can be shown, reported and compared; say what it lacks.

    No file that is named in it is opened. Exit status 1: nothing could be read.
    """
    from apr_plugin.cli.importing import run_import

    raise SystemExit(run_import(source, out, format_name=format, task=task, scorer=scorer, like=like, force=force))


if __name__ == "__main__":
    main()
