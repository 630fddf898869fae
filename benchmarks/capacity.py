"""``capacity``: the highest rate of arrivals at which enough requests keep their limits.

An open loop at a rate just above what a server can do looks healthy at first: the queue grows by a few percent of
the rate, and the first requests wait for nobody. So each probe lasts as long as it takes to see the overload that
the search still distinguishes (:func:`probe_seconds`), and each begins with an empty queue, which is checked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, model_validator

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Scenario
from benchmarks.errors import EndpointError, InvalidRunError, UsageError
from benchmarks.goodput import Limits, cell, good_requests, share_interval
from benchmarks.progress import Display
from benchmarks.records import Phase
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side
from benchmarks.summary import duration_s, metric_of_run, summarise
from benchmarks.texts import say
from benchmarks.verdict import EXIT_CODES, Answer

DESCRIPTION = """\
Find the highest rate (requests per second, open loop) at which a share of `target` of the requests keeps `limits`,
by bracketing and bisection. Ends with 0 when it was found (and is at least must_hold), 1 when must_hold is not
reached or even one user alone breaks the limits, 3 when it is not decided, 4 when the load generator was the limit.

common keys: url, limits.latency_ms, limits.ttft_ms, limits.tpot_ms, target=0.95, resolution=0.03, max_probes=12,
must_hold (rate), users (first guess by a closed loop) or rate_per_s (first guess), arrivals.pattern=constant|poisson,
dialect, calls, pid, out, lang=en|zh
"""
BASE_REQUESTS = 10
DRAINED_TIMES, DRAINED_SLACK_MS = 1.5, 20.0
Outcome = Literal["kept", "broken", "undecided", "invalid"]


class CapacityScenario(Scenario):
    """A scenario with a question: what rate keeps ``limits``?"""

    limits: Limits = Limits()
    """At least latency_ms or ttft_ms: time per token alone does not see a queue."""
    target: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    """Share of requests that must be answered within the limits."""
    resolution: Annotated[float, Field(ge=0.005, le=0.5)] = 0.03
    """Rates that are tried are powers of 1 + resolution, so that a search that is repeated tries the same ones."""
    max_probes: Annotated[int, Field(ge=3, le=100)] = 12
    """Runs of load in all, the first guess and repeated ones included."""
    max_probe_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest probe."""
    max_in_flight: Annotated[int, Field(gt=0, le=100_000)] = 1000
    """A probe in which more requests wait for an answer is broken off; the rate is not kept."""
    drain_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for the queue to empty after a probe."""
    must_hold: Annotated[float, Field(gt=0)] | None = None
    """Requests per second that the capacity must reach; null demands nothing."""

    @model_validator(mode="after")
    def _limits_see_a_queue(self) -> CapacityScenario:
        limits = self.limits
        if limits.latency_ms is None and limits.ttft_ms is None:
            raise ValueError(
                "set limits.latency_ms or limits.ttft_ms: without them a queue may grow and nothing is broken"
            )
        if (limits.ttft_ms is not None or limits.tpot_ms is not None) and not self.dialect.endswith("_stream"):
            raise ValueError(f"limits.ttft_ms and limits.tpot_ms need a dialect that streams, not {self.dialect}")
        if self.arrivals.pattern not in {"constant", "poisson", "gamma"}:
            raise ValueError(
                f"capacity sets the rate itself: arrivals.pattern={self.arrivals.pattern} does not take one"
            )
        return self


@dataclass(slots=True)
class Search:
    """Bracket and bisect over rates base ** step; ``kept`` and ``broken`` are the nearest steps seen so far.

    Args:
        base: 1 + resolution.
        guess: The first step tried.
        floor: A step assumed to be kept until it is tried.
    """

    base: float
    guess: int
    floor: int
    kept: int | None = None
    broken: int | None = None
    confirmed: bool = False
    """``broken`` is next to ``kept`` and was found broken twice."""
    _up: int = field(default=1)

    def next_step(self) -> int | None:
        """The step to try next; None when the answer is known or lies below the floor."""
        kept, broken = self.kept, self.broken
        if broken is None:
            return self.guess if kept is None else kept + self._up
        if kept is not None:
            # One stall of the machine must not decide: the step that limits the answer is tried twice.
            return (kept + broken) // 2 if broken - kept > 1 else None if self.confirmed else broken
        if broken <= self.floor:
            return None
        # Saturated throughput is a sharp guess for servers with slots, so what is just below it comes first.
        return max(self.floor, broken - 2 if broken == self.guess else (self.floor + broken) // 2)

    def learn(self, step: int, *, kept: bool) -> None:
        """What trying ``step`` said. A step that is kept at the second try takes back what the first one said."""
        if kept:
            # Doubled while nothing is broken.
            self._up = 1 if self.kept is None or step == self.broken else 2 * self._up
            self.kept = step
            self.broken = None if step == self.broken else self.broken
        else:
            self.confirmed = step == self.broken
            self.broken = step

    @property
    def found(self) -> bool:
        """A step is kept, and the next one is not."""
        return self.kept is not None and self.broken == self.kept + 1

    def rate(self, step: int | None) -> float | None:
        """Requests per second."""
        return None if step is None else float(self.base**step)


def step_at_most(rate: float, base: float) -> int:
    """The largest step whose rate is at most ``rate``."""
    return math.floor(math.log(rate) / math.log(base) + 1e-9)


def probe_seconds(slack_s: float, resolution: float, rate: float, target: float, shortest_s: float) -> float:
    """How long a probe must last so that an overload of ``resolution`` breaks the objective beyond doubt.

    At (1 + e) times its capacity a server falls behind by e seconds every second: a request that arrives after t
    seconds waits e * t (Newell's fluid queue). It breaks a limit ``slack_s`` above the unloaded latency from
    t = slack_s / e on, so of T seconds a share of 1 - slack_s / (e * T) breaks it: half of them at 2 * slack_s / e.
    And there must be enough requests for Wilson's interval to lie above ``target`` when all are kept:
    z^2 * target / (1 - target) of them, z = 1.96.
    """
    enough = math.ceil(1.96**2 * target / (1 - target)) + 1
    return max(shortest_s, 2 * slack_s / resolution, enough / rate)


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "capacity",
        DESCRIPTION,
        "capacity benchmarks/configs/capacity.yml url=http://127.0.0.1:8000 limits.latency_ms=500",
        "capacity benchmarks/configs/capacity.yml url=http://127.0.0.1:8000 dialect=chat_stream limits.latency_ms=null "
        "limits.ttft_ms=1000 limits.tpot_ms=80",
    )
    return measure(CapacityScenario, parser.parse_args(words), capacity)


@dataclass(slots=True)
class Probing:
    """A search under way on one server."""

    session: Session
    scenario: CapacityScenario
    search: Search | None = None
    """None until the first guess was made, and when one user alone does not keep the limits."""
    probes: int = 0
    cells: list[dict[str, Any]] = field(default_factory=list)
    alone: dict[str, float] = field(default_factory=dict)
    """What one user alone meets: qps, goodput, latency_ms (median), slack_ms (what is left to the tightest limit)."""
    saturated_qps: float | None = None

    def run(self) -> None:
        """Probe until the answer is known, the probes are used up, or the load generator was the limit.

        Raises:
            InvalidRunError: The server did not work off its queue, or answers none of many users.
            EndpointError: It answers nobody.
        """
        scenario = self.scenario
        self.session.warm_up()
        self._measure_alone()
        if self.broken_alone:
            return
        base = 1 + scenario.resolution
        guess = scenario.rate_per_s if scenario.rate_per_s is not None else self._saturate()
        self.search = search = Search(
            base, step_at_most(guess, base), step_at_most(min(guess, self.alone["qps"]) / 4, base)
        )
        while self.probes < scenario.max_probes and (step := search.next_step()) is not None:
            outcome = self._at(base**step)
            if outcome == "invalid":
                return
            search.learn(step, kept=outcome == "kept")

    @property
    def broken_alone(self) -> bool:
        return self.alone["slack_ms"] <= 0 or self.alone["goodput"] < self.scenario.target

    def _measure_alone(self) -> None:
        """What one user cannot keep, no rate will."""
        alone = self._send("one user alone", "probe", users=1, duration_s=None, requests=BASE_REQUESTS)
        answered = alone[alone["ok"]]
        if not len(answered):
            raise EndpointError(self.session.sides["a"].url, f"it answered none of {len(alone)} requests of one user")
        limits = self.scenario.limits
        latency, first = (1000 * answered[name] for name in ("latency_s", "ttft_s"))
        slacks = [] if limits.latency_ms is None else [limits.latency_ms - float(latency.median())]
        if limits.ttft_ms is not None:
            slacks.append(limits.ttft_ms - float(first.median()) if first.notna().any() else 0.0)
        self.alone = {
            "qps": len(answered) / duration_s(alone),
            "goodput": float(good_requests(alone, limits).mean()),
            "latency_ms": float(latency.median()),
            "slack_ms": min(slacks),
        }

    def _saturate(self) -> float:
        """What a closed loop of ``users`` gets through, requests per second."""
        users = self.scenario.users
        self.probes += 1
        seconds = max(self.scenario.duration_s or 0.0, 4 * self.alone["latency_ms"] / 1000)
        records = self._send(f"probe {self.probes}: {users} users", "probe", users=users, duration_s=seconds)
        self._drain()
        self.saturated_qps = metric_of_run(records, "qps")
        if self.saturated_qps is None:
            raise InvalidRunError(
                f"none of {len(records)} requests of {users} users at once was answered "
                f"({', '.join(sorted(records['error'].dropna().unique()))}): set users lower, or rate_per_s"
            )
        return self.saturated_qps

    def _at(self, rate: float) -> Outcome:
        """Probe ``rate``, twice as long while it is undecided, and again where the load generator was not well."""
        scenario = self.scenario
        slack = self.alone["slack_ms"] / 1000
        longest = scenario.max_probe_s
        seconds = min(
            longest, probe_seconds(slack, scenario.resolution, rate, scenario.target, scenario.duration_s or 0.0)
        )
        outcome: Outcome = "undecided"
        invalid = 0
        while self.probes < scenario.max_probes:
            outcome = self._once(rate, seconds)
            invalid += outcome == "invalid"
            if outcome in {"kept", "broken"} or invalid > 1 or (outcome == "undecided" and seconds >= longest):
                break
            seconds = seconds if outcome == "invalid" else min(2 * seconds, longest)
        return outcome

    def _once(self, rate: float, seconds: float) -> Outcome:
        scenario = self.scenario
        self.probes += 1
        records = self._send(
            f"probe {self.probes}: {rate:.4g} requests per second for {seconds:.0f} s",
            "measure",
            rate_per_s=rate,
            duration_s=seconds,
            max_in_flight=scenario.max_in_flight,
        )
        run = self.session.runs[-1]
        interval = share_interval(good_requests(records, scenario.limits).tolist(), scenario.verdict.alpha)
        overflowed = bool(run.get("overflowed"))
        outcome: Outcome = "undecided"
        if run["ill_health"]:
            outcome = "invalid"
        elif overflowed or interval.high < scenario.target:
            outcome = "broken"
        elif interval.low >= scenario.target:
            outcome = "kept"
        run["set_aside"] = outcome == "invalid"
        self.cells.append(
            cell(records, {"rate_per_s": rate}, scenario.limits)
            | {
                "kept": {"kept": True, "broken": False}.get(outcome),
                "outcome": outcome,
                "goodput_interval": [interval.low, interval.high],
                "duration_s": seconds,
                "overflowed": overflowed,
                "ill_health": run["ill_health"],
                "run": run["run"],
            }
        )
        self._drain()
        return outcome

    def _drain(self) -> None:
        """Wait until one request alone is as fast as in the beginning.

        Raises:
            InvalidRunError: It is not, ``drain_s`` after the probe: the next one would begin behind a queue.
        """
        usual = self.alone["latency_ms"]
        end = time.monotonic() + self.scenario.drain_s
        while True:
            last = self._send("waiting for an empty queue", "probe", users=1, duration_s=None, requests=1)
            took = 1000 * float(last["latency_s"].min())  # nan: not answered
            if took <= DRAINED_TIMES * usual + DRAINED_SLACK_MS:
                return
            if time.monotonic() >= end:
                found = "is not answered" if math.isnan(took) else f"takes {took:.0f} ms instead of {usual:.0f}"
                raise InvalidRunError(
                    f"{self.scenario.drain_s:g} s after a probe one request alone still {found}: the server has not "
                    "worked off its queue; raise drain_s or lower max_in_flight"
                )
            time.sleep(0.1)

    def _send(self, name: str, phase: Phase, **limits: Any) -> pd.DataFrame:
        """One run and its records, in the order they were due."""
        self.session.display.begin(name)
        load = {"users": None, "rate_per_s": None, "requests": None} | limits
        # Probes differ in what they send, so that no probe finds answers of the last one in a cache.
        run = self.session.send("a", self.probes, phase, **load)
        self.session.display.end()
        records = self.session.records()
        found: pd.DataFrame = records[records["run"] == run["run"]].sort_values("scheduled_s")
        return found


def capacity(scenario: CapacityScenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Search on ``scenario.url``; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    if scenario.url is None:
        raise UsageError("capacity needs a server: url=http://127.0.0.1:8000")
    stopped, trouble = False, None
    side = Side(url=scenario.url, name=scenario.name, pid=scenario.pid)
    with Session(scenario, "capacity", {"a": side}, display) as session:
        probing = Probing(session, scenario)
        try:
            probing.run()
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
        except InvalidRunError as error:
            trouble = str(error)
    records = session.records()
    runs = [run for run in session.runs if run["phase"] == "measure" and not run["set_aside"]]
    peak = max((run["peak_in_flight"] for run in runs), default=0)
    summary = summarise(records[records["run"].isin([run["run"] for run in runs])], peak)
    summary |= server_use(session.samples(), "server_a", runs, tokens=summary["output_tokens"], cost=scenario.cost)
    summary |= evaluate(probing, trouble, stopped=stopped)
    return session.conclude(summary, stopped=stopped)


def evaluate(probing: Probing, trouble: str | None, *, stopped: bool) -> dict[str, Any]:
    """The verdict and what it rests on."""
    scenario, search, lang = probing.scenario, probing.search, probing.scenario.lang
    kept, broken = (None, None) if search is None else (search.rate(search.kept), search.rate(search.broken))
    limits = scenario.limits.model_dump(exclude_none=True)
    values = {
        "target": scenario.target,
        "limits": ", ".join(f"{name.removesuffix('_ms')} {value:g} ms" for name, value in limits.items()),
        "kept": kept,
        "broken": broken,
        "probes": probing.probes,
    }
    reasons = [] if trouble is None else [trouble]
    last = probing.cells[-1] if probing.cells else None
    if last is not None and last["outcome"] == "invalid":
        trouble = say("capacity_client", lang, rate=last["rate_per_s"], reason="; ".join(last["ill_health"]))
        reasons.append(trouble)
    too_slow = bool(probing.alone) and probing.broken_alone
    if too_slow:
        reasons.append(say("capacity_alone", lang, **values, **probing.alone))
    elif kept is not None and broken is not None:
        reasons.append(say("capacity_between", lang, **values))
    elif kept is not None:
        reasons.append(say("capacity_above", lang, **values))
    elif broken is not None:
        reasons.append(say("capacity_below", lang, **values))
    demanded = scenario.must_hold
    verdict: Answer = "NO VERDICT"
    if trouble is not None:
        verdict = "INVALID"
    elif stopped:
        pass
    elif too_slow or (search is not None and kept is None and search.next_step() is None):
        verdict = "FAIL"
    elif demanded is None:
        verdict = "PASS" if search is not None and search.found else "NO VERDICT"
    elif kept is not None and kept >= demanded:
        verdict = "PASS"
    elif broken is not None and broken <= demanded:
        verdict = "FAIL"
    return {
        "kind": "capacity",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "objective": limits | {"target": scenario.target, "must_hold": demanded},
        "reasons": reasons,
        "capacity": {
            "rate_per_s": kept,
            "broken_rate_per_s": broken,
            "confirmed": search is not None and search.confirmed,
            "probes": probing.probes,
            "saturated_qps": probing.saturated_qps,
            "alone": probing.alone or None,
        },
        "cells": sorted(probing.cells, key=lambda found: (found["rate_per_s"], found["run"])),
    }
