"""All differences between releases of transformers (4.57 and later) that matter to the policies.

Each function says which releases differ. The names that a release uses are read from its signatures and classes, not
from its version number, except where only the results differ.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from apr_plugin.errors import AprError

LINEAR_ATTENTION_SINCE = (5, 10)
"""The first release whose linear attention layers continue from a cached state when they read several tokens.

Earlier releases silently ignored the state.
"""


_DEFAULT_TALKER = "(between 0 and 8447)"
"""In a warning about the part that speaks of a default configuration, which has a vocabulary of 8,448."""


class _NoDefaultTalker(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _DEFAULT_TALKER not in record.getMessage()


_FILTER = _NoDefaultTalker()


def quiet_about_default_talker() -> None:
    """Drop the warnings that transformers 5.24 prints about its own defaults, whatever the checkpoint has.

    To describe a configuration of a whole Omni model, it makes default ones of each part and checks those: the default
    ids of the part that speaks are not in its default vocabulary.
    """
    logging.getLogger("transformers.configuration_utils").addFilter(_FILTER)  # the same filter is added only once


def release() -> tuple[int, ...]:
    """Major and minor number of the installed transformers."""
    import transformers

    return tuple(int(number) for number in transformers.__version__.split(".")[:2])


def model_class(name: str, title: str, config: Any) -> Any:
    """The class of a family's model.

    Args:
        name: The name of the class.
        title: The name of the family, for messages.
        config: The checkpoint's configuration.

    Raises:
        AprError: this release lacks it, or can't run this configuration.
    """
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise AprError(f"policy hf: transformers {transformers.__version__} has no {name}; upgrade it")
    if has_linear_attention(config) and release() < LINEAR_ATTENTION_SINCE:
        since = ".".join(map(str, LINEAR_ATTENTION_SINCE))
        raise AprError(
            f"policy hf: {title} needs transformers {since} or later: the linear attention of "
            f"{transformers.__version__} does not continue "
            "from what it has read; upgrade it"
        )
    return found


def thinker_of(model: Any) -> Any:
    """The part of a whole Omni model that reads and writes text, which alone has a `forward`; another model itself."""
    return getattr(model, "thinker", model)


def attention_of(model: Any) -> str:
    """The attention that a model runs with: `sdpa`.

    The name is private, because the public one contains what was requested.
    """
    name: str = model.config._attn_implementation
    return name


def commit_of(config: Any) -> str | None:
    """The hub's commit that a configuration came from; every release keeps it under a private name."""
    commit: str | None = config._commit_hash
    return commit


def cache_argument(model: Any) -> str:
    """The name of the cache among the arguments of a model's `forward`: `past_key_values` or `cache`.

    5.24 and later have `cache`; the old name is removed in 5.40.

    Raises:
        ValueError: it has neither.
    """
    # Within a PEFT adapter, which passes everything on.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind: Any = type(inner)  # accelerate puts a function of its own on the instance
    return _cache_argument(kind)


@cache  # it is asked for each token, and reading a signature takes a twentieth of a small model's time for it
def _cache_argument(kind: Any) -> str:
    known = inspect.signature(kind.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in known:
            return name
    raise ValueError(f"{kind.__name__}.forward of this transformers takes no cache (neither cache nor past_key_values)")


def has_linear_attention(config: Any) -> bool:
    """Whether some layers of a model keep a state instead of keys and values (Qwen3.5: three of four)."""
    return "linear_attention" in (getattr(config.get_text_config(), "layer_types", None) or ())


def new_cache(config: Any = None) -> Any:
    """An empty cache; a configuration is needed if the layers are not all alike."""
    from transformers import DynamicCache

    return DynamicCache() if config is None else DynamicCache(config=config)


def states_of(layer: Any) -> tuple[Any, Any] | None:
    """The states (convolution, recurrence) of a linear attention layer's cache, `None` for another layer.

    They are stored by number since 5.14, and directly before.
    """
    if not hasattr(layer, "recurrent_states"):
        return None
    return tuple(held[0] if isinstance(held, dict) else held for held in (layer.conv_states, layer.recurrent_states))


def chat_template(processor: Any) -> str | None:
    """A checkpoint's chat template: the processor's, or in older checkpoints the tokenizer's."""
    template: str | None = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    return template


def whole_frames(video_processor: Any) -> dict[str, Any]:
    """Options that make a video processor obey the limits it is given.

    Some releases of Qwen3-VL's add their own limit for each frame.
    """
    return {"cap_pixels_per_frame": False} if hasattr(video_processor, "cap_pixels_per_frame") else {}


def clip_size(processor: Any) -> Mapping[str, int]:
    """The limits of clips.

    The Omni processors have their own limits, whatever their video processor says; where the limits are kept differs.
    """
    own = getattr(processor, "videos_kwargs", None)
    if own is None:
        own = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {}).get("videos_kwargs", {})
    size: Mapping[str, int] = own.get("size") or processor.video_processor.size
    return size


def expands_bare_clip(processor: Any) -> bool:
    """Whether the placeholder of a clip is expanded without the marks around it, so that they must not be there.

    Each pair of frames adds its own marks. Up to transformers 5.9 the processor of Qwen3-VL, and vLLM with it, removed
    the template's; later ones leave a second pair around the clip, which the model was not trained with
    (github.com/vllm-project/vllm/issues/46817).
    """
    from transformers.processing_utils import ProcessorMixin

    own = getattr(type(processor), "replace_video_token", None)
    return own is not None and own is not getattr(ProcessorMixin, "replace_video_token", None)
