"""From the flat `key=value` arguments of a harness to a policy and an episode configuration. Shared by every harness and by `apr ask`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from apr_plugin.errors import AprError
from apr_plugin.loop.budget import PROFILES, Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import HELD_BYTES
from apr_plugin.loop.notebook import load_system_prompt
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.loop.store import Resume
from apr_plugin.media import MediaSettings
from apr_plugin.policies import check_policy, did_you_mean, make_policy, policy_arguments

_SAMPLING = tuple(f.name for f in fields(Sampling) if f.name != "seed")
_SAMPLING_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value < math.inf, "at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: value == -1 or value >= 1, "at least 1, or -1 for every token"),
    "max_new_tokens": (lambda value: value >= 1, "at least 1"),
}
_BUDGET = tuple(Budget.model_fields)
_MEDIA = {"frame_mode": "mode", "decoder": "decoder", "isolation": "isolation"}
_OWN = (
    "policy",
    "arm",
    "passive_frames",
    "profile",
    "system_prompt",
    "seed",
    "concurrency",
    "decode_threads",
    "decoded_gib",
    "trajectories",
    "resume",
)


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do."""

    policy: Policy
    """Who answers."""
    config: EpisodeConfig
    """Limits, arm, sampling, seed."""
    concurrency: int
    """Episodes at once."""
    decode_threads: int | None
    """Looks read at once; `None` is one per processor."""
    decoded_bytes: int
    """Memory for decoded pictures and sound, over all episodes."""
    trajectories: Path
    """Folder of trajectory files."""
    resume: Resume
    """`auto` continues an earlier run of the same configuration."""


def read_settings(arguments: Mapping[str, Any]) -> Settings:
    """Sort out the arguments: our own, the budget's fields, sampling, and the rest for the policy.

    Raises:
        AprError: an argument is missing, unknown, or has a bad value; the message names it and what is known.
    """
    name, for_policy, settings = _read(arguments)
    return Settings(make_policy(name, **for_policy), **settings)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Find a mistake in the arguments without loading the policy.

    Raises:
        AprError: as `read_settings`, but for what only the policy can tell.
    """
    _read(arguments)


def _read(arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The policy's name, its arguments, and every field of `Settings` besides the policy."""
    given = dict(arguments)
    if given.get("policy") is None:
        from apr_plugin.policies import POLICIES

        raise AprError(f"model_args need policy=NAME; the policies are {', '.join(sorted(POLICIES))}")
    name = str(given.pop("policy"))
    for_policy = policy_arguments(name)
    check_policy(name, given)
    known = {*_OWN, *_BUDGET, *_MEDIA, *_SAMPLING, *for_policy}
    for key in given:
        if key not in known:
            raise AprError(
                f"unknown model_arg {key!r}{did_you_mean(key, known)}. Known: {', '.join(_OWN)}; limits: {', '.join(_BUDGET)}; "
                f"media: {', '.join(_MEDIA)}; sampling: {', '.join(_SAMPLING)}; policy {name}: {', '.join(for_policy) or 'none'}"
            )
    resume = str(given.get("resume", "auto"))
    if resume not in ("auto", "never"):
        raise AprError(f"model_arg resume must be 'auto' or 'never', not {resume!r}")
    return (
        name,
        {key: given[key] for key in for_policy if key in given},
        {
            "config": _read_config(given),
            "concurrency": _whole(given, "concurrency", 4),
            "decode_threads": _whole(given, "decode_threads", 0) if given.get("decode_threads") is not None else None,
            "decoded_bytes": _gib(given, "decoded_gib"),
            "trajectories": Path(str(given.get("trajectories", "apr_runs"))).expanduser(),
            "resume": cast(Resume, resume),
        },
    )


def _read_config(given: Mapping[str, Any]) -> EpisodeConfig:
    profile = str(given.get("profile", "default"))
    if profile not in PROFILES:
        raise AprError(f"there is no profile {profile!r}; the profiles are {', '.join(PROFILES)}")
    arm = str(given.get("arm", "agent"))
    if arm not in ("agent", "passive"):
        raise AprError(f"model_arg arm must be 'agent' or 'passive', not {arm!r}")
    prompt: str | None = None
    if given.get("system_prompt"):
        try:
            prompt = load_system_prompt(str(given["system_prompt"]))
        except (OSError, UnicodeDecodeError) as error:
            raise AprError(f"model_arg system_prompt: cannot read {given['system_prompt']}: {error}") from error
    try:
        budget = Budget.model_validate(PROFILES[profile].model_dump() | {key: _none(given[key]) for key in _BUDGET if key in given})
        return EpisodeConfig(
            arm=cast(Literal["agent", "passive"], arm),
            passive_frames=_whole(given, "passive_frames", 32, least=0),
            budget=budget,
            media=_read_media(given),
            sampling=_read_sampling({key: given[key] for key in _SAMPLING if key in given}),
            system_prompt=prompt,
            seed=_whole(given, "seed", 0, least=0),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise AprError(f"model_arg {'.'.join(map(str, fault['loc']))}={fault['input']!r}: {fault['msg']}") from error


def _read_sampling(given: Mapping[str, Any]) -> Sampling:
    sampling = TypeAdapter(Sampling).validate_python(dict(given))  # a dataclass checks nothing by itself: "0.5" would stay a string
    for key, (fits, limits) in _SAMPLING_LIMITS.items():
        if not fits(getattr(sampling, key)):
            raise AprError(f"model_arg {key} must be {limits}, not {given[key]!r}")
    return sampling


def _read_media(given: Mapping[str, Any]) -> MediaSettings:
    try:
        return MediaSettings.model_validate({field: given[key] for key, field in _MEDIA.items() if key in given})
    except ValidationError as error:
        fault = error.errors()[0]
        key = next(key for key, field in _MEDIA.items() if field == fault["loc"][0])
        raise AprError(f"model_arg {key}={fault['input']!r}: {fault['msg']}") from error


def _whole(given: Mapping[str, Any], key: str, default: int, least: int = 1) -> int:
    value = given.get(key, default)
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if number < least:
        raise AprError(f"model_arg {key} must be a whole number of at least {least}, not {value!r}")
    return number


def _gib(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key, HELD_BYTES / 2**30)
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise AprError(f"model_arg {key} must be a number above 0, not {value!r}")
    return int(number * 2**30)


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() == "none" else value
