"""From sampled episodes to what a training step needs: rewards of all processes, and a row for each turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, Message, Prompt, TextPart
from apr_plugin.training.grpo.across import Across
from apr_plugin.training.grpo.action_tokens import action_mask
from apr_plugin.training.grpo.credit import Credit, CreditSettings, credit
from apr_plugin.training.grpo.groups import Chosen, GroupSettings, advantages, as_array, choose
from apr_plugin.training.grpo.rewards import Reward, RewardSettings, episode_length, reward, shaped_by_length
from apr_plugin.training.grpo.rollouts import Investigation
from apr_plugin.training.grpo.turns import Decode, turns_of_tokens
from apr_plugin.training.synthesis.questions import TrainingQuestion


@dataclass(frozen=True)
class Record:
    """What all processes know of a trajectory."""

    group: int
    """Its question in this rollout."""
    question: str
    """The question's name."""
    kind: str
    """How it is answered."""
    reward: Reward
    """What it earned."""
    length: int
    """For the reward for short episodes."""
    stop: str
    """Why it ended."""
    detail: str
    """The same in words."""
    failed: bool
    """Whether nothing is known about how the policy would have answered."""
    turns: int
    frames: int
    visual_tokens: int
    tokens: int
    """Tokens that the policy wrote."""
    errors: int
    """Turns whose action was refused or could not be read."""
    recovered: int
    """Those that were followed by a turn whose action was carried out."""
    seconds: float
    entropies: tuple[float, ...]
    """Mean entropy of the tokens of each turn, in nats."""
    learnable: bool
    """Whether it has a turn with tokens."""


def record_of(investigation: Investigation, asked: TrainingQuestion, group: int, settings: RewardSettings) -> Record:
    """What the other processes have to know of a trajectory.

    Raises:
        RewardError: the truth has no right answer that can be scored.
    """
    done = investigation.trajectory
    wrong = [turn.error is not None for turn in done.turns]
    return Record(
        group=group,
        question="/".join(filter(None, asked.key)),
        kind=str(asked.question.kind),
        reward=reward(done, asked.truth, settings, exact=asked.exact),
        length=episode_length(done, settings.length_of),
        stop=str(done.stop_reason),
        detail=done.stop_detail,
        failed=done.stop_reason.failed,
        turns=len(done.turns),
        frames=done.frames,
        visual_tokens=done.visual_tokens,
        tokens=sum(len(turn.generation.token_ids or ()) for turn in investigation.turns.values()),
        errors=sum(wrong),
        recovered=sum(here and not all(wrong[number + 1 :]) for number, here in enumerate(wrong)),
        seconds=done.timings.total_s,
        entropies=tuple(
            float(np.mean([value for value in turn.generation.entropies or () if value is not None] or [np.nan]))
            for _, turn in sorted(investigation.turns.items())
        ),
        learnable=bool(investigation.turns),
    )


@dataclass(frozen=True)
class Judged:
    """The rewards of a rollout, over all processes; every process finds the same."""

    records: tuple[Record, ...]
    rewards: tuple[Reward, ...]
    """With the part `length`."""
    chosen: Chosen
    """Which groups are learned from."""
    advantages: tuple[float, ...]
    """Of each trajectory; 0 where it is not learned from."""
    kept: tuple[bool, ...]
    """Which trajectories are learned from."""


def judge(
    records: Sequence[Record], settings: RewardSettings, groups: GroupSettings, *, wanted: int | None, step: int
) -> Judged:
    """Rewards, the choice of groups, and advantages.

    Args:
        records: Of all processes.
        settings: What is rewarded.
        groups: How groups are chosen and compared.
        wanted: Most groups to keep; `None` keeps all with spread.
        step: The present training step.

    Raises:
        AprError: every trajectory failed, so that there is nothing to learn from and something is broken.
    """
    if records and all(record.failed for record in records):
        raise AprError(
            f"step {step}: all {len(records)} trajectories failed; the first, of {records[0].question}: "
            f"{records[0].stop}: {records[0].detail}"
        )
    of = np.array([record.group for record in records], dtype=np.int64)
    rewards: list[Reward] = [record.reward for record in records]
    for group in np.unique(of):
        places = np.flatnonzero(of == group).tolist()
        shaped = shaped_by_length(
            [rewards[at] for at in places], [records[at].length for at in places], settings, step=step
        )
        for at, one in zip(places, shaped, strict=True):
            rewards[at] = one
    totals = as_array(rewards)
    broken = np.array([not record.learnable for record in records])
    chosen = choose(totals, of, wanted, broken=broken, settings=groups)
    kept = np.isin(of, chosen.groups) & ~np.isnan(totals) & ~broken
    found = advantages(np.where(kept, totals, np.nan), of, groups.scale_rewards)
    return Judged(tuple(records), tuple(rewards), chosen, tuple(found.tolist()), tuple(kept.tolist()))


@dataclass(frozen=True)
class TurnRow:
    """One turn as a training example."""

    prompt: Prompt
    """What the policy saw."""
    ids: tuple[int, ...]
    """The prompt's tokens; empty: not known."""
    target: tuple[int, ...]
    """The tokens that it wrote."""
    logprobs: tuple[float, ...] = ()
    """Of each of them, when it was sampled."""
    entropies: tuple[float, ...] = ()
    """Of the distribution of each, when it was sampled."""
    where: str = "padding"
    """Its name in messages."""
    trained: bool = True
    """False for padding: it goes through the model and gives no gradient."""
    advantage: float = 0.0
    """The advantage of its turn."""
    old: Any = None
    """Log-probabilities before the first of several updates, a tensor of shape (target,)."""
    reference: Any = None
    """Log-probabilities of a reference model, a tensor of shape (target,)."""

    @property
    def tokens(self) -> int:
        """All of its tokens."""
        return len(self.ids) + len(self.target)


