"""Several generators do one run between them, and what they write is what one would have written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from benchmarks.config import Scenario
from benchmarks.errors import InvalidRunError
from benchmarks.generator import Generator
from benchmarks.plan import Run
from benchmarks.results import derive, read_journal

CALLS = [f"第 {number} 通 #{number % 3}" for number in range(7)]


@contextmanager
def _generator(folder, origin=None, **settings):
    folder.mkdir(exist_ok=True)
    origin = time.perf_counter() if origin is None else origin
    scenario = Scenario.model_validate({"texts": CALLS, "users": 1, "requests": 1, "seed": 3} | settings)
    with Generator(scenario, origin=origin, journal=folder / "requests.jsonl", log=folder / "log") as generator:
        yield generator


def _records(folder):
    records, whole = read_journal(folder / "requests.jsonl")
    assert whole
    return derive(records)


@pytest.fixture(scope="module")
def server(truth_server):
    return truth_server("service_ms=20")


def test_three_workers_send_what_one_would_send_at_the_moments_it_would_send_them(server, tmp_path):
    run = Run(run=0, arm="a", pair=2, phase="measure", url=server.url, rate_per_s=60, duration_s=1.5)
    with _generator(tmp_path / "one") as one:
        alone = one.run(run)
    with _generator(tmp_path / "three", workers=3) as three:
        together = three.run(run)

    first, second = (_records(tmp_path / name).sort_values("number") for name in ("one", "three"))
    due = [(rows["scheduled_s"] - said["started_s"]) for rows, said in ((first, alone), (second, together))]
    assert first["call"].tolist() == second["call"].tolist()
    assert np.allclose(due[0], due[1], atol=1e-6)
    assert alone["requests"] == together["requests"] == 90
    assert [part["requests"] for part in together["workers"]] == [30, 30, 30]


def test_the_figures_of_workers_are_of_all_their_requests_together(server, tmp_path):
    """Merged from records, not averaged: what the master says follows from the journal alone."""
    with _generator(tmp_path, workers=2) as generator:
        said = generator.run(Run(run=0, arm="a", pair=0, phase="measure", url=server.url, users=5, requests=60))

    records = _records(tmp_path)
    assert sorted(records["number"]) == list(range(60))
    assert records["user"].nunique() == 5
    moments = sorted([(end, -1) for end in records["end_s"]] + [(begin, 1) for begin in records["sent_s"]])
    in_flight = np.cumsum([step for _, step in moments])
    assert said["peak_in_flight"] == in_flight.max() <= 5
    assert said["lateness_p99_s"] == pytest.approx(np.percentile(records["late_s"], 99), abs=1e-6)


def test_a_worker_on_another_host_joins_by_its_own_command(server, tmp_path):
    """The command that a person types there; here it runs beside the master."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "worker", f"master=127.0.0.1:{port}"], stdin=subprocess.DEVNULL
    )
    try:
        settings = {"workers": 1, "remote_workers": 1, "workers_listen": f"127.0.0.1:{port}"}
        with _generator(tmp_path, **settings) as generator:
            said = generator.run(Run(run=0, arm="a", pair=0, phase="measure", url=server.url, users=4, requests=40))
        assert [part["requests"] for part in said["workers"]] == [20, 20]
        assert worker.wait(timeout=20) == 0
    finally:
        worker.kill()
        worker.wait()


# A worker as on another machine: booted at another time, with a clock of another zero that gains 10 ms a second.
ELSEWHERE = """
import pathlib, sys, time
real, read = time.perf_counter, pathlib.Path.read_text
time.perf_counter = lambda: 1000 + 1.01 * real()
pathlib.Path.read_text = lambda path, *a, **k: "other" if path.name == "boot_id" else read(path, *a, **k)
sys.argv[1:] = ["127.0.0.1", sys.argv[1]]
import runpy
runpy.run_module("benchmarks.workers", run_name="__main__")
"""


def test_a_clock_that_runs_off_is_related_anew_before_each_run(server, tmp_path):
    """Expected: when the server, on the master's clock, had the requests. Related once, it would be 30 ms off."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    command = [sys.executable, "-c", ELSEWHERE, str(port)]
    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    origin = time.perf_counter()
    try:
        settings = {"texts": [f"{number} #x" for number in range(20)], "workers": 1, "remote_workers": 1}
        with _generator(tmp_path, origin, **settings, workers_listen=f"127.0.0.1:{port}") as generator:
            for number in range(2):
                since = len(server.log())
                said = generator.run(
                    Run(run=number, arm="a", pair=0, phase="measure", url=server.url, users=2, requests=20)
                )
                time.sleep(3 if number == 0 else 0)
    finally:
        worker.kill()
        worker.wait()

    records = _records(tmp_path)
    arrived = {entry["prompt"]: entry["arrived"] - origin for entry in server.log(since)}
    assert len(arrived) == 20
    for share in (0, 1):
        own = records[(records["run"] == 1) & (records["number"] % 2 == share)]
        texts = [f"{int(call.removeprefix('text-')) - 1} #x" for call in own["call"]]
        marks = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        away = [arrived[mark] - sent for mark, sent in zip(marks, own["sent_s"], strict=True)]
        assert len(away) == 10
        assert abs(np.median(away)) < 0.015
    assert sorted(part["clock_error_s"] > 0 for part in said["workers"]) == [False, True]
    assert max(part["clock_error_s"] for part in said["workers"]) < 0.02


def test_a_worker_that_dies_ends_the_run_with_its_name(server, tmp_path):
    with (
        pytest.raises(InvalidRunError, match="worker on this machine ended with -9"),
        _generator(tmp_path, workers=2) as made,
    ):
        victim = next(child for child in psutil.Process(made.pid).children() if "benchmarks.workers" in child.cmdline())
        os.kill(victim.pid, signal.SIGKILL)
        made.run(Run(run=0, arm="a", pair=0, phase="measure", url=server.url, users=4, duration_s=30))


def test_no_worker_outlives_a_master_that_is_killed(server, tmp_path):
    """It would send the rest of its load beside whatever is measured next."""
    with pytest.raises(InvalidRunError, match="load generator ended"), _generator(tmp_path, workers=3) as generator:
        children = psutil.Process(generator.pid).children(recursive=True)
        threading.Timer(1.0, os.kill, (generator.pid, signal.SIGKILL)).start()
        generator.run(Run(run=0, arm="a", pair=0, phase="measure", url=server.url, users=3, duration_s=30))

    assert len(children) >= 3
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_no_worker_is_left_behind(server, tmp_path):
    with _generator(tmp_path, workers=2) as generator:
        children = psutil.Process(generator.pid).children(recursive=True)
        assert len(children) >= 2
        generator.run(Run(run=0, arm="a", pair=0, phase="measure", url=server.url, users=2, requests=4))

    gone, left = psutil.wait_procs(children, timeout=10)
    assert not left, json.dumps([child.cmdline() for child in left])
    assert len(gone) == len(children)
