"""Mixes and staged runs: what comes when, gates, and how a run that was killed goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file  # noqa: E402 - after the libraries it needs
from sft_making import recipe_of, rows_of  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart  # noqa: E402
from apr_plugin.models.batch import Example  # noqa: E402
from apr_plugin.training import named  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.rows import read_rows  # noqa: E402
from apr_plugin.training.sft import finishing  # noqa: E402
from apr_plugin.training.sft.gates import GateMissed  # noqa: E402
from apr_plugin.training.sft.mixes import Mix, Source, of_rows, tokens  # noqa: E402
from apr_plugin.training.sft.recipe import Recipe  # noqa: E402
from apr_plugin.training.sft.running import run_sft  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

OMNI = "qwen2_5_omni"


def colours(*, student: Student, seed: int, longest: int = 3) -> Callable[[int], Example]:
    """A maker of rows: pictures of one colour, and a token that says which."""

    def make(index: int) -> Example:
        draw = np.random.default_rng((seed, index))
        bright = int(draw.integers(0, 4))
        parts = [
            ImagePart(np.full((56, 56, 3), 60 * bright, np.uint8)) for _ in range(int(draw.integers(1, longest + 1)))
        ]
        prompt = Prompt((Message("user", (*parts, TextPart("How bright?"))),))
        return Example(student.encoder.encode(prompt), (40 + bright, student.end))

    return make


def loss_on_colours(*, student: Student, rows: int = 4) -> Callable[[Any], dict[str, float]]:
    """A measure: the mean probability of the right token in held-out rows."""
    from apr_plugin.models.batch import batch_of

    held = [colours(student=student, seed=10**6)(number) for number in range(rows)]

    def measure(model: Any) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        right = []
        for example in held:
            batch = batch_of([example], student.family, pad=0)
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits[0, -3]
            right.append(float(logits.softmax(-1)[labels[0, -2]]))
        return {"right": float(np.mean(right))}

    return measure


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(named.OURS["row_makers"], "colours", f"{__name__}:colours")
    monkeypatch.setitem(named.OURS["measures"], "right", f"{__name__}:loss_on_colours")


@pytest.fixture(scope="module")
def rows(student: Callable[..., Student], shared_videos: dict[str, Path], tmp_path_factory: Any) -> Path:
    return rows_of(student(OMNI), shared_videos, tmp_path_factory.mktemp("rows"))


class Length:
    """A row that is only a length."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def __len__(self) -> int:
        return 5 + (self.number * 7919) % 40


def a_mix(tmp_path: Path | None = None, **more: Any) -> tuple[Mix, Counter[str]]:
    made: Counter[str] = Counter()

    def at(name: str) -> Callable[[int], Any]:
        def make(number: int) -> Length:
            made[name] += 1
            return Length(name, number)

        return make

    sources = [Source(name, share, at(name)) for name, share in (("a", 5.0), ("b", 2.0), ("c", 1.0))]
    counts = None if tmp_path is None else tmp_path / "packs.txt"
    return Mix(sources, 120, seed=3, length=10**6, counts=counts, **more), made


def test_a_mix_is_a_function_of_the_number(tmp_path: Path) -> None:
    """Each row of each source once and in order, in its share; packs within the budget; any place at once."""
    mix, _ = a_mix(tmp_path)
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for number in range(400):
        pack = mix[number]
        assert len(pack) * max(tokens(row) for row, _ in pack) <= 120
        for row, name in pack:
            assert row.name == name
            seen[name].append(row.number)
    whole = sum(map(len, seen.values()))
    assert abs(len(seen["a"]) / whole - 5 / 8) < 0.02 and abs(len(seen["c"]) / whole - 1 / 8) < 0.02
    for numbers in seen.values():
        assert len(set(numbers)) == len(numbers)
        assert set(range(len(numbers) - 64)) <= set(numbers), "nothing was left out before the last stretch"
    told = [[(name, row.number) for row, name in mix[number]] for number in (399, 7, 200)]
    again, _ = a_mix()
    assert [[(name, row.number) for row, name in again[number]] for number in (399, 7, 200)] == told

    late, made = a_mix(tmp_path)
    made.clear()
    assert [(name, row.number) for row, name in late[399]] == told[0]
    assert sum(made.values()) < whole / 2, "what came before was not made again"
    (tmp_path / "packs.txt").write_text((tmp_path / "packs.txt").read_text() + "1")  # killed while it wrote
    assert [(name, row.number) for row, name in a_mix(tmp_path)[0][399]] == told[0]


