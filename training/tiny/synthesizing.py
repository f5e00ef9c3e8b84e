"""Real trajectories for the small agent: filmed worlds, a teacher that errs, both filters, rows of small pictures.

    OUT/synthesis/run.json        what it is made of
    OUT/synthesis/videos/         filmed training worlds, and questions.jsonl about them (filming)
    OUT/synthesis/road/           a folder of `apr train synthesize`, `audit` and `funnel`
    OUT/synthesis/rows.jsonl      rows of the student at its own size of pictures; a mix names them `synthesis`

Each part continues after a stop, and nothing is made twice.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from rich.console import Console

from apr_plugin.errors import AprError
from apr_plugin.training.making import RowSettings
from apr_plugin.training.row_command import run_rows
from apr_plugin.training.sft.running import claim_folder
from apr_plugin.training.synthesis.running import run_audit, run_funnel, run_synthesize
from apr_plugin.training.tiny.filming import FilmSettings, make_films
from apr_plugin.training.tiny.judging import NotesJudge
from apr_plugin.training.tiny.model import EDGE
from apr_plugin.training.tiny.teacher import ARGUMENTS, NotesTeacher

FOLDER = "synthesis"
"""The folder within that of a run, and the name of the rows in a mix."""

ROAD = "road"
ROWS = "rows.jsonl"

RULES = (0.5, 0.5)
"""Least IoU and least relative accuracy of a right answer, as in `apr train synthesize`."""

RANGES = ("60", "60", "300")
"""Most frames, seconds of a clip and seconds of sound of one look; the compact wire doesn't tell them."""


class SynthesisSettings(FilmSettings):
    """How trajectories are made and filtered."""

    wrong: float = Field(default=0.06, ge=0, le=1)
    """Chance that a look of the teacher goes to a wrong place; 0 makes trajectories without such errors."""
    slips: float = Field(default=0.04, ge=0, le=1)
    """Chance that its action is one that is refused."""
    hasty: float = Field(default=0.02, ge=0, le=1)
    """Chance that it answers too early, with a guess."""
    attempts: int = Field(default=3, ge=1)
    """Attempts at a question, up to its first right answer."""
    threshold: int = Field(default=2, ge=1, le=5)
    """Least rating of every turn of a trajectory that is kept. A look at a wrong place has 2, a guess 1."""
    least_rating: int = Field(default=3, ge=1, le=5)
    """Least rating of a turn that is learned; the others stay in the prompts of later ones."""


def film_worlds(out: Path, settings: SynthesisSettings, console: Console) -> Path:
    """Film the worlds of a run, as far as they are missing.

    Args:
        out: Folder of the run.
        settings: Which ones.
        console: Shows progress.

    Returns:
        The file of questions about them.

    Raises:
        AprError: they can't be written, or are of other settings.
    """
    claim_folder(out / FOLDER, settings.model_dump(mode="json"), True)
    return make_films(out / FOLDER, settings, console)


def make_trajectories(out: Path, settings: SynthesisSettings, student: Path, console: Console) -> Path:
    """Make trajectories and the rows of a student.

    Args:
        out: Folder of the run.
        settings: How.
        student: The checkpoint that is trained.
        console: Shows progress.

    Returns:
        The file of rows, which is there when everything is.

    Raises:
        AprError: a part can't be made, or no row is left.
    """
    rows, road = out / FOLDER / ROWS, out / FOLDER / ROAD
    questions = film_worlds(out, settings, console)
    if rows.is_file():
        console.print(f"{rows}: made before", soft_wrap=True)
        return rows
    teacher = NotesTeacher(settings.wrong, settings.slips, settings.hasty)
    given = ",".join(f"{name}={str(value).lower()}" for name, value in ARGUMENTS.items())
    failed = run_synthesize(
        [str(questions)], given, road, attempts=settings.attempts, ranges=RANGES, rules=RULES, policy=teacher
    )
    if failed:
        raise AprError(f"{road}: some questions could not be asked; the same command asks them again")
    if run_audit(road, "seed=0", settings.threshold, RULES, policy=NotesJudge()):
        raise AprError(f"{road}: some turns could not be rated; the same command goes on")
    run_funnel(road, settings.threshold, "", False, RULES, plot=False)
    chosen = RowSettings(validation=0.0, most_pixels=EDGE * EDGE)
    run_rows(road, str(student), rows, None, chosen, least_rating=settings.least_rating)
    return rows
