"""The needle study: altered prompts, transfer sets, tables, and the whole command on a tiny set with random weights.

Nothing is claimed of any model here: random weights answer nothing.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("lmms_eval")

from apr_testing import Playback

from apr_plugin.errors import AprError
from apr_plugin.loop import Episode, EpisodeConfig, MediaRef
from apr_plugin.loop.policy import Generation, ImagePart, Prompt, Sampling
from apr_plugin.policies.hf.policy import HfPolicy
from apr_plugin.tasks.needle.make import BUCKETS, load_docs
from apr_plugin.tasks.needle.render import write_video
from apr_plugin.tasks.needle.world import World, tree_shape
from apr_plugin.training.fork_command import Line
from apr_plugin.training.tiny import agents, recipe
from apr_plugin.training.tiny.model import Size
from apr_plugin.training.tiny.notes import KINDS
from apr_plugin.training.tiny.prompts import PROFILE, TURNS, WIRE
from apr_plugin.training.tiny.start import make_start
from apr_plugin.training.tiny.worlds import GATES, film, question_of
from benchmarks.needle_study import __main__ as study
from benchmarks.needle_study import specs, tables
from benchmarks.needle_study.altered import Altered
from benchmarks.needle_study.transfer import CASES, Case, case_of, make_set

SMALL = Size(hidden=64, layers=1, heads=2, kv_heads=1, inner=64, vision_hidden=32, audio_hidden=32, audio_layers=1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An agent and a rival with random weights."""
    folder = tmp_path_factory.mktemp("study")
    agent = make_start(folder / "agent", size=SMALL)
    return {"agent": agent, "rival": make_start(folder / "rival", size=SMALL, one_turn=8)}


def test_prompts_are_altered_and_nothing_else(checkpoints: dict[str, Path]) -> None:
    """Media stays where a placeholder was, with its tokens; observations go; the loop's own prompt is not touched."""
    seen, docs = film(GATES.start + 3, "10m")
    doc = next(doc for doc in docs if doc["kind"] == "when")
    steps = list(agents.episode(seen, doc))
    prompts = [step.notes.prompt(number, TURNS) for number, step in enumerate(steps, 1)]
    assert len(prompts) >= 4
    inner = HfPolicy.from_pretrained(str(checkpoints["agent"]), dtype="float32")
    once = Sampling(max_new_tokens=1)

    async def play() -> None:
        kept = Altered(inner, keep_media=True)
        for number, prompt in enumerate(prompts):
            assert prompt.asked is not None
            changed, before = kept.changed(prompt), sum(len(step.labels) for step in steps[: number + 1])
            pictures = [part for message in changed.messages for part in message.parts if isinstance(part, ImagePart)]
            size, own = await kept.count(prompt), await inner.count(prompt)
            assert size is not None and own is not None
            assert len(pictures) == size.visual == before and own.visual == len(steps[number].labels)
            assert (" gone" in prompt.text) == (number > 1) and " gone" not in changed.text
            await kept.generate(prompt, once)
        asked = replace(prompts[-1].asked, episode="another")  # type: ignore[type-var]
        assert kept.changed(replace(prompts[-1], asked=asked)).text == prompts[-1].text

    try:
        asyncio.run(play())
        bare = Altered(inner, observation=False)
        changed = bare.changed(prompts[-1])
        assert changed.text.count('"observation": ""') == len(prompts) - 1
        noted = steps[1].turn.observation
        assert noted in prompts[-1].text and noted not in changed.text and steps[1].turn.think in changed.text
        assert Altered(inner).changed(prompts[-1]).text == prompts[-1].text
        assert bare.describe() == inner.describe() | {"keep_media": False, "observation": False}
    finally:
        inner.close()


def test_a_transfer_set_is_a_needle_set_of_other_trees(tmp_path: Path) -> None:
    assert World.from_seed(5, 600.0).digest() == World.from_seed(5, 600.0, shape=(4, 4)).digest()
    trained = {(length, tree_shape(length)) for length in BUCKETS.values()}
    assert all((case.duration_s, case.shape) not in trained for case in map(Case.read, CASES))
    case = Case.read("90:4x2")
    made = make_set(tmp_path / "set", [case], seed=1, videos=2, questions=1, edge=112)
    docs = load_docs(made)
    assert {doc["bucket"] for doc in docs} == {"1m"} and {doc["duration_s"] for doc in docs} == {90.0}
    assert {case_of(doc["video"]) for doc in docs} == {case.name} == {"90s-4x2"} and len(docs) == 10
    (video, *_) = (made / "videos").glob("*.mp4")
    was = video.stat().st_mtime_ns
    assert make_set(made, [case], seed=1, videos=2, questions=1, edge=112) == made and video.stat().st_mtime_ns == was
    with pytest.raises(AprError, match="another transfer set"):
        make_set(made, [case], seed=2, videos=2, questions=1, edge=112)
    for wrong in ("30", "x", "600:11x3", "600:5x7", "60:3x3"):
        with pytest.raises(AprError, match="transfer case"):
            Case.read(wrong)


class Doubting(Playback):
    """Plays turns, and is less certain of some."""

    def __init__(self, texts: Sequence[str], doubtful: int) -> None:
        super().__init__(texts)
        self.doubtful = doubtful

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        made = await super().generate(prompt, sampling)
        value = 1.5 if len(self.prompts) == self.doubtful else 0.1
        return replace(made, token_ids=(1, 2), logprobs=(-0.1, -0.1), entropies=(value, value))


