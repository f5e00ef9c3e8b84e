"""A checkpoint whose encoder merges 4 by 4 patches: its 56x56 picture is one visual token, wherever tokens are counted.

The reference is its own processor and class in transformers.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn
from conformance import GREEDY, after, opening
from real_processor import real

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from apr_plugin.errors import AprError  # noqa: E402 - after the libraries it needs
from apr_plugin.loop import Budget, Episode, EpisodeConfig, Generation, MediaRef, Question, Sampling  # noqa: E402
from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken  # noqa: E402
from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart, VideoPart  # noqa: E402
from apr_plugin.models.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from apr_plugin.models.families import Family, Pixels, family_of  # noqa: E402
from apr_plugin.models.positions import positions  # noqa: E402
from apr_plugin.models.prompt import PromptEncoder  # noqa: E402
from apr_plugin.policies.hf.policy import HfPolicy  # noqa: E402
from apr_plugin.policies.vllm.prompt import VllmPrompts  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

NAME = "qwen2_5_omni_merge4"
BIG = VisualToken(side_px=56, frames=2)


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[[str], Path]) -> Checkpoint:
    return load_checkpoint(str(tiny(NAME)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)


def pictures(*sizes: tuple[int, int]) -> Prompt:
    rng = np.random.default_rng(0)
    parts = [ImagePart(rng.integers(0, 255, (height, width, 3), np.uint8)) for height, width in sizes]
    return Prompt((Message("user", (TextPart("What?"), *parts)),))


def clip(frames: int, height: int = 112, width: int = 168) -> Prompt:
    images = np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), np.uint8)
    return Prompt((Message("user", (VideoPart(images, tuple(n / 2 for n in range(frames)), 2.0), TextPart("What?"))),))


PROMPTS = {
    "words": opening,
    "frames": lambda: after("frames", frames=5),
    "one": lambda: pictures((56, 56)),
    "sizes": lambda: pictures((56, 56), (112, 112), (100, 300), (30, 40), (85, 83), (448, 448)),
    "clip": lambda: clip(6),
    "odd_clip": lambda: clip(5, 56, 56),
    "sound": lambda: after("audio"),
    "clip_with_sound": lambda: after("clip", frames=8, seconds=4.0),
}


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_a_prompt_is_what_the_processor_makes(checkpoint: Checkpoint, encoder: PromptEncoder, name: str) -> None:
    prompt = PROMPTS[name]()
    encoded, expected = encoder.encode(prompt), real(encoder, prompt)
    assert encoded.ids.tolist() == expected["input_ids"][0].tolist()
    assert encoder.count(prompt) == encoded.size and encoded.size.total == len(encoded.ids)
    for key, kind in (("pixel_values", ImagePart), ("pixel_values_videos", VideoPart)):
        made = [medium.pixels for medium in encoded.media if isinstance(medium.part, kind)]
        if made:
            np.testing.assert_array_equal(np.concatenate(made), expected[key].numpy())
    grids = [medium.grid for medium in encoded.media if isinstance(medium.part, ImagePart)]
    clips = [medium.grid for medium in encoded.media if isinstance(medium.part, VideoPart)]
    sounds = [medium.mel.shape[1] for medium in encoded.media if medium.mel is not None]
    told, _ = checkpoint.model.get_rope_index(
        torch.from_numpy(encoded.ids)[None],
        torch.stack(grids) if grids else None,
        torch.stack(clips) if clips else None,
        torch.ones(1, len(encoded.ids), dtype=torch.long),
        use_audio_in_video=bool(clips and sounds),
        audio_seqlens=torch.tensor(sounds) if sounds else None,
        second_per_grids=torch.tensor([1.0] * len(clips)) if clips else None,
    )
    np.testing.assert_array_equal(positions(encoded, checkpoint.family), told[:, 0].numpy())


def test_a_small_picture_is_one_token(encoder: PromptEncoder) -> None:
    assert encoder.family.visual_token == BIG and BIG.of_least_frame == 1
    for size, tokens in (((56, 56), 1), ((112, 56), 2), ((224, 224), 16)):
        assert encoder.count(pictures(size)).visual == tokens == BIG.of_picture(*size)
    assert encoder.count(clip(6)).visual == BIG.of_clip(168, 112, 6) == 18
    assert (VISUAL_TOKEN.of_picture(56, 56), VISUAL_TOKEN.of_least_frame) == (4, 4)


def test_vllm_counts_like_its_processor(tiny: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(tiny(NAME))
    family = family_of("qwen2_5_omni").of_config(transformers.AutoConfig.from_pretrained(tiny(NAME)))
    prompts = VllmPrompts(processor, family)
    for size in ((56, 56), (100, 300), (30, 40)):
        prompt = pictures(size)
        request = prompts.request(prompt)
        text = prompts.tokenizer.decode(request["prompt_token_ids"])
        made = processor(text=[text], images=request["multi_modal_data"]["image"], return_tensors="np")
        assert prompts.count(prompt).total == np.asarray(made["input_ids"]).size


class Scripted:
    """Lets the model write two tokens on every prompt, then says the next text; a random model would never look."""

    def __init__(self, policy: HfPolicy, says: list[str], context_tokens: int | None = None) -> None:
        self.policy, self.says = policy, says
        self.name, self.modalities, self.visual_token = policy.name, policy.modalities, policy.visual_token
        self.context_tokens = context_tokens or policy.context_tokens
        self.describe, self.count = policy.describe, policy.count

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        wrote = await self.policy.generate(prompt, GREEDY)
        return Generation(self.says[min(prompt.asked.turn, len(self.says)) - 1], wrote.usage)

    def close(self) -> None:
        self.policy.close()


@pytest.fixture(scope="module")
def policy(checkpoint: Checkpoint) -> Iterator[HfPolicy]:
    made = HfPolicy(checkpoint)
    yield made
    made.close()


SAYS = [look(0, 5, 12), turn({"type": "get_clip", "start": 0, "end": 3}), answer("a pot")]


def play(policy: Any, video: Path, budget: Budget) -> Any:
    question = Question(text="what?", kind="free_form", videos=(MediaRef(path=str(video)),))  # type: ignore[arg-type]
    config = EpisodeConfig(wire="compact", budget=budget, sampling=Sampling(max_new_tokens=256))
    return asyncio.run(Episode(question, policy, config).run())


def test_the_budget_counts_what_the_model_reads(policy: HfPolicy, make_video: Callable[..., Path]) -> None:
    """Square frames of 56 pixels: one token each, in the budget and in the model."""
    video = make_video(size=(64, 64))
    budget = Budget(turns=4, frame_pixels=56 * 56, clip_pixels=56 * 56, visual_tokens_per_look=12)
    done = play(Scripted(policy, SAYS), video, budget)
    frames, moving = done.looks
    assert (len(frames.times_s), frames.visual_tokens, frames.remark) == (12, 12, "")
    assert (len(moving.times_s), moving.visual_tokens) == (6, 3)
    assert [each.usage.visual_tokens for each in done.turns] == [0, 12, 3]
    assert policy.describe()["visual_token"] == {"side_px": 56, "frames": 2}
    limited = play(Scripted(policy, SAYS), video, budget.model_copy(update={"visual_tokens_per_look": 7}))
    assert len(limited.looks[0].times_s) == limited.looks[0].visual_tokens == 7
    assert limited.turns[1].usage.visual_tokens == 7 and "Only 7 of the frames" in limited.looks[0].remark


def test_a_look_is_fitted_by_the_exact_count(policy: HfPolicy, make_video: Callable[..., Path]) -> None:
    """The context leaves room for some frames, and every prompt fits."""
    video = make_video(size=(64, 64))
    budget = Budget(turns=3, frame_pixels=56 * 56)
    whole = play(Scripted(policy, SAYS), video, budget)
    room = (whole.turns[1].usage.prompt_tokens or 0) + 256 - 12
    done = play(Scripted(policy, SAYS, room), video, budget)
    assert done.looks[0].fitted and 1 <= len(done.looks[0].times_s) < 12
    assert all((each.usage.prompt_tokens or 0) + 256 <= room for each in done.turns)


def test_a_processor_that_cuts_otherwise_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(NAME), tmp_path / "mixed"))
    plain = transformers.AutoProcessor.from_pretrained(tiny("qwen2_5_omni"))
    plain.save_pretrained(folder)
    for load in (lambda: load_checkpoint(str(folder), device="cpu"), lambda: Student.from_pretrained(str(folder))):
        with pytest.raises(AprError, match="image_processor has merge_size 2, and its vision encoder 4"):
            load()
    model = load_checkpoint(str(tiny(NAME)), device="cpu").model
    with pytest.raises(AprError, match="merge_size 2"):
        Checkpoint.around(model, plain)


def test_the_released_sizes_are_the_defaults(tiny: Callable[[str], Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny("qwen2_5_omni"))
    family: Family = family_of("qwen2_5_omni")
    assert family.of_config(config).visual_token == family.visual_token == VISUAL_TOKEN
    assert not VISUAL_TOKEN.described()
