"""The passive rivals: rows are what the product shows in one turn, and what training cost is counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from apr_testing import Playback  # noqa: E402 - after the libraries it needs
from rich.console import Console  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop import Episode, EpisodeConfig, MediaRef  # noqa: E402
from apr_plugin.loop.card import Card  # noqa: E402
from apr_plugin.loop.replay import replay  # noqa: E402
from apr_plugin.models.profile import profile_of_checkpoint  # noqa: E402
from apr_plugin.runs.settings import read_settings  # noqa: E402
from apr_plugin.scoring.truth import score  # noqa: E402
from apr_plugin.tasks.needle.make import BUCKETS  # noqa: E402
from apr_plugin.tasks.needle.render import write_video  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.sft.learner import load_learner  # noqa: E402
from apr_plugin.training.sft.recipe import StudentSettings  # noqa: E402
from apr_plugin.training.sft.weights import Weighing  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402
from apr_plugin.training.tiny import passive, recipe, spending  # noqa: E402
from apr_plugin.training.tiny.model import Size  # noqa: E402
from apr_plugin.training.tiny.notes import KINDS, flag  # noqa: E402
from apr_plugin.training.tiny.pictures import Eyes  # noqa: E402
from apr_plugin.training.tiny.playing import games  # noqa: E402
from apr_plugin.training.tiny.prompts import WIRE  # noqa: E402
from apr_plugin.training.tiny.start import make_start  # noqa: E402
from apr_plugin.training.tiny.weighing import AFTER, AGAIN, FIRST, FIXED, OPENING, WORD  # noqa: E402
from apr_plugin.training.tiny.worlds import GATES, film, question_of  # noqa: E402

SMALL = Size(hidden=64, layers=1, heads=2, kv_heads=1, inner=64, vision_hidden=32, audio_hidden=32, audio_layers=1)
FRAMES = 40


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("rival") / "start", size=SMALL, one_turn=FRAMES)


@pytest.fixture(scope="module")
def pupil(rival: Path) -> Student:
    return Student.from_pretrained(str(rival))


def test_a_row_of_one_turn_is_what_the_product_shows(rival: Path, pupil: Student, tmp_path: Path) -> None:
    """The passive arm under the rival's own profile, on a real file: prompt, tokens, names, answer, and a replay."""
    seen, docs = film(GATES.start + 3, "1m")
    write_video(seen.world, tmp_path / "v.mp4")
    asked = {"policy": "hf", "pretrained": str(rival), "arm": "passive", "passive_frames": FRAMES}
    config = read_settings({**asked, "dtype": "float32"}).config
    assert isinstance(config, EpisodeConfig) and config.passive_form == "wire"
    assert config.sampling.max_new_tokens == passive.TOKENS_OF_A_NOTE * FRAMES + 80
    for kind in KINDS:
        doc = next(doc for doc in docs if doc["kind"] == kind)
        question, truth = question_of(doc)
        question = question.model_copy(update={"videos": (MediaRef(path=str(tmp_path / "v.mp4")),)})
        times, labels = passive.uniform(seen, FRAMES)
        turn = passive.turn_of(doc, times, labels)
        policy = Playback([WIRE.written(turn)])
        done = asyncio.run(Episode(question, policy, config).run())
        assert done.arm == "passive" and done.first_shown[0].times_s == times
        assert done.answer_valid and score(done.answer, truth, str(question.kind)) > 0.5
        (prompt,) = policy.prompts
        notes = passive.notebook(question, seen)
        assert prompt.text == notes.passive_prompt([passive.look(seen, times)]).text
        made = Eyes(pupil, 0, noise=0.0).fill(
            pupil.encoder.lay_out(notes.passive_prompt([passive.look(seen, times)])), labels, 0
        )
        real = pupil.encoder.encode(prompt)
        assert made.ids.tolist() == real.ids.tolist() and len(real.media) == FRAMES
        assert done.turns[0].named == turn.named and done.turns[0].observation == turn.observation
        ((again, _),) = replay(done, Card.of(config, policy), find=lambda path: path)
        assert again.text == prompt.text
    assert pupil.tokenizer.tokenize(f"#{FRAMES}") == [f"#{FRAMES}"], "the name of a frame is one token"


