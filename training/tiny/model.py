"""A small Qwen2.5-Omni Thinker with a tokenizer of its own: an ordinary folder of transformers.

    make_model("start", texts=some_prompts_and_turns, words=("get_frames", '{"observation": "'))

A frame of `EDGE` pixels is one visual token: 4x4 patches of 14 pixels, merged 4x4, so that the merger's own layers see
the whole picture. Sound goes through one log-mel tower. The tokenizer is a byte-level BPE that is trained on `texts`;
`words` are fixed strings of the wire format, which become one token each after training. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.errors import require

EDGE = 56
"""Height and width of a frame in pixels."""

PATCH, MERGE = 14, 4
"""Pixels of a patch's side, and patches of a visual token's side."""

HOP = 640
"""Samples between two columns of a sound's spectrum; four columns are one token, so that a second has 6.25."""

VOCABULARY = 700
"""Entries of the tokenizer before the fixed strings are added."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SEEN = ("<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>")
HEARD = ("<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")

WORD = r"\n[A-D]\.| ?[a-zA-Z]+|\d\d|\d|\n|[^\w\s]+?"
"""What the tokenizer may merge: a word with the blank before it, an option's letter, two digits, one other sign."""


@dataclass(frozen=True)
class Size:
    """Widths and depths of the three parts."""

    hidden: int = 128
    """Width of the language model; a multiple of 16 times the heads."""
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    inner: int = 256
    """Width of the language model's MLPs."""
    vision_hidden: int = 64
    vision_layers: int = 1
    audio_hidden: int = 64
    audio_layers: int = 2
    mel_bins: int = 32
    context: int = 8192
    """Positions."""


def make_tokenizer(texts: Iterable[str], words: Sequence[str] = ()) -> Any:
    """Train a tokenizer.

    Args:
        texts: Prompts and turns, as the model will see them.
        words: Strings that are one token each, the longest first where one is part of another.

    Returns:
        A `PreTrainedTokenizerFast` with the names that the processor of Qwen2.5-Omni asks for.
    """
    require("transformers", "train")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    special = [*SPECIAL, *SEEN, *HEARD]
    # Where a fixed string is one token, its letters teach nothing.
    cut = re.compile("|".join(re.escape(word) for word in sorted([*words, *special], key=len, reverse=True)))
    made.train_from_iterator(
        (cut.sub("\n", text) for text in texts),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=2,
            show_progress=False,
        ),
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in dict.fromkeys(words)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=Size().context,
        extra_special_tokens={
            "image_token": "<|IMAGE|>",
            "audio_token": "<|AUDIO|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
    )


def make_model(
    folder: str | Path, texts: Iterable[str], words: Sequence[str] = (), *, size: Size | None = None, seed: int = 0
) -> Path:
    """Write a model with random weights: configuration, weights, tokenizer, processor.

    Args:
        folder: The folder, which is made.
        texts: See `make_tokenizer`.
        words: See `make_tokenizer`.
        size: Its widths and depths.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    for module in ("torch", "torchvision", "transformers"):
        require(module, "train")
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    tokenizer = make_tokenizer(texts, words)
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(_config(tokenizer, size or Size()))
    torch.random.set_rng_state(before)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    _processor(tokenizer, size or Size()).save_pretrained(path)
    return path


def _config(tokenizer: Any, size: Size) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    ids = tokenizer.convert_tokens_to_ids
    half = size.hidden // size.heads // 2
    side = half * 3 // 8
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer) + -len(tokenizer) % 16,
            "hidden_size": size.hidden,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": size.context,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [half - 2 * side, side, side],
                "rope_theta": 10_000.0,
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": EDGE,
            "fullatt_block_indexes": list(range(size.vision_layers)),
            "out_hidden_size": size.hidden,
        },
        audio_config={
            "num_mel_bins": size.mel_bins,
            "encoder_layers": size.audio_layers,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * size.audio_hidden,
            "d_model": size.audio_hidden,
            "max_source_positions": 1500,
            "n_window": 50,
            "output_dim": size.hidden,
        },
        image_token_index=ids("<|IMAGE|>"),
        video_token_index=ids("<|VIDEO|>"),
        audio_token_index=ids("<|AUDIO|>"),
        audio_start_token_id=ids("<|audio_bos|>"),
        audio_end_token_id=ids("<|audio_eos|>"),
        vision_start_token_id=ids("<|vision_bos|>"),
        vision_end_token_id=ids("<|vision_eos|>"),
        user_token_id=ids("<|im_start|>"),
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        tie_word_embeddings=True,
    )


def _processor(tokenizer: Any, size: Size) -> Any:
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    pictures: dict[str, Any] = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "size": {"shortest_edge": EDGE**2, "longest_edge": (8 * EDGE) ** 2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**pictures),
        video_processor=Qwen2VLVideoProcessor(**pictures),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=size.mel_bins,
            sampling_rate=16_000,
            hop_length=HOP,
            chunk_length=300,
            n_fft=1024,
            return_attention_mask=True,
        ),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE,
    )


_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as Qwen2.5-Omni's own template writes it for text, pictures, clips and sound."""
