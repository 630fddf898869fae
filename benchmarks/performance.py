"""A benchmark as the records that other tools read: ``test_result.json``, made from the same frames as the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from benchmarks.records import Arm
from benchmarks.summary import stated_percentile
from runconfig import RunConfig

MOST_WINDOWS = 60
Share = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(ge=0)]


class PerformanceMetrics(RunConfig):
    """One window of a test. Latencies are of successful requests, by when they ended. None: not known, or too few."""

    timestamp: datetime
    """Beginning of the window."""
    qps: Positive
    """Successful requests per second."""
    avg_latency_ms: Positive | None
    p95_latency_ms: Positive | None
    p99_latency_ms: Positive | None
    cpu_usage_percent: Share | None
    """Of all CPUs of the machine that measures."""
    memory_usage_mb: Positive | None
    """Of that machine, MiB."""
    error_rate_percent: Share | None
    """None where no request ended."""


class TestResult(RunConfig):
    """One test of one server."""

    __test__ = False  # pytest takes the name for a test's

    test_id: str
    """The results folder."""
    test_type: str
    """The verb."""
    model_version: str | None
    """As the server says it."""
    configuration: dict[str, Any]
    """The resolved scenario."""
    metrics: tuple[PerformanceMetrics, ...]
    """At most 60 windows of equal length, of at least a second, in order of time."""
    summary: dict[str, Any]


def test_result(
    manifest: Mapping[str, Any],
    summary: Mapping[str, Any],
    records: pd.DataFrame,
    samples: pd.DataFrame,
    arm: Arm,
    folder: Path,
) -> TestResult:
    """The result of one side, from its measured ``records`` with derived columns."""
    own = records[records["arm"] == arm]
    figures = summary.get(arm) if isinstance(summary.get(arm), dict) else summary
    assert figures is not None
    described = manifest["sides"][arm]["description"] or {}
    return TestResult(
        test_id=folder.resolve().name + (f"-{arm}" if len(manifest["sides"]) > 1 else ""),
        test_type=manifest["kind"],
        model_version=described.get("version") or described.get("digest"),
        configuration=manifest["scenario"],
        metrics=tuple(_windows(own, samples[samples["source"] == "machine"], manifest["created_unix"])),
        summary={key: value for key, value in figures.items() if not isinstance(value, (list, dict))},
    )


test_result.__test__ = False  # type: ignore[attr-defined]


def _windows(records: pd.DataFrame, machine: pd.DataFrame, zero: float) -> list[PerformanceMetrics]:
    """``zero``: Unix time of the benchmark's beginning."""
    if not len(records):
        return []
    begin, end = float(records["scheduled_s"].min()), float(records["end_s"].max())
    count = max(1, min(MOST_WINDOWS, math.floor(end - begin)))
    width = max((end - begin) / count, 1e-9)
    place = np.clip(((records["end_s"] - begin) // width).to_numpy(int), 0, count - 1)
    at = machine["at_s"].to_numpy(float)
    found = []
    for number in range(count):
        rows = records[place == number]
        latencies = np.sort(rows["latency_scheduled_s"].dropna().to_numpy(float)) * 1000
        low = begin + number * width
        sampled = machine[(at >= low) & (at < low + width)]
        found.append(
            PerformanceMetrics(
                timestamp=datetime.fromtimestamp(zero + low, UTC),
                qps=len(latencies) / width,
                avg_latency_ms=float(latencies.mean()) if len(latencies) else None,
                p95_latency_ms=stated_percentile(latencies, 95),
                p99_latency_ms=stated_percentile(latencies, 99),
                cpu_usage_percent=_mean(sampled["cpu_percent"]),
                memory_usage_mb=_mean(sampled["memory_used_mb"]),
                error_rate_percent=100 * float((~rows["ok"]).mean()) if len(rows) else None,
            )
        )
    return found


def _mean(column: pd.Series[float]) -> float | None:
    values = column.dropna()
    return float(values.mean()) if len(values) else None
