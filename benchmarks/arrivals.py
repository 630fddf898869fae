"""When requests are due: decided before the run, by a seed, as offsets from its beginning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from runconfig import RunConfig

Pattern = Literal["constant", "poisson", "gamma", "ramp", "burst", "steps", "trace"]


class Arrivals(RunConfig):
    """The open loop: how requests that nobody waits for are spread over time."""

    pattern: Pattern = "constant"
    """constant: 1 / rate_per_s apart; poisson: independent callers."""
    cv: Annotated[float, Field(gt=0)] = 2.0
    """gamma: coefficient of variation of the gaps; 1 is poisson, more is burstier."""
    trace: Path | None = None
    """trace: a JSONL file."""

    @property
    def sets_its_own_rate(self) -> bool:
        """Whether neither ``users`` nor ``rate_per_s`` is needed, nor an end."""
        return self.pattern in {"steps", "trace"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """``offsets_s``: ascending seconds from the run's beginning, (requests,). ``max_tokens``: per request, or None."""

    offsets_s: NDArray[np.float64]
    max_tokens: NDArray[np.int64] | None = None


def schedule(
    arrivals: Arrivals, *, rate_per_s: float | None, duration_s: float | None, requests: int | None, seed: str
) -> Schedule:
    """All requests of one run that are due before ``duration_s``, at most ``requests``."""
    assert rate_per_s is not None
    count = math.ceil(rate_per_s * duration_s) if duration_s is not None else requests
    assert count is not None
    count = count if requests is None else min(count, requests)
    return Schedule(np.arange(count) / rate_per_s)
