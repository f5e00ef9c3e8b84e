"""Small random models of every family, saved with tokenizer and processor for the usual `from_pretrained`.

    python tests/tiny_models.py qwen2_5_vl /tmp/tiny      # any name of FAMILIES

They write nonsense, but everything except the size is real: configuration, chat template, preprocessing, M-RoPE, and
attention heads of 32 (vLLM's CPU backend has no smaller ones, and for linear attention only 128). They have about a
million weights and a byte-level tokenizer of about 1,000 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

FAMILIES = (
    "qwen2_5_vl",
    "qwen2_5_omni",
    "qwen2_5_omni_full",
    "qwen3_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe",
    "qwen3_omni_moe_full",
)
"""The suffix for the layout of a whole checkpoint, whose weights are called `thinker.…`; without it a Thinker alone."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
OMNI_2_5 = ("<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")
OMNI_3 = (*VISION, "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>")

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 128, 4, 2, 32, 2
SPREAD = 0.15
"""Scale of the weights: wide enough that the beginning of a prompt, or of a picture, changes what is written later."""

WORDS = (
    "You answer a question about a video that you cannot see all at once. In each turn you choose one thing "
    "to look at or listen to, and you see it "
    'once. {"observation": "...", "think": "...", "confidence": 0.0, "action": {"type": "get_frames", '
    '"start": 0.0, "end": 10.0, "num": 8}} '
    '{"type": "get_audio", "start": 0.0, "end": 30.0} {"type": "get_clip", "start": 0.0, "end": 30.0} '
    '{"type": "answer", "content": "A"} '
    "Video META:\n- duration_seconds: 60.00\n- fps: 25.00\n- has_audio: true\n\nQuestion: Which of these is "
    "shown first?\nOptions:\nA. one\nB. two\n"
    "Frames 0.00s-10.00s (num=8). Timestamps: [0.00s, 1.43s] [MEDIA OMITTED - Refer to your Observation] "
    "[NOTICE] Step 1/6. 5 steps remaining. "
    "FINAL STEP: only an answer counts now. Give the best answer that your notes allow. [ERROR] a line says "
    "why an action was refused. Frame 1.25s: "
)
"""The text from which the tokenizer learns its merges, so that prompts of the loop are not one token per letter."""


def save_tiny(family: str, folder: Path | str, *, seed: int = 0, vision_edge: int = 448) -> Path:
    """Save a small random model of a family.

    Args:
        family: One of `FAMILIES`, or `qwen2_5_omni_merge4` (also with `_full`): 4 by 4 patches make a token.
        folder: The folder, which is created.
        seed: Seed of the weights.
        vision_edge: The image processor's own upper limit of a picture, as the side of a square in pixels.
    """
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    make: dict[str, Callable[[int], tuple[Any, Any]]] = {
        "qwen2_5_vl": _qwen2_5_vl,
        "qwen2_5_omni": _qwen2_5_omni,
        "qwen2_5_omni_full": lambda edge: _qwen2_5_omni(edge, full=True),
        "qwen2_5_omni_merge4": lambda edge: _qwen2_5_omni(edge, merge=4),
        "qwen2_5_omni_merge4_full": lambda edge: _qwen2_5_omni(edge, full=True, merge=4),
        "qwen3_vl": _qwen3_vl,
        "qwen3_5": _qwen3_5,
        "qwen3_5_moe": lambda edge: _qwen3_5(edge, moe=True),
        "qwen3_omni_moe": _qwen3_omni_moe,
        "qwen3_omni_moe_full": lambda edge: _qwen3_omni_moe(edge, full=True),
    }
    model, processor = make[family](vision_edge)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def template(vision: tuple[str, str, str, str], audio: tuple[str, str, str] | None, thinks: bool = False) -> str:
    """A ChatML template.

    `vision` is start, end, image and video; `audio` is start, end, sound; with `thinks` it opens a thought, unless told
    otherwise.
    """
    start, end, image, video = vision
    kinds = {"image": start + image + end, "video": start + video + end}
    if audio is not None:
        kinds["audio"] = audio[0] + audio[2] + audio[1]
    branches = "".join(
        f"{{% {'elif' if n else 'if'} part['type'] == '{kind}' %}}{text}"
        for n, (kind, text) in enumerate([*kinds.items(), ("text", "{{ part['text'] }}")])
    )
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        + branches
        + "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>assistant\n"
        + (
            "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
            if thinks
            else ""
        )
        + "{% endif %}"
    )


