"""Turns the flat `key=value` arguments of a harness into a policy and an episode configuration.

This is shared by every harness and by `apr ask`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from apr_plugin import options
from apr_plugin.errors import AprError, require
from apr_plugin.loop.arms import ARMS
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import HELD_BYTES
from apr_plugin.loop.notebook import is_template, load_system_prompt
from apr_plugin.loop.policy import Policy, Sampling
from apr_plugin.loop.profile_file import PROFILE_FILE, read_profile
from apr_plugin.loop.profiles import PROFILES, Profile, WireName
from apr_plugin.loop.wires import WIRES, wire_of
from apr_plugin.media import MediaSettings
from apr_plugin.models.profile import profile_of_arguments
from apr_plugin.policies import check_policy, did_you_mean, known_policies, make_policy, policy_arguments
from apr_plugin.runs.limits import Limits, limits_of
from apr_plugin.runs.store import Resume
from apr_plugin.terminal import quoted, shortened

_SAMPLING = tuple(f.name for f in fields(Sampling) if f.name != "seed")
_BUDGET = tuple(Budget.model_fields)
_LIMITS: dict[str, Limits] = {
    **{key: limits for key in ("passive_frames", "seed") if (limits := limits_of(EpisodeConfig, key)) is not None},
    "concurrency": Limits(1, 10_000, whole=True),
    "decode_threads": Limits(1, 1024, whole=True),
    "decoded_gib": Limits(0.001, 65_536),
    "temperature": Limits(0, 100),
    "top_p": Limits(0, 1, above=True),
    "top_k": Limits(1, 10_000_000, whole=True, also=(-1,), words="or -1 for every token"),
    "max_new_tokens": Limits(1, 2**20, whole=True),
}
"""Numbers that are not in the budget; the limits of the budget's numbers are on its fields."""

_FASTEST_FPS = 60
LOADING = ("hf", "vllm")
"""Policies that load a checkpoint in this process, whose profile then counts."""
OWN_PROFILE = "checkpoint"
"""The value of `profile` for the checkpoint's own profile, which is an error if there is none."""
_MEDIA = {"frame_mode": "mode", "decoder": "decoder", "isolation": "isolation"}
_OWN = (
    "policy",
    "arm",
    "passive_frames",
    "profile",
    "wire",
    "frame_references",
    "frame_times",
    "passive_form",
    "parsing",
    "system_prompt",
    "seed",
    "concurrency",
    "decode_threads",
    "decoded_gib",
    "trajectories",
    "resume",
    "media_root",
)


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do."""

    policy: Policy
    """The policy that answers."""
    config: EpisodeConfig
    """Limits, arm, sampling, seed."""
    concurrency: int
    """The number of episodes at once."""
    decode_threads: int | None
    """The number of looks that are read at once; `None` is one per processor."""
    decoded_bytes: int
    """Memory for decoded pictures and sound, over all episodes."""
    trajectories: Path
    """Folder of trajectory files."""
    resume: Resume
    """`auto` continues an earlier run of the same configuration."""


def read_settings(arguments: Mapping[str, Any], policy: Policy | None = None) -> Settings:
    """Split the arguments into our own, the budget's fields, sampling, and the rest for the policy.

    Args:
        arguments: By name.
        policy: A policy that already exists; then no argument names one or is passed to it.

    Raises:
        AprError: an argument is missing, unknown, or has a bad value; the message names it and the known ones.
    """
    name, for_policy, settings = _read(arguments, policy)
    return Settings(make_policy(name, **for_policy) if policy is None else policy, **settings)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Find a mistake in the arguments without loading the policy.

    Raises:
        AprError: as `read_settings`, except for what only the policy can check.
    """
    _read(arguments, fetch=False)


