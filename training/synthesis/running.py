"""What `apr train synthesize`, `audit` and `funnel` do, with what they print."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from apr_plugin import terminal
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.settings import read_settings
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.terminal import one_line
from apr_plugin.training.synthesis import contamination, funnel, funnel_files
from apr_plugin.training.synthesis.audit import Judge, audit, judge_audit, open_verdicts
from apr_plugin.training.synthesis.budgets import BudgetRanges, drawn_budgets, read_range
from apr_plugin.training.synthesis.estimate import Estimate, Spend, estimate
from apr_plugin.training.synthesis.folder import (
    AUDIT,
    TRAJECTORIES,
    Place,
    add_questions,
    places,
    questions_of,
    read_at,
)
from apr_plugin.training.synthesis.outcome import OutcomeRules, judge_outcome
from apr_plugin.training.synthesis.questions import TrainingQuestion, load_questions, missing_videos
from apr_plugin.training.synthesis.synthesize import Cost, Exploration, Explored, explore, left_to_do

_DRAWN = {"frames_per_look": "--frames", "clip_s": "--clip", "audio_s": "--audio"}
_SAMPLING = ("hf", "openai", "vllm")
"""Policies whose attempts differ by chance only above temperature 0."""
_NAMED = 5
"""Most things that one sentence names."""


def run_synthesize(
    sources: Sequence[str],
    teacher: str,
    out: Path,
    *,
    attempts: int,
    ranges: tuple[str, str, str],
    rules: tuple[float, float],
    limit: int | None = None,
    only_estimate: bool = False,
    prices: Path | None = None,
    policy: Policy | None = None,
) -> int:
    """Explore the questions of these sources and return the exit status.

    With `policy`, that is the teacher, and `teacher` has the arguments of the run alone.

    Raises:
        AprError: a setting or a question is wrong, no question is left to ask, or the folder can't be written.
    """
    out, told = out.expanduser(), terminal.console()
    frames, clip_s, audio_s = (read_range(*pair) for pair in zip(_DRAWN.values(), ranges, strict=True))
    drawn, outcome = BudgetRanges(frames, clip_s, audio_s), OutcomeRules(*rules)
    questions = load_questions(sources)[:limit]
    arguments = parse_model_args(teacher)
    for name, option in _DRAWN.items():
        if name in arguments:
            raise AprError(f"--teacher: {name} is drawn for each attempt; set its range with {option}")
    if "trajectories" in arguments:
        raise AprError("--teacher: trajectories= is set by --out; leave it out")
    askable = _askable(questions, told)
    settings = read_settings(arguments, policy)
    if settings.policy.name in _SAMPLING and attempts > 1 and settings.config.sampling.temperature == 0:
        terminal.warn(
            "temperature=0: attempts at one question differ only by their budgets; set temperature= in --teacher"
        )
    try:
        config = drawn_budgets(settings.config, drawn)
        exploration = Exploration(settings.policy, config, attempts, outcome, settings.concurrency)
        add_questions(out, questions)
        store = TrajectoryStore(
            out / TRAJECTORIES, config.hash(settings.policy), config.card(settings.policy), resume=settings.resume
        )
        with store:
            left = left_to_do(askable, exploration, store)
            expected = estimate(left.questions, exploration, left.done, left.attempts_done)
            _print_estimate(told, expected, left.done, _price(prices, settings.policy))
            if only_estimate:
                return 0
            decoding = Decoding(settings.decode_threads, settings.decoded_bytes)
            began = time.perf_counter()
            try:
                found, cost = _explore(askable, exploration, store, decoding)
            finally:
                decoding.close()
        store.merge({one.question.task for one in askable})
        _print_cost(told, found, cost, time.perf_counter() - began, _price(prices, settings.policy))
    finally:
        settings.policy.close()
    told.print(f"next: apr train audit {out} --judge MODEL_ARGS", soft_wrap=True)
    return UNANSWERED if any(one.failed for one in found) else 0


def _askable(questions: Sequence[TrainingQuestion], told: Console) -> list[TrainingQuestion]:
    """The questions that may be asked; says what is refused, and what could not be checked."""
    checked = contamination.check(questions)
    _print_checked(told, checked, len(questions))
    askable = [one for one in questions if one.key not in checked.refused]
    if not askable:
        raise AprError(f"all {len(questions):,} questions come from benchmarks' own videos; none is asked")
    missing = missing_videos(askable)
    if missing:
        gone = set(missing)
        lost = sum(any(ref.path in gone for ref in one.question.videos) for one in askable)
        if lost == len(askable):
            raise AprError(f"no video of any question was found, for example {missing[0]}; none is asked")
        terminal.warn(
            f"{len(missing):,} videos of {lost:,} questions were not found ({', '.join(missing[:_NAMED])}"
            f"{', …' if len(missing) > _NAMED else ''}); these questions end as media_unreadable"
        )
    return askable


def _print_checked(told: Console, checked: contamination.Checked, total: int) -> None:
    told.print(
        f"contamination: {len(checked.refused):,} of {total:,} questions refused; videos compared with "
        f"{len(checked.compared)} tasks"
        + (f", not with {len(checked.not_compared)} whose annotations are not here" if checked.not_compared else ""),
        soft_wrap=True,
    )
    for refusal in list(dict.fromkeys(checked.refused.values()))[:_NAMED]:
        told.print(f"  refused: {one_line(refusal.detail, 300)}", soft_wrap=True)
    if checked.too_short:
        told.print(f"  {len(checked.too_short):,} names of videos are too short to compare", soft_wrap=True)


def _explore(
    questions: Sequence[TrainingQuestion], exploration: Exploration, store: TrajectoryStore, decoding: Decoding
) -> tuple[list[Explored], Cost]:
    cost, won = Cost(), 0
    with _progress("won {task.fields[won]}, {task.fields[attempts]} attempts{task.fields[tokens]}") as bar:
        task = bar.add_task("questions", total=len(questions), won=0, attempts=0, tokens="")

        def attempted(_: TrainingQuestion, trajectory: Trajectory, __: Any, resumed: bool) -> None:
            cost.add(trajectory, resumed)
            bar.update(task, attempts=cost.episodes, tokens=_tokens(cost))

        def finished(one: Explored) -> None:
            nonlocal won
            won += one.won
            bar.update(task, advance=1, won=won)

        work = explore(questions, exploration, store, decoding=decoding, on_attempt=attempted, on_question=finished)
        return run_sync(work), cost


def _tokens(cost: Cost) -> str:
    return f", {(cost.prompt_tokens + cost.completion_tokens) / 1e6:.2f}M tokens" if cost.counted else ""


def _print_estimate(told: Console, expected: Estimate, done: Cost, price: Any) -> None:
    if done.episodes:
        told.print(f"{done.episodes:,} attempts of an earlier run are on disk and are not made again", soft_wrap=True)
    if not expected.questions:
        told.print("every question is finished")
        return
    basis = "from the mean of the attempts that are done" if expected.measured else "from the settings"
    table = Table("estimate, " + basis, "at least", "at most", box=box.SIMPLE)
    least, most = expected.least, expected.most
    table.add_row("questions left", f"{expected.questions:,}", f"{expected.questions:,}")
    for name in ("attempts", "prompt_tokens", "completion_tokens"):
        table.add_row(name.replace("_", " "), *(f"{getattr(spend, name):,.0f}" for spend in (least, most)))
    if price is not None and price.input is not None:
        table.add_row("US dollars", *(f"{_dollars(spend, price):,.2f}" for spend in (least, most)))
    told.print(table)


def _dollars(spend: Spend, price: Any) -> float:
    return float(spend.prompt_tokens * price.input + spend.completion_tokens * price.output) / 1e6


def _price(prices: Path | None, policy: Policy) -> Any:
    """The price of the teacher's model, if the file has it."""
    if prices is None:
        return None
    from apr_plugin.compare.cost import read_prices

    known, described = read_prices(prices), policy.describe()
    for name in ("model", "pretrained"):
        if described.get(name) in known:
            return known[described[name]]
    raise AprError(f"{prices}: it has no price of the teacher's model ({described.get('model', policy.name)})")


