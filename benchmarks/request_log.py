"""``trace``: a trace, to be replayed, from the model server's own request log."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import parser
from benchmarks.errors import UsageError
from benchmarks.traces import LENGTHS, is_number

SHOWN_PROBLEMS = 5
SAME_CLOCK_S = 1.0
"""Lines whose wall clock and monotonic clock differ by the same, within so many seconds, share both clocks."""
DESCRIPTION = """\
Make a trace from the model server's own log (log_dir/server.jsonl and its .gz archives, in any order), to be replayed
with arrivals.pattern=trace arrivals.trace=FILE. It holds times and lengths only: no text, no key, no id.

A request's moment is when it arrived: the end that its line tells, less its latency. Times within one boot of a
machine come from the monotonic clock, which no clock setting moves. max_tokens is what was generated.
"""


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the server's log: ``wall`` is Unix time, both clocks are of when it was written, seconds."""

    wall: float
    monotonic: float | None
    row: dict[str, Any]


class _Problems:
    """Lines that cannot be used: the first few are told, all are counted."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, where: str, problem: str) -> None:
        self.count += 1
        if self.count <= SHOWN_PROBLEMS:
            print(f"{where}: {problem}: left out", file=sys.stderr)


def convert(logs: Sequence[Path], endpoint: str | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The requests in the server's ``logs`` as lines of a trace, and a summary of both.

    Args:
        endpoint: Only requests to it; needed where the logs hold more than one.

    Raises:
        UsageError: A log cannot be read, or holds no such request.
    """
    problems = _Problems()
    lines = [line for path in logs for line in _log_lines(path, problems)]
    starts = [line for line in lines if line.row.get("event") == "listening"]
    requests = [line for line in lines if line.row.get("event") == "request"]
    endpoints = Counter(str(line.row.get("endpoint")) for line in requests)
    if not requests:
        raise UsageError(f"{', '.join(map(str, logs))}: no line has event=request: is it the model server's log?")
    if endpoint is None and len(endpoints) > 1:
        names = ", ".join(f"{name} ({count})" for name, count in endpoints.most_common())
        raise UsageError(f"the log holds requests to several endpoints: choose one with endpoint=NAME: {names}")
    if endpoint is not None and endpoint not in endpoints:
        raise UsageError(f"the log holds no request to {endpoint!r}; there are: {', '.join(sorted(endpoints))}")
    chosen = [line for line in requests if endpoint is None or line.row.get("endpoint") == endpoint]
    # A request that was refused before its text was read says nothing about what was asked.
    read = [line for line in chosen if line.row["prompt_length"]]
    if not read:
        raise UsageError(f"all {len(chosen)} requests were refused before their text was read")
    arrived, clocks = _arrivals(read, starts)
    first = float(arrived.min())
    generates = any(line.row.get("tokens") for line in read)
    rows = [
        _trace_row(line.row, float(arrived[at]) - first, generates=generates)
        for at, line in sorted(enumerate(read), key=lambda pair: arrived[pair[0]])
    ]
    # All lines or none: a length of some would leave the rest to chance.
    if not all("prompt_tokens" in row for row in rows):
        for row in rows:
            row.pop("prompt_tokens", None)
    return rows, {
        "endpoint": str(read[0].row.get("endpoint")),
        **describe(rows),
        "refused_unread": len(chosen) - len(read),
        "other_endpoints": len(requests) - len(chosen),
        "broken_lines": problems.count,
        "clocks": clocks,
    }


