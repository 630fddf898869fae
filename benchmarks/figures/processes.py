"""What is compared: our server, the raw pipeline and Ollama, each started for one figure and stopped after it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil

from benchmarks.deployments import deployed, model_server, wait_until_ready


@dataclass
class Server:
    """A model server of ours under way."""

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float
    """From the start of the process to the first 200 of /ready."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, bytes]:
        return request(self.port, "GET", path)

    def processes(self) -> list[psutil.Process]:
        """The HTTP side first, then the engine's."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def resident_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self.processes())

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of the HTTP side and of the engine."""
        own, *engine = [sum(process.cpu_times()[:2]) for process in self.processes()]
        return own, sum(engine)


def request(port: int, method: str, path: str, body: Any = None, timeout_s: float = 60.0) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"content-type": "application/json"} if content else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(environment: Path, overrides: Sequence[str], log: Path, prefix: Sequence[str] = ()) -> Iterator[Server]:
    """A server of ours, ready. ``prefix``: a command that starts it, for control groups."""

    def command(path: Path, port: int) -> list[str]:
        return [*prefix, *model_server(path, port), *overrides]

    started = time.perf_counter()
    with deployed(environment, log, command) as deployment:
        wait_until_ready(deployment, poll_s=0.02)
        ready_s = time.perf_counter() - started
        yield Server(deployment.process, int(deployment.url.rpartition(":")[2]), ready_s)


class Raw:
    """:mod:`benchmarks.raw_openvino` or :mod:`benchmarks.raw_scoring` under way."""

    def __init__(self, module: str, model: Path, words: Sequence[str]) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(model), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self._out: IO[str] = self.process.stdout
        self._in: IO[str] = self.process.stdin
        self.loaded = self._read()
        self.first_answer_s = time.perf_counter() - self.started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._in.close()
        self.process.wait()
        self._out.close()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self._in.write(json.dumps(command) + "\n")
        self._in.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._out.readline()
        if not line:
            raise RuntimeError("the raw pipeline ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
