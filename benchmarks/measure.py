"""``run``: one server under one load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Objective, Scenario
from benchmarks.errors import UsageError
from benchmarks.progress import Display
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side
from benchmarks.summary import summarise
from benchmarks.verdict import EXIT_CODES, Answer

DESCRIPTION = """\
Send load to one server and write runs/NAME-TIME/ with every request (requests.parquet, requests.jsonl), samples of
CPU and memory (samples.parquet), summary.json, manifest.json and report.html. Ends with 1 when the scenario's
objective was missed.

common keys: url, users=8 (closed loop) or rate_per_s=20 users=null (open loop, arrivals.pattern=constant|poisson|...),
duration_s, requests, warmup_s, dialect=classify|inference|chat|chat_stream|..., calls=FILE.jsonl, pid (of the server,
to sample its CPU), out, lang=en|zh
"""


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "run",
        DESCRIPTION,
        "run benchmarks/configs/baseline.yml url=http://127.0.0.1:8000",
        "run benchmarks/configs/constant_rate.yml url=http://127.0.0.1:8000 rate_per_s=20",
    )
    return measure(Scenario, parser.parse_args(words), run)


def run(scenario: Scenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Measure ``scenario.url``; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    if scenario.url is None:
        raise UsageError("run needs a server: url=http://127.0.0.1:8000")
    side = Side(url=scenario.url, name=scenario.name, pid=scenario.pid)
    stopped = False
    with Session(scenario, "run", {"a": side}, display) as session:
        display.expect(2)
        try:
            session.warm_up()
            display.begin(f"{scenario.dialect} on {scenario.url}")
            session.send("a", 0, "measure")
            display.end()
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    records = session.records()
    measured = records[records["phase"] == "measure"]
    runs = [found for found in session.runs if found["phase"] == "measure"]
    users = scenario.users or max((found["peak_in_flight"] for found in runs), default=0)
    reasons = [reason for found in runs for reason in found["ill_health"]]
    summary = summarise(measured, users)
    summary |= server_use(session.samples(), "server_a", runs, tokens=summary["output_tokens"], cost=scenario.cost)
    if not summary["successful_requests"]:
        reasons.append(
            f"none of {summary['total_requests']} requests succeeded: {summary['errors'] or 'none was sent'}"
        )
    missed = missed_objectives(scenario.objective, summary)
    verdict: Answer = "INVALID" if reasons else "NO VERDICT" if stopped else "FAIL" if missed else "PASS"
    summary |= {
        "kind": "run",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "objective": scenario.objective.model_dump(exclude_none=True),
        "reasons": reasons + missed,
    }
    return session.conclude(summary, stopped=stopped)


def missed_objectives(objective: Objective, summary: dict[str, Any]) -> list[str]:
    """What the objective asked for and the run did not reach; a figure that could not be stated was not reached."""
    checks = (
        ("qps", objective.min_qps, True),
        ("avg_latency_ms", objective.max_avg_latency_ms, False),
        ("p95_latency_ms", objective.max_p95_latency_ms, False),
        ("error_rate", objective.max_error_rate, False),
    )
    found = []
    for name, limit, at_least in checks:
        if limit is None:
            continue
        value = summary[name]
        if value is None:
            found.append(f"{name} could not be stated from {summary['successful_requests']} requests")
        elif value < limit if at_least else value > limit:
            found.append(f"{name} is {value:.4g}, asked was {'at least' if at_least else 'at most'} {limit:g}")
    return found
