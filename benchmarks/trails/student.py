"""A student for trails: a Qwen2.5-VL of about half a million weights, to whom a frame is one token.

The fixed words of a turn and of a prompt are one token each, so a turn has about ten tokens, and the prompt of the
last turn under a hundred. Everything else is bytes, so nothing is unreadable.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from tiny_models import SPECIAL, VISION, template

from .films import COLOURS, SCENE_S, SCENES, SIDE, TEXT, letter

HIDDEN, HEADS, LAYERS = 64, 2, 2
SPREAD = 0.08
"""Standard deviation of the first weights. With transformers' 0.02, which suits wide models, a narrow one learns
nothing at first."""

INSTRUCTIONS = "Look, then answer."
TURNS = 5
"""Of an episode: one more than a trail needs."""


def fixed_words() -> list[str]:
    """The parts of prompts and turns that are one token each."""
    asked = "".join(f"{letter(colour)}. {colour}\n" for colour in COLOURS)
    meta = f"Video META:\n- duration_seconds: {SCENES * SCENE_S}.00\n- fps: 2.00\n\nQuestion: {TEXT}\nOptions:\n{asked}"
    times = [scene * SCENE_S for scene in range(SCENES + 1)]
    act = '", "confidence": 0.5, "action": {"type": '
    return [
        INSTRUCTIONS,
        meta + "The answer is the label of one option: A, B, C, D, E.",
        '{"observation": "',
        '", "think": "',
        f'{act}"get_frames", "start": ',
        ', "end": ',
        ', "num": 1}}',
        f'{act}"answer", "content": "',
        '"}}',
        *COLOURS,
        *("none", "begin", "go on", "answer"),
        *("system\n", "user\n", "assistant\n"),
        *(f"{time}.00s" for time in times),
        *(f"{time}.0" for time in times),
        *("Frame at ", "\nFrame ", " (num=1).", " Timestamps: [", "] [MEDIA OMITTED - Refer to your Observation]"),
        *map(_notice, range(1, TURNS)),
        f"\n[NOTICE] Step {TURNS}/{TURNS}. FINAL STEP: only an answer counts now. "
        "Give the best answer that your notes allow.",
    ]


def _notice(turn: int) -> str:
    left = TURNS - turn
    return f"\n[NOTICE] Step {turn}/{TURNS}. {left} step{'' if left == 1 else 's'} remaining."


def make_tokenizer() -> Any:
    """Bytes, special tokens and `fixed_words`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL + VISION])
    made.add_tokens([AddedToken(words, special=False, normalized=False) for words in fixed_words()])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
    )


def save_student(folder: Path, *, seed: int = 0) -> Path:
    """Save a random student with its processor.

    Args:
        folder: The folder, which is created.
        seed: Of the weights.
    """
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": SIDE // 14}
    sizes["size"] = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + -len(tokenizer) % 16,
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 4096,
            "initializer_range": SPREAD,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 1,
            "patch_size": 14,
            "spatial_merge_size": SIDE // 14,
            "temporal_patch_size": 2,
            "window_size": SIDE,
            "fullatt_block_indexes": [0],
            "out_hidden_size": HIDDEN,
            "initializer_range": SPREAD,
            "tokens_per_second": 2,
        },
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval().save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=template(VISION, None),
    ).save_pretrained(folder)
    return folder