def _log_lines(path: Path, problems: _Problems) -> Iterator[_Line]:
    for number, raw in enumerate(_raw_lines(path, problems), 1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            row: Any = json.loads(raw)
        except (ValueError, RecursionError) as error:
            problems.tell(where, f"not JSON ({error})")
            continue
        if not isinstance(row, dict):
            problems.tell(where, f"not an object but {type(row).__name__}")
            continue
        if row.get("event") not in {"request", "listening"}:
            continue
        try:
            wall = datetime.fromisoformat(row["timestamp"]).timestamp()
        except (KeyError, TypeError, ValueError):
            problems.tell(where, f"timestamp is no time: {row.get('timestamp')!r:.60}")
            continue
        monotonic = row.get("monotonic")
        wrong = _wrong_figure(row) if row["event"] == "request" else None
        if wrong is not None:
            problems.tell(where, wrong)
            continue
        yield _Line(wall, float(monotonic) if is_number(monotonic) else None, row)


def _raw_lines(path: Path, problems: _Problems) -> Iterator[bytes]:
    """Lines of a file, compressed or not; of a torn archive those before the tear."""
    read = 0
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as lines:
            for line in lines:
                read += 1
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problems.tell(f"{path}:{read + 1}", f"the archive is torn here ({error}); what follows")
    except OSError as error:
        raise UsageError(f"cannot read the log {path}: {error.strerror or error}") from error


def _wrong_figure(row: dict[str, Any]) -> str | None:
    """What is wrong with the figures of a request's line."""
    for name in ("latency_ms", "prompt_length", "prompt_tokens", "tokens"):
        value = row.get(name)
        if value is None and name in {"prompt_tokens", "tokens"}:
            continue
        if not is_number(value) or value < 0:
            return f"{name} must be a number, 0 or more, got {value!r:.60}"
    return None


def _arrivals(requests: Sequence[_Line], starts: Sequence[_Line]) -> tuple[NDArray[np.float64], int]:
    """Seconds, on one axis, at which each of ``requests`` arrived; and by how many clocks they were placed.

    Lines whose two clocks differ by the same were written in one boot. Where that difference jumps and no server
    started since, the wall clock was set under a running server: the monotonic clock goes on. Else it is another
    boot, or another machine, and the wall clock places it.
    """
    lines = [*requests, *starts]
    wall = np.array([line.wall for line in lines])
    monotonic = np.array([np.nan if line.monotonic is None else line.monotonic for line in lines])
    started = np.arange(len(lines)) >= len(requests)
    distance = wall - monotonic
    order = np.argsort(distance)
    boot = np.empty(len(lines), dtype=np.int64)
    boot[order] = np.concatenate([[0], np.cumsum(np.diff(distance[order]) > SAME_CLOCK_S)])
    boot[np.isnan(monotonic)] = -1
    placed = wall.copy()
    spans: list[tuple[float, float]] = []  # of the boots so far: the last moment, and what was added to it
    for each in sorted(set(boot) - {-1}, key=lambda each: monotonic[boot == each].min()):
        members = boot == each
        before = [span for span in spans if span[0] <= monotonic[members].min()]
        goes_on = before and not started[members].any()
        shift = max(before)[1] if goes_on else float(np.median(distance[members]))
        spans.append((float(monotonic[members].max()), shift))
        placed[members] = monotonic[members] + shift
    asked = slice(len(requests))
    clocks = len({shift for _, shift in spans}) + bool((boot[asked] == -1).any())
    return placed[asked] - [line.row["latency_ms"] / 1000 for line in requests], clocks


def _trace_row(row: dict[str, Any], offset_s: float, *, generates: bool) -> dict[str, Any]:
    """Figures only: whatever else a line of the log has stays there."""
    found: dict[str, Any] = {"offset_s": round(offset_s, 6), "prompt_characters": int(row["prompt_length"])}
    if row.get("prompt_tokens"):
        found["prompt_tokens"] = int(row["prompt_tokens"])
    if generates and row.get("tokens") and row.get("error") is None:  # how long a failed answer would be is unknown
        found["max_tokens"] = int(row["tokens"])
    return found


def describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a trace holds; null where it cannot be said."""
    offsets = np.array([row["offset_s"] for row in rows], dtype=np.float64)
    gaps = np.diff(offsets)
    span = float(offsets[-1]) if len(offsets) > 1 and offsets[-1] > 0 else None
    return {
        "requests": len(rows),
        "span_s": span,
        "rate_per_s": None if span is None else len(gaps) / span,
        "busiest_second": int((np.searchsorted(offsets, offsets + 1.0) - np.arange(len(offsets))).max()),
        "gap_cv": float(gaps.std() / gaps.mean()) if span is not None else None,
        **{name: _spread([row[name] for row in rows if name in row]) for name in LENGTHS},
    }


def _spread(values: Iterable[int]) -> dict[str, float] | None:
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        return None
    return {
        "min": found.min(),
        "p50": float(np.median(found)),
        "p95": float(np.percentile(found, 95)),
        "max": found.max(),
    }


def main(words: Sequence[str]) -> int:
    found = parser(
        "trace", DESCRIPTION, "trace logs/server.jsonl logs/server-*.jsonl.gz runs/trace.jsonl endpoint=chat"
    )
    found.add_argument("paths", nargs="+", metavar="LOG ... OUT", help="logs to read, then the trace to write")
    options = found.parse_args(words)
    settings = [word for word in options.paths if word.startswith("endpoint=")]
    *logs, out = [Path(word) for word in options.paths if word not in settings] or [Path()]
    if not logs:
        raise UsageError("name the log, or several, and then the trace to write: trace logs/server.jsonl trace.jsonl")
    if out.exists():
        raise UsageError(f"{out} exists: the last name is the trace to write; give it a new one")
    rows, summary = convert(logs, settings[-1].partition("=")[2] if settings else None)
    write(out, rows)
    summary |= {"trace": str(out)}
    if not options.json:
        print("\n".join(_sentences(summary)))
    print(json.dumps(summary, ensure_ascii=False))
    return 0


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a trace in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row) + "\n")
    part.replace(path)


def _sentences(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{summary['trace']}: {summary['requests']:,} requests to {summary['endpoint']}"
    if summary["span_s"] is not None:
        yield (
            f"  {summary['span_s']:,.1f} s, {summary['rate_per_s']:.2f} a second on average, "
            f"{summary['busiest_second']} in the busiest second, CV of the gaps {summary['gap_cv']:.2f}"
        )
    for name in LENGTHS:
        spread = summary[name]
        if spread is not None:
            figures = ", ".join(f"{key} {value:,.0f}" for key, value in spread.items())
            yield f"  {name}: {figures}"
    for name, why in (
        ("refused_unread", "refused before their text was read"),
        ("other_endpoints", "to other endpoints"),
        ("broken_lines", "broken lines"),
    ):
        if summary[name]:
            yield f"  left out: {summary[name]:,} {why}"
    if summary["clocks"] > 1:
        yield f"  told by {summary['clocks']} clocks (restarts, or several machines), placed by wall time"
