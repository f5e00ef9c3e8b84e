"""`Profile`: settings of an episode that belong together. Each of them can also be set separately.

There are named ones (`PROFILES`), and a checkpoint may carry its own (`loop.profile_file`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from apr_plugin.loop.budget import PATCH_PIXELS, Budget
from apr_plugin.loop.policy import Sampling

WireName = Literal["apr", "omniagent", "compact"]


@dataclass(frozen=True)
class Profile:
    """The settings of an episode that are not set in another way."""

    budget: Budget = field(default_factory=Budget)
    """Limits, and the sizes of pictures."""

    wire: WireName = "apr"
    """The form of everything that a model reads and of the pictures that it sees (`apr_plugin.loop.wires`). It also
    says how turns are sampled, where `sampling` does not."""

    parsing: Literal["repair", "strict"] = "repair"
    """Whether mistakes of form are repaired."""

    frame_references: bool | None = None
    """As in `EpisodeConfig`."""

    frame_times: bool | None = None
    """As in `EpisodeConfig`."""

    passive_form: Literal["default", "wire"] = "default"
    """As in `EpisodeConfig`."""

    instructions: str | None = None
    """Instructions in place of the default ones; empty for none."""

    instructions_template: bool = False
    """Whether they are a template (`loop.notebook.render_instructions`)."""

    sampling: tuple[tuple[str, Any], ...] = ()
    """Fields of `Sampling` with their values, where they differ from those of the wire."""

    digest: str = ""
    """16 hex digits of the file that it was read from; empty for a named profile."""

    def sampled(self, default: Sampling) -> Sampling:
        """How turns are sampled, where the wire samples like this."""
        return Sampling(**(asdict(default) | dict(self.sampling)))


_OMNIAGENT = Profile(
    Budget(
        max_turns=32,
        frame_pixels=1024 * PATCH_PIXELS,
        clip_pixels=768 * PATCH_PIXELS,
        visual_tokens_per_look=None,
        prompt_tokens=65_536 - 32,
        on_last_turn="fail",
    ),
    wire="omniagent",
    parsing="strict",
)

PROFILES: dict[str, Profile] = {"default": Profile(), "omniagent": _OMNIAGENT, "paper": _OMNIAGENT}
"""Every profile by name.

`omniagent`, also called `paper`, is the published evaluation of OmniAgent (arXiv 2606.19341; HarryHsing/OmniAgent at
18725bc, `demo/launch_eval.sh` and `video_env.py`): 60 frames, 300 s or 60 s per look, 1024 and 768 visual tokens per
picture, a prompt of 65,536 tokens less 32, 5 to 32 turns, no forced answer, its wire, its sampling, strict parsing.
"""
