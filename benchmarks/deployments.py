"""Servers that a benchmark starts for itself, and stops whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from benchmarks.errors import DeploymentFailedError

Command = Callable[[Path, int], Sequence[str]]
"""The command line that serves an environment on a port."""
READY_S = 180.0
STOP_S = 20.0
SERVER_VARIABLES = "MODEL_SERVER_"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A server that was started from ``environment``."""

    environment: Path
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def model_server(environment: Path, port: int) -> Sequence[str]:
    """The model server, on loopback, logging to its output; without what guards its door, which would answer for it,
    and without a fixed port for metrics, which two servers of one environment could not share.
    """
    settings = (
        "serving.host=127.0.0.1",
        f"serving.port={port}",
        "serving.metrics_port=null",
        "serving.log_dir=null",
        "serving.api_keys_file=null",
        "serving.rate_limit_per_minute=null",
    )
    return [sys.executable, "-m", "model_server", str(environment), *settings]


@contextlib.contextmanager
def deployed(environment: Path, log: Path, command: Command = model_server) -> Iterator[Deployment]:
    """Start a server; leaving the context stops it and all its children.

    Variables such as MODEL_SERVER_LOG_LEVEL do not reach it: they would override both environments alike and what
    is compared would not be what the files say.
    """
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(SERVER_VARIABLES)}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the benchmark, which stops it in order.
        process = subprocess.Popen(
            command(environment, port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    try:
        yield Deployment(environment, f"http://127.0.0.1:{port}", process, log)
    finally:
        stop(process)


def wait_until_ready(deployment: Deployment, limit_s: float = READY_S, poll_s: float = 0.2) -> None:
    """Ask GET /ready until it says 200, every ``poll_s``.

    Raises:
        DeploymentFailedError: The server ended, or is not ready in time; with the end of its log.
    """
    end = time.monotonic() + limit_s
    while not _ready(deployment.url):
        code = deployment.process.poll()
        if code is not None:
            raise DeploymentFailedError(
                f"the server for {deployment.environment} ended with {code}:\n{_end_of(deployment.log)}"
            )
        if time.monotonic() >= end:
            raise DeploymentFailedError(
                f"the server for {deployment.environment} was not ready after {limit_s:.0f} s:\n"
                + _end_of(deployment.log)
            )
        time.sleep(poll_s)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[None]:
    """SIGTERM and a closed terminal (unless ``nohup`` has it ignored) end a benchmark as Ctrl-C does."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        in_main = threading.current_thread() is threading.main_thread()
        if number is not None and in_main and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, which stops its children; what is left after ``STOP_S`` is killed, children too."""
    family = _descendants(process.pid)
    if process.poll() is None:
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_S)
    # Children of a server that crashed have another parent by now, but are still in its session.
    for member in [*family, *_descendants(process.pid), *_session(process.pid)]:
        with contextlib.suppress(psutil.Error):
            # psutil compares the start time too: an id that another process has by now is left alone.
            member.kill()
    process.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _session(leader: int) -> list[psutil.Process]:
    found = []
    for member in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(member.pid) == leader:
                found.append(member)
    return found


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/ready", timeout=5) as answer:  # noqa: S310 - made above
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def _end_of(log: Path, lines: int = 5) -> str:
    """The last lines of a log; of JSON lines the part that a person reads."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:]
    except OSError:
        return f"  (no log at {log})"
    return "\n".join(f"  {_readable(line)}" for line in text) or f"  (its log {log} is empty)"


def _readable(line: str) -> str:
    try:
        row = json.loads(line)
        return " ".join(str(row[key]) for key in ("level", "event", "reason", "error") if row.get(key))
    except (ValueError, AttributeError):
        return line
