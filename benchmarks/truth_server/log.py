"""What the server knows afterwards: every request, when its events were due and when they were written."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from benchmarks.truth_server.answers import Answer, category_of
from benchmarks.truth_server.modes import declared

PER_S = 50_000
BINS = 10_000


@dataclass(slots=True)
class Entry:
    """One request; times are perf_counter seconds. ``written``, ``due``: of each event with text."""

    number: int
    path: str
    dialect: str
    mode: str
    prompt: str
    connection: int
    concurrency: int
    arrived: float
    started: float | None = None
    ended: float | None = None
    outcome: str = "open"
    written: array[float] = field(default_factory=lambda: array("d"))
    due: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("H"))
    bytes_written: int = 0
    answer: Answer | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "number": self.number,
            "path": self.path,
            "dialect": self.dialect,
            "mode": self.mode,
            "prompt": self.prompt,
            "connection": self.connection,
            "concurrency": self.concurrency,
            "arrived": self.arrived,
            "started": self.started,
            "ended": self.ended,
            "outcome": self.outcome,
            "written": list(self.written),
            "due": list(self.due),
            "tokens": list(self.tokens),
            "bytes_written": self.bytes_written,
            "truth": None if self.answer is None else truth_of(self.answer),
        }
        if self.answer is not None and "false_truth" in self.answer.modes:
            found["written"] = [at - 0.01 for at in found["written"]]
        return found


def truth_of(answer: Answer) -> dict[str, Any]:
    """What a client must report of a request that it read to the end.

    ``errors``: the classes it may report, null for none. ``output_tokens``: what the server counts, or did not tell
    (``usage`` false). ``first_content``: the event, from 0, with the first text that is no thought.
    ``text_sha256``: of the texts it may take for the answer; null where several dialects' rules differ.
    """
    modes, known = answer.modes, declared(answer.modes)
    count = len(answer.tokens)
    groups, seen, first_content = answer.groups(), 0, 0
    if answer.thinks:
        for size in groups:
            if seen >= answer.half:
                break
            seen += size
            first_content += 1
    whole = answer.dialect in {"chat", "classify", "inference"}
    wrong = 1 if "false_truth" in modes else 0
    return {
        "errors": list(known.errors),
        "status": known.status,
        "output_tokens": None if answer.dialect in {"classify", "inference"} else count + wrong,
        "prompt_tokens": None if answer.dialect in {"classify", "inference"} else answer.truth.prompt_tokens,
        "usage": "no_usage" not in modes,
        "finish_reason": None
        if answer.dialect in {"classify", "inference"}
        else f"not {known.finish}"
        if wrong
        else known.finish,
        "n_first": None if whole else groups[0],
        "events": None if whole else len(groups),
        "first_content": None if whole or modes & {"tool_calls", "refusal"} else first_content,
        "text_sha256": None
        if answer.dialect == "classify" or "refusal" in modes
        else [hashlib.sha256(text.encode()).hexdigest() for text in answer.contents()],
        "category": category_of(answer.prompt) if answer.dialect == "classify" else None,
    }


class Lateness:
    """How late events were written: a histogram of seconds with bins of 20 us, so of fixed size."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_s = 0.0
        self._bins = [0] * BINS

    def add(self, seconds: float) -> None:
        self.count += 1
        self.longest_s = max(self.longest_s, seconds)
        at = int(seconds * PER_S)
        self._bins[at if at < BINS else BINS - 1] += 1

    def percentile(self, share: float) -> float | None:
        """The upper edge of the bin, seconds (past 200 ms: the longest); None before the first event."""
        wanted, seen = share * self.count, 0
        for at, count in enumerate(self._bins):
            seen += count
            if count and seen >= wanted:
                return self.longest_s if at == BINS - 1 else min((at + 1) / PER_S, self.longest_s)
        return None


class Log:
    """The last requests, and counts of all of them."""

    def __init__(self, keep: int) -> None:
        self.entries: deque[Entry] = deque(maxlen=keep)
        self.requests = self.events = self.tokens = self.failed = 0
        self.in_flight = self.peak_in_flight = 0
        self.connections_opened = self.connections_open = 0
        self.bytes_read = self.bytes_written = 0
        self.lateness = Lateness()

    def begin(self, entry: Entry) -> None:
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        entry.concurrency = self.in_flight
        self.entries.append(entry)

    def wrote(self, entry: Entry, due: float, at: float, tokens: tuple[int, ...]) -> None:
        for count in tokens:
            entry.written.append(at)
            entry.due.append(due)
            entry.tokens.append(count)
            self.tokens += count
            self.events += 1
        self.lateness.add(at - due)

    def end(self, entry: Entry, outcome: str) -> None:
        if entry.outcome == "open":
            entry.outcome = outcome
            self.in_flight -= 1
            self.failed += outcome != "done"

    def since(self, number: int, limit: int | None) -> list[dict[str, Any]]:
        """Requests from ``number`` on, oldest first."""
        if not self.entries:
            return []
        skip = max(0, number - self.entries[0].number)
        chosen = [entry for at, entry in enumerate(self.entries) if at >= skip]
        return [entry.to_json() for entry in chosen[:limit]]
