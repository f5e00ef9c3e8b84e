"""Kept prompts and the choice of a token, tested separately."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from apr_plugin.loop.policy import Sampling

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_plugin.policies.hf.cache import Layers, PrefixStore, cache_of, layers_of  # noqa: E402 - after the libraries it needs
from apr_plugin.policies.hf.sample import Draws, choose  # noqa: E402


def _prompt(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def _places(keys: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(len(keys), dtype=np.float64), (3, 1))


def _layers(keys: np.ndarray) -> Layers:
    """Keys and values that show which token they belong to: two layers, 1 row, 2 heads of 4."""
    base = torch.from_numpy(keys).float()[None, None, :, None].expand(1, 2, -1, 4)
    return [(base.clone(), -base), (base + 0.5, -base - 0.5)]


def keep(store: PrefixStore, keys: np.ndarray) -> None:
    store.keep(keys, _places(keys), _layers(keys))


def test_the_longest_common_beginning_is_found() -> None:
    store = PrefixStore(1 << 30)
    common = [*range(100, 140)]
    first, second = _prompt(*common, *range(500, 560)), _prompt(*common, *range(100, 120), *range(700, 760))
    keep(store, first)
    keep(store, second)
    asked = _prompt(*common, *range(100, 110), *range(900, 910))
    length, layers = store.longest(asked, _places(asked))
    assert length == 50 and layers[0][0].shape == (1, 2, 50, 4)
    assert layers[1][0][0, 0, :, 0].tolist() == [key + 0.5 for key in asked[:50]]
    assert store.longest(first, _places(first))[0] == len(first) - 1, (
        "the last token is computed, or there is nothing to write on from"
    )
    assert store.longest(_prompt(*range(50)), _places(asked[:50])) == (0, [])
    shifted = _places(asked)
    shifted[1, 30:] += 1
    assert store.longest(asked, shifted)[0] == 30, "the same tokens at other positions are not the same"


def test_short_beginnings_are_not_kept() -> None:
    store = PrefixStore(1 << 30)
    keep(store, _prompt(*range(5)))
    assert len(store) == 0


def test_memory_is_bounded_and_the_longest_unused_go_first() -> None:
    one = sum(k.nbytes + v.nbytes for k, v in _layers(np.arange(100)))
    store = PrefixStore(3 * one)
    prompts = [np.arange(1000 * n, 1000 * n + 100) for n in range(4)]
    for prompt in prompts[:3]:
        keep(store, prompt)
    assert store.bytes == 3 * one
    assert store.longest(prompts[0], _places(prompts[0]))[0] == 99
    keep(store, prompts[3])
    assert store.bytes == 3 * one
    assert [store.longest(prompt, _places(prompt))[0] for prompt in prompts] == [99, 0, 99, 99]
    keep(store, np.arange(10_000, 10_400))
    assert store.longest(prompts[0], _places(prompts[0]))[0] == 99, (
        "what is larger than the whole memory pushes nothing out"
    )
    store.clear()
    assert store.bytes == 0 == len(store)


def test_a_later_turn_takes_the_place_of_an_earlier_one_but_not_of_another_episode() -> None:
    store = PrefixStore(1 << 30)
    system = np.arange(100)
    episodes = [np.concatenate([system, np.arange(1000 * n, 1000 * n + 100)]) for n in (1, 2)]
    for prompt in episodes:
        keep(store, prompt)
    assert len(store) == 2
    keep(store, np.concatenate([episodes[0][:195], np.arange(5000, 5100)]))
    assert len(store) == 2 and store.longest(episodes[1], _places(episodes[1]))[0] == 199


def test_kept_values_are_copies() -> None:
    store, keys = PrefixStore(1 << 30), np.arange(50)
    layers = _layers(keys)
    store.keep(keys, _places(keys), layers)
    layers[0][0].zero_()
    _, kept = store.longest(keys, _places(keys))
    cache = cache_of(kept)
    cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert layers_of(cache)[0][0].shape[2] == 52
    assert store.longest(keys, _places(keys))[1][0][0][0, 0, :, 0].tolist() == [*range(49)]


def drawn(logits: list[float], times: int, **sampling: float) -> Counter[int]:
    row = Draws(Sampling(seed=11, **sampling))  # type: ignore[arg-type]
    for _ in range(times):
        choose(torch.tensor([logits]), [row])
    return Counter(row.tokens)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits, times = [1.0, 0.0, 2.0, -1.0, -math.inf], 1500
    for temperature in (1.0, 0.5):
        shares = torch.softmax(torch.tensor(logits) / temperature, 0).tolist()
        seen = drawn(logits, times, temperature=temperature)
        for token, share in enumerate(shares):
            assert abs(seen[token] / times - share) < 4 * math.sqrt(share * (1 - share) / times) + 1e-9, (
                temperature,
                token,
            )
    assert set(drawn(logits, 200, temperature=1.0, top_k=2)) == {0, 2}
    assert set(drawn(logits, 200, temperature=1.0, top_p=0.6)) == {2}  # its share is 0.64
    assert set(drawn(logits, 200, temperature=1.0, top_p=0.65)) == {0, 2}
    assert set(drawn(logits, 50)) == {2}


def test_what_is_said_of_a_token() -> None:
    row = Draws(Sampling(temperature=2.0, top_k=1))
    choose(torch.tensor([[3.0, 1.0, -math.inf]]), [row])
    first = 1 / (1 + math.exp(-1.0))
    assert row.tokens == [0] and row.logprobs == [pytest.approx(math.log(first))], (
        "scaled by the temperature, before top_k"
    )
    assert row.entropies == [pytest.approx(-first * math.log(first) - (1 - first) * math.log(1 - first))]
    certain = Draws(Sampling())
    choose(torch.tensor([[0.0, -math.inf]]), [certain])
    assert certain.logprobs == [0.0] and certain.entropies == [0.0]


def test_a_banned_token_has_no_share() -> None:
    row = Draws(Sampling(temperature=1.0))
    logits = torch.tensor([[9.0, 1.0, 1.0]])
    choose(logits, [row], banned=[0])
    assert (
        row.tokens[0] in (1, 2)
        and row.logprobs == [pytest.approx(math.log(0.5))]
        and row.entropies == [pytest.approx(math.log(2))]
    )
    assert logits.tolist() == [[9.0, 1.0, 1.0]], "what the model gave is not changed"


def test_rows_are_independent_and_a_broken_one_is_marked() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [math.nan, 0.0, 0.0], [0.0, math.inf, 0.0], [-math.inf] * 3])
    rows = [Draws(Sampling(temperature=temperature, seed=3)) for temperature in (1.0, 0.0, 0.0, 0.0)]
    choose(logits, rows)
    assert [row.broken for row in rows] == [False, True, True, True] and [len(row.tokens) for row in rows] == [
        1,
        0,
        0,
        0,
    ]
    alone = Draws(Sampling(temperature=1.0, seed=3))
    choose(logits[:1], [alone])
    assert alone.tokens == rows[0].tokens


def test_a_repetition_penalty_makes_used_tokens_less_likely() -> None:
    row = Draws(Sampling(), repetition_penalty=2.0, prompt=torch.tensor([0]))
    for _ in range(3):
        choose(torch.tensor([[3.0, 2.5, -1.0, 1.6]]), [row])
    assert row.tokens == [1, 3, 0]  # 3/2 < 2.5; then 2.5/2 < 1.6; then 1.6/2 < 3/2
