"""What the generator is told, by :mod:`benchmarks.generator`, on its standard input."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.records import Arm, Phase


@dataclass(frozen=True, slots=True)
class Plan:
    """Said once. ``origin`` is the benchmark's zero, perf_counter seconds."""

    origin: float
    journal: str
    scenario: str
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of load on one URL: ``users``, or arrivals, until ``duration_s`` or ``requests``.

    ``arrivals`` replaces the scenario's, as JSON. Where more than ``max_in_flight`` requests of an open loop would wait
    for an answer, the run ends early and says ``overflowed``.
    """

    run: int
    arm: Arm
    pair: int
    phase: Phase
    url: str
    model: str | None = None
    users: int | None = None
    rate_per_s: float | None = None
    duration_s: float | None = None
    requests: int | None = None
    arrivals: str | None = None
    max_in_flight: int | None = None
