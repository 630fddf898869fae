"""The live page as a process, a real model server beside it, and request lines whose figures are known."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """A process that serves, and where."""

    url: str
    process: subprocess.Popen
    log: Path

    def stop(self):
        """Ask it to end; returns its exit code."""
        self.process.terminate()
        return self.process.wait(20)


@contextlib.contextmanager
def page(folder, *words, port=0, server="null"):
    """``python -m monitoring.dashboard``, once it listens. ``server`` None: not named."""
    log = Path(folder).parent / f"page-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "monitoring.dashboard", f"logs={folder}", f"port={port}"]
    command += [] if server is None else [f"server={server}"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *words], cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT)
    try:
        running = Running(_said(process, log, r"(http://\S+)  shows"), process, log)
        until(lambda: get(f"{running.url}/api/recent_requests")[0] == 200)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def model_server(folder, *words):
    """The embedded classifier, once it is ready."""
    log = Path(folder) / f"server-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "model_server", "environments/local.yml", f"serving.port={free_port()}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, f"serving.log_dir={folder}/server", *words], cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        url = _said(process, log, r"ready: (http://\S+)/docs")
        yield Running(url, process, log)
    finally:
        process.kill()
        process.wait()


def _said(process, log, pattern, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(pattern, log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise AssertionError(log.read_text(encoding="utf-8"))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def ask(url, data=None, headers=None, method=None):
    """Status, body and headers."""
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def get(url, **headers):
    """Status and parsed body; None for what is not there."""
    try:
        status, body, _ = ask(url, headers=headers)
    except OSError:
        return None, None
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


def events(url, number):
    """The first messages of a page's stream."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/api/live", timeout=30) as stream:
        found = []
        while len(found) < number:
            line = stream.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        return found


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not become true"
        time.sleep(0.05)


def line(at=None, **more):
    """A request's line as R13 has it."""
    row = {
        "timestamp": (at or datetime.now(UTC)).astimezone().isoformat(),
        "model": "complaints-tiny",
        "prompt_length": 12,
        "response_length": 6,
        "latency_ms": 20.0,
        "status": "success",
        "error": None,
    }
    return row | more


def requests_file(folder, day=None):
    """R13's name, spelled here and not by the code under test."""
    return Path(folder) / f"requests_{day or datetime.now().astimezone():%Y%m%d}.jsonl"


def write(folder, *rows):
    Path(folder).mkdir(exist_ok=True)
    with requests_file(folder).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def some(count, seed=1, seconds=60):
    """``count`` requests over the last ``seconds``, oldest first, each third to another model, one of ten failed."""
    draw, now = random.Random(seed), datetime.now(UTC)
    return [
        line(
            now - timedelta(seconds=seconds * (count - number) / count),
            model="other-model" if number % 3 == 0 else "complaints-tiny",
            latency_ms=round(draw.lognormvariate(3, 0.6), 3),
            request_id=f"id-{number}",
            **({"status": "error", "error": f"queue full {number}"} if number % 10 == 0 else {"tokens_used": 40}),
        )
        for number in range(count)
    ]
