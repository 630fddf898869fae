"""What recording costs a request, and how long the summary of a day with a million requests takes.

    python -m monitoring.measure [requests=1000000] [folder=FOLDER]

Recording is timed where it happens, between a request's end and the next one's turn: time, row, encoding, lock, write;
alone, and while a second process writes into the same file without a pause. The figure is the median of the means of
rounds: a mean over all would measure what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

import runconfig
from model_server.daily_files import REQUESTS, DailyLines, encode, local_now
from monitoring.daily_summary import summarise
from monitoring.ollama_proxy import Exchange, recording_proxy
from monitoring.request_files import read_recent, requests_path
from runconfig import ConfigError, RunConfig

RECORDING_MS = 0.2
"""A request's share of the time, at most."""
SUMMARY_S = 1.0
"""For a day's summary, the second time and later."""
MEMORY_MB = 100.0
"""By which the summary may grow the process, however long the day."""

ROUNDS, EACH = 20, 500
NEW_LINES = 1000
"""Between the first summary and the second."""

EXAMPLES = """\
exit codes: 0 all figures hold; 1 one does not; 2 usage
"""

_WRITER = """
import sys
from pathlib import Path
from monitoring.measure import row_of
from model_server.daily_files import REQUESTS, DailyLines, local_now
lines = DailyLines(Path(sys.argv[1]), REQUESTS, say=sys.exit)
print("begun", flush=True)
while True:
    lines.append(local_now(), row_of(5.0))
"""


class _Asked(RunConfig):
    requests: int = Field(default=1_000_000, ge=1000, le=100_000_000)
    folder: Path | None = None


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.measure",
        description="Measure what recording costs a request, and the summary of a long day.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="requests=1000000, folder= (of the disk to try)"
    )
    try:
        asked = runconfig.load(_Asked, None, parser.parse_intermixed_args(words).settings)
        with tempfile.TemporaryDirectory(dir=asked.folder) as found:
            figures = measure(Path(found), asked.requests)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    holds = (
        max(figures["recording_ms"], figures["recording_beside_another_ms"], figures["proxy_recording_ms"])
        <= RECORDING_MS
        and figures["summary_again_s"] <= SUMMARY_S
        and figures["summary_memory_mb"] <= MEMORY_MB
    )
    for name, value in figures.items():
        print(f"{name:<28} {value:,}")
    print(json.dumps(figures | {"holds": holds}))
    return 0 if holds else 1


