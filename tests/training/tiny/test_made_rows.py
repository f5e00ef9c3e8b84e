"""The material of the small agent: made rows are what the product shows, worlds are apart, weights are as described."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_testing import Playback, look  # noqa: E402 - after the libraries it needs

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop import Episode, EpisodeConfig, MediaRef  # noqa: E402
from apr_plugin.loop.action import GetAudio  # noqa: E402
from apr_plugin.loop.policy import ImagePart, Message, Prompt  # noqa: E402
from apr_plugin.models.batch import Example, batch_of  # noqa: E402
from apr_plugin.models.profile import profile_of_checkpoint  # noqa: E402
from apr_plugin.scoring.answers import match_option  # noqa: E402
from apr_plugin.scoring.truth import score  # noqa: E402
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec, planned_docs  # noqa: E402
from apr_plugin.tasks.needle.palette import PATTERNS  # noqa: E402
from apr_plugin.tasks.needle.questions import LETTERS, parse_question  # noqa: E402
from apr_plugin.tasks.needle.render import write_video  # noqa: E402
from apr_plugin.tasks.needle.world import World  # noqa: E402
from apr_plugin.training.named import OURS, named  # noqa: E402
from apr_plugin.training.recipe_file import RecipeError  # noqa: E402
from apr_plugin.training.sft.learner import load_learner  # noqa: E402
from apr_plugin.training.sft.recipe import StudentSettings  # noqa: E402
from apr_plugin.training.sft.weights import Weighing  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402
from apr_plugin.training.tiny import agents, captions, describing, playing  # noqa: E402
from apr_plugin.training.tiny.ears import Ears  # noqa: E402
from apr_plugin.training.tiny.model import EDGE, Size  # noqa: E402
from apr_plugin.training.tiny.notes import EVERY, FRAMES, observe, teach, turn_of  # noqa: E402
from apr_plugin.training.tiny.pictures import LABELS, Eyes, held_out, name_of, picture  # noqa: E402
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, WIRE, Heard, Rows, laid  # noqa: E402
from apr_plugin.training.tiny.start import make_start  # noqa: E402
from apr_plugin.training.tiny.weighing import turn as weigh  # noqa: E402
from apr_plugin.training.tiny.worlds import GATES, TRAINING, film, meets, question_of, seeds_of  # noqa: E402

SMALL = Size(hidden=64, layers=1, heads=2, kv_heads=1, inner=64, vision_hidden=32, audio_hidden=32, audio_layers=1)
MAKERS = {
    "captions": captions.maker,
    "describing": describing.maker,
    "windows": describing.windows,
    "agents": agents.maker,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("tiny") / "start", size=SMALL)


@pytest.fixture(scope="module")
def learner(start: Path) -> Student:
    return Student.from_pretrained(str(start))


def config() -> EpisodeConfig:
    return EpisodeConfig(
        wire=PROFILE.wire,
        frame_references=PROFILE.frame_references,
        frame_times=PROFILE.frame_times,
        budget=PROFILE.limits,
    )


def test_a_made_episode_is_what_the_product_shows(learner: Student, tmp_path: Path) -> None:
    """The teacher's turns are played on the real file: prompts, times, tokens and answers are those of made rows."""
    seen, docs = film(GATES.start + 3, "1m")
    write_video(seen.world, tmp_path / "v.mp4")
    for kind in EVERY:
        doc = next(doc for doc in docs if doc["kind"] == kind)
        question, truth = question_of(doc)
        question = question.model_copy(update={"videos": (MediaRef(path=str(tmp_path / "v.mp4")),)})
        steps = list(agents.episode(seen, doc))
        policy = Playback([WIRE.written(step.turn) for step in steps])
        done = asyncio.run(Episode(question, policy, config()).run())
        assert len(done.turns) == len(steps) == len(policy.prompts) and done.answer_valid
        assert score(done.answer, truth, str(question.kind)) > 0.5, "the teacher is right"
        eyes, ears = Eyes(learner, 0, noise=0.0), Ears(learner, 0, noise=0.0)
        for number, (prompt, step) in enumerate(zip(policy.prompts, steps, strict=True), 1):
            assert prompt.text == step.notes.prompt(number, TURNS).text
            real = learner.encoder.encode(prompt)
            if step.window_s is not None:
                heard = Rows(
                    lambda _, step=step: laid(
                        learner, step.notes, (), WIRE.written(step.turn), Heard(seen.sounds, *step.window_s)
                    ),
                    eyes,
                    ears,
                )(0)
                assert heard.encoded.ids.tolist() == real.ids.tolist()
                ((one,), (other,)) = heard.encoded.media, real.media
                # What AAC does to a spectrum, on a scale from -1.5 to 1.5.
                assert one.mel.shape == other.mel.shape and float((one.mel - other.mel).abs().mean()) < 0.01
                continue
            made = Rows(lambda _, step=step: laid(learner, step.notes, step.labels, WIRE.written(step.turn)), eyes)(0)
            assert made.encoded.ids.tolist() == real.ids.tolist() and len(real.media) == len(step.labels)
            for one, other in zip(made.encoded.media, real.media, strict=True):
                assert torch.equal(one.grid, other.grid)
                # What H.264 does to a picture, on a scale from -1 to 1.
                assert float((one.pixels - other.pixels).abs().mean()) < 0.1


