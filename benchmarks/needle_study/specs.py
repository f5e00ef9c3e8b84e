"""The arms of each part of the study, as `compare.specs` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apr_plugin.compare.specs import ArmSpec
from apr_plugin.errors import AprError
from apr_plugin.runs.arguments import join_arguments

BASE = {"policy": "hf", "dtype": "float32", "concurrency": "8", "batch_size": "8"}
"""model_args of every checkpoint."""


@dataclass(frozen=True)
class Named:
    """A checkpoint."""

    name: str
    folder: Path
    frames: int = 0
    """Frames that a passive rival is shown; 0 for an agent."""

    @classmethod
    def read(cls, text: str, passive: bool = False) -> Named:
        """From `NAME=FOLDER`, for a rival `NAME=FOLDER@FRAMES`.

        Raises:
            AprError: it has another form, or there is no checkpoint.
        """
        name, equals, rest = text.partition("=")
        folder, _, frames = rest.rpartition("@") if passive else (rest, "", "")
        if not equals or not name or not folder or (passive and not frames.isdecimal()):
            raise AprError(f"{text!r}: write NAME=FOLDER" + ("@FRAMES" if passive else ""))
        path = Path(folder).expanduser().resolve()
        if not (path / "config.json").is_file():
            raise AprError(f"{text!r}: {folder} has no checkpoint (config.json)")
        if "," in str(path):
            raise AprError(f"{text!r}: a folder with a comma can't be named in model_args")
        return cls(name, path, int(frames or 0))

    def arguments(self, settings: Mapping[str, str], **more: str) -> str:
        """model_args."""
        return join_arguments({**BASE, "pretrained": str(self.folder), **settings, **more})


Settings = Mapping[str, str]


def main_arms(agents: Sequence[Named], rivals: Sequence[Named], settings: Settings) -> list[ArmSpec]:
    """Agents, the scripted policy, rivals, and the controls of the first rival, or of the first agent without one.

    Controls are asked in the wire that the checkpoint was trained in.
    """
    arms = [ArmSpec(one.name, "agent", one.arguments(settings)) for one in agents]
    arms.append(ArmSpec("scripted", "agent", "policy=needle"))
    arms += [
        ArmSpec(one.name, "passive", one.arguments(settings, arm="passive", passive_frames=str(one.frames)))
        for one in rivals
    ]
    base = rivals[0] if rivals else agents[0]
    frames = str(base.frames or 24)
    for kind in ("blind", "single_frame", "shuffled", "oracle"):
        more = {"passive_frames": frames} if kind in ("shuffled", "oracle") else {}
        given = base.arguments(settings, arm=kind, passive_form="wire", **more)
        arms.append(ArmSpec(f"{kind.replace('_', ' ')} ({base.name})", kind, given))
    return arms


def scaling_arms(agent: Named, turns: Sequence[int], settings: Settings) -> list[ArmSpec]:
    """One agent with several budgets of turns."""
    return [ArmSpec(f"turns={value}", "agent", agent.arguments({**settings, "turns": str(value)})) for value in turns]


def ablation_arms(agent: Named, finished: Path, others: Sequence[Named], settings: Settings) -> list[ArmSpec]:
    """The agent as it is (a finished run), with other settings, and other checkpoints.

    Args:
        agent: The agent.
        finished: Its run of the main part.
        others: Checkpoints that were trained differently.
        settings: For every arm.
    """
    altered = {"policy": "altered", "profile": str(agent.folder)}
    arms = [ArmSpec(agent.name, "run", source=str(finished))]
    arms.append(ArmSpec("nearest keyframes", "agent", agent.arguments(settings, frame_mode="keyframe")))
    arms.append(ArmSpec("media kept", "agent", agent.arguments({**settings, **altered, "keep_media": "true"})))
    arms.append(
        ArmSpec("notes without observation", "agent", agent.arguments({**settings, **altered, "observation": "false"}))
    )
    return arms + [ArmSpec(one.name, "agent", one.arguments(settings)) for one in others]


def transfer_arms(agents: Sequence[Named], rivals: Sequence[Named], settings: Settings) -> list[ArmSpec]:
    """Agents, the scripted policy and rivals."""
    return [arm for arm in main_arms(agents, rivals, settings) if arm.kind in ("agent", "passive")]
