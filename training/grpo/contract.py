"""What the trainer needs of TRL beyond its documented API, compared with the TRL that is installed.

TRL changes its private methods between minor releases. A method that has changed its meaning could train on the wrong
numbers without an error, so what is used is checked before training.
"""

from __future__ import annotations

import inspect
from typing import Any

from apr_plugin.errors import AprError

RANGE = ">=1.16,<1.17"
"""Releases of TRL for which this trainer was written."""

METHODS = {
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "_compute_loss": ("model", "inputs"),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
    ),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
"""Methods of `GRPOTrainer` that are overridden or called, with the parameters that are relied on, in their order."""

READ_BY_LOSS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "advantages",
    "old_per_token_logps",
    "ref_per_token_logps",
    "num_items_in_batch",
)
"""What `_compute_loss` reads of its inputs, and is given."""

SET = (
    "_metrics",
    "beta",
    "current_gradient_accumulation_steps",
    "accelerator.num_processes",
    "args.steps_per_generation",
)
"""What `_compute_loss` reads of the trainer, by which the sum over all turns is divided."""


def check_trl(trainer: type[Any] | None = None) -> None:
    """Compare the installed TRL with what the trainer needs.

    Args:
        trainer: The class to look at; by default `trl.GRPOTrainer`.

    Raises:
        AprError: something is missing or has changed; the message names it, the release, and those that are needed.
    """
    import trl

    kind = trainer or trl.GRPOTrainer
    faults = []
    for name, wanted in METHODS.items():
        method = getattr(kind, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)[1 : len(wanted) + 1]
        if found != wanted:
            faults.append(f"{name}({', '.join(wanted)})" + (f" is now ({', '.join(found)})" if method else " is gone"))
    source = inspect.getsource(getattr(kind, "_compute_loss", check_trl))
    faults += [f"_compute_loss does not read {name!r}" for name in READ_BY_LOSS if f'"{name}"' not in source]
    faults += [f"_compute_loss does not read self.{name}" for name in SET if f"self.{name}" not in source]
    if getattr(kind, "loss_is_scaled_for_ga", None) is not True:
        faults.append("loss_is_scaled_for_ga is not True")
    if faults:
        raise AprError(
            f"TRL {trl.__version__} differs from what apr train grpo needs: {'; '.join(faults)}. Install "
            f"'trl{RANGE}' (pip install 'apr-plugin[train]' does)"
        )
