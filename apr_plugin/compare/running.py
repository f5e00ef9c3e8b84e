"""Runs the arms of a comparison through lmms-eval, one after the other, and opens what they left.

An arm that is finished is not run again: its folder has a digest of the command, the versions and the tasks' files that
it was made with. An arm that was stopped continues where it was, because a run of this package does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apr_plugin.compare.joined import Arm, arm_of_rows, arm_of_run, arm_of_samples
from apr_plugin.compare.specs import ArmSpec, with_frames
from apr_plugin.config import data_dir, needle_dir
from apr_plugin.errors import UNANSWERED, AprError
from apr_plugin.files import read_regular
from apr_plugin.loop.budget import PATCH_PIXELS, Budget
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.arguments import join_arguments, split_arguments
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.scores import find_evaluations
from apr_plugin.terminal import one_line

Evaluate = Callable[[Sequence[str], Path], int]
"""Runs lmms-eval with these arguments, writes its output to the file, and returns its exit status."""

Tell = Callable[[str], None]
"""Takes one sentence about what is done now."""

MANIFEST = "arm.json"
"""Has a digest of what an arm was made with, in its folder, once it is finished."""

LONGEST_NAME = 100
"""Bytes of a folder's name at most."""

WRITTEN = ("plots", "cards")
"""Folders of the report beside those of the arms."""

GUARDS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "openai": (
        {"pass_video_url": "True"},
        (),
        "the server needs --allowed-local-media-path; without max_frames_num= lmms-eval sends 10 frames",
    ),
    "qwen2_5_omni": (
        {},
        ("--force_simple",),
        "the simple class is used: the chat class ignores sound and shows at most 16 frames",
    ),
    "qwen3_omni": (
        {},
        ("--force_simple",),
        "the simple class is used: the chat class ignores sound and shows at most 16 frames",
    ),
    "vllm": (
        {},
        (),
        "its chat class sends each frame as a picture of its own, without times: about twice the tokens of a video",
    ),
}
"""Models of lmms-eval 0.7.3 whose defaults are unfair to a passive baseline: what is added to their arguments and
command line, and what is said (lmms_eval/models/chat/{openai,qwen2_5_omni,vllm}.py, protocol.py)."""


@dataclass(frozen=True)
class Plan:
    """What every arm is asked."""

    tasks: str
    """Names for lmms-eval's `--tasks`."""
    out: Path
    """Each arm gets a folder in it."""
    limit: int | None = None
    """Questions of each task; `None` is all."""
    include_path: str | None = None
    """A folder of further tasks."""
    again: bool = False
    """Run also what is finished."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Identifies the tasks' files, so that an arm over other questions is not reused."""
    title: str = ""
    """Of the report."""
    sweep: Mapping[str, Any] | None = None
    """For a sweep: the setting, and its value in each arm."""


PLAN_FILE = "compare.json"
"""Lists the arms of a comparison in its folder, so that it can be opened again, also while it runs."""


@dataclass(frozen=True)
class Planned:
    """What `compare.json` says."""

    specs: list[ArmSpec]
    """Its arms."""
    title: str = ""
    """As `Plan` has it."""
    sweep: Mapping[str, Any] | None = None
    """As `Plan` has it."""


def write_plan(specs: Sequence[ArmSpec], plan: Plan) -> None:
    """Write `compare.json`.

    Raises:
        AprError: the folder can't be written.
    """
    data: dict[str, Any] = {"tasks": plan.tasks, "limit": plan.limit, "title": plan.title, "sweep": plan.sweep}
    data["arms"] = [dataclasses.asdict(spec) for spec in specs]
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        (plan.out / PLAN_FILE).write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise AprError(f"{plan.out}: cannot write there: {error.strerror or error}") from error


def read_plan(folder: Path) -> Planned | None:
    """The plan in a comparison's folder; `None` if it is none.

    Raises:
        AprError: its `compare.json` can't be read.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(read_regular(path))
        specs = [ArmSpec(**arm) for arm in data["arms"]]
        for spec in specs:
            if not all(isinstance(value, str | bool) for value in dataclasses.astuple(spec)):
                raise TypeError
        sweep = data.get("sweep")
        if sweep is not None and not (isinstance(sweep["setting"], str) and isinstance(sweep["values"], dict)):
            raise TypeError
        return Planned(specs, str(data.get("title", "")), sweep)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AprError(f"{path}: cannot read it ({type(error).__name__}); run the comparison again") from error


def open_comparison(folder: Path, specs: Sequence[ArmSpec]) -> list[Arm]:
    """The arms of a comparison as far as they are finished; what an arm lacks is in its notes.

    Raises:
        AprError: no arm has answers yet.
    """
    arms, missing = [], []
    for spec in specs:
        try:
            if spec.kind == "rows":
                arms.append(arm_of_rows(spec.name, Path(spec.source)))
            elif spec.kind == "run":
                arms.append(opened(spec.name, Path(spec.source)))
            elif spec.kind != "published":
                arm = _read(spec, arm_folder(folder, spec), scored=False)
                _describe(spec, arm, arms)
                arms.append(arm)
        except AprError as error:
            missing.append(f"{spec.name} is left out: {one_line(str(error))}")
    if not arms:
        raise AprError(f"{folder}: no arm of this comparison has answers yet. {' '.join(missing)}")
    arms[0].notes += missing
    return arms


def arm_folder(out: Path, spec: ArmSpec) -> Path:
    """Where an arm's results and trajectories are."""
    return out / file_name(spec.name)


