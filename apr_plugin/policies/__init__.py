"""Ways to run a model, one file each; a policy is imported only when it is named.

To add one: write a class with the `Policy` methods (`apr_plugin.loop.policy`) and one line in `POLICIES`. A policy of a
task, or of another package, is registered by that package: an entry point of the group `apr_plugin.policies`
(CONTRIBUTING.md).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import cache, reduce
from importlib import metadata
from typing import Any, cast

from apr_plugin.errors import AprError
from apr_plugin.installed import BrokenInstall, explain, importing, is_import_fault
from apr_plugin.loop.policy import Policy
from apr_plugin.terminal import quoted

POLICIES: dict[str, str] = {
    "guess": "apr_plugin.policies.guess:GuessPolicy",
    "hf": "apr_plugin.policies.hf.policy:HfPolicy.from_pretrained",
    "openai": "apr_plugin.policies.openai.policy:OpenAIPolicy",
    "scripted": "apr_plugin.policies.scripted:ScriptedPolicy",
    "vllm": "apr_plugin.policies.vllm.policy:VllmPolicy",
}
"""Where each policy of this package is found."""


GROUP = "apr_plugin.policies"
"""The group of entry points that are policies too: of a task here, or of another package.

A name in `POLICIES` can't be taken.
"""


def known_policies() -> dict[str, str]:
    """Where the class or factory of each policy is found: ours, and those of installed packages."""
    return {found.name: found.value for found in _registered()} | POLICIES


@cache
def _registered() -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=GROUP))


def policy_maker(name: str) -> Callable[..., Policy]:
    """The callable that makes a policy from the arguments of a run: its class, or a method of it.

    Raises:
        AprError: there is no policy of that name, or its module can't be imported.
    """
    known = known_policies()
    if name not in known:
        raise AprError(
            f"there is no policy {quoted(name, 60)}{did_you_mean(name, known)}; the policies are "
            f"{', '.join(sorted(known))}"
        )
    module, _, attributes = known[name].partition(":")
    with importing(f"policy {name}", _extra(name)):
        maker: Callable[..., Policy] = reduce(
            getattr, attributes.split("."), cast(Any, importlib.import_module(module))
        )
    return maker


def _extra(policy: str) -> str:
    """The extra that contains what a policy imports."""
    return policy if policy in ("hf", "openai", "vllm") else "all"


def policy_arguments(name: str) -> tuple[str, ...]:
    """The arguments that a policy takes."""
    return tuple(
        p.name for p in inspect.signature(policy_maker(name)).parameters.values() if p.kind is not p.VAR_KEYWORD
    )


def check_policy(name: str, arguments: Iterable[str]) -> None:
    """Check that a policy gets every argument that it needs.

    Raises:
        AprError: there is no such policy, or an argument is missing.
    """
    needed = [
        p.name
        for p in inspect.signature(policy_maker(name)).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if missing := [key for key in needed if key not in arguments]:
        raise AprError(f"policy {name}: it needs {', '.join(f'{key}=…' for key in missing)}")


def make_policy(name: str, **arguments: Any) -> Policy:
    """Load a policy.

    Raises:
        AprError: there is no such policy, or it can't be made from these arguments.
    """
    check_policy(name, arguments)
    try:
        policy: Policy = policy_maker(name)(**arguments)
    except AprError:
        raise
    except Exception as error:  # a checkpoint's files are read here, by libraries that can raise anything
        if is_import_fault(error):
            raise BrokenInstall(f"policy {name} can't be loaded: {explain(error, _extra(name))}") from error
        kind = (
            ""
            if isinstance(error, (TypeError, ValueError, OSError, ImportError, RuntimeError))
            else f"{type(error).__name__}: "
        )
        raise AprError(f"policy {name}: {kind}{error}") from error
    return policy


def did_you_mean(word: str, known: Any) -> str:
    """`" (did you mean 'x'?)"` if a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
