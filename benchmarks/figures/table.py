"""A figure: what was measured, against what bar, with which interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.stats import compare_pairs


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. ``bar`` is what it must reach, as text; ``low`` and ``high`` are the 95 % interval of a ratio."""

    name: str
    value: float
    bar: str
    reached: bool
    low: float | None = None
    high: float | None = None
    pairs: int | None = None
    detail: str = ""

    @classmethod
    def of(
        cls, name: str, value: float, *, at_least: float | None = None, at_most: float | None = None, detail: str = ""
    ) -> Figure:
        bar, reached = _bar(value, at_least, at_most)
        return cls(name, value, bar, reached, detail=detail)

    def row(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}], {self.pairs} pairs"
        mark = "reached" if self.reached else "MISSED"
        return f"| {self.name} | {self.value:.3g}{interval} | {self.bar} | {mark} | {self.detail} |"


def ratio_figure(
    name: str,
    a: Sequence[float],
    b: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str,
) -> Figure:
    """Geometric mean of b/a over interleaved pairs, with its interval and both medians."""
    compared = compare_pairs(a, b)
    bar, reached = _bar(compared.ratio, at_least, at_most)
    medians = f"{sorted(b)[len(b) // 2]:.3g} against {sorted(a)[len(a) // 2]:.3g} {unit}"
    return Figure(name, compared.ratio, bar, reached, compared.t.low, compared.t.high, compared.pairs, medians)


def _bar(value: float, at_least: float | None, at_most: float | None) -> tuple[str, bool]:
    if at_least is not None:
        return f">= {at_least:g}", value >= at_least
    assert at_most is not None
    return f"<= {at_most:g}", value <= at_most