def test_the_default_form_stays_and_untimed_frames_have_no_names(tmp_path: Path) -> None:
    seen, docs = film(GATES.start + 3, "1m")
    write_video(seen.world, tmp_path / "v.mp4")
    doc = next(doc for doc in docs if doc["kind"] == "when")
    question = question_of(doc)[0].model_copy(update={"videos": (MediaRef(path=str(tmp_path / "v.mp4")),)})

    def asked(**given: Any) -> tuple[Any, Any]:
        policy = Playback(['{"observation": "", "action": {"type": "answer", "content": "[[#2,#3]]"}}'])
        settings = {"wire": "compact", "frame_times": False, "passive_frames": 4} | given
        return asyncio.run(Episode(question, policy, EpisodeConfig(**settings)).run()), policy.prompts[0]

    done, prompt = asked(arm="passive")
    assert not done.answer_valid and "Frame 7.50s:" in prompt.text and "#2" not in prompt.text
    done, prompt = asked(arm="passive", passive_form="wire")
    assert done.answer == "[[22.5, 37.5]]" and prompt.text.endswith("Answer now\n</user>") and "#2" in prompt.text
    done, prompt = asked(arm="shuffled", passive_form="wire")
    assert not done.answer_valid and "frames in no order" in prompt.text and "never shown" in done.stop_detail
    done, prompt = asked(arm="blind", passive_form="wire")
    assert not done.answer_valid and "<image" not in prompt.text
    with pytest.raises(AprError, match="passive_form must be 'default' or 'wire', not 'own'"):
        read_settings({"policy": "guess", "passive_form": "own"})


def test_the_target_is_right_and_as_good_as_frames_allow() -> None:
    """What is seen is answered; a time span is the best that can be named; what is not seen has an answer too."""
    words: dict[str, int] = {}
    for bucket in BUCKETS:
        for seen, doc in games(0, 4, (bucket,)):
            times, labels = passive.uniform(seen, 64)
            turn = passive.turn_of(doc, times, labels)
            word = turn.think.partition(" ")[0]
            words[f"{bucket} {word}"] = words.get(f"{bucket} {word}", 0) + 1
            shown = any(flag(passive.parse_question(doc["question"]), label) == "!" for label in labels)
            assert (word == "found") == shown
            if doc["kind"] != "when":
                assert turn.action is not None and turn.named is None
                assert doc["options"]["ABCD".index(doc["answer"])] == turn.action.content  # type: ignore[union-attr]
                continue
            (span,) = doc["answer_spans"]
            edges = [0.0, *times, doc["duration_s"]]
            best = max(passive.hull_iou((a, b), tuple(span)) for n, a in enumerate(edges) for b in edges[n + 1 :])
            first, last = passive.span_names(span, times, doc["duration_s"])
            known = {"#0.1": 0.0, "#0.2": doc["duration_s"]} | {f"#{n}": time_s for n, time_s in enumerate(times, 1)}
            assert passive.hull_iou((known[first], known[last]), tuple(span)) == pytest.approx(best)
    assert words["1m found"] == 12 and not words.get("120m found", 0) > 6


def test_rows_without_notes_and_with_fewer_frames(pupil: Student) -> None:
    plain = passive.maker(student=pupil, seed=0, frames=FRAMES, notes=False)
    drawn = passive.maker(student=pupil, seed=0, frames=FRAMES, least=4)
    assert pupil.text(plain(0).target).startswith('{"observation": "none", "think": "none"')
    counts = {len(drawn(number).encoded.media) for number in range(12)}
    assert len(counts) > 6 and max(counts) <= FRAMES and min(counts) >= 4
    row = passive.maker(student=pupil, seed=0, frames=FRAMES)(1)
    weights = Weighing("needle_turn", pupil)(row, "needle_passive").weights
    assert weights is not None and {FIXED, FIRST, AGAIN, AFTER, WORD} <= set(weights), "as turns of the agent"
    assert set(Weighing("needle_turn", pupil)(plain(0), "needle_passive").weights or ()) == {OPENING}


