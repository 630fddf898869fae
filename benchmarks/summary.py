"""Records of one side or one run in a few numbers, by the names people ask for."""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.config import Metric
from benchmarks.stats import minimum_samples, percentile

HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"qps", "tokens_per_s"})
_COLUMN = {"latency": "latency_scheduled_s", "ttft": "ttft_scheduled_s", "tpot": "tpot_s"}


def summarise(records: pd.DataFrame, concurrent_users: int) -> dict[str, Any]:
    """The summary of ``records`` (with derived columns): one or more runs of one side.

    Latencies count successful requests only and start when a request was due, since a request that waits for its
    turn waits for the server; in a closed loop that is when it was sent. A percentile is None when there are too
    few requests to state it.
    """
    total = len(records)
    good = records[records["ok"]]
    duration = sum(duration_s(run) for _, run in records.groupby("run"))
    latencies = _values(good["latency_scheduled_s"])
    from_sent = _values(good["latency_s"])
    tokens = int(good["output_tokens"].sum()) if good["output_tokens"].notna().any() else None
    found: dict[str, Any] = {
        "total_requests": total,
        "successful_requests": len(good),
        "error_rate": (total - len(good)) / total if total else None,
        "avg_latency_ms": _ms(sum(latencies) / len(latencies)) if latencies else None,
        "qps": len(good) / duration if duration else None,
        "test_duration": duration,
        "concurrent_users": concurrent_users,
        "min_latency_ms": _ms(min(latencies)) if latencies else None,
        "max_latency_ms": _ms(max(latencies)) if latencies else None,
        "avg_latency_from_sent_ms": _ms(sum(from_sent) / len(from_sent)) if from_sent else None,
        "output_tokens": tokens,
        "tokens_per_s": tokens / duration if tokens is not None and duration else None,
        "errors": {str(kind): int(count) for kind, count in records["error"].dropna().value_counts().items()},
    }
    for q in (50, 95, 99):
        found[f"p{q}_latency_ms"] = _ms(stated_percentile(latencies, q))
    for name in ("ttft", "tpot"):
        values = _values(good[_COLUMN[name]])
        for q in (50, 95, 99):
            found[f"{name}_p{q}_ms"] = _ms(stated_percentile(values, q))
    return found


def metric_of_run(records: pd.DataFrame, metric: Metric) -> float | None:
    """``metric`` of one run, in seconds or per second; None when it has too few successful requests to state it."""
    good = records[records["ok"]]
    if metric in {"qps", "tokens_per_s"}:
        duration = duration_s(records)
        amount = len(good) if metric == "qps" else float(good["output_tokens"].fillna(0).sum())
        return amount / duration if duration and amount else None
    name, _, statistic = metric.partition("_")
    values = _values(good[_COLUMN[name]])
    if not values:
        return None
    if statistic == "avg":
        return sum(values) / len(values)
    return stated_percentile(values, float(statistic.removeprefix("p")))


def batches_of_run(records: pd.DataFrame, metric: Metric, batches: int = 8) -> list[float]:
    """``metric`` of consecutive parts of one run with equally many answers; empty when they are too few.

    What these differ by is noise within the run, which says how far one run can be trusted by itself.
    """
    good = records[records["ok"]].sort_values("end_s")
    if len(good) < 4 * batches:
        return []
    found, begin = [], float(records["scheduled_s"].min())
    for part in range(batches):
        rows = good.iloc[part * len(good) // batches : (part + 1) * len(good) // batches]
        end = float(rows["end_s"].max())
        found.append(_metric_of_part(rows, metric, end - begin))
        begin = end
    return found if all(value > 0 for value in found) else []


def _metric_of_part(rows: pd.DataFrame, metric: Metric, seconds: float) -> float:
    if metric == "qps":
        return len(rows) / seconds if seconds > 0 else 0.0
    if metric == "tokens_per_s":
        return float(rows["output_tokens"].fillna(0).sum()) / seconds if seconds > 0 else 0.0
    name, _, statistic = metric.partition("_")
    values = _values(rows[_COLUMN[name]])
    if not values:
        return 0.0
    return sum(values) / len(values) if statistic == "avg" else percentile(values, float(statistic.removeprefix("p")))


def stated_percentile(values: list[float], q: float) -> float | None:
    """The percentile, or None when there are fewer values than it takes to state it."""
    return percentile(values, q) if len(values) >= minimum_samples(q) else None


def duration_s(run: pd.DataFrame) -> float:
    """From the first moment a request was due to the last answer of one run, seconds."""
    return float(run["end_s"].max() - run["scheduled_s"].min()) if len(run) else 0.0


def _values(column: pd.Series[float]) -> list[float]:
    return column.dropna().tolist()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
