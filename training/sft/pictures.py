"""Many small pictures through the vision tower at once: equal ones a single time, attention without a Python loop.

The towers of transformers loop over pictures, once for positions and windows and once in the attention of each layer,
unless the attention's name has `flash` in it; then it gets all pictures with their lengths. `by_length` is such an
attention, made of PyTorch's own `scaled_dot_product_attention`: pictures of equal length are one batch. So a tower that
was loaded with `sdpa` gives the same numbers, faster the smaller its pictures are.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from apr_plugin.errors import AprError

BY_LENGTH = "flash_free_by_length"
"""The name under which `by_length` is registered with transformers. The word `flash` in it is what asks for lengths."""


def batch_attention(model: Any) -> bool:
    """Let the vision tower of a model attend to all pictures of equal length at once.

    Args:
        model: A model of transformers with a tower `visual`, in a release that has `AttentionInterface`.

    Returns:
        Whether it does now; `False`: it has another attention than `sdpa`, or the release can't.
    """
    import transformers

    interface = getattr(transformers, "AttentionInterface", None)
    tower = getattr(model.base_model, "visual", None)
    if interface is None or tower is None or getattr(tower.config, "_attn_implementation", None) != "sdpa":
        return False
    interface.register(BY_LENGTH, by_length)
    tower.config._attn_implementation = BY_LENGTH
    return True


def by_length(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Full attention within each stretch of a row of stretches, as transformers calls it.

    Args:
        module: The layer (not used).
        query: Shape (1, heads, tokens, width); `key` and `value` too.
        key: See `query`.
        value: See `query`.
        attention_mask: Must be `None`.
        scaling: Factor of the products.
        dropout: Share of the weights that are dropped.
        cu_seq_lens_q: Where the stretches begin and end, shape (stretches + 1,); `None`: there is one.

    Returns:
        Shape (1, tokens, heads, width), and `None` in place of the weights.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    assert attention_mask is None
    heads, tokens, width = query.shape[1:]

    def within(rows: tuple[Any, Any, Any], length: int) -> Any:
        q, k, v = (row.reshape(heads, -1, length, width).transpose(0, 1) for row in rows)
        out = attend(q, k, v, dropout_p=dropout, scale=scaling)
        return out.permute(0, 2, 1, 3).reshape(-1, heads, width)

    rows = (query[0], key[0], value[0])
    lengths = torch.tensor([tokens]) if cu_seq_lens_q is None else cu_seq_lens_q.diff()
    kinds = lengths.unique().tolist()
    if len(kinds) == 1:
        return within(rows, kinds[0])[None], None
    of_token = lengths.repeat_interleave(lengths)
    out = query.new_empty(tokens, heads, width)
    for length in kinds:
        places = (of_token == length).nonzero()[:, 0]
        picked = within((rows[0][:, places], rows[1][:, places], rows[2][:, places]), length)
        out = out.index_copy(0, places, picked)
    return out[None], None


@contextmanager
def seen_once(backbone: Any, places: Any) -> Iterator[None]:
    """Within it, the pictures of a forward are distinct ones, and their embeddings are spread to where they are shown.

    Args:
        backbone: The model that has `get_image_features` and the tower `visual`.
        places: Shape (pictures shown,): which of the given pictures is shown there; `None`: each is given.

    Raises:
        AprError: the release of transformers gives the embeddings of pictures in another form.
    """
    plain = backbone.get_image_features

    def get_image_features(self: Any, pixel_values: Any, image_grid_thw: Any = None, **more: Any) -> Any:
        out = plain(pixel_values, image_grid_thw, **more, **_equal_grids(self.visual, image_grid_thw))
        if places is None:
            return out
        if not hasattr(out, "pooler_output") or not isinstance(out.pooler_output, (tuple, list)):
            raise AprError(
                "forward.distinct_pictures needs transformers 5: earlier releases give no embeddings by picture"
            )
        order = places.tolist()
        out.pooler_output = [out.pooler_output[number] for number in order]
        if getattr(out, "deepstack_features", None) is not None:
            out.deepstack_features = [[layer[number] for number in order] for layer in out.deepstack_features]
        return out

    backbone.get_image_features = types.MethodType(get_image_features, backbone)
    try:
        yield
    finally:
        del backbone.get_image_features


def _equal_grids(tower: Any, grids: Any) -> dict[str, Any]:
    """Positions and windows of pictures that are all of one size: those of the first, repeated.

    They are what the functions of `transformers.vision_utils` would give, which loop over pictures.
    """
    try:
        from transformers.vision_utils import get_vision_position_ids, get_vision_window_index
    except ImportError:  # before transformers 5.10, towers take none
        return {}
    many = len(grids)
    if many < 2 or not hasattr(tower, "spatial_merge_size") or not bool((grids == grids[0]).all()):
        return {}
    import torch

    one, merge = grids[:1], tower.spatial_merge_size
    made = {"image_position_ids": get_vision_position_ids(one, merge).repeat(many, 1)}
    if hasattr(tower, "window_size"):
        index, ends = get_vision_window_index(
            one, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
        )
        steps = torch.arange(many, device=grids.device)[:, None]
        made["image_window_index"] = (index.to(grids.device)[None] + steps * len(index)).reshape(-1)
        # Equal neighbours are left out there, so the first end is 0 and the others grow.
        stretched = (ends[None, 1:] + steps * ends[-1]).reshape(-1).to(torch.int32)
        made["image_cu_window_seqlens"] = torch.cat([ends[:1], stretched])
    return made
