"""Servers that start, do not start, and do not want to stop."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from benchmarks import deployments
from benchmarks.deployments import asked_to_stop, deployed, model_server, wait_until_ready
from benchmarks.errors import DeploymentFailedError

# Ignores SIGTERM, as does its child.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""


def python(code):
    return lambda _path, _port: [sys.executable, "-c", code]


def test_a_server_that_ignores_sigterm_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(deployments, "STOP_S", 0.5)

    with deployed(
        tmp_path / "x.yml", tmp_path / "log", lambda _path, _port: [sys.executable, "-c", STUBBORN]
    ) as server:
        parent = psutil.Process(server.process.pid)
        end = time.monotonic() + 20
        while not parent.children() and time.monotonic() < end:
            time.sleep(0.05)
        family = [parent, *parent.children(recursive=True)]

    gone, alive = psutil.wait_procs(family, timeout=5)
    assert len(family) == 2
    assert alive == [], gone


def test_children_of_a_server_that_crashed_are_stopped_too(tmp_path):
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"

    with deployed(tmp_path / "x.yml", tmp_path / "log", python(code)) as server:
        server.process.wait(timeout=20)
        child = psutil.Process(int((tmp_path / "log").read_text(encoding="utf-8")))

    assert psutil.wait_procs([child], timeout=5)[1] == []


def test_a_terminal_that_closes_ends_a_benchmark_unless_it_was_started_with_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        with asked_to_stop(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with asked_to_stop():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_server_that_is_never_ready_is_said_with_the_end_of_its_log(tmp_path):
    code = (
        'import time; print(\'{"level": "info", "event": "loading weights", "pid": 7}\', flush=True); time.sleep(600)'
    )

    with deployed(tmp_path / "x.yml", tmp_path / "log", python(code)) as server:
        end = time.monotonic() + 20
        while not (tmp_path / "log").stat().st_size and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(DeploymentFailedError, match=r"not ready after 0 s:\n  info loading weights$"):
            wait_until_ready(server, limit_s=0.3)


def test_settings_of_the_shell_do_not_reach_the_servers(tmp_path, monkeypatch):
    """They would override both environments, and what is compared would not be what the files say."""
    monkeypatch.setenv("MODEL_SERVER_SERVING__MAX_QUEUE", "1")
    code = "import os; print([name for name in os.environ if name.startswith('MODEL_SERVER_')])"

    with deployed(tmp_path / "x.yml", tmp_path / "log", python(code)) as server:
        server.process.wait(timeout=20)

    assert (tmp_path / "log").read_text(encoding="utf-8").strip() == "[]"


def test_the_model_server_is_started_as_a_person_would(tmp_path):
    command = model_server(tmp_path / "x.yml", 8123)

    assert command[1:4] == ["-m", "model_server", str(tmp_path / "x.yml")]
    assert "serving.port=8123" in command
