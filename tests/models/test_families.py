"""Token rules of the families, compared with their own processors in transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop.policy import EVERY_MODALITY
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.families import FAMILIES, HOP, MIN_SOUND, Family, Pixels, Placeholders, family_of, tokens_of

NAMES = ("qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe")
HEARING = ("qwen2_5_omni", "qwen3_omni_moe")
SIDES = st.integers(1, 1500)
FPS = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]) | st.floats(0.1, 10.0)


@pytest.fixture(scope="module")
def processors(tiny: Callable[[str], Path]) -> dict[str, Any]:
    """The real processors, from folders of the usual layout."""
    from transformers import AutoProcessor

    return {name: AutoProcessor.from_pretrained(tiny(name)) for name in NAMES}


@st.composite
def limits(draw: st.DrawFn) -> Pixels:
    least = draw(st.none() | st.integers(28 * 28, 400 * 400))
    return Pixels(least, draw(st.none() | st.integers((least or 0) + 64 * 64, 2000 * 2000)))


def _size(family: Family, limits: Pixels, frames: int = 1) -> dict[str, int]:
    return {
        "shortest_edge": (limits.least or family.factor**2) * frames,
        "longest_edge": (limits.most or 1 << 40) * frames,
    }


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, limits=limits())
def test_a_picture_takes_as_many_tokens_as_the_processor_makes(
    processors: dict[str, Any], name: str, height: int, width: int, limits: Pixels
) -> None:
    family, processor = FAMILIES[name], processors[name].image_processor
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="narrow"):
            family.image(height, width, limits)
        return
    size = _size(family, limits)
    patches = processor.get_number_of_image_patches(
        height, width, {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    )
    assert tokens_of(family.image(height, width, limits)) == (patches // 4, 0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(height=st.integers(8, 1200), width=st.integers(8, 1200), frames=st.integers(1, 40), limits=limits())
def test_a_clip_takes_as_many_tokens_as_the_processor_makes(
    processors: dict[str, Any], name: str, height: int, width: int, frames: int, limits: Pixels
) -> None:
    family, processor = FAMILIES[name], processors[name].video_processor
    even = frames + frames % 2
    size = _size(family, limits, even if name == "qwen3_vl" else 1)
    patches = processor.get_num_of_video_patches(even, height, width, {"size": size})
    made = family.video(height, width, [n / 2 for n in range(frames)], 2.0, None, limits)
    assert tokens_of(made) == (patches // 4, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(20, 300), (113, 57), (224, 224), (336, 190)])
def test_real_pixels_agree_with_the_rule(processors: dict[str, Any], name: str, height: int, width: int) -> None:
    family, processor, free = FAMILIES[name], processors[name], Pixels()
    image = np.zeros((height, width, 3), np.uint8)
    made = processor.image_processor(images=[image], size=_size(family, free), input_data_format="channels_last")
    assert math.prod(made["image_grid_thw"][0]) // 4 == tokens_of(family.image(height, width, free))[0]
    clip = processor.video_processor(
        videos=[np.stack([image] * 4)], size=_size(family, free, 4), do_sample_frames=False
    )
    assert (
        math.prod(clip["video_grid_thw"][0]) // 4
        == tokens_of(family.video(height, width, [0, 1, 2, 3], 1.0, None, free))[0]
    )


@pytest.mark.parametrize("name", HEARING)
@settings(max_examples=60, deadline=None)
@given(samples=st.integers(MIN_SOUND, 30 * SAMPLE_RATE))
def test_a_sound_takes_as_many_tokens_as_the_processor_makes(
    processors: dict[str, Any], name: str, samples: int
) -> None:
    assert FAMILIES[name].audio_tokens(samples) == processors[name]._get_num_audio_tokens(samples)


@pytest.mark.parametrize("name", HEARING)
@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 30), fps=FPS, seconds=st.floats(0.1, 25.0), side=st.sampled_from([32, 64, 96]))
def test_sound_is_woven_into_a_clip_as_the_processor_does(
    processors: dict[str, Any], name: str, frames: int, fps: float, seconds: float, side: int
) -> None:
    family, processor = FAMILIES[name], processors[name]
    samples = round(seconds * SAMPLE_RATE)
    pieces = family.video(side, side, [n / fps for n in range(frames)], fps, samples, Pixels())
    written = "".join(
        piece if isinstance(piece, str) else family.marks.of(piece.kind) * piece.tokens for piece in pieces
    )
    grid = np.array(
        [-(-frames // 2), *(2 * length // family.factor for length in family.frame_size(side, side, Pixels()))]
    )
    timing = {"position_id_per_seconds": family.positions_per_s, "seconds_per_chunk": family.chunk_s}
    video = {"video_grid_thw": [grid], "video_second_per_grid": [2 / fps]}
    expected = processor.replace_video_with_audio_token(
        video, 0, {"num_audio_tokens": [family.audio_tokens(samples)]}, 0, **timing
    )
    assert written == family.marks.vision_start + expected + family.marks.vision_end


@settings(max_examples=30, deadline=None)
@given(start=st.floats(0, 7000), frames=st.integers(1, 12), fps=FPS)
def test_frames_of_a_timed_clip_keep_their_times(
    processors: dict[str, Any], start: float, frames: int, fps: float
) -> None:
    times = [start + n / fps for n in range(frames)]
    pieces = FAMILIES["qwen3_vl"].video(64, 64, times, fps, None, Pixels())
    expected = processors["qwen3_vl"]._calculate_timestamps([*times], 1.0)
    assert [piece for piece in pieces if isinstance(piece, str) and "seconds" in piece] == [
        f"<{time:.1f} seconds>" for time in expected
    ]
    assert len([piece for piece in pieces if isinstance(piece, Placeholders)]) == len(expected)


def test_what_each_family_perceives() -> None:
    assert {name for name, family in FAMILIES.items() if family.hears} == {
        "qwen2_5_omni",
        "qwen2_5_omni_thinker",
        "qwen3_omni_moe",
        "qwen3_omni_moe_thinker",
    }
    assert (
        family_of("qwen3_vl").modalities == EVERY_MODALITY - {"audio"}
        and family_of("qwen2_5_omni").modalities == EVERY_MODALITY
    )
    deaf = FAMILIES["qwen2_5_vl"].video(64, 64, [0.0, 0.5], 2.0, SAMPLE_RATE, Pixels())
    assert tokens_of(deaf)[1] == 0
    with pytest.raises(ValueError, match=r"'llama'.*Qwen2\.5-VL"):
        family_of("llama")


def test_a_very_short_sound_still_stands_for_a_token() -> None:
    for name in HEARING:
        assert FAMILIES[name].audio_tokens(1) == FAMILIES[name].audio_tokens(MIN_SOUND) > 0
    assert (
        FAMILIES["qwen2_5_omni"].audio_tokens(HOP * 100) == 25
        and FAMILIES["qwen3_omni_moe"].audio_tokens(HOP * 100) == 13
    )


def test_the_tiny_models_are_what_they_say(tiny: Callable[[str], Path]) -> None:
    from tiny_models import FAMILIES as TINY

    types = {name: json.loads((tiny(name) / "config.json").read_text())["model_type"] for name in TINY}
    assert set(types.values()) == set(FAMILIES) - {"qwen3_vl_moe"}  # the same code as Qwen3-VL with other layers
