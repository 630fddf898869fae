"""Expected values come from the standard library, scipy, and published examples."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stats

FINITE = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.lists(FINITE, min_size=2, max_size=50))
def test_percentiles_agree_with_the_standard_library(values):
    expected = statistics.quantiles(values, n=100, method="inclusive")

    for q in (1, 50, 95, 99):
        assert stats.percentile(values, q) == pytest.approx(expected[q - 1], rel=1e-9, abs=1e-6)


def test_the_ends_are_the_smallest_and_the_largest():
    assert stats.percentile([3.0, 1.0, 2.0], 0) == 1.0
    assert stats.percentile([3.0, 1.0, 2.0], 100) == 3.0
    assert stats.percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_a_percentile_of_nothing_is_not_zero(values, q):
    with pytest.raises(ValueError, match="percentile needs"):
        stats.percentile(values, q)


def test_p99_needs_662_samples_as_loadgen_says():
    assert stats.minimum_samples(99) == 662


@pytest.mark.parametrize("q", [50, 90, 95, 99])
def test_the_minimum_is_the_first_count_where_two_values_lie_above_with_99_percent(q):
    n = stats.minimum_samples(q)

    assert scipy.stats.binom.cdf(1, n, 1 - q / 100) <= 0.01 < scipy.stats.binom.cdf(1, n - 1, 1 - q / 100)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(trial):
    successes, total = trial

    found = stats.wilson(successes, total)

    expected = scipy.stats.binomtest(successes, total).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_paired_shares_give_the_published_example():
    """Newcombe (1998), table II: 36, 12, 2, 0 by method 10."""
    found = stats.paired_shares(36, 12, 2, 0)

    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_paired_shares_hold_the_true_difference_about_as_often_as_they_say():
    """By simulation: 2 % lose on b only, 1 % on a only, 88 % are right on both."""
    chance = random.Random(5)
    held = 0
    for _ in range(400):
        outcomes = chance.choices("ablr", weights=(88, 2, 1, 9), k=400)
        found = stats.paired_shares(*(outcomes.count(kind) for kind in "ablr"))
        held += found.low <= 0.01 <= found.high
    assert 0.92 <= held / 400 <= 0.99


def test_a_paired_comparison_is_the_t_test_of_scipy_on_log_ratios():
    a, b = [10.0, 11.0, 9.5, 10.4, 10.1], [11.0, 12.5, 10.0, 11.0, 11.8]

    found = stats.compare_pairs(a, b)

    logs = [math.log(y / x) for x, y in zip(a, b, strict=True)]
    expected = scipy.stats.ttest_1samp(logs, 0)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.ratio == pytest.approx(statistics.geometric_mean(y / x for x, y in zip(a, b, strict=True)))
    assert (found.t.low, found.t.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.t.low < found.bootstrap.low < found.ratio < found.bootstrap.high < found.t.high


def test_exchanging_the_sides_inverts_the_comparison():
    a, b = [10.0, 11.0, 9.5], [11.0, 12.5, 10.0]

    there, back = stats.compare_pairs(a, b), stats.compare_pairs(b, a)

    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.t.low * back.t.high == pytest.approx(1)
    assert there.p_value == pytest.approx(back.p_value)


def test_equal_runs_show_no_difference_and_a_constant_ratio_shows_one():
    assert stats.compare_pairs([5.0, 6.0, 7.0], [5.0, 6.0, 7.0]).p_value == 1.0
    assert stats.compare_pairs([5.0, 6.0, 7.0], [10.0, 12.0, 14.0]).p_value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_cannot_be_compared_is_refused(a, b):
    with pytest.raises(ValueError):
        stats.compare_pairs(a, b)


def test_two_equal_servers_on_a_drifting_machine_are_rarely_called_different():
    """
    Runs differ by 3 %, and the machine slows by 5 % over ten runs. In the order A B, B A, ... at most 8 % of 400
    comparisons may be alarms; all of A before all of B would be wrong about half the time.
    """

    def alarms(order: str, seed: int) -> float:
        chance, found = random.Random(seed), 0
        for _ in range(400):
            sides: dict[str, list[float]] = {"a": [], "b": []}
            for position, side in enumerate(order):
                sides[side].append(math.exp(chance.gauss(0, 0.03)) * (1 - 0.05 * position / (len(order) - 1)))
            logs = [y - x for x, y in zip(*([math.log(v) for v in sides[s]] for s in "ab"), strict=True)]
            mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
            found += abs(mean / error) > scipy.stats.t.ppf(0.975, len(logs) - 1)
        return found / 400

    assert alarms("abbaabbaab", seed=1) <= 0.08
    assert alarms("aaaaabbbbb", seed=1) > 0.2


def test_batches_of_two_runs_are_compared_by_welchs_test_as_scipy_does_it():
    a, b = [10.0, 11.0, 9.0, 10.5], [20.0, 21.0, 23.0, 19.0]

    found = stats.ratio_of_batches(a, b)

    logs = [[math.log(value) for value in side] for side in (b, a)]
    expected = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert stats.ratio_of_batches([5.0, 5.0], [10.0, 10.0]).low == pytest.approx(2)


def test_macro_f1_agrees_with_a_count_by_hand():
    """x: 2 of 3 found, 1 wrongly named -> 2/3; y: 1 of 2, 1 wrongly -> 1/2; z is never right -> 0."""
    pairs = [("x", "x"), ("x", "x"), ("x", "y"), ("y", "y"), ("y", "z"), ("z", "x")]

    assert stats.f1_by_class(pairs) == pytest.approx({"x": 2 / 3, "y": 1 / 2, "z": 0})
    assert stats.macro_f1(pairs) == pytest.approx((2 / 3 + 1 / 2) / 3)
