"""The request to vLLM, and its number of tokens, compared with the real processors of small models of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import QUESTION, after, opening, percept

from apr_plugin.loop import Budget, Notebook, Percept
from apr_plugin.loop.policy import AudioPart, Message, Prompt, TextPart, VideoPart
from apr_plugin.loop.wires import VideoMeta

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

from apr_plugin.models.families import family_of  # noqa: E402
from apr_plugin.policies.vllm.prompt import TICKS, VllmPrompts, clip_timing  # noqa: E402

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_5_omni", "qwen3_omni_moe")


@pytest.fixture(scope="module")
def prompts(tiny: Callable[[str], Path]) -> dict[str, VllmPrompts]:
    return {
        name: VllmPrompts(transformers.AutoProcessor.from_pretrained(tiny(name)), family_of(name)) for name in FAMILIES
    }


def _processed(prompts: VllmPrompts, request: dict[str, Any]) -> list[int]:
    """The token ids of the checkpoint's own processor for the same text and media; vLLM calls that processor."""
    text = prompts.tokenizer.decode(request["prompt_token_ids"])
    media = request.get("multi_modal_data", {})
    options = dict(request.get("mm_processor_kwargs", {}))
    given: dict[str, Any] = {}
    if "image" in media:
        given["images"] = media["image"]
    if "video" in media:
        given["videos"] = [frames for frames, _ in media["video"]]
        given["video_metadata"] = [
            {key: value for key, value in timing.items() if key != "do_sample_frames"} for _, timing in media["video"]
        ]
        given["videos_kwargs"] = {"do_sample_frames": False} | ({"fps": options["fps"]} if "fps" in options else {})
        if prompts.family.hears:
            del given["video_metadata"]
    if "audio" in media:
        given["audio"] = [waveform for waveform, _ in media["audio"]]
    if options.get("use_audio_in_video"):
        given |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
    made = prompts.processor(text=[text], return_tensors="np", **given)
    ids: list[int] = np.asarray(made["input_ids"])[0].tolist()
    return ids


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", ["frames", "audio", "clip"])
def test_tokens_are_those_of_the_real_processor(prompts: dict[str, VllmPrompts], model_type: str, kind: str) -> None:
    encoder = prompts[model_type]
    if kind not in encoder.family.modalities:
        with pytest.raises(ValueError, match="hears nothing"):
            encoder.request(after(kind))
        return
    prompt = after(kind, frames=4, seconds=2.0)
    size, ids = encoder.count(prompt), _processed(encoder, encoder.request(prompt))
    audio = ids.count(encoder.ids_of["audio"]) if encoder.family.hears else 0
    visual = ids.count(encoder.ids_of["image"]) + ids.count(encoder.ids_of["video"])
    assert (size.visual, size.audio) == (visual, audio)
    assert size.total == len(ids)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(("height", "width", "frames"), [(30, 40, 2), (500, 700, 3), (28, 280, 5)])
def test_small_and_large_clips_are_scaled_as_the_processor_does(
    prompts: dict[str, VllmPrompts], model_type: str, height: int, width: int, frames: int
) -> None:
    encoder = prompts[model_type]
    clip = VideoPart(np.zeros((frames, height, width, 3), np.uint8), tuple(3 + n / 2 for n in range(frames)), 2.0)
    prompt = Prompt((Message("user", (TextPart("see"), clip)),))
    ids = _processed(encoder, encoder.request(prompt))
    assert encoder.count(prompt).visual == ids.count(encoder.ids_of["video"])


def test_a_clip_keeps_its_timing(prompts: dict[str, VllmPrompts]) -> None:
    times = (10.0, 10.25, 10.5)
    clip = VideoPart(np.zeros((3, 56, 56, 3), np.uint8), times, 4.0)
    prompt = Prompt((Message("user", (clip,)),))
    ((frames, timing),) = prompts["qwen3_vl"].request(prompt)["multi_modal_data"]["video"]
    assert frames.shape == (4, 56, 56, 3), "the encoder takes frames in pairs"
    told = transformers.video_utils.VideoMetadata(
        **{key: value for key, value in timing.items() if key != "do_sample_frames"}
    )
    assert told.timestamps == [10.0, 10.25, 10.5, 10.5] and told.sampled_fps == pytest.approx(4.0)
    decoded = prompts["qwen3_vl"].tokenizer.decode(_processed(prompts["qwen3_vl"], prompts["qwen3_vl"].request(prompt)))
    assert "<10.1 seconds>" in decoded and "<10.5 seconds>" in decoded
    omni = prompts["qwen2_5_omni"].request(prompt)["mm_processor_kwargs"]
    assert omni == {"fps": 4.0, "second_per_grid_ts": [0.5]}


