"""Does something grow while a server runs? A robust slope, its interval, and a test for dependent values.

The slope is Theil and Sen's, the test Mann and Kendall's. Cells of a soak are not independent: a neighbour on the
machine slows down several in a row. Independence assumed, 20 values of a first-order process with correlation 0.5
and no trend "grow" in 16 % of cases at a level of 5 % (one-sided); the usual cure (Hamed and Rao: every
autocorrelation of the ranks that is significant) leaves 17 %, because those few values give are too small and wander.
Here the first autocorrelation alone, corrected for what taking the trend out costs it, widens the variance, and the
quantile is Student's, since that is an estimate: 6 %, and 3 % without correlation (1,500 series each;
tests/benchmarks/test_soak.py repeats it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Growth = Literal["PASS", "FAIL", "NO VERDICT"]
Values = np.ndarray[tuple[int], np.dtype[np.float64]]

MIN_VALUES = 10
"""Fewer say nothing: at ten, only an almost unbroken rise is significant at 1 %."""
_MAX_CORRELATION = 0.8


@dataclass(frozen=True, slots=True)
class Trend:
    """Per unit of time; ``p_value`` is one-sided: of values that rise as much if nothing grew."""

    slope: float
    low: float
    """``slope`` is above ``low``, and below ``high``, each with a confidence of 1 - alpha."""
    high: float
    p_value: float
    correlation: float
    """First autocorrelation of the ranks about the trend, as it was used; 0 to 0.8."""


def trend(at: Sequence[float], values: Sequence[float], alpha: float = 0.05) -> Trend:
    """The trend of ``values`` over ``at``.

    Raises:
        ValueError: Fewer than three values, unequal lengths, or two at the same time.

    Source:
        Sen (1968), JASA 63, 1379-1389 (slope and interval). Hamed and Rao (1998), Journal of Hydrology 204, 182-196
        (variance of the statistic under autocorrelation, eq. 10). Kendall (1954), Biometrika 41, 403-404 (bias of
        the first autocorrelation).
    """
    from scipy.stats import t as student

    x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    n = len(x)
    if n < 3 or len(y) != n or len(np.unique(x)) != n:
        raise ValueError(f"a trend needs three values or more at different times, got {n} times and {len(y)} values")
    first, second = np.triu_indices(n, 1)
    rise = y[second] - y[first]
    slopes = np.sort(rise / (x[second] - x[first]))
    slope = float(np.median(slopes))
    correlation = _correlation(y - slope * x)
    deviation = math.sqrt(_variance(y) * _inflation(n, correlation))
    score = float(np.sign(rise).sum())
    # A step of one for continuity, as the statistic is a whole number.
    # Student's t in place of the normal: the deviation rests on an estimate.
    p = float(student.sf((score - np.sign(score)) / deviation, n - 2)) if deviation else 1.0
    reach = float(student.ppf(1 - alpha, n - 2)) * deviation
    below = max(0, math.floor((len(slopes) - reach) / 2))
    above = min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))
    return Trend(slope, float(slopes[below]), float(slopes[above]), p, correlation)


def grows(
    at_s: Sequence[float], values: Sequence[float], limit_per_hour: float, alpha: float
) -> tuple[Growth, Trend | None]:
    """Do ``values`` grow by ``limit_per_hour`` or more?

    FAIL: they rise (p < alpha), by at least the limit, and go on rising in the later half: what fills a cache and
    then stands still is no leak. PASS: growth of the limit is ruled out, over the whole time or in the later half. NO
    VERDICT: neither, or fewer than :data:`MIN_VALUES`.

    Returns:
        The answer, and the trend per hour that it rests on.
    """
    if len(values) < MIN_VALUES:
        return "NO VERDICT", None
    hours = [at / 3600 for at in at_s]
    whole = trend(hours, values, alpha)
    half = len(values) // 2
    later = trend(hours[half:], values[half:], alpha)
    if whole.p_value < alpha and whole.slope >= limit_per_hour and later.slope >= limit_per_hour / 2:
        return "FAIL", whole
    for found in (whole, later):
        if found.high < limit_per_hour:
            return "PASS", found
    return "NO VERDICT", whole


def _variance(y: Values) -> float:
    """Of Mann and Kendall's statistic of independent values, ties considered."""
    n = len(y)
    ties = np.unique(y, return_counts=True)[1].astype(float)
    return float(n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18


def _correlation(rest: Values) -> float:
    """First autocorrelation of the ranks of ``rest``; its bias of about -(2 + 4 rho) / n is taken back."""
    from scipy.stats import rankdata

    n = len(rest)
    ranks = rankdata(rest)
    ranks = ranks - ranks.mean()
    square = float(ranks @ ranks)
    if n <= 4 or square == 0:
        return 0.0
    found = float(ranks[1:] @ ranks[:-1]) / square
    return min(max((n * found + 2) / (n - 4), 0.0), _MAX_CORRELATION)


def _inflation(n: int, correlation: float) -> float:
    """How many times the variance of the statistic is larger if values remember each other by ``correlation``."""
    lag = np.arange(1, n - 1)
    weight = (n - lag) * (n - lag - 1) * (n - lag - 2)
    return 1 + 2 / (n * (n - 1) * (n - 2)) * float((weight * correlation**lag).sum())
