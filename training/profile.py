"""The profile that a trained checkpoint carries (`apr_plugin.loop.profile_file`): in which form it was trained.

It is written beside the final checkpoint, beside adapters, and into the checkpoints of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.profile_file import ProfileFile, SampledBy
from apr_plugin.training.rows import Row


@dataclass(frozen=True)
class Carried:
    """A profile, and where it comes from."""

    file: ProfileFile
    """The profile."""
    told: str = ""
    """What the model card says of its origin."""

    def about(self) -> dict[str, Any]:
        """The profile for the card of a training run, with its digest."""
        return {"digest": self.file.digest, "origin": self.told, **self.file.model_dump(mode="json")}


def profile_of_config(config: EpisodeConfig, most_pixels: int | None = None) -> ProfileFile:
    """The profile with which a policy is asked as in these episodes.

    How turns are sampled is left out, except for their longest length and what ends them: a teacher's sampling is not
    the student's, and the temperature of rollouts explores.

    Args:
        config: Of the episodes.
        most_pixels: Most pixels of a picture, where smaller ones are learned from than the episodes showed.
    """
    sampling, limits = config.sampling, config.budget
    if most_pixels is not None:
        smaller = {name: min(getattr(limits, name), most_pixels) for name in ("frame_pixels", "clip_pixels")}
        limits = limits.model_copy(update=smaller)
    return ProfileFile(
        wire=config.wire,
        frame_references=config.frame_references,
        frame_times=config.frame_times,
        parsing=config.parsing,
        instructions=config.system_prompt,
        instructions_template=config.system_prompt_template,
        limits=limits,
        sampling=SampledBy(max_new_tokens=sampling.max_new_tokens, stop=sampling.stop or None),
    )


def profile_of_rows(rows: Iterable[Row], card: Callable[[str], Card] = Card.read) -> Carried | None:
    """The profile of most rows, by the cards of their runs; `None` if no row is a turn of an agent.

    Args:
        rows: The rows that are trained on.
        card: Reads the card at a place.

    Raises:
        CardError: a card can't be read.
    """
    places = Counter((row.card, row.most_pixels) for row in rows if row.card)
    counts: Counter[ProfileFile] = Counter()
    found: dict[str, ProfileFile] = {}
    for (place, most_pixels), count in places.items():
        profile = profile_of_config(card(place).config, most_pixels)
        found.setdefault(profile.digest, profile)
        counts[found[profile.digest]] += count
    if not counts:
        return None
    (most, count), *others = counts.most_common()
    whole = sum(counts.values())
    told = (
        "of all rows" if not others else f"of {count:,} of {whole:,} rows; {len(others)} other profiles are among them"
    )
    return Carried(most, told)


class WriteProfile(TrainerCallback):  # type: ignore[misc]
    """Write the profile into each checkpoint of training when it is saved."""

    def __init__(self, profile: ProfileFile) -> None:
        self.profile = profile

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write it into the newest one."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.profile.write(folder)
