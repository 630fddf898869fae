"""What a person sees on stderr while a benchmark runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Display:
    """A live bar on a terminal; one line per finished step in a log."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet)
        self._lines = not console.is_terminal and not quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[live]}"),
            console=console,
            disable=not console.is_terminal or quiet,
        )
        self._task = self._bar.add_task("starting", total=None, live="")
        self.steps = 0
        self._step = ""
        self._live = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, steps: int) -> None:
        """So many steps are to be done, what went before the first call not counted."""
        self._bar.update(self._task, total=steps, completed=None if self.steps else 0)
        self.steps = steps

    def begin(self, step: str) -> None:
        self._step, self._live = step, ""
        self._bar.update(self._task, description=step, live="")

    def tick(self, requests: int, failed: int) -> None:
        """So many requests ended in this step, so many of them failed."""
        self._live = f"{requests} requests" + (f", {failed} failed" if failed else "")
        self._bar.update(self._task, live=self._live)

    def watch(self, journal: Path) -> None:
        """Where the records of requests go: what is live is read there."""
        self._journal = journal

    def load(self, users: int | None, rate_per_s: float | None, duration_s: float | None, requests: int | None) -> None:
        """What the run that begins now is to be."""
        self._load = (users, rate_per_s, duration_s, requests)

    def end(self) -> None:
        self._bar.advance(self._task)
        if self._lines:
            sys.stderr.write(f"{self._step}{': ' if self._live else ''}{self._live}\n")
