"""What `apr train gain` does, with what it prints."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.progress import Progress
from rich.table import Table

from apr_plugin import terminal
from apr_plugin.errors import AprError, require
from apr_plugin.loop.card import Card
from apr_plugin.loop.replay import ReplayError, replay
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.fork_command import interval_cell, trajectories_of
from apr_plugin.training.grpo.forward import RowForward
from apr_plugin.training.grpo.gains import NotForced, asked
from apr_plugin.training.look_gains import Gains, LookGain, analyse_gains, gains_of_looks
from apr_plugin.training.making import find_card
from apr_plugin.training.sft.recipe import StudentSettings
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.outcome import OutcomeRules
from apr_plugin.training.synthesis.verdict import turns_digest

SCHEMA = "apr.gains"
VERSION = 1

GAINS = "gains.json"
"""The file with the result."""

PROBABILITIES = "probabilities.ndjson"
"""The file in a checkpoint's folder with p(right answer) at each prompt, a line for each trajectory."""


def run_gain(
    path: Path,
    model: str,
    out: Path | None = None,
    *,
    dtype: str = "float32",
    limit: int | None = None,
    rules: tuple[float, float] = (0.5, 0.5),
) -> None:
    """Score the right answer at each prompt of stored trajectories, and print what each look told.

    Args:
        path: A folder of `apr train synthesize`, or a finished run; it has the truths.
        model: The checkpoint that scores: a folder, or a name on the hub.
        out: Where scores and result go; by default the folder `gain` beside the trajectories.
        dtype: The weights in memory: `float32` or `bfloat16`.
        limit: Only so many trajectories.
        rules: Least IoU and relative accuracy of an answer that counts as right.

    Raises:
        AprError: nothing can be scored, a file can't be read, or the folder can't be written.
    """
    require("scipy", "report")
    require("torch", "train")
    path, console = path.expanduser(), terminal.console()
    out = out.expanduser() if out is not None else path / "gain"
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    wanted: list[tuple[Trajectory, Path, bool | None, Truth]] = []
    for line in trajectories_of(path, OutcomeRules(*rules), problems):
        if (reason := _refused(line.trajectory, line.truth)) is not None:
            left_out[reason] += 1
        elif limit is None or len(wanted) < limit:
            assert line.truth is not None
            wanted.append((line.trajectory, line.folder, line.right, line.truth))
    for problem in problems:
        terminal.warn(problem)
    if not wanted:
        raise AprError(f"{path}: no trajectory can be scored: {_told(left_out) or 'there is none'}")
    scorer = Scorer(model, dtype, out)
    looks: list[LookGain] = []
    counted = 0
    with Progress(console=terminal.console(stderr=True), transient=True) as bar:
        for trajectory, folder, right, truth in bar.track(wanted, description="scoring"):
            found = scorer.probabilities(trajectory, folder, truth)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            counted += 1
            looks += gains_of_looks(trajectory, found, truth, right)
    if not looks:
        raise AprError(f"{path}: no trajectory can be scored: {_told(left_out)}")
    gains = analyse_gains(looks)
    _print(gains, counted, left_out)
    data = {"schema": SCHEMA, "version": VERSION, "trajectories": str(path), "model": scorer.identity}
    data |= {"counted": counted, "left_out": dict(left_out), "turns": len(looks), **gains.to_dict()}
    try:
        (scorer.folder / GAINS).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise AprError(f"{scorer.folder}: cannot write there: {error.strerror or error}") from error
    console.print(f"{scorer.folder / GAINS}", soft_wrap=True)


def _refused(trajectory: Trajectory, truth: Truth | None) -> str | None:
    """Why a trajectory is not scored, if it is not."""
    if trajectory.stop_reason.failed:
        return "failed"
    if trajectory.arm != "agent":
        return "other_arm"
    if truth is None or not truth.answers:
        return "no_truth"
    return "one_turn" if len(trajectory.turns) < 2 else None


