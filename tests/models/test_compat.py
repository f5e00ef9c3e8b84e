"""The differences between releases of transformers.

They are tested with the installed release and with models whose `forward` is that of the others.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance import GREEDY, after, opening

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch")

from apr_plugin.errors import AprError  # noqa: E402 - after the libraries it needs
from apr_plugin.models.checkpoint import load_checkpoint  # noqa: E402
from apr_plugin.models.compat import cache_argument, has_linear_attention, release  # noqa: E402
from apr_plugin.models.positions import positions  # noqa: E402
from apr_plugin.policies.hf.policy import HfPolicy  # noqa: E402

Tiny = Callable[[str], Path]

_INSTALLED = (
    "cache"
    if "cache" in inspect.signature(transformers.Qwen2_5_VLForConditionalGeneration.forward).parameters
    else "past_key_values"
)


class _Earlier(transformers.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """The `forward` of releases before 5.24."""

    def forward(self, input_ids: Any = None, *, past_key_values: Any = None, **more: Any) -> Any:
        assert past_key_values is not None and "cache" not in more
        return super().forward(input_ids, **{_INSTALLED: past_key_values}, **more)


class _Later(transformers.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """The `forward` of 5.40 and later."""

    def forward(self, input_ids: Any = None, *, cache: Any = None, **more: Any) -> Any:
        assert cache is not None and "past_key_values" not in more
        return super().forward(input_ids, **{_INSTALLED: cache}, **more)


class _Neither(transformers.Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    def forward(self, input_ids: Any = None) -> Any:
        return super().forward(input_ids)


def test_both_names_of_the_cache_give_the_same_turns(tiny: Tiny) -> None:
    told = {}
    for each in (None, _Earlier, _Later):
        policy = HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu")
        if each is not None:
            policy._engine.checkpoint.model.__class__ = each
        told[each] = [asyncio.run(policy.generate(prompt, GREEDY)).token_ids for prompt in (opening(), after("frames"))]
        policy.close()
    assert told[None] == told[_Earlier] == told[_Later]


def test_the_name_is_read_from_the_signature() -> None:
    assert (
        cache_argument(_Earlier.__new__(_Earlier)) == "past_key_values"
        and cache_argument(_Later.__new__(_Later)) == "cache"
    )
    with pytest.raises(ValueError, match="takes no cache"):
        cache_argument(_Neither.__new__(_Neither))
    for name in ("Qwen2_5OmniThinker", "Qwen3VL", "Qwen3VLMoe", "Qwen3OmniMoeThinker"):
        model = getattr(transformers, f"{name}ForConditionalGeneration")
        assert cache_argument(model.__new__(model)) == _INSTALLED
    assert (_INSTALLED == "cache") == (release() >= (5, 24))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe"])
def test_no_release_warns_of_an_old_name(tiny: Tiny, name: str) -> None:
    checkpoint = load_checkpoint(str(tiny(name)), device="cpu")
    policy = HfPolicy.from_pretrained(str(tiny(name)), device="cpu")
    encoded = policy._encoder.encode(after("frames"))
    policy.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        where = positions(encoded, checkpoint.family)[:, None]
        checkpoint.forward(encoded.ids[None], where, transformers.DynamicCache(), media=encoded.media)


def test_a_release_whose_linear_attention_forgets_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_linear_attention(transformers.AutoConfig.from_pretrained(tiny("qwen3_5")))
    assert not has_linear_attention(transformers.AutoConfig.from_pretrained(tiny("qwen3_vl")))
    monkeypatch.setattr("apr_plugin.models.compat.release", lambda: (5, 9))
    with pytest.raises(AprError, match=r"Qwen3\.5 needs transformers 5\.10 or later"):
        HfPolicy.from_pretrained(str(tiny("qwen3_5")), device="cpu")
    HfPolicy.from_pretrained(str(tiny("qwen3_vl")), device="cpu").close()
