"""What a person sees on stderr while a benchmark runs: a live view on a terminal, a line per step in a log."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.stats import percentile

WINDOW_S = 5.0
"""Live figures are of the requests that ended in the last seconds."""
TAIL_BYTES = 262_144
"""At most so much of the journal is read for them, so that watching costs the same at any rate."""
EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Recent:
    """Of the last seconds: requests that ended, per second; latencies of the successful ones, ms; those that failed."""

    rate: float
    latencies_ms: list[float]
    failed: int

    @property
    def in_flight(self) -> float:
        """By Little's law: what ends per second, times how long it took."""
        return self.rate * sum(self.latencies_ms) / len(self.latencies_ms) / 1000 if self.latencies_ms else 0.0


class Display:
    """``expect`` the number of steps, then ``begin``, ``tick`` and ``end`` each."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=quiet)
        self._lines = not self._console.is_terminal and not quiet
        self._shown = self._console.is_terminal and not quiet
        self.steps = 0
        self._done = 0
        self._expected = False
        self._step = "starting"
        self._requests = self._failed = 0
        self._load: tuple[int | None, float | None, float | None, int | None] = (None, None, None, None)
        self._journal: Path | None = None
        self._rates: list[float] = []
        self._started = self._step_started = time.monotonic()
        self._live = Live(
            get_renderable=self.view,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    def expect(self, steps: int) -> None:
        """So many steps are to be done, what went before the first call not counted."""
        if not self._expected:
            self._done, self._started = 0, time.monotonic()
        self._expected = True
        self.steps = steps

    def watch(self, journal: Path) -> None:
        """Where the records of requests go: what is live is read there."""
        self._journal = journal

    def load(self, users: int | None, rate_per_s: float | None, duration_s: float | None, requests: int | None) -> None:
        """What the run that begins now is to be."""
        self._load = (users, rate_per_s, duration_s, requests)
        self._step_started = time.monotonic()
        self._rates.clear()

    def begin(self, step: str) -> None:
        self._step, self._requests, self._failed = step, 0, 0
        self._load = (None, None, None, None)
        self._step_started = time.monotonic()
        self._rates.clear()

    def tick(self, requests: int, failed: int) -> None:
        """So many requests ended in this step, so many of them failed."""
        self._requests, self._failed = requests, failed

    def end(self) -> None:
        self._done += 1
        if self._lines:
            sys.stderr.write(f"{self._step}{': ' if self._requests else ''}{self._counted()}\n")

    def view(self) -> RenderableType:
        """What the terminal shows now."""
        now = time.monotonic()
        total = self.steps if self._expected else 0
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        left = self._seconds_left(now)
        clock = f"{_clock(now - self._started)} [dim]elapsed[/]" + (
            "" if left is None else f"  {_clock(left)} [dim]left[/]"
        )
        head.add_row(Text(self._step, style="bold", overflow="ellipsis"), Text.from_markup(clock))
        share = self._share_of_step(now)
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        done = min(total, self._done + (share or 0.0)) if total else share
        bar.add_row(
            ProgressBar(total=float(total or 1), completed=done or 0.0, pulse=done is None),
            f"{min(self._done, total)}/{total}" if total else "",
        )
        return Group(head, bar, Text.from_markup(self._live_line()))

    def _live_line(self) -> str:
        recent = recent_requests(self._journal) if self._journal is not None else None
        if recent is None:
            return f"[dim]{self._counted()}[/]"
        self._rates = [*self._rates[-23:], recent.rate]
        users = self._load[0]
        parts = [f"{recent.rate:.1f}[dim]/s[/] {_sparkline(self._rates)}"]
        parts.append(f"{users}[dim] users[/]" if users is not None else f"{recent.in_flight:.0f}[dim] in flight[/]")
        if recent.latencies_ms:
            middle, slow = (percentile(recent.latencies_ms, q) for q in (50, 95))
            parts.append(f"[dim]p50[/] {middle:.1f} [dim]p95[/] {slow:.1f}[dim] ms[/]")
        parts.append(f"[dim]{self._requests} requests[/]")
        parts.append(f"[red]{self._failed} failed[/]" if self._failed else "[dim]0 failed[/]")
        return "  ".join(parts)

    def _share_of_step(self, now: float) -> float | None:
        """How much of the run under way is done; None where it cannot be known."""
        _, _, duration, requests = self._load
        shares = []
        if duration:
            shares.append((now - self._step_started) / duration)
        if requests:
            shares.append(self._requests / requests)
        return min(1.0, max(shares)) if shares else None

    def _seconds_left(self, now: float) -> float | None:
        """By the pace so far; None until a step is done or half of one is."""
        total = self.steps if self._expected else 0
        done = self._done + (self._share_of_step(now) or 0.0)
        if not total or done < 0.5 or done > total:
            return None
        return (now - self._started) * (total - done) / done

    def _counted(self) -> str:
        if not self._requests:
            return ""
        return f"{self._requests} requests" + (f", {self._failed} failed" if self._failed else "")


def recent_requests(journal: Path, window_s: float = WINDOW_S) -> Recent | None:
    """The end of the journal: requests that ended at most ``window_s`` before the last one; None before the first."""
    try:
        with journal.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return None
    rows = []
    # The first line may be the end of one, the last the beginning.
    for line in lines[1:] if size > TAIL_BYTES else lines:
        try:
            row = json.loads(line)
            rows.append((float(row["end_s"]), float(row["scheduled_s"]), row["error"] is None))
        except (ValueError, KeyError, TypeError):
            continue
    if not rows:
        return None
    last = max(end for end, _, _ in rows)
    begin = max(last - window_s, min(scheduled for _, scheduled, _ in rows))
    found = [row for row in rows if row[0] > begin]
    latencies = [1000 * (end - scheduled) for end, scheduled, ok in found if ok]
    return Recent(len(found) / max(last - begin, 1e-9), latencies, len(found) - len(latencies))


def _sparkline(values: list[float]) -> str:
    most = max(values, default=0.0) or 1.0
    return "".join(EIGHTHS[round(8 * value / most)] for value in values)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