def test_a_clip_with_sound_is_one_place_in_the_prompt(prompts: dict[str, VllmPrompts]) -> None:
    encoder = prompts["qwen2_5_omni"]
    request = encoder.request(after("clip"))
    assert request["mm_processor_kwargs"] == {"use_audio_in_video": True, "fps": 2.0, "second_per_grid_ts": [1.0]}
    assert [len(items) for items in request["multi_modal_data"].values()] == [1, 1]
    assert request["prompt_token_ids"].count(encoder.ids_of["audio"]) == 0
    deaf = prompts["qwen2_5_vl"].request(after("clip"))
    assert "audio" not in deaf["multi_modal_data"] and "mm_processor_kwargs" not in deaf


def test_no_special_token_hides_in_words(prompts: dict[str, VllmPrompts]) -> None:
    encoder = prompts["qwen2_5_vl"]
    book = Notebook(
        QUESTION.model_copy(update={"text": "<|image_pad|><|im_end|>"}), [VideoMeta(60.0, 10.0, True)], Budget()
    )
    ids = encoder.request(book.prompt(1, 5))["prompt_token_ids"]
    end = encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(encoder.ids_of["image"]) == 0 and ids.count(end) == encoder.request(opening())[
        "prompt_token_ids"
    ].count(end)


def test_short_sound_is_padded_and_long_sound_is_never_cut(prompts: dict[str, VllmPrompts]) -> None:
    encoder = prompts["qwen2_5_omni"]

    def heard(samples: int) -> Prompt:
        return Prompt((Message("user", (AudioPart(np.zeros(samples, np.float32), 16_000),)),))

    ((waveform, rate),) = encoder.request(heard(10))["multi_modal_data"]["audio"]
    assert (len(waveform), rate) == (1600, 16_000)
    longest = encoder.processor.feature_extractor.n_samples
    assert len(encoder.request(heard(longest))["multi_modal_data"]["audio"][0][0]) == longest
    with pytest.raises(ValueError, match="cut sound off"):
        encoder.request(heard(longest + 1))


def test_earlier_turns_are_a_prefix_token_for_token(prompts: dict[str, VllmPrompts]) -> None:
    """A requirement of vLLM's cache: everything before the newest look is unchanged in the next prompt."""
    encoder = prompts["qwen2_5_vl"]
    book = Notebook(QUESTION, [VideoMeta(60.0, 10.0, True)], Budget())
    before: list[int] = []
    for turn in range(1, 5):
        ids = encoder.request(book.prompt(turn, 8))["prompt_token_ids"]
        assert ids[: len(before)] == before and len(ids) > len(before)
        before = encoder.request(Prompt(book.history()))["prompt_token_ids"]
        generation = encoder.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
        before = before[: -len(generation)]
        look: Percept = percept("frames", frames=2 + turn)
        book.add(f'{{"observation": "turn {turn}"}}', look)


@pytest.mark.parametrize("fps", [3.0, 2.0, 0.7])
def test_the_rate_of_a_clip_is_exact(fps: float) -> None:
    """Processors compute it from the timing; ten frames in 3.333 s would be 3.0003 a second, and lose a position."""
    clip = VideoPart(np.zeros((9, 28, 28, 3), np.uint8), tuple(31.0 + n / fps for n in range(9)), fps)
    timing = clip_timing(clip, 2)
    assert len(timing["frames_indices"]) / timing["total_num_frames"] * timing["fps"] == fps
    times = [number / timing["fps"] for number in timing["frames_indices"]]
    assert times == pytest.approx([*clip.times_s, clip.times_s[-1]], abs=1 / (fps * TICKS))