def _read(
    arguments: Mapping[str, Any], policy: Policy | None = None, *, fetch: bool = True
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The policy's name, its arguments, and every field of `Settings` except the policy."""
    given = dict(arguments)
    for key, value in given.items():
        if value == "":
            raise AprError(f"model_arg {quoted(key, 60)} is empty: write {shortened(key, 60)}=VALUE, or leave it out")
    if policy is None and given.get("policy") is None:
        raise AprError(f"model_args need policy=NAME; the policies are {', '.join(sorted(known_policies()))}")
    name = str(given.pop("policy")) if policy is None else policy.name
    for_policy = policy_arguments(name) if policy is None else ()
    if policy is None:
        check_policy(name, given)
    known = {*_OWN, *_BUDGET, *_MEDIA, *_SAMPLING, *for_policy}
    for key in given:
        if key not in known:
            raise AprError(
                f"unknown model_arg {quoted(key, 60)}{did_you_mean(key, known)}. Known: {', '.join(_OWN)}; "
                f"limits: {', '.join(_BUDGET)}; "
                f"media: {', '.join(_MEDIA)}; sampling: {', '.join(_SAMPLING)}; policy {name}: "
                f"{', '.join(for_policy) or 'none'}"
            )
    resume = str(given.get("resume", "auto"))
    if resume not in ("auto", "never"):
        raise AprError(f"model_arg resume must be 'auto' or 'never', not {quoted(resume)}")
    profile = _profile(given, name if policy is None else "", fetch)
    return (
        name,
        {key: given[key] for key in for_policy if key in given},
        {
            "config": _read_config(given, profile),
            "concurrency": _number(given, "concurrency", 4),
            "decode_threads": _number(given, "decode_threads", 1) if given.get("decode_threads") is not None else None,
            "decoded_bytes": int(_number(given, "decoded_gib", HELD_BYTES / 2**30) * 2**30),
            "trajectories": Path(str(given.get("trajectories", "apr_runs"))).expanduser(),
            "resume": cast(Resume, resume),
        },
    )


def _profile(given: Mapping[str, Any], policy: str, fetch: bool) -> Profile:
    """The profile that the arguments name, or that the checkpoint carries, or the default one."""
    named = given.get("profile")
    if named is None or named == OWN_PROFILE:
        found = profile_of_arguments(policy, given, fetch=fetch) if policy in LOADING else None
        if found is not None:
            return found.profile()
        if named is not None and (fetch or policy not in LOADING):
            where = given.get("pretrained") if policy in LOADING else "policies other than " + ", ".join(LOADING)
            raise AprError(
                f"model_arg profile={OWN_PROFILE}: {where} carries no {PROFILE_FILE}; name a profile "
                f"({', '.join(PROFILES)}) or the file of one"
            )
        return PROFILES["default"]
    if str(named) in PROFILES:
        return PROFILES[str(named)]
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no name of a file: too long, a null, an unknown user
        if Path(str(named)).expanduser().exists():
            return read_profile(str(named)).profile()
    raise AprError(
        f"there is no profile {quoted(str(named))}; the profiles are {', '.join(PROFILES)}, {OWN_PROFILE} (the "
        f"checkpoint's own), or a file {PROFILE_FILE} or the folder that has it"
    )


def _read_config(given: Mapping[str, Any], profile: Profile) -> EpisodeConfig:
    wire = str(given.get("wire", profile.wire))
    if wire not in WIRES:
        raise AprError(f"there is no wire {quoted(wire)}; the wires are {', '.join(WIRES)}")
    arm = str(given.get("arm", "agent"))
    if arm not in ARMS:
        raise AprError(f"there is no arm {quoted(arm)}{did_you_mean(arm, ARMS)}; the arms are {', '.join(ARMS)}")
    parsing = str(given.get("parsing", profile.parsing))
    if parsing not in ("repair", "strict"):
        raise AprError(f"model_arg parsing must be 'repair' or 'strict', not {quoted(parsing)}")
    own = profile if wire == profile.wire else PROFILES["default"]  # another wire has its own defaults
    passive_form = str(given.get("passive_form", own.passive_form))
    if passive_form not in ("default", "wire"):
        raise AprError(f"model_arg passive_form must be 'default' or 'wire', not {quoted(passive_form)}")
    references, frame_times = (
        was if (read := _flag(key, given)) is None else read
        for key, was in (("frame_references", own.frame_references), ("frame_times", own.frame_times))
    )
    try:
        form = wire_of(wire, references, frame_times)
    except ValueError as error:
        raise AprError(f"model_arg {error}") from error
    if form.references and parsing == "strict" and arm == "agent":
        raise AprError(
            f"parsing=strict reads no names of frames, which wire={wire} has here: use parsing=repair, or "
            "frame_references=false"
        )
    prompt, template = profile.instructions, profile.instructions_template
    if given.get("system_prompt") in ("none", "default"):
        prompt, template = ("" if given["system_prompt"] == "none" else None), False
    elif given.get("system_prompt"):
        try:
            prompt = load_system_prompt(str(given["system_prompt"]))
            template = is_template(str(given["system_prompt"]))
        except (OSError, ValueError) as error:  # not text, or a name with a null character
            why = getattr(error, "strerror", None) or error
            raise AprError(f"model_arg system_prompt: cannot read {given['system_prompt']}: {why}") from error
    try:
        for key in _BUDGET:
            if (
                (limits := limits_of(Budget, key)) is not None
                and key in given
                and not limits.hold(options.given(given[key]))
            ):
                raise AprError(f"model_arg {key}={_shown(given[key])}: it must be {limits}")
        budget = Budget.model_validate(
            profile.budget.model_dump() | {key: _limit(key, given[key]) for key in _BUDGET if key in given}
        )
        _check_together(budget, given)
        return EpisodeConfig(
            arm=cast(Any, arm),
            passive_frames=_number(given, "passive_frames", 32),
            budget=budget,
            media=_read_media(given),
            wire=cast(WireName, wire),
            frame_references=None if form.references == WIRES[wire].references else form.references,
            frame_times=None if form.frame_times == WIRES[wire].frame_times else form.frame_times,
            sampling=_read_sampling(
                {key: given[key] for key in _SAMPLING if key in given},
                profile.sampled(WIRES[wire].sampling) if arm == "agent" or passive_form == "wire" else Sampling(),
            ),
            passive_form=cast(Literal["default", "wire"], passive_form),
            parsing=cast(Literal["repair", "strict"], parsing),
            system_prompt=prompt,
            system_prompt_template=prompt is not None and template,
            profile=profile.digest,
            seed=_number(given, "seed", 0),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise AprError(
            f"model_arg {'.'.join(map(str, fault['loc']))}={_shown(fault['input'])}: {fault['msg']}"
        ) from error


def _flag(key: str, given: Mapping[str, Any]) -> bool | None:
    """A setting that is true or false; `None` if it is not given."""
    if options.given(given.get(key)) is None:
        return None
    try:
        return options.flag(key, given[key])
    except ValueError as error:
        raise AprError(f"model_arg {error}") from error


def _limit(key: str, value: Any) -> Any:
    """The value for a field of the budget; one that is neither a number nor a truth value is left to the budget."""
    if Budget.model_fields[key].annotation is bool:
        try:
            return options.flag(key, value)
        except ValueError as error:
            raise AprError(f"model_arg {error}") from error
    limits, value = limits_of(Budget, key), options.given(value)
    return value if limits is None or value is None else limits.read(value)


def _check_together(budget: Budget, given: Mapping[str, Any]) -> None:
    """Refuse limits that contradict each other.

    A `max_turns` below the default of `min_turns` is allowed: the maximum applies.
    """
    if "min_turns" in given and budget.turns is None and budget.min_turns > budget.max_turns:
        raise AprError(
            f"model_arg min_turns={budget.min_turns} is above max_turns={budget.max_turns}: no video gets "
            "that many turns"
        )
    if budget.min_audio_s > budget.audio_s:
        raise AprError(
            f"model_arg min_audio_s={budget.min_audio_s:g} is above audio_s={budget.audio_s:g}: no sound "
            "could be asked for"
        )
    if budget.clip_s < budget.min_clip_frames / _FASTEST_FPS:
        raise AprError(
            f"model_arg clip_s={budget.clip_s:g} is shorter than min_clip_frames={budget.min_clip_frames} "
            f"last, even at {_FASTEST_FPS} frames "
            "a second: no clip could be asked for"
        )


def _read_sampling(given: Mapping[str, Any], default: Sampling) -> Sampling:
    values = asdict(default) | dict(given)
    if "stop" in given:
        values["stop"] = () if options.given(given["stop"]) is None else (str(given["stop"]),)
    for key in given:
        if key != "stop":
            values[key] = _number(given, key, 0)
    return Sampling(**values)


def _read_media(given: Mapping[str, Any]) -> MediaSettings:
    try:
        settings = MediaSettings.model_validate({field: given[key] for key, field in _MEDIA.items() if key in given})
    except ValidationError as error:
        fault = error.errors()[0]
        key = next(key for key, field in _MEDIA.items() if field == fault["loc"][0])
        raise AprError(f"model_arg {key}={_shown(fault['input'])}: {fault['msg']}") from error
    if settings.decoder == "decord":
        _check_decord()
    if given.get("media_root") is None:
        return settings
    root = Path(str(given["media_root"])).expanduser()
    if "\0" in str(root) or not root.is_dir():
        raise AprError(f"model_arg media_root={_shown(given['media_root'])}: no such folder")
    return settings.model_copy(update={"root": str(root.resolve())})


def _check_decord() -> None:
    """Import decord, because an installed decord may still not load; without it every question would fail."""
    require("decord", "decord")
    try:
        import decord  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise AprError(f"model_arg decoder=decord: decord is installed but can't be loaded: {error}") from error


def _number(given: Mapping[str, Any], key: str, default: float) -> Any:
    value, limits = given.get(key, default), _LIMITS[key]
    if not limits.hold(value):
        raise AprError(f"model_arg {key}={_shown(value)}: it must be {limits}")
    return limits.read(value)


def _shown(value: Any) -> str:
    """A value as the user typed it: lmms-eval turns all numbers except whole ones above 0 into fractions."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else quoted(value)
