"""`apr train check-forgetting`: does a checkpoint still answer what it answered before it was trained?

Both checkpoints answer the same questions as a passive model (`loop.arms`), each in a run of its own:

    OUT/before/<hash>/      card and trajectories of the checkpoint before
    OUT/after/<hash>/       the same of the one after
    OUT/forgetting.json     the verdict, the statistics, and both answers to each question

The difference is tested in pairs, as in `apr compare` (`compare.pairs`). Here the question is not whether there is a
difference but whether the drop of right answers is larger than a limit: that is decided by the two-sided 95% interval
of the drop, as in a non-inferiority trial (G. Piaggio et al., JAMA 308, 2012, page 2594). If the limit lies within the
interval, nothing is proved either way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from apr_plugin import options, terminal
from apr_plugin.compare.joined import Arm, Comparison, Outcome, join
from apr_plugin.compare.pairs import accuracy, clusters_of, differences
from apr_plugin.compare.power import power_of
from apr_plugin.compare.stats import Interval, Paired
from apr_plugin.errors import UNANSWERED, AprError, WrongUsage, require
from apr_plugin.loop.card import Card
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.models.checkpoint import checkpoint_source
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.opened import Key
from apr_plugin.runs.rows import question_row
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.settings import check_arguments, read_settings
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.runs.truths import write_truths
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.outcome import judge_outcome
from apr_plugin.training.synthesis.questions import TrainingQuestion, load_questions, missing_videos

WORST = 0.05
"""The largest drop that is allowed by default: 5 of 100 questions."""

RESULT = "forgetting.json"
SCHEMA = "apr.forgetting"
VERSION = 1

_RESERVED = ("pretrained", "adapter", "arm", "passive_frames", "trajectories")


class Verdict(StrEnum):
    """What the comparison shows."""

    FORGOT = "forgot"
    """The whole interval of the drop is above the limit."""
    KEPT = "kept"
    """The whole interval is at or below the limit."""
    UNCLEAR = "unclear"
    """The limit is within the interval, there is no interval, or the checkpoint before had nothing to lose."""


@dataclass(frozen=True)
class Forgetting:
    """The drop of right answers from one checkpoint to another."""

    verdict: Verdict
    paired: Paired
    """`diff` is before minus after, over the questions that both could answer."""
    worst: float
    """The largest drop that is allowed."""
    needed: int | None
    """About how many questions would tell the observed drop from the limit at 80% power (`compare.power`), where the
    verdict is unclear and that can be told."""
    told: str
    """The verdict in a sentence."""


def weigh(comparison: Comparison, worst: float = WORST) -> Forgetting:
    """Judge the drop from the first arm to the second, over all questions of the comparison.

    Args:
        comparison: Two arms, before and after.
        worst: The largest drop of the share of right answers that is allowed.

    Raises:
        AprError: there is no question.
    """
    before, after = comparison.arms
    paired, had = differences(comparison, before, after), accuracy(comparison, before)
    if paired is None or had is None:
        raise AprError("no question was answered by both checkpoints, so there is nothing to compare")
    drop, needed = paired.diff, None
    if drop.low is not None and drop.low > worst:
        verdict, words = Verdict.FORGOT, f"that is more than the {_points(worst)} allowed"
    elif had.value <= worst:
        verdict, words = (
            Verdict.UNCLEAR,
            f"before is right on only {had.value:.1%}, so it has not more than that to lose",
        )
    elif drop.high is not None and drop.high <= worst:
        verdict, words = Verdict.KEPT, f"a drop of more than {_points(worst)} is excluded"
    else:
        verdict = Verdict.UNCLEAR
        ours, theirs = ([float(arm.outcome(key).right) for key in comparison.keys] for arm in (before, after))
        power = power_of(ours, theirs, clusters_of(comparison, comparison.keys), difference=worst - drop.value)
        needed = power.needed if power is not None and (power.needed or 0) > paired.n else None
        words = f"a drop of more than {_points(worst)} is neither proved nor excluded"
        words += "; ask more questions" if needed is None else f"; about {needed:,} such questions would tell"
        words += ", about several videos" if drop.low is None else ""
    head = {Verdict.FORGOT: "FORGOT", Verdict.KEPT: "KEPT", Verdict.UNCLEAR: "CANNOT TELL"}[verdict]
    interval = "no interval" if drop.low is None or drop.high is None else _between(drop)
    seen = f"right answers dropped by {_points(drop.value)} ({interval}, p = {paired.p_read:.2g}, n = {paired.n:,})"
    return Forgetting(verdict, paired, worst, needed, f"{head}: {seen}; {words}")


def _points(share: float) -> str:
    return f"{share * 100:.1f} points"


def _between(interval: Interval) -> str:
    low, high = interval.low or 0.0, interval.high or 0.0
    return f"95% interval {low * 100:+.1f} to {high * 100:+.1f}"


def arguments_of(before: str, after: str, arm: str, frames: int, given: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model_args of both runs; a folder with a LoRA adapter is loaded on top of the checkpoint before.

    Raises:
        WrongUsage: an argument is unknown, wrong, or set by the check itself; or both checkpoints are the same.
        AprError: a folder is not there.
    """
    more = parse_model_args(given)
    if taken := next((name for name in _RESERVED if name in more), None):
        raise WrongUsage(f"--policy-args: {taken}= is set by the check itself; leave it out")
    both = {"policy": "hf"} | more | {"arm": arm, "passive_frames": frames}
    places = [checkpoint_source(name, str(both["policy"])) for name in (before, after)]
    if len({str(Path(place).resolve()) for place in places}) == 1:
        raise WrongUsage(f"{before} and {after} are the same checkpoint")
    first = both | {"pretrained": before}
    adapter = (Path(places[1]) / "adapter_config.json").is_file() and not (Path(places[1]) / "config.json").is_file()
    second = first | {"adapter": after} if adapter else both | {"pretrained": after}
    for arguments in (first, second):
        try:
            check_arguments(arguments)
        except AprError as error:
            raise WrongUsage(str(error)) from error
    return first, second


