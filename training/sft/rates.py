"""Learning rates by parameter: groups from patterns of names, and one optimizer made of two.

Muon (arXiv 2502.16982, `torch.optim.Muon`) takes matrices only; its steps are scaled so that they are as large as
AdamW's (`adjust_lr_fn="match_rms_adamw"`), so one number means the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.sft.recipe import RateSettings


def groups_of(
    parameters: Iterable[tuple[str, Any]],
    rates: Sequence[RateSettings],
    *,
    learning_rate: float,
    weight_decay: float,
    decays: Collection[str],
    factor: float = 1.0,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of parameters of a recipe's rates.

    Args:
        parameters: Names and parameters that are trained.
        rates: The first whose pattern matches a name is taken; one with Muon takes matrices only, and what it does not
            take goes on to the next.
        learning_rate: Of parameters that none takes.
        weight_decay: Where a rate has none of its own.
        decays: The names of parameters that are decayed at all, where a rate does not say how much.
        factor: It multiplies all learning rates.

    Returns:
        Groups for the trainer's own optimizer, and for Muon.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    taken: dict[tuple[int, float], list[Any]] = {}
    unused = set(range(len(rates)))
    names = []
    for name, parameter in parameters:
        names.append(name)
        place = next((n for n, rate in enumerate(rates) if _takes(rate, name, parameter)), len(rates))
        unused.discard(place)
        own = rates[place].weight_decay if place < len(rates) else None
        decay = own if own is not None else weight_decay if name in decays else 0.0
        taken.setdefault((place, decay), []).append(parameter)
    if unused:
        at = min(unused)
        raise RecipeError(
            f"rates.{at}.match: {rates[at].match!r} takes no parameter that is trained, or what it matches is taken "
            f"before; parameters are called {', '.join(names[:3])}, …"
        )
    plain: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for (place, decay), members in sorted(taken.items()):
        rate = rates[place].learning_rate if place < len(rates) else learning_rate
        group = {"params": members, "lr": rate * factor, "weight_decay": decay}
        (muon if place < len(rates) and rates[place].optimizer == "muon" else plain).append(group)
    return plain, muon


def _takes(rate: RateSettings, name: str, parameter: Any) -> bool:
    return fnmatchcase(name, rate.match) and (rate.optimizer != "muon" or parameter.ndim == 2)


def optimizer_of(plain: list[dict[str, Any]], muon: list[dict[str, Any]], make: Callable[[Any], Any]) -> Any:
    """The optimizer of these groups.

    Args:
        plain: Groups for `make`.
        muon: Groups for Muon.
        make: The trainer's own optimizer from its groups.
    """
    if not muon:
        return make(plain)
    second = torch.optim.Muon(muon, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    return Together([*([make(plain)] if plain else []), second])


class Together(torch.optim.Optimizer):  # type: ignore[misc]
    """Several optimizers that a trainer, its schedule and its checkpoints see as one.

    Args:
        parts: The optimizers; their groups are the groups of this one.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @property
    def state(self) -> dict[Any, Any]:
        """What the parts keep for each parameter."""
        return {parameter: kept for part in self.parts for parameter, kept in part.state.items()}

    @state.setter
    def state(self, _: Any) -> None:
        """Kept by the parts."""

    def step(self, closure: Any = None) -> Any:
        """One step of each."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave.

        Raises:
            ValueError: it is of other parts or groups.
        """
        states = state_dict.get("parts", ())
        if len(states) != len(self.parts):
            raise ValueError("the state is of other optimizers")
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def carry_over(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Take over an optimizer's moments, and keep the rates of the groups that it has now.

    Args:
        optimizer: With the same groups.
        state: What another one saved.
    """
    told = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, told, strict=True):
        group.pop("initial_lr", None)
        group.update(own)
