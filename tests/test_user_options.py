"""The same word means the same for every policy and every setting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, one_tls_context  # noqa: F401 - a fixture

from apr_plugin import options
from apr_plugin.errors import AprError
from apr_plugin.policies.openai import OpenAIPolicy
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.settings import read_settings

FLAGS = {word: True for word in ("true", "True", "TRUE", "yes", "Yes", "on", "1", " yes ")}
FLAGS |= {word: False for word in ("false", "False", "no", "NO", "off", "0")}
NO_FLAGS = ("maybe", "2", "-1", "", "none", "10", "truee", "nan")
WHOLE = {"8": 8, "8.0": 8, "8e0": 8, " 8 ": 8, "none": None, "None": None}
NO_WHOLE = ("8.5", "many", "nan", "inf", "true", "", "-8", "0", "1e400", "[8]")


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(context_tokens=None) as running:
        yield running


def _from_text(text: str) -> Any:
    """A value as a harness passes it."""
    return parse_model_args(f"key={text}")["key"] if text.strip() else text


@pytest.mark.parametrize("word", [*FLAGS, *NO_FLAGS])
def test_true_and_false(word: str, server: ChatServer, tmp_path: Path) -> None:
    readers = {
        "options": lambda value: options.flag("audio", value),
        "openai": lambda value: "audio" in OpenAIPolicy(base_url=server.url, audio=value).modalities,
        "settings": lambda value: (
            read_settings({"policy": "guess", "refuse_blind_answer": value}).config.budget.refuse_blind_answer
        ),
    }
    for name, read in readers.items():
        for value in (word, _from_text(word)):
            if word in FLAGS:
                assert read(value) is FLAGS[word], name
            else:
                with pytest.raises((AprError, ValueError)):
                    read(value)


@pytest.mark.parametrize("word", [*WHOLE, *NO_WHOLE])
def test_whole_numbers_and_none(word: str, server: ChatServer) -> None:
    def optional(value: Any) -> int | None:
        return None if options.given(value) is None else options.whole("context_tokens", value, 1)

    readers = {
        "options": optional,
        "openai": lambda value: OpenAIPolicy(base_url=server.url, context_tokens=value).context_tokens,
        "settings": lambda value: (
            read_settings(
                {"policy": "guess", "visual_tokens_per_episode": value}
            ).config.budget.visual_tokens_per_episode
        ),
    }
    for name, read in readers.items():
        for value in (word, _from_text(word)):
            if word in WHOLE:
                assert read(value) == WHOLE[word], name
            else:
                with pytest.raises((AprError, ValueError)):
                    read(value)


def test_numbers() -> None:
    assert [options.number("x", value, 0) for value in ("0.5", 0.5, "5e-1", 1)] == [0.5, 0.5, 0.5, 1.0]
    for value in ("nan", math.inf, "", True, None, 0, "0", "half"):
        with pytest.raises(ValueError, match="timeout_s must be a number of seconds above 0 and at most 9, not"):
            options.number("timeout_s", value, 0, 9, unit="seconds")
    assert options.whole("x", "9007199254740993", 0) == 2**53 + 1, "no float holds it"
    assert math.isnan(options.as_number(10**5000)) and math.isnan(options.as_whole("1.5"))


def test_objects_and_lists() -> None:
    for value in ('{"a": {"b": 1}}', {"a": {"b": 1}}):
        assert options.json_object("x", value) == {"a": {"b": 1}}
    assert options.json_object("x", None) == options.json_object("x", "none") == options.json_object("x", "{}") == {}
    for value in ("{", "[1]", "a", 3, "[" * 100_000):
        with pytest.raises(ValueError, match="x must be a JSON object"):
            options.json_object("x", value)
    for value in ("a;b", "[a,b]", "a|b", " a b ", ["a", "b"], ("a", "b")):
        assert options.words(value) == ["a", "b"]
    assert options.words("") == options.words(None) == []
    assert options.one_of("x", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="x must be a, b or c, not 'd'"):
        options.one_of("x", "d", ("a", "b", "c"))
