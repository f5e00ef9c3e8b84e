"""What the training of a made model cost in tokens, FLOPs, seconds; how long a rival must train to spend as much.

Tokens and seconds are those of `spent.jsonl` (`sft.telling`) in the folders of stages. FLOPs are these tokens times the
FLOPs of a token, which are averaged over the first rows of the stage's mix. A forward of a row of n tokens counts

- 2 for each weight of the language model's layers and each token, and 4 d for each pair of tokens that attend to each
  other in each layer, of width d = heads x head size (n^2 / 2 pairs),
- 2 for each weight of the head and each token that is learned,
- 2 for each weight of the vision tower's patch embedding and blocks and each patch, and 2 for each weight of its merger
  and each visual token; 2 for each weight of the audio tower and each of its positions, two of which make a token,

and training counts three forwards (J. Kaplan et al., arXiv 2001.08361, section 2.1). Each picture counts each time that
it is in a row. A trainer that computes equal pictures of a forward once (`forward.distinct_pictures`) spends less, the
rival with many frames most of all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular
from apr_plugin.models.batch import Example
from apr_plugin.training.sft.recipe import LengthSettings, Recipe
from apr_plugin.training.sft.running import RUN
from apr_plugin.training.sft.staging import recipe_of, sources_of
from apr_plugin.training.sft.telling import SPENT, spent
from apr_plugin.training.student import Student

ROWS = 64
"""Rows of a mix from which the FLOPs of a token are taken."""

FORWARDS = 3
"""A forward and a backward, in forwards."""

Unit = Literal["flops", "tokens"]


@dataclass(frozen=True)
class Weights:
    """The weights of a model that a token meets, by part."""

    layers: int
    head: int
    patches: int
    """Patch embedding and blocks of the vision tower."""
    merger: int
    audio: int
    depth: int
    """Layers of the language model."""
    width: int
    """Heads times the size of a head."""

    @classmethod
    def of(cls, folder: str | Path) -> Weights:
        """Those of a checkpoint of a Qwen2.5-Omni Thinker, from its headers.

        Raises:
            AprError: there is no such checkpoint.
        """
        from safetensors import safe_open

        path = Path(folder)
        try:
            text = json.loads((path / "config.json").read_text("utf-8"))["text_config"]
            counts: dict[str, int] = {}
            for file in sorted(path.glob("*.safetensors")):
                with safe_open(str(file), "pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - not a mapping
                        shape = tensors.get_slice(name).get_shape()
                        if len(shape) > 1:
                            part = _part(name)
                            counts[part] = counts.get(part, 0) + math.prod(shape)
        except (OSError, ValueError, KeyError) as error:
            raise AprError(f"{path}: cannot read the sizes of this checkpoint: {error}") from error
        size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return cls(
            layers=counts.get("layers", 0),
            head=counts.get("embeddings", 0),
            patches=counts.get("patches", 0),
            merger=counts.get("merger", 0),
            audio=counts.get("audio", 0),
            depth=text["num_hidden_layers"],
            width=text["num_attention_heads"] * size,
        )

    def flops(self, row: Example) -> float:
        """FLOPs of training on a row."""
        n = len(row)
        forward = 2.0 * self.layers * n + 2.0 * self.depth * self.width * n * n + 2.0 * self.head * len(row.target)
        for medium in row.encoded.media:
            for run in medium.runs:
                if run.kind == "audio":
                    forward += 2.0 * self.audio * 2 * run.tokens
                else:
                    patches = len(medium.pixels) if medium.pixels is not None else 0
                    forward += 2.0 * self.patches * patches + 2.0 * self.merger * run.tokens
        return FORWARDS * forward


def _part(name: str) -> str:
    if "audio_tower" in name:
        return "audio"
    if "visual" in name:
        return "merger" if "merger" in name else "patches"
    return "embeddings" if "embed_tokens" in name or "lm_head" in name else "layers"


@dataclass(frozen=True)
class Spent:
    """What a stage, or a whole run, cost."""

    name: str
    tokens: float
    flops: float
    seconds: float
    cpu_seconds: float


def flops_of_token(recipe: Recipe, place: int) -> float:
    """FLOPs of a token of a stage, averaged over the first rows of its mix.

    Args:
        recipe: With the student before training.
        place: The number of the stage, from 0.
    """
    student = Student.from_pretrained(recipe.student.pretrained)
    weights = Weights.of(recipe.student.pretrained)
    own = recipe_of(recipe, recipe.stages[place])
    sources = sources_of(own, recipe.stages[place].mix, student, Console(quiet=True))
    whole = sum(source.share for source in sources)
    flops = tokens = 0.0
    for source in sources:
        rows = [source.at(number) for number in range(max(4, round(ROWS * source.share / whole)))]
        made = [row for row in rows if isinstance(row, Example)]
        if len(made) < len(rows):
            raise AprError(f"stage {recipe.stages[place].name}: FLOPs are known for made rows only, not {source.title}")
        flops += source.share / len(made) * sum(map(weights.flops, made))  # sources have shares of rows
        tokens += source.share / len(made) * sum(map(len, made))
    return flops / tokens


def spent_by_stage(run: Path) -> list[Spent]:
    """What each stage of a run of `apr train recipe` cost so far.

    Raises:
        AprError: it is no such run.
    """
    recipe = _recipe_of_run(run)
    found = []
    for place, (stage, cost) in enumerate(_costs(run, recipe)):
        flops = cost["tokens"] * flops_of_token(recipe, place)
        found.append(Spent(stage.name, cost["tokens"], flops, cost["seconds"], cost["cpu_seconds"]))
    return found


def total(stages: list[Spent], name: str = "all") -> Spent:
    """The sum of stages."""
    return Spent(
        name, *(sum(getattr(one, field) for one in stages) for field in ("tokens", "flops", "seconds", "cpu_seconds"))
    )


def _recipe_of_run(run: Path) -> Recipe:
    file = run / "stages" / RUN
    try:
        told = json.loads(read_regular(file))
        told.pop("row_files", None)
        told["student"]["pretrained"] = str(run / "start")
        return Recipe.model_validate(told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AprError(f"{run}: this is no run of `apr train recipe` ({file}: {error})") from error


def _costs(run: Path, recipe: Recipe) -> Iterator[tuple[Any, dict[str, float]]]:
    for number, stage in enumerate(recipe.stages, 1):
        folder = run / "stages" / f"{number:02}-{stage.name}"
        if (folder / SPENT).exists():
            yield stage, spent(folder)


def lengthened(recipe: Recipe, kept: Path, like: Path | None, unit: Unit, factor: float, console: Console) -> Recipe:
    """The recipe with a last stage that makes the whole run spend at least as much as another one did.

    The earlier stages count with their least length, so the run may spend more. A run that goes on keeps what was
    decided.

    Args:
        recipe: Of the rival, whose stages have lengths in tokens.
        kept: The file in which that is kept.
        like: Folder of the other run; not read again once it was decided.
        unit: What is counted.
        factor: Times what the other run spent.
        console: Where it is told.

    Raises:
        AprError: the other folder is no run, or a length is not in tokens.
    """
    if kept.exists():
        tokens = int(json.loads(read_regular(kept))["last_stage_tokens"])
    else:
        if any(stage.length.tokens is None for stage in recipe.stages):
            raise AprError("--like needs a recipe whose stages all have a length in tokens")
        assert like is not None
        other = total(spent_by_stage(like.expanduser()))
        each = [1.0 if unit == "tokens" else flops_of_token(recipe, n) for n in range(len(recipe.stages))]
        before = sum(one * (stage.length.tokens or 0) for one, stage in zip(each, recipe.stages[:-1], strict=False))
        lacking = factor * (other.tokens if unit == "tokens" else other.flops) - before
        tokens = max(recipe.stages[-1].length.tokens or 1, math.ceil(lacking / each[-1]))
        told = {"unit": unit, "factor": factor, "other": vars(other), "last_stage_tokens": tokens}
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(told, indent=1) + "\n")
        part.replace(kept)
    last = recipe.stages[-1]
    length = LengthSettings(tokens=tokens)
    gate = None if last.gate is None else last.gate.model_copy(update={"at_most": length})
    console.print(f"stage {last.name}: {tokens:,} tokens, so that the run spends as much as another one ({unit})")
    stages = (*recipe.stages[:-1], last.model_copy(update={"length": length, "gate": gate}))
    return recipe.model_copy(update={"stages": stages})
