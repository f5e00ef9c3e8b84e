"""M-RoPE positions (time, height, width) of a whole prompt, by the rule of each model family.

Pure functions: numpy alone, no model.

Words count on in all three. A picture or a clip begins where the words before it end, and advances by row and column;
what comes after it goes on above its highest position. How a clip advances by time is its family's own:

| layout (`Family.clip`) | time of a pair of frames | source |
|---|---|---|
| `plain` | its seconds times `positions_per_s`, rounded down | Qwen2.5-VL report (arXiv 2502.13923) 2.1.2, as released with the model |
| `timed` | none: a time stamp in words stands before each pair, which is laid out like a picture | Qwen3-VL in transformers |
| `chunked` | as `plain`; sound counts on from the same beginning; two brackets on either side share a position | Qwen2.5-Omni in transformers |
| `merged` | as `chunked`, but not rounded and each bracket for itself | Qwen3-Omni in transformers |

For Qwen2.5-VL transformers itself is not asked: since 5.3 its class has counted the words after a clip from within the
clip, and some releases time clips wrongly (github.com/huggingface/transformers/issues/45381, /pull/48669). The others
are compared with transformers' `get_rope_index` in `tests/models/test_positions.py`. A trainer that scores a row must
give these positions to the model's `forward` (`position_ids`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.budget import FRAME_PAIR
from apr_plugin.loop.policy import VideoPart
from apr_plugin.models.families import Family
from apr_plugin.models.prompt import Encoded, Medium


def positions(encoded: Encoded, family: Family) -> NDArray[Any]:
    """Positions of every token of a prompt.

    Args:
        encoded: What `PromptEncoder.encode` made; its media have their grids.
        family: The checkpoint's family, with the timing of its configuration (`Family.of_config`).

    Returns:
        Shape (3, n): time, height, width. Whole numbers (int64), but for the `merged` layout, whose clips lie between
        them (float32, as the model computes them).
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
            if shared:  # of the two opening brackets the second stands where the first does
                out[:, first - 1] = at - number(1)
            done = first + offsets.shape[1]
            out[:, first:done] = at + offsets.astype(number)
            at = out[:, done - last : done].max() + number(1)
            if shared:  # and so do the two closing ones
                out[:, done : done + 2] = at
                done, at = done + 2, at + number(1)
            held = held[offsets.shape[1] :]
    words = len(encoded.ids) - done
    out[:, done:] = at + np.arange(words, dtype=number)
    return out


def _woven(medium: Medium) -> bool:
    """Whether it is a clip with its sound between its pictures."""
    return isinstance(medium.part, VideoPart) and any(run.kind == "audio" for run in medium.runs)


def _stretches(medium: Medium, family: Family) -> Iterator[tuple[NDArray[Any], int]]:
    """Each row of placeholders of a medium: positions from where it begins, shape (3, tokens), and how many at its end decide where words go on."""
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
    """Positions in time of the pairs of frames of a clip, from its beginning; the Omni families compute in single precision."""
    if family.clip == "plain":
        times: NDArray[Any] = np.arange(frames) * (FRAME_PAIR / fps * family.positions_per_s)
    else:
        times = np.arange(frames, dtype=np.float32) * np.float32(FRAME_PAIR / fps) * np.float32(family.positions_per_s)
    return times if family.clip == "merged" else times.astype(np.int64)


def _laid(times: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Time, row and column of each token of a grid, shape (3, pairs x rows x columns)."""
    grid = np.indices((len(times), rows, columns)).reshape(3, -1).astype(np.float64)
    grid[0] = times[grid[0].astype(np.int64)]
    return grid
