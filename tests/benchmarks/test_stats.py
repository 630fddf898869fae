"""Expected values come from the standard library, scipy, and published examples and tables."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stats

FINITE = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)
POSITIVE = st.floats(min_value=0.01, max_value=100)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=12)


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


@given(n=st.integers(662, 3000), q=st.sampled_from([50, 90, 95, 99]), alpha=st.sampled_from([0.01, 0.05, 0.2]))
def test_an_interval_of_a_percentile_lies_between_the_ranks_that_scipys_binomial_gives(n, q, alpha):
    found = stats.percentile_interval(np.arange(1, n + 1), q, alpha)

    below, above = scipy.stats.binom.ppf(alpha / 2, n, q / 100), scipy.stats.binom.isf(alpha / 2, n, q / 100) + 1
    if above > n:
        assert found is None
    else:
        assert (found.low, found.high) == (below, above)
        # P(rank r < percentile) is P(at least r values below it).
        assert scipy.stats.binom.sf(found.high - 1, n, q / 100) <= alpha / 2
        assert scipy.stats.binom.cdf(found.low - 1, n, q / 100) <= alpha / 2


def test_an_interval_of_a_percentile_holds_it_as_often_as_it_says():
    chance = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        found = stats.percentile_interval(chance.exponential(1.0, 700), 95)
        held += found.low <= -math.log(0.05) <= found.high
    assert 0.93 <= held / 400 <= 0.99


def test_a_percentile_of_too_few_values_has_no_interval():
    assert stats.percentile_interval(np.arange(661), 99) is None
    assert stats.percentile_interval(np.arange(100), 99) is None


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


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ],
)
def test_independent_shares_give_the_published_examples(a, b, expected):
    """Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10."""
    found = stats.independent_shares(a[0] / a[1], stats.wilson(*a), b[0] / b[1], stats.wilson(*b))

    assert (found.low, found.high) == pytest.approx(expected, abs=5e-5)


def test_the_first_estimate_of_noise_is_the_paired_t_test_of_scipy_on_log_ratios():
    a, b = [10.0, 11.0, 9.5, 10.4, 10.1], [11.0, 12.5, 10.0, 11.0, 11.8]

    found = stats.compare_pairs(a, b)

    logs = [math.log(y / x) for x, y in zip(a, b, strict=True)]
    expected = scipy.stats.ttest_1samp(logs, 0)
    assert found.noises[0][0] == pytest.approx(scipy.stats.sem(logs))
    assert found.noises[0][1] == expected.df
    assert found.ratio == pytest.approx(statistics.geometric_mean(y / x for x, y in zip(a, b, strict=True)))
    # The levels of these pairs jump, so the first estimate is the smaller; it may use half of alpha.
    half = expected.confidence_interval(0.975)
    assert (found.t.low, found.t.high) == pytest.approx((math.exp(half.low), math.exp(half.high)))
    assert found.p_value == pytest.approx(2 * expected.pvalue)


def test_the_second_estimate_of_noise_is_what_least_squares_leave():
    """Differences about their mean, sums about a line: numpy's polynomial fits are the oracle."""
    chance = np.random.default_rng(1)
    a, b = np.exp(chance.normal(0, 0.03, (2, 6)))

    error, freedom = stats.compare_pairs(a.tolist(), b.tolist()).noises[1]

    time, differences, sums = np.arange(6), np.log(b) - np.log(a), np.log(b) + np.log(a)
    left = [
        values - np.polynomial.Polynomial.fit(time, values, degree)(time)
        for values, degree in ((differences, 0), (sums, 1))
    ]
    squares = sum(float(each @ each) for each in left)
    assert freedom == 9
    assert error == pytest.approx(math.sqrt(squares / 9 / 6))


def test_with_pairs_on_one_level_the_second_estimate_narrows_the_interval():
    a, b = [1.0, 1.03, 0.98, 1.02, 0.99], [1.02, 1.0, 1.01, 0.97, 1.03]

    found = stats.compare_pairs(a, b)

    error, freedom = found.noises[1]
    assert math.log(found.t.high / found.ratio) == pytest.approx(scipy.stats.t.ppf(1 - 0.05 / 4, freedom) * error)
    assert math.log(found.t.high / found.ratio) < scipy.stats.t.ppf(1 - 0.05 / 4, 4) * found.noises[0][0]


