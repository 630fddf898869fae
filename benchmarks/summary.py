"""Records of one side or one run in a few numbers, by the names people ask for; benchmarks/README.md defines each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.config import Metric
from benchmarks.results import GAPS
from benchmarks.stats import minimum_samples, percentile, percentile_interval
from benchmarks.texts import TEXTS, Language, say

HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"qps", "tokens_per_s"})
_SUMMARISED = ("latency_scheduled_s", "latency_s", "ttft_scheduled_s", "tpot_s", "output_tokens", "events")
_COLUMN = {"latency": "latency_scheduled_s", "ttft": "ttft_scheduled_s", "tpot": "tpot_s"}
# A positive float32 sorts as the integer of its bits; without the last 12 of them, 2^19 bins of 0.05 % width.
_BIN_BITS = 12
# Key of a summary -> the text that names it and how it is written; shown in this order, where there is a value.
_SHOWN = {
    "total_requests": ("requests", "{:,}"),
    "error_rate": ("error_rate", "{:.2%}"),
    "qps": ("rate", "{:,.1f}"),
    "goodput": ("goodput", "{:.1%}"),
    "avg_latency_ms": ("avg_latency", "{:,.1f} ms"),
    "p50_latency_ms": ("p50", "{:,.1f} ms"),
    "p95_latency_ms": ("p95", "{:,.1f} ms"),
    "p99_latency_ms": ("p99", "{:,.1f} ms"),
    "ttft_p50_ms": ("ttft", "{:,.1f} ms"),
    "ttft_p95_ms": ("ttft_p95", "{:,.1f} ms"),
    "tpot_p50_ms": ("tpot", "{:,.2f} ms"),
    "event_gap_p50_ms": ("event_gap_p50", "{:,.2f} ms"),
    "event_gap_p99_ms": ("event_gap_p99", "{:,.2f} ms"),
    "tokens_per_event": ("tokens_per_event", "{:.2f}"),
    "tokens_per_s": ("tokens_per_s", "{:,.1f}"),
    "server_cpu_s_per_1000_requests": ("server_cpu", "{:,.2f} s"),
    "server_peak_memory_mb": ("server_memory", "{:,.0f} MiB"),
}
_ALWAYS = (
    "total_requests",
    "error_rate",
    "qps",
    "avg_latency_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
)


def summarise(records: pd.DataFrame, concurrent_users: int) -> dict[str, Any]:
    """The summary of ``records`` (with derived columns): one or more runs of one side.

    Latencies count successful requests only and start when a request was due, since a request that waits for its
    turn waits for the server; in a closed loop that is when it was sent. A percentile is None when there are too
    few requests to state it.
    """
    total = len(records)
    good = records.loc[records["ok"].to_numpy(bool), list(_SUMMARISED)]
    duration = _seconds_of_runs(records)
    latencies = _sorted(good["latency_scheduled_s"])
    from_sent = good["latency_s"].dropna()
    tokens = int(good["output_tokens"].sum()) if good["output_tokens"].notna().any() else None
    found: dict[str, Any] = {
        "total_requests": total,
        "successful_requests": len(good),
        "error_rate": (total - len(good)) / total if total else None,
        "avg_latency_ms": _ms(float(latencies.mean())) if len(latencies) else None,
        "qps": len(good) / duration if duration else None,
        "test_duration": duration,
        "concurrent_users": concurrent_users,
        "min_latency_ms": _ms(float(latencies[0])) if len(latencies) else None,
        "max_latency_ms": _ms(float(latencies[-1])) if len(latencies) else None,
        "avg_latency_from_sent_ms": _ms(float(from_sent.mean())) if len(from_sent) else None,
        "output_tokens": tokens,
        "tokens_per_s": tokens / duration if tokens is not None and duration else None,
        "tokens_per_event": _tokens_per_event(good),
        "errors": {str(kind): int(count) for kind, count in records["error"].dropna().value_counts().items()},
    }
    intervals: dict[str, list[float] | None] = {}
    for name, column in _COLUMN.items():
        values = latencies if name == "latency" else _sorted(good[column])
        for q in (50, 95, 99):
            found[f"p{q}_latency_ms" if name == "latency" else f"{name}_p{q}_ms"] = _ms(stated_percentile(values, q))
            interval = percentile_interval(values, q)
            intervals[f"{name}_p{q}_ms"] = None if interval is None else [1000 * interval.low, 1000 * interval.high]
    return found | {"percentile_intervals": intervals}


@dataclass(frozen=True, slots=True)
class EventGaps:
    """How long the streams of a results folder paused between two events with text, of successful requests.

    A histogram, so that any number of events takes the same memory. Not times between tokens: an event may carry
    several.
    """

    counts: NDArray[np.int64]
    """(2^19,): by the leading bits of the gap in seconds as a float32; what is shorter than a microsecond, which no
    clock here tells apart, is one."""

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def quantiles_ms(self, shares: Sequence[float]) -> list[float]:
        """Within 0.03 % of the exact ones: the middle of the bin that holds each."""
        ranks = np.ceil(np.asarray(shares) * self.total).clip(1)
        bins = np.searchsorted(np.cumsum(self.counts), ranks)
        low, high = (((bins + step) << _BIN_BITS).astype(np.uint32).view(np.float32) for step in (0, 1))
        return [float(value) for value in 500 * (low.astype(float) + high.astype(float))]

    def summarise(self) -> dict[str, float | None]:
        """``event_gap_p50_ms`` and so on; None when there are too few."""
        return {
            f"event_gap_p{q}_ms": self.quantiles_ms([q / 100])[0] if self.total >= minimum_samples(q) else None
            for q in (50, 95, 99)
        }


def event_gaps(parquet: Path, runs: Collection[int]) -> EventGaps:
    """The gaps of the successful requests of ``runs``, a row group at a time."""
    counts = np.zeros(1 << (31 - _BIN_BITS), dtype=np.int64)
    wanted = pa.array(sorted(runs), pa.int64())
    with pq.ParquetFile(parquet) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["run", "error", GAPS.name])
            counted = pc.and_(pc.is_in(rows["run"], wanted), pc.is_null(rows["error"]))
            for chunk in rows[GAPS.name].filter(counted).chunks:
                bits = np.maximum(chunk.flatten().to_numpy(), np.float32(1e-6)).view(np.int32)
                offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
                counts += np.bincount(bits >> _BIN_BITS, minlength=len(counts))
                # The first of a stream is the time to its first event.
                firsts = bits[offsets[:-1][offsets[:-1] < offsets[1:]]]
                counts -= np.bincount(firsts >> _BIN_BITS, minlength=len(counts))
    return EventGaps(counts)


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


def stated_percentile(values: Sequence[float] | NDArray[np.float64], q: float) -> float | None:
    """The percentile, or None when there are fewer values than it takes to state it."""
    if len(values) < minimum_samples(q):
        return None
    return float(np.percentile(values, q)) if isinstance(values, np.ndarray) else percentile(values, q)


def duration_s(run: pd.DataFrame) -> float:
    """From the first moment a request was due to the last answer of one run, seconds."""
    return float(run["end_s"].max() - run["scheduled_s"].min()) if len(run) else 0.0


def _seconds_of_runs(records: pd.DataFrame) -> float:
    ends = records.groupby("run").agg({"end_s": "max", "scheduled_s": "min"})
    return float((ends["end_s"] - ends["scheduled_s"]).sum())


def _tokens_per_event(good: pd.DataFrame) -> float | None:
    """Over streams of more than one event whose tokens are known."""
    known = ((good["events"] > 1) & good["output_tokens"].notna()).to_numpy(bool)
    if not known.any():
        return None
    return float(good["output_tokens"][known].sum() / good["events"][known].sum())


def _sorted(column: pd.Series[float]) -> NDArray[np.float64]:
    values = column.to_numpy(float)
    return np.sort(values[~np.isnan(values)])


def _values(column: pd.Series[float]) -> list[float]:
    return column.dropna().tolist()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def sides_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of A and of B, or of the one server."""
    two = isinstance(summary.get("a"), Mapping) and isinstance(summary.get("b"), Mapping)
    return [summary["a"], summary["b"]] if two else [summary]


