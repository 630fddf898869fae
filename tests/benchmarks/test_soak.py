"""Drift: the trend test against scipy and by simulation, then soaks of servers with and without planted faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, theilslopes

import benchmarks
from benchmarks.__main__ import main
from benchmarks.soak import NEIGHBOURS_CORES, Series, SoakScenario, cells, judge, neighbours_grew
from benchmarks.stats import wilson
from benchmarks.trend import MIN_VALUES, grows, trend
from runconfig import ConfigError, load

SOAK = Path(benchmarks.__file__).parent / "configs" / "soak.yml"
MINUTES = [60.0 * cell + 30 for cell in range(20)]


def remembering(chance, count, correlation):
    """A first-order process with variance 1."""
    shocks = chance.standard_normal(count)
    found = [shocks[0]]
    for shock in shocks[1:]:
        found.append(correlation * found[-1] + np.sqrt(1 - correlation**2) * shock)
    return np.array(found)


# -- the trend ---------------------------------------------------------------------------------------------------


def independent(count=40, seed=3):
    """Values without memory whose ranks about the trend do not look as if they had any."""
    for attempt in range(seed, seed + 50):
        chance = np.random.default_rng(attempt)
        at = np.sort(chance.uniform(0, 10, count))
        values = 0.1 * at + chance.standard_normal(count)
        found = trend(at, values)
        if found.correlation == 0:
            return at, values, found
    raise AssertionError


def test_slope_and_interval_are_scipys_where_values_are_independent():
    at, values, found = independent()
    # scipy's interval is two-sided: 90 % leaves 5 % on each side.
    expected = theilslopes(values, at, alpha=0.9)

    assert found.slope == pytest.approx(expected.slope)
    assert found.low == pytest.approx(expected.low_slope, abs=0.02)
    assert found.high == pytest.approx(expected.high_slope, abs=0.02)


def test_the_test_is_kendalls_where_values_are_independent():
    """Kendall's tau against time is the same statistic; scipy leaves out the step of one for continuity."""
    at, values, found = independent()

    assert found.p_value == pytest.approx(
        kendalltau(at, values, method="asymptotic", alternative="greater").pvalue, abs=0.01
    )


def test_values_that_never_change_do_not_rise():
    found = trend(range(20), [8.0] * 20)

    assert (found.slope, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_wrong_series_is_refused():
    for at, values in (([1, 2], [1, 2]), ([1, 1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2])):
        with pytest.raises(ValueError, match="at different times"):
            trend(at, values)


def alarms(correlation, level, trials, seed):
    chance = np.random.default_rng(seed)
    return sum(trend(MINUTES, remembering(chance, 20, correlation)).p_value < level for _ in range(trials))


@pytest.mark.parametrize(
    ("correlation", "most"), [(0.0, 0.05), (0.5, 0.11)], ids=["independent values", "values that remember"]
)
def test_nothing_that_grows_is_rarely_called_growth(correlation, most):
    """At a level of 5 %; independence assumed, it is 4 and 16 % (the docstring of benchmarks.trend)."""
    assert alarms(correlation, 0.05, 400, seed=11) / 400 <= most


@pytest.mark.computing
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.06), (0.3, 0.08), (0.5, 0.10), (0.7, 0.13)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_that_grows_is_rarely_called_growth_in_full(correlation, most, seed):
    """2,000 series each; the bound is on the upper end of Wilson's interval."""
    assert wilson(alarms(correlation, 0.05, 2000, seed), 2000).high <= most


def answers(slope_per_hour, noise, correlation, trials, seed):
    """Verdicts on soaks of 20 minutes whose median latency grows by this share per hour; the limit is 0.25."""
    chance = np.random.default_rng(seed)
    growth = 100 * (1 + slope_per_hour * np.array(MINUTES) / 3600)
    found = []
    for _ in range(trials):
        values = growth * (1 + noise * remembering(chance, 20, correlation))
        found.append(judge(Series("latency_p50", "ms", 0.25, True, values.tolist()), MINUTES, 0.05)["verdict"])
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_planted_slow_down_is_found_and_a_steady_server_is_not_accused(correlation):
    """1 % a minute against cells that differ by 1 %; by 300 trials the power is 0.94, false alarms 0."""
    assert answers(0.6, 0.01, correlation, 60, seed=5).count("FAIL") >= 50
    steady = answers(0.0, 0.01, correlation, 60, seed=6)
    assert steady.count("FAIL") == 0
    assert steady.count("PASS") >= 40


