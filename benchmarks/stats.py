"""Numbers about numbers: pure functions, no frames. Checked against ``statistics`` and scipy.

Why runs and not requests are compared: requests of one run share whatever the machine was doing then. By
simulation (run effect 3 %, request noise 20 %, 200 requests a run), a rank test over pooled requests calls two
equal servers different in 36 to 84 % of comparisons; interleaved runs with a paired test in 3 to 7 %.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """``ratio`` is the geometric mean of b / a over the pairs; ``t`` and ``bootstrap`` are intervals of it."""

    pairs: int
    ratio: float
    t: Interval
    bootstrap: Interval
    p_value: float
    """Two-sided, of a ratio at least this far from 1 if a and b were equal."""
    ratios: tuple[float, ...]


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100) by linear interpolation between closest ranks.

    Raises:
        ValueError: No values (a percentile of nothing is not 0), or q outside 0 to 100.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError(f"a percentile needs values and 0 <= q <= 100, got {len(values)} values and q={q}")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def minimum_samples(q: float, confidence: float = 0.99) -> int:
    """Fewest samples from which the q-th percentile (50 <= q < 100) may be stated.

    The smallest n for which seeing at most one value above the true percentile is less likely than
    ``1 - confidence``: 662 for p99.

    Source: the early-stopping criterion of MLPerf LoadGen.
    """
    above = 1 - q / 100
    if not 0 < above <= 0.5:
        raise ValueError(f"q must be from 50 to below 100, got {q}")
    n = 2
    while (1 - above) ** n + n * above * (1 - above) ** (n - 1) > 1 - confidence:
        n += 1
    return n


def wilson(successes: int, total: int, alpha: float = 0.05) -> Interval:
    """Score interval of a share (Wilson, 1927).

    Raises:
        ValueError: No trials, or more successes than trials.
    """
    if total <= 0 or not 0 <= successes <= total:
        raise ValueError(f"need 0 <= successes <= total and total > 0, got {successes} of {total}")
    z = statistics.NormalDist().inv_cdf(1 - alpha / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == total else centre + half)


def paired_shares(both: int, only_a: int, only_b: int, neither: int, alpha: float = 0.05) -> Interval:
    """Interval of share(a) - share(b) when the same cases were judged on both sides.

    Args:
        both: Cases right on both sides; ``only_a``, ``only_b``: right on one side; ``neither``: on none.

    Source:
        Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
    """
    total = both + only_a + only_b + neither
    a, b = wilson(both + only_a, total, alpha), wilson(both + only_b, total, alpha)
    share_a, share_b = (both + only_a) / total, (both + only_b) / total
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # The continuity correction applies to positive association only.
    corrected = max(cross - total / 2, 0) if cross > 0 else cross
    phi = 0.0 if product == 0 else corrected / math.sqrt(product)
    low_a, high_a, low_b, high_b = share_a - a.low, a.high - share_a, share_b - b.low, b.high - share_b
    down = math.sqrt(max(0.0, low_a**2 - 2 * phi * low_a * high_b + high_b**2))
    up = math.sqrt(max(0.0, high_a**2 - 2 * phi * high_a * low_b + low_b**2))
    return Interval(share_a - share_b - down, share_a - share_b + up)


def compare_pairs(a: Sequence[float], b: Sequence[float], alpha: float = 0.05, seed: int = 0) -> PairedComparison:
    """Paired comparison of one metric of runs: the mean log ratio of b to a, back on the ratio's scale.

    Args:
        a, b: The metric of each run, by pair; positive, of equal length, at least two.

    Raises:
        ValueError: Fewer than two pairs, unequal lengths, or a value that is not positive.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"need at least two pairs, got {len(a)} and {len(b)} values")
    if not all(math.isfinite(value) and value > 0 for value in (*a, *b)):
        raise ValueError("every value of a paired log ratio must be positive")
    logs = [math.log(right / left) for left, right in zip(a, b, strict=True)]
    n = len(logs)
    mean = math.fsum(logs) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in logs) / (n - 1) / n)
    from scipy.stats import t

    half = float(t.ppf(1 - alpha / 2, n - 1)) * error
    # Runs that are all alike: a rounding error of the logarithms is not a difference.
    exact = 1.0 if abs(mean) < 1e-12 else 0.0
    p = exact if error < 1e-12 else 2 * float(t.sf(abs(mean) / error, n - 1))
    resampled = bootstrap(logs, lambda values: math.fsum(values) / len(values), alpha, seed)
    return PairedComparison(
        pairs=n,
        ratio=math.exp(mean),
        t=Interval(math.exp(mean - half), math.exp(mean + half)),
        bootstrap=Interval(math.exp(resampled.low), math.exp(resampled.high)),
        p_value=p,
        ratios=tuple(math.exp(value) for value in logs),
    )


def ratio_of_batches(a: Sequence[float], b: Sequence[float], alpha: float = 0.05) -> Interval:
    """Interval of b / a of two runs from batches of each (Welch's t on logarithms).

    It holds noise within the two runs only; what a run shares with the machine at that moment is not in it.
    """
    from scipy.stats import t

    logs = [[math.log(value) for value in side] for side in (a, b)]
    # Variance of each mean.
    left, right = (statistics.variance(side) / len(side) for side in logs)
    shift = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    if left + right == 0:
        return Interval(math.exp(shift), math.exp(shift))
    freedom = (left + right) ** 2 / (left**2 / (len(a) - 1) + right**2 / (len(b) - 1))
    half = float(t.ppf(1 - alpha / 2, freedom)) * math.sqrt(left + right)
    return Interval(math.exp(shift - half), math.exp(shift + half))


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap interval of ``statistic``. With few values it is too narrow: shown, never decisive."""
    chance = random.Random(seed)
    n = len(values)
    found = sorted(statistic(chance.choices(values, k=n)) for _ in range(resamples))
    return Interval(percentile(found, 100 * alpha / 2), percentile(found, 100 * (1 - alpha / 2)))


def f1_by_class(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """F1 of each class in ``pairs`` of (true, predicted); a class that only occurs as a prediction counts as 0."""
    found: dict[str, float] = {}
    for name in sorted({label for pair in pairs for label in pair}):
        hit = sum(true == name == predicted for true, predicted in pairs)
        true_count = sum(true == name for true, _ in pairs)
        predicted_count = sum(predicted == name for _, predicted in pairs)
        found[name] = 2 * hit / (true_count + predicted_count)
    return found


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean F1 over classes, each with the same weight.

    Raises:
        ValueError: No pairs.
    """
    if not pairs:
        raise ValueError("macro-F1 of no predictions is not 0")
    scores = f1_by_class(pairs)
    return math.fsum(scores.values()) / len(scores)