def test_the_teacher_answers_training_questions() -> None:
    """Nearly every question with options is answered right, every count, and spans overlap by far more than half."""
    for bucket in BUCKETS:
        scores = defaultdict(list)
        for number in range(6):
            seen, docs = film(GATES.start + number, bucket)
            for doc in docs:
                content, truth, turns = agents.answer_of(seen, doc)
                assert turns <= TURNS
                if doc["kind"] == "when":
                    scores["when"].append(score(content, truth, "grounding"))
                elif doc["kind"] == "count":
                    assert score(content, truth, "number") == 1.0
                else:
                    options = list(zip(LETTERS, doc["options"], strict=False))
                    scores["options"].append(match_option(content or "", options) == truth.answer)
        assert np.mean(scores["when"]) > 0.6 and np.mean(scores["options"]) > 0.98


def test_worlds_of_training_and_of_sets_are_apart() -> None:
    for seed in (0, 7, 2026):
        spec = NeedleSpec(seed=seed, videos_per_bucket=20)
        assert meets(spec) == [] and len(set(seeds_of(spec))) == 100
    small = NeedleSpec(seed=5, buckets=("1m",), videos_per_bucket=1)
    (seed,) = seeds_of(small)
    assert seed not in TRAINING and seed not in GATES
    with pytest.raises(AprError, match="training takes seeds"):
        film(seed, "1m")
    asked = {doc["question"] for doc in planned_docs(small)}
    scenes = {(c.colour, s.pattern) for c, s in World.from_seed(seed, 60.0).scenes()}
    parsed = [parse_question(text) for text in asked]
    assert all((question.colour, question.pattern) in scenes for question in parsed), "that is the seed of its world"


@pytest.mark.parametrize("name", MAKERS)
def test_made_rows_follow_from_their_number(learner: Student, name: str) -> None:
    """The same number gives the same row in any order; other numbers and seeds give others; they fit the forward."""
    one, other, third = (MAKERS[name](student=learner, seed=seed) for seed in (1, 1, 2))
    rows = {number: one(number) for number in (5, 0, 70)}
    for number in (70, 5, 0):
        again = other(number)
        assert again.target == rows[number].target and again.encoded.ids.tolist() == rows[number].encoded.ids.tolist()
        for left, right in zip(again.encoded.media, rows[number].encoded.media, strict=True):
            assert torch.equal(left.pixels, right.pixels) and left.key == right.key
    assert len({tuple(rows[number].target) for number in rows} | {tuple(third(5).target)}) > 2
    batch = batch_of(
        list(rows.values()),
        learner.family,
        pad=learner.pad,
        placeholders=learner.encoder.ids_of.values(),
        distinct=True,
    )
    assert batch["pixel_values"].shape[0] == 16 * len(batch["image_grid_thw"])
    # Looks of independent frames teach the notes alone: the target ends where the thought begins.
    last = learner.encoder.turn_ids('", "think": "')[0] if name == "describing" else learner.end
    assert all(row.target[-1] == last for row in rows.values())


