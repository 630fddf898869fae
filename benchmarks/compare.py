"""``compare``: two servers, interleaved runs, one verdict.

Order A B, B A, A B, ...: what drifts in the machine meets both sides alike. (By simulation, a 5 % drift makes
AAAA BBBB call two equal servers different in half of all comparisons, the interleaved order in 3 to 5 %.)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Scenario
from benchmarks.errors import UsageError
from benchmarks.progress import Display
from benchmarks.quality import answers, judge
from benchmarks.records import Arm
from benchmarks.report import write_report
from benchmarks.results import measured_records
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side, interrupted
from benchmarks.stats import PairedComparison, compare_pairs, ratio_of_batches
from benchmarks.summary import HIGHER_IS_BETTER, batches_of_run, metric_of_run, summarise
from benchmarks.verdict import EXIT_CODES, Finding, decide, judge_errors, judge_quality, judge_speed

DESCRIPTION = """\
Run two servers in turns (A B, B A, A B, ...) and decide whether B may replace A: one metric that is named before
(verdict.primary), tested over pairs of runs, and the answers compared beside it. A candidate that is faster and
worse fails.

common keys: a, b, pairs=8, users, duration_s (of one run), calls=FILE.jsonl, verdict.primary=qps|latency_p50|...,
verdict.margin=0.05, verdict.max_accuracy_drop=0.03, a_pid, b_pid, out, lang=en|zh
"""
ARMS: tuple[Arm, Arm] = ("a", "b")


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "compare",
        DESCRIPTION,
        "compare benchmarks/configs/classify.yml a=http://127.0.0.1:8001 b=http://127.0.0.1:8002 pairs=8",
    )
    return measure(Scenario, parser.parse_args(words), compare)


def compare(scenario: Scenario, display: Display, sides: dict[Arm, Side] | None = None) -> tuple[int, dict[str, Any]]:
    """Compare ``scenario.a`` with the candidate ``scenario.b``; write the results folder.

    Args:
        sides: Used instead of the scenario's URLs, by callers that know more about the servers.

    Returns:
        The exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    if scenario.rate_per_s is not None and scenario.verdict.primary in HIGHER_IS_BETTER:
        raise UsageError(
            f"at a constant rate {scenario.verdict.primary} is what the schedule makes it: set verdict.primary to a "
            "latency, for example latency_p50, or users instead of rate_per_s"
        )
    stopped = False
    with Session(scenario, "compare", sides or _sides(scenario), display) as session:
        display.expect(2 * scenario.pairs + 2 * (scenario.cover_calls or scenario.warmup_s > 0))
        try:
            session.warm_up()
            _run_pairs(session, scenario, display)
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    summary = evaluate(scenario, session.records(), session.samples(), session.runs, complete=session.complete)
    summary |= {"name": scenario.name, "folder": str(session.folder), "report": str(session.folder / "report.html")}
    session.keep(summary)
    write_report(session.folder, scenario.lang)
    if stopped:
        raise interrupted(session.folder)
    return int(summary["exit_code"]), summary


def order(pair: int) -> tuple[Arm, ...]:
    """A B, then B A, and so on."""
    return ARMS if pair % 2 == 0 else ARMS[::-1]


def _run_pairs(session: Session, scenario: Scenario, display: Display) -> None:
    """All pairs; one in which the generator was not well is marked and done again at the end."""
    pairs = list(range(scenario.pairs))
    for number, pair in enumerate(pairs, 1):
        both = []
        for arm in order(pair):
            display.begin(f"pair {number} of {len(pairs)}, {arm.upper()}")
            both.append(session.send(arm, pair, "measure"))
            display.end()
            time.sleep(scenario.pause_s)
        if any(run["ill_health"] for run in both) and len(pairs) < scenario.pairs + scenario.spare_pairs:
            for run in both:
                run["set_aside"] = True
            pairs.append(len(pairs))
            display.expect(display.steps + 2)


