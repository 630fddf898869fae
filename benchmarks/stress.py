"""``stress``: more and more load, until an objective breaks; where queueing began, and what broke.

The knee is the crossing of the two asymptotes of a closed system (Denning and Buzen, 1978, "The operational analysis
of queueing network models"): throughput X cannot exceed N / R1, with R1 the latency of a request alone, nor X_max.
They meet at N* = X_max * R1 users, by Little's law the number of requests the server works on at once. Curve-fitting
knees (Kneedle) depend on which steps were tried and how far they went; this one needs a step with little load and one
with too much, and it is exact for a server with slots.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, model_validator

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Objective, Scenario
from benchmarks.errors import UsageError
from benchmarks.goodput import Limits, Milliseconds, cell, good_requests, share_interval
from benchmarks.progress import Display
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side
from benchmarks.stats import wilson
from benchmarks.summary import summarise
from benchmarks.texts import say
from benchmarks.verdict import EXIT_CODES, Answer

DESCRIPTION = """\
Raise the load step by step, from users (closed loop) or rate_per_s (open loop) by `growth` up to `maximum`, until an
objective breaks; report the knee, where queueing begins, and what broke. Ends with 0 when that is known, 1 when it
broke below must_hold, 4 when the load generator was the limit.

common keys: url, users=1 or rate_per_s, maximum=64, growth=1.5, duration_s (of a step), must_hold,
objective.max_error_rate, objective.max_p95_latency_ms, objective.max_p95_ttft_ms, max_in_flight, dialect, calls,
pid, out, lang=en|zh
"""
PLATEAU = 0.95
"""Steps with this share of the highest throughput are averaged: the highest of several noisy figures is too high."""
ROOM = 1.1
"""The knee counts as passed when the load went this much beyond it."""


class StressObjective(Objective):
    """What must hold at every step."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = 0.01
    max_p95_ttft_ms: Milliseconds | None = None
    """From the moment due to the first token; streams only."""


class StressScenario(Scenario):
    """A scenario whose ``users`` or ``rate_per_s`` is that of the first step."""

    objective: StressObjective = StressObjective()
    growth: Annotated[float, Field(gt=1, le=10)] = 1.5
    """Load of a step over that of the one before."""
    maximum: Annotated[float, Field(gt=0)] = 64.0
    """Users, or requests per second, of the last step."""
    max_in_flight: Annotated[int, Field(gt=0, le=100_000)] = 1000
    """Open loop: a step in which more requests wait for an answer is broken off, and the test ends."""
    must_hold: Annotated[float, Field(gt=0)] | None = None
    """Users, or requests per second, at which the objective must still be kept; null demands nothing."""

    @model_validator(mode="after")
    def _steps_go_up(self) -> StressScenario:
        if self.arrivals.sets_its_own_rate:
            raise ValueError(f"stress sets the rate itself: arrivals.pattern={self.arrivals.pattern} does not take one")
        first = self.first
        if self.maximum < first:
            raise ValueError(f"maximum={self.maximum:g} is below the first step, {first:g}")
        if self.must_hold is not None and self.must_hold > self.maximum:
            raise ValueError(f"must_hold={self.must_hold:g} is above maximum={self.maximum:g}: it would not be tried")
        if self.objective.min_qps is not None:
            raise ValueError("objective.min_qps says nothing while the load goes up: use must_hold with rate_per_s")
        if self.objective.max_p95_ttft_ms is not None and not self.dialect.endswith("_stream"):
            raise ValueError(f"objective.max_p95_ttft_ms needs a dialect that streams, not {self.dialect}")
        return self

    @property
    def of(self) -> str:
        """What goes up."""
        return "rate_per_s" if self.users is None else "users"

    @property
    def first(self) -> float:
        found = self.rate_per_s if self.users is None else float(self.users)
        assert found is not None
        return found


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "stress",
        DESCRIPTION,
        "stress benchmarks/configs/stress.yml url=http://127.0.0.1:8000 maximum=64 objective.max_p95_latency_ms=500",
        "stress benchmarks/configs/stress.yml url=http://127.0.0.1:8000 users=null rate_per_s=2 maximum=200",
    )
    return measure(StressScenario, parser.parse_args(words), stress)


