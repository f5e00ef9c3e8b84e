"""M-RoPE positions (time, height, width) of a whole prompt, by the rule of each model family.

These are pure functions, with numpy alone and no model.

Text advances by one in all three. A picture or a clip begins where the text before it ends, and advances by row and
column. The text after it continues above its highest position. How a clip advances in time depends on the family:

| layout (`Family.clip`) | time of a pair of frames | source |
|---|---|---|
| `plain` | its seconds times `positions_per_s`, rounded down | arXiv 2502.13923, 2.1.2, as released |
| `timed` | none: each pair follows a time stamp as text, and is laid out like a picture | Qwen3-VL |
| `chunked` | as `plain`; sound has the same start; two brackets on either side share a position | Qwen2.5-Omni |
| `merged` | as `chunked`, but not rounded, and each bracket has its own position | Qwen3-Omni |

`plain` is described in the Qwen2.5-VL report and implemented by the code that was released with the model; the other
sources are the classes in transformers.

For Qwen2.5-VL, transformers itself is not the source: since 5.3 its class counts the text after a clip from within the
clip, and some releases time clips wrongly (github.com/huggingface/transformers/issues/45381, /pull/48669). The others
are compared with transformers' `get_rope_index` in `tests/models/test_positions.py`. A trainer that scores a row must
give these positions to the model's `forward` (`position_ids`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import VideoPart
from apr_plugin.models.families import Family
from apr_plugin.models.prompt import Encoded, Medium


def positions(encoded: Encoded, family: Family) -> NDArray[Any]:
    """Positions of every token of a prompt.

    Args:
        encoded: The result of `PromptEncoder.encode`; its media have their grids.
        family: The checkpoint's family, with the timing of its configuration (`Family.of_config`).

    Returns:
        Shape (3, n): time, height, width. Whole numbers (int64), except for the `merged` layout, whose clips have
        positions between them (float32, as the model computes them).
    """
    number: Any = np.float32 if family.clip == "merged" else np.int64
    out = np.empty((3, len(encoded.ids)), number)
    held = np.flatnonzero(encoded.keys < 0)  # placeholders
    done, at = 0, number(0)
    for medium in encoded.media:
        for offsets, last in _stretches(medium, family):
            first = int(held[0])
            shared = family.clip == "chunked" and _woven(medium)
            words = first - done - shared
            out[:, done : done + words] = at + np.arange(words, dtype=number)
            at = at + number(words)
            if shared:  # the second of the two opening brackets has the position of the first
                out[:, first - 1] = at - number(1)
            done = first + offsets.shape[1]
            out[:, first:done] = at + offsets.astype(number)
            at = out[:, done - last : done].max() + number(1)
            if shared:  # the two closing ones share a position too
                out[:, done : done + 2] = at
                done, at = done + 2, at + number(1)
            held = held[offsets.shape[1] :]
    words = len(encoded.ids) - done
    out[:, done:] = at + np.arange(words, dtype=number)
    return out


def _woven(medium: Medium) -> bool:
    """Whether this is a clip with its sound between its pictures."""
    return isinstance(medium.part, VideoPart) and any(run.kind == "audio" for run in medium.runs)


def _stretches(medium: Medium, family: Family) -> Iterator[tuple[NDArray[Any], int]]:
    """For each row of placeholders of a medium, its positions, and how many of the last decide where text continues.

    The positions have shape (3, tokens) and count from the start of the row.
    """
    if medium.grid is None:  # sound alone
        tokens = sum(run.tokens for run in medium.runs)
        yield np.tile(np.arange(tokens), (3, 1)), tokens
        return
    frames, rows, columns = (int(n) for n in medium.grid)
    rows, columns = rows // family.merge, columns // family.merge
    if family.clip == "timed":
        for _ in range(frames):
            yield _laid(np.zeros(1), rows, columns), rows * columns
        return
    times: NDArray[Any] = np.zeros(frames)
    if isinstance(medium.part, VideoPart):
        times = _times(frames, medium.part.fps, family)
    seen = _laid(times, rows, columns)
    if not _woven(medium):
        yield seen, seen.shape[1]
        return
    heard = np.tile(np.arange(sum(run.tokens for run in medium.runs if run.kind == "audio")), (3, 1))
    left = {"video": seen, "audio": heard}
    pieces = []
    for run in medium.runs:
        pieces.append(left[run.kind][:, : run.tokens])
        left[run.kind] = left[run.kind][:, run.tokens :]
    kinds = [run.kind for run in medium.runs]
    same = next((n for n, kind in enumerate(reversed(kinds)) if kind != kinds[-1]), len(kinds))
    yield np.concatenate(pieces, axis=1), sum(run.tokens for run in medium.runs[len(kinds) - same :])


def _times(frames: int, fps: float, family: Family) -> NDArray[Any]:
    """Positions in time of the pairs of frames of a clip, from its beginning.

    The Omni families compute them in single precision.
    """
    if family.clip == "plain":
        times: NDArray[Any] = np.arange(frames) * (family.frames / fps * family.positions_per_s)
    else:
        times = (
            np.arange(frames, dtype=np.float32) * np.float32(family.frames / fps) * np.float32(family.positions_per_s)
        )
    return times if family.clip == "merged" else times.astype(np.int64)


def _laid(times: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Time, row and column of each token of a grid, shape (3, pairs x rows x columns)."""
    grid = np.indices((len(times), rows, columns)).reshape(3, -1).astype(np.float64)
    grid[0] = times[grid[0].astype(np.int64)]
    return grid
