"""What a day was like: R13's daily summary, from the daily files."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from monitoring.request_files import RequestLine, requests_path, system_path
from runconfig import RunConfig


class DailySummary(RunConfig):
    """Latencies are of successful requests, milliseconds; null: nothing to tell it from."""

    day: date
    total_requests: int
    successful_requests: int
    error_requests: int
    avg_latency_ms: float | None
    max_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    avg_cpu_percent: float | None
    max_memory_percent: float | None
    max_memory_used_gb: float | None
    corrupt_lines: int


def summarise(folder: Path, day: date) -> DailySummary:
    """The requests and the machine of one day; a day without files has none."""
    requests, corrupt = [], 0
    for raw in _lines(requests_path(folder, day)):
        try:
            requests.append(RequestLine.model_validate_json(raw))
        except ValidationError:
            corrupt += 1
    latencies = np.array([line.latency_ms for line in requests if line.status == "success"])
    system = []
    for raw in _lines(system_path(folder, day)):
        try:
            row = json.loads(raw)
            system.append(tuple(float(row[name]) for name in ("cpu_percent", "memory_percent", "memory_used_gb")))
        except (ValueError, KeyError, TypeError):
            corrupt += 1
    cpu, memory, memory_gb = zip(*system, strict=True) if system else ((), (), ())
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) if latencies.size else (None, None, None)
    return DailySummary(
        day=day,
        total_requests=len(requests),
        successful_requests=latencies.size,
        error_requests=len(requests) - latencies.size,
        avg_latency_ms=latencies.mean() if latencies.size else None,
        max_latency_ms=latencies.max() if latencies.size else None,
        p50_latency_ms=p50,
        p95_latency_ms=p95,
        p99_latency_ms=p99,
        avg_cpu_percent=sum(cpu) / len(cpu) if cpu else None,
        max_memory_percent=max(memory, default=None),
        max_memory_used_gb=max(memory_gb, default=None),
        corrupt_lines=corrupt,
    )


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []
