"""The small agent that comes with this package: `policy=hf,pretrained=apr-tiny`.

Its files are in a folder beside this one, as `apr train ship` writes them. `apr-tiny` is taken for a path or a hub name
wherever a checkpoint is named. It always means the agent of this package, also where the working directory has a folder
of that name; that folder is `./apr-tiny`. An installation may be without the files: then the name is an error, and the
defaults are as if there were no such agent.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.files import read_regular

NAME = "apr-tiny"
"""The name by which it is loaded."""

FOLDER = Path(__file__).resolve().parent / NAME
"""Its files."""

ABOUT = "apr_agent.json"
"""File in the folder that says what the agent was trained for: `{"needle_kinds": ["glyph", …], …}`."""

REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "apr_profile.json", ABOUT)
"""Files without which it can't be used."""

MODEL_ARGS = f"policy=hf,pretrained={NAME}"
"""The model_args with which it answers."""


def is_shipped() -> bool:
    """Whether this installation has its files."""
    return all((FOLDER / name).is_file() for name in REQUIRED)


def bundled_agent() -> str | None:
    """The model_args of the agent that answers by default; `None` where it can't.

    It can't if this installation has no files of it, or lacks what `policy=hf` needs. `apr app`, `apr demo` and
    `apr ask` ask this one function.
    """
    runs = all(importlib.util.find_spec(module) is not None for module in ("torch", "torchvision", "transformers"))
    return MODEL_ARGS if is_shipped() and runs else None


def folder_of(name: str, policy: str) -> Path | None:
    """The folder of the agent of this package; `None` if the name is another.

    Args:
        name: What was given as a checkpoint.
        policy: Who loads it, for the message.

    Raises:
        AprError: it is the agent's name, and files are missing.
    """
    if name != NAME:
        return None
    missing = [file for file in REQUIRED if not (FOLDER / file).is_file()]
    if missing:
        raise AprError(
            f"policy {policy}: {NAME} is the small agent that comes with apr-plugin, and this installation has no "
            f"{missing[0]} of it in {FOLDER}; install a release that has it, or name a checkpoint's folder (a folder "
            f"here that is called {NAME}: ./{NAME})"
        )
    return FOLDER


def needle_kinds() -> frozenset[str]:
    """The kinds of needle questions that it was trained to answer; none if it is not there.

    Raises:
        AprError: its description can't be read.
    """
    if not is_shipped():
        return frozenset()
    try:
        return frozenset(map(str, json.loads(read_regular(FOLDER / ABOUT))["needle_kinds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AprError(f"{FOLDER / ABOUT}: cannot read what {NAME} was trained for: {error}") from error
