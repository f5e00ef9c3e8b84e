"""The policy that the page runs by default, and what the page says about a policy."""

from __future__ import annotations

from pathlib import Path

from apr_plugin.loop.policy import Policy
from apr_plugin.models import bundled

DEFAULT_MODEL_ARGS = "policy=needle"
"""The policy of a page that was given none, where the agent of this package can't answer."""

WITHOUT_MODEL = {
    "needle": (
        "a scripted policy, not a model: it reads the test patterns of needle videos, and the questions about them, "
        "and understands no others"
    ),
    "scripted": "a scripted policy, not a model: it plays turns back from a file",
    "guess": "a policy that guesses, not a model",
}
"""What to say about the policies that run no model, by name."""

BUNDLED = (
    "the small model that comes with this package: it was trained on needle videos and the questions about them, and "
    "understands no others"
)
"""What to say about the agent of this package."""


def default_model_args() -> str:
    """The model_args of a page that was given none: the agent of this package, or else the scripted policy."""
    return bundled.bundled_agent() or DEFAULT_MODEL_ARGS


def about_policy(policy: Policy) -> str:
    """One line that says who answers: for a model its name, else that it is none."""
    if policy.name in WITHOUT_MODEL:
        return f"policy={policy.name}, {WITHOUT_MODEL[policy.name]}"
    described = policy.describe()
    model = next((str(described[key]) for key in ("pretrained", "model", "name") if described.get(key)), "")
    if Path(model).is_absolute():  # no folder of this machine
        model = Path(model).name
    if model == bundled.NAME:
        return f"policy={policy.name}, {model}, {BUNDLED}"
    return f"policy={policy.name}" + (f", {model}" if model and model != policy.name else "")
