"""Trajectories of the small agent's teacher on real files: errors and recovery, filters, rows of smaller pictures."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("trl")

from apr_testing import Playback  # noqa: E402 - after the libraries it needs
from rich.console import Console  # noqa: E402

from apr_plugin.errors import AprError, WrongUsage  # noqa: E402
from apr_plugin.loop import Episode, EpisodeConfig  # noqa: E402
from apr_plugin.loop.policy import ImagePart, Message, Prompt, Sampling, TextPart  # noqa: E402
from apr_plugin.runs.settings import read_settings  # noqa: E402
from apr_plugin.scoring.truth import score  # noqa: E402
from apr_plugin.training.loading import RowLoader  # noqa: E402
from apr_plugin.training.profile import profile_of_rows  # noqa: E402
from apr_plugin.training.row_command import settings_of  # noqa: E402
from apr_plugin.training.rows import read_rows  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402
from apr_plugin.training.synthesis import funnel  # noqa: E402
from apr_plugin.training.synthesis.audit import judge_prompt, rated_turns  # noqa: E402
from apr_plugin.training.synthesis.questions import TrainingQuestion, read_questions  # noqa: E402
from apr_plugin.training.tiny.filming import FilmSettings, make_films  # noqa: E402
from apr_plugin.training.tiny.judging import NotesJudge, rate  # noqa: E402
from apr_plugin.training.tiny.model import EDGE, Size  # noqa: E402
from apr_plugin.training.tiny.notes import KINDS  # noqa: E402
from apr_plugin.training.tiny.prompts import PROFILE  # noqa: E402
from apr_plugin.training.tiny.start import make_start  # noqa: E402
from apr_plugin.training.tiny.synthesizing import SynthesisSettings, make_trajectories  # noqa: E402
from apr_plugin.training.tiny.teacher import ARGUMENTS, NotesTeacher  # noqa: E402
from apr_plugin.training.tiny.worlds import NeedleSpec, seeds_of  # noqa: E402

SMALL = Size(hidden=64, layers=1, heads=2, kv_heads=1, inner=64, vision_hidden=32, audio_hidden=32, audio_layers=1)
SETTINGS = SynthesisSettings(
    videos={"1m": 2, "10m": 1}, questions_per_kind=2, wrong=0.3, slips=0.15, hasty=0.1, attempts=2
)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student and everything that synthesis makes."""
    folder = tmp_path_factory.mktemp("run")
    make_start(folder / "start", size=SMALL)
    make_trajectories(folder, SETTINGS, folder / "start", quiet())
    return folder


@pytest.fixture(scope="module")
def asked(out: Path) -> list[TrainingQuestion]:
    return read_questions(out / "synthesis" / "questions.jsonl")


def played(teacher: NotesTeacher, one: TrainingQuestion, seed: int = 0):  # type: ignore[no-untyped-def]
    config = read_settings(ARGUMENTS | {"seed": seed}, teacher).config
    return asyncio.run(Episode(one.question, teacher, config).run())


def ratings_of(trajectory) -> dict[int, int | None]:  # type: ignore[no-untyped-def]
    numbers = rated_turns(trajectory)
    return {number: rate(judge_prompt(trajectory, number).messages[-1].text)[0] for number in numbers}


def test_without_errors_every_step_follows_and_answers_are_right(asked: list[TrainingQuestion]) -> None:
    teacher = NotesTeacher(0, 0, 0)
    assert {one.question.task for one in asked} == {f"needle_{kind}" for kind in KINDS}
    for one in asked[::2]:
        done = played(teacher, one)
        assert done.answer_valid and (score(done.answer, one.truth, str(one.question.kind)) or 0) > 0.5
        assert all(turn.error is None for turn in done.turns)
        assert min(ratings_of(done).values()) == 5  # type: ignore[type-var]
        shown = [turn.shown for turn in done.turns if turn.shown is not None]
        assert {(look.width, look.height) for look in shown} == {(224, 224)}


