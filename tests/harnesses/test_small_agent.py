"""The small agent in the loop and in lmms-eval: a policy that has to look, on real files of the needle benchmark.

The shipped agent plays by itself. Where none is shipped, one of its shape with random weights takes its place: where it
has to look, its words are replaced by the teacher's, and its tokens stay its own.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundled_testing import SmallAgent, shipped

from apr_plugin.loop import Card, Generation, MediaRef, PolicyDefaults, Prompt, Question, Sampling, Trajectory, replay
from apr_plugin.loop.action import GetFrames
from apr_plugin.loop.policy import ImagePart
from apr_plugin.models import bundled
from apr_plugin.runs import TrajectoryStore, run_episodes
from apr_plugin.runs.settings import Settings, read_settings
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec, load_docs, make_needle, video_seed
from apr_plugin.tasks.needle.questions import Doc
from apr_plugin.tasks.needle.read import asked
from apr_plugin.tasks.needle.world import World

SPEC = NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1)
KINDS = ("glyph", "when", "order")
TASKS = ",".join(f"apr_needle_{kind}" for kind in KINDS)

pytestmark = pytest.mark.xdist_group("lmms_eval")


@pytest.fixture(scope="module")
def needle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A needle set: a video of a minute with a question of each kind."""
    return Path(make_needle(tmp_path_factory.mktemp("set"), SPEC, 1))


@pytest.fixture(scope="module")
def docs(needle: Path) -> list[Doc]:
    """The questions for eyes alone."""
    return [doc for doc in load_docs(needle) if doc["kind"] in KINDS]


class Playing(PolicyDefaults):
    """The small agent, and what it was shown and wrote.

    Args:
        inner: The loaded agent.
        words: The turns of the teacher by the question's text, if it can't play by itself.
    """

    name = "hf"

    def __init__(self, inner: Any, words: dict[str, list[str]] | None) -> None:
        self._inner = inner
        self._words = words
        for name in ("modalities", "context_tokens", "visual_token", "count", "describe", "close"):
            setattr(self, name, getattr(inner, name))
        self.written: dict[tuple[str, int], tuple[Prompt, Generation]] = {}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        made: Generation = await self._inner.generate(prompt, sampling)
        text, number = prompt.asked.question.text, prompt.asked.turn
        self.written[text, number] = (prompt, made)
        return made if self._words is None else replace(made, text=self._words[text][number - 1])


def teacher(docs: list[Doc]) -> dict[str, list[str]]:
    """The turns of the scripted teacher about these questions."""
    from apr_plugin.training.tiny.agents import episode
    from apr_plugin.training.tiny.prompts import WIRE
    from apr_plugin.training.tiny.worlds import Film

    seen = Film(World.from_seed(video_seed(SPEC.seed, "1m", 0), BUCKETS["1m"], SPEC.difficulty))
    return {doc["question"]: [WIRE.written(step.turn) for step in episode(seen, doc)] for doc in docs}


def questions(docs: list[Doc]) -> list[Question]:
    return [
        asked(dict(doc)).model_copy(
            update={"videos": (MediaRef(path=doc["video"]),), "task": "needle", "doc_id": doc["id"]}
        )
        for doc in docs
    ]


def loaded(agent: SmallAgent, docs: list[Doc], **more: Any) -> tuple[Playing, Settings]:
    with shipped(agent):
        settings = read_settings({"policy": "hf", "pretrained": bundled.NAME, "device": "cpu"} | more)
    return Playing(settings.policy, None if agent.trained else teacher(docs)), settings


def play(agent: SmallAgent, docs: list[Doc], folder: Path, **more: Any) -> tuple[Playing, list[Trajectory], Card]:
    """Run the questions one after the other; the policy stays open."""
    policy, settings = loaded(agent, docs, **more)
    config = settings.config
    card = Card.of(config, policy)
    with TrajectoryStore(folder, card.config_hash, card) as store:
        asyncio.run(run_episodes(questions(docs), policy, config, 1, store=store))
    store.merge(["needle"])
    done = [one for file in sorted(folder.glob("*/*.jsonl")) for one in Trajectory.read(file)]
    return policy, sorted(done, key=lambda one: one.question.doc_id), card


@pytest.fixture(scope="module")
def played(
    small_agent: SmallAgent, docs: list[Doc], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Playing, list[Trajectory], Card]]:
    made = play(small_agent, docs, tmp_path_factory.mktemp("run"))
    yield made
    made[0].close()  # type: ignore[attr-defined]


