"""Rows with frames, sound, clips and text alone, and recipes for a small student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apr_testing import answer, look, turn
from row_making import Speaker, played, question

from apr_plugin.loop import Budget, EpisodeConfig, Sampling
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import RowSet, write_rows
from apr_plugin.training.student import Student

QUICK = EpisodeConfig(budget=Budget(turns=8, frame_pixels=4 * 784), sampling=Sampling(max_new_tokens=300))


def rows_of(student: Student, videos: dict[str, Path], folder: Path, *, validation: float = 0.0) -> Path:
    """A file of rows: two episodes about a film with sound, one about a silent one, one about a long one."""
    hears = student.family.hears
    listen = turn({"type": "get_audio", "start": 1.0, "end": 3.0}) if hears else look(1, 2, 2)
    says = {
        "sound": [look(0, 4, 3), listen, turn({"type": "get_clip", "start": 1.0, "end": 3.0}), answer("A")],
        "silent": [turn({"type": "get_clip", "start": 0.5, "end": 2.5}), look(3, 4, 1), answer("B")],
        "long": [look(10, 60, 2), answer("A")],
    }
    for name, said in says.items():
        run = played(folder, question(videos[name], doc_id=name), Speaker(student, said), QUICK)
    made = make_rows([Source(run.file, run.card)], student, RowSettings(validation=validation))
    write_rows(folder / "rows.jsonl", made)
    return folder / "rows.jsonl"


def recipe_of(student: str | Path, rows: Path, **more: Any) -> dict[str, Any]:
    """A recipe for the CPU, in float32."""
    trainer = {"use_cpu": True, "bf16": False, "learning_rate": 1e-3, "num_train_epochs": 1, "disable_tqdm": True}
    trainer |= {"gradient_checkpointing": False, "logging_steps": 1} | more.pop("trainer", {})
    return {"student": {"pretrained": str(student)}, "rows": str(rows), "rows_per_step": 3, "trainer": trainer} | more


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(recipe))
    return path


def of(rows: RowSet, kind: str) -> Any:
    """The first row whose prompt has this medium: `frames`, `sound`, `text`."""
    tests = {
        "text": lambda row: row.visual_tokens == 0 and row.audio_tokens == 0,
        "frames": lambda row: row.visual_tokens > 0 and row.audio_tokens == 0,
        "sound": lambda row: row.visual_tokens == 0 and row.audio_tokens > 0,
        "clip": lambda row: row.visual_tokens > 0 and row.audio_tokens > 0,
    }
    return next(row for row in rows.rows if tests[kind](row))


def trained_omni(whole: Path, videos: dict[str, Path], folder: Path) -> tuple[Path, Path]:
    """The Thinker of a whole checkpoint after two steps of training, and the whole checkpoint with it."""
    from apr_plugin.training.layout import to_thinker, to_whole
    from apr_plugin.training.sft.recipe import Recipe
    from apr_plugin.training.sft.running import run_sft

    to_thinker(whole, folder / "thinker")
    rows = rows_of(Student.from_pretrained(str(folder / "thinker")), videos, folder / "rows")
    steps = {"max_steps": 2, "save_strategy": "no"}
    recipe = recipe_of(folder / "thinker", rows, learn={"towers": "trained"}, rows_per_step=4, trainer=steps)
    final = run_sft(Recipe.model_validate(recipe), folder / "out")
    to_whole(final, whole, folder / "whole")
    return final, folder / "whole"
