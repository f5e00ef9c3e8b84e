"""Random models of the published 7B configurations, and processors made without the hub, for timing without weights.

Shapes, special tokens and their ids are the published ones, so a pass costs what it costs with the real weights. The
vocabulary has the published size, but only words that a benchmark writes are learnt; the rest is filled up. Words are
split before that as Qwen2 splits them, so that digits are single tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

MODELS = {"qwen2_5_vl": "Qwen2.5-VL-7B", "qwen2_5_omni": "Qwen2.5-Omni-7B, thinker"}

PARAMETERS = {"qwen2_5_vl": 8_292_166_656, "qwen2_5_omni": 8_931_813_888}
"""Of the VL model: half the bytes of Qwen/Qwen2.5-VL-7B-Instruct (`total_size` 16,584,333,312 in
`model.safetensors.index.json`, 16 bits a weight). Of the Thinker: our own count with transformers 5.24, no published
one."""

TEXT: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
"""`text_config` of both; Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen2.5-Omni-7B, `config.json`."""

VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
"""`vision_config` of both."""

AUDIO: dict[str, Any] = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "n_window": 100,
    "output_dim": 3584,
}
"""`audio_config` of the Thinker."""

POSITIONS = {"qwen2_5_vl": 128_000, "qwen2_5_omni": 32_768}
"""`max_position_embeddings`."""

SMALL_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_window_layers": 2,
}
SMALL_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 128,
    "fullatt_block_indexes": [1],
}
SMALL_AUDIO = {
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "output_dim": 128,
}

FIRST_SPECIAL = 151_643
SPECIAL = {
    "qwen2_5_vl": (
        "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
        "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
    ),
    "qwen2_5_omni": (
        "<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|box_end|> <|quad_start|> "
        "<|quad_end|> <|vision_bos|> <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
    ),
}
"""Special tokens in the order of their ids, from `FIRST_SPECIAL` on (`tokenizer_config.json`)."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer splits text before it merges (`tokenizer.json`)."""


def random_model(name: str, device: str, small: bool = False) -> Any:
    """A random model in bfloat16 with sdpa attention, made on its device: no copy in float32, none on the CPU.

    Args:
        name: One of `MODELS`.
        device: Torch device; `meta` makes the shapes alone.
        small: Two layers 128 wide, with the same vocabulary and special tokens.
    """
    import torch
    import transformers

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    config = configuration(name, small)
    config._attn_implementation = "sdpa"
    kind = {
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    }[name]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = getattr(transformers, kind)(config)
    finally:
        torch.set_default_dtype(before)
    ids = special_ids(name)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model.eval().requires_grad_(False)


def configuration(name: str, small: bool = False) -> Any:
    """The published configuration, or the small one."""
    import transformers

    ids = special_ids(name)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6] if small else [16, 24, 24]}
    text = TEXT | (SMALL_TEXT if small else {}) | {"rope_parameters": rope, "max_position_embeddings": POSITIONS[name]}
    vision = VISION | (SMALL_VISION if small else {})
    text |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision | {"tokens_per_second": 2},
            tie_word_embeddings=False,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    return transformers.Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config=vision,
        audio_config=AUDIO | (SMALL_AUDIO if small else {}),
        tie_word_embeddings=False,
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        audio_token_index=ids["<|AUDIO|>"],
        image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
    )


def special_ids(name: str) -> dict[str, int]:
    """The published id of each special token."""
    return {token: FIRST_SPECIAL + n for n, token in enumerate(SPECIAL[name].split())}


def processor_of(name: str, texts: Iterable[str]) -> Any:
    """A processor with a tokenizer of the published size that knows every word of these texts.

    Args:
        name: One of `MODELS`.
        texts: What will be written; a word of them is one token, another one is a token a byte at worst.
    """
    import transformers
    from tiny_models import OMNI_2_5, template
    from tiny_models import VISION as VL_MARKS

    sizes = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 4 * 784, "longest_edge": 16_384 * 784},
    }
    images = transformers.Qwen2VLImageProcessor(**sizes)
    videos = transformers.Qwen2VLVideoProcessor(**sizes)
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLProcessor(
            image_processor=images,
            tokenizer=_tokenizer(name, texts, {}),
            video_processor=videos,
            chat_template=template(VL_MARKS, None),  # type: ignore[arg-type]
        )
    keys = ("vision_bos", "vision_eos", "image", "video", "audio_bos", "audio_eos", "audio")
    features = transformers.WhisperFeatureExtractor(
        feature_size=128, sampling_rate=16_000, hop_length=160, chunk_length=300, n_fft=400, return_attention_mask=True
    )
    return transformers.Qwen2_5OmniProcessor(
        image_processor=images,
        video_processor=videos,
        feature_extractor=features,
        tokenizer=_tokenizer(name, texts, {f"{key}_token": mark for key, mark in zip(keys, OMNI_2_5, strict=True)}),
        chat_template=template(OMNI_2_5[:4], OMNI_2_5[4:]),  # type: ignore[arg-type]
    )


def _tokenizer(name: str, texts: Iterable[str], names: dict[str, str]) -> Any:
    """Byte pairs learnt from these texts, filled up to the published number of tokens."""
    import json

    import transformers
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learnt.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=20_000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    learnt.train_from_iterator(texts, trainer)
    written = json.loads(learnt.to_str())
    known = written["model"]["vocab"]
    known |= {f"Filler{number}": number for number in range(len(known), FIRST_SPECIAL)}
    full = Tokenizer.from_str(json.dumps(written))
    full.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[name].split()])
    wrong = [token for token, number in special_ids(name).items() if full.token_to_id(token) != number]
    if wrong:
        raise RuntimeError(f"the tokenizer gives {wrong[0]} the id {full.token_to_id(wrong[0])}, not the published one")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=full,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=131_072,
        extra_special_tokens=names,
    )