def _print_cost(told: Console, found: Sequence[Explored], cost: Cost, seconds: float, price: Any) -> None:
    won = [one for one in found if one.won]
    failed = [one for one in found if one.failed]
    told.print(
        f"{len(won):,} of {len(found):,} questions won, {sum(one.attempts == 1 for one in won):,} at the first attempt"
        + (
            f"; {len(failed):,} could not be asked ({', '.join(sorted({str(one.failed) for one in failed}))})"
            if failed
            else ""
        ),
        soft_wrap=True,
    )
    table = Table("cost", "all attempts", "for each win", box=box.SIMPLE)
    rows: list[tuple[str, float]] = [
        ("attempts", cost.episodes),
        ("  of an earlier run", cost.resumed),
        ("turns", cost.turns),
        ("frames", cost.frames),
        ("seconds of sound", cost.audio_s),
        ("visual tokens", cost.visual_tokens),
        ("seconds of episodes", cost.seconds),
    ]
    if cost.counted:
        rows += [("prompt tokens", cost.prompt_tokens), ("completion tokens", cost.completion_tokens)]
    for name, value in rows:
        each = f"{value / len(won):,.1f}" if won and name != "  of an earlier run" else ""
        table.add_row(name, f"{value:,.0f}", each)
    if price is not None and price.input is not None and cost.counted:
        spent = _dollars(Spend(cost.episodes, cost.prompt_tokens, cost.completion_tokens), price)
        table.add_row("US dollars", f"{spent:,.2f}", f"{spent / len(won):,.4f}" if won else "")
    told.print(table)
    if not cost.counted:
        told.print("the teacher counts no tokens of its own")
    told.print(f"{seconds:.1f} s")


