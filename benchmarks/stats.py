"""Numbers about numbers: pure functions, no frames. Checked against ``statistics``, scipy and published tables.

Why runs and not requests are compared: requests of one run share whatever the machine was doing then.
``python -m benchmarks.simulate`` shows it: with runs that differ by 3 %, a rank test over pooled requests calls two
equal servers different in 38 to 42 % of comparisons, :func:`compare_pairs` in 3 to 4 %.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Spending = Literal["pocock", "obrien_fleming"]
Noise = tuple[float, int]


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
    """Decides."""
    bootstrap: Interval | None
    """Nested, runs and requests within them; shown beside ``t``. None where it was not asked for."""
    p_value: float
    """Two-sided, of a ratio at least this far from 1 if a and b were equal."""
    ratios: tuple[float, ...]
    noises: tuple[Noise, ...]
    """Standard error of log(ratio) and its degrees of freedom, by each way of estimating it."""
    confidence: float
    """Of both intervals; at one look of several it is more than of all looks together."""

    def p_at_most(self, ratio: float) -> float:
        """One-sided p of "the true ratio is at most ``ratio``": small when it is above."""
        return _p_of(math.log(self.ratio / ratio), self.noises)

    def p_at_least(self, ratio: float) -> float:
        """One-sided p of "the true ratio is at least ``ratio``": small when it is below."""
        return _p_of(math.log(ratio / self.ratio), self.noises)


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


@functools.cache
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


def percentile_interval(values: ArrayLike, q: float, alpha: float = 0.05) -> Interval | None:
    """Interval of the q-th percentile (50 <= q < 100) between two of the values, whatever their distribution.

    The number of values below the true percentile is binomial, which says between which ranks it lies. Each tail has
    at most ``alpha / 2``. It takes the values for independent: those of one run are not quite, so it is shown, and
    decides nothing.

    Returns:
        None with fewer than :func:`minimum_samples`, or where no value is certain to lie above.

    Source:
        David and Nagaraja (2003), Order Statistics, 3rd edition, section 7.1.
    """
    ordered = np.asarray(values, dtype=float)
    if (ordered[1:] < ordered[:-1]).any():
        ordered = np.sort(ordered)
    n = len(ordered)
    if n < minimum_samples(q):
        return None
    from scipy.special import bdtr, bdtrik

    def rank(share: float) -> int:
        """Fewest values of which at most so many are below the percentile with probability ``share``."""
        found = math.ceil(float(bdtrik(share, n, q / 100)))
        return found - 1 if found and bdtr(found - 1, n, q / 100) >= share else found

    # The value of rank r (from 1) is below the percentile unless fewer than r values are.
    below, above = rank(alpha / 2), rank(1 - alpha / 2) + 1
    return Interval(float(ordered[below - 1]), float(ordered[above - 1])) if below >= 1 and above <= n else None


def wilson(successes: float, total: int, alpha: float = 0.05) -> Interval:
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
    return _difference(share_a, a, share_b, b, phi)


def independent_shares(share_a: float, a: Interval, share_b: float, b: Interval) -> Interval:
    """Interval of share(a) - share(b) from an interval of each; different cases were judged on the two sides.

    Source:
        Newcombe (1998), Statistics in Medicine 17, 873-890, method 10, where the intervals are Wilson's; any
        interval of a single share may take their place (Zou and Donner, 2008, Statistics in Medicine 27, 1693-1702).
    """
    return _difference(share_a, a, share_b, b, 0.0)


def _difference(share_a: float, a: Interval, share_b: float, b: Interval, phi: float) -> Interval:
    low_a, high_a, low_b, high_b = share_a - a.low, a.high - share_a, share_b - b.low, b.high - share_b
    down = math.sqrt(max(0.0, low_a**2 - 2 * phi * low_a * high_b + high_b**2))
    up = math.sqrt(max(0.0, high_a**2 - 2 * phi * high_a * low_b + low_b**2))
    return Interval(share_a - share_b - down, share_a - share_b + up)


def compare_pairs(
    a: Sequence[float],
    b: Sequence[float],
    alpha: float = 0.05,
    seed: int = 0,
    *,
    resamples: int = 2000,
    within: tuple[Floats, Floats] | None = None,
) -> PairedComparison:
    """Comparison of one metric of interleaved runs: the mean log ratio of b to a, back on the ratio's scale.

    How much one run differs from the next is estimated in two ways: from the differences within pairs (Student's
    paired t, n - 1 degrees of freedom), and from these together with the pairs' levels about a straight line in time
    (2 n - 3, so with five pairs 7 instead of 4). The first holds whatever moves both runs of a pair; the second is
    sharper where nothing does but a drift. Each may use half of ``alpha``, and the narrower interval counts: by
    Boole's inequality it misses the truth with at most ``alpha``. Five pairs find +10 % in 90 to 94 % of comparisons,
    with 3 to 4 % of false alarms; the paired t alone in 89 to 91 %, with 5 %: ``python -m benchmarks.simulate``. On a
    busy machine the levels of pairs wandered 2.6 times as much as their differences: there the first does the work.

    Args:
        a, b: The metric of each run, by pair in the order of time; positive, of equal length, at least two.
        resamples: Of the bootstrap; 0 leaves it out.
        within: The metric of each run, drawn anew from its own requests (:func:`resampled_percentile` and the like):
            two arrays (pairs, draws). Without it, the bootstrap draws pairs only.

    Raises:
        ValueError: Fewer than two pairs, unequal lengths, or a value that is not positive.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"need at least two pairs, got {len(a)} and {len(b)} values")
    if not all(math.isfinite(value) and value > 0 for value in (*a, *b)):
        raise ValueError("every value of a paired log ratio must be positive")
    left, right = [math.log(value) for value in a], [math.log(value) for value in b]
    logs = [y - x for x, y in zip(left, right, strict=True)]
    n = len(logs)
    mean = math.fsum(logs) / n
    noises = _noise_of_pairs(left, right)
    half = min(t_quantile(alpha / len(noises), freedom) * error for error, freedom in noises)
    # Runs that are all alike: a rounding error of the logarithms is not a difference.
    distance = 0.0 if abs(mean) < 1e-12 else abs(mean)
    return PairedComparison(
        pairs=n,
        ratio=math.exp(mean),
        t=Interval(math.exp(mean - half), math.exp(mean + half)),
        bootstrap=_nested(np.asarray(logs), within, alpha, seed, resamples) if resamples else None,
        p_value=min(1.0, 2 * _p_of(distance, noises)),
        ratios=tuple(math.exp(value) for value in logs),
        noises=noises,
        confidence=1 - alpha,
    )


