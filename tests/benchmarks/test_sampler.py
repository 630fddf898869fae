"""CPU and memory of processes whose use is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from benchmarks.sampler import COLUMNS, Sampler, server_use

# A parent that only waits, with a child that burns CPU and holds 80 MiB.
BURNER = """
import subprocess, sys
child = "import time; held = bytearray(80 << 20)\\nwhile time.process_time() < 60: pass"
subprocess.Popen([sys.executable, "-c", child]).wait()
"""


def test_a_tree_counts_with_its_children():
    process = subprocess.Popen([sys.executable, "-c", BURNER], start_new_session=True)
    try:
        origin = time.perf_counter()
        with Sampler(origin, 0.1, {"tree": process.pid}) as sampler:
            time.sleep(2.0)
        found = sampler.frame()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    tree = found[found["source"] == "tree"]
    assert tree["processes"].max() == 2
    assert tree["memory_used_mb"].max() > 80
    # Two busy neighbours on two cores may leave it a third of one.
    assert tree["cpu_s"].iloc[-1] > 0.3
    assert tree["cpu_s"].is_monotonic_increasing
    machine = found[found["source"] == "machine"]
    assert machine["memory_percent"].between(1, 100).all()
    assert tree["at_s"].between(0, 10).all()


def test_a_process_that_is_gone_has_rows_without_values_rather_than_zeros():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    with Sampler(time.perf_counter(), 0.05, {"gone": process.pid}) as sampler:
        time.sleep(0.3)

    found = sampler.frame()
    gone = found[found["source"] == "gone"]
    assert len(gone) >= 3
    assert gone.drop(columns=["at_s", "source"]).isna().all(axis=None)


def test_cpu_is_counted_within_runs_only():
    """Half a CPU second per second for ten seconds; the runs are 2 to 4 s and 6 to 7 s with 50 requests each."""
    samples = pd.DataFrame(
        [
            {
                "at_s": float(at),
                "source": "server_a",
                "cpu_s": 0.5 * at,
                "memory_used_mb": 100.0 + (500 if at == 5 else at),
            }
            for at in range(11)
        ],
        columns=list(COLUMNS),
    )
    runs = [
        {"started_s": 2.0, "ended_s": 4.0, "requests": 50},
        {"started_s": 6.0, "ended_s": 7.0, "requests": 50},
    ]

    found = server_use(samples, "server_a", runs)

    assert found["server_cpu_s_per_1000_requests"] == pytest.approx(1.5 / 100 * 1000)
    assert found["server_peak_memory_mb"] == 107.0, "the peak at 5 s lies between the runs"


def test_a_source_that_was_not_sampled_is_unknown():
    samples = pd.DataFrame([], columns=list(COLUMNS))

    assert set(server_use(samples, "server_a", [{"started_s": 0, "ended_s": 1, "requests": 5}]).values()) == {None}