def test_errors_are_drawn_by_the_seed_and_are_recovered_from(asked: list[TrainingQuestion]) -> None:
    teacher = NotesTeacher(0.25, 0.25, 0)
    done = [played(teacher, one) for one in asked[:12]]
    again, other = played(teacher, asked[0]), [played(teacher, one, seed=1) for one in asked[:4]]
    assert [turn.text for turn in again.turns] == [turn.text for turn in done[0].turns]
    assert [[turn.text for turn in one.turns] for one in other] != [
        [turn.text for turn in one.turns] for one in done[:4]
    ]
    refused = [(one, n) for one in done for n, turn in enumerate(one.turns[:-1]) if turn.error is not None]
    low = [n for one in done for n, rating in ratings_of(one).items() if rating == 2]
    assert len(refused) > 2 and len(low) > 2
    fine = 0
    for one, number in refused:
        after = one.turns[number + 1]
        # Nothing was shown, so nothing is noted; the notes before tell what to do.
        assert after.observation == "none"
        if after.error is None and after.action is not None:
            fine += (ratings_of(one)[number + 2] or 0) >= 3
    assert fine > 1
    right = [(score(d.answer, a.truth, str(a.question.kind)) or 0) > 0.5 for d, a in zip(done, asked[:12], strict=True)]
    assert np.mean(right) > 0.5, "most errors cost turns, not answers"


def test_what_is_kept_and_what_is_learned(out: Path, asked: list[TrainingQuestion]) -> None:
    """Trajectories with a look at a wrong place stay, without that turn; guesses and wrong answers go."""
    road = out / "synthesis" / "road"
    entries = funnel.read_manifest(road)
    assert {entry.stage for entry in entries} == {"outcome", "audit", "kept"}
    assert all("guess" in entry.detail or "notes" in entry.detail for entry in entries if entry.stage == "audit")
    kept = {trajectory.question.key: (entry, trajectory) for entry, trajectory, _ in funnel.kept(road)}
    assert any(2 in entry.ratings for entry, _ in kept.values()), "a planted error is among them"
    rows = read_rows(out / "synthesis" / "rows.jsonl")
    assert rows.about["dropped"]["needle"].keys() >= {"not_kept", "error_turn"}
    after_error = 0
    for row in rows.rows:
        _, trajectory = kept[row.key]
        turn = trajectory.turns[row.turn - 1]
        assert turn.error is None and (ratings_of(trajectory)[row.turn] or 0) >= 3
        after_error += row.turn > 1 and trajectory.turns[row.turn - 2].error is not None
    assert after_error > 0, "recovery from a refused action is learned"
    assert {row.split for row in rows.rows} == {"train"}


def test_rows_have_pictures_of_the_students_size(out: Path) -> None:
    """Text, tokens and pixels are those of an episode that the student's own profile reads."""
    road, reads = out / "synthesis" / "road", Student.from_pretrained(str(out / "start"))
    rows = read_rows(out / "synthesis" / "rows.jsonl").rows
    loader = RowLoader(reads)
    own = EpisodeConfig(wire=PROFILE.wire, frame_references=True, frame_times=False, budget=PROFILE.limits)
    compared = 0
    for _, trajectory, _ in list(funnel.kept(road))[:3]:
        policy = Playback([turn.text for turn in trajectory.turns])
        asyncio.run(Episode(trajectory.question, policy, own).run())
        for row in (row for row in rows if row.key == trajectory.question.key):
            prompt, target = loader.prompt(row)
            seen = policy.prompts[row.turn - 1]
            assert prompt.text == seen.text and (row.most_pixels, target[-1]) == (EDGE * EDGE, reads.end)
            for one, other in zip(prompt.newest_media()[0], seen.newest_media()[0], strict=True):
                assert one.shape == (EDGE, EDGE, 3) and np.array_equal(one, other)
                compared += 1
            assert row.visual_tokens == len(prompt.newest_media()[0]), "a frame is one token"
            loader.check(row)
    assert compared > 20
    carried = profile_of_rows(rows)
    assert carried is not None and carried.file.limits.frame_pixels == carried.file.limits.clip_pixels == EDGE * EDGE
    whole = [row.model_copy(update={"most_pixels": None}) for row in rows]
    assert (profile_of_rows(whole) or carried).file.limits.frame_pixels == 224 * 224
    assert loader.prompt(next(row for row in whole if row.visual_tokens))[0].newest_media()[0][0].shape == (224, 224, 3)
    with pytest.raises(WrongUsage, match="--most-pixels 100: the smallest picture has 3136"):
        settings_of(0.0, 0, "rewrite", "each", None, 100)


