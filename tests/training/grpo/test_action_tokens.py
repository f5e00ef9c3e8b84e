"""Which tokens of a turn are its action, found in any text, and the turns of recorded trajectories."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop import EpisodeConfig, MediaRef, Question, StopReason, Trajectory
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.policy import Generation, PolicyDefaults, Prompt, Sampling
from apr_plugin.runs import run_episodes
from apr_plugin.runs.meter import run_sync
from apr_plugin.training.grpo.action_tokens import action_mask, action_span
from apr_plugin.training.grpo.credit import CreditSettings, credit
from apr_plugin.training.grpo.turns import CreditError, turns_of_trajectories

ACTION = '{"type": "answer", "content": "a } b"}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"observation": "", "think": "", "confidence": 1, "action": ', "}"),
        ('{"observation": "a \\"action\\": {} b", "action":', ', "think": "x"}'),
        ('```json\n{"think": "x", "action" : ', ",}\n```"),
        ('<think>I could {"action": {"type": "x"}}</think>\n{"think": "é 漢字 🎬", "action": ', "}"),
        ('Words {"n": [1, {"a": 2}], "o": {"action": {"no": 1}}, "action": ', "} more"),
        ('{"observation": "line\nbreak", "action": ', ""),
    ],
)
def test_where_the_action_stands(before: str, after: str) -> None:
    assert action_span(before + ACTION + after) == (len(before), len(before + ACTION))


@pytest.mark.parametrize(
    "text",
    ["", "no object", '{"think": "x"}', '{"action": "answer"}', '{"action": {"type": "get_frames", "start": 1',
     '<think>{"action": {}}', "{" * 5_000, '{"a": ' * 3_000, '{"action', '{"action": [1]}'],
    ids=range(10),
)  # fmt: skip
def test_no_action(text: str) -> None:
    assert action_span(text) is None


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=50)
def test_any_text(text: str) -> None:
    span = action_span(text)
    assert span is None or 0 <= span[0] < span[1] <= len(text)


@given(st.text(max_size=40), st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
@settings(deadline=None, max_examples=60)
def test_any_values_around_it(observation: str, think: str, action: dict[str, int]) -> None:
    text = json.dumps({"observation": observation, "think": think, "action": action}, ensure_ascii=False)
    span = action_span(text)
    assert span is not None and json.loads(text[slice(*span)]) == action


@given(st.text(max_size=60), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_tokens_that_a_tokenizer_would_not_choose(think: str, seed: int) -> None:
    """Tokens that are cut anywhere between characters: those that share a character with the action are its tokens."""
    import random

    text = json.dumps({"think": think, "action": {"type": "answer", "content": "é"}}, ensure_ascii=False)
    chance = random.Random(seed)
    cuts = sorted({0, len(text), *(chance.randrange(len(text)) for _ in range(9))})
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    span = action_span(text)
    assert span is not None
    mask = action_mask(range(len(pieces)), lambda ids: "".join(pieces[at] for at in ids))
    expected = [a < span[1] and b > span[0] for a, b in pairwise(cuts)]
    assert mask.tolist() == expected


def test_tokens_of_a_real_tokenizer() -> None:
    """Bytes as tokens, which cut a character; the end of the turn is none of the action's."""
    pytest.importorskip("transformers")
    from tiny_models import tokenizer_of

    tokenizer = tokenizer_of((), {})

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    text = json.dumps({"observation": "日本 é", "action": {"type": "answer", "content": "漢"}}, ensure_ascii=False)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    mask = action_mask(ids, decode)
    chosen = decode([token for token, own in zip(ids, mask, strict=True) if own])
    assert json.loads(chosen) == {"type": "answer", "content": "漢"} and not mask[-1]
    assert not action_mask(tokenizer("nothing here")["input_ids"], decode).any()


