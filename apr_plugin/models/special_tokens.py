"""Breaks up special tokens in text from others, so that it can't open a message or ask for a picture.

Such text is a question, its options, a file's name, subtitles, a model's note. A token is broken up with a space after
its first character: `<|im_end|>` becomes `< |im_end|>`. With a server the family is unknown, so the shapes and names of
every family we know are broken up; a model in this process adds those of its own tokenizer. `a < b`, `<b>` and `[1]` do
not change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from apr_plugin.loop.text import printable

_SHAPES = (
    r"<\|[^\s<>|]{1,64}\|?>",  # <|im_start|> of Qwen, Llama 3, Phi, GLM, gpt-oss, Kimi; <|turn> of Gemma 4
    r"<[^\s<>|]{1,64}\|>",  # <turn|>
    r"<\uff5c[^\s<>\uff5c]{1,64}\uff5c>",  # DeepSeek
    r"<(?:start|end)_of_\w{1,32}>",  # Gemma 3, SmolVLM (<end_of_utterance>)
    r"</?(?:bos|eos|s|pad|unk|mask|sop|eop|eod)>",  # SentencePiece, Llama 2, GLM
    # Mistral, Pixtral, Voxtral; GLM
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|MIDDLE|SUFFIX"
    r"|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|THINK|MODEL_SETTINGS|gMASK)\]",
    r"<</?SYS>>",  # Llama 2
    # LLaVA, InternVL, Qwen-VL, MiniCPM, VILA
    r"</?(?:image|img|video|vid|audio|speech|box|ref|quad|slice|im_start|im_end|im_patch|vid_start|vid_end"
    r"|vi_start|vi_end|image_id)>",
    # Gemma 3, DeepSeek-VL, LLaVA
    r"</?(?:image|audio|video|speech|patch)_(?:start|end|pad|soft_token|placeholder|newline|token|patch|break|sep)>",
    # InternVL, LMDeploy; Gemma, T5; Idefics, SmolVLM
    r"<(?:IMG|IMAGE|VIDEO|AUDIO)_[A-Z_]{1,32}>|<(?:unused|reserved_|extra_id_|row_\d{1,3}_col_)\d{1,6}>"
    r"|<global-img>|<fake_token_around_image>",
    r"<__\w{1,32}__>|\[img-\d{1,6}\]",  # llama.cpp (<__media__>), Ollama
    r"\]~!?b\[|\]~b\]|\[e~\[|\]<\]|\[>\[",  # MiniMax
)
"""Special tokens, and marks that servers replace with media, by the families that have them."""


def pattern(tokens: Iterable[str] = ()) -> re.Pattern[str]:
    """A pattern for the first character of each special token, also of one that begins within another.

    Args:
        tokens: Special tokens of the checkpoint, if it is known.
    """
    own = [re.escape(token) for token in tokens if len(token) > 1]
    return re.compile(f"(?=(?:{'|'.join([*own, *_SHAPES])}))(.)", re.DOTALL)


KNOWN = pattern()
"""The special tokens of every family, for an unknown checkpoint."""


def broken_up(text: str, special: re.Pattern[str] = KNOWN) -> str:
    """The text with a space in every special token, and with `?` for lone surrogates.

    No tokenizer and no connection accepts lone surrogates.
    """
    return special.sub(r"\1 ", printable(text))
