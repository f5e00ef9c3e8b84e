"""How many questions a difference needs, and which one a run could have shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from making import arm_of

from apr_plugin.compare.joined import join
from apr_plugin.compare.pairs import power_between
from apr_plugin.compare.power import mcnemar_needed, mcnemar_visible, power_of, score_needed, score_visible
from apr_plugin.compare.stats import paired


def test_connors_formula() -> None:
    """R. J. Connor, Biometrics 43, 1987, page 209, as calculators give it: shares 0.45 and 0.05 need 23 pairs."""
    needed = mcnemar_needed(0.40, 0.50)
    assert needed is not None and 22 < needed <= 23
    assert mcnemar_needed(-0.40, 0.50) == needed and mcnemar_needed(0.0, 0.5) is None
    assert mcnemar_needed(0.4, 0.1) == mcnemar_needed(0.4, 0.4)  # the discordance is at least the difference


def test_the_lvbench_gap() -> None:
    """3.2 points need about 2,300 questions if the arms disagree on 30% of them; 1,549 show 3.9 points."""
    needed, visible = mcnemar_needed(0.032, 0.30), mcnemar_visible(1549, 0.30)
    assert needed is not None and 2200 < needed < 2400
    assert visible is not None and 0.035 < visible < 0.042
    assert mcnemar_needed(visible, 0.30) == pytest.approx(1549, rel=1e-6)


def test_the_power_that_it_promises() -> None:
    """2,000 data sets of the size that it asks for: the exact McNemar test finds four in five, or a little less."""
    needed = mcnemar_needed(0.10, 0.30)
    assert needed is not None
    rng, n = np.random.default_rng(4), int(np.ceil(needed))
    draws = rng.multinomial(n, [0.20, 0.10, 0.70], size=2000)
    from scipy.stats import binom

    p = np.minimum(1, 2 * binom.cdf(draws[:, :2].min(axis=1), draws[:, :2].sum(axis=1), 0.5))
    assert 0.74 < (p <= 0.05).mean() < 0.83


def test_scores() -> None:
    """J. Cohen, Statistical Power Analysis, 2nd edition 1988: half a deviation of the differences needs 34 pairs."""
    needed = score_needed(0.1, 0.2)
    assert needed is not None and 33 < needed <= 34
    assert score_visible(needed, 0.2) == pytest.approx(0.1, rel=1e-4)
    assert score_needed(0.0, 0.2) is None and score_needed(0.1, 0.0) is None and score_visible(1, 0.2) is None
    assert score_needed(5.0, 0.001) == 2.0


def test_of_a_comparison() -> None:
    ours = arm_of("a", {n: float(n % 10 < 6) for n in range(200)})
    theirs = arm_of("b", {n: float(n % 10 in (0, 1, 2, 3, 8)) for n in range(200)})
    compared = join([ours, theirs])
    found = power_between(compared, ours, theirs)
    assert found is not None and found.discordance == pytest.approx(0.3) and found.difference == pytest.approx(0.1)
    assert found.design_effect == 1.0 and found.needed == int(np.ceil(mcnemar_needed(0.1, 0.3) or 0))
    assert found.visible is not None and 0.1 < found.visible < 0.12
    scores = power_between(compared, ours, theirs, scores=True)
    assert scores == found  # all are 0 or 1
    asked = power_of([1.0, 0.0] * 50, [0.0, 0.0, 1.0, 0.0] * 25, difference=0.05)
    assert (
        asked is not None and asked.difference == 0.05 and asked.needed == int(np.ceil(mcnemar_needed(0.05, 0.25) or 0))
    )
    json.dumps(found.to_dict(), allow_nan=False)


def test_clusters_raise_it() -> None:
    rng = np.random.default_rng(6)
    of_video = rng.random((40, 1)) < 0.5
    a, b = (np.broadcast_to(one, (40, 5)).astype(float) for one in (of_video, ~of_video))
    a, b = np.where(rng.random((40, 5)) < 0.3, 0.0, a), np.where(rng.random((40, 5)) < 0.3, 0.0, b)
    clusters = [f"film{number}" for number in range(40) for _ in range(5)]
    alone, together = power_of(a.ravel().tolist(), b.ravel().tolist()), power_of(a.ravel(), b.ravel(), clusters)
    assert alone is not None and together is not None and together.design_effect is not None
    found = paired(a.ravel().tolist(), b.ravel().tolist(), clusters)
    assert found is not None and found.diff.low is not None and found.diff.high is not None
    wide = (found.diff.high - found.diff.low) / (2 * 1.96)  # the bootstrap's standard error says the same
    assert together.design_effect == pytest.approx((wide / (together.sd / 200**0.5)) ** 2, rel=0.25)
    assert 2 < together.design_effect < 6 and together.visible is not None and alone.visible is not None
    assert together.visible > 1.4 * alone.visible


@pytest.mark.parametrize(("videos", "visible"), [(2, False), (5, False), (6, True), (10, True)])
def test_a_test_over_videos_needs_some(videos: int, visible: bool) -> None:
    """With 5 videos the smallest p of the sign flips is 2 / 2**5."""
    rng, n = np.random.default_rng(videos), 10 * videos
    a, b = np.ones(n), (rng.random(n) < 0.2).astype(float)
    clusters = [f"film{number // 10}" for number in range(n)]
    found, test = power_of(a.tolist(), b.tolist(), clusters), paired(a.tolist(), b.tolist(), clusters)
    assert found is not None and test is not None and test.p_clustered == pytest.approx(2 / 2**videos)
    assert (test.p_read < 0.05) == visible == (found.visible is not None) and found.needed == 60


@pytest.mark.parametrize(
    ("a", "b", "clusters"),
    [
        ([1.0], [0.0], None), ([1.0, 1.0], [1.0, 1.0], None), ([0.5] * 3, [0.5] * 3, ["f", "f", "g"]),
        ([1.0, 0.0, 1.0], [0.0, 0.0, 1.0], ["f"] * 3), ([0.2, 0.9], [0.1, 0.1], ["f", "f"]),
    ],
)  # fmt: skip
def test_data_that_says_little(a: list[float], b: list[float], clusters: list[str] | None) -> None:
    found = power_of(a, b, clusters)
    assert found is not None and (found.needed is None or found.needed > 0)
    if clusters is not None and len(set(clusters)) == 1:
        assert (found.design_effect, found.needed, found.visible) == (None, None, None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_no_questions() -> None:
    assert power_of([], []) is None
