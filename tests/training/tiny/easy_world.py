"""A much simplified needle world for tests in which a small agent learns: one minute, glyphs alone, few frames a look.

The model is the recipe's with a third of its layers. What differs besides is only how much is asked of it.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from apr_plugin.training import named
from apr_plugin.training.student import Student
from apr_plugin.training.tiny import agents, notes, playing, start
from apr_plugin.training.tiny.pictures import Eyes
from apr_plugin.training.tiny.prompts import WIRE, Laid, Rows, laid
from apr_plugin.training.tiny.worlds import TRAINING, Film, film

FRAMES = 6
"""Of each look."""

KIND = "glyph"


def simplify(patched: pytest.MonkeyPatch) -> None:
    """Looks have few frames, questions are about glyphs in videos of one minute; `easy_agents` makes rows of them."""
    for word in notes.FRAMES:
        patched.setitem(notes.FRAMES, word, FRAMES)
    patched.setattr(playing, "KINDS", (KIND,))
    patched.setattr(start, "drawn", drawn)
    patched.setitem(named.OURS["row_makers"], "easy_agents", f"{__name__}:maker")


def drawn(draw: random.Random, worlds: int) -> tuple[Film, Any]:
    """A world of one minute and a question about a glyph in it."""
    seen, docs = film(TRAINING.start + draw.randrange(worlds), "1m")
    return seen, draw.choice([doc for doc in docs if doc["kind"] == KIND])


def maker(*, student: Student, seed: int) -> Rows:
    """Rows of the teacher's episodes; every fourth is a first turn."""

    @lru_cache(maxsize=64)
    def steps(number: int) -> list[agents.Step]:
        return list(agents.episode(*drawn(random.Random(f"easy:{seed}:{number}"), 1_000_000)))

    def lay(index: int) -> Laid:
        first, *later = steps(index // 4)
        step = first if index % 4 == 0 else later[(index % 4 + index // 4) % len(later)]
        return laid(student, step.notes, step.labels, WIRE.written(step.turn))

    return Rows(lay, Eyes(student, seed))


def recipe_file(path: Path, steps: int, seed: int) -> str:
    """The recipe: one stage of small steps, whose gate measures at the end."""
    rate = 3e-3
    training = {
        "learn": {"what": "full", "towers": "trained"},
        "rows_per_step": 4,
        "forward": {"token_budget": 1300, "distinct_pictures": True},
        "rates": [
            {"match": "*embed_tokens*", "learning_rate": rate, "weight_decay": 0.0},
            {"match": "*patch_embed*", "learning_rate": 7e-4, "weight_decay": 0.0},
            {"match": "*merger.mlp.0*", "learning_rate": 7e-4, "weight_decay": 0.0},
            {"match": "*", "learning_rate": rate, "optimizer": "muon", "weight_decay": 0.01},
        ],
        "trainer": {
            "use_cpu": True,
            "learning_rate": rate,
            "adam_beta2": 0.99,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
            "warmup_steps": 20,
            "save_steps": 10_000,
            "logging_steps": 50,
            "disable_tqdm": True,
            "activation_checkpointing": False,
        },
        "stages": [
            {
                "name": "agents",
                "mix": [{"made": "easy_agents", "seed": seed}],
                "length": {"steps": steps},
                "gate": {
                    "measure": "needle_agent",
                    "given": {"per_kind": 16, "buckets": ["1m"]},
                    "reach": {"answered": 0.0},
                    "every": steps,
                    "at_most": {"steps": steps},
                },
            }
        ],
    }
    size = {"hidden": 128, "layers": 2, "inner": 256, "vision_hidden": 32, "audio_layers": 1}
    path.write_text(
        json.dumps({"start": {"seed": seed, "size": size}, "evaluation": [{"seed": 0}], "training": training})
    )
    return str(path)
