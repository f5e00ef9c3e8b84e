"""The student: which checkpoints can be trained, and rows that equal what `policy=hf` read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn

pytest.importorskip("torch")
pytest.importorskip("transformers")

from row_making import Speaker, played, question

from apr_plugin.errors import AprError
from apr_plugin.loop import MediaRef
from apr_plugin.loop.policy import Generation, Prompt, Sampling
from apr_plugin.models.checkpoint import load_checkpoint
from apr_plugin.policies.hf.policy import HfPolicy
from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.making import RowSettings, Source, line_digest, make_rows
from apr_plugin.training.rows import Row
from apr_plugin.training.student import Student

Tiny = Callable[[str], Path]
Students = Callable[..., Student]


class Written(Speaker):
    """Says given texts, and has every prompt read by a real `policy=hf`, which tells what tokens it was."""

    def __init__(self, student: Student, says: list[str], real: HfPolicy) -> None:
        super().__init__(student, says)
        self.real = real
        self.read: list[tuple[int, ...]] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        made = await self.real.generate(prompt, Sampling(max_new_tokens=1))
        assert made.prompt_token_ids is not None
        self.read.append(made.prompt_token_ids)
        said = await super().generate(prompt, sampling)
        assert said.usage.prompt_tokens == made.usage.prompt_tokens == len(made.prompt_token_ids)
        return said


@pytest.mark.parametrize("name", ["qwen2_5_omni_full", "qwen2_5_vl", "qwen3_vl"])
def test_rows_are_what_the_engine_read(
    tiny: Tiny, student: Students, shared_videos: dict[str, Path], tmp_path: Path, name: str
) -> None:
    learner, real = student(name), HfPolicy.from_pretrained(str(tiny(name)), device="cpu", dtype="float32")
    sound = {"type": "get_audio", "start": 0.5, "end": 2.5}
    says = [look(0, 5, 4), turn(sound) if learner.family.hears else look(1, 2, 1), "?"]
    says += [turn({"type": "get_clip", "start": 1, "end": 4}), answer("A")]
    policy = Written(learner, says, real)
    run = played(tmp_path, question(shared_videos["sound"]), policy)
    real.close()
    rows = make_rows([Source(run.file, run.card, writer="own")], learner, RowSettings(validation=0))
    assert [row.turn for row in rows.rows] == [1, 2, 4, 5]
    for row in rows.rows:
        example = RowLoader(learner).example(row)
        np.testing.assert_array_equal(example.encoded.ids, policy.read[row.turn - 1])


@pytest.mark.parametrize("name", ["qwen2_5_omni_full", "qwen2_5_vl", "qwen3_omni_moe", "qwen3_5"])
def test_it_reads_as_the_loaded_checkpoint(tiny: Tiny, student: Students, name: str) -> None:
    loaded = Student.of(load_checkpoint(str(tiny(name)), device="cpu"))
    alone = student(name)
    assert (loaded.family, loaded.ends, loaded.end, loaded.pad) == (alone.family, alone.ends, alone.end, alone.pad)
    assert (loaded.digest, loaded.context_tokens) == (alone.digest, alone.context_tokens)
    assert (alone.opened == "<think>\n") == (name == "qwen3_5")
    assert set(alone.encoder.never_written) <= alone.special and alone.end in alone.special


def changed(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with another tokenizer_config.json."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    change(config)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def test_what_a_checkpoint_needs(tiny: Tiny, tmp_path: Path) -> None:
    def without_end(config: dict[str, Any]) -> None:
        config["eos_token"] = None

    copy = changed(tiny("qwen2_5_vl"), tmp_path, without_end)
    with pytest.raises(AprError, match="names no token that ends a turn"):
        Student.from_pretrained(str(copy))
    tokens = json.loads((copy / "tokenizer.json").read_text())
    tokens["added_tokens"] = [each for each in tokens["added_tokens"] if each["content"] != "<|video_pad|>"]
    (copy / "tokenizer.json").write_text(json.dumps(tokens))
    shutil.copy(tiny("qwen2_5_vl") / "tokenizer_config.json", copy)
    with pytest.raises(AprError, match=r"can't be trained: its tokenizer lacks <\|video_pad\|>"):
        Student.from_pretrained(str(copy))
    (copy / "preprocessor_config.json").unlink(missing_ok=True)
    (copy / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(AprError, match="cannot read the checkpoint"):
        Student.from_pretrained(str(copy))
    with pytest.raises(AprError, match="there is no folder"):
        Student.from_pretrained(str(tmp_path / "none"))


def test_a_template_that_opens_a_thought(student: Students, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    """A teacher's turn does not close it; with the thought switched off in the template there is none."""
    thinker = student("qwen3_5")
    says = [look(0, 2, 2), answer("A")]
    run = played(tmp_path, question(shared_videos["silent"]), Speaker(thinker, says))
    with pytest.raises(AprError, match="opened_thought 2"):
        make_rows([Source(run.file, run.card)], thinker, RowSettings(validation=0))
    quiet = Student(
        thinker.encoder.processor, thinker.family, thinker.context_tokens, template={"enable_thinking": False}
    )
    assert len(make_rows([Source(run.file, run.card)], quiet, RowSettings(validation=0))) == 2