def answered(name: str, arguments: Mapping[str, Any], questions: Sequence[TrainingQuestion], out: Path) -> Arm:
    """The answers of one checkpoint as an arm; what an earlier run of the same configuration answered is not asked.

    Args:
        name: Of the arm and of its folder in `out`.
        arguments: The model_args.
        questions: What is asked.
        out: The folder of the check.

    Raises:
        AprError: the checkpoint can't be loaded, or the folder can't be written.
    """
    with terminal.console(stderr=True).status(f"{name}: loading {arguments['pretrained']} …"):
        settings = read_settings(arguments)
    policy, config = settings.policy, settings.config
    decoding = Decoding(settings.decode_threads, settings.decoded_bytes)
    try:
        card = Card.of(config, policy)
        with (
            TrajectoryStore(out / name, card.config_hash, card, resume=settings.resume) as store,
            _progress("{task.fields[resumed]}") as bar,
        ):
            write_truths(store.folder, {one.key: one.truth for one in questions})
            task = bar.add_task(name, total=len(questions), resumed="")
            resumed = 0

            def done(_: Trajectory, earlier: bool) -> None:
                nonlocal resumed
                resumed += earlier
                bar.update(task, advance=1, resumed=f"{resumed:,} of an earlier run" if resumed else "")

            work = run_episodes(
                [one.question for one in questions],
                policy,
                config,
                settings.concurrency,
                store=store,
                evidence={one.question.key: one.truth.spans() for one in questions},
                on_done=done,
                decoding=decoding,
            )
            found = run_sync(work)
        store.merge({one.question.task for one in questions})
    finally:
        decoding.close()
        policy.close()
    about = {"folder": str(store.folder), "config_hash": card.config_hash, "model_args": dict(arguments)}
    outcomes = {one.question.key: _outcome(one, each) for one, each in zip(questions, found, strict=True)}
    return Arm(name, config.arm, outcomes, None, about)


def _outcome(asked: TrainingQuestion, trajectory: Trajectory) -> Outcome:
    """How right an answer is; one in the wrong form is wrong, and one that could not be given is no answer."""
    failed = trajectory.stop_reason.failed
    score = None if failed else judge_outcome(trajectory, asked.truth, exact=asked.exact).score
    return Outcome(
        asked.question.key,
        "failed" if failed else "scored",
        score or 0.0,
        trajectory.answer,
        None,
        str(asked.question.kind),
        asked.question.videos[0].path,
        question_row(trajectory, None),
    )


