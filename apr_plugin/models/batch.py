"""Model inputs from encoded prompts: one builder for the engine of `policy=hf` and for trainers.

An `Example` is a prompt (`PromptEncoder.encode`) and the tokens that follow it. `batch_of` makes the arguments of the
model's `forward` from one example or several: ids, positions, labels, and the media of all rows.

Positions are always given. A model's own class may count them differently (for a clip of Qwen2.5-VL it does, see
`models.positions`), and then a row is scored with other positions than it was sampled with, without any error.

A single row, and rows of equal length, need no padding and get no attention mask. In training, one unpadded row for
each forward is the cheapest form of long rows: padding makes a mask of tokens times tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import ImagePart, VideoPart
from apr_plugin.models.families import Family
from apr_plugin.models.positions import positions
from apr_plugin.models.prompt import Encoded, Medium

IGNORED = -100
"""The label of a token that is not learned, in every loss of transformers."""


@dataclass(frozen=True)
class Example:
    """One row of a batch."""

    encoded: Encoded
    """The prompt, with the tensors of its media."""

    target: Sequence[int] = ()
    """Token ids that follow it: a turn with its end. They hold no placeholder of media."""

    dummy: Encoded | None = None
    """A prompt that follows the target and is not learned. As attention looks back only, it changes neither the loss
    nor a gradient; but its media go through the model's towers, which on some machines every row must do."""

    weights: Sequence[float] | None = None
    """What each token of the target counts in the loss, in place of 1."""

    def __len__(self) -> int:
        return len(self.encoded.ids) + len(self.target) + (0 if self.dummy is None else len(self.dummy.ids))


def positions_with(encoded: Encoded, written: int, family: Family) -> NDArray[Any]:
    """Positions of a prompt and of the tokens that follow it, which count on from its highest position.

    Args:
        encoded: The prompt.
        written: Number of tokens after it.
        family: The checkpoint's family, see `positions`.

    Returns:
        Shape (3, prompt + written): time, height, width.
    """
    before = positions(encoded, family)
    after = before.max() + 1 + np.arange(written, dtype=before.dtype)
    return np.concatenate([before, np.tile(after, (3, 1))], axis=1)


def batch_of(
    examples: Sequence[Example],
    family: Family,
    *,
    pad: int,
    side: Literal["left", "right"] = "right",
    placeholders: Collection[int] = (),
    mask: bool | None = None,
    distinct: bool = False,
) -> dict[str, Any]:
    """The arguments of one `forward` for these examples, on the CPU.

    Args:
        examples: At least one; each has at least one token.
        family: The checkpoint's family, with the numbers of its configuration (`Family.of_config`).
        pad: Token id of padding.
        side: Where shorter rows are padded; a model that continues to write needs `left`.
        placeholders: Ids of media's placeholders (`PromptEncoder.ids_of`); a target that holds one is refused.
        mask: Whether there is an attention mask; `None`: only if rows are padded.
        distinct: Whether equal pictures are given once, see `media_of`.

    Returns:
        `input_ids` and `labels`, shape (rows, tokens); `position_ids`, shape (3, rows, tokens); with padding
        `attention_mask`, shape (rows, tokens); with weights `loss_weights`, shape (rows, tokens); and `media_of` all
        rows, in their order. Labels are the targets, and `IGNORED` for prompts, dummies, padding and tokens of weight
        0; they are not shifted. A batch can't be cut along its first
        dimension, which is not the rows' in `position_ids` and in media (`nn.DataParallel` would do that).

    Raises:
        ValueError: there is no example; a target holds a placeholder, for which there is no medium; or weights are not
            as many as the target's tokens, or one is negative or no number.
    """
    import torch

    if not examples:
        raise ValueError("a batch needs at least one example")
    lengths = [len(example) for example in examples]
    longest, rows = max(lengths), len(examples)
    ids = np.full((rows, longest), pad, np.int64)
    labels = np.full((rows, longest), IGNORED, np.int64)
    known = np.zeros((rows, longest), np.int64)
    weights = np.zeros((rows, longest), np.float32)
    places: NDArray[Any] | None = None
    for number, example in enumerate(examples):
        if found := set(example.target) & set(placeholders):
            raise ValueError(
                f"row {number}: its target holds placeholders of media ({sorted(found)}), without a medium"
            )
        first = longest - lengths[number] if side == "left" else 0
        prompt = first + len(example.encoded.ids)
        end = prompt + len(example.target)
        ids[number, first:prompt] = example.encoded.ids
        ids[number, prompt:end] = labels[number, prompt:end] = example.target
        weights[number, prompt:end] = 1.0 if example.weights is None else _checked(example, number)
        own = positions_with(example.encoded, len(example.target), family)
        if example.dummy is not None:
            ids[number, end : end + len(example.dummy.ids)] = example.dummy.ids
            own = np.concatenate([own, own.max() + 1 + positions(example.dummy, family)], axis=1)
        known[number, first : first + lengths[number]] = 1
        if places is None:
            places = np.ones((3, rows, longest), own.dtype)
        places[:, number, first : first + lengths[number]] = own
    assert places is not None
    made = {"input_ids": ids, "position_ids": places, "labels": labels}
    if any(example.weights is not None for example in examples):
        labels[weights == 0] = IGNORED
        made["loss_weights"] = weights
    if mask or (mask is None and min(lengths) < longest):
        made["attention_mask"] = known
    media = [
        medium
        for example in examples
        for encoded in (example.encoded, example.dummy)
        if encoded is not None
        for medium in encoded.media
    ]
    return {name: torch.from_numpy(array) for name, array in made.items()} | media_of(media, distinct=distinct)