@cache
def _merges(special: tuple[str, ...]) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer.to_str()


def tokenizer_of(extra: tuple[str, ...], names: dict[str, str], plain: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer with the family's special tokens.

    `names` are attributes that its processor asks for, `plain` are tokens that are decoded.
    """
    import transformers
    from tokenizers import AddedToken, Tokenizer

    made = Tokenizer.from_str(_merges(SPECIAL + extra))
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    # The processors of 4.57 take no other.
    kind = "Qwen2TokenizerFast" if transformers.__version__ < "5" else "PreTrainedTokenizerFast"
    return getattr(transformers, kind)(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=32_768,
        extra_special_tokens=names,
    )


def _sizes(patch: int, edge: int, merge: int = 2) -> dict[str, Any]:
    smallest = (merge * patch) ** 2
    # Qwen3's, for pictures and clips alike.
    means: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if patch == 16 else {}
    return means | {
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": merge,
        "size": {"shortest_edge": smallest, "longest_edge": edge * edge},
    }


def _text(tokenizer: Any, section: list[int], interleaved: bool = False, **more: Any) -> dict[str, Any]:
    import transformers

    mrope = {"mrope_interleaved": True} if interleaved else {}  # transformers' default, but not vLLM's
    if transformers.__version__ < "5":  # which describes positions differently
        more |= {"rope_theta": 10_000.0, "rope_scaling": {"rope_type": "default", "mrope_section": section}}
    return {
        "vocab_size": len(tokenizer) + -len(tokenizer) % 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 32_768,
        "initializer_range": SPREAD,
        "rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 10_000.0} | mrope,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def _eye(kind: int) -> dict[str, Any]:
    common = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "spatial_merge_size": 2,
    }
    common |= {"temporal_patch_size": 2, "initializer_range": SPREAD}
    if kind == 3:
        return common | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return common | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}


def _ear(kind: int) -> dict[str, Any]:
    common = {
        "num_mel_bins": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 64,
    }
    common |= {"max_source_positions": 1500, "n_window": 50, "output_dim": HIDDEN, "initializer_range": SPREAD}
    return common | ({"n_window_infer": 400, "conv_chunksize": 500, "downsample_hidden_size": 16} if kind == 3 else {})


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}


def _finish(model: Any, tokenizer: Any) -> Any:
    config = (model.thinker if hasattr(model, "thinker") else model).generation_config
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return model


def _features() -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(
        feature_size=16, sampling_rate=16_000, hop_length=160, chunk_length=30, n_fft=400, return_attention_mask=True
    )


def _qwen2_5_vl(edge: int) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = tokenizer_of(VISION, {})
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_sizes(14, edge)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**_sizes(14, edge)),
        chat_template=template(VISION, None),
    )
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, [4, 6, 6]),
        vision_config=_eye(2) | {"tokens_per_second": 2},
        tie_word_embeddings=False,
        **_ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    return _finish(Qwen2_5_VLForConditionalGeneration(config), tokenizer), processor


def _qwen2_5_omni(edge: int, full: bool = False, merge: int = 2) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5OmniConfig,
        Qwen2_5OmniForConditionalGeneration,
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    names = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
    }
    names |= {
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokenizer = tokenizer_of(OMNI_2_5, names)
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**_sizes(14, edge, merge)),
        video_processor=Qwen2VLVideoProcessor(**_sizes(14, edge, merge)),
        feature_extractor=_features(),
        tokenizer=tokenizer,
        chat_template=template(OMNI_2_5[:4], OMNI_2_5[4:]),  # type: ignore[arg-type]
    )
    thinker = Qwen2_5OmniThinkerConfig(
        text_config=_text(tokenizer, [4, 6, 6]),
        vision_config=_eye(2) | {"spatial_merge_size": merge},
        audio_config=_ear(2),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        **_ids(
            tokenizer,
            audio_token_index="<|AUDIO|>",
            image_token_index="<|IMAGE|>",
            video_token_index="<|VIDEO|>",
            audio_start_token_id="<|audio_bos|>",
            audio_end_token_id="<|audio_eos|>",
            vision_start_token_id="<|vision_bos|>",
            vision_end_token_id="<|vision_eos|>",
            user_token_id="<|im_start|>",
        ),
    )
    if not full:
        return _finish(Qwen2_5OmniThinkerForConditionalGeneration(thinker), tokenizer), processor
    config = Qwen2_5OmniConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    config.architectures = ["Qwen2_5OmniModel"]
    return _finish(Qwen2_5OmniForConditionalGeneration(config), tokenizer), processor


def _qwen3_vl(edge: int) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = tokenizer_of(VISION, {})
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_sizes(16, edge)),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**_sizes(16, edge)),
        chat_template=template(VISION, None),
    )
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, [6, 5, 5], interleaved=True, head_dim=HEAD_DIM),
        vision_config=_eye(3),
        tie_word_embeddings=False,
        **_ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    return _finish(Qwen3VLForConditionalGeneration(config), tokenizer), processor


def _qwen3_5(edge: int, moe: bool = False) -> tuple[Any, Any]:
    """Four layers, as published: three of linear attention, one of attention."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3_5Config,
        Qwen3_5ForConditionalGeneration,
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = tokenizer_of(VISION, {}, ("<think>", "</think>"))
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_sizes(16, edge)),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**_sizes(16, edge)),
        chat_template=template(VISION, None, thinks=True),
    )
    linear = {
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    }
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }
    text = _text(tokenizer, [3, 3, 2], interleaved=True, head_dim=64, **linear, **(experts if moe else {}))
    text["rope_parameters"]["partial_rotary_factor"] = 0.25  # a quarter of each head turns: 8 pairs
    eye = {key: value for key, value in _eye(3).items() if key != "deepstack_visual_indexes"}
    ids = _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    config, model = (
        (Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration)
        if moe
        else (Qwen3_5Config, Qwen3_5ForConditionalGeneration)
    )
    given = config(text_config=text | {"num_hidden_layers": 4}, vision_config=eye, tie_word_embeddings=False, **ids)
    return _finish(model(given), tokenizer), processor