def run_check(
    before: str,
    after: str,
    sources: Sequence[str],
    out: Path,
    *,
    arm: str = "passive",
    frames: int = 8,
    worst: float = WORST,
    policy_args: str = "",
) -> int:
    """Let both checkpoints answer, print and write what comes of it, and return the exit status.

    Returns:
        1 if a drop larger than `worst` is proved, 3 if some questions could not be asked, else 0.

    Raises:
        AprError: a setting, a question or a checkpoint is wrong, or no question was answered by both.
    """
    from apr_plugin.compare.summary import summarise
    from apr_plugin.report.tables import print_summary

    for module in ("scipy", "statsmodels"):
        require(module, "report")
    if not 0 <= worst < 1:
        raise WrongUsage(f"--worst {worst:g}: it is a share from 0 to below 1")
    questions, out = load_questions(sources), out.expanduser()
    first, second = arguments_of(before, after, arm, frames, policy_args)
    _check_videos(questions)
    with terminal.console(stderr=True).status("reading both processors …"):
        for arguments in (first, second):  # so that a mistake in the second is found before the first one's answers
            Student.from_pretrained(str(arguments["pretrained"]), revision=options.given(arguments.get("revision")))
    whole = join([answered("before", first, questions, out), answered("after", second, questions, out)])
    lost = {one.name: sum(found.status == "failed" for found in one.outcomes.values()) for one in whole.arms}
    comparison = replace(whole, keys=whole.common)
    found = weigh(comparison, worst)
    summary = summarise(comparison, title="forgetting")
    told = terminal.console()
    print_summary(told, summary | {"headline": []})
    remarks = _remarks(comparison, questions, lost)
    for remark in remarks:
        terminal.warn(remark)
    told.print(Text(found.told, "bold"), soft_wrap=True)
    checked = {"before": before, "after": after, "arm": arm, "frames": frames, "policy_args": policy_args}
    _write(out, checked, found, whole, {"failed": lost, "remarks": remarks, "notes": summary["notes"]})
    if found.verdict is Verdict.FORGOT:
        return 1
    return UNANSWERED if any(lost.values()) else 0


def _check_videos(questions: Sequence[TrainingQuestion]) -> None:
    gone = missing_videos(questions)
    if len(gone) == len({ref.path for one in questions for ref in one.question.videos}):
        raise AprError(f"no video of any question was found, for example {gone[0]}; none is asked")
    if gone:
        terminal.warn(f"{len(gone):,} videos were not found, for example {gone[0]}; their questions are left out")


def _remarks(comparison: Comparison, questions: Sequence[TrainingQuestion], lost: Mapping[str, int]) -> list[str]:
    """What makes the verdict weaker, or explains it."""
    said, keys = [], set(comparison.keys)
    asked = [one.question for one in questions if one.question.key in keys]
    if left := len(questions) - len(asked):
        counts = ", ".join(f"{name} {count:,}" for name, count in lost.items())
        said.append(f"{left:,} of {len(questions):,} questions could not be asked ({counts}) and are left out")
    chance = sum(1 / len(one.options) for one in asked if one.options) / len(asked)
    had = accuracy(comparison, comparison.arms[0])
    if had is not None and chance and (had.low or 0.0) <= chance:
        said.append(
            f"before is right on {had.value:.1%}, and guessing would be on {chance:.1%}: questions that it can't "
            "answer do not show what is forgotten"
        )
    formless = [sum(not arm.outcome(key).row["answer_valid"] for key in keys) for arm in comparison.arms]
    if formless[1] > formless[0]:
        said.append(f"answers in no valid form: before {formless[0]:,}, after {formless[1]:,}; they count as wrong")
    return said


def _write(
    out: Path, checked: Mapping[str, Any], found: Forgetting, whole: Comparison, more: Mapping[str, Any]
) -> None:
    def answer(arm: Arm, key: Key) -> dict[str, Any]:
        outcome = arm.outcome(key)
        return {"answer": outcome.answer, "score": outcome.score, "right": outcome.right, "status": outcome.status}

    data = {
        "schema": SCHEMA,
        "version": VERSION,
        **checked,
        "verdict": str(found.verdict),
        "told": found.told,
        "worst": found.worst,
        "drop": found.paired.diff.to_dict(),
        "p": found.paired.p_read,
        "test": found.paired.test_read,
        "only_before": found.paired.only_a,
        "only_after": found.paired.only_b,
        "needed": found.needed,
        **more,
        "runs": {arm.name: arm.about for arm in whole.arms},
        "questions": [
            dict(zip(("task", "split", "id"), key, strict=False)) | {arm.name: answer(arm, key) for arm in whole.arms}
            for key in whole.keys
        ],
    }
    file = out / RESULT
    part = file.with_suffix(".part")
    try:
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise AprError(f"{file}: cannot write it: {error.strerror or error}") from error


def _progress(words: str) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(*columns, TimeRemainingColumn(), TextColumn(words), console=terminal.console(stderr=True))