def run_audit(
    out: Path, judge: str, threshold: int, rules: tuple[float, float], *, policy: Policy | None = None
) -> int:
    """Rate the right trajectories of a folder and return the exit status.

    With `policy`, that is the judge, and `judge` has further arguments alone.

    Raises:
        AprError: a setting is wrong, the folder can't be read, or there is nothing to rate.
    """
    out, told, outcome = out.expanduser(), terminal.console(), OutcomeRules(*rules)
    asked = {one.key: one for one in questions_of(out)}
    right: list[Place] = []
    with _progress("") as bar:
        reading = bar.add_task("lines read", total=None)

        def read_one() -> None:
            bar.advance(reading)

        for place, trajectory in read_at(places(out, on_read=read_one)):
            one = asked.get(place.key[:3])
            good = one is not None and judge_outcome(trajectory, one.truth, outcome, exact=one.exact).right
            right += [place] if good and trajectory.budget is not None and not place.failed else []
            read_one()
    if not right:
        raise AprError(f"{out}: no trajectory has a right answer, so there is nothing to rate")
    settings = read_settings(parse_model_args(judge), policy)
    passed = 0
    try:
        asking = Judge(settings.policy, settings.config.sampling)
        verdicts = open_verdicts(out / AUDIT, asking)
        with _progress("passed {task.fields[passed]}") as bar:
            task = bar.add_task("trajectories", total=len(right), passed=0)

            def rated(trajectory: Trajectory, _: Any) -> None:
                nonlocal passed
                passed += judge_audit(trajectory, verdicts.of(trajectory), threshold).passed
                bar.update(task, advance=1, passed=passed)

            read = [partial(_read, place) for place in right]
            tally = run_sync(audit(read, asking, verdicts, concurrency=settings.concurrency, on_trajectory=rated))
    finally:
        settings.policy.close()
    for problem in verdicts.problems:
        terminal.warn(problem)
    told.print(
        f"judge {asking.hash}: {passed:,} of {len(right):,} right trajectories pass at {threshold} or more; "
        f"{tally.asked:,} turns rated, {tally.known:,} known from an earlier run, {tally.nonsense:,} nonsense verdicts",
        soft_wrap=True,
    )
    if tally.prompt_tokens:
        told.print(f"{tally.prompt_tokens:,} prompt tokens, {tally.completion_tokens:,} completion tokens")
    if tally.unreachable:
        terminal.complain(
            f"the judge could not be reached {tally.unreachable:,} times: {tally.why}; the same command continues"
        )
        return UNANSWERED
    told.print(f"next: apr train funnel {out}", soft_wrap=True)
    return 0


def _read(place: Place) -> Trajectory:
    return next(trajectory for _, trajectory in read_at([place]))


def run_funnel(
    out: Path,
    threshold: int,
    judge_hash: str,
    without_audit: bool,
    rules: tuple[float, float],
    *,
    plot: bool = True,
) -> None:
    """Write the manifest, the table and, unless `plot` is false, the plot of a folder.

    Raises:
        AprError: the folder can't be read, or nothing is kept.
    """
    out, told = out.expanduser(), terminal.console()
    questions = questions_of(out)
    judge = None if without_audit else funnel.find_audit(out, judge_hash)
    checked = contamination.check(questions)
    with _progress("") as bar:
        task = bar.add_task("lines read", total=None)
        found = funnel.build(
            out,
            audit=judge,
            threshold=threshold,
            rules=OutcomeRules(*rules),
            contamination=checked,
            on_read=lambda: bar.advance(task),
        )
    manifest = funnel.write_manifest(out, found)
    try:
        (out / "funnel.md").write_text(funnel_files.markdown(found), encoding="utf-8")
    except OSError as error:
        raise AprError(f"{out}: cannot write there: {error.strerror or error}") from error
    _print_checked(told, checked, len(questions))
    for problem in found.problems:
        terminal.warn(problem)
    left = Table("left after", "questions", "trajectories", box=box.SIMPLE)
    for name, asked, attempts in found.left():
        left.add_row(name, f"{asked:,}", f"{attempts:,}")
    table = Table("stage", "reason", "questions", "trajectories", box=box.SIMPLE)
    for stage, reason, asked, attempts in found.rows():
        table.add_row(stage, funnel.REASONS.get(reason, reason), f"{asked:,}", f"{attempts:,}")
    told.print(left)
    told.print(table)
    if judge is None:
        terminal.warn("the audit was left out: right answers with unsupported steps are among what is kept")
    drawn = funnel_files.plot(found, out) if plot else ()
    told.print(", ".join([str(manifest), str(out / "funnel.md"), *(path.name for path in drawn)]), soft_wrap=True)
    if not found.kept:
        reasons = "; ".join(funnel.explain(found.entries)[:_NAMED])
        raise AprError(f"{out}: nothing is kept, so there is nothing to train on ({reasons})")


def _progress(words: str) -> Progress:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(
        *columns, TimeRemainingColumn(), TextColumn(words), console=terminal.console(stderr=True), transient=False
    )