def file_name(name: str) -> str:
    """An arm's name as that of a folder: without separators, not empty, and short enough for any file system."""
    words = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    if len(words.encode()) <= LONGEST_NAME and words:
        return words
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{words.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}".strip("-")


def run_arms(specs: Sequence[ArmSpec], plan: Plan, evaluate: Evaluate, tell: Tell) -> list[Arm]:
    """Run or read every arm, in the order of the specs; agents come first because others are matched to them.

    Raises:
        ArmFailed: lmms-eval ended with an error; the arms before it are kept.
        AprError: an arm wrote no scores, or a file can't be read.
        KeyboardInterrupt: lmms-eval was stopped.
    """
    folders = [arm_folder(plan.out, spec) for spec in specs if spec.is_run]
    if len(set(folders)) < len(folders):
        raise AprError(f"two arms would share the folder {max(folders, key=folders.count)}; name one with label=NAME")
    if taken := next((folder.name for folder in folders if folder.name in WRITTEN), None):
        raise AprError(f"an arm can't be called {taken}: the report has a folder of that name; use another label=NAME")
    write_plan(specs, plan)
    arms: list[Arm] = []
    for spec in specs:
        if spec.kind == "published":
            continue
        if spec.kind == "rows":
            tell(f"{spec.name}: rows from {spec.source}")
            arms.append(arm_of_rows(spec.name, Path(spec.source)))
        elif spec.kind == "run":
            tell(f"{spec.name}: the finished run in {spec.source}")
            arms.append(opened(spec.name, Path(spec.source)))
        else:
            arms.append(_run(spec, plan, evaluate, tell, arms))
    return arms


def opened(name: str, folder: Path) -> Arm:
    """A finished run from its folder, limited to what its last evaluation scored.

    Raises:
        AprError: there is no run.
    """
    run = open_run(folder, latest=True)
    arm = arm_of_run(name, run, only=run.evaluations[0] if run.evaluations else None)
    arm.about["folder"] = _shown(run.folder)
    if not arm.outcomes:
        raise AprError(f"{folder}: the run is empty: it ended before its first question")
    return arm


def matched_frames(agent: Arm) -> int:
    """How many uniform frames cost what the agent's mean question cost in visual tokens.

    A frame is counted as the largest that the agent was shown in a question; where it looked at none, as the largest
    that its budget allows.

    Raises:
        AprError: the agent has no trajectories.
    """
    spent, sizes = [], []
    for trajectory in agent.run if agent.run is not None else ():
        if trajectory.question.key in agent.outcomes and not trajectory.stop_reason.failed:
            if not trajectory.has(Figure.VISUAL_TOKENS):
                raise AprError(
                    f"{agent.name}: its record, made elsewhere, has no visual tokens, so no arm can be matched to it; "
                    "give passive:frames=N"
                )
            spent.append(trajectory.visual_tokens)
            sizes.append(_frame_tokens(trajectory))
    if not spent:
        raise AprError(f"{agent.name}: it answered no question, so no arm can be matched to it")
    return max(1, round(sum(spent) / sum(sizes)))


