"""`apr train …`: the commands of the training add-on; each loads what it needs when it runs.

They are found through the entry point group `apr_plugin.commands`, so that nothing imports upwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Training data and training: trajectories from a teacher, filtered, made into rows.",
    no_args_is_help=True,
    add_completion=False,
)

_OUT = typer.Argument(help="The folder of a synthesis run.")
_THRESHOLD = typer.Option(min=1, max=5, help="Least rating of every rated step.")
_IOU = typer.Option(help="Least IoU of time spans that count as right.")
_ACCURACY = typer.Option(help="Least relative accuracy of a number that counts as right.")


@app.command()
def synthesize(
    questions: Annotated[
        list[str],
        typer.Option("--questions", "-q", help="A JSON Lines file (docs/training.md), or needle:FOLDER. Repeatable."),
    ],
    teacher: Annotated[str, typer.Option(help="model_args of the teacher, for example policy=openai,model=NAME.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues in it.")],
    attempts: Annotated[int, typer.Option(min=1, max=1000, help="Attempts at a question, up to its first win.")] = 4,
    frames: Annotated[str, typer.Option(help="Range of frames in one look; each attempt draws from it.")] = "30-60",
    clip: Annotated[str, typer.Option(help="Range of seconds of one clip.")] = "30-60",
    audio: Annotated[str, typer.Option(help="Range of seconds of sound in one look.")] = "150-300",
    iou: Annotated[float, _IOU] = 0.5,
    accuracy: Annotated[float, _ACCURACY] = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what it will cost.")] = False,
    prices: Annotated[Path | None, typer.Option(help="A file with the prices of models (see docs/compare.md).")] = None,
) -> None:
    """Let a teacher explore training questions, each until its first right answer.

    After a stop or a kill, the same command continues where it was. Exit status 3: some questions could not be asked.
    """
    from apr_plugin.training.synthesis.running import run_synthesize

    raise SystemExit(
        run_synthesize(
            questions,
            teacher,
            out,
            attempts=attempts,
            ranges=(frames, clip, audio),
            rules=(iou, accuracy),
            limit=limit,
            only_estimate=estimate,
            prices=prices,
        )
    )


@app.command()
def audit(
    out: Annotated[Path, _OUT],
    judge: Annotated[str, typer.Option(help="model_args of the judge, for example policy=openai,model=NAME.")],
    threshold: Annotated[int, _THRESHOLD] = 3,
    iou: Annotated[float, _IOU] = 0.5,
    accuracy: Annotated[float, _ACCURACY] = 0.5,
) -> None:
    """Let a judge rate, turn by turn, whether the steps of the right trajectories follow from their notes.

    Every verdict is kept with its reason. After a stop or a kill, the same command continues where it was. Exit
    status 3: the judge could not be reached for some.
    """
    from apr_plugin.training.synthesis.running import run_audit

    raise SystemExit(run_audit(out, judge, threshold, (iou, accuracy)))


@app.command()
def funnel(
    out: Annotated[Path, _OUT],
    threshold: Annotated[int, _THRESHOLD] = 3,
    judge_hash: Annotated[str, typer.Option(help="Whose verdicts to use, if several judges rated.")] = "",
    without_audit: Annotated[
        bool, typer.Option("--without-audit", help="Keep every right trajectory, also one that was right by luck.")
    ] = False,
    iou: Annotated[float, _IOU] = 0.5,
    accuracy: Annotated[float, _ACCURACY] = 0.5,
) -> None:
    """Write what is kept and why the rest is not: manifest.jsonl, a table and a plot.

    Exit status 1: nothing is kept.
    """
    from apr_plugin.training.synthesis.running import run_funnel

    run_funnel(out, threshold, judge_hash, without_audit, (iou, accuracy))


@app.command()
def rows(
    out: Annotated[Path, _OUT],
    student: Annotated[str, typer.Option(help="The checkpoint to be trained: a folder, or a name on the hub.")],
    file: Annotated[Path, typer.Option(help="Where the rows go, as JSON Lines.")] = Path("rows.jsonl"),
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest row; without it what the student was made for.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the videos that is for validation.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Draws the parts.")] = 0,
    repaired: Annotated[str, typer.Option(help="Turns that the parser repaired: rewrite, or drop.")] = "rewrite",
    chats: Annotated[
        Path | None, typer.Option(help="A JSON Lines file of ordinary chats, mixed in against forgetting.")
    ] = None,
    chat_share: Annotated[
        float | None, typer.Option(help="Share of all train rows that are chats (default: 0.1).")
    ] = None,
    replies: Annotated[str, typer.Option(help="Which replies of a chat are learned: each, or last.")] = "each",
    most_pixels: Annotated[
        int | None, typer.Option(help="Most pixels of a picture, for a student that sees smaller ones.")
    ] = None,
    least_rating: Annotated[
        int | None, typer.Option(min=1, max=5, help="Only turns that the judge rated so are learned.")
    ] = None,
) -> None:
    """Make a row for each turn of the kept trajectories: the prompt as the teacher saw it, and the turn to learn.

    Rows refer to trajectories and videos; nothing is decoded. A turn that becomes no row is counted with its reason.
    With --chats, replies of ordinary text chats are added, so that the student forgets less.
    """
    from apr_plugin.errors import WrongUsage
    from apr_plugin.training.row_command import run_rows, settings_of

    if chats is None and chat_share is not None:
        raise WrongUsage("--chat-share is the share of chats; name their file with --chats")
    settings = settings_of(validation, seed, repaired, replies, chat_share, most_pixels)
    run_rows(out, student, file, context_tokens, settings, chats, least_rating)


@app.command()
def sft(
    config: Annotated[str, typer.Option(help="A recipe: a YAML file, or the name of one of the package's.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues in it.")],
    rows: Annotated[str | None, typer.Option(help="The rows, instead of those that the recipe names.")] = None,
    student: Annotated[str | None, typer.Option(help="The checkpoint, instead of the one the recipe names.")] = None,
    percepts: Annotated[str | None, typer.Option(help="Folder of the cache of decoded pictures and sound.")] = None,
) -> None:
    """Fine-tune a checkpoint on rows, as a recipe says; the result is in OUT/final.

    After a stop or a kill, the same command continues from the last checkpoint. On several GPUs, start it with
    `accelerate launch --config_file … -m apr_plugin train sft …` (docs/training.md).
    """
    from apr_plugin.training.sft.recipe import read_recipe
    from apr_plugin.training.sft.running import run_sft

    changes = {"rows": rows, "student": {"pretrained": student}, "percepts": {"folder": percepts}}
    run_sft(read_recipe(config, **changes), out)


@app.command("to-thinker")
def to_thinker(
    whole: Annotated[Path, typer.Argument(help="Folder of a whole Omni checkpoint, as it is released.")],
    out: Annotated[Path, typer.Argument(help="New folder for its Thinker, which is what is trained.")],
) -> None:
    """Take the Thinker out of an Omni checkpoint, bit by bit."""
    from apr_plugin.training.layout import to_thinker as convert

    convert(whole.expanduser(), out.expanduser())


@app.command("to-whole")
def to_whole(
    thinker: Annotated[Path, typer.Argument(help="Folder of a trained Thinker.")],
    whole: Annotated[Path, typer.Argument(help="Folder of the Omni checkpoint that it came from.")],
    out: Annotated[Path, typer.Argument(help="New folder for the whole model with the trained Thinker.")],
) -> None:
    """Put a trained Thinker back into its Omni checkpoint, bit by bit."""
    from apr_plugin.training.layout import to_whole as convert

    convert(thinker.expanduser(), whole.expanduser(), out.expanduser())


@app.command()
def forks(
    path: Annotated[Path, typer.Argument(help="A folder of apr train synthesize, a finished run, or a file.")],
    judge: Annotated[str, typer.Option(help="model_args of a judge that chooses the pivotal turn of each.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the picks and the result (default: PATH/forks).")] = None,
    entropies: Annotated[str, typer.Option(help="full, or top_k to take those over the likeliest tokens.")] = "full",
    iou: Annotated[float, _IOU] = 0.5,
    accuracy: Annotated[float, _ACCURACY] = 0.5,
) -> None:
    """Is the pivotal turn an uncertain one? Its entropy against its trajectory's mean, with two controls.

    The pivotal turn is the one that the judge chooses and, where the truth has evidence, the first that showed some of
    it. After a stop or a kill, the same command continues where it was. Exit status 3: the judge could not be reached
    for some.
    """
    from apr_plugin.errors import WrongUsage
    from apr_plugin.training.fork_command import run_forks

    if entropies not in ("full", "top_k"):
        raise WrongUsage(f"--entropies {entropies!r}: it is full or top_k")
    raise SystemExit(run_forks(path, judge, out, top_k=entropies == "top_k", rules=(iou, accuracy)))


@app.command("check-forgetting")
def check_forgetting(
    before: Annotated[str, typer.Argument(help="The checkpoint before training: a folder, or a name on the hub.")],
    after: Annotated[str, typer.Argument(help="The trained checkpoint, or the folder of its LoRA adapter.")],
    questions: Annotated[
        list[str],
        typer.Option("--questions", "-q", help="A JSON Lines file (docs/training.md), or needle:FOLDER. Repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of both runs; the same command continues in it.")] = Path(
        "forgetting"
    ),
    arm: Annotated[
        str, typer.Option(help="How the questions are answered: passive, blind, single_frame, …")
    ] = "passive",
    frames: Annotated[int, typer.Option(min=0, help="Frames of the passive arm.")] = 8,
    worst: Annotated[
        float, typer.Option(help="The largest drop of the share of right answers that is allowed.")
    ] = 0.05,
    policy_args: Annotated[str, typer.Option(help="Further model_args of both, for example dtype=bfloat16.")] = "",
) -> None:
    """Ask a checkpoint and the one it was trained from the same questions, and test whether training lost answers.

    Exit status 1: a larger drop than --worst is proved. 0: it is excluded, or can't be told; the last line says which.
    3: some questions could not be asked. After a stop or a kill, the same command continues where it was.
    """
    from apr_plugin.training.forgetting import run_check

    raise SystemExit(
        run_check(before, after, questions, out, arm=arm, frames=frames, worst=worst, policy_args=policy_args)
    )


@app.command()
def grpo(
    config: Annotated[str, typer.Option(help="A recipe: a YAML file, or the name of one of the package's.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues in it.")],
    questions: Annotated[
        list[str] | None,
        typer.Option("--questions", "-q", help="A JSON Lines file, or needle:FOLDER, instead of the recipe's."),
    ] = None,
    student: Annotated[str | None, typer.Option(help="The checkpoint, instead of the one the recipe names.")] = None,
) -> None:
    """Train a checkpoint by reinforcement on whole investigations, as a recipe says; the result is in OUT/final.

    After a stop or a kill, the same command continues from the last checkpoint. On several GPUs, start it with
    `accelerate launch --config_file … -m apr_plugin train grpo …` (docs/training.md).
    """
    from apr_plugin.training.grpo.recipe import read_recipe
    from apr_plugin.training.grpo.running import run_grpo

    run_grpo(read_recipe(config, questions=questions, student={"pretrained": student}), out)


@app.command()
def export(
    rows: Annotated[Path, typer.Argument(help="A file of apr train rows.")],
    format: Annotated[str, typer.Option(help="The trainer: swift (ms-swift) or llamafactory.")],
    student: Annotated[str, typer.Option(help="The checkpoint that it trains: a folder, or a name on the hub.")],
    out: Annotated[Path, typer.Option(help="A new folder; the same command continues an unfinished one.")],
    split: Annotated[str, typer.Option(help="The part of the rows: train or validation.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
) -> None:
    """Write rows as the data of another trainer, with their media as files.

    A row that the trainer would read differently is left out and counted with its reason. Exit status 1: nothing was
    written.
    """
    from apr_plugin.training.export.command import run_export

    run_export(rows, format, student, out, split, limit)


@app.command()
def distill(
    config: Annotated[str, typer.Option(help="A recipe: a YAML file, or the name of one of the package's.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues in it.")],
    teacher: Annotated[str | None, typer.Option(help="The teacher, instead of the one the recipe names.")] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("--questions", "-q", help="A JSON Lines file, or needle:FOLDER, instead of the recipe's."),
    ] = None,
    student: Annotated[str | None, typer.Option(help="The checkpoint, instead of the one the recipe names.")] = None,
) -> None:
    """Let a checkpoint learn from a teacher on its own investigations, as a recipe says; the result is in OUT/final.

    After a stop or a kill, the same command continues from the last checkpoint. On several GPUs, start it with
    `accelerate launch --config_file … -m apr_plugin train distill …` (docs/training.md).
    """
    from apr_plugin.training.distill.recipe import read_recipe
    from apr_plugin.training.distill.running import run_distill

    changes = {"student": {"pretrained": student}, "teacher": {"pretrained": teacher}}
    run_distill(read_recipe(config, questions=questions, **changes), out)


@app.command()
def gain(
    path: Annotated[Path, typer.Argument(help="A folder of apr train synthesize, or a finished run, with truths.")],
    model: Annotated[str, typer.Option(help="The checkpoint that scores: a folder, or a name on the hub.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the scores and the result (default: PATH/gain).")] = None,
    dtype: Annotated[str, typer.Option(help="The weights in memory: float32 or bfloat16.")] = "float32",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N trajectories.")] = None,
    iou: Annotated[float, _IOU] = 0.5,
    accuracy: Annotated[float, _ACCURACY] = 0.5,
) -> None:
    """What did each look tell? How much likelier it made the right answer under a checkpoint (IGPO's information gain).

    Prompts are rebuilt with their pictures, and the right answer is scored after each. Every trajectory's scores are on
    disk before the next; after a stop or a kill, the same command continues.
    """
    from apr_plugin.training.gain_command import run_gain

    run_gain(path, model, out, dtype=dtype, limit=limit, rules=(iou, accuracy))


@app.command()
def recipe(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe of a made model: a YAML file, tiny, or a passive rival of it (passive-matched, passive-64, "
            "passive-64-large)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues in it.")],
    shrink: Annotated[float, typer.Option(min=1, help="Divide every length by this; gates then ask nothing.")] = 1.0,
    stop_after: Annotated[str | None, typer.Option(help="The last stage that is trained now.")] = None,
    trained: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint in place of the stages: only reinforcement follows.")
    ] = None,
    credit: Annotated[
        str | None, typer.Option(help="One more reinforcement with this rule: grpo, taura, empg or shuffled.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="One more reinforcement with this seed.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Folder of another such run: train at least as much (FLOPs or tokens).")
    ] = None,
) -> None:
    """Make a small model with random weights and train it in stages up to an agent; the result is in OUT/final.

    Each stage ends when it reaches its gate. Exit status 1: one did not; the last line has the numbers, and the same
    command trains that stage on. After a stop or a kill, it continues where it was. With --credit or --seed, the result
    is in OUT/reinforcement/CREDIT-SEED/final, and OUT/final is left as it is.
    """
    from typing import cast, get_args

    from apr_plugin.errors import WrongUsage
    from apr_plugin.training.tiny.recipe import run_recipe
    from apr_plugin.training.tiny.reinforcing import Rule

    if credit is not None and credit not in get_args(Rule):
        raise WrongUsage(f"--credit {credit!r}: it is one of {', '.join(get_args(Rule))}")
    rule = cast("Rule | None", credit)
    run_recipe(name, out, shrink=shrink, stop_after=stop_after, trained=trained, credit=rule, seed=seed, like=like)


@app.command()
def ship(
    run: Annotated[Path, typer.Argument(help="The folder of a finished apr train recipe.")],
    out: Annotated[Path, typer.Option(help="The folder to write; one that was shipped before is replaced.")],
    stage: Annotated[str | None, typer.Option(help="Take what this stage ended with, instead of the end.")] = None,
    note: Annotated[str, typer.Option(help="What the card says besides, in Markdown.")] = "",
) -> None:
    """Write a small agent as a folder that travels: bfloat16 weights, what is needed to run it, and its model card.

    The folder is loaded again and compared with the run's checkpoint. Exit status 1: it is not the same, too large, or
    the run is not finished.
    """
    from apr_plugin.training.tiny.shipping import ship as write

    write(run, out, stage, note)
