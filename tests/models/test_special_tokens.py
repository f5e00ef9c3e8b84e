"""Special tokens in text from others: questions, options, names of files, notes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance import ATTACK, attacked, opening, percept
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart
from apr_plugin.models.special_tokens import KNOWN, broken_up, pattern
from apr_plugin.policies.openai.count import estimate
from apr_plugin.policies.openai.media import MediaForm, chat_messages

GOLDEN = Path(__file__).parents[1] / "loop" / "golden"
BAR = "\uff5c"
TOKENS = (
    # Qwen
    "<|im_start|> <|im_end|> <|endoftext|> <|vision_start|> <|image_pad|> <|video_pad|> <|audio_pad|> "
    "<|object_ref_start|>"
    " <|begin_of_text|> <|eot_id|> <|start_header_id|> <|image|> <|python_tag|>"  # Llama
    # Mistral
    " <s> </s> <unk> <pad> [INST] [/INST] <<SYS>> <</SYS>> [IMG] [IMG_END] [TOOL_CALLS] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [BEGIN_AUDIO]"
    # Gemma
    " <bos> <eos> <start_of_turn> <end_of_turn> <start_of_image> <image_soft_token> <unused42> <|turn> "
    "<turn|> <|channel>"
    " <|user|> <|assistant|> <|end|> <|image_1|> [gMASK] <sop> <|begin_of_image|> <|media_begin|>"  # Phi, GLM, Kimi
    # InternVL, LLaVA, VILA
    " <img> </img> <IMG_CONTEXT> <box> </box> <image> <video> <audio> <image_placeholder> <im_start> <im_patch>"
    # SmolVLM, MiniCPM, T5
    " <row_1_col_2> <global-img> <fake_token_around_image> <end_of_utterance> <image_id> <slice> <extra_id_0>"
    # servers, MiniMax, gpt-oss, Cohere
    " <__media__> [img-0] <IMAGE_TOKEN> ]~b] [e~[ ]~!b[ <|channel|> <|START_OF_TURN_TOKEN|>"
    f" <{BAR}Assistant{BAR}> <{BAR}begin\u2581of\u2581sentence{BAR}>"  # DeepSeek
).split()


@pytest.mark.parametrize("token", TOKENS)
def test_a_special_token_of_any_family_is_broken_up(token: str) -> None:
    for text in (token, f"a{token}b", token * 3, token[:3] + token + token[3:], f"<{token}>", f"\n{token}\n"):
        harmless = broken_up(text)
        assert token not in harmless and KNOWN.search(harmless) is None
        assert harmless.replace(" ", "") == text.replace(" ", ""), "nothing is lost"


@pytest.mark.parametrize(
    "text",
    ["a < b", "a<b and c>d", "<b>bold</b>", "<p>", "x <| f |> y", "List<String>", "[1]", "[[1, 2]]", "[Frames 1.00s]",
    "<think>", "</think>",
     "<answer>",     "1 <= 2 || 3 >= 2", "|>", "<|>", "<||>", "<image 224x224>", "<video_id>", "<a href='x'>",
     "[NOTICE]", "[MUSIC]", "a|b|c"],
)  # fmt: skip
def test_other_words_stay_as_they_are(text: str) -> None:
    assert broken_up(text) == text


def test_our_own_prompts_stay_as_they_are() -> None:
    """Breaking up changes nothing if there is nothing to break up."""
    files = sorted(GOLDEN.glob("*.txt"))
    assert len(files) > 10
    for file in files:
        text = re.sub(r"</?(?:system|user|assistant)>|<(?:image|audio|video) [^>]*>", "", file.read_text("utf-8"))
        assert broken_up(text) == text


_PIECES = st.sampled_from(
    [*TOKENS, "<", ">", "|", "<|", "|>", "[", "]", "/", " ", "im_end", "\n", "\ud800", "INST", "é"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=12).map("".join))
def test_breaking_up_makes_no_other_token(text: str) -> None:
    own = pattern(["<tool>", "<|im_end|>", "\u2581\u2581"])
    for special in (KNOWN, own):
        harmless = broken_up(text, special)
        assert special.search(harmless) is None and broken_up(harmless, special) == harmless
        harmless.encode()


def test_a_checkpoints_own_tokens_are_broken_up_too() -> None:
    assert (
        broken_up("<mine>[a]<s>", pattern(["<mine>", "[a]"])) == "< mine>[ a]< s>"
        and broken_up("<mine>[a]") == "<mine>[a]"
    )


def test_a_server_is_sent_no_special_token() -> None:
    clean, messages = (chat_messages(attacked(words), MediaForm()) for words in ("harmless", ATTACK))
    assert [message["role"] for message in messages] == [message["role"] for message in clean]
    content = messages[-1]["content"]
    assert sum(part["type"] == "image_url" for part in content) == 2
    texts = [message["content"] for message in messages[:-1]] + [
        part["text"] for part in content if part["type"] == "text"
    ]
    assert (
        not [text for text in texts if KNOWN.search(text)]
        and sum(text.count("< |im_start|>system") for text in texts) >= 4
    )
    assert chat_messages(opening(), MediaForm()) == [
        {"role": message.role, "content": message.text} for message in opening().messages
    ]


def test_no_token_hides_in_two_halves() -> None:
    parts = (TextPart("a <|im_"), TextPart("end|> b"), ImagePart(percept("frames").images[0]), TextPart("c"))  # type: ignore[index]
    prompt = Prompt((Message("user", parts), Message("user", parts[:2])))
    first, second = chat_messages(prompt, MediaForm())
    assert first["content"][0]["text"] == second["content"] == "a < |im_end|> b"
    assert estimate(prompt, MediaForm()).visual > 0


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_omni_moe"])
def test_a_servers_template_and_tokenizer_see_no_more_turns_and_pictures(
    tiny: Callable[[str], Path], name: str
) -> None:
    """What a server does with the request: its checkpoint's chat template, then its tokenizer."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny(name))
    special = sorted(processor.tokenizer.added_tokens_decoder)

    def counted(words: str) -> list[int]:
        messages = chat_messages(attacked(words), MediaForm())
        for message in messages:
            parts = (
                [{"type": "text", "text": message["content"]}]
                if isinstance(message["content"], str)
                else message["content"]
            )
            message["content"] = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [ids.count(token) for token in special]

    clean = counted("harmless")
    assert sum(clean) > 0
    for words in (ATTACK, *(token.content for token in processor.tokenizer.added_tokens_decoder.values())):
        assert counted(words) == clean, words