def test_the_same_command_goes_on_where_it_was(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesis = out / "synthesis"
    rows, films = synthesis / "rows.jsonl", sorted((synthesis / "videos").glob("*.mp4"))
    text, times = rows.read_text(), [film.stat().st_mtime_ns for film in films]
    verdicts = next(synthesis.glob("road/audit/*/verdicts.jsonl")).read_text()
    make_trajectories(out, SETTINGS, out / "start", quiet())
    assert capsys.readouterr().out == "" and len(films) == 3, "nothing is asked again"
    rows.unlink()
    films[0].unlink()
    make_trajectories(out, SETTINGS, out / "start", quiet())
    assert rows.read_text() == text and "every question is finished" in capsys.readouterr().out
    assert [film.stat().st_mtime_ns for film in films][1:] == times[1:] and films[0].stat().st_mtime_ns > times[0]
    assert next(synthesis.glob("road/audit/*/verdicts.jsonl")).read_text() == verdicts
    with pytest.raises(AprError, match=r"other settings .*wrong changed"):
        make_trajectories(out, SETTINGS.model_copy(update={"wrong": 0.0}), out / "start", quiet())


def test_filmed_worlds_are_of_training(tmp_path: Path) -> None:
    settings = FilmSettings(videos={"1m": 1, "60m": 3}, seed=3)
    assert settings.shrunk(2).videos == {"1m": 2, "60m": 1} and settings.shrunk(9).videos == {"1m": 2, "60m": 0}
    first = settings.model_copy(update={"videos": {"1m": 1}})
    lines = make_films(tmp_path / "a", first, quiet()).read_text().splitlines()
    other = make_films(tmp_path / "b", first.model_copy(update={"seed": 4}), quiet()).read_text().splitlines()
    ids = [{json.loads(line)["id"].partition("-")[0] for line in some} for some in (lines, other)]
    assert not ids[0] & ids[1] and len(lines) == len(other) == 2 * len(KINDS)
    seeds = {str(seed) for seed in seeds_of(NeedleSpec(videos_per_bucket=20))}
    assert not seeds & (ids[0] | ids[1])
    with pytest.raises(ValueError, match="there is no length 2m"):
        FilmSettings(videos={"2m": 1})


def test_what_the_teacher_can_not_read(asked: list[TrainingQuestion]) -> None:
    small = EpisodeConfig(wire="compact", frame_times=False, budget=PROFILE.limits)
    done = asyncio.run(Episode(asked[0].question, NotesTeacher(0, 0, 0), small).run())
    assert done.stop_reason == "policy_unavailable" and "it needs 96 pixels" in done.stop_detail
    other = Prompt((Message("user", (TextPart("Question: what is this?"),)),))
    with pytest.raises(AprError, match="questions of the needle tasks of the kinds glyph, when, order only"):
        asyncio.run(NotesTeacher().generate(other, Sampling()))
    with pytest.raises(AprError, match="slips=2: it must be from 0 to 1"):
        NotesTeacher(slips=2)
    with pytest.raises(AprError, match="must not be above 1 together"):
        NotesTeacher(0.5, 0.5, 0.5)
    assert NotesTeacher(wrong=0.5).describe()["wrong"] == 0.5
    picture = Prompt((Message("user", (TextPart("x"), ImagePart(np.zeros((8, 8, 3), np.uint8)))),))
    reply = asyncio.run(NotesJudge().generate(picture, Sampling()))
    assert json.loads(reply.text)["rating"] is None, "no step of such a trajectory"
