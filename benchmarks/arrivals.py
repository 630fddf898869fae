"""When requests are due: decided before the run, by a seed, as offsets from its beginning.

Every pattern but ``burst`` and ``trace`` is one process in two parts. *Spacing* lays requests on an axis where one is
expected per unit: evenly, with exponential gaps (Poisson) or with gamma gaps. *Rates* stretch that axis into seconds:
request x is due at the t at which the rates, integrated from 0 to t, give x. That is exact for every rate that is
linear in pieces (inhomogeneous Poisson process by inversion: Cinlar, Introduction to Stochastic Processes, 1975,
chapter 4.7), so a ramp needs no small steps and no thinning.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from benchmarks.errors import UsageError
from benchmarks.traces import Trace, nearest_calls, read_trace, wanted_lengths
from runconfig import RunConfig

Pattern = Literal["constant", "poisson", "gamma", "ramp", "burst", "steps", "trace"]
Spacing = Literal["even", "poisson"]
Fit = Literal["nearest", "cut"]
Positive = Annotated[float, Field(gt=0)]

MAX_MISFIT = 0.25
"""Median difference of a call's length from the trace's, as a share: what a prompt costs grows with its length."""
MAX_REQUESTS = 50_000_000
"""Of one run; its offsets alone are 400 MB."""

# Pattern -> keys it needs, keys it may have. Any other key is an error: it would change nothing.
KEYS: dict[Pattern, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": ((), ()),
    "poisson": ((), ()),
    "gamma": (("cv",), ()),
    "ramp": (("to_rate_per_s",), ("over_s", "spacing")),
    "burst": (("burst_size", "burst_interval_s"), ()),
    "steps": (("steps",), ("spacing",)),
    "trace": (("trace",), ("speed", "fit")),
}


class Step(RunConfig):
    """A rate that is kept for a while."""

    rate_per_s: Annotated[float, Field(ge=0)]
    """0 is a pause."""
    duration_s: Positive


class Arrivals(RunConfig):
    """The open loop: how requests that nobody waits for are spread over time. Null where a pattern does not use it."""

    pattern: Pattern = "constant"
    """constant: 1 / rate_per_s apart; poisson: independent callers; gamma: callers that come in bunches; ramp: from
    rate_per_s to to_rate_per_s; burst: many at once, again and again; steps: one rate after another; trace: as a file
    says."""
    cv: Annotated[float, Field(gt=0, le=20)] | None = None
    """gamma: standard deviation of the gaps over their mean; 1 is poisson, more is burstier, less is more even."""
    to_rate_per_s: Positive | None = None
    """ramp: the rate at its end, requests per second; reached linearly."""
    over_s: Positive | None = None
    """ramp: seconds until to_rate_per_s is reached, which is then kept; null: duration_s."""
    spacing: Spacing | None = None
    """ramp and steps: even (null, no chance) or poisson (independent callers)."""
    burst_size: Annotated[int, Field(gt=0)] | None = None
    """burst: requests that are due at the same moment."""
    burst_interval_s: Positive | None = None
    """burst: seconds from one burst to the next; the first is at 0."""
    steps: tuple[Step, ...] | None = None
    """steps: [{rate_per_s: 5, duration_s: 30}, ...]; the run ends with the last."""
    trace: Path | None = None
    """trace: JSONL with offset_s and, optionally, prompt_characters or prompt_tokens, and max_tokens; ``python -m
    benchmarks trace`` makes one from the model server's log."""
    speed: Positive | None = None
    """trace: 2 replays it in half the time; null is 1."""
    fit: Fit | None = None
    """trace: which text a request carries. nearest (null): the call whose length is nearest to the trace's; cut: that
    call, repeated and cut to the length."""

    @property
    def sets_its_own_rate(self) -> bool:
        """Whether neither ``users`` nor ``rate_per_s`` is needed."""
        return self.pattern in {"burst", "steps", "trace"}

    @property
    def ends_itself(self) -> bool:
        """Whether neither ``duration_s`` nor ``requests`` is needed."""
        return self.pattern in {"steps", "trace"}

    @model_validator(mode="after")
    def _only_keys_of_the_pattern(self) -> Self:
        needed, optional = KEYS[self.pattern]
        for name in Arrivals.model_fields.keys() - {"pattern", *needed, *optional}:
            if getattr(self, name) is not None:
                users = " and ".join(pattern for pattern, keys in KEYS.items() if name in keys[0] + keys[1])
                raise ValueError(
                    f"pattern {self.pattern} does not use {name}, which is for {users}: remove it, or set {name}: null"
                )
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"pattern {self.pattern} needs {' and '.join(missing)}")
        if self.steps is not None and not any(step.rate_per_s for step in self.steps):
            raise ValueError("steps hold no request: give at least one a rate_per_s above 0")
        return self

    def check(
        self, *, users: int | None, rate_per_s: float | None, duration_s: float | None, requests: int | None
    ) -> None:
        """Whether the rest of a scenario goes with the pattern.

        Raises:
            ValueError: It does not.
        """
        if users is not None and self != Arrivals():
            raise ValueError(f"arrivals.pattern={self.pattern} is an open loop: set users: null")
        if self.sets_its_own_rate and rate_per_s is not None:
            raise ValueError(f"arrivals.pattern={self.pattern} has rates of its own: set rate_per_s: null")
        if not self.sets_its_own_rate and (users is None) == (rate_per_s is None):
            raise ValueError("set exactly one of users (closed loop) and rate_per_s (open loop); the other: null")
        if not self.ends_itself and duration_s is None and requests is None:
            raise ValueError("set duration_s, requests, or both: a run must end")
        if self.pattern == "ramp" and self.over_s is None and duration_s is None:
            raise ValueError("a ramp needs over_s, or duration_s: how long it takes to reach to_rate_per_s")
        if users is None and self.pattern != "trace":
            expected = self._expected(rate_per_s, math.inf if duration_s is None else duration_s)
            if min(expected, math.inf if requests is None else requests) > MAX_REQUESTS:
                raise ValueError(f"that is {expected:.3g} requests in one run, at most {MAX_REQUESTS:,} are scheduled")

    def _expected(self, rate_per_s: float | None, duration_s: float) -> float:
        """Requests due before ``duration_s``."""
        if self.pattern == "burst":
            assert self.burst_size is not None
            assert self.burst_interval_s is not None
            return self.burst_size * duration_s / self.burst_interval_s
        return sum(stretch.requests for stretch in _stretches(self, rate_per_s, duration_s))


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """All requests of one run, in the order in which they are due; each array is (requests,).

    Attributes:
        offsets_s: Ascending seconds from the run's beginning.
        max_tokens: Of each request; None: the scenario's for all.
        calls: Position in the calls file of what each request carries; None: in the usual order.
        characters: Length of the text of each request, see :func:`fitted`; None: the call's own.
    """

    offsets_s: NDArray[np.float64]
    max_tokens: NDArray[np.int64] | None = None
    calls: NDArray[np.int64] | None = None
    characters: NDArray[np.int64] | None = None

    @property
    def sha256(self) -> str:
        """The same for the same requests at the same microseconds, on every machine."""
        parts = [np.round(self.offsets_s * 1e6).astype("<i8")]
        parts += [each.astype("<i8") for each in (self.max_tokens, self.calls, self.characters) if each is not None]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A rate that begins at ``begin``, requests per second, and grows by ``slope`` each second."""

    duration_s: float
    begin: float
    slope: float = 0.0

    @property
    def requests(self) -> float:
        growth = self.slope * self.duration_s / 2 if self.slope else 0.0
        return (self.begin + growth) * self.duration_s


def schedule(
    arrivals: Arrivals,
    *,
    rate_per_s: float | None,
    duration_s: float | None,
    requests: int | None,
    seed: str,
    texts: Sequence[str] = (),
    tokenizer: Path | None = None,
) -> Schedule:
    """All requests of one run that are due before ``duration_s``, at most ``requests``.

    Args:
        seed: Equal seeds give equal schedules; a shorter run's is the beginning of a longer one's.
        texts: Of the calls, in the order of their file; a trace with lengths chooses among them. Without texts it
            gives times only.
        tokenizer: tokenizer.json that counts the tokens of ``texts``, for a trace that gives tokens alone.

    Raises:
        UsageError: The trace cannot be used.
    """
    end = math.inf if duration_s is None else duration_s
    if arrivals.pattern == "trace":
        return _replay(arrivals, end, requests, seed, texts, tokenizer)
    if arrivals.pattern == "burst":
        offsets = _bursts(arrivals, end, requests)
    else:
        stretches = _stretches(arrivals, rate_per_s, end)
        limit = sum(stretch.requests for stretch in stretches)
        offsets = _seconds(_positions(arrivals, limit, requests, seed), stretches)
    return Schedule(offsets[offsets < end])


def check_trace(arrivals: Arrivals, texts: Sequence[str], tokenizer: Path | None) -> None:
    """Before anything is started: whether the trace can be read, and the calls are about as long as it asks for.

    Raises:
        UsageError: Not so.
    """
    if arrivals.trace is None:
        return
    found = schedule(
        arrivals, rate_per_s=None, duration_s=None, requests=None, seed="", texts=texts, tokenizer=tokenizer
    )
    if found.calls is None or arrivals.fit == "cut":
        return
    wanted, lengths = wanted_lengths(read_trace(arrivals.trace), texts, tokenizer)
    misfit = float(np.median(np.abs(lengths[found.calls] - wanted) / wanted))
    if misfit > MAX_MISFIT:
        raise UsageError(
            f"the calls do not fit the trace {arrivals.trace}: for half of its requests the nearest call is "
            f"{misfit:.0%} or more too long or too short (lengths asked for: median {np.median(wanted):,.0f}, calls: "
            f"{lengths.min():,} to {lengths.max():,}): set arrivals.fit=cut, which repeats and cuts, or other calls"
        )


def fitted(text: str, characters: int) -> str:
    """``text``, repeated and cut to so many characters."""
    return (text * math.ceil(characters / len(text)))[:characters]


def uniforms(seed: str) -> Callable[[int], NDArray[np.float64]]:
    """A stream of numbers in [0, 1), as many as are asked for.

    From the raw words of PCG64: NumPy promises to keep that stream, and not what its Generator makes of it
    (https://numpy.org/doc/stable/reference/random/compatibility.html).
    """
    words = np.random.PCG64(np.random.SeedSequence(int.from_bytes(hashlib.sha256(seed.encode()).digest())))

    def draw(count: int) -> NDArray[np.float64]:
        return np.asarray((words.random_raw(count) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

    return draw


def _stretches(arrivals: Arrivals, rate_per_s: float | None, end: float) -> list[_Stretch]:
    """The rates from 0 to ``end`` seconds, or to where the pattern ends."""
    if arrivals.steps is not None:
        rates = [_Stretch(step.duration_s, step.rate_per_s) for step in arrivals.steps]
    else:
        assert rate_per_s is not None
        to_rate = rate_per_s if arrivals.to_rate_per_s is None else arrivals.to_rate_per_s
        over = end if arrivals.over_s is None else arrivals.over_s
        rates = [_Stretch(math.inf, to_rate)]
        if to_rate != rate_per_s and over < math.inf:
            rates.insert(0, _Stretch(over, rate_per_s, (to_rate - rate_per_s) / over))
    found = []
    begin = 0.0
    for stretch in rates:
        if begin < end:
            found.append(replace(stretch, duration_s=min(stretch.duration_s, end - begin)))
        begin += stretch.duration_s
    return found


def _positions(arrivals: Arrivals, limit: float, requests: int | None, seed: str) -> NDArray[np.float64]:
    """Where requests stand on the axis that has one per unit: ascending, below ``limit``, at most ``requests``."""
    if arrivals.pattern == "gamma":
        assert arrivals.cv is not None
        spread = arrivals.cv**2
    elif arrivals.pattern == "poisson" or arrivals.spacing == "poisson":
        spread = 1.0
    else:
        count = math.ceil(limit) if requests is None else math.ceil(min(limit, requests))
        return np.arange(count, dtype=np.float64)
    uniform = uniforms(seed)

    def gaps(count: int) -> NDArray[np.float64]:
        chance = uniform(count)
        if spread == 1.0:
            return np.asarray(-np.log1p(-chance), dtype=np.float64)
        from scipy.special import gammaincinv

        return np.asarray(gammaincinv(1 / spread, chance) * spread, dtype=np.float64)

    found = gaps(1024)
    while found.sum() < limit and (requests is None or len(found) < requests):
        found = np.concatenate([found, gaps(len(found))])
    positions = np.cumsum(found)
    return positions[positions < limit][:requests]


def _seconds(positions: NDArray[np.float64], stretches: Sequence[_Stretch]) -> NDArray[np.float64]:
    """When the rates, integrated from 0, reach each of ``positions``."""
    durations = np.array([stretch.duration_s for stretch in stretches])
    begin = np.array([stretch.begin for stretch in stretches])
    slope = np.array([stretch.slope for stretch in stretches])
    before_s = np.concatenate([[0.0], np.cumsum(durations[:-1])])
    before = np.concatenate([[0.0], np.cumsum([stretch.requests for stretch in stretches[:-1]])])
    # A request on the border of two stretches belongs to the later one; so none falls into a pause.
    at = np.searchsorted(before, positions, side="right") - 1
    rest = positions - before[at]
    # begin t + slope t^2 / 2 = rest, solved without the difference of two near numbers.
    root = np.sqrt(np.maximum(begin[at] ** 2 + 2 * slope[at] * rest, 0.0))
    offsets = before_s[at] + np.minimum(2 * rest / (begin[at] + root), durations[at])
    return np.maximum.accumulate(offsets) if len(offsets) else offsets


def _bursts(arrivals: Arrivals, end: float, requests: int | None) -> NDArray[np.float64]:
    assert arrivals.burst_size is not None
    assert arrivals.burst_interval_s is not None
    bursts = math.inf if end == math.inf else math.ceil(end / arrivals.burst_interval_s)
    if requests is not None:
        bursts = min(bursts, math.ceil(requests / arrivals.burst_size))
    return np.repeat(np.arange(bursts) * arrivals.burst_interval_s, arrivals.burst_size)[:requests]


def _replay(
    arrivals: Arrivals, end: float, requests: int | None, seed: str, texts: Sequence[str], tokenizer: Path | None
) -> Schedule:
    assert arrivals.trace is not None
    trace = read_trace(arrivals.trace)
    offsets = trace.offsets_s / (1.0 if arrivals.speed is None else arrivals.speed)
    kept = slice(0, min(int(np.searchsorted(offsets, end)), len(offsets) if requests is None else requests))
    found = Schedule(offsets[kept], None if trace.max_tokens is None else trace.max_tokens[kept])
    if not texts or not trace.has_lengths:
        return found
    return _with_texts(found, arrivals, trace, kept, seed, texts, tokenizer)


def _with_texts(
    found: Schedule,
    arrivals: Arrivals,
    trace: Trace,
    kept: slice,
    seed: str,
    texts: Sequence[str],
    tokenizer: Path | None,
) -> Schedule:
    wanted, lengths = wanted_lengths(trace, texts, tokenizer)
    wanted = wanted[kept]
    calls = nearest_calls(wanted, lengths, uniforms(f"{seed}/calls")(len(wanted)))
    characters = None
    if arrivals.fit == "cut":
        # Where lengths are tokens: as many characters as the call has per token, which repeating does not change.
        per_unit = np.array([len(text) for text in texts]) / np.maximum(lengths, 1)
        characters = np.maximum(np.rint(wanted * per_unit[calls]), 1).astype(np.int64)
    return Schedule(found.offsets_s, found.max_tokens, calls, characters)
