"""Figures of merit against worked examples and scikit-learn."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.cache import environment_python
from model_server.classification import CATEGORIES
from training import metrics


def test_an_uneven_split_of_twelve_is_unlikely():
    """2 * (1 + 12 + 66) / 4096: of twelve calls that one alone gets right, at most two on one side."""
    right_a = np.array([True] * 10 + [False] * 2 + [True] * 30 + [False] * 8)
    right_b = np.array([False] * 10 + [True] * 2 + [True] * 30 + [False] * 8)
    found = metrics.mcnemar(right_a, right_b)
    assert (found["only_a"], found["only_b"]) == (10, 2)
    assert found["p_value"] == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert metrics.mcnemar(right_a, right_a)["p_value"] == 1


def test_risk_is_the_share_wrong_of_the_most_confident():
    coverage, risk = metrics.risk_coverage(np.array([0.5, 0.9, 0.7, 0.8]), np.array([False, True, False, True]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk.tolist() == [0, 0, pytest.approx(1 / 3), 0.5]


def test_calls_of_one_customer_stay_together_in_a_sample():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    for often in metrics.resampled(groups, 200, 0):
        assert often[0] == often[1]
        assert often[3] == often[4] == often[5]
        assert often[0] + often[2] + often[3] == 3


def test_a_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        right = rng.random(150) < 0.8
        draws = [np.average(right, weights=often) for often in metrics.resampled(np.arange(150), 300, seed)]
        low, high = metrics.interval(np.array(draws))
        held += low <= 0.8 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_the_temperature_of_overconfident_scores_is_found():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20_000, 12)) * 2
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    truth = np.array([rng.choice(12, p=row) for row in shares])
    for temperature in (0.5, 1.0, 3.0):
        assert metrics.fit_temperature(true * temperature, truth) == pytest.approx(temperature, rel=0.02)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=60))
def test_a_table_counts_every_call_once(pairs):
    truth, chosen = np.array(pairs).T
    table = metrics.confusion(truth, chosen, 12)
    assert table.sum() == len(pairs)
    assert table[truth[0], chosen[0]] == sum(pair == pairs[0] for pair in pairs)


@pytest.mark.training
def test_f1_is_scikit_learns_also_where_categories_are_absent():
    code = """
import json, sys
from sklearn.metrics import f1_score
truth, chosen = json.load(sys.stdin)
print(json.dumps(f1_score(truth, chosen, average="macro")))
"""
    rng = np.random.default_rng(3)
    names = [category.name for category in CATEGORIES]
    for kinds in (2, 7, 12):
        truth = [names[at] for at in rng.integers(0, kinds, 80)]
        chosen = [names[at] for at in rng.integers(0, max(2, kinds - 1), 80)]
        done = subprocess.run(
            [environment_python("training"), "-c", code],
            input=json.dumps([truth, chosen]),
            capture_output=True,
            text=True,
            check=True,
        )
        assert metrics.macro_f1(truth, chosen) == pytest.approx(json.loads(done.stdout))