def test_the_pivotal_turn_is_the_first_look_at_the_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a 10-minute video the teacher's third look shows what is asked for; doubt there is found, elsewhere not."""
    seen, docs = film(GATES.start + 3, "10m")
    write_video(seen.world, tmp_path / "v.mp4", (112, 112))
    config = EpisodeConfig(wire="compact", frame_times=False, budget=PROFILE.limits)
    lines = {"at": [], "after": [], "wrong": []}
    for doc in (doc for doc in docs if doc["kind"] in KINDS):
        question, truth = question_of(doc)
        question = question.model_copy(
            update={"videos": (MediaRef(path=str(tmp_path / "v.mp4")),), "doc_id": doc["id"]}
        )
        texts = [WIRE.written(step.turn) for step in agents.episode(seen, doc)]
        plain = asyncio.run(Episode(question, Playback(texts), config).run())
        pivot = tables.evidence_pivot(plain, truth)
        assert pivot is not None
        for name, number in (("at", pivot), ("after", pivot + 1), ("wrong", pivot)):
            done = asyncio.run(Episode(question, Doubting(texts, number), config).run())
            lines[name].append(Line(done, lambda done=done: done, name != "wrong", truth, tmp_path))  # type: ignore[misc]
    monkeypatch.setattr(tables, "trajectories_of", lambda folder, *_: lines[folder.name])
    at, after, wrong = tables.entropies({name: Path(name) for name in lines})
    assert (
        at.title.startswith(f"Entropy at the pivotal turn, at: {len(lines['at'])} right")
        and at.rows[0][1][:4] == "1.00"
    )
    assert after.rows[0][1][:4] == "0.00"
    assert wrong.rows == () and f"left out: wrong {len(lines['wrong'])}" in wrong.title


def test_what_is_typed_is_checked(checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    agent = f"a={checkpoints['agent']}"
    for words, said in (
        (["--agent", "a"], "write NAME=FOLDER"),
        (["--agent", "a=nowhere"], "nowhere has no checkpoint"),
        (["--agent", agent, "--rival", f"b={checkpoints['rival']}"], "write NAME=FOLDER@FRAMES"),
        (["--agent", agent, "--parts", "mian"], "there is no 'mian'; there are main"),
        (["--agent", agent, "--buckets", "2m"], "buckets must be different names"),
    ):
        with pytest.raises(SystemExit):
            study.main(words)
        assert said in capsys.readouterr().err
    rival = specs.Named.read(f"b={checkpoints['rival']}@8", passive=True)
    arms = specs.main_arms([specs.Named.read(agent)], [rival], {})
    assert [arm.kind for arm in arms] == ["agent", "agent", "passive", "blind", "single_frame", "shuffled", "oracle"]
    assert all("passive_form=wire" in arm.arguments for arm in arms[3:]), "controls are asked in the rival's own form"


@pytest.mark.slow
def test_the_whole_study(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part through `apr eval` on real files; then the report alone, and what is not there is not run."""
    monkeypatch.delenv("APR_NEEDLE_DIR", raising=False)
    gate = {"measure": "needle_captions", "reach": {"colour": 0.0}, "at_most": {"steps": 1}}
    stage = {"name": "only", "mix": [{"made": "needle_captions"}], "length": {"steps": 1}, "gate": gate}
    trainer = {"use_cpu": True, "disable_tqdm": True, "activation_checkpointing": False, "logging_steps": 1}
    given = {"start": {"size": vars(SMALL)}, "evaluation": [{"seed": 0}]}
    given |= {"training": {"rows_per_step": 4, "trainer": trainer, "stages": [stage]}}
    (tmp_path / "r.yaml").write_text(json.dumps(given))
    recipe.run_recipe(str(tmp_path / "r.yaml"), tmp_path / "run")
    work, out = tmp_path / "work", tmp_path / "out"
    words = ["--agent", f"sft={checkpoints['agent']}", "--rival", f"small={checkpoints['rival']}@8"]
    words += ["--run", f"agent={tmp_path / 'run'}", "--buckets", "1m,10m", "--videos", "1", "--edge", "112"]
    words += ["--transfer", "180,600:5x3", "--transfer-videos", "1", "--turns", "2,4"]
    words += ["--settings", "max_new_tokens=8,turns=2", "--work", str(work), "--out", str(out)]
    before = dict(os.environ)
    assert study.main(words) == 0
    assert dict(os.environ) == before, "later work in this process sees the set that it saw before"
    page = (out / "README.md").read_text()
    assert "Not run" not in page and "| scripted | 1.00 | 1.00 |" in page
    for table in (
        "From blind to oracle",
        "Cost of a question: visual tok.",
        "Test-time scaling",
        "Ablations",
        "Training",
    ):
        assert f"**{table}**" in page
    for arm in ("sft", "small", "blind (small)", "oracle (small)", "media kept", "notes without observation"):
        assert f"| {arm} |" in page
    with next((out / "tables").glob("main-*visual-tok*.csv")).open() as file:
        costs = {row["arm"]: row for row in csv.DictReader(file)}
    assert costs["small"]["10m"] == "8" and costs["blind (small)"]["10m"] == "0", "a frame is one visual token"
    texts = [file.read_text() for file in out.rglob("*") if file.suffix in (".md", ".json", ".csv", ".yaml")]
    assert len(texts) > 30 and not any(str(tmp_path) in text for text in texts)
    assert (work / "main" / "report.html").is_file()
    made = {file: file.stat().st_mtime_ns for file in work.rglob("arm.json")}
    assert len(made) == 7 + 2 + 3 + 3
    (work / "transfer" / "compare.json").unlink()
    capsys.readouterr()
    assert study.main([*words, "--parts", "none"]) == 0
    assert "lmms-eval --model" not in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in work.rglob("arm.json")} == made
    again = (out / "README.md").read_text()
    assert "**Not run:** transfer (`transfer`)." in again and "| scripted | 1.00 | 1.00 |" in again