class Scorer:
    """Scores right answers with a checkpoint; what was scored once is read from disk.

    Args:
        model: The checkpoint.
        dtype: The weights in memory.
        out: Its scores are in a folder below.

    Raises:
        AprError: the checkpoint can't be loaded, or the folder can't be written.
    """

    def __init__(self, model: str, dtype: str, out: Path) -> None:
        import torch
        import transformers

        from apr_plugin.models.checkpoint import checkpoint_source, weights_identity
        from apr_plugin.training.sft.learner import load_learner

        if dtype not in ("float32", "bfloat16"):
            raise AprError(f"--dtype {terminal.quoted(dtype, 20)}: it is float32 or bfloat16")
        with terminal.console(stderr=True).status("loading the model …"):
            self.student = Student.from_pretrained(model, dtype=dtype)
            settings = StudentSettings(pretrained=model, dtype="bfloat16" if dtype == "bfloat16" else "float32")
            self.model = load_learner(settings).requires_grad_(False).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        self.forward = RowForward(self.student, 1.0)
        source = checkpoint_source(model, "hf")
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        weights = weights_identity(source, config)
        self.identity = {"pretrained": model, "weights": weights, "reads": self.student.digest, "dtype": dtype}
        self.folder = out / f"{weights.replace('commit ', '')[:16]}-{self.student.digest[:8]}-{dtype}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AprError(f"{self.folder}: cannot write there: {error.strerror or error}") from error
        self.known = dict(self._read())
        self.cards: dict[Path, Card] = {}

    def probabilities(self, trajectory: Trajectory, folder: Path, truth: Truth) -> list[float] | str:
        """p(right answer) at the prompt of each turn, or why it can't be told.

        Args:
            trajectory: An agent's trajectory.
            folder: Where its card is.
            truth: What is right.
        """
        key = (trajectory.config_hash, *trajectory.question.key, turns_digest(trajectory), truth.answers)
        name = json.dumps(key)
        if name not in self.known:
            found = self._scored(trajectory, folder, truth)
            if isinstance(found, str):
                return found
            self._write(name, found)
        return self.known[name]

    def _scored(self, trajectory: Trajectory, folder: Path, truth: Truth) -> list[float] | str:
        import torch

        place = find_card(folder, trajectory.config_hash)
        if place not in self.cards:
            self.cards[place] = Card.read(place)
        head, values = self.model.get_output_embeddings(), []
        try:
            for number, (prompt, _) in enumerate(replay(trajectory, self.cards[place]), 1):
                one = asked(prompt, (), truth, self.student, f"{trajectory.question.doc_id}, turn {number}")
                longest = max(len(row.target) for row in one.rows)
                if self.student.encoder.count(prompt).total + longest > self.student.context_tokens:
                    return "too_long"
                with torch.no_grad():
                    scored = [self.forward(self.model, head, (row,), self.device).logprobs[0] for row in one.rows]
                values.append(one.probability([of.float().cpu().numpy() for of in scored]))
        except (ReplayError, NotForced) as error:
            terminal.warn(terminal.one_line(str(error)))
            return "not_rebuilt" if isinstance(error, ReplayError) else "not_forced"
        except ValueError:  # a medium that the model's family can't take
            return "medium"
        return values

    def _read(self) -> Iterator[tuple[str, list[float]]]:
        """What is on disk; a line that was cut off by a kill is scored again."""
        file = self.folder / PROBABILITIES
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                data = json.loads(line)
                yield str(data["key"]), [float(value) for value in data["p"]]

    def _write(self, name: str, values: list[float]) -> None:
        file = self.folder / PROBABILITIES
        try:
            with file.open("a+b") as out:
                if out.tell():
                    out.seek(-1, os.SEEK_END)
                    if out.read(1) != b"\n":  # a kill cut the last line off
                        out.write(b"\n")
                out.write(json.dumps({"key": name, "p": values}).encode() + b"\n")
        except OSError as error:
            raise AprError(f"{file}: cannot write there: {error.strerror or error}") from error
        self.known[name] = values


def _told(left_out: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in left_out.most_common())


def _print(gains: Gains, counted: int, left_out: Counter[str]) -> None:
    console = terminal.console()
    more = f"; left out: {_told(left_out)}" if left_out else ""
    console.print(f"{counted:,} trajectories scored{more}", soft_wrap=True)
    table = Table("p(right answer) after the look, minus before it", "n", "mean gain (95% interval)", box=box.SIMPLE)
    for name, interval in gains.rows:
        table.add_row(name, f"{interval.n:,}" if interval else "", interval_cell(interval))
    console.print(table)
    for words, interval in (
        ("looks that showed evidence, minus those that missed it", gains.difference),
        ("rank correlation of gain and turn entropy", gains.with_entropy),
        ("rank correlation of gain and showing evidence", gains.with_hit),
    ):
        told = "not known" if interval is None else f"{interval_cell(interval)}, n = {interval.n:,}"
        console.print(f"{words}: {told}", soft_wrap=True)