def measure(folder: Path, requests: int) -> dict[str, Any]:
    """All figures; ``folder`` is empty and will be filled."""
    _say("recording")
    alone = _recording(folder / "alone")
    command = [sys.executable, "-c", _WRITER, str(folder / "beside")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        beside = _recording(folder / "beside")
        other.kill()
    _say("the proxy")
    hop, proxied = asyncio.run(_proxying(folder / "proxy"))
    _say(f"a day of {requests:,} requests")
    day = folder / "day"
    written_mb = _write_day(day, requests)
    before_mb = _peak_mb()
    first_s, total = _summary_s(day)
    lines = DailyLines(day, REQUESTS, say=_say)
    for _ in range(NEW_LINES):
        lines.append(_NOON, row_of(5.0))
    again_s, total_again = _summary_s(day)
    assert (total, total_again) == (requests, requests + NEW_LINES)
    began = time.perf_counter()
    assert len(read_recent(day, 100)) == 100
    return {
        "recording_ms": round(_typical(alone), 4),
        "recording_p99_ms": round(_p99(alone), 4),
        "recording_beside_another_ms": round(_typical(beside), 4),
        "proxy_recording_ms": round(proxied, 4),
        "proxy_hop_ms": round(hop, 3),
        "requests": requests,
        "file_mb": round(written_mb),
        "summary_first_s": round(first_s, 3),
        "summary_again_s": round(again_s, 4),
        "summary_memory_mb": round(_peak_mb() - before_mb, 1),
        "recent_100_ms": round(1000 * (time.perf_counter() - began), 2),
    }


def row_of(latency_ms: float) -> dict[str, Any]:
    """A row with every field, as long as the model server's."""
    return {
        "model": "complaints-tiny",
        "prompt_length": 180,
        "response_length": 0,
        "latency_ms": latency_ms,
        "status": "success",
        "error": None,
        "status_code": 200,
        "endpoint": "classify",
        "first_token_ms": None,
        "tokens_used": 140,
        "generated_tokens": 0,
        "category": "network_fault",
        "confidence": 0.9731,
        "request_id": "0af7651916cd43dd8448eb211c80319c",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


def _recording(folder: Path) -> list[float]:
    """Milliseconds of each of ROUNDS x EACH lines, less what an empty turn of the same loop takes."""
    lines = DailyLines(folder, REQUESTS, say=_say)
    taken: list[float] = []
    for _ in range(ROUNDS):
        for record in (False, True):
            times = []
            for _ in range(EACH):
                began = time.perf_counter()
                if record:
                    lines.append(local_now(), row_of(5.0))
                times.append(1000 * (time.perf_counter() - began))
            if record:
                taken += times
            else:
                empty = statistics.fmean(times)
    return [time_ms - empty for time_ms in taken]


async def _proxying(folder: Path) -> tuple[float, float]:
    """Milliseconds that a call through the proxy takes longer than without it, and those of them for recording."""
    import httpx2

    requests = DailyLines(folder, REQUESTS, say=_say)
    calls = DailyLines(folder, "ollama_metrics", undated=True, say=_say)
    taken: list[float] = []

    def on_exchange(exchange: Exchange) -> None:
        began = time.perf_counter()
        at, row = local_now(), exchange.request_row()
        assert row is not None
        requests.append(at, row)
        calls.append(at, exchange.metrics_row(None))
        taken.append(1000 * (time.perf_counter() - began))

    async def ollama(_: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
        )
        for piece in _PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    # In memory on both sides: what is compared is the work of the proxy, not two networks.
    real = httpx2.ASGITransport(ollama)
    proxy = httpx2.ASGITransport(recording_proxy("http://ollama", on_exchange, real))
    difference: list[float] = []
    body = {"model": "tiny", "prompt": "你好,请介绍一下你自己。"}
    async with (
        httpx2.AsyncClient(transport=real, base_url="http://ollama") as direct,
        httpx2.AsyncClient(transport=proxy, base_url="http://proxy") as through,
    ):
        for _ in range(ROUNDS * EACH // 20):
            times = []
            for client in (direct, through):
                began = time.perf_counter()
                (await client.post("/api/generate", json=body)).raise_for_status()
                times.append(1000 * (time.perf_counter() - began))
            difference.append(times[1] - times[0])
    return statistics.median(difference), _typical(taken)


_PIECES = [
    json.dumps({"model": "tiny", "created_at": "2026-11-26T09:57:06Z", "response": "你", "done": False}).encode()
    + b"\n"
] * 32 + [
    json.dumps({"model": "tiny", "response": "", "done": True, "eval_count": 32, "prompt_eval_count": 9}).encode()
]

_NOON = datetime(2026, 11, 26, 12).astimezone()


def _write_day(folder: Path, requests: int) -> float:
    """Lines as the server writes them, in large pieces; MB."""
    folder.mkdir()
    chance = random.Random(1)
    at = _NOON.isoformat(timespec="milliseconds")
    path = requests_path(folder, _NOON.date())
    with path.open("wb") as file:
        for start in range(0, requests, 10_000):
            count = min(10_000, requests - start)
            latencies = (round(chance.lognormvariate(3, 1), 3) for _ in range(count))
            file.write(b"".join(encode({"timestamp": at, **row_of(latency)}) for latency in latencies))
    return path.stat().st_size / 1e6


def _summary_s(folder: Path) -> tuple[float, int]:
    began = time.perf_counter()
    summary = summarise(folder, _NOON.date())
    return time.perf_counter() - began, summary.total_requests


def _typical(values: Sequence[float]) -> float:
    size = len(values) // ROUNDS
    return statistics.median(statistics.fmean(values[start : start + size]) for start in range(0, size * ROUNDS, size))


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
