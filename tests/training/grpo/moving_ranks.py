"""Two processes that exchange rows over gloo; `test_moving.py` starts this file."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from apr_plugin.loop.policy import ImagePart, Message, Prompt, TextPart
from apr_plugin.training.grpo.across import TorchProcesses
from apr_plugin.training.grpo.moving import RowExchange
from apr_plugin.training.grpo.rows import TurnRow

HELD = ((900, 700, 30, 20, 10), ())
"""Lengths of the rows of each process at first."""


def row_of(tokens: int) -> TurnRow:
    """A row of this length, with a picture that tells it from others."""
    picture = np.full((28, 28, 3), tokens % 251, np.uint8)
    prompt = Prompt((Message("user", (ImagePart(picture), TextPart(str(tokens)))),))
    return TurnRow(prompt, tuple(range(tokens - 2)), (1, 2), (-0.5, -0.25), (0.1, 0.2), str(tokens), advantage=tokens)


def run(rank: int, folder: str) -> None:
    """Exchange twice: the second time, nothing has to move."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    exchange, across = RowExchange(), TorchProcesses()
    found = []
    rows = [row_of(tokens) for tokens in HELD[rank]]
    for _ in range(2):
        rows, told = exchange.balanced(rows, across, rank, 2, even_rows=False)
        found.append((rows, told))
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            run(rank, sys.argv[1])
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
