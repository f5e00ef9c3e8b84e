"""Who answers if nobody was named: the small agent of this package where it was trained on the question."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundled_testing import SmallAgent, shipped

from apr_plugin.agent import make_question
from apr_plugin.cli.ask import by_default, run_ask
from apr_plugin.cli.demo import AGAINST, about_arms, agents
from apr_plugin.compare.specs import read_specs
from apr_plugin.loop.action import GetFrames
from apr_plugin.loop.question import QuestionKind
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.models import bundled
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle
from apr_plugin.tasks.needle.questions import Doc
from apr_plugin.tasks.needle.read import asked

SCRIPTED, OWN = "policy=needle", "policy=hf,pretrained=apr-tiny"


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Doc]:
    """A question of each kind about a video of a needle set."""
    spec = NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1)
    return {doc["kind"]: doc for doc in load_docs(make_needle(tmp_path_factory.mktemp("set"), spec, 1))}


def test_it_answers_what_it_was_taught_about_a_file_of_a_needle_set(
    small_agent: SmallAgent, docs: dict[str, Doc], tmp_path: Path
) -> None:
    with shipped(small_agent):
        taught = bundled.needle_kinds()
        for kind, doc in docs.items():
            asked_by_hand = make_question(doc["video"], doc["question"], options=doc["options"])
            who, question = by_default(asked_by_hand)
            assert who == (OWN if kind in taught else SCRIPTED), kind
            if who == OWN:  # it is put as in the benchmark
                wanted = asked(dict(doc))
                assert (question.kind, question.answer_hint, question.text) == (
                    wanted.kind,
                    wanted.answer_hint,
                    wanted.text,
                )
            else:
                assert question == asked_by_hand
        when, glyph = docs["when"], docs["glyph"]
        elsewhere = tmp_path / "film.mp4"
        elsewhere.write_bytes(Path(when["video"]).read_bytes())
        for video, text, options, form in (
            (str(elsewhere), when["question"], [], None),  # no needle set is beside it
            ("/nowhere/film.mp4", when["question"], [], None),
            (when["video"], "When does the man fall?", [], None),
            (glyph["video"], glyph["question"], [], None),  # without its options
            (when["video"], when["question"], [], "number"),
        ):
            question = make_question(video, text, options=options, kind=form)
            assert by_default(question) == (SCRIPTED, question)
        both = make_question([when["video"]] * 2, when["question"], kind="grounding")
        assert by_default(both)[0] == SCRIPTED
        (tmp_path / "needle.jsonl").touch()
        assert by_default(make_question(str(elsewhere), when["question"]))[0] == OWN


def test_apr_ask_runs_it_and_says_so(
    small_agent: SmallAgent, docs: dict[str, Doc], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doc = docs["when"]
    with shipped(small_agent):
        status = run_ask([doc["video"]], doc["question"], [], None, None, tmp_path / "it.jsonl")
    said = capsys.readouterr()
    assert "no --model-args: apr-tiny answers, the small agent of this package" in said.err
    (told,) = Trajectory.read(tmp_path / "it.jsonl")
    assert told.question.kind is QuestionKind.GROUNDING and told.turns and status in (0, 3)
    if small_agent.trained:
        assert status == 0 and isinstance(told.turns[0].action, GetFrames), "it looks, then answers"


def test_without_it_everything_is_as_it_was(
    docs: dict[str, Doc], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "none")
    doc = docs["glyph"]
    assert run_ask([doc["video"]], doc["question"], doc["options"], None, None, None) == 0
    said = capsys.readouterr()
    assert "apr-tiny" not in said.out + said.err
    assert agents(4) == ["policy=needle,label=agent,concurrency=4"]
    assert about_arms(False).startswith("All arms are scripted")


def test_the_demo_has_it_as_an_arm_beside_the_scripted_policy(small_agent: SmallAgent) -> None:
    with shipped(small_agent):
        specs = read_specs(agents(2), AGAINST)
        words = about_arms(True)
    assert [spec.name for spec in specs[:2]] == ["agent", "apr-tiny"] and len(specs) == 2 + len(AGAINST)
    assert specs[1].arguments == "policy=hf,pretrained=apr-tiny,concurrency=2" and specs[1].kind == "agent"
    assert all("policy=needle" in spec.arguments for spec in specs[2:]), "the other arms stay scripted"
    assert "apr-tiny is a model" in words and "glyph" in words and "All other arms are scripted" in words
