"""Options of lmms-eval's command line that do not apply to an agent.

They are refused, or reported and left out of the results.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.terminal import quoted, warn

_REFUSED = {
    "num_fewshot": "the loop asks each question separately, without examples",
    "apply_chat_template": "each policy writes its own prompts",
    "fewshot_as_multiturn": "the loop asks each question separately, without examples",
    "system_instruction": "give instructions with the model_arg system_prompt=FILE",
    "force_simple": "it has no simple form",
}
"""Option -> why it can't apply to model apr, or what replaces it."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that can't apply.

    Args:
        options: By lmms-eval's own names; an option that is absent, `None` or off is not set.

    Raises:
        AprError: an option can't apply; the message names it and its value.
    """
    for name, why in _REFUSED.items():
        if value := options.get(name):
            told = f"--{name}" if value is True else f"--{name} {value if isinstance(value, int) else quoted(value)}"
            raise AprError(f"{told} can't apply to model apr: {why}; leave it out")
    limit = options.get("limit")
    if limit is not None and not (limit == -1 or 0 < limit < math.inf):
        raise AprError(f"--limit {limit:g}: it must be a number above 0, or -1 for every question")


def say_unused(gen_kwargs: str) -> None:
    """Report which generation settings the loop does not use: all, because they are made for one short reply."""
    warn(
        f"--gen_kwargs {gen_kwargs}: model apr uses none of it, and results.json leaves it out; "
        "the model_args temperature, top_p, top_k, max_new_tokens set how turns are sampled"
    )


def check_evaluation() -> None:
    """Check the options of the evaluation that creates this model, whichever program runs that evaluation.

    lmms-eval does not pass these options to a model, and writes those that were set into its results. So the values are
    looked up in the call of its evaluator. The generation settings are in a mapping and in the parsed command line of
    that call, and are emptied there.

    Raises:
        AprError: as `check_options`.
    """
    values = _evaluation()
    check_options(values)
    given = values.get("gen_kwargs")
    if isinstance(given, dict) and given:
        say_unused(
            str(
                getattr(values.get("cli_args"), "gen_kwargs", "")
                or ",".join(f"{key}={value}" for key, value in given.items())
            )
        )
        given.clear()
        if values.get("cli_args") is not None:
            values["cli_args"].gen_kwargs = ""


def name_run(config_hash: str, folder: Path) -> None:
    """Add the run's configuration hash and folder to lmms-eval's results.

    Its results.json keeps the values of the command line, and `apr_run` becomes one of them.

    `open_run` uses it to join scores with trajectories. A program that calls the evaluator without a command line has
    no results.json.
    """
    if (arguments := _evaluation().get("cli_args")) is not None:
        arguments.apr_run = {"config_hash": config_hash, "folder": str(folder.absolute())}


def _evaluation() -> Mapping[str, Any]:
    """The values in the call of lmms-eval's evaluator that this code runs in; empty outside one."""
    frame: Any = sys._getframe()
    while frame is not None and (frame.f_code.co_name, frame.f_globals.get("__name__")) != (
        "simple_evaluate",
        "lmms_eval.evaluator",
    ):
        frame = frame.f_back
    return frame.f_locals if frame is not None else {}