def padding_row(end: int) -> TurnRow:
    """A short row that is not trained, for a process that has fewer rows than another.

    Args:
        end: The token that ends a turn.
    """
    return TurnRow(Prompt((Message("user", (TextPart("-"),)),)), (), (end,), trained=False)


Probabilities = Mapping[tuple[int, int], tuple[float, float]]
"""By trajectory (over all processes) and turn: the probability of the right answer before and after it (`gains`)."""


@dataclass(frozen=True)
class StepRows:
    """The rows of one process."""

    rows: tuple[TurnRow, ...]
    credit: Credit
    skipped: int = 0
    """Turns that are no rows: no token was written, or `rows_of` was told to leave them out."""


def rows_of(
    investigations: Sequence[Investigation],
    judged: Judged,
    first: int,
    settings: CreditSettings,
    across: Across,
    *,
    step: int,
    decode: Decode | None = None,
    keep: Callable[[Generation], bool] | None = None,
    probability: Probabilities | None = None,
) -> StepRows:
    """A row for every turn of the kept trajectories of this process, with its advantage. All processes must call it.

    Args:
        investigations: Those of this process.
        judged: Of all processes.
        first: The number, over all processes, of this process's first trajectory.
        settings: The rule of credit.
        across: The other processes.
        step: The present training step.
        decode: The tokenizer, for a rule that reads which tokens are the action.
        keep: Which turns are rows; by default all of which a token was written.
        probability: For a rule that reads it.

    Raises:
        AprError: credit can't be computed.
    """
    rows: list[TurnRow] = []
    places: list[tuple[int, int, int]] = []
    skipped = 0
    for at, investigation in enumerate(investigations, first):
        if not judged.kept[at]:
            continue
        record = judged.records[at]
        skipped += len(investigation.trajectory.turns) - len(investigation.turns)
        for number, turn in sorted(investigation.turns.items()):
            if keep is not None and not keep(turn.generation):
                skipped += 1
                continue
            rows.append(_row(turn, f"{record.question}, trajectory {at}, turn {number}"))
            places.append((record.group, at, number))
    longest = max((len(row.target) for row in rows), default=0)
    entropies, wrote = np.zeros((len(rows), longest)), np.zeros((len(rows), longest), dtype=bool)
    action = np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        n = len(row.target)
        entropies[number, :n], wrote[number, :n] = row.entropies, True
        if decode is not None:
            action[number, :n] = action_mask(row.target, decode)
    ids = np.array(places, dtype=np.int64).reshape(-1, 3)
    turns = turns_of_tokens(
        entropies,
        wrote,
        group=ids[:, 0],
        trajectory=ids[:, 1],
        number=ids[:, 2],
        groups=max((record.group for record in judged.records), default=-1) + 1,
        trajectories=len(judged.records),
        top_k=None,
        action=None if decode is None else action,
    )
    if probability is not None:
        known = np.array([probability[at, number] for _, at, number in places], dtype=float).reshape(-1, 2)
        earned = [judged.rewards[at].total for _, at, _ in places]
        turns = turns.with_probabilities(known, np.array(earned, dtype=float))
    own = [judged.advantages[place[1]] for place in places]
    given = credit(turns, own, settings, across, step=step)
    done = tuple(replace(row, advantage=float(value)) for row, value in zip(rows, given.advantages, strict=True))
    return StepRows(done, given, skipped)


def _row(turn: Any, where: str) -> TurnRow:
    said = turn.generation
    n = len(said.token_ids or ())
    for name, values in (("log-probabilities", said.logprobs), ("entropies", said.entropies)):
        if values is None or len(values) != n:
            raise AprError(f"{where}: {n} tokens and {len(values or ())} {name}; the policy must give one of each")
    if said.entropy_top_k is not None:
        raise AprError(f"{where}: its entropies are over the likeliest {said.entropy_top_k} tokens")
    ids = said.prompt_token_ids or ()
    return TurnRow(turn.prompt, ids, said.token_ids, said.logprobs, said.entropies, where, old=turn.old)


def together(rows: Sequence[TurnRow], token_budget: int | None) -> list[tuple[TurnRow, ...]]:
    """Which rows go through the model together: the longest first, so that processes work on similar rows at a time.

    Args:
        rows: The rows.
        token_budget: Most tokens of one forward, padding included; a longer row is alone. `None`: each row is alone.
    """
    made: list[list[TurnRow]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: -row.tokens):
        if made and token_budget is not None and (len(made[-1]) + 1) * longest <= token_budget:
            made[-1].append(row)
        else:
            made.append([row])
            longest = row.tokens
    return [tuple(pack) for pack in made]


@dataclass(frozen=True)
class Part:
    """The rows of one optimizer step in one process."""

    packs: tuple[tuple[TurnRow, ...], ...]
    """What goes through the model at once; every process has as many."""
    rows: int
    """Trained rows of all processes."""
    tokens: int
    """Trained tokens of all processes."""


def trained_tokens(rows: Sequence[TurnRow]) -> int:
    """Tokens of the rows that are trained."""
    return sum(len(row.target) for row in rows if row.trained)
