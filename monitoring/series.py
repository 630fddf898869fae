"""Samples in memory: of the series that expressions read, for as long as they look back."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import promql_parser as promql

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LOOKBACK_S = 300.0
"""How old the newest sample of a series may be, as in Prometheus."""
_SLACK = 1.25  # old samples go together, not one by one

Labels = frozenset[tuple[str, str]]
"""With the metric's name as ``__name__`` where there is one."""


@dataclass(slots=True)
class Series:
    """One series: samples by rising time, and when it was seen to have ended."""

    keep_s: float
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    ends: list[float] = field(default_factory=list)

    def at(self, time: float) -> float | None:
        """The newest value at ``time``, as Prometheus' instant vectors have it."""
        last = bisect_right(self.times, time) - 1
        if last < 0 or self.times[last] < time - LOOKBACK_S:
            return None
        ended = bisect_right(self.ends, time) - 1
        return None if ended >= 0 and self.ends[ended] > self.times[last] else self.values[last]

    def between(self, start: float, end: float) -> tuple[array[float], array[float]]:
        """Times and values from ``start`` to ``end``, both included (so does Prometheus before 3.0)."""
        chosen = slice(bisect_left(self.times, start), bisect_right(self.times, end))
        return self.times[chosen], self.values[chosen]

    def add(self, time: float, value: float) -> None:
        self.times.append(time)
        self.values.append(value)
        if self.times[0] < time - self.keep_s * _SLACK:
            old = bisect_left(self.times, time - self.keep_s)
            del self.times[:old], self.values[:old]
            del self.ends[: bisect_left(self.ends, time - self.keep_s)]


@dataclass(frozen=True, slots=True)
class Selector:
    """What an expression reads: a name, conditions on labels, and how far back."""

    name: str
    matchers: tuple[tuple[promql.MatchOp, str, str], ...]
    back_s: float

    @classmethod
    def of(cls, vector: promql.VectorSelector, back_s: float = LOOKBACK_S) -> Selector:
        matchers = tuple((matcher.op, matcher.name, matcher.value) for matcher in vector.matchers.matchers)
        return cls(vector.name or "", matchers, back_s)

    def matches(self, labels: Labels) -> bool:
        values = dict(labels)
        return all(_agrees(op, values.get(name, ""), wanted) for op, name, wanted in self.matchers)


def _agrees(op: promql.MatchOp, value: str, wanted: str) -> bool:
    if op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
        agrees = value == wanted
    else:
        agrees = re.fullmatch(wanted, value) is not None
    return agrees if op in (promql.MatchOp.Equal, promql.MatchOp.Re) else not agrees


class Store:
    """Series by name; those that no selector reads are not kept."""

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self._selectors: dict[str, list[Selector]] = {}
        for selector in selectors:
            self._selectors.setdefault(selector.name, []).append(selector)
        self._series: dict[str, dict[Labels, Series | None]] = {}
        self._current: dict[object, set[tuple[str, Labels]]] = {}

    def put(self, time: float, samples: Mapping[tuple[str, Labels], float], source: object) -> None:
        """Take all that ``source`` (a target, a rule) has at ``time``; what it had and has no more has ended."""
        kept = set()
        for (name, labels), value in samples.items():
            series = self._wanted(name, labels)
            if series is not None:
                series.add(time, value)
                kept.add((name, labels))
        for name, labels in self._current.get(source, set()) - kept:
            series = self._series[name][labels]
            if series is not None:
                series.ends.append(time)
        self._current[source] = kept

    def select(self, selector: Selector) -> Iterator[tuple[Labels, Series]]:
        for labels, series in self._series.get(selector.name, {}).items():
            if series is not None and selector.matches(labels):
                yield labels | {("__name__", selector.name)}, series

    def _wanted(self, name: str, labels: Labels) -> Series | None:
        if name not in self._selectors:
            return None
        known = self._series.setdefault(name, {})
        if labels not in known:
            back_s = [selector.back_s for selector in self._selectors[name] if selector.matches(labels)]
            known[labels] = Series(max(back_s)) if back_s else None
        return known[labels]