def _frame_tokens(trajectory: Trajectory) -> float:
    of_looks = [look.visual_tokens / len(look.times_s) for look in trajectory.looks if look.kind == "frames"]
    budget = trajectory.budget or Budget()
    return max(of_looks, default=max(1, budget.frame_pixels // PATCH_PIXELS))


def _run(spec: ArmSpec, plan: Plan, evaluate: Evaluate, tell: Tell, before: Sequence[Arm]) -> Arm:
    if spec.matched:
        agent = next((arm for arm in before if arm.kind == "agent"), None)
        if agent is None:
            raise AprError(f"{spec.name}: there is no agent to match")
        spec = with_frames(spec, matched_frames(agent))
    extra: tuple[str, ...] = ()
    if spec.kind == "lmms" and spec.model in GUARDS:
        added, extra, _ = GUARDS[spec.model]
        spec = dataclasses.replace(spec, arguments=join_arguments(added | split_arguments(spec.arguments)))
    folder = arm_folder(plan.out, spec)
    command = _command(spec, plan, folder, extra)
    made_with = _digest({"command": command, "versions": _versions(), "data": dict(plan.data)})
    if not plan.again and _finished(folder) == made_with:
        tell(f"{spec.name}: finished before; its results in {folder} are used")
    else:
        tell(f"{spec.name}: lmms-eval --model {spec.model} --model_args {spec.arguments}")
        (folder / MANIFEST).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "lmms-eval.log"
        status = evaluate(command, log)
        if status == 130:
            raise KeyboardInterrupt
        if status not in (0, UNANSWERED):
            raise ArmFailed(f"{spec.name}: lmms-eval ended with status {status}; its output is in {log}", status)
        if status == 0:
            (folder / MANIFEST).write_text(json.dumps({"made_with": made_with}) + "\n")
    arm = _read(spec, folder)
    told = [_shown(folder) if word == str(folder) else word for word in command]
    arm.about["command"] = ["apr", "eval", *told]
    _describe(spec, arm, before)
    return arm


def _describe(spec: ArmSpec, arm: Arm, before: Sequence[Arm]) -> None:
    """Say of an arm what lmms-eval was asked, how its frames were chosen, and what was changed for it."""
    arm.about |= {"model": spec.model, "model_args": spec.arguments}
    if spec.kind == "lmms" and spec.model in GUARDS:
        arm.notes.insert(0, f"{spec.name}: lmms-eval's model {spec.model}: {GUARDS[spec.model][2]}")
    if spec.matched:
        config = arm.run.card.get("config") if arm.run is not None else None
        frames = config.get("passive_frames") if isinstance(config, Mapping) else None
        arm.notes.insert(0, f"{spec.name}: {'an unknown number of' if frames is None else frames} frames")
        arm.notes += _how_well_matched(arm, before)


def _shown(folder: Path) -> str:
    """A folder as a report names it: from the working directory, if it is in it."""
    path = folder.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class ArmFailed(AprError):
    """lmms-eval failed; `status` is what it ended with, and 1 if a signal ended it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status if status > 0 else 1


def _command(spec: ArmSpec, plan: Plan, folder: Path, extra: Sequence[str]) -> list[str]:
    command = ["--tasks", plan.tasks, "--model", spec.model]
    command += ["--model_args", spec.arguments] if spec.arguments else []
    command += ["--output_path", str(folder), "--log_samples", *extra]
    command += ["--limit", str(plan.limit)] if plan.limit is not None else []
    return command + (["--include_path", plan.include_path] if plan.include_path else [])


def _read(spec: ArmSpec, folder: Path, *, scored: bool = True) -> Arm:
    if spec.model == "apr":
        arm = opened(spec.name, folder)
        if scored and (arm.run is None or not arm.run.scores):
            raise AprError(f"{spec.name}: lmms-eval wrote no samples into {folder}; see lmms-eval.log there")
        arm.kind = spec.kind
        return arm
    said: list[str] = []
    found = find_evaluations(folder, lambda text: said.append(one_line(text)), spec.model)
    if not found or not found[0].samples:
        raise AprError(f"{spec.name}: lmms-eval wrote no samples into {folder}; see lmms-eval.log there")
    arm = arm_of_samples(spec.name, found[0], spec.model)
    arm.notes += said
    return arm


def _finished(folder: Path) -> Any:
    try:
        return json.loads(read_regular(folder / MANIFEST))["made_with"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(value: Any) -> str:
    """A digest, so that no key and no path of a command is kept."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("apr-plugin", "lmms-eval"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"data": str(data_dir()), "needle": str(needle_dir()[0])}


def _how_well_matched(arm: Arm, before: Sequence[Arm]) -> list[str]:
    agent = next((other for other in before if other.kind == "agent"), None)
    if agent is None:
        return []
    ours, theirs = (_mean_tokens(one) for one in (arm, agent))
    if theirs and abs(ours / theirs - 1) > 0.05:
        return [
            f"{arm.name} spent {ours:,.0f} visual tokens a question, {ours / theirs:.2f} of the agent's {theirs:,.0f}"
        ]
    return []


def _mean_tokens(arm: Arm) -> float:
    rows = [outcome.row for outcome in arm.outcomes.values() if outcome.row]
    spent = [row["visual_tokens"] for row in rows if row["visual_tokens"] is not None]
    return sum(spent) / len(spent) if spent else 0.0