def evaluate(
    scenario: Scenario,
    records: pd.DataFrame,
    samples: pd.DataFrame,
    runs: list[dict[str, Any]],
    *,
    complete: bool,
) -> dict[str, Any]:
    """The verdict and what it rests on, from records and what the generator said about each run."""
    rules = scenario.verdict
    aside = [run for run in runs if run["set_aside"]]
    runs = [run for run in runs if not run["set_aside"]]
    measured = measured_records(records, aside)
    table = _runs(measured, runs, scenario)
    comparison = _compare(table, scenario)
    by_arm = {arm: measured[measured["arm"] == arm] for arm in ARMS}
    said = {arm: answers(records[records["arm"] == arm]) for arm in ARMS}
    quality = judge(said["a"], said["b"], rules.alpha)
    findings = [
        *_validity(runs),
        *([Finding("validity", "PASS", "set_aside", {"pairs": len(aside) // 2})] if aside else []),
        *([] if complete else [Finding("completeness", "NO VERDICT", "incomplete", {"pairs": len(table) // 2})]),
        judge_speed(comparison, rules),
        *(judge_errors(arm, int((~rows["ok"]).sum()), len(rows), rules) for arm, rows in by_arm.items()),
        # Sampled texts differ by chance.
        *(judge_quality(quality, rules) if scenario.dialect == "classify" or scenario.temperature == 0 else []),
    ]
    verdict = decide(findings)
    users = {
        arm: scenario.users or max((run["peak_in_flight"] for run in runs if run["arm"] == arm), default=0)
        for arm in ARMS
    }
    return {
        "kind": "compare",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "findings": [asdict(finding) for finding in findings],
        "primary": rules.primary,
        "comparison": None if comparison is None else asdict(comparison),
        "pair_intervals": [] if comparison is None else _pair_intervals(measured, table, scenario),
        "a": summarise(by_arm["a"], users["a"]) | server_use(samples, "server_a", _of(table, "a")),
        "b": summarise(by_arm["b"], users["b"]) | server_use(samples, "server_b", _of(table, "b")),
        "quality": quality,
        "runs": table,
    }


def _of(table: list[dict[str, Any]], arm: Arm) -> list[dict[str, Any]]:
    return [row for row in table if row["arm"] == arm]


def _sides(scenario: Scenario) -> dict[Arm, Side]:
    if scenario.a is None or scenario.b is None:
        raise UsageError("compare needs two servers: a=http://127.0.0.1:8001 b=http://127.0.0.1:8002")
    return {"a": Side(scenario.a, "A", scenario.a_pid), "b": Side(scenario.b, "B", scenario.b_pid)}


def _runs(measured: pd.DataFrame, runs: list[dict[str, Any]], scenario: Scenario) -> list[dict[str, Any]]:
    """One row per measured run, in the order they were done."""
    table = []
    for run in runs:
        if run["phase"] != "measure":
            continue
        records = measured[measured["run"] == run["run"]]
        row = {key: run[key] for key in ("run", "arm", "pair", "started_s", "ended_s", "requests", "failed")}
        row |= {key: run[key] for key in ("client_cpu_share", "loop_lag_p50_s", "peak_in_flight")}
        row |= {name: metric_of_run(records, name) for name in ("qps", "latency_avg", "latency_p50")}
        table.append(row | {"primary": metric_of_run(records, scenario.verdict.primary)})
    return table


def _compare(table: list[dict[str, Any]], scenario: Scenario) -> PairedComparison | None:
    """Over the pairs that both sides ran; None with fewer than two, or when a run could not state the metric:
    leaving such pairs out would choose among the runs.
    """
    if any(row["primary"] is None for row in table):
        return None
    found: dict[int, dict[str, float]] = {}
    for row in table:
        found.setdefault(row["pair"], {})[row["arm"]] = row["primary"]
    whole = [values for _, values in sorted(found.items()) if len(values) == 2]
    if len(whole) < 2:
        return None
    return compare_pairs(
        [values["a"] for values in whole], [values["b"] for values in whole], scenario.verdict.alpha, scenario.seed
    )


def _pair_intervals(
    measured: pd.DataFrame, table: list[dict[str, Any]], scenario: Scenario
) -> list[list[float] | None]:
    """For each whole pair, the interval of b / a from the noise within its two runs; None with too few answers."""
    batches = {
        (row["pair"], row["arm"]): batches_of_run(measured[measured["run"] == row["run"]], scenario.verdict.primary)
        for row in table
    }
    found: list[list[float] | None] = []
    for pair in sorted({row["pair"] for row in table}):
        a, b = batches.get((pair, "a")), batches.get((pair, "b"))
        if a is None or b is None:
            continue
        interval = ratio_of_batches(a, b, scenario.verdict.alpha) if a and b else None
        found.append(None if interval is None else [interval.low, interval.high])
    return found


def _validity(runs: list[dict[str, Any]]) -> list[Finding]:
    return [
        Finding("validity", "INVALID", "ill_health", {"run": run["run"], "reason": reason})
        for run in runs
        for reason in run["ill_health"]
    ]
