"""A labelled set for judges: sound needle trajectories, and the same with an unsupported step and a right answer.

A plant is made from a sound trajectory, so its answer is right, and only an audit can find it:

- `skipped`: every look after the first is gone; the answer does not follow from what is left.
- `blinded`: the observations that contain the answer say that nothing could be made out.
- `foreseen`: the first look goes straight to where the answer is, which nothing told.
- `invented`: a thought refers to something that no note contains (a glyph, or a time).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from apr_plugin.compare.stats import Interval, proportion
from apr_plugin.loop.action import Answer
from apr_plugin.loop.trajectory import Trajectory, Turn
from apr_plugin.tasks.needle.palette import GLYPH_COLOURS, GLYPH_SHAPES

UNCLEAR = "The pictures are too small to make anything out."
SURE = 0.9
"""Least confidence of the answer of a sound trajectory: the needle policy says 0.95 where its notes tell, else 0.1."""


@dataclass(frozen=True)
class Labelled:
    """A trajectory of which it is known whether its steps follow."""

    trajectory: Trajectory
    plant: str
    """The kind of plant; empty for a sound one."""

    @property
    def video(self) -> str:
        """The video that it is about."""
        return self.trajectory.question.videos[0].path


def is_sound(trajectory: Trajectory) -> bool:
    """Whether a right trajectory of the needle policy rests on its notes: its answer is not a guess.

    Steps may have been refused; the ones after them recover.
    """
    turns = trajectory.turns
    last = turns[-1] if turns else None
    return (
        len(turns) >= 3
        and last is not None
        and isinstance(last.action, Answer)
        and not last.forced
        and (last.confidence or 0.0) >= SURE
    )


def labelled_set(trajectories: Iterable[Trajectory], seed: int = 0) -> list[Labelled]:
    """The sound ones of right trajectories, and for every one a plant of one kind, in turn.

    Args:
        trajectories: Right trajectories of the needle policy, or of a `NeedleTeacher` that is not hasty; those that are
            not sound are left out.
        seed: Of the choices within a plant.
    """
    found: list[Labelled] = []
    kinds = list(_PLANTS)
    for number, trajectory in enumerate(filter(is_sound, trajectories)):
        found.append(Labelled(trajectory, ""))
        chance = random.Random(f"{seed}:{trajectory.question.key}")
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            if (turns := _PLANTS[kind](trajectory.turns, chance)) is not None:
                # Another repeat, so that it is another trajectory to a store of verdicts.
                asked = trajectory.question.model_copy(update={"repeat": trajectory.question.repeat + 1_000})
                found.append(Labelled(trajectory.model_copy(update={"turns": turns, "question": asked}), kind))
                break
    return found


def _with(turn: Turn, **changes: Any) -> Turn:
    """A turn with other words; its text says the same."""
    changed = turn.model_copy(update=changes)
    action = None if changed.action is None else changed.action.model_dump(mode="json")
    text = {
        "observation": changed.observation, "think": changed.think, "confidence": changed.confidence, "action": action
    }  # fmt: skip
    return changed.model_copy(update={"text": json.dumps(text)})


def _skipped(turns: Sequence[Turn], chance: random.Random) -> tuple[Turn, ...] | None:
    if len(turns) < 3:
        return None
    return (turns[0], _with(turns[-1], observation=turns[1].observation))


def _blinded(turns: Sequence[Turn], chance: random.Random) -> tuple[Turn, ...] | None:
    # The first look is of the whole video and tells where to look; what the later ones showed is lost.
    return (*turns[:2], *(_with(turn, observation=UNCLEAR) for turn in turns[2:])) if len(turns) >= 3 else None


def _foreseen(turns: Sequence[Turn], chance: random.Random) -> tuple[Turn, ...] | None:
    aimed, last = turns[-2], turns[-1]
    if len(turns) < 3 or aimed.error is not None or aimed.action is None or isinstance(aimed.action, Answer):
        return None
    think = f"What I need is at {aimed.action.start:.1f} s, so I look there first."
    return (_with(aimed, observation=turns[0].observation, think=think), last)


def _invented(turns: Sequence[Turn], chance: random.Random) -> tuple[Turn, ...] | None:
    at = chance.choice([number for number in range(1, len(turns)) if turns[number].error is None])
    known = " ".join(turn.text for turn in turns)
    glyphs = [f"{colour} {shape}" for colour in GLYPH_COLOURS for shape in GLYPH_SHAPES]
    new = [glyph for glyph in glyphs if glyph not in known]
    if chance.random() < 0.5 and new:
        claim = f"I noted a {chance.choice(new)} before, and it settles what this is about."
    else:
        second = next(n for n in iter(lambda: chance.randint(2, 5_000), None) if not re.search(rf"\b{n}\b", known))
        claim = f"I noted before that the scene changes at {second} s, and it settles what this is about."
    return tuple(_with(turn, think=f"{claim} {turn.think}") if n == at else turn for n, turn in enumerate(turns))


_PLANTS: dict[str, Callable[[Sequence[Turn], random.Random], tuple[Turn, ...] | None]] = {
    "skipped": _skipped,
    "blinded": _blinded,
    "foreseen": _foreseen,
    "invented": _invented,
}


@dataclass(frozen=True)
class Quality:
    """How well an audit tells plants from sound trajectories; intervals are clustered by video."""

    recall: Interval | None
    """Share of the plants that were dropped."""
    precision: Interval | None
    """Share of what was dropped that is a plant."""
    sound_kept: Interval | None
    """Share of the sound ones that were kept."""
    by_plant: dict[str, Interval | None]
    """Share of each kind of plant that was dropped."""
    sound: int
    planted: int


def quality(labelled: Sequence[Labelled], dropped: Sequence[bool]) -> Quality:
    """Precision and recall of an audit.

    Args:
        labelled: The set.
        dropped: For each, whether the audit dropped it.
    """
    rows = list(zip(labelled, dropped, strict=True))

    def share(chosen: Sequence[tuple[Labelled, bool]], of: Callable[[Labelled, bool], bool]) -> Interval | None:
        return proportion([of(one, gone) for one, gone in chosen], [one.video for one, _ in chosen])

    plants = [row for row in rows if row[0].plant]
    sound = [row for row in rows if not row[0].plant]
    return Quality(
        share(plants, lambda _, gone: gone),
        share([row for row in rows if row[1]], lambda one, _: bool(one.plant)),
        share(sound, lambda _, gone: not gone),
        {kind: share([row for row in plants if row[0].plant == kind], lambda _, gone: gone) for kind in _PLANTS},
        len(sound),
        len(plants),
    )