def test_equal_pictures_have_one_key_and_others_another(learner: Student) -> None:
    """Within a few rows the same label is the same picture; captions are all their own; nothing else is mistaken."""
    make = agents.maker(student=learner, seed=0)
    media = [medium for number in range(8) for medium in make(number).encoded.media]
    by_key: dict[int, Any] = {}
    for medium in media:
        assert medium.key < 0
        assert torch.equal(by_key.setdefault(medium.key, medium.pixels), medium.pixels)
    assert len(by_key) < len(media) / 2
    caption = captions.maker(student=learner, seed=0)
    assert len({caption(number).encoded.media[0].key for number in range(50)}) == 50


def test_patches_are_those_of_the_image_processor(learner: Student) -> None:
    """Undisturbed, a made picture has the tensors that the product's encoder gives for it."""
    label = next(label for label in LABELS if label[2] is not None and label[1] == "crossed")
    prompt = Prompt((Message("user", (ImagePart(picture(label).copy()),)),))
    (real,) = learner.encoder.encode(prompt).media
    (made,) = Eyes(learner, 0, noise=0.0).fill(captions.alone(learner), [label], 0).media
    assert torch.equal(made.grid, real.grid) and torch.equal(made.pixels, real.pixels)
    assert picture(label).shape == (EDGE, EDGE, 3) and real.pixels.shape[0] == 16


def test_captions_leave_the_measured_labels_out(learner: Student) -> None:
    make = captions.maker(student=learner, seed=3)
    measured = {name_of(label) for label in LABELS if held_out(label)}
    assert 150 < len(measured) < 300
    seen = {learner.text(make(number).target).strip() for number in range(300)}
    assert len(seen) > 200 and not seen & measured