def figures_of(
    sides: Sequence[Mapping[str, Any]], lang: Language
) -> Iterator[tuple[str, str, str, list[float | None]]]:
    """Key, name, pattern and the value of each side, of what is worth showing."""
    own = [key for side in sides for key in side if key in TEXTS and key not in _SHOWN and key != "requests"]
    for key, (name, pattern) in (_SHOWN | {key: (key, "{:,.4g}") for key in own}).items():
        values = [side.get(key) for side in sides]
        if not all(value is None or _is_number(value) for value in values):
            continue
        if any(value is not None for value in values) or (key in _ALWAYS and any(key in side for side in sides)):
            yield key, say(name, lang), pattern, values


def shown_figures(summary: Mapping[str, Any], lang: Language) -> tuple[list[str], list[list[str]]]:
    """The figures of a summary as a table: heads (none for one side) and rows of text, the first cell naming it.

    Whatever else a verb puts into its summary is shown too, if :data:`TEXTS` has a name for it.
    """
    sides = sides_of(summary)
    two = len(sides) > 1
    rows = []
    for key, name, pattern, values in figures_of(sides, lang):
        missing = say("too_few", lang) if key.startswith("p") else "-"
        rows.append([name, *(missing if value is None else pattern.format(value) for value in values)])
    quality = summary.get("quality") or {}
    if two and quality.get("labelled_calls"):
        rows.append([say("accuracy", lang), *(f"{quality[f'accuracy_{arm}']:.1%}" for arm in "ab")])
        rows.append([say("macro_f1", lang), *(f"{quality[f'macro_f1_{arm}']:.3f}" for arm in "ab")])
    if two and quality.get("agreement") is not None:
        rows.append([say("agreement", lang), f"{quality['agreement']:.1%}"])
    return [say("figure", lang), say("running_now", lang), say("candidate", lang)] if two else [], rows


def shown_candidates(results: Sequence[Mapping[str, Any]], lang: Language) -> tuple[list[str], list[list[str]]]:
    """Candidates that were measured against one reference as a table: heads, and rows of text; figures of both sides
    are those of the reference, then the candidate's.
    """

    def both(values: Sequence[float | None], pattern: str) -> str:
        return "-" if None in values else " → ".join(pattern.format(value) for value in values)

    heads = ("candidate_name", "metric", "candidate_gain", "candidate_interval", "pairs", "rate", "server_memory")
    rows = [
        [
            found["name"],
            "-" if found["metric"] is None else say(found["metric"], lang),
            "-" if found["gain"] is None else f"{found['gain']:.3f}",
            "-" if found["low"] is None else f"{found['low']:.3f} - {found['high']:.3f}",
            str(found["pairs"]),
            both(found["qps"], "{:,.1f}"),
            both(found["memory_mb"], "{:,.0f} MiB"),
            both(found["accuracy"], "{:.1%}"),
            "-" if found["agreement"] is None else f"{found['agreement']:.1%}",
            say("refused" if found["key"] == "candidate_refused" else found["answer"], lang),
        ]
        for found in results
    ]
    return [say(head, lang) for head in (*heads, "accuracy", "agreement", "verdict")], rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
