"""`contained`: import code of others, and undo what the import changes in this process.

Importing VLMEvalKit (0.0.20 on the package index, and upstream at e8e78f05) turns off TLS verification for all of
`urllib` (`vlmeval/__init__.py`), turns off gradients and seeds torch (`vlmeval/vlm/__init__.py`), writes a `.env` file
and model settings into the environment, lifts Pillow's limit on the size of a picture and Python's on the digits of a
number, and adds the working directory to the import path.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any

KEPT = "VLMEVAL"
"""Variables whose names begin so are VLMEvalKit's own, and stay in the environment."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Undo, at the end of the block, what it changed in the state that the whole process shares.

    These are TLS verification, gradients and random generators of torch, the generators of `random` and numpy, the
    environment, `sys.path`, the handlers of the root logger, and the limits of Pillow and Python on untrusted input.
    torch is imported, because it must have a state before the block that can be restored.
    """
    restore = [saved() for saved in (_tls, _random, _numpy, _torch, _environment, _logging, _limits)]
    try:
        yield
    finally:
        for undo in restore:
            undo()


def _tls() -> Callable[[], None]:
    before: Any = ssl._create_default_https_context

    def undo() -> None:
        ssl._create_default_https_context = before

    return undo


def _random() -> Callable[[], None]:
    state = random.getstate()
    return lambda: random.setstate(state)


def _numpy() -> Callable[[], None]:
    import numpy as np

    state = np.random.get_state()
    return lambda: np.random.set_state(state)


def _torch() -> Callable[[], None]:
    import torch

    gradients, seed, state = torch.is_grad_enabled(), torch.initial_seed(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def undo() -> None:
        torch.set_grad_enabled(gradients)
        torch.manual_seed(seed)  # also seeds devices that are not in use yet
        torch.set_rng_state(state)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)

    return undo


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def undo() -> None:
        for name in os.environ.keys() - before.keys():
            if not name.startswith(KEPT):
                del os.environ[name]
        os.environ.update(before)

    return undo


def _logging() -> Callable[[], None]:
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable

    def undo() -> None:
        root.handlers[:] = handlers
        root.setLevel(level)
        root.manager.disable = disabled

    return undo


def _limits() -> Callable[[], None]:
    from PIL import Image

    pixels, digits, path = Image.MAX_IMAGE_PIXELS, sys.get_int_max_str_digits(), list(sys.path)

    def undo() -> None:
        Image.MAX_IMAGE_PIXELS = pixels
        sys.set_int_max_str_digits(digits)
        sys.path[:] = path

    return undo