def stress(scenario: StressScenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Step by step on ``scenario.url``; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    if scenario.url is None:
        raise UsageError("stress needs a server: url=http://127.0.0.1:8000")
    stopped = False
    cells: list[dict[str, Any]] = []
    side = Side(url=scenario.url, name=scenario.name, pid=scenario.pid)
    with Session(scenario, "stress", {"a": side}, display) as session:
        try:
            display.expect(1 + len(list(steps(scenario))))
            session.warm_up()
            _climb(session, scenario, cells)
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    records = session.records()
    runs = [run for run in session.runs if run["phase"] == "measure" and not run["set_aside"]]
    peak = max((run["peak_in_flight"] for run in runs), default=0)
    summary = summarise(records[records["run"].isin([run["run"] for run in runs])], peak)
    summary |= server_use(session.samples(), "server_a", runs, tokens=summary["output_tokens"], cost=scenario.cost)
    summary |= evaluate(scenario, cells, stopped=stopped)
    return session.conclude(summary, stopped=stopped)


def steps(scenario: StressScenario) -> Iterator[float]:
    """The loads to apply, rising, the last one ``maximum``; whole numbers of users."""
    load = scenario.first
    while load < scenario.maximum:
        yield load
        grown = load * scenario.growth
        load = grown if scenario.users is None else max(load + 1, float(round(grown)))
    yield scenario.maximum if scenario.users is None else float(math.floor(scenario.maximum))


def _climb(session: Session, scenario: StressScenario, cells: list[dict[str, Any]]) -> None:
    """Apply the steps, until one breaks the objective or twice found the load generator not well."""
    for number, load in enumerate(steps(scenario)):
        for _ in range(2):
            found = _step(session, scenario, number, load)
            cells.append(found)
            if not found["ill_health"]:
                break
        if found["ill_health"] or found["kept"] is False:
            return


def _step(session: Session, scenario: StressScenario, number: int, load: float) -> dict[str, Any]:
    name = say(f"load_{scenario.of}", scenario.lang, value=load)
    session.display.begin(name)
    applied = {"users": int(load)} if scenario.users is not None else {"rate_per_s": load}
    run = session.send("a", number, "measure", max_in_flight=scenario.max_in_flight, **applied)
    session.display.end()
    records = session.records()
    records = records[records["run"] == run["run"]].sort_values("scheduled_s")
    broke, unsure = broken(scenario, records, overflowed=bool(run.get("overflowed")))
    run["set_aside"] = bool(run["ill_health"])
    found = cell(records, applied)
    found["kept"] = None if run["ill_health"] or (unsure and not broke) else not broke
    return found | {"broke": broke, "ill_health": run["ill_health"], "run": run["run"]}


def broken(scenario: StressScenario, records: pd.DataFrame, *, overflowed: bool) -> tuple[list[dict[str, Any]], bool]:
    """What a step broke beyond doubt, the farthest over its limit first; and whether anything else is over its limit,
    but on too few requests to be certain.

    A bound on the 95th percentile is one on a share: at most 5 % of the answers may take longer.
    """
    objective, alpha = scenario.objective, scenario.verdict.alpha
    found: list[dict[str, Any]] = []
    unsure = False
    answered = records[records["ok"]]
    failed, total = len(records) - len(answered), len(records)
    if overflowed:
        found.append({"key": "broke_queue", "excess": math.inf, "values": {"limit": scenario.max_in_flight}})
    if objective.max_error_rate is not None and total and failed / total > objective.max_error_rate:
        if wilson(failed, total, alpha).low > objective.max_error_rate:
            kinds = ", ".join(f"{kind} {count}" for kind, count in records["error"].value_counts().items())
            values = {"failed": failed, "total": total, "limit": objective.max_error_rate, "errors": kinds}
            excess = failed / total / objective.max_error_rate if objective.max_error_rate else math.inf
            found.append({"key": "broke_errors", "excess": excess, "values": values})
        else:
            unsure = True
    for key, limits in (
        ("broke_latency", Limits(latency_ms=objective.max_p95_latency_ms)),
        ("broke_ttft", Limits(ttft_ms=objective.max_p95_ttft_ms)),
    ):
        limit = limits.latency_ms or limits.ttft_ms
        if limit is None or not len(answered):
            continue
        kept = good_requests(answered, limits)
        share = 1 - float(kept.mean())
        if share > 0.05:
            if share_interval(kept.tolist(), alpha).high < 0.95:
                found.append({"key": key, "excess": share / 0.05, "values": {"share": share, "limit": limit}})
            else:
                unsure = True
    if objective.max_avg_latency_ms is not None and len(answered):
        average = 1000 * float(answered["latency_scheduled_s"].mean())
        if average > objective.max_avg_latency_ms:
            values = {"value": average, "limit": objective.max_avg_latency_ms}
            found.append({"key": "broke_avg", "excess": average / objective.max_avg_latency_ms, "values": values})
    found.sort(key=lambda one: -one["excess"])
    return [{"key": one["key"], "values": one["values"]} for one in found], unsure


def knee(cells: Sequence[dict[str, Any]], of: str) -> dict[str, Any]:
    """Where queueing begins, from at least two steps whose requests were answered.

    Returns:
        ``reached`` (whether the load went beyond it), ``why_not``, ``users`` (requests in work at once), ``qps`` and
        ``rate_per_s`` (highest throughput), ``latency_ms`` (of the first step); figures are None where it was not
        reached.
    """
    nothing: dict[str, Any] = dict.fromkeys(("users", "qps", "rate_per_s", "latency_ms"))
    usable = [found for found in cells if found["latency_avg_ms"] is not None and found["qps"]]
    if len(usable) < 2:
        return {"reached": False, "why_not": None, **nothing}
    most = max(found["qps"] for found in usable)
    best = statistics.fmean(found["qps"] for found in usable if found["qps"] >= PLATEAU * most)
    alone = usable[0]["latency_avg_ms"]
    users = best * alone / 1000
    at, last = (users, usable[-1]["users"]) if of == "users" else (best, usable[-1]["rate_per_s"])
    if last < ROOM * at:
        return {"reached": False, "why_not": "beyond", **nothing}
    if usable[0]["qps"] >= PLATEAU * most:
        return {"reached": False, "why_not": "before", **nothing}
    found = {"users": users, "qps": best, "rate_per_s": best, "latency_ms": alone}
    return {"reached": True, "why_not": None, **found}


def evaluate(scenario: StressScenario, cells: list[dict[str, Any]], *, stopped: bool) -> dict[str, Any]:
    """The verdict and what it rests on."""
    lang, of = scenario.lang, scenario.of
    valid = [found for found in cells if not found["ill_health"]]
    found = knee(valid, of)
    reasons = []
    held = [one for one in valid if one["kept"] is not False]
    last = cells[-1] if cells else None

    def load(one: dict[str, Any]) -> str:
        return say(f"load_{of}", lang, value=one[of])

    broke = None
    if last is not None and last["kept"] is False:
        broke = {of: last[of], "what": last["broke"]}
        what = "; ".join(say(one["key"], lang, **one["values"]) for one in last["broke"])
        reasons.append(say("stress_broke", lang, load=load(last), what=what))
        if held:
            reasons.append(say("stress_held_before", lang, load=load(held[-1])))
    elif last is not None and last["ill_health"]:
        reasons.append(say("stress_client", lang, load=load(last), reason="; ".join(last["ill_health"])))
    elif last is not None and not stopped:
        reasons.append(say("stress_held", lang, load=load(last)))
    if found["reached"]:
        figures = {name: value for name, value in found.items() if isinstance(value, float)}
        reasons.append(say(f"stress_knee_{of}", lang, **figures))
    elif found["why_not"] is not None:
        reasons.append(say(f"stress_knee_{found['why_not']}", lang))
    verdict: Answer = "PASS"
    if last is None or stopped:
        verdict = "NO VERDICT"
    elif not any(one["qps"] for one in cells):
        verdict = "INVALID"
        reasons.insert(0, say("none_succeeded", lang, total=sum(one["requests"] for one in cells)))
    elif last["ill_health"]:
        verdict = "INVALID"
    elif broke is not None and scenario.must_hold is not None and last[of] <= scenario.must_hold:
        verdict = "FAIL"
    return {
        "kind": "stress",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "objective": scenario.objective.model_dump(exclude_none=True) | {"must_hold": scenario.must_hold},
        "reasons": reasons,
        "knee": found,
        "broke": broke,
        "cells": cells,
    }