def _noise_of_pairs(a: Sequence[float], b: Sequence[float]) -> tuple[Noise, Noise]:
    """Standard error of the mean difference b - a of pairs in time: within pairs, and with their levels."""
    n = len(a)
    differences = [y - x for x, y in zip(a, b, strict=True)]
    sums = [y + x for x, y in zip(a, b, strict=True)]
    mean, level = math.fsum(differences) / n, math.fsum(sums) / n
    within = math.fsum((value - mean) ** 2 for value in differences)
    # A sum has the variance of two runs, as a difference has.
    time = [at - (n - 1) / 2 for at in range(n)]
    slope = math.fsum(at * value for at, value in zip(time, sums, strict=True)) / math.fsum(at * at for at in time)
    between = math.fsum((value - level - slope * at) ** 2 for at, value in zip(time, sums, strict=True))
    both = 2 * n - 3
    return (math.sqrt(within / (n - 1) / n), n - 1), (math.sqrt((within + between) / both / n), both)


def _nested(logs: Floats, within: tuple[Floats, Floats] | None, alpha: float, seed: int, resamples: int) -> Interval:
    """Percentile bootstrap of the mean: pairs are drawn, and within each its two runs' requests."""
    chance = np.random.default_rng(seed)
    n = len(logs)
    drawn = chance.integers(0, n, (resamples, n))
    if within is None:
        means = logs[drawn].mean(axis=1)
    else:
        a, b = (np.log(side) for side in within)
        at_a, at_b = (chance.integers(0, side.shape[1], (resamples, n)) for side in (a, b))
        means = (b[drawn, at_b] - a[drawn, at_a]).mean(axis=1)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Interval(math.exp(low), math.exp(high))