def test_it_looks_before_it_answers(played: tuple[Playing, list[Trajectory], Card], small_agent: SmallAgent) -> None:
    policy, done, card = played
    assert len(done) == len(KINDS) and card.policy["pretrained"] == "apr-tiny" and card.config.wire == "compact"
    for trajectory in done:
        first, *rest = trajectory.turns
        assert isinstance(first.action, GetFrames) and rest
        shown = policy.written[trajectory.question.text, 2][0]
        pictures = [part.image.shape for message in shown.messages for part in message.parts if _pictured(part)]
        assert len(pictures) == first.action.num and set(pictures) == {(56, 56, 3)}
        assert [turn.usage.visual_tokens for turn in trajectory.turns[:2]] == [0, len(pictures)]
    # The agent is not right about everything; what it answers is mostly an option or a span.
    assert sum(trajectory.answer is not None for trajectory in done) >= len(KINDS) - 1


def _pictured(part: Any) -> bool:
    return isinstance(part, ImagePart)


def test_kept_caches_change_nothing(
    played: tuple[Playing, list[Trajectory], Card], small_agent: SmallAgent, docs: list[Doc], tmp_path: Path
) -> None:
    policy, done, _ = played
    other, again, _ = play(small_agent, docs, tmp_path, kv_cache=False)
    other.close()  # type: ignore[attr-defined]
    assert [one.answer for one in again] == [one.answer for one in done]
    assert other.written.keys() == policy.written.keys()
    for turn, (_, made) in policy.written.items():
        without = other.written[turn][1]
        assert made.token_ids == without.token_ids and made.prompt_token_ids == without.prompt_token_ids, turn
        np.testing.assert_allclose(made.logprobs, without.logprobs, atol=1e-4)
        assert without.usage.cached_tokens == 0
        assert turn[1] == 1 or made.usage.cached_tokens > 0, "the notes before were read in the turn before"


def test_a_trajectory_gives_back_what_it_saw_and_what_it_wrote(
    played: tuple[Playing, list[Trajectory], Card],
) -> None:
    policy, done, card = played
    sampling = replace(card.config.sampling, seed=0)
    for trajectory in done:
        for number, (prompt, _) in enumerate(replay(trajectory, card), 1):
            saw, wrote = policy.written[trajectory.question.text, number]
            assert prompt.text == saw.text
            images, before = ([p.image for m in one.messages for p in m.parts if _pictured(p)] for one in (prompt, saw))
            assert len(images) == len(before)
            assert all(np.array_equal(one, other) for one, other in zip(images, before, strict=True))
            again = asyncio.run(policy._inner.generate(prompt, sampling))
            assert again.token_ids == wrote.token_ids


def test_lmms_eval_runs_it_by_name_and_goes_on_where_it_was(
    small_agent: SmallAgent, needle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from task_testing import _manager, trajectories

    monkeypatch.setenv("APR_NEEDLE_DIR", str(needle))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(folder: Path) -> dict[tuple[str, str], Trajectory]:
        with shipped(small_agent):
            raw = simple_evaluate(
                model="apr",
                model_args=f"{bundled.MODEL_ARGS},device=cpu,trajectories={folder},concurrency=2",
                tasks=TASKS.split(","),
                task_manager=_manager(),
                verbosity="ERROR",
            )
        assert set(raw["results"]) >= set(TASKS.split(","))
        return trajectories(folder)

    first = run(tmp_path / "run")
    assert len(first) == len(KINDS) and all(one.turns for one in first.values())
    (card,) = (Card.read(path) for path in (tmp_path / "run").rglob("card*.json"))
    assert card.policy["pretrained"] == "apr-tiny" and str(small_agent.folder) not in card.to_json()
    if small_agent.trained:
        assert all(isinstance(one.turns[0].action, GetFrames) for one in first.values())
        assert sum(one.answer is not None for one in first.values()) >= len(KINDS) - 1
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    lost = sorted(file for file in (tmp_path / "cut").rglob("*.jsonl") if "apr_needle_when" in file.read_text())[0]
    lines = lost.read_text().splitlines(keepends=True)
    lost.write_text("".join(line for line in lines if '"task":"apr_needle_when"' not in line.replace('": "', '":"')))
    assert len(trajectories(tmp_path / "cut")) == len(KINDS) - 1
    again = run(tmp_path / "cut")
    assert again.keys() == first.keys()
    for key, one in first.items():
        assert [turn.text for turn in again[key].turns] == [turn.text for turn in one.turns]
        # A turn that was written again took another time.
        assert (again[key] == one) == (key[0] != "apr_needle_when"), "only the lost question was asked again"
