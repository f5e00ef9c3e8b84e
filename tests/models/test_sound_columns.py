"""A checkpoint whose feature extractor has columns of another length: its sounds are laid out as its processor does.

The reference is its own processor in transformers, loaded from the same folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conformance import after
from real_processor import real

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from apr_plugin.models.checkpoint import load_checkpoint  # noqa: E402 - after the libraries it needs
from apr_plugin.models.families import FAMILIES  # noqa: E402
from apr_plugin.models.prompt import PromptEncoder  # noqa: E402
from apr_plugin.policies.vllm.prompt import VllmPrompts  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

LONG_S = 41.003
"""Longer than the 30 s of released checkpoints."""

FolderOf = Callable[[int, int], Path]


@pytest.fixture(scope="module")
def folder_of(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """A folder of Qwen2.5-Omni whose feature extractor has this hop and takes so many seconds."""
    made: dict[tuple[int, int], Path] = {}

    def make(hop: int, longest_s: int) -> Path:
        if (hop, longest_s) not in made:
            folder = tmp_path_factory.mktemp("heard") / f"{hop}-{longest_s}"
            shutil.copytree(tiny("qwen2_5_omni"), folder)
            processor = transformers.AutoProcessor.from_pretrained(folder)
            processor.feature_extractor = transformers.WhisperFeatureExtractor(
                feature_size=16,
                sampling_rate=16_000,
                hop_length=hop,
                chunk_length=longest_s,
                n_fft=1024 if hop > 400 else 400,
                return_attention_mask=True,
            )
            processor.save_pretrained(folder)
            made[hop, longest_s] = folder
        return made[hop, longest_s]

    return make


def same(encoder: PromptEncoder, reference: PromptEncoder, prompt: Any) -> int:
    """Compare tokens and spectrogram; return the sound's tokens."""
    encoded, expected = encoder.encode(prompt), real(reference, prompt)
    assert encoded.ids.tolist() == expected["input_ids"][0].tolist()
    valid = expected["feature_attention_mask"][0].bool()
    (heard,) = [medium.mel for medium in encoded.media if medium.mel is not None]
    wanted = expected["input_features"][0][:, valid]
    np.testing.assert_allclose(heard, wanted, atol=1e-6)
    assert encoder.count(prompt) == encoded.size
    return encoded.size.audio


@pytest.mark.parametrize("hop", [160, 640])
def test_sounds_are_as_long_as_the_checkpoints_own_processor_makes_them(folder_of: FolderOf, hop: int) -> None:
    """With columns of 10 and of 40 ms, up to the 300 s that its extractor takes, alone and within a clip."""
    folder = str(folder_of(hop, 300))
    student = Student.from_pretrained(folder)
    assert student.family.hop == hop
    counted = [same(student.encoder, student.encoder, after("audio", seconds=s)) for s in (0.1, 1.987, LONG_S, 300.0)]
    assert counted[2] == {160: 1025, 640: 256}[hop] and counted[3] == {160: 7500, 640: 1875}[hop]
    clip = after("clip", frames=8, seconds=4.0)
    assert same(student.encoder, student.encoder, clip) == {160: 100, 640: 25}[hop]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    prompts = VllmPrompts(processor, student.family)
    assert prompts.count(after("audio", seconds=LONG_S)).audio == counted[2]


@pytest.mark.parametrize("hop", [160, 640])
def test_what_the_extractor_would_cut_off_is_laid_out_whole(folder_of: FolderOf, hop: int) -> None:
    """An extractor of 30 s gives for a longer sound what one of 300 s gives."""
    short = Student.from_pretrained(str(folder_of(hop, 30))).encoder
    whole = Student.from_pretrained(str(folder_of(hop, 300))).encoder
    assert same(short, whole, after("audio", seconds=LONG_S)) > 250


def test_a_forward_takes_as_many_tokens_as_were_laid_out(folder_of: FolderOf) -> None:
    """The model's own audio tower makes them; transformers refuses another number."""
    checkpoint = load_checkpoint(str(folder_of(640, 300)), device="cpu", dtype="float32")
    student = Student.of(checkpoint)
    for seconds in (0.02, 0.1, 7.3):
        encoded = student.encoder.encode(after("audio", seconds=seconds))
        given = {"input_ids": torch.from_numpy(encoded.ids)[None]} | checkpoint.arguments(encoded.media)
        out = checkpoint.model(**given).logits
        assert out.shape[1] == len(encoded.ids) and encoded.size.audio > 0 and bool(torch.isfinite(out).all())


def test_coarse_columns_still_make_a_token_of_a_short_sound(folder_of: FolderOf) -> None:
    student = Student.from_pretrained(str(folder_of(1600, 300)))
    assert student.family.least_sound == 3201 and student.family.audio_tokens(1) == 1
    assert same(student.encoder, student.encoder, after("audio", seconds=0.21)) == 1
    assert FAMILIES["qwen2_5_omni"].least_sound == 1600


def test_the_columns_of_each_hearing_family_are_read(tiny: Callable[[str], Path]) -> None:
    for name in ("qwen2_5_omni_full", "qwen3_omni_moe"):
        assert Student.from_pretrained(str(tiny(name))).family.hop == 160


def test_the_students_digest_tells_columns_apart(folder_of: FolderOf, tiny: Callable[[str], Path]) -> None:
    usual = Student.from_pretrained(str(tiny("qwen2_5_omni"))).digest
    assert Student.from_pretrained(str(folder_of(160, 300))).digest == usual
    assert Student.from_pretrained(str(folder_of(640, 300))).digest != usual


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_samples": 480_001}, "whole columns of 160"),
        ({"sampling_rate": 24_000}, "24000 samples per second"),
        ({"hop_length": None}, "no feature extractor"),
    ],
)
def test_an_extractor_that_cannot_be_followed_is_refused(wrong: dict[str, Any], said: str) -> None:
    eye = SimpleNamespace(patch_size=14, merge_size=2, temporal_patch_size=2)
    fine = {"hop_length": 160, "n_samples": 480_000, "sampling_rate": 16_000}
    family = FAMILIES["qwen2_5_omni"]

    def processor(**ear: Any) -> Any:
        return SimpleNamespace(image_processor=eye, video_processor=eye, feature_extractor=SimpleNamespace(**ear))

    assert family.checked(processor(**fine)) == family
    with pytest.raises(ValueError, match=said):
        family.checked(processor(**fine | wrong))