def _checked(example: Example, row: int) -> NDArray[np.float32]:
    weights = np.asarray(example.weights, np.float32)
    if weights.shape != (len(example.target),):
        raise ValueError(f"row {row}: {weights.size} weights for a target of {len(example.target)} tokens")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"row {row}: weights of the loss are numbers from 0 up")
    return weights


def media_of(media: Sequence[Medium], *, distinct: bool = False) -> dict[str, Any]:
    """The media arguments of a model's `forward`, in the order of the given media, where their tensors are.

    They are `pixel_values` and `image_grid_thw` of pictures, `pixel_values_videos` and `video_grid_thw` of clips,
    `input_features` and `feature_attention_mask` of sounds. A kind without a medium is left out.

    Args:
        media: The media.
        distinct: Whether pictures with the same `Medium.key` are given once; then `picture_places`, shape (pictures,),
            says which of those that are given is shown at each place (`training.sft.pictures.seen_once`).
    """
    import torch

    given: dict[str, Any] = {}
    if distinct:
        pictures = [medium for medium in media if isinstance(medium.part, ImagePart)]
        # A picture without a key is equal to none.
        keys = [medium.key or number + 1 for number, medium in enumerate(pictures)]
        first = {key: medium for key, medium in zip(reversed(keys), reversed(pictures), strict=True)}
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        if len(order) < len(keys):
            given["picture_places"] = torch.tensor([order[key] for key in keys])
            others = [medium for medium in media if not isinstance(medium.part, ImagePart)]
            media = [*(first[key] for key in order), *others]
    for pixels, grid, kind in (
        ("pixel_values", "image_grid_thw", ImagePart),
        ("pixel_values_videos", "video_grid_thw", VideoPart),
    ):
        if seen := [medium for medium in media if isinstance(medium.part, kind)]:
            given[pixels] = torch.cat([medium.pixels for medium in seen])
            given[grid] = torch.stack([medium.grid for medium in seen])
    if sounds := [medium.mel for medium in media if medium.mel is not None]:
        given["input_features"], given["feature_attention_mask"] = _side_by_side(sounds)
    return given


def _side_by_side(spectrograms: list[Any]) -> tuple[Any, Any]:
    """Stack spectrograms of shape (bins, columns) into shape (n, bins, most columns), and mask the valid columns."""
    import torch

    columns = torch.tensor([each.shape[1] for each in spectrograms])
    most = int(columns.max())
    padded = torch.stack([torch.nn.functional.pad(each, (0, most - each.shape[1])) for each in spectrograms])
    return padded, (torch.arange(most)[None] < columns[:, None]).long()
