"""Intervals and tests: textbook examples, coverage in simulations, and data that says little."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import arm_of, key_of

from apr_plugin.compare.joined import join
from apr_plugin.compare.pairs import accuracy, differences, differences_by_bucket, score, score_differences
from apr_plugin.compare.resampling import wilson
from apr_plugin.compare.stats import (
    MCNEMAR,
    SIGN_FLIP,
    Interval,
    Paired,
    holm,
    mean,
    means,
    paired,
    proportion,
    ratio,
)


def interval(found: Interval | None) -> tuple[float, float, float]:
    assert found is not None and found.low is not None and found.high is not None
    return found.value, found.low, found.high


def pair(a: list[float], b: list[float], clusters: list[str] | None = None) -> Paired:
    found = paired(a, b, clusters)
    assert found is not None
    return found


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[float], list[float]]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return a, b


# --- against published examples


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),  # R. G. Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_newcombe_has_it(right: int, n: int, low: float, high: float) -> None:
    found = proportion([True] * right + [False] * (n - right))
    assert interval(found) == pytest.approx((right / n, low, high), abs=5e-5)
    assert found is not None and found.n == n


def test_mcnemar_of_agrestis_approval_ratings() -> None:
    """A. Agresti, Categorical Data Analysis, 2nd edition 2002, section 10.1: z = (86 - 150) / sqrt(236) = -4.17."""
    found = pair(*table(794, 150, 86, 570))
    tail = sum(Fraction(math.comb(236, k), 2**236) for k in range(87))
    assert (found.n, found.only_a, found.only_b, found.test) == (1600, 150, 86, MCNEMAR)
    assert found.p == pytest.approx(float(2 * tail), rel=1e-9) and found.p == pytest.approx(3.716e-5, rel=1e-3)
    assert found.p_clustered is None and found.p_read == found.p
    value, low, high = interval(found.diff)
    error = math.sqrt((236 / 1600 - 0.04**2) / 1600)  # Wald: 0.04 -+ 1.96 x 0.0095 = (0.021, 0.059)
    assert (value, low, high) == pytest.approx((0.04, 0.04 - 1.96 * error, 0.04 + 1.96 * error), abs=1.5e-3)


def test_holm_as_an_example_by_hand() -> None:
    """Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 is raised to the one before."""
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == [
        pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06), pytest.approx(0.02),
    ]  # fmt: skip
    assert holm([]) == [] and holm([None]) == [None]


def test_the_sign_flip_is_exact_for_few_clusters() -> None:
    """All differences positive: 2 of 2^m arrangements are as extreme."""
    values = [0.3, 0.2, 0.9, 0.5, 0.4, 0.7]
    found = pair(values, [0.1] * 6)
    assert found.test == SIGN_FLIP and found.p == pytest.approx(2 / 2**6)
    assert pair([0.3] * 6, [0.3] * 6).p == 1.0


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_r_agrees() -> None:
    script = """
        w <- prop.test(81, 263, correct=FALSE)$conf.int
        b <- binom.test(86, 236)$p.value
        h <- p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
        cat(sprintf("%.12g", c(w, b, h)))
    """
    said = subprocess.run(["Rscript", "-e", script], capture_output=True, text=True, check=True).stdout
    ours = [*interval(proportion([True] * 81 + [False] * 182))[1:], pair(*table(794, 150, 86, 570)).p]
    ours += [p for p in holm([0.01, 0.04, 0.03, 0.005]) if p is not None]
    assert [float(word) for word in said.split()] == pytest.approx(ours, rel=1e-8)


# --- what the bootstrap is worth


def test_the_bootstrap_agrees_with_the_t_interval_on_independent_values() -> None:
    from scipy import stats

    for n in (5, 30, 400):
        values = np.random.default_rng(n).normal(0.4, 0.1, n)
        expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        found = interval(mean(values.tolist()))
        half = (expected[1] - expected[0]) / 2
        assert found[1:] == pytest.approx(expected, abs=0.2 * half)


@pytest.mark.parametrize(("m", "least"), [(8, 0.88), (30, 0.91)])
def test_coverage_of_the_cluster_bootstrap(m: int, least: float) -> None:
    """300 data sets of m videos, 1 to 11 questions each, whose difficulty varies from video to video; the share is 1/2.

    Wilson's interval, which takes questions for independent, misses far more often on the same data.
    """
    rng = np.random.default_rng(1)
    hits, naive, runs = 0, 0, 300
    for _ in range(runs):
        sizes = rng.integers(1, 12, size=m)
        right = [bool(value) for size in sizes for value in rng.random(size) < rng.beta(0.8, 0.8)]
        clusters = [f"film{number}" for number, size in enumerate(sizes) for _ in range(size)]
        _, low, high = interval(proportion(right, clusters))
        hits += low <= 0.5 <= high
        _, low, high = interval(proportion(right))
        naive += low <= 0.5 <= high
    assert least <= hits / runs <= 0.985
    assert naive / runs < hits / runs - 0.1


def test_the_clustered_p_keeps_its_level_where_mcnemars_does_not() -> None:
    """400 data sets without any difference between the arms, whose outcomes go together within a video."""
    rng = np.random.default_rng(2)
    clustered, naive, runs = 0, 0, 400
    for _ in range(runs):
        luck = rng.beta(0.5, 0.5, size=12)  # on some videos one arm is better, on others the other
        a = (rng.random((12, 8)) < luck[:, None]).astype(float)
        b = (rng.random((12, 8)) < 1 - luck[:, None]).astype(float)
        clusters = [f"film{number}" for number in range(12) for _ in range(8)]
        found = pair(a.ravel().tolist(), b.ravel().tolist(), clusters)
        assert found.test == MCNEMAR and found.test_read == SIGN_FLIP and found.p_clustered == found.p_read
        clustered += found.p_read <= 0.05
        naive += found.p <= 0.05
    assert clustered / runs <= 0.075 and naive / runs > 0.2


# --- data that says little


def test_nothing_to_count() -> None:
    assert proportion([]) is None and mean([]) is None and mean([None, math.nan]) is None and paired([], []) is None
    assert ratio([], []) is None and ratio([1.0], [0.0]) is None and means({}) == {}
    with pytest.raises(ValueError, match="pairs need as many"):
        paired([1.0], [])
    with pytest.raises(ValueError, match="not finite"):
        paired([1.0], [math.nan])
    with pytest.raises(ValueError, match="each value needs one"):
        mean([1.0], ["a", "b"])


def test_one_question() -> None:
    assert interval(proportion([True], ["film"])) == pytest.approx((1.0, 0.2065, 1.0), abs=1e-4)
    assert mean([0.4], ["film"]) == Interval(0.4, None, None, 1)
    found = pair([1.0], [0.0], ["film"])
    assert (found.p, found.p_clustered, found.diff) == (1.0, None, Interval(1.0, None, None, 1))


def test_one_video_says_nothing_of_others() -> None:
    clusters = ["film"] * 4
    assert proportion([True, False, True, True], clusters) == Interval(0.75, None, None, 4)
    found = pair([1.0, 1.0, 1.0, 1.0], [0.0] * 4, clusters)
    assert found.diff == Interval(1.0, None, None, 4) and found.p_read == 1.0 and found.p == 0.125


def test_no_spread_is_not_certainty_where_values_are_bounded() -> None:
    clusters = [f"film{number // 2}" for number in range(20)]
    alone = wilson(10, 10)  # as if the two questions of a video were one
    assert interval(proportion([True] * 20, clusters)) == pytest.approx((1.0, *alone))
    assert interval(proportion([False] * 20, clusters)) == pytest.approx((0.0, 0.0, 1 - alone[0]))
    assert interval(mean([0.5] * 20, clusters, (0.0, 1.0))) == pytest.approx((0.5, alone[0] / 2, 1 - alone[0] / 2))
    same = pair([1.0] * 20, [1.0] * 20, clusters)
    assert interval(same.diff) == pytest.approx((0.0, alone[0] - 1, 1 - alone[0]))
    assert (same.p, same.p_clustered) == (1.0, 1.0)
    assert interval(mean([7.0] * 20, clusters)) == (7.0, 7.0, 7.0)  # turns, say: no bounds are known


def test_unknown_values_are_left_out() -> None:
    clusters = [f"film{number // 2}" for number in range(12)]
    known = [float(number % 5) for number in range(12)]
    holes = [value if number % 3 else None for number, value in enumerate(known)]
    found = means({"known": known, "also": [2 * value for value in known], "holes": holes}, clusters)
    assert found["holes"] == mean(holes, clusters) and found["holes"] is not None and found["holes"].n == 8
    value, low, high = interval(found["known"])
    assert interval(found["also"]) == pytest.approx((2 * value, 2 * low, 2 * high))
    assert (value, low, high) == pytest.approx(interval(mean(known, clusters)))


def test_a_ratio_whose_denominator_may_vanish_has_no_bound() -> None:
    clusters = [f"film{number}" for number in range(10)]
    firm = ratio([0.5] * 5 + [0.6] * 5, [1.0] * 10, clusters)
    assert interval(firm)[0] == pytest.approx(0.55) and 0.5 <= interval(firm)[1] < interval(firm)[2] <= 0.6
    loose = ratio([1.0, 0.0] * 5, [1.0, -0.9] * 5, clusters)
    assert loose is not None and loose.value == pytest.approx(10.0) and (loose.low is None or loose.high is None)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1),
    st.randoms(use_true_random=False),
)
def test_order_and_names_do_not_matter(rows: list[tuple[int, float, float]], rng: random.Random) -> None:
    names = [f"film{number}" for number in rng.sample(range(100), 5)]
    mixed = rng.sample(rows, len(rows))
    one = pair([a for _, a, _ in rows], [b for _, _, b in rows], [str(film) for film, _, _ in rows])
    two = pair([a for _, a, _ in mixed], [b for _, _, b in mixed], [names[film] for film, _, _ in mixed])
    assert (one.n, one.only_a, one.only_b, one.test) == (two.n, two.only_a, two.only_b, two.test)
    assert one.p_read == pytest.approx(two.p_read)
    for a, b in zip(one.diff.to_dict().values(), two.diff.to_dict().values(), strict=True):
        assert a == pytest.approx(b, abs=1e-9)
    if one.diff.low is not None and one.diff.high is not None:
        assert -1 <= one.diff.low <= one.diff.high <= 1
    swapped = pair([b for _, _, b in rows], [a for _, a, _ in rows], [str(film) for film, _, _ in rows])
    assert (swapped.only_a, swapped.only_b) == (one.only_b, one.only_a)
    assert swapped.diff.value == pytest.approx(-one.diff.value) and swapped.p_read == pytest.approx(one.p_read)


# --- over a comparison


def test_arms_of_a_comparison() -> None:
    ours = arm_of("agent", {n: float(n % 4 != 0) for n in range(40)}, per_video=4)
    theirs = arm_of("passive", {n: None if n == 1 else float(n % 2) for n in range(40)}, kind="passive", per_video=4)
    graded = arm_of("graded", {n: n / 40 for n in range(40)}, per_video=4)
    compared = join([ours, theirs, graded])
    found = accuracy(compared, ours)
    assert found is not None and found.value == 0.75 and found == score(compared, ours) and found.n == 40
    against = differences(compared, ours, theirs)
    assert against is not None and (against.only_a, against.only_b) == (11, 0)  # a failure counts as wrong
    fewer = differences(compared, ours, theirs, compared.common)
    assert fewer is not None and (fewer.n, fewer.only_a) == (39, 10)
    scores = score_differences(compared, ours, graded)
    assert scores is not None and scores.test == SIGN_FLIP and scores.diff.value == pytest.approx(0.75 - 0.4875)
    (bucket,) = differences_by_bucket(compared, ours, theirs)
    assert (bucket.name, bucket.n, bucket.p_holm) == ("0-20min", 40, against.p_read)
    assert differences(compared, ours, theirs, []) is None and accuracy(compared, ours, []) is None
    json.dumps([against.to_dict(), found.to_dict()], allow_nan=False)


def test_buckets_are_adjusted_for_their_number() -> None:
    ours, theirs = (arm_of(name, {n: value for n in range(24)}) for name, value in (("a", 1.0), ("b", 0.0)))
    for arm in (ours, theirs):
        for n in range(12, 24):
            object.__setattr__(arm.outcomes[key_of(n)], "bucket", "20-60min")
    short, long = differences_by_bucket(join([ours, theirs]), ours, theirs)
    assert (short.name, long.name, short.n, long.n) == ("0-20min", "20-60min", 12, 12)
    assert short.p_holm == pytest.approx(2 * short.paired.p_read) and short.paired.p == pytest.approx(2 / 2**12)


def test_all_failed() -> None:
    ours, theirs = (arm_of(name, dict.fromkeys(range(6))) for name in ("a", "b"))
    compared = join([ours, theirs])
    found = differences(compared, ours, theirs)
    assert found is not None and (found.p, found.diff.value) == (1.0, 0.0)
    assert interval(accuracy(compared, ours))[0] == 0.0 and compared.common == []


def test_two_thousand_questions_take_seconds() -> None:
    """Five arms, ten buckets, a video for every question, and scores that are not 0 or 1: the worst case."""
    rng = random.Random(5)
    arms = [arm_of(f"arm{k}", {n: rng.random() for n in range(2000)}) for k in range(5)]
    for arm in arms:
        for n in range(2000):
            object.__setattr__(arm.outcomes[key_of(n)], "bucket", f"bucket{n % 10}")
    compared = join(arms)
    began = time.process_time()
    for arm in arms:
        assert score(compared, arm) is not None
    for arm in arms[1:]:
        assert score_differences(compared, arms[0], arm) is not None
        assert differences(compared, arms[0], arm) is not None
        assert len(differences_by_bucket(compared, arms[0], arm)) == 10
    assert time.process_time() - began < 10  # measured: 3 s