def test_rows_of_a_file_come_once_in_each_pass(rows: Path) -> None:
    given = read_rows(rows).rows
    source = of_rows("x", 1.0, given, seed=1)
    passes = [[source.at(number + turn * len(given)).where for number in range(len(given))] for turn in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(row.where for row in given) and passes[0] != passes[1]


def staged(student: Path, file: Path, **more: Any) -> Recipe:
    """Two stages: made rows up to a gate, then a mix of both."""
    stages = [
        {
            "name": "first",
            "mix": [{"made": "colours", "given": {"longest": 2}}],
            "length": {"steps": 2},
            "gate": {"measure": "right", "reach": {"right": 0.0}, "every": 1, "at_most": {"steps": 4}},
            "rows_per_step": 4,
            "token_budget": 300,
            "trainer": {"save_steps": 1},
        },
        {
            "name": "second",
            "mix": [{"rows": str(file), "share": 1}, {"made": "colours", "share": 3, "seed": 5}],
            "length": {"rows": 12},
            "rate": 0.5,
            "rows_per_step": 4,
            "trainer": {"save_steps": 1, "lr_scheduler_type": "linear"},
        },
    ]
    recipe = recipe_of(student, file, learn={"towers": "trained"}, forward={"distinct_pictures": True})
    del recipe["rows"], recipe["trainer"]["num_train_epochs"]
    return Recipe.model_validate(recipe | {"stages": stages} | more)


class Stop(Exception):
    pass


def test_a_staged_run_and_how_it_continues(
    tiny: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within its second stage, it ends with the weights of the undisturbed run; the optimizer is kept."""
    recipe = staged(tiny(OMNI), rows)
    final = run_sft(recipe, tmp_path / "whole")
    card = json.loads((final / "training.json").read_text())
    assert [stage["name"] for stage in card["stages"]] == ["first", "second"]
    first, second = card["stages"]
    assert first["steps"] == 2 and [line["step"] for line in first["measured"]] == [1, 2], (
        "the gate was reached at once"
    )
    assert second["steps"] == 3 and second["sources"] == {"rows": 0.25, "colours": 0.75}
    assert second["losses"][0]["learning_rate"] == pytest.approx(0.5 * first["losses"][0]["learning_rate"])
    assert "## Stage second" in (final / "README.md").read_text()
    before = torch.load(tmp_path / "whole/01-first/checkpoint-2/optimizer.pt", weights_only=True)["state"]
    after = torch.load(tmp_path / "whole/02-second/checkpoint-1/optimizer.pt", weights_only=True)["state"]
    assert before and {float(before[key]["step"]) for key in before} == {2.0}
    assert {float(after[key]["step"]) for key in before} == {3.0}

    def stop(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "second" in args.output_dir and state.global_step == 2:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(finishing.StopAtNan, "on_log", stop)
        run_sft(recipe, tmp_path / "cut")
    assert not (tmp_path / "cut" / "final").exists()
    # As if it had been killed between the last checkpoint of the first stage and its end.
    shutil.rmtree(tmp_path / "cut" / "01-first" / "final")
    run_sft(recipe, tmp_path / "cut")
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(AprError, match=r"other settings.*stages"):
        run_sft(staged(tiny(OMNI), rows, stages=recipe.model_dump()["stages"][:1]), tmp_path / "cut")


def test_a_gate_that_is_not_reached_stops_the_run(tiny: Any, rows: Path, tmp_path: Path) -> None:
    recipe = staged(tiny(OMNI), rows)
    first = recipe.stages[0].model_dump() | {"length": {"steps": 1}}
    first["gate"] |= {"reach": {"right": 1.5}, "at_most": {"steps": 2}}
    hard = staged(tiny(OMNI), rows, stages=[first])
    for _ in range(2):  # the same command says the same, and trains no further
        with pytest.raises(GateMissed, match=r"after 2 steps the gate right is not reached: right is 0\.\d+, not 1\.5"):
            run_sft(hard, tmp_path / "out")
    assert (tmp_path / "out/01-first/checkpoint-2").is_dir() and not (tmp_path / "out/01-first/final").exists()
    unknown = first | {"gate": first["gate"] | {"reach": {"wrong": 1.0}}}
    with pytest.raises(RecipeError, match="measure right gives right, and not wrong"):
        run_sft(staged(tiny(OMNI), rows, stages=[unknown]), tmp_path / "unknown")
    for change, said in (
        ({"mix": [{"made": "colors"}]}, r"no maker of rows 'colors' \(did you mean 'colours'"),
        ({"mix": [{"made": "colours", "given": {"size": 3}}]}, "maker of rows colours: .*size"),
        ({"gate": first["gate"] | {"measure": "rihgt"}}, r"no measure 'rihgt' \(did you mean 'right'"),
    ):
        with pytest.raises(AprError, match=said):
            run_sft(staged(tiny(OMNI), rows, stages=[first | change]), tmp_path / said[:9].replace(" ", "_"))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"mix": [{"share": 1}]}, "either `rows`"),
        ({"length": {}}, "one of steps, rows and tokens"),
        ({"trainer": {"max_steps": 3}}, "max_steps is not set in a recipe: it is the stage's `length`"),
        ({"name": "Über alles"}, "name"),
    ],
)
def test_mistakes_in_stages(stage: dict[str, Any], said: str, rows: Path) -> None:
    good = staged(Path("x"), rows).stages[0].model_dump()
    with pytest.raises(ValueError, match=said):
        staged(Path("x"), rows, stages=[good | stage])
    with pytest.raises(ValueError, match="two are called 'first'"):
        staged(Path("x"), rows, stages=[good, good])
    with pytest.raises(ValueError, match="named in their mixes"):
        staged(Path("x"), rows, rows=str(rows))
