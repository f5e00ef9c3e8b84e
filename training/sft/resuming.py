"""Continuing a trainer of TRL from its checkpoint."""

from __future__ import annotations

from typing import Any


class OwnNames:
    """Loads a checkpoint's weights by the model's own class; to be inherited before a trainer of TRL.

    transformers 5.24 saves the modules of these families under their published names and looks for them under the names
    in memory; what it does not find it leaves as it is, with a warning: training would begin from the first weights
    again.
    """

    model: Any
    state: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Continue from the weights of a checkpoint."""
        if self._keeps_own_names():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            _load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._keeps_own_names():
            super()._load_best_model()  # type: ignore[misc]
        else:
            _load_weights(self.model, self.state.best_model_checkpoint)

    def _keeps_own_names(self) -> bool:
        """Whether checkpoints have the names in memory: adapters, and what FSDP and DeepSpeed save."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(self.model, "get_base_model"))


def _load_weights(model: Any, folder: str) -> None:
    """Load a checkpoint's weights into a model that exists; each of them must be there."""
    loaded = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True, trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
