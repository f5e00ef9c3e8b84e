"""What the arms of a comparison are called on the command line: `--agent ARGS` and `--against SPEC`.

| spec | arm |
|---|---|
| `passive:matched` | the agent's model, once, with uniform frames that cost the agent's own mean visual tokens |
| `passive:frames=N` | the agent's model, once, with N uniform frames |
| `blind`, `single_frame` | the agent's model without pictures, or with the middle frame |
| `shuffled`, `oracle` | uniform frames in no order; frames of the evidence; `:frames=N` sets their number |
| `lmms:MODEL,ARGS` | another model class of lmms-eval |
| `run:DIR` | a finished run |
| `rows:FILE` | per-question rows that somebody else published (`compare.joined.arm_of_rows`) |
| `published:NAME` | published figures of a benchmark; shown, never tested against |

An arm of the agent's model takes the agent's arguments. More of them after the spec (`passive:frames=768,pretrained=B`)
replace them. `label=NAME` names an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.loop.arms import ARMS
from apr_plugin.policies import did_you_mean
from apr_plugin.runs.arguments import join_arguments, split_arguments
from apr_plugin.terminal import quoted

OWN = tuple(name for name in ARMS if name != "agent")
"""Arms of this package that answer in one turn."""

KINDS = (*OWN, "lmms", "run", "rows", "published")
"""What `--against` takes."""

WITH_FRAMES = ("passive", "shuffled", "oracle")
"""Arms whose number of frames can be chosen."""

_RESERVED = ("arm", "trajectories")


@dataclass(frozen=True)
class ArmSpec:
    """One arm that was asked for."""

    name: str
    """What it is called in tables, and in its folder."""
    kind: str
    """`agent` or one of `KINDS`."""
    arguments: str = ""
    """model_args, for what lmms-eval is to run."""
    model: str = "apr"
    """lmms-eval's name of the model."""
    matched: bool = False
    """Whether its number of frames comes from what the agent spent."""
    source: str = ""
    """Folder, file, or name of a benchmark, for what is read and not run."""

    @property
    def is_run(self) -> bool:
        """Whether lmms-eval runs it."""
        return self.kind not in ("run", "rows", "published")


def read_specs(agents: Sequence[str], against: Sequence[str]) -> list[ArmSpec]:
    """The arms of a comparison, the agents first.

    Args:
        agents: model_args of each agent.
        against: Specs as in the table above.

    Raises:
        AprError: a spec can't be read, or there is no agent although one of the arms needs its model.
    """
    specs: list[ArmSpec] = []
    for text in agents:
        arguments = split_arguments(text)
        _refuse_reserved("--agent", arguments)
        label = arguments.pop("label", "") or ("agent" if len(agents) == 1 else f"agent {len(specs) + 1}")
        specs.append(ArmSpec(label, "agent", join_arguments(arguments)))
    base = split_arguments(specs[0].arguments) if specs else None
    specs += [_against(text, base) for text in against]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise AprError(f"two arms are called {quoted(name, 60)}; name one of them with label=NAME")
    return specs


def with_frames(spec: ArmSpec, frames: int) -> ArmSpec:
    """The same arm with so many frames."""
    arguments = split_arguments(spec.arguments) | {"passive_frames": str(frames)}
    return ArmSpec(spec.name, spec.kind, join_arguments(arguments), spec.model, spec.matched, spec.source)


def _against(text: str, base: dict[str, str] | None) -> ArmSpec:
    kind, _, rest = text.partition(":")
    if "," in kind:  # `blind,label=closed eyes`
        kind, _, rest = text.partition(",")
    kind = kind.strip()
    if kind not in KINDS:
        raise AprError(
            f"--against {quoted(text, 80)}: there is no arm {quoted(kind, 40)}{did_you_mean(kind, KINDS)}; "
            f"there are {', '.join(KINDS)}"
        )
    if kind in ("run", "rows", "published"):
        return _read_only(kind, rest.strip(), text)
    if kind == "lmms":
        model, _, more = rest.partition(",")
        arguments = split_arguments(more)
        label = arguments.pop("label", model)
        if not model or "=" in model:
            raise AprError(f"--against {quoted(text, 80)}: name a model of lmms-eval first: lmms:qwen2_5_vl,ARGS")
        return ArmSpec(label, kind, join_arguments(arguments), model)
    if base is None:
        raise AprError(f"--against {quoted(text, 80)}: it takes the agent's model; give --agent")
    matched = rest.partition(",")[0].strip() == "matched"
    if matched:
        rest = rest.partition(",")[2]
        if kind != "passive":
            raise AprError(f"--against {quoted(text, 80)}: only passive can be matched to the agent")
    changes = split_arguments(rest)
    _refuse_reserved(f"--against {quoted(text, 80)}", changes)
    frames = changes.pop("frames", None)
    if frames is not None:
        if kind not in WITH_FRAMES or matched:
            raise AprError(f"--against {quoted(text, 80)}: frames= is for {', '.join(WITH_FRAMES)}, without matched")
        if not frames.isdecimal() or int(frames) < 1:
            raise AprError(f"--against {quoted(text, 80)}: frames={quoted(frames, 40)} must be a whole number from 1")
        changes["passive_frames"] = frames
    label = changes.pop("label", "") or " ".join(
        [kind.replace("_", " "), *(["matched"] if matched else [frames] if frames else [])]
        + [Path(changes[name]).name for name in ("pretrained", "model") if name in changes]
    )
    arguments = {**base, **changes, "arm": kind}
    return ArmSpec(label, kind, join_arguments(arguments), matched=matched)


def _read_only(kind: str, rest: str, text: str) -> ArmSpec:
    source, comma, label = rest.partition(",label=")
    if not source:
        raise AprError(f"--against {quoted(text, 80)}: say which: {kind}:{'NAME' if kind == 'published' else 'PATH'}")
    if kind == "published":
        return ArmSpec(label if comma else f"published {source}", kind, source=source)
    path = Path(source).expanduser() if source.startswith("~") else Path(source)
    return ArmSpec(label or path.name or path.resolve().name, kind, source=str(path))


def _refuse_reserved(where: str, arguments: dict[str, str]) -> None:
    for name in _RESERVED:
        if name in arguments:
            raise AprError(f"{where}: {name}= is set by the comparison itself; leave it out")