def test_a_rival_without_training_answers_nothing(rival: Path, pupil: Student) -> None:
    model = load_learner(StudentSettings(pretrained=str(rival))).eval()
    numbers = passive.measure(student=pupil, per_kind=1, buckets=("1m",), frames=4)(model)
    assert numbers["turns"] == 1.0 and {"glyph", "when", "order", "answered", "colour", "flag"} <= numbers.keys()
    assert numbers["answered"] == 0.0 and numbers["colour"] < 0.5


def test_recipes_of_rivals_differ_in_what_they_are(tmp_path: Path) -> None:
    found = {name: recipe.read_made(name) for name in ("passive-matched", "passive-64", "passive-64-large")}
    assert [one.start.one_turn for one in found.values()] == [60, 64, 64]
    assert found["passive-64"].start.size == Size() != found["passive-64-large"].start.size
    for one in found.values():
        staged = one.staged(tmp_path)
        staged.check_trainer()
        last = staged.stages[-1]
        assert last.gate is not None and last.gate.measure == "needle_passive" and last.gate.at_most == last.length
        assert last.gate.given["frames"] == last.mix[0].given["frames"] == one.start.one_turn
    agent = recipe.read_made("tiny")
    whole, small, large = (one.staged(tmp_path) for one in (agent, found["passive-64"], found["passive-64-large"]))
    assert small.stages[:3] == whole.stages[:3] and small.rates == whole.rates and small.trainer == whole.trainer
    assert [8 * (one.length.tokens or 0) for one in large.stages[:3]] == [one.length.tokens for one in whole.stages[:3]]
    assert large.trainer == whole.trainer | {"learning_rate": 1.0e-3} and large.rates != whole.rates
    with pytest.raises(RecipeError, match=r"tiny has no stage 'seeing'; it has captions"):
        recipe.FirstStages(recipe="tiny", stages=("seeing",)).before({"stages": []})
    assert agent.start.model_dump(mode="json", exclude_none=True) == {
        "seed": agent.start.seed,
        "size": agent.start.model_dump(mode="json")["size"],
    }, "runs of an agent that were begun before go on"


def small(tmp_path: Path, name: str, one_turn: int | None, made: str, tokens: int) -> Path:
    """A recipe with one stage, of a few tokens."""
    gate = {"measure": "needle_captions", "reach": {"colour": 0.0}, "every": 100, "at_most": {"tokens": tokens}}
    mix = [{"made": made} | ({"given": {"frames": 8}} if made == "needle_passive" else {})]
    start = {"size": vars(SMALL)} | ({} if one_turn is None else {"one_turn": one_turn})
    training = {
        "rows_per_step": 4,
        "trainer": {"use_cpu": True, "disable_tqdm": True, "activation_checkpointing": False, "logging_steps": 1},
        "stages": [{"name": "only", "mix": mix, "length": {"tokens": tokens}, "gate": gate}],
    }
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps({"start": start, "evaluation": [{"seed": 0}], "training": training}))
    return file


def test_a_rival_is_trained_as_much_as_the_agent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the agent's run spent is counted from its own files; the rival's last stage is as long that it spends it."""
    agent, other = tmp_path / "agent", tmp_path / "rival"
    with pytest.raises(AprError, match="no run of `apr train recipe`"):
        spending.spent_by_stage(agent)
    recipe.run_recipe(str(small(tmp_path, "agent", None, "needle_captions", 600)), agent)
    (stage,) = spending.spent_by_stage(agent)
    assert stage.tokens >= 600 and stage.flops > 6 * stage.tokens * 64 * 64 and stage.cpu_seconds > 0
    final = recipe.run_recipe(str(small(tmp_path, "rival", 8, "needle_passive", 100)), other, like=agent)
    found = spending.total(spending.spent_by_stage(other))
    assert found.flops >= stage.flops and profile_of_checkpoint(str(final), "hf") == passive.profile(8)
    decided = json.loads((other / "like.json").read_text())
    assert decided["last_stage_tokens"] > 100 and decided["other"]["flops"] == stage.flops
    assert "spends as much as" in capfd.readouterr().err
    made = recipe.read_made(str(tmp_path / "rival.yaml")).staged(other / "start")
    again = spending.lengthened(made, other / "like.json", None, "flops", 1.0, Console(quiet=True))
    assert again.stages[0].length.tokens == decided["last_stage_tokens"], "a run that goes on keeps its length"