def resampled_mean(values: ArrayLike, draws: int, chance: np.random.Generator) -> Floats:
    """The mean of ``values`` (n,), of n drawn anew with replacement, ``draws`` times.

    From 2,000 values on, by the normal distribution that it then has to within the noise of the draws.
    """
    each = np.asarray(values, dtype=float)
    n = len(each)
    if n >= 2000:
        return chance.normal(each.mean(), each.std() / math.sqrt(n), draws)
    return np.asarray(each[chance.integers(0, n, (draws, n))].mean(axis=1), dtype=float)


def resampled_percentile(values: ArrayLike, q: float, draws: int, chance: np.random.Generator) -> Floats:
    """The q-th percentile of ``values`` (n,), of n drawn anew with replacement, ``draws`` times.

    Nothing of size n is drawn: the rank that the k-th smallest of n draws has in the sorted values is n times the
    k-th smallest of n uniform numbers, which is Beta distributed.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    position = (n - 1) * q / 100
    k = math.floor(position)
    first = chance.beta(k + 1, n - k, draws)
    found = ordered[np.minimum((first * n).astype(int), n - 1)]
    if position == k:
        return np.asarray(found, dtype=float)
    # The next smallest is the smallest of the n - k - 1 that lie above.
    second = first + (1 - first) * chance.beta(1, n - k - 1, draws)
    upper = ordered[np.minimum((second * n).astype(int), n - 1)]
    return np.asarray(found + (upper - found) * (position - k), dtype=float)


def resampled_rate(amounts: ArrayLike, seconds: ArrayLike, draws: int, chance: np.random.Generator) -> Floats:
    """Amount per second of consecutive parts of a run (n,), of n parts drawn anew, ``draws`` times.

    Parts and not requests: in a closed loop the requests of a moment share their speed.
    """
    amount, second = np.asarray(amounts, dtype=float), np.asarray(seconds, dtype=float)
    at = chance.integers(0, len(amount), (draws, len(amount)))
    return np.asarray(amount[at].sum(axis=1) / second[at].sum(axis=1), dtype=float)


def ratio_of_batches(a: Sequence[float], b: Sequence[float], alpha: float = 0.05) -> Interval:
    """Interval of b / a of two runs from batches of each (Welch's t on logarithms).

    It holds noise within the two runs only; what a run shares with the machine at that moment is not in it.
    """
    logs = [[math.log(value) for value in side] for side in (a, b)]
    # Variance of each mean.
    left, right = (statistics.variance(side) / len(side) for side in logs)
    shift = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    if left + right == 0:
        return Interval(math.exp(shift), math.exp(shift))
    freedom = (left + right) ** 2 / (left**2 / (len(a) - 1) + right**2 / (len(b) - 1))
    half = t_quantile(alpha, freedom) * math.sqrt(left + right)
    return Interval(math.exp(shift - half), math.exp(shift + half))


@functools.cache
def t_quantile(alpha: float, freedom: float) -> float:
    """Student's t that a two-sided test at level ``alpha`` must exceed."""
    # Not scipy.stats, whose import takes seconds on a busy machine.
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, alpha / 2))


def _p_of(distance: float, noises: Sequence[Noise]) -> float:
    """One-sided p of a mean that lies ``distance`` on the far side of the hypothesis; the least, times their number."""
    from scipy.special import stdtr

    tails = [
        float(stdtr(freedom, -distance / error)) if error >= 1e-12 else float(distance <= 1e-12)
        for error, freedom in noises
    ]
    return min(1.0, len(noises) * min(tails))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of one family, adjusted so that one at or below alpha is a false alarm with at most alpha.

    Source:
        Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        found[at] = largest
    return found