@pytest.mark.computing
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_false_alarms_stay_low_at_any_noise_and_power_is_high(seed):
    """Six series share 5 %: 0.8 % each. Measured at correlation 0.5: 0.3 to 1.7 % for noise of 3 to 15 %, power 0.92 to
    0.96 (1 % a minute, noise 1 %) and 0.83 to 0.88 (2 % a minute, noise 3 %).
    """
    for noise, correlation in ((0.01, 0.5), (0.03, 0.5), (0.15, 0.0), (0.06, 0.5), (0.15, 0.5)):
        assert answers(0.0, noise, correlation, 600, seed).count("FAIL") <= 0.02 * 600
    assert answers(0.6, 0.01, 0.5, 200, seed).count("FAIL") >= 0.88 * 200
    assert answers(1.2, 0.03, 0.5, 200, seed).count("FAIL") >= 0.78 * 200
    # What grows by the limit itself is rarely passed.
    assert answers(0.25, 0.03, 0.5, 400, seed).count("PASS") <= 0.03 * 400


def test_growth_that_ends_is_a_cache_and_growth_that_goes_on_is_a_leak():
    chance = np.random.default_rng(4)
    noise = 0.05 * chance.standard_normal(30)
    at = [60.0 * cell for cell in range(30)]
    leak = [100 + 0.5 * cell + noise[cell] for cell in range(30)]
    cache = [100 + 40 * (1 - np.exp(-cell / 3)) + noise[cell] for cell in range(30)]
    small = [100 + 0.1 * cell + noise[cell] for cell in range(30)]
    sawtooth = [100 + 5 * (cell % 4) + noise[cell] for cell in range(30)]

    assert [grows(at, values, 20, 0.01)[0] for values in (leak, cache, small, sawtooth)] == [
        "FAIL",
        "PASS",
        "PASS",
        "NO VERDICT",
    ]


def test_too_few_cells_say_nothing():
    answer, found = grows(range(MIN_VALUES - 1), range(MIN_VALUES - 1), 0.001, 0.05)

    assert (answer, found) == ("NO VERDICT", None)


def test_cells_that_state_nothing_are_left_out_and_a_series_of_them_is_not_judged():
    values = [100.0 + 2 * cell for cell in range(20)]
    holes = [None if cell in {3, 11} else value for cell, value in enumerate(values)]

    assert judge(Series("memory_used_mb", "MiB", 30, False, holes), MINUTES, 0.05)["verdict"] == "FAIL"
    short = judge(Series("memory_used_mb", "MiB", 30, False, [None] * 15 + values[:5]), MINUTES, 0.05)
    assert (short["verdict"], short["slope_per_hour"], short["p_value"]) == ("NO VERDICT", None, None)


def test_a_neighbour_that_takes_more_and_more_cpu_is_noticed():
    chance = np.random.default_rng(8)
    rising = [NEIGHBOURS_CORES * cell / 5 + 0.02 * chance.random() for cell in range(20)]
    steady = [0.5 + 0.02 * chance.random() for cell in range(20)]

    for cores, expected in ((rising, True), (steady, False), ([np.nan] * 20, False)):
        assert neighbours_grew(pd.DataFrame({"at_s": MINUTES, "neighbours_cores": cores}), 0.05) == expected


# -- the verb ----------------------------------------------------------------------------------------------------


