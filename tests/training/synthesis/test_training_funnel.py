"""The funnel: every question and attempt leaves with a reason, and what is kept can be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.errors import AprError
from apr_plugin.loop import Budget, EpisodeConfig, MediaRef, Option, Question, StopReason, Trajectory, replay
from apr_plugin.runs import TrajectoryStore
from apr_plugin.runs.meter import run_sync
from apr_plugin.scoring.truth import Truth
from apr_plugin.training.synthesis import funnel, funnel_files
from apr_plugin.training.synthesis.audit import Judge, audit, open_verdicts
from apr_plugin.training.synthesis.budgets import BudgetRanges, drawn_budgets
from apr_plugin.training.synthesis.contamination import Known, check
from apr_plugin.training.synthesis.folder import add_questions, places, questions_of, read_at
from apr_plugin.training.synthesis.questions import TrainingQuestion
from apr_plugin.training.synthesis.synthesize import Exploration, explore


class _Kind(Playback):
    """Answers A; a judge of it gives 5, and 2 where the question says so."""

    async def generate(self, prompt: Any, sampling: Any) -> Any:
        text = prompt.text
        if "STEP" in text and "You check the work" in text:
            self.texts = ['{"rating": 2, "reason": "no"}' if "unlucky" in text else '{"rating": 5, "reason": "yes"}']
            if "odd" in text:
                self.texts = ["no idea"]
        return await super().generate(prompt, sampling)


def _asked(video: Path, doc_id: str, right: str = "A", source: str = "") -> TrainingQuestion:
    options = (Option(label="A", text="a"), Option(label="B", text="b"))
    asked = Question(text=f"Which, {doc_id}?", kind="mcq", options=options, task="t", doc_id=doc_id)  # type: ignore[arg-type]
    return TrainingQuestion(asked.model_copy(update={"videos": (MediaRef(path=str(video)),)}), Truth(right), source)


@pytest.fixture
def out(shared_videos: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with one question for most ways to leave."""
    video = shared_videos["silent"]
    questions = [
        _asked(video, "fine"),
        _asked(video, "unlucky"),
        _asked(video, "odd"),
        _asked(video, "lost", "B"),
        _asked(tmp_path / "gone.mp4", "gone"),
        _asked(video, "dirty", source="lmms-lab/Video-MME"),
        _asked(video, "later"),
    ]
    folder = tmp_path / "out"
    add_questions(folder, questions)
    policy = Playback([look(0, 2, 2), answer("A")])
    exploration = Exploration(policy, drawn_budgets(EpisodeConfig(budget=Budget(max_turns=9)), BudgetRanges()), 2)
    config = exploration.config
    with TrajectoryStore(folder / "trajectories", config.hash(policy), config.card(policy)) as store:
        run_sync(explore(questions[:5], exploration, store))
    judge = Judge(_Kind(["x"], name="kind"))
    reads = [lambda place=place: next(t for _, t in read_at([place])) for place in places(folder) if not place.failed]
    run_sync(audit(reads, judge, open_verdicts(folder / "audit", judge), concurrency=1))
    return folder


def _build(out: Path, **more: Any) -> funnel.Funnel:
    checked = check(questions_of(out), Known({}))
    return funnel.build(out, **{"audit": funnel.find_audit(out), "contamination": checked} | more)


def test_every_way_to_leave(out: Path) -> None:
    found = _build(out)
    left = {(entry.id, entry.attempt): (entry.stage, entry.reason) for entry in found.entries}
    assert left == {
        ("fine", 0): ("kept", "kept"),
        ("unlucky", 0): ("audit", "unsupported"),
        ("odd", 0): ("audit", "nonsense_verdict"),
        ("lost", 0): ("outcome", "wrong"),
        ("lost", 1): ("outcome", "wrong"),
        ("gone", 0): ("episode", "media_unreadable"),
        ("dirty", None): ("question", "contaminated"),
        ("later", None): ("question", "not_asked"),
    }
    details = {entry.id: entry.detail for entry in found.entries}
    assert (
        "turn 1 has 2: no" in details["unlucky"] and "Video-MME" in details["dirty"] and "gone.mp4" in details["gone"]
    )
    assert found.left() == [
        ("all", 7, 6),
        ("explored", 5, 6),
        ("ended", 4, 5),
        ("right", 3, 3),
        ("kept", 1, 1),
    ]
    assert sum(row[3] for row in found.rows()) == 6 and sum(row[2] for row in found.rows()) == 7
    assert {entry.reason for entry in found.entries} <= set(funnel.REASONS)
    assert {entry.id for entry in _build(out, threshold=2).kept} == {"fine", "unlucky"}, "re-filtered without a judge"
    assert {entry.id for entry in _build(out, audit=None).kept} == {"fine", "unlucky", "odd"}