@given(PAIRS)
def test_an_interval_holds_what_its_p_value_does_not_reject(pairs):
    a, b = zip(*pairs, strict=True)
    found = stats.compare_pairs(a, b, resamples=0)

    if abs(found.p_value - 0.05) > 1e-6 and found.noises[0][0] > 1e-9:
        assert (found.t.low <= 1 <= found.t.high) == (found.p_value > 0.05)
    for bound in (0.9, 1.1):
        if found.noises[0][0] > 1e-9 and abs(found.p_at_most(bound) - 0.025) > 1e-6:
            assert (found.t.low > bound) == (found.p_at_most(bound) < 0.025)
        if found.noises[0][0] > 1e-9 and abs(found.p_at_least(bound) - 0.025) > 1e-6:
            assert (found.t.high < bound) == (found.p_at_least(bound) < 0.025)


@given(PAIRS)
def test_exchanging_the_sides_inverts_the_comparison(pairs):
    a, b = zip(*pairs, strict=True)

    there, back = stats.compare_pairs(a, b, resamples=0), stats.compare_pairs(b, a, resamples=0)

    assert there.ratio * back.ratio == pytest.approx(1)
    assert math.log(there.t.low) == pytest.approx(-math.log(back.t.high), rel=1e-6, abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value, abs=1e-9)


@given(PAIRS, POSITIVE, st.floats(-0.2, 0.2))
def test_a_scale_and_a_steady_drift_that_both_share_do_not_change_the_ratio(pairs, scale, slope):
    a, b = zip(*pairs, strict=True)
    drift = [scale * math.exp(slope * at) for at in range(len(pairs))]

    found = stats.compare_pairs([x * f for x, f in zip(a, drift, strict=True)],
                                [y * f for y, f in zip(b, drift, strict=True)], resamples=0)  # fmt: skip

    expected = stats.compare_pairs(a, b, resamples=0)
    assert found.ratio == pytest.approx(expected.ratio)
    assert [error for error, _ in found.noises] == pytest.approx([error for error, _ in expected.noises], abs=1e-9)


def test_equal_runs_show_no_difference_and_a_constant_ratio_shows_one():
    assert stats.compare_pairs([5.0, 6.0, 7.0], [5.0, 6.0, 7.0]).p_value == 1.0
    assert stats.compare_pairs([5.0, 6.0, 7.0], [10.0, 12.0, 14.0]).p_value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_cannot_be_compared_is_refused(a, b):
    with pytest.raises(ValueError):
        stats.compare_pairs(a, b)


