"""M-RoPE positions of every family, compared with those of transformers and with hand-computed ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import after, big_clip, opening

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Part, Prompt, TextPart, VideoPart  # noqa: E402 - after the libraries it needs
from apr_plugin.models.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from apr_plugin.models.families import Pixels  # noqa: E402
from apr_plugin.models.positions import positions  # noqa: E402
from apr_plugin.models.prompt import Encoded, PromptEncoder  # noqa: E402

Tiny = Callable[[str], Path]
WITH_A_RULE = ("qwen2_5_omni", "qwen2_5_omni_full", "qwen3_vl", "qwen3_5", "qwen3_omni_moe", "qwen3_omni_moe_full")
"""All except Qwen2.5-VL, whose class in transformers is not followed."""


def by_transformers(checkpoint: Checkpoint, encoded: Encoded) -> Any:
    """The positions of the model's own class, shape (3, n)."""
    model, config, ids = checkpoint.model, checkpoint.model.config, torch.from_numpy(encoded.ids)[None]
    images = [medium.grid for medium in encoded.media if isinstance(medium.part, ImagePart)]
    clips = [(medium, medium.part) for medium in encoded.media if isinstance(medium.part, VideoPart)]
    sounds = [medium.mel.shape[1] for medium in encoded.media if medium.mel is not None]
    offered = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int(),
        "image_grid_thw": torch.stack(images) if images else None,
        "video_grid_thw": torch.stack([medium.grid for medium, _ in clips]) if clips else None,
        "second_per_grids": torch.tensor([2 / part.fps for _, part in clips]) if clips else None,
        "use_audio_in_video": any(medium.mel is not None for medium, _ in clips),
        "audio_seqlens": torch.tensor(sounds) if sounds else None,
    }
    rule = (model if hasattr(model, "get_rope_index") else model.model).get_rope_index
    told, _ = rule(**{key: value for key, value in offered.items() if key in inspect.signature(rule).parameters})
    return told[:, 0].numpy()


def clip(frames: int, fps: float, sound_s: float | None = None, height: int = 84, width: int = 112) -> VideoPart:
    rng = np.random.default_rng(frames)
    sound = (
        None
        if sound_s is None
        else AudioPart(rng.uniform(-0.1, 0.1, round(sound_s * 16_000)).astype(np.float32), 16_000)
    )
    return VideoPart(
        rng.integers(0, 255, (frames, height, width, 3), np.uint8), tuple(n / fps for n in range(frames)), fps, sound
    )


def asked(*parts: Part) -> Prompt:
    return Prompt(
        (
            Message("system", (TextPart("Answer."),)),
            Message("user", (TextPart("What is it?"), *parts, TextPart("Tell."))),
        )
    )


def prompts(hears: bool) -> list[Prompt]:
    picture = ImagePart(np.zeros((140, 56, 3), np.uint8))
    made = [
        opening(),
        after("frames", frames=3),
        big_clip(5, sound=False),
        asked(picture, clip(8, 2.0), TextPart("and"), picture),
    ]
    made += [
        asked(clip(frames, fps)) for frames, fps in ((8, 3.0), (7, 1.0), (2, 0.3), (12, 7.77), (4, 29.97), (30, 8.0))
    ]
    if hears:
        sound = AudioPart(np.zeros(40_000, np.float32), 16_000)
        made += [
            after("audio"),
            big_clip(8, sound=True),
            asked(sound),
            asked(picture, sound, TextPart("then"), picture),
        ]
        for frames, fps, sound_s in (
            (8, 2.0, 4.0),
            (8, 2.0, 9.5),
            (20, 2.0, 1.0),
            (9, 3.0, 3.0),
            (40, 7.77, 5.1),
            (4, 0.5, 8.0),
            (6, 2.0, 0.02),
        ):
            made += [
                asked(clip(frames, fps, sound_s)),
                asked(clip(frames, fps, sound_s, height=224, width=28), TextPart("so")),
            ]
    return made


@pytest.mark.parametrize("name", WITH_A_RULE)
def test_they_are_those_of_transformers(tiny: Tiny, name: str) -> None:
    checkpoint = load_checkpoint(str(tiny(name)), device="cpu", dtype="float32")
    encoder = PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)
    for prompt in prompts(checkpoint.family.hears):
        encoded = encoder.encode(prompt)
        mine, wanted = positions(encoded, checkpoint.family), by_transformers(checkpoint, encoded)
        assert mine.dtype == wanted.dtype or not encoded.media
        np.testing.assert_array_equal(mine, wanted, err_msg=prompt.text)


def test_several_clips_of_which_some_are_heard(tiny: Tiny) -> None:
    """transformers takes sound for all clips of a prompt or for none; here each one is laid out separately."""
    checkpoint = load_checkpoint(str(tiny("qwen2_5_omni")), device="cpu", dtype="float32")
    encoder = PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)
    heard, silent = clip(8, 2.0, 4.0), clip(8, 2.0)
    both = encoder.encode(asked(heard, silent))
    alone = [positions(encoder.encode(asked(one)), checkpoint.family) for one in (heard, silent)]
    mine = positions(both, checkpoint.family)
    first, second = (medium.start for medium in both.media)
    upto = sum(run.tokens for run in both.media[0].runs)
    np.testing.assert_array_equal(mine[:, : first + upto + 2], alone[0][:, : first + upto + 2])
    rest = mine[:, second:] - mine[0, second]
    np.testing.assert_array_equal(rest, (alone[1] - alone[1][0, first - 1])[:, -rest.shape[1] :])


def test_a_coarser_merger(tiny: Tiny) -> None:
    """Four by four patches make a token if the configuration says so: positions advance by tokens."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny("qwen2_5_vl"))
    checkpoint = load_checkpoint(str(tiny("qwen2_5_vl")), device="cpu")
    assert checkpoint.family.merge == 2 and checkpoint.family.factor == 28 and checkpoint.family.positions_per_s == 2
    config.vision_config.spatial_merge_size = 4
    coarse = checkpoint.family.of_config(config)
    processor = checkpoint.processor
    processor.image_processor.merge_size = processor.video_processor.merge_size = 4
    encoded = PromptEncoder(processor, coarse, Pixels(), checkpoint.dtype).encode(
        asked(ImagePart(np.zeros((112, 168, 3), np.uint8)))
    )
    medium = encoded.media[0]
    assert coarse.factor == 56 and medium.grid.tolist() == [1, 8, 12] and [run.tokens for run in medium.runs] == [6]
    _, row, column = positions(encoded, coarse)[:, medium.start : medium.start + 6] - medium.start
    assert row.tolist() == [0, 0, 0, 1, 1, 1] and column.tolist() == [0, 1, 2, 0, 1, 2]