def test_the_manifest_is_what_training_reads(out: Path) -> None:
    found = _build(out)
    funnel.write_manifest(out, found)
    assert funnel.read_manifest(out) == found.entries
    ((entry, trajectory, card),) = funnel.kept(out)
    assert entry.id == trajectory.question.doc_id == "fine" and entry.ratings == (5, 5) and entry.score == 1.0
    assert card.config_hash == trajectory.config_hash == entry.config_hash
    assert len([prompt for prompt, _ in replay(trajectory, card)]) == entry.turns == 2, "its prompts can be rebuilt"
    (file,) = funnel.kept_files(out)
    assert file.keys == {trajectory.question.key} and file.source == "" and (file.card / "card.json").is_file()
    assert any(other.question.key in file.keys for other in Trajectory.read(file.file))
    assert not Path(entry.file or "/").is_absolute(), "the folder can be moved"
    moved = out.rename(out.parent / "moved")
    assert [one.id for one, _, _ in funnel.kept(moved)] == ["fine"]


def test_training_never_starts_on_nothing(out: Path) -> None:
    with pytest.raises(AprError, match=r"there is no manifest\.jsonl; run: apr train funnel"):
        list(funnel.kept(out))
    funnel.write_manifest(out, _build(out, threshold=5, contamination=check(
        [TrainingQuestion(one.question, one.truth, "LVBench") for one in questions_of(out)], Known({}))))  # fmt: skip
    with pytest.raises(AprError, match="nothing is kept, so there is nothing to train on"):
        list(funnel.kept(out))
    with pytest.raises(AprError, match="nothing is kept"):
        funnel.kept_files(out)


def test_files_that_changed_or_are_damaged(out: Path) -> None:
    (file,) = out.glob("trajectories/*/t.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    funnel.write_manifest(out, _build(out))
    file.write_text("".join(lines[1:]))
    with pytest.raises(AprError, match="it has changed since it was read first"):
        list(funnel.kept(out))
    old = json.loads(next(line for line in lines if '"fine"' in line)) | {"version": 1}
    for newer in ("budget", "videos"):
        del old[newer]
    file.write_text(
        "".join([line for line in lines if '"fine"' not in line] + ["{broken\n", json.dumps(old) + "\n", "half"])
    )
    found = _build(out)
    assert {entry.id: entry.reason for entry in found.entries}["fine"] == "version_1"
    assert len(found.problems) == 1 and "not JSON" in found.problems[0]
    with pytest.raises(AprError, match=r"manifest\.jsonl, line 1: .*write it again with"):
        (out / "manifest.jsonl").write_text('{"schema": "apr.manifest", "version": 1}\n')
        funnel.read_manifest(out)


def test_a_question_that_was_changed_afterwards(out: Path) -> None:
    file = out / "questions.jsonl"
    file.write_text(file.read_text().replace("Which, fine?", "Which, changed?"))
    assert {e.id: e.reason for e in _build(out).entries}["fine"] == "unknown_question"
    with pytest.raises(AprError, match=r"another question, answer or video under t/fine; choose another folder"):
        add_questions(out, [_asked(Path("/x.mp4"), "fine")])


def test_which_judge(out: Path, tmp_path: Path) -> None:
    (first,) = (path.name for path in (out / "audit").iterdir())
    assert funnel.find_audit(out) == funnel.find_audit(out, first[:4]) == first
    (out / "audit" / "0123").mkdir()
    (out / "audit" / "0123" / "verdicts.jsonl").write_text("")
    with pytest.raises(AprError, match="choose one of the judges 0123, "):
        funnel.find_audit(out)
    with pytest.raises(AprError, match=r"nothing was audited; run: apr train audit .* or leave the audit out"):
        funnel.find_audit(tmp_path)
    with pytest.raises(AprError, match=r"there is no questions\.jsonl; make the trajectories with"):
        questions_of(tmp_path)


def test_table_and_plot(out: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    found = _build(out)
    table = funnel_files.markdown(found)
    assert "| kept | 1 | 1 |" in table and "| outcome | the answer is wrong | 1 | 2 |" in table
    assert "The audit was left out" not in table and "The audit was left out" in funnel_files.markdown(
        _build(out, audit=None)
    )
    png, svg = funnel_files.plot(found, out)
    assert Image.open(png).size[0] > 600 and svg.read_text().startswith("<?xml")
    before = svg.read_bytes()
    funnel_files.plot(found, out)
    assert svg.read_bytes() == before, "the same funnel is the same file"


def test_reasons_of_failed_episodes_are_named() -> None:
    assert {str(reason) for reason in StopReason if reason.failed} <= set(funnel.REASONS)