def test_a_soak_that_cannot_be_is_refused(tmp_path):
    for words, said in (
        (["duration_s=null", "requests=5"], "needs duration_s"),
        (["requests=5"], "leave requests out"),
        (["duration_s=30"], "shorter than one cell"),
        (["limits.memory=3"], "did you mean 'memory_mb'"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(SoakScenario, SOAK, words)


def test_a_rest_that_is_too_short_to_compare_is_left_out():
    def lengths(*words):
        return cells(load(SoakScenario, SOAK, words))

    assert lengths("duration_s=1200") == [60] * 20
    assert lengths("duration_s=200") == [60, 60, 60]
    assert lengths("duration_s=215") == [60, 60, 60, 35]


@pytest.fixture
def soaking(tmp_path):
    """Start ``python -m benchmarks VERB ...`` beside the test; killed at its end, its generator leaves by itself."""
    started = []

    def start(*words):
        command = [sys.executable, "-m", "benchmarks", *map(str, words)]
        log = (tmp_path / f"log{len(started)}").open("w")
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
        started.append((child, log))
        return child

    yield start
    for child, log in started:
        child.kill()
        child.wait()
        log.close()


def load_of(server, folder, *words):
    """A soak at loopback, compressed: 18 requests a second, cells of 1.5 s, limits to fit."""
    return [
        "soak", SOAK, f"url={server.url}", f"pid={server.pid}", f"out={folder}", "users=null", "rate_per_s=18",
        "warmup_s=1", "cell_s=1.5", "duration_s=21", "sample_interval_s=0.2", "limits.latency_p50=20",
        "limits.latency_p95=40", "limits.memory_mb=1000", "limits.open_files=3000", "limits.threads=3000", *words,
    ]  # fmt: skip


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_a_leak_and_a_slow_down_are_found_and_a_clean_server_is_not_accused(truth_server, soaking, tmp_path):
    """Sixty times as fast as a soak of half an hour: 60 MB a minute, twice the time after a minute.

    All three run at once, so that all have the same neighbours.
    """
    common = ("ttft_ms=100", "tpot_ms=2", "tokens=8", "log_requests=20")
    servers = {
        "clean": truth_server(*common),
        "leak": truth_server(*common, "leak_mb_per_min=60"),
        "slow": truth_server(*common, "slowdown_per_min=1.0"),
    }
    soaks = {name: soaking(*load_of(server, tmp_path / name)) for name, server in servers.items()}
    codes = {name: soak.wait(timeout=120) for name, soak in soaks.items()}
    found = {name: summary_of(tmp_path / name) for name in servers}
    series = {name: {each["name"]: each for each in summary["series"]} for name, summary in found.items()}

    assert codes["leak"] == 1
    assert series["leak"]["memory_used_mb"]["verdict"] == "FAIL"
    # 60e6 bytes a minute are 3433 MiB an hour.
    assert series["leak"]["memory_used_mb"]["slope_per_hour"] == pytest.approx(3433, rel=0.15)
    assert series["slow"]["memory_used_mb"]["verdict"] == "PASS"
    assert series["clean"]["memory_used_mb"]["verdict"] == "PASS"
    assert codes["clean"] != 1
    assert not [each["name"] for each in series["clean"].values() if each["verdict"] == "FAIL"]
    slow = series["slow"]["latency_p50"]
    # It is three times this in an hour of doubling each minute from 114 ms; neighbours may be the reason all the same.
    assert slow["slope_per_hour"] == pytest.approx(60 * 114, rel=0.3)
    assert slow["verdict"] == "FAIL" or found["slow"]["neighbours_grew"]
    assert found["clean"]["total_requests"] == pytest.approx(21 * 18, abs=14)
    assert len(found["clean"]["cells"]) == 14
    assert all(len(each["at_s"]) == len(each["values"]) == 14 for each in found["clean"]["series"])
    if not found["slow"]["neighbours_grew"]:
        assert codes["slow"] == 1


def test_a_soak_that_is_killed_goes_on_without_repeating_finished_cells(truth_server, soaking, tmp_path):
    server = truth_server("ttft_ms=5", "tpot_ms=1", "tokens=4", "log_requests=100")
    folder = tmp_path / "soak"
    words = load_of(server, folder, "cell_s=0.7", "duration_s=4.2", "warmup_s=0")
    child = soaking(*words)
    _wait_for_cells(folder, 3)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = [run for run in _manifest(folder)["runs"] if run["phase"] == "measure"]

    assert soaking("resume", folder).wait(timeout=60) in {0, 3}

    after = [run for run in _manifest(folder)["runs"] if run["phase"] == "measure"]
    assert [run["pair"] for run in after] == list(range(6))
    assert [run["started_s"] for run in after[: len(before)]] == [run["started_s"] for run in before]
    summary = summary_of(folder)
    assert len(summary["cells"]) == 6
    assert all(value is not None for value in _values(summary, "memory_used_mb")), "samples of the killed part are kept"


def test_ctrl_c_keeps_the_finished_cells_and_marks_them(truth_server, soaking, tmp_path):
    server = truth_server("ttft_ms=5", "tpot_ms=1", "tokens=4")
    folder = tmp_path / "soak"
    child = soaking(*load_of(server, folder, "cell_s=0.7", "duration_s=30", "warmup_s=0"))
    _wait_for_cells(folder, 2)
    child.send_signal(signal.SIGINT)

    assert child.wait(timeout=60) == 3
    summary = summary_of(folder)
    assert summary["verdict"] == "NO VERDICT"
    assert len(summary["cells"]) >= 2
    assert _manifest(folder)["complete"] is False


def test_a_server_that_dies_ends_the_soak_at_once(truth_server, soaking, tmp_path):
    server = truth_server("ttft_ms=5", "tpot_ms=1", "tokens=4")
    folder = tmp_path / "soak"
    child = soaking(*load_of(server, folder, "cell_s=0.7", "duration_s=300", "warmup_s=0"))
    _wait_for_cells(folder, 2)
    os.kill(server.pid, signal.SIGKILL)

    assert child.wait(timeout=60) == 1
    summary = summary_of(folder)
    assert "stopped answering" in summary["reasons"][0]
    assert len(summary["cells"]) < 60


def test_without_a_server_it_says_so_in_one_line(capsys):
    assert main(["soak", str(SOAK)]) == 2
    assert "soak needs a server" in capsys.readouterr().err


def _manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _values(summary, name):
    return next(each["values"] for each in summary["series"] if each["name"] == name)


def _wait_for_cells(folder, count):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (folder / "manifest.json").exists():
            found = [run for run in _manifest(folder)["runs"] if run["phase"] == "measure"]
            if len(found) >= count:
                return
        time.sleep(0.1)
    raise TimeoutError(folder)
