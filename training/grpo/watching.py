"""What a run shows of itself: numbers of each rollout, and trajectories that can be opened."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from apr_plugin.errors import AprError
from apr_plugin.loop.card import Card
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.training.grpo.rollouts import Investigation
from apr_plugin.training.grpo.rows import Judged, Record, StepRows

MOST_TURNS = 32
"""Entropies are shown for so many turns."""


def rollout_metrics(judged: Judged) -> dict[str, float]:
    """Numbers of a rollout by the name that they have in a log; all processes find the same.

    | name | value |
    |---|---|
    | `reward`, `reward_std` | mean and standard deviation of the rewards |
    | `reward/PART`, `reward_of/KIND` | mean of a part of the reward, and of the reward of questions of a kind |
    | `right` | share of right answers, of the scorable trajectories |
    | `turns`, `frames`, `visual_tokens`, `completion_tokens`, `episode_seconds` | means over trajectories |
    | `stop/REASON` | share of trajectories that ended so |
    | `errors`, `errors_recovered` | refused turns in a trajectory; share of them after which an action succeeded |
    | `groups/FATE` | share of groups: kept, or why they were dropped |
    | `entropy/turn_NN` | mean entropy of the tokens of turn NN, in nats |
    """
    records, n = judged.records, max(1, len(judged.records))
    totals = [one.total for one in judged.rewards if one.total is not None]
    found = {
        "reward": _mean(totals),
        "reward_std": float(np.std(totals, ddof=1)) if len(totals) > 1 else 0.0,
        "right": _mean([one.right for one in judged.rewards if one.total is not None]),
        "turns": _mean([record.turns for record in records]),
        "frames": _mean([record.frames for record in records]),
        "visual_tokens": _mean([record.visual_tokens for record in records]),
        "completion_tokens": _mean([record.tokens for record in records]),
        "episode_seconds": _mean([record.seconds for record in records]),
        "errors": _mean([record.errors for record in records]),
    }
    if errors := sum(record.errors for record in records):
        found["errors_recovered"] = sum(record.recovered for record in records) / errors
    parts, kinds = defaultdict(list), defaultdict(list)
    for record, one in zip(records, judged.rewards, strict=True):
        for name, value in one.parts.items():
            parts[name].append(value)
        if one.total is not None:
            kinds[record.kind].append(one.total)
    found |= {f"reward/{name}": _mean(values) for name, values in parts.items()}
    found |= {f"reward_of/{name}": _mean(values) for name, values in kinds.items()}
    stops = Counter(record.stop for record in records)
    found |= {f"stop/{reason}": stops[str(reason)] / n for reason in StopReason}
    found |= {f"groups/{fate}": share for fate, share in judged.chosen.shares().items()}
    return found | _by_turn(records)


def row_metrics(rows: StepRows) -> dict[str, float]:
    """The spread of the weights of credit, over all processes."""
    return {f"credit/{name}": value for name, value in rows.credit.metrics.items()}


def _by_turn(records: Sequence[Record]) -> dict[str, float]:
    found = defaultdict(list)
    for record in records:
        for number, value in enumerate(record.entropies[:MOST_TURNS], 1):
            if math.isfinite(value):
                found[number].append(value)
    return {f"entropy/turn_{number:02}": _mean(values) for number, values in sorted(found.items())}


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return float(np.mean(given)) if given else math.nan


def keep_trajectories(
    folder: Path,
    card: Card,
    investigations: Sequence[Investigation],
    judged: Judged | None,
    first: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Write trajectories as a run folder, which `apr show` and `open_run` read, and `rewards.json` with their rewards.

    Args:
        folder: Where; a rollout that is there already under the same weights is replaced.
        card: Of the rollout.
        investigations: Trajectories of this process.
        judged: The rewards of all processes; without them no rewards are written.
        first: The number, over all processes, of the first of these trajectories.
        rank: This process, if others write to the same folder.
        world_size: How many write there.

    Raises:
        AprError: it can't be written.
    """
    with TrajectoryStore(folder, card.config_hash, card, rank=rank, world_size=world_size, resume="never") as store:
        for one in investigations:
            store.save(one.trajectory)
    if judged is None:
        return
    told = [
        {
            "question": judged.records[at].question,
            "repeat": one.trajectory.question.repeat,
            "reward": judged.rewards[at].total,
            "parts": dict(judged.rewards[at].parts),
            "reason": judged.rewards[at].reason,
            "advantage": judged.advantages[at],
            "learned_from": judged.kept[at],
        }
        for at, one in enumerate(investigations, first)
    ]
    name = "rewards.json" if world_size == 1 else f"rewards.rank{rank}.json"
    try:
        (folder / name).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise AprError(f"{folder / name}: cannot write it: {error.strerror or error}") from error
