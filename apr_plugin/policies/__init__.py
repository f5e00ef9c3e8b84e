"""Ways to run a model, one file each. A policy is loaded when it is named, so that its imports cost nothing otherwise.

To add one: write a class with the `Policy` methods (`apr_plugin.loop.policy`) and one line in `POLICIES`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from apr_plugin.errors import AprError
from apr_plugin.installed import BrokenInstall, explain, importing, is_import_fault
from apr_plugin.loop.policy import Policy
from apr_plugin.terminal import quoted

POLICIES: dict[str, str] = {
    "guess": "apr_plugin.policies.guess:GuessPolicy",
    "hf": "apr_plugin.policies.hf.policy:HfPolicy",
    "needle": "apr_plugin.tasks.needle.policy:NeedlePolicy",
    "openai": "apr_plugin.policies.openai.policy:OpenAIPolicy",
    "scripted": "apr_plugin.policies.scripted:ScriptedPolicy",
    "vllm": "apr_plugin.policies.vllm.policy:VllmPolicy",
}
"""Where each policy's class is found."""


def policy_class(name: str) -> type[Any]:
    """The class of a policy.

    Raises:
        AprError: there is no policy of that name.
    """
    if name not in POLICIES:
        raise AprError(f"there is no policy {quoted(name, 60)}{did_you_mean(name, POLICIES)}; the policies are {', '.join(sorted(POLICIES))}")
    module, _, attribute = POLICIES[name].partition(":")
    with importing(f"policy {name}", _extra(name)):
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _extra(policy: str) -> str:
    """The extra that brings what a policy imports."""
    return policy if policy in ("hf", "openai", "vllm") else "all"


def policy_arguments(name: str) -> tuple[str, ...]:
    """The arguments that a policy takes."""
    return tuple(p.name for p in inspect.signature(policy_class(name)).parameters.values() if p.kind is not p.VAR_KEYWORD)


def check_policy(name: str, arguments: Iterable[str]) -> None:
    """See whether a policy has every argument it needs.

    Raises:
        AprError: there is no such policy, or an argument is missing.
    """
    needed = [p.name for p in inspect.signature(policy_class(name)).parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if missing := [key for key in needed if key not in arguments]:
        raise AprError(f"policy {name}: it needs {', '.join(f'{key}=…' for key in missing)}")


def make_policy(name: str, **arguments: Any) -> Policy:
    """Load a policy.

    Raises:
        AprError: there is no such policy, or it can't be made from these arguments.
    """
    check_policy(name, arguments)
    try:
        policy: Policy = policy_class(name)(**arguments)
    except AprError:
        raise
    except Exception as error:  # a checkpoint's files are read here, by libraries that raise whatever they meet
        if is_import_fault(error):
            raise BrokenInstall(f"policy {name} can't be loaded: {explain(error, _extra(name))}") from error
        kind = "" if isinstance(error, (TypeError, ValueError, OSError, ImportError, RuntimeError)) else f"{type(error).__name__}: "
        raise AprError(f"policy {name}: {kind}{error}") from error
    return policy


def did_you_mean(word: str, known: Any) -> str:
    """`" (did you mean 'x'?)"` where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def json_object(name: str, given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """An argument that is a mapping, or the JSON of one; empty where it was not given.

    Raises:
        ValueError: it is neither.
    """
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"{name} must be a JSON object: {error}") from error
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a JSON object, not {given!r:.80}")
    return dict(given)
