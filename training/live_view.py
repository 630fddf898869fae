"""What a person sees of a run while it goes on: a live bar in a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_LINE_EVERY_S = 30


class LiveView:
    """Losses, speed and time left of one run."""

    def __init__(self, first_step: int, steps: int, *, silent: bool = False) -> None:
        """
        Args:
            first_step: Steps done before, by the run that this one goes on with.
            silent: In all processes but the first.
        """
        self._first, self._steps, self._silent = first_step, steps, silent
        self._started = self._last_line = time.monotonic()
        self._tokens = 0
        self._best: float | None = None
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal and not silent:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=steps, completed=first_step)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def tokens_per_second(self) -> float:
        """Tokens of prompts, over the whole time, evaluations included."""
        return self._tokens / max(self.seconds, 1e-9)

    def step(self, line: dict[str, Any]) -> None:
        """Show the metrics of a step."""
        self._tokens += line["tokens"]
        done = line["step"]
        left = self.seconds / (done - self._first) * (self._steps - done)
        text = f"loss {line['loss']:.4f}  {self.tokens_per_second:,.0f} tokens/s  {_duration(left)} left" + (
            "" if self._best is None else f"  best macro-F1 {self._best:.4f}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif done == self._first + 1 or time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(f"step {done}/{self._steps}  {text}")

    def evaluation(self, line: dict[str, Any]) -> None:
        """Show an evaluation."""
        self._best = line["best_macro_f1"]
        self.say(
            f"step {line['step']}/{self._steps}  validation macro-F1 {line['validation_macro_f1']:.4f}, "
            f"accuracy {line['validation_accuracy']:.4f}, label mass {line['validation_label_mass']:.3f}"
            + ("  (best so far)" if line["best_step"] == line["step"] else "")
        )

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