def test_the_measure_of_captions(start: Path, learner: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model names nothing; words are compared one by one."""
    few = tuple(label for label in LABELS if held_out(label))[:40]
    monkeypatch.setattr(captions, "LABELS", few)
    model = load_learner(StudentSettings(pretrained=str(start))).eval()
    with torch.no_grad():
        numbers = captions.measure(student=learner)(model)
    assert numbers.keys() >= {"colour", "pattern", "shape", "glyph_colour", "whole"} and numbers["whole"] < 0.1
    label = next(label for label in few if label[2] is not None)
    right = captions._compared(label, name_of(label).split())
    assert all(right.values()) and right.keys() >= {"shape", "glyph_colour"}
    assert not captions._compared(label, name_of(label).split()[:-1])["shape"]


def test_first_judgements_count_most(learner: Student) -> None:
    question = parse_question("Which glyph appears in the striped scene of the blue chapter?")
    by = {name_of(label): label for label in LABELS}
    shown = [by[name] for name in ("red plain", "red plain", "blue plain", "blue striped", "blue striped green circle")]
    assert observe(question, shown) == "#1 red;#2 red;#3 blue plain-#4 blue striped+#5 blue striped green circle!"
    move = teach(question, shown, "chapter")
    assert move.think == "found#5 green circle" and move.words == "green circle"
    words = WIRE.written(turn_of(question, shown, (1.0, 2.0, 3.0, 4.0, 5.0), move))
    encoded = captions.alone(learner)
    example = Example(encoded, (*learner.encoder.turn_ids(words), learner.end))
    weights = Weighing("needle_turn", learner)(example, "x").weights
    pieces = [learner.tokenizer.decode([number]).strip() for number in example.target]
    found = list(zip(pieces, weights or (), strict=True))
    assert [weight for piece, weight in found if piece == ";"] == [6.0, 1.0], "the second red was judged before"
    assert [weight for piece, weight in found if piece in "-+!" and piece] == [6.0, 6.0, 6.0]
    thought = next(n for n, (piece, _) in enumerate(found) if piece.endswith('"think": "'))
    assert found[thought + 1 : thought + 5] == [("found", 8.0), ("#5", 4.0), ("blue", 4.0), ("striped", 4.0)]
    assert found[0][1] == 0.5 and found[thought][1] == 3.0, "that the notes end is a judgement too"
    first = make_first(learner)
    assert set(Weighing("needle_turn", learner)(first, "x").weights or ()) == {3.0}
    assert set(weigh_caption(learner)) == {1.0}


def make_first(learner: Student) -> Any:
    """A row of a first turn."""
    made = agents.maker(student=learner, seed=0, opening=True)(3)
    assert not made.encoded.media and '"none", "think": "overview ' in learner.text(made.target)
    return made


def weigh_caption(learner: Student) -> Any:
    return Weighing("needle_turn", learner)(captions.maker(student=learner, seed=0)(1), "captions").weights


def test_rows_of_text_have_no_picture_and_weigh_flags_alone(learner: Student) -> None:
    make = describing.windows(student=learner, seed=0, text=True)
    example = Weighing("needle_turn", learner)(make(4), "windows")
    assert not example.encoded.media and "#1" in learner.text(example.target)
    pieces = [learner.tokenizer.decode([number]).strip() for number in example.target]
    noted = pieces[: next(n for n, piece in enumerate(pieces) if piece.endswith('"think": "'))]
    for piece, weight in zip(noted, example.weights or (), strict=False):
        if piece in "-+;!" and piece:
            assert weight in (6.0, 1.0)
        elif piece in PATTERNS:
            assert weight in (0.0, 1.0), "that the note goes on can be known"
        elif piece.isalpha():
            assert weight == 0.0


def test_the_start_is_an_ordinary_folder_with_its_profile(start: Path, learner: Student) -> None:
    import transformers

    model = transformers.AutoModelForMultimodalLM.from_pretrained(start)
    assert type(model).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert profile_of_checkpoint(str(start), "hf") == PROFILE
    assert learner.family.factor == EDGE and len(learner.tokenizer) < 800
    single = ['{"observation": "', '", "think": "', ', "action": {"type": "get_frames", "start": ', "#24", " left"]
    assert all(len(learner.encoder.turn_ids(text)) == 1 for text in single)
    sizes = {agents.maker(student=learner, seed=0)(number).encoded.size.visual for number in range(12)}
    assert max(sizes) <= max(FRAMES.values()), "a frame is one visual token"


def test_the_closed_loop_scores_the_teacher_and_a_model(start: Path, learner: Student) -> None:
    """The teacher's own turns get all notes right; a random model says nothing that can be read."""
    for seen, doc in playing.games(0, 2, ("1m", "30m"), EVERY):
        policy = Playback([WIRE.written(step.turn) for step in agents.episode(seen, doc)])
        played = asyncio.run(playing.play(policy, seen, doc))
        numbers = playing.numbers_of([played])
        assert played.ended == "answer" and played.score > (0.5 if doc["kind"] == "when" else 0.99)
        assert all(numbers[name] == 1.0 for name in ("colour", "flag", "pattern", "answered"))
        listened = doc["kind"] in ("sound", "count")
        assert numbers["heard"] == numbers["placed"] == float(listened)
    seen, doc = playing.games(0, 1, ("1m",))[0]
    lost = Playback(['{"observation": "none", "think": "overview", "confidence": 0.1, "action": {"type": "dance"}}'])
    assert asyncio.run(playing.play(lost, seen, doc)).ended == "invalid"
    beyond = look("#0.1", 9999.0, 20)  # type: ignore[arg-type]
    assert asyncio.run(playing.play(Playback([beyond]), seen, doc)).ended == "refused"
    long, _ = film(GATES.start, "10m")
    assert playing.look_at(long, GetAudio(start=10.0, end=310.5), 1) is None, "the budget lets hear 299 s"
    assert playing.look_at(long, GetAudio(start=10.0, end=10.05), 1) is None
    model = load_learner(StudentSettings(pretrained=str(start))).eval()
    numbers = playing.measure(student=learner, per_kind=1, buckets=("1m",))(model)
    assert numbers["answered"] == 0.0 and numbers["turns"] == 1.0
    assert numbers.keys() == set(playing.NUMBERS) and numbers["colour"] == 0.0, "what never happened is not missing"


def test_recipes_find_the_pieces() -> None:
    for kind, names in OURS.items():
        for name in names:
            assert callable(named(kind, name)) and weigh is named("weighers", "needle_turn")


def test_the_length_of_a_caption_is_known_without_its_picture(learner: Student) -> None:
    for make in (captions.maker(student=learner, seed=0), captions.maker(student=learner, seed=0, least=1, most=9)):
        assert all(make.tokens(number) == len(make(number)) for number in range(40))
    several = make(7)
    shown = len(several.encoded.media)
    assert learner.text(several.target).startswith("#1 ") and f"#{shown} " in learner.text(several.target)
    assert len({int(several.encoded.ids[medium.start]) for medium in several.encoded.media}) == 1
    with pytest.raises(RecipeError, match="take 1 to"):
        captions.maker(student=learner, seed=0, least=0, most=9)
