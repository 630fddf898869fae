"""The decisions keep what they promise: a block of simulated comparisons with fixed seeds, all three with SLOW=1."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import simulate


def test_the_noise_is_what_the_model_says():
    """Runs differ by 3 %, requests by 20 %, and the last runs are 5 % off the first."""
    a, b = simulate.draw(1, 300, 5, simulate.DRIFTS["linear"], slower=1.1)

    logs = np.log(a)
    assert a.shape == b.shape == (300, 5, simulate.REQUESTS)
    assert logs.std(axis=2).mean() == pytest.approx(0.2, rel=0.02)
    assert np.median(b) / np.median(a) == pytest.approx(1.1, rel=0.01)
    quiet = simulate.draw(1, 2000, 5, simulate.SHOWN["none"])[0].mean(axis=2)
    assert np.log(quiet).std(axis=1, ddof=1).mean() == pytest.approx(np.hypot(0.03, 0.2 / 200**0.5), rel=0.1)
    factors = simulate.DRIFTS["linear"](np.random.default_rng(2), 50, 10)
    assert np.abs(factors[:, -1] / factors[:, 0] - 1) == pytest.approx(np.full(50, 0.05))


@pytest.mark.parametrize("drift", simulate.DRIFTS)
def test_equal_servers_on_a_drifting_machine_are_rarely_called_different_and_ten_percent_is_found(drift):
    trials, seed, shape = 400, simulate.SEEDS[0], simulate.DRIFTS[drift]
    alarms, found = [], []
    for seed in simulate.SEEDS:
        equal, slow = (simulate.count(trials, seed + at, 5, shape, by) for at, by in ((0, 1.0), (100, 1.1)))
        alarms.append(equal["faster"] + equal["slower"])
        found.append(slow["slower"])
        assert equal["FAIL"] == 0

    assert simulate.Rate("alarms", drift, tuple(alarms), trials).upper <= 0.08
    assert sum(found) / (3 * trials) >= 0.85


def test_adding_pairs_until_it_is_decided_keeps_the_error_rates():
    shape, trials = simulate.DRIFTS["linear"], 400

    equal = simulate.count_gate(trials, simulate.SEEDS[1] + 200, shape)
    slow = simulate.count_gate(trials, simulate.SEEDS[1] + 300, shape, 1.1)
    edge = simulate.count_gate(trials, simulate.SEEDS[1] + 400, shape, 1 / 0.95)

    for alarm in ("at any look", "different", "FAIL"):
        assert simulate.Rate(alarm, "linear", (equal[alarm],), trials).upper <= 0.08
    assert equal["PASS"] / trials > 0.85
    assert equal["pairs"] / trials < 12, "most are decided before the last look"
    assert slow["PASS"] == 0
    assert slow["FAIL"] / trials > 0.7
    assert edge["PASS"] / trials <= 0.05


def test_looking_again_and_again_at_the_usual_level_would_not():
    """What the levels of the looks are for."""
    a, b = (side.mean(axis=2).tolist() for side in simulate.draw(5, 300, 16, simulate.SHOWN["none"]))

    peeked = sum(
        any(simulate.judge(x[:pairs], y[:pairs], 0.05)[1] != "same" for pairs in range(5, 17))
        for x, y in zip(a, b, strict=True)
    )

    assert peeked / 300 > 0.08


def test_methods_in_use_raise_many_more_false_alarms():
    found = simulate.naive(200, 3, 5, simulate.DRIFTS["step"])

    assert found["pooled Mann-Whitney, ABBA"] / 200 > 0.3
    assert found["Welch on runs, AAAA BBBB"] / 200 > 0.1
    assert found["one run each, 5 % threshold"] / 200 > 0.2


def test_a_missed_bar_is_told_and_ends_with_1(monkeypatch, capsys):
    """Ten trials cannot show a rate below 8 %: the upper bound of none of thirty is 11 %."""
    monkeypatch.setattr(simulate, "SHOWN", {"linear": simulate.DRIFTS["linear"], "none": simulate.SHOWN["none"]})
    monkeypatch.setattr(simulate, "DRIFTS", {"linear": simulate.DRIFTS["linear"]})

    code = simulate.main(["trials=10"])

    out = capsys.readouterr().out
    assert code == 1
    assert "upper bound <= 8%: MISSED" in out
    assert json.loads(out.splitlines()[-1])["exit_code"] == 1


@pytest.mark.parametrize("word", ["trials=few", "trials=0", "trails=3"])
def test_what_cannot_be_asked_is_said_in_one_line(word, capsys):
    assert simulate.main([word]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.computing
@pytest.mark.timeout(3600)
def test_every_bar_is_kept_in_full():
    assert [rate.row() for rate in simulate.simulate(400) if rate.kept is False] == []