@functools.cache
def look_levels(fractions: tuple[float, ...], alpha: float = 0.05, spending: Spending = "pocock") -> tuple[float, ...]:
    """Level of each look at data that grow, so that all looks together are wrong with at most ``alpha``.

    An error-spending function says how much of alpha may be used up when a share of the data is there; each look's
    boundary follows by numerical integration over the paths that have not crossed one before. With intervals at
    these levels (repeated confidence intervals), whatever is concluded at whatever look, and for whatever reason one
    stopped, holds with 1 - alpha.

    Args:
        fractions: Share of the most data there may be, at each look; rising, the last at most 1.

    Returns:
        Two-sided nominal levels, to be used with t as with z: exact for known noise, and by simulation for t.

    Source:
        Lan and DeMets (1983), Biometrika 70, 659-663 (spending); Armitage, McPherson and Rowe (1969), JRSS A 132,
        235-244 (integration); Jennison and Turnbull (2000), Group Sequential Methods, chapters 4 (levels with t), 7
        and 9 (repeated intervals).

    Raises:
        ValueError: The fractions do not rise from above 0 to at most 1.
    """
    if not fractions or fractions[0] <= 0 or fractions[-1] > 1 or list(fractions) != sorted(set(fractions)):
        raise ValueError(f"fractions must rise from above 0 to at most 1, got {fractions}")
    from scipy.optimize import brentq
    from scipy.special import ndtr

    found: list[float] = []
    before, used = 0.0, 0.0
    # Paths that have crossed no boundary: where they are (B(t) = z sqrt(t)), with weights of the integral.
    places, weights = np.zeros(1), np.ones(1)
    for fraction in fractions:
        may_use = _spent(fraction, alpha, spending)
        step = math.sqrt(fraction - before)

        def crossed(
            z: float, at: Floats = places, weight: Floats = weights, step: float = step, edge: float = fraction**0.5
        ) -> float:
            both = ndtr((-z * edge - at) / step) + ndtr((at - z * edge) / step)
            return float(both @ weight)

        # brentq's tolerance is far below what the grid of 801 places gives (4 digits of z).
        boundary = brentq(lambda z, use=may_use - used: crossed(z) - use, 0.0, 12.0)
        found.append(float(2 * ndtr(-boundary)))
        edge = boundary * math.sqrt(fraction)
        grid = np.linspace(-edge, edge, 801)
        density = np.exp(-0.5 * ((grid[:, None] - places) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        simpson = np.full(801, 2.0)
        simpson[1::2] = 4.0
        simpson[[0, -1]] = 1.0
        weights = (density @ weights) * simpson * (grid[1] - grid[0]) / 3
        places, before, used = grid, fraction, may_use
    return tuple(found)


def _spent(fraction: float, alpha: float, spending: Spending) -> float:
    """How much of ``alpha`` may be used up at ``fraction``."""
    normal = statistics.NormalDist()
    if spending == "obrien_fleming":
        # Two-sided: each tail spends half of alpha by the function for one tail.
        return 4 * (1 - normal.cdf(normal.inv_cdf(1 - alpha / 4) / math.sqrt(fraction)))
    return alpha * math.log(1 + (math.e - 1) * fraction)


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
    """Mean F1 over the classes that are true at least once, each with the same weight.

    A class that is only ever predicted has no F1 of its own here: its false alarms already cost the classes that they
    were taken from, and one of them would otherwise weigh as much as a whole class.

    Raises:
        ValueError: No pairs.
    """
    if not pairs:
        raise ValueError("macro-F1 of no predictions is not 0")
    scores = f1_by_class(pairs)
    return statistics.fmean(scores[name] for name in {true for true, _ in pairs})


def macro_f1_drop(
    cases: Sequence[tuple[str, str, str]], alpha: float = 0.05, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Bootstrap interval of macro-F1(a) - macro-F1(b) over ``cases`` of (true, said by a, said by b)."""
    kinds = sorted(set(cases))
    counts = np.asarray([cases.count(kind) for kind in kinds], dtype=float)
    drawn = np.random.default_rng(seed).multinomial(len(cases), counts / counts.sum(), resamples).astype(float)
    drops = _macro_f1_of_counts(drawn, kinds, 1) - _macro_f1_of_counts(drawn, kinds, 2)
    low, high = np.quantile(drops, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high))


def _macro_f1_of_counts(counts: Floats, kinds: Sequence[tuple[str, str, str]], side: int) -> Floats:
    """Macro-F1 of each row of ``counts`` (draws, kinds)."""
    total, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for name in sorted({kind[0] for kind in kinds}):
        hit, true, said = (
            counts @ np.asarray(chosen, dtype=float)
            for chosen in (
                [kind[0] == name == kind[side] for kind in kinds],
                [kind[0] == name for kind in kinds],
                [kind[side] == name for kind in kinds],
            )
        )
        total += np.divide(2 * hit, true + said, out=np.zeros(len(counts)), where=true > 0)
        classes += true > 0
    return np.asarray(total / classes, dtype=float)
