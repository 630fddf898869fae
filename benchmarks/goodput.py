"""Goodput: the share of requests that were answered within every limit. ``stress`` and ``capacity`` judge by it.

Source of the term: DistServe (Zhong et al., 2024, https://arxiv.org/abs/2401.09670), which asks for the highest rate
at which a given share of requests keeps its limits on TTFT and TPOT.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.config import Limits, Milliseconds
from benchmarks.stats import Interval, wilson
from benchmarks.summary import metric_of_run, stated_percentile

BATCHES = 10
__all__ = ["Limits", "Milliseconds", "cell", "good_requests", "share_interval"]


def good_requests(records: pd.DataFrame, limits: Limits) -> pd.Series[bool]:
    """Per request (n,): answered, and within every limit. An answer of a single token has no time per token to keep."""
    good = records["ok"].astype(bool)
    if limits.latency_ms is not None:
        good &= records["latency_scheduled_s"] * 1000 <= limits.latency_ms
    if limits.ttft_ms is not None:
        good &= records["ttft_scheduled_s"] * 1000 <= limits.ttft_ms
    if limits.tpot_ms is not None:
        good &= ~(records["tpot_s"] * 1000 > limits.tpot_ms)
    return good


def share_interval(kept: Sequence[bool], alpha: float = 0.05) -> Interval:
    """Interval of the share that ``kept`` holds, in the order the requests were due.

    Requests behind one queue share their fate, so n of them say less than n independent ones, for which Wilson's
    interval is made. The number is divided by how much more the shares of ten consecutive batches vary than those
    of independent requests would (the design effect, Kish, 1965).

    Raises:
        ValueError: No requests.
    """
    total, share = len(kept), sum(kept) / max(1, len(kept))
    effect = 1.0
    size = total // BATCHES
    if size >= 2 and 0 < share < 1:
        batches = [sum(kept[at * size : (at + 1) * size]) / size for at in range(BATCHES)]
        effect = max(1.0, statistics.variance(batches) / (share * (1 - share) / size))
    independent = max(1, round(total / effect)) if total else 0
    return wilson(round(share * independent), independent, alpha)


def cell(records: pd.DataFrame, load: Mapping[str, float], limits: Limits | None = None) -> dict[str, Any]:
    """One level of load in a few figures, under the names a throughput-latency plot reads.

    Args:
        records: The requests of one run, with derived columns.
        load: ``users`` or ``rate_per_s``: what was applied.

    Returns:
        ``load`` with qps, latencies (ms, from the moment due), error_rate, goodput and how many requests there were.
        None where too few requests succeeded to state a figure, or no limits were given.
    """
    answered = records[records["ok"]]
    latency, ttft = (answered[name].dropna().tolist() for name in ("latency_scheduled_s", "ttft_scheduled_s"))
    total = len(records)
    return {
        **load,
        "requests": total,
        "qps": metric_of_run(records, "qps") or 0.0 if total else None,
        "latency_avg_ms": 1000 * statistics.fmean(latency) if latency else None,
        "latency_p50_ms": _ms(latency, 50),
        "latency_p95_ms": _ms(latency, 95),
        "ttft_p95_ms": _ms(ttft, 95),
        "error_rate": (total - len(answered)) / total if total else None,
        "errors": {str(kind): int(count) for kind, count in records["error"].dropna().value_counts().items()},
        "goodput": float(good_requests(records, limits).mean()) if limits is not None and total else None,
        "kept": None,
    }


def _ms(seconds: list[float], q: float) -> float | None:
    found = stated_percentile(seconds, q)
    return None if found is None else 1000 * found
