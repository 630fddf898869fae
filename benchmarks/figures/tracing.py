"""What tracing costs: spans for every request and for none, both with a collector.

Beside the throughput stands the CPU time of a request (server and engine), which tells 2 % also on a busy machine. Log
lines go to the collector either way, so that the difference is the spans alone. The collector is a process that takes
what comes and reads none of it: a real one runs elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.calls import read_calls
from benchmarks.config import Dialect
from benchmarks.figures.classification import interleave
from benchmarks.figures.load import clients, require_success, span_s
from benchmarks.figures.processes import serving
from benchmarks.figures.table import Figure, ratio_figure
from benchmarks.figures.workload import CALLS, TINY, environment

AT_LEAST = 0.98
"""Of the throughput without spans."""
CPU_AT_MOST = 1 / AT_LEAST
"""Of the CPU time without spans: what a machine without a free moment loses."""

_COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Taken(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Taken)
print(server.server_port, flush=True)
server.serve_forever()
"""


def measure(_model: Path, folder: Path, pairs: int) -> list[Figure]:
    """Calls that begin their traces here, at the rate of the smallest model, where the limit on traces a second holds;
    and streams that are all traced, because their caller asks for it.
    """
    texts = [call.text for call in read_calls(CALLS)]
    return [
        *_cost("classify, 16 clients, traces begin here", "classify", texts, folder, pairs, users=16, requests=800),
        *_cost("chat, 8 streams, all traced", "chat_stream", texts, folder, pairs, users=8, requests=128, asked=True),
    ]


def _cost(
    name: str,
    dialect: Dialect,
    texts: list[str],
    folder: Path,
    pairs: int,
    *,
    users: int,
    requests: int,
    asked: bool = False,
) -> list[Figure]:
    path = environment(folder, TINY, cpu_cores=1, memory_gb=2, max_batch_size=16)
    rates: dict[str, list[float]] = {"without": [], "with": []}
    cpu_ms: dict[str, list[float]] = {"without": [], "with": []}
    with (
        _collector() as endpoint,
        # The ratio does not speak for callers that ask: those are recorded by this one too, so that one process can be
        # both sides.
        serving(
            path, [f"serving.otlp_endpoint={endpoint}", "serving.trace_sample_ratio=0"], folder / "none.log"
        ) as none,
        serving(path, [f"serving.otlp_endpoint={endpoint}"], folder / "shipped.log") as shipped,
        clients(dialect, texts, folder / "load", model="figures", max_tokens=64) as load,
        clients(dialect, texts, folder / "traced", model="figures", max_tokens=64, trace=True) as asking,
    ):

        def run(side: str) -> None:
            server, generator = (none, load) if side == "without" else (none, asking) if asked else (shipped, load)
            before_s = sum(server.cpu_s())
            records = require_success(generator.send(server.url, users=users, requests=requests))
            cpu_ms[side].append(1000 * (sum(server.cpu_s()) - before_s) / len(records))
            rates[side].append(len(records) / span_s(records))

        measured = (*rates.values(), *cpu_ms.values())
        interleave(pairs, lambda: run("without"), lambda: run("with"), forget=measured)
    name = f"tracing, embedded model: {name}: with spans / without"
    return [
        ratio_figure(name, rates["without"], rates["with"], at_least=AT_LEAST, unit="requests/s"),
        ratio_figure(
            f"{name}, CPU time of a request", cpu_ms["without"], cpu_ms["with"], at_most=CPU_AT_MOST, unit="ms"
        ),
    ]


@contextmanager
def _collector() -> Iterator[str]:
    command = [sys.executable, "-c", _COLLECTOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