def test_the_bootstrap_of_pairs_agrees_with_scipys():
    logs = [0.02, 0.11, -0.04, 0.07, 0.09, 0.03, 0.12, -0.01]

    found = stats.compare_pairs([1.0] * 8, [math.exp(value) for value in logs], resamples=20_000).bootstrap

    expected = scipy.stats.bootstrap(
        (logs,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_the_nested_bootstrap_holds_the_noise_between_runs_and_within_them():
    """The variance of the mean log ratio: of pairs over n, and of two runs' means over n (delta method)."""
    chance = np.random.default_rng(2)
    n, requests = 40, 50
    runs = np.exp(chance.normal(0, 0.02, (2, n, 1)) + chance.normal(0, 0.3, (2, n, requests)))
    means = runs.mean(axis=2)

    within = tuple(np.stack([stats.resampled_mean(run, 500, chance) for run in side]) for side in runs)
    found = stats.compare_pairs(means[0].tolist(), means[1].tolist(), resamples=4000, within=within).bootstrap

    between = np.var(np.log(means[1] / means[0])) / n
    inside = sum(float(np.mean(side.var(axis=1) / side.mean(axis=1) ** 2)) / requests / n for side in runs)
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(between + inside)
    assert math.log(found.high / found.low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("q", [50, 90, 95])
def test_a_resampled_percentile_is_distributed_as_if_all_requests_were_drawn_anew(q):
    chance = np.random.default_rng(4)
    values = chance.lognormal(0, 0.4, 137)

    quick = stats.resampled_percentile(values, q, 20_000, chance)

    slow = np.percentile(values[chance.integers(0, 137, (20_000, 137))], q, axis=1)
    # Both are draws from one discrete distribution: their distributions may differ by chance only.
    grid = np.unique(np.concatenate([quick, slow]))
    gap = np.abs(
        np.searchsorted(np.sort(quick), grid, side="right") - np.searchsorted(np.sort(slow), grid, side="right")
    ).max()
    assert gap / 20_000 < 1.63 * math.sqrt(2 / 20_000), "Kolmogorov-Smirnov at 1 %"


@pytest.mark.parametrize("n", [300, 5000])
def test_a_resampled_mean_has_the_spread_of_the_standard_error(n):
    chance = np.random.default_rng(5)
    values = chance.exponential(1.0, n)

    found = stats.resampled_mean(values, 4000, chance)

    assert found.mean() == pytest.approx(values.mean(), abs=4 * scipy.stats.sem(values) / math.sqrt(4000))
    assert found.std() == pytest.approx(scipy.stats.sem(values), rel=0.06)


def test_a_resampled_rate_is_a_ratio_of_sums():
    chance = np.random.default_rng(6)

    found = stats.resampled_rate([10.0, 10.0], [1.0, 3.0], 4000, chance)

    # Parts 1+1, 1+3 or 3+3: 20 answers in 2, 4 or 6 s, with chances 1/4, 1/2 and 1/4.
    shares = [float(np.isclose(found, rate).mean()) for rate in (10, 5, 20 / 6)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_batches_of_two_runs_are_compared_by_welchs_test_as_scipy_does_it():
    a, b = [10.0, 11.0, 9.0, 10.5], [20.0, 21.0, 23.0, 19.0]

    found = stats.ratio_of_batches(a, b)

    logs = [[math.log(value) for value in side] for side in (b, a)]
    expected = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert stats.ratio_of_batches([5.0, 5.0], [10.0, 10.0]).low == pytest.approx(2)


def test_holm_gives_the_worked_example():
    """Four tests at 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no less than that for 0.04."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.7, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p_values):
    found = stats.holm(p_values)

    for p, adjusted in zip(p_values, found, strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p) + 1e-12
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [found[at] for at in order] == sorted(found)


@pytest.mark.parametrize(
    ("spending", "expected"),
    [
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_the_boundaries_are_those_of_the_published_tables(spending, expected):
    """Five equal looks, alpha 0.05, two-sided: Reboussin et al. (2000), Controlled Clinical Trials 21, 190-207."""
    levels = stats.look_levels((0.2, 0.4, 0.6, 0.8, 1.0), 0.05, spending)

    assert scipy.stats.norm.isf(np.array(levels) / 2) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_looking_often_is_wrong_no_more_often_than_alpha(spending):
    """Sums of normal numbers, looked at after 5, 6, ..., 16: crossings are counted."""
    counts = np.arange(5, 17)
    levels = stats.look_levels(tuple(counts / 16), 0.05, spending)
    sums = np.cumsum(np.random.default_rng(7).normal(size=(40_000, 16)), axis=1)[:, counts - 1] / np.sqrt(counts)

    crossed = np.abs(sums) > scipy.stats.norm.isf(np.array(levels) / 2)

    assert crossed.any(axis=1).mean() == pytest.approx(0.05, abs=0.004)
    naive = (np.abs(sums) > 1.96).any(axis=1).mean()
    assert naive > 0.11, "looking twelve times at the usual level would be wrong this often"


def test_one_look_at_everything_has_all_of_alpha():
    assert stats.look_levels((1.0,), 0.05) == pytest.approx((0.05,), rel=1e-6)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 0.4), (0.5, 0.5), (0.5, 1.1)])
def test_looks_that_are_not_in_order_are_refused(fractions):
    with pytest.raises(ValueError, match="must rise"):
        stats.look_levels(fractions)


def test_macro_f1_agrees_with_a_count_by_hand():
    """x: 2 of 3 found, 1 wrongly named -> 2/3; y: 1 of 2, 1 wrongly -> 1/2; z is never right -> 0."""
    pairs = [("x", "x"), ("x", "x"), ("x", "y"), ("y", "y"), ("y", "z"), ("z", "x")]

    assert stats.f1_by_class(pairs) == pytest.approx({"x": 2 / 3, "y": 1 / 2, "z": 0})
    assert stats.macro_f1(pairs) == pytest.approx((2 / 3 + 1 / 2) / 3)


def test_a_class_that_is_only_predicted_costs_the_class_it_was_taken_from():
    pairs = [("x", "x")] * 99 + [("x", "stray")]

    assert stats.macro_f1(pairs) == pytest.approx(2 * 99 / (99 + 100))


def test_the_interval_of_a_macro_f1_drop_agrees_with_drawing_cases_one_by_one():
    chance = random.Random(9)
    cases = [("x", "x", "x")] * 60 + [("y", "y", "x")] * 8 + [("y", "y", "y")] * 30 + [("z", "x", "w")] * 5

    found = stats.macro_f1_drop(cases, resamples=4000)

    drops = []
    for _ in range(1500):
        drawn = chance.choices(cases, k=len(cases))
        drops.append(
            stats.macro_f1([(true, a) for true, a, _ in drawn]) - stats.macro_f1([(true, b) for true, _, b in drawn])
        )
    expected = statistics.quantiles(drops, n=40)
    assert (found.low, found.high) == pytest.approx((expected[0], expected[-1]), abs=0.01)


def test_the_same_answers_have_no_drop():
    found = stats.macro_f1_drop([("x", "x", "x")] * 5 + [("y", "x", "x")] * 5)

    assert (found.low, found.high) == (0, 0)
