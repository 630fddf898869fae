"""The last half hour in slots of two seconds, and the last thousands of requests: what the live page draws."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from monitoring.request_files import RequestLine

SLOT_S = 2
KEPT_S = 1800
WINDOW_S = 60
"""Percentiles are of the successful requests of so many seconds up to a slot's end: a slot alone holds too few."""

RATE_WINDOW_S = 10
KEPT_LINES = 5000

COLUMNS = (
    "at",
    "requests",
    "errors",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "tokens_used",
    "prompt_tokens_s",
    "generated_tokens_s",
    "waiting",
    "running",
    "cpu_percent",
    "memory_percent",
)
"""Of a row: ``at`` is the slot's start, Unix seconds; requests, errors and tokens_used are counts of the slot, the
rest is None where nobody told."""


@dataclass(slots=True)
class Slot:
    requests: int = 0
    errors: int = 0
    tokens_used: int = 0
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    """Of the successful requests."""
    told: dict[str, float] = field(default_factory=dict)
    """Columns that the server or the machine told; the last word counts."""


class Recent:
    """Filled as things happen, read once a second. Times are Unix seconds, given by the caller."""

    def __init__(self, began_at: float) -> None:
        self.lines: deque[RequestLine] = deque(maxlen=KEPT_LINES)
        """Newest first."""
        self.read = 0
        """Requests since the beginning, those of the files' past included."""
        self._slots: dict[int, Slot] = {}
        self._rows: dict[int, list[float | None]] = {}
        self._changed: set[int] = set()
        self._first = _start(began_at)

    def add(self, line: RequestLine, now: float) -> None:
        """Count a request; one from the future (the clock was set back) counts as now."""
        self.lines.appendleft(line)
        self.read += 1
        at = min(line.timestamp.timestamp(), now)
        if at < now - KEPT_S:
            return
        slot = self._slot(at)
        self._stale(_start(at), WINDOW_S)
        slot.requests += 1
        slot.tokens_used += line.tokens_used or 0
        if line.status == "success":
            slot.latencies_ms.append(line.latency_ms)
        else:
            slot.errors += 1

    def tell(self, at: float, **columns: float | None) -> None:
        """Note what the server or the machine says of itself."""
        self._slot(at).told.update({name: value for name, value in columns.items() if value is not None})
        self._stale(_start(at), SLOT_S)

    def rows(self, now: float) -> list[list[float | None]]:
        """One row per slot up to the one that is being filled, in the order of :data:`COLUMNS`."""
        self._forget(now)
        return [self._row(start) for start in range(self._first, _start(now) + 1, SLOT_S)]

    def changed_rows(self, now: float) -> list[list[float | None]]:
        """Those of :meth:`rows` that are not as they were when this was last asked."""
        self._forget(now)
        self._changed.add(_start(now))
        self._changed, changed = {start for start in self._changed if start > now}, self._changed
        return [self._row(start) for start in sorted(changed) if self._first <= start <= now]

    def rates(self, now: float) -> dict[str, float | None]:
        """Requests and errors per second over the last whole slots; percentiles over the last minute.

        The slot that is being filled is left out, and so is the one before it: its last lines may not be read yet.
        """
        end = _start(now) - SLOT_S
        begin = max(end - RATE_WINDOW_S, self._first)
        seconds = max(end - begin, SLOT_S)
        within = [self._slots[start] for start in range(begin, end, SLOT_S) if start in self._slots]
        requests, errors = (sum(getattr(slot, name) for slot in within) for name in ("requests", "errors"))
        used = sum(slot.tokens_used for slot in within)
        p50, p95, p99 = self._percentiles(_start(now))
        minute = [self._slots[start] for start in self._window(_start(now)) if start in self._slots]
        counted = sum(slot.requests for slot in minute)
        return {
            "requests_s": requests / seconds,
            "errors_s": errors / seconds,
            "tokens_used_s": used / seconds,
            "error_ratio": sum(slot.errors for slot in minute) / counted if counted else None,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
        }

    def newest(
        self, limit: int, *, status: str | None = None, model: str = "", error: str = "", latency_above_ms: float = 0
    ) -> list[RequestLine]:
        """The last requests that fit, newest first.

        Args:
            model, error: Text that is contained, in any case.
        """

        def fitting() -> Iterator[RequestLine]:
            for line in self.lines:
                if status is not None and line.status != status:
                    continue
                if line.latency_ms < latency_above_ms or model.casefold() not in line.model.casefold():
                    continue
                if error and error.casefold() not in (line.error or "").casefold():
                    continue
                yield line

        return list(islice(fitting(), limit))

    def _row(self, start: int) -> list[float | None]:
        if start not in self._rows:
            self._rows[start] = self._computed(start)
        return self._rows[start]

    def _computed(self, start: int) -> list[float | None]:
        slot = self._slots.get(start, _EMPTY)
        row: dict[str, float | None] = {"at": start, "requests": slot.requests, "errors": slot.errors}
        row["p50_ms"], row["p95_ms"], row["p99_ms"] = self._percentiles(start)
        row["tokens_used"] = slot.tokens_used
        row |= slot.told
        return [_short(row.get(name)) for name in COLUMNS]

    def _percentiles(self, start: int) -> tuple[float | None, float | None, float | None]:
        parts = [self._slots[at].latencies_ms for at in self._window(start) if at in self._slots]
        values = np.concatenate([np.frombuffer(part) for part in parts if part] or [np.empty(0)])
        if not values.size:
            return None, None, None
        p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
        return p50, p95, p99

    @staticmethod
    def _window(start: int) -> range:
        return range(start - WINDOW_S + SLOT_S, start + 1, SLOT_S)

    def _stale(self, start: int, window_s: int) -> None:
        """What happened in ``start`` shows in the rows whose window begins no later."""
        for row in range(start, start + window_s, SLOT_S):
            self._rows.pop(row, None)
            self._changed.add(row)

    def _slot(self, at: float) -> Slot:
        start = _start(at)
        self._first = min(self._first, start)
        return self._slots.setdefault(start, Slot())

    def _forget(self, now: float) -> None:
        """What is over, and what a clock that was set back left in the future."""
        self._first = min(max(self._first, _start(now - KEPT_S)), _start(now))
        for start in [start for start in self._slots if not now - KEPT_S - WINDOW_S < start <= now]:
            del self._slots[start]
        for start in [start for start in self._rows if not now - KEPT_S < start <= now]:
            del self._rows[start]


_EMPTY = Slot()


def _start(at: float) -> int:
    return int(at // SLOT_S) * SLOT_S


def _short(value: float | None) -> float | None:
    """Four digits draw as well as seventeen, and weigh less."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")