class Letters(PolicyDefaults):
    """Says texts whose tokens are letters, each with an entropy of its own; `top_k` is what it says of them."""

    name = "letters"

    def __init__(self, texts: Sequence[str], entropies: Sequence[float | None], top_k: int | None = None) -> None:
        self.texts, self.entropies, self.top_k = list(texts), list(entropies), top_k

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        at = min(prompt.asked.turn, len(self.texts)) - 1
        text, entropy = self.texts[at], self.entropies[at]
        ids = tuple(map(ord, text))
        values: Any = None if entropy is None else (entropy,) * len(ids)
        return Generation(text, token_ids=ids, entropies=values, entropy_top_k=self.top_k)

    def describe(self) -> dict[str, Any]:
        return {"texts": len(self.texts)}


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def sampled(shared_videos: dict[str, Path]) -> Callable[..., Trajectory]:
    """An episode of a policy whose turns have these entropies."""

    def make(entropies: Sequence[float | None], repeat: int = 0, top_k: int | None = None) -> Trajectory:
        video = MediaRef(path=str(shared_videos["silent"]))
        asked = Question(text="?", kind="free_form", task="t", doc_id="1", repeat=repeat, videos=(video,))  # type: ignore[arg-type]
        texts = [*(look(0, at + 1, 2) for at in range(len(entropies) - 1)), answer("x")]
        config = EpisodeConfig(budget=Budget(turns=len(entropies)))
        (done,) = run_sync(run_episodes([asked], Letters(texts, entropies, top_k), config))
        assert len(done.turns) == len(entropies) and done.answer == "x"
        return Trajectory.from_json(done.to_json())

    return make


def test_turns_of_trajectories(sampled: Callable[..., Trajectory]) -> None:
    one, two, other = sampled([0.4, 0.8]), sampled([0.6], repeat=1), sampled([0.5, 1.5], repeat=2)
    failed = sampled([9.0, 9.0], repeat=3).model_copy(update={"stop_reason": StopReason.POLICY_UNAVAILABLE})
    turns = turns_of_trajectories([[one, two, one, failed], [other]], decode=letters)
    assert turns.number.tolist() == [1, 2, 1, 1, 2, 1, 2, 1, 2] and turns.groups == 2 and turns.trajectories == 4
    assert turns.counted.tolist() == [True] * 3 + [False] * 4 + [True] * 2, "given twice, and failed"
    assert turns.entropy[turns.counted] == pytest.approx([0.4, 0.8, 0.6, 0.5, 1.5])
    assert turns.tokens.tolist()[:2] == [len(one.turns[0].text), len(one.turns[1].text)]
    weights = credit(turns, [1.0] * 9).weights
    assert weights == pytest.approx([2 / 3, 4 / 3, 1, 0, 0, 0, 0, 0.5, 1.5])
    assert turns.action_entropy is not None
    assert credit(turns, [1.0] * 9, CreditSettings(rule="taura_action")).weights == pytest.approx(weights)


def test_trajectories_without_the_entropies_that_a_rule_means(sampled: Callable[..., Trajectory]) -> None:
    with pytest.raises(CreditError, match="question 0, trajectory 0, turn 2: it has no entropies"):
        turns_of_trajectories([[sampled([0.4, None])]])
    top = sampled([0.4, 0.8], top_k=20)
    with pytest.raises(CreditError, match="likeliest 20 tokens"):
        credit(turns_of_trajectories([[top]]), [1, 1])
    assert credit(turns_of_trajectories([[top]]), [1, 1], CreditSettings(entropies="top_k")).weights.sum() == 2
    with pytest.raises(CreditError, match=r"trajectory 0, turn 1: the whole vocabulary; .* the likeliest 20 tokens"):
        turns_of_trajectories([[sampled([0.4, 0.8]), top.model_copy(update={"seed": 9})]])
    whole = sampled([0.4, 0.8])
    gone = whole.turns[1].model_copy(update={"entropies": (0.5, None)})
    with pytest.raises(CreditError, match="trajectory 0, turn 2: token 2 has no entropy"):
        turns_of_trajectories([[whole.model_copy(update={"turns": (whole.turns[0], gone)})]])
    with pytest.raises(CreditError, match="a trajectory of version 1 does not say over how many tokens"):
        turns_of_trajectories([[whole.model_copy(update={"budget": None})]])
    bare = whole.turns[1].model_copy(update={"token_ids": None})
    with pytest.raises(CreditError, match="turn 2: it has no token ids"):
        turns_of_trajectories([[whole.model_copy(update={"turns": (whole.turns[0], bare)})]], decode=letters)
    assert len(turns_of_trajectories([])) == 0
