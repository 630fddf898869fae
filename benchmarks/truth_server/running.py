"""A truth server in a process of its own, and what it knows."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.errors import InvalidRunError

PAGE = 50
"""Requests asked for at a time: while it writes a long answer it is late for everybody else."""


@dataclass(frozen=True)
class TruthServer:
    """One that runs."""

    url: str
    pid: int

    def ask(self, path: str) -> Any:
        """What it answers to GET ``path``, such as ``/_truth/health``."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:  # noqa: S310  our own address
            return json.load(answer)

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """Its requests from number ``since`` on, oldest first."""
        found: list[dict[str, Any]] = []
        while page := self.ask(f"/_truth?since={since}&limit={PAGE}"):
            found += page
            since = page[-1]["number"] + 1
        return found


@contextmanager
def running(*words: str) -> Iterator[TruthServer]:
    """Start one with settings such as ``ttft_ms=50``; it ends with the context.

    Raises:
        InvalidRunError: It did not start.
    """
    command = [sys.executable, "-m", "benchmarks.truth_server", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise InvalidRunError("the truth server did not start")
        yield TruthServer(json.loads(line)["url"], process.pid)
    finally:
        process.terminate()
        process.wait(timeout=10)
        process.stdout.close()
