"""How many questions a difference needs, and which difference a run could have shown: two-sided, paired."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from apr_plugin.errors import require

POWER = 0.8
"""How likely a true difference is to be found."""

ALPHA = 0.05
"""How likely a difference is to be found where there is none."""

LEAST_CLUSTERS = 6
"""With fewer, the sign-flip test over clusters has no p below `ALPHA`, however large the difference: 2 / 2**5 > 0.05.
"""


@dataclass(frozen=True)
class Power:
    """What the size of a comparison allows, at 80% power and alpha 0.05."""

    n: int
    """Questions."""
    difference: float
    """Which is to be found: the observed one, or the one that was asked for."""
    discordance: float | None
    """The share of questions that only one arm answered rightly; `None` for scores."""
    sd: float
    """Standard deviation of the differences between the arms, question by question."""
    design_effect: float | None
    """By how much clusters raise the variance of the difference, at least 1; `None` with one cluster."""
    needed: int | None
    """Questions that the difference needs, if videos have as many each as here; `None` where it is 0 or can't be told.
    """
    visible: float | None
    """The smallest difference that these questions could have shown; `None` where even 1 is too small, as with fewer
    than `LEAST_CLUSTERS` videos of several questions."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def power_of(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str] | None = None, difference: float | None = None
) -> Power | None:
    """What the size of a comparison allows, from the spread that it shows.

    If all values are 0 or 1, it is the normal approximation to McNemar's test from the observed share of discordant
    questions. Else it is the paired t-test from the observed standard deviation. Where clusters have several questions,
    the number of questions is divided by the design effect.

    Args:
        a: The first arm's score of each question.
        b: The second arm's, in the same order.
        clusters: The video of each question; without it questions are independent.
        difference: The one to be found; by default the observed one.

    Returns:
        The result, or `None` without questions.
    """
    values = np.array([a, b], dtype=float)
    n = values.shape[1]
    if not n:
        return None
    differences = values[0] - values[1]
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    wanted = float(differences.mean()) if difference is None else difference
    discordance = float((differences != 0).mean()) if binary else None
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    effect = _design_effect(differences, clusters)
    needed: float | None = None
    visible: float | None = None
    m = n if clusters is None else len(set(clusters))
    if effect is not None and n > 1:
        if discordance is not None:
            needed, visible = mcnemar_needed(wanted, discordance), mcnemar_visible(n / effect, discordance)
        else:
            needed, visible = score_needed(wanted, sd), score_visible(n / effect, sd)
        needed = None if needed is None else math.ceil(needed * effect - 1e-9)
        if m < n:  # several questions of a video: the test flips videos, and needs some
            needed = None if needed is None else max(needed, math.ceil(LEAST_CLUSTERS * n / m))
            visible = visible if m >= LEAST_CLUSTERS else None
    return Power(n, wanted, discordance, sd, effect, None if needed is None else int(needed), visible)


def mcnemar_needed(difference: float, discordance: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Questions that McNemar's test needs (R. J. Connor, Biometrics 43, 1987, page 209), not rounded.

    Args:
        difference: Of the shares of right answers, from -1 to 1.
        discordance: The share of questions that only one arm answers rightly. It can't be less than the difference; a
            smaller one is raised to that.
        power: How likely the difference is to be found.
        alpha: Of the two-sided test.

    Returns:
        The number of questions, or `None` where the difference is 0.
    """
    require("scipy", "report")
    from scipy.stats import norm  # type: ignore[import-untyped]

    delta = abs(difference)
    if delta == 0:
        return None
    psi = max(discordance, delta)
    z_alpha, z_beta = float(norm.ppf(1 - alpha / 2)), float(norm.ppf(power))
    return (z_alpha * math.sqrt(psi) + z_beta * math.sqrt(max(0.0, psi - delta**2))) ** 2 / delta**2


def mcnemar_visible(n: float, discordance: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest difference for which `mcnemar_needed` is at most `n`; `None` where even 1 needs more questions."""
    require("scipy", "report")
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    def lacking(difference: float) -> float:
        needed = mcnemar_needed(difference, discordance, power, alpha)
        assert needed is not None
        return needed - n

    return float(brentq(lacking, 1e-9, 1.0)) if lacking(1.0) <= 0 else None


def score_needed(difference: float, sd: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Questions that the paired t-test needs, not rounded; `None` where the difference or the spread is 0.

    Args:
        difference: Of the mean scores.
        sd: Standard deviation of the differences, question by question.
        power: How likely the difference is to be found.
        alpha: Of the two-sided test.
    """
    if difference == 0 or not sd > 0:
        return None
    solver, effect = _t_power(), abs(difference) / sd
    if solver.power(effect, 2, alpha) >= power:
        return 2.0
    return _solved(solver, effect_size=effect, nobs=None, power=power, alpha=alpha)


def score_visible(n: float, sd: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest difference of mean scores that the paired t-test finds; `None` with fewer than 2 questions."""
    if n < 2 or not sd > 0:
        return None
    effect = _solved(_t_power(), effect_size=None, nobs=n, power=power, alpha=alpha)
    return None if effect is None else effect * sd


def _t_power() -> Any:
    require("statsmodels", "report")
    from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped]

    return TTestPower()


def _solved(solver: Any, **known: float | None) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it finds nothing, and returns no number
        found = float(np.ravel(solver.solve_power(**known))[0])
    return found if math.isfinite(found) and found > 0 else None


def _design_effect(differences: np.ndarray[Any, Any], clusters: Sequence[str] | None) -> float | None:
    """The variance of the mean difference over clusters, over the one of independent questions; at least 1."""
    require("statsmodels", "report")
    from statsmodels.regression.linear_model import OLS  # type: ignore[import-untyped]

    n = len(differences)
    if clusters is None or len(set(clusters)) == n:
        return 1.0
    if len(set(clusters)) == 1:
        return None
    numbers = {name: number for number, name in enumerate(sorted(set(clusters)))}
    model = OLS(differences, np.ones(n))
    plain = float(model.fit().bse[0])
    if not plain > 0:
        return 1.0
    groups = np.array([numbers[name] for name in clusters])
    clustered = float(model.fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0])
    return max(1.0, (clustered / plain) ** 2)