def test_the_thought_of_an_own_turn_is_kept(student: Students, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    thinker = student("qwen3_5")
    words = "so far nothing.</think>\n" + look(0, 2, 2)

    class Thinking(Speaker):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            said = await super().generate(prompt, sampling)
            return Generation(thinker.opened + said.text, said.usage, token_ids=said.token_ids)

    closing = "</think>" + answer("A")
    run = played(tmp_path, question(shared_videos["silent"]), Thinking(thinker, [words, closing]))
    rows = make_rows([Source(run.file, run.card, writer="own")], thinker, RowSettings(validation=0))
    assert [row.target for row in rows.rows] == ["tokens", "tokens"]
    prompt, target = RowLoader(thinker).prompt(rows.rows[1])
    assert thinker.text(target) == closing
    assert [m.text for m in prompt.messages if m.role == "assistant"] == [thinker.opened + words]


class Sampled(Written):
    """Has each turn's tokens sampled by the real model, and says another text than these tokens; keeps both."""

    def __init__(self, student: Student, says: list[str], real: HfPolicy) -> None:
        super().__init__(student, says, real)
        self.made: list[Generation] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        said = await super().generate(prompt, sampling)
        self.made.append(await self.real.generate(prompt, Sampling(temperature=0.8, max_new_tokens=8, seed=3)))
        return Generation(said.text, said.usage, token_ids=self.made[-1].token_ids)


@pytest.mark.parametrize("name", ["qwen2_5_omni_full", "qwen2_5_vl", "qwen3_vl"])
def test_a_row_is_scored_as_it_was_sampled(
    tiny: Tiny, student: Students, shared_videos: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """From the stored line alone, in one padded batch, with the temperature and the bans of the sampler."""
    import torch

    checkpoint = load_checkpoint(str(tiny(name)), device="cpu", dtype="float32")
    real, learner = HfPolicy(checkpoint), student(name)
    sound = {"type": "get_audio", "start": 0.5, "end": 2.5}
    says = [look(0, 5, 4), turn(sound) if learner.family.hears else look(1, 2, 1), "?"]
    says += [turn({"type": "get_clip", "start": 1, "end": 4}), look(3, 3.5, 1), answer("A")]
    policy = Sampled(learner, says, real)
    ref = MediaRef(path=str(shared_videos["sound"]), start_s=0.37)
    run = played(tmp_path, question(ref), policy)  # type: ignore[arg-type]
    real.close()
    common = {"file": str(run.file), "start": 0, "card": str(next(run.card.glob("*/card.json"))), "target": "tokens"}
    common |= {"digest": line_digest(run.file.read_bytes()), "key": run.trajectory.question.key, "content": ""}
    loader, rows = RowLoader(learner), []
    for number, made in enumerate(policy.made, 1):
        row = Row(**common, turn=number, prompt_tokens=0, target_tokens=1)  # type: ignore[arg-type]
        _, target = loader.prompt(row)
        assert made.token_ids is not None and target[: len(made.token_ids)] == made.token_ids
        rows.append(row.model_copy(update={"prompt_tokens": made.usage.prompt_tokens, "target_tokens": len(target)}))
    given = RowCollator(loader)(rows)
    labels = given.pop("labels")
    with torch.no_grad():
        logits = checkpoint.model(**given, use_cache=False).logits[:, :-1]
    logits = logits.index_fill(-1, torch.tensor(learner.encoder.never_written), -torch.inf)
    told = torch.log_softmax(logits / 0.8, -1).gather(2, given["input_ids"][:, 1:, None])[..., 0]
    worst = 0.0
    for number, made in enumerate(policy.made):
        mine = told[number][labels[number, 1:] != -100][: len(made.token_ids or ())]
        worst = max(worst, float((mine - torch.tensor(made.logprobs)).abs().max()))
    print(f"\n{name}: largest difference from the sampled log-probability {worst:.1e}")
    assert worst < 1e-4