def _qwen3_omni_moe(edge: int, full: bool = False) -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3OmniMoeConfig,
        Qwen3OmniMoeForConditionalGeneration,
        Qwen3OmniMoeProcessor,
        Qwen3OmniMoeThinkerConfig,
        Qwen3OmniMoeThinkerForConditionalGeneration,
    )

    names = {
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
    }
    names |= {
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    tokenizer = tokenizer_of(OMNI_3, names)
    processor = Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessor(**_sizes(16, edge)),
        video_processor=Qwen2VLVideoProcessor(**_sizes(16, edge)),
        feature_extractor=_features(),
        tokenizer=tokenizer,
        chat_template=template(VISION, ("<|audio_start|>", "<|audio_end|>", "<|audio_pad|>")),
    )
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": HEAD_DIM}
    thinker = Qwen3OmniMoeThinkerConfig(
        text_config=_text(tokenizer, [6, 5, 5], interleaved=True, **experts),
        vision_config=_eye(3)
        # As published: transformers does without them, vLLM doesn't.
        | {
            "image_size": 128,
            "apply_vit_abs_pos_embed": True,
        },
        audio_config=_ear(3),
        position_id_per_seconds=13,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        **_ids(
            tokenizer,
            audio_token_id="<|audio_pad|>",
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            audio_start_token_id="<|audio_start|>",
            audio_end_token_id="<|audio_end|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
            user_token_id="<|im_start|>",
        ),
    )
    if not full:
        return _finish(Qwen3OmniMoeThinkerForConditionalGeneration(thinker), tokenizer), processor
    config = Qwen3OmniMoeConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    return _finish(Qwen3OmniMoeForConditionalGeneration(config), tokenizer), processor


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in FAMILIES:
        raise SystemExit(f"usage: python tests/tiny_models.py {{{','.join(FAMILIES)}}} FOLDER")
    print(save_tiny(sys.argv[1], sys.argv[2]))
