"""``compare``: two servers, interleaved runs, one verdict.

Order A B, B A, A B, ...: what drifts in the machine meets both sides alike. (``python -m benchmarks.simulate``: with
a drift of 5 %, AAAAA BBBBB and Welch's test call two equal servers different in 13 to 20 % of comparisons, this order
and :func:`benchmarks.stats.compare_pairs` in 3 to 4 %.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np
import pandas as pd

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Limits, Metric, Scenario, VerdictRules
from benchmarks.errors import UsageError
from benchmarks.goodput import good_requests, share_interval
from benchmarks.progress import Display
from benchmarks.quality import answers, judge
from benchmarks.records import Arm
from benchmarks.results import measured_records
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side
from benchmarks.stats import (
    Floats,
    PairedComparison,
    compare_pairs,
    independent_shares,
    percentile_interval,
    ratio_of_batches,
    resampled_mean,
    resampled_percentile,
    resampled_rate,
)
from benchmarks.summary import HIGHER_IS_BETTER, batches_of_run, metric_of_run, summarise
from benchmarks.verdict import (
    EXIT_CODES,
    Finding,
    ShareLoss,
    decide,
    guards_that_count,
    judge_errors,
    judge_guards,
    judge_lengths,
    judge_quality,
    judge_speed,
)

DESCRIPTION = """\
Run two servers in turns (A B, B A, A B, ...) and decide whether B may replace A: one metric that is named before
(verdict.primary), tested over pairs of runs, and the answers compared beside it. A candidate that is faster and
worse fails.

common keys: a, b, pairs=8, users, duration_s (of one run), calls=FILE.jsonl, verdict.primary=qps|latency_p50|...,
verdict.margin=0.05, verdict.guards.latency_p95=0.15, verdict.max_accuracy_drop=0.03, a_pid, b_pid, out, lang=en|zh
"""
ARMS: tuple[Arm, Arm] = ("a", "b")
DRAWS = 400  # of each run's metric from its own requests; 2,000 resamples choose among them
SHARES = ("error_rate", "goodput")


@dataclass(frozen=True, slots=True)
class Looks:
    """When it is judged: after how many pairs, each with the level of error that is its own."""

    levels: Mapping[int, float]
    """Number of pairs -> two-sided level, rising."""
    budget_s: float | None = None
    """No pair is begun that would end later; null is without end."""

    @property
    def last(self) -> int:
        return max(self.levels)


@dataclass(slots=True)
class Progress:
    """What was done, and how each look came out."""

    pairs: int = 0
    set_aside: int = 0
    looks: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "all_pairs"
    """all_pairs, decided, or budget."""


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
    return compare_in_looks(scenario, display, Looks({scenario.pairs: scenario.verdict.alpha}), sides=sides)


def compare_in_looks(
    scenario: Scenario,
    display: Display,
    looks: Looks,
    *,
    kind: str = "compare",
    sides: dict[Arm, Side] | None = None,
) -> tuple[int, dict[str, Any]]:
    """:func:`compare`, judged at each of ``looks`` until it is decided."""
    _check(scenario)
    if texts_are_compared(scenario):
        scenario = scenario.model_copy(update={"keep_texts": True})
    stopped = False
    started = time.monotonic()
    progress = Progress()
    with Session(scenario, kind, sides or _sides(scenario), display) as session:
        display.expect(2 * looks.last + 2 * (scenario.cover_calls or scenario.warmup_s > 0))
        try:
            session.warm_up()
            _run_pairs(session, scenario, display, looks, progress, started)
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    level = looks.levels.get(progress.pairs)
    summary = evaluate(
        scenario, session.records(), session.samples(), session.runs, complete=session.complete, level=level
    )
    if session.complete and level is None:
        too_few = {"pairs": progress.pairs, "needed": min(looks.levels), "budget_s": looks.budget_s}
        _refuse(summary, Finding("completeness", "NO VERDICT", "budget_spent", too_few))
    summary["sequential"] = {
        "levels": {str(pairs): value for pairs, value in looks.levels.items()},
        "looks": progress.looks,
        "stopped": "interrupted" if stopped else progress.stopped,
        "pairs": progress.pairs,
        "budget_s": looks.budget_s,
        "seconds": time.monotonic() - started + session.earlier_s,
    }
    return session.conclude(summary, stopped=stopped)


def order(pair: int) -> tuple[Arm, ...]:
    """A B, then B A, and so on."""
    return ARMS if pair % 2 == 0 else ARMS[::-1]


def texts_are_compared(scenario: Scenario) -> bool:
    """Sampled texts differ by chance; categories are compared as they are."""
    return scenario.dialect != "classify" and scenario.temperature == 0


def _check(scenario: Scenario) -> None:
    rules = scenario.verdict
    if scenario.rate_per_s is not None:
        for metric in (rules.primary, *rules.guards):
            if metric in HIGHER_IS_BETTER:
                raise UsageError(
                    f"at a constant rate {metric} is what the schedule makes it: set verdict.primary to a latency, for "
                    "example latency_p50, or users instead of rate_per_s"
                )
    wanted = (rules.primary, *rules.guards, *rules.limits.model_dump(exclude_none=True))
    of_streams = [name for name in wanted if name.startswith(("ttft", "tpot"))]
    if of_streams and not scenario.dialect.endswith("_stream"):
        raise UsageError(f"{of_streams[0]} needs a dialect that streams, not {scenario.dialect}")
    if "goodput" in rules.guards and rules.limits == Limits():
        raise UsageError("verdict.guards.goodput needs verdict.limits.latency_ms, .ttft_ms or .tpot_ms")


def _run_pairs(
    session: Session, scenario: Scenario, display: Display, looks: Looks, progress: Progress, started: float
) -> None:
    """Pairs until a look decides, the last look, or the end of the budget.

    A pair in which the generator was not well is marked and done again at the end; what the servers did plays no part
    in that.
    """
    longest = 0.0
    while progress.pairs < looks.last:
        begun = time.monotonic()
        if looks.budget_s is not None and begun - started + session.earlier_s + longest > looks.budget_s:
            progress.stopped = "budget"
            return
        pair = progress.pairs + progress.set_aside
        both = []
        for arm in order(pair):
            display.begin(f"pair {pair + 1} of {looks.last + progress.set_aside}, {arm.upper()}")
            both.append(session.send(arm, pair, "measure"))
            display.end()
            time.sleep(scenario.pause_s)
        if any(run["ill_health"] for run in both) and progress.set_aside < scenario.spare_pairs:
            for run in both:
                run["set_aside"] = True
            progress.set_aside += 1
            display.expect(display.steps + 2)
            continue
        progress.pairs += 1
        # Runs of before a break took no time now.
        longest = max(longest, time.monotonic() - begun, sum(run["ended_s"] - run["started_s"] for run in both))
        level = looks.levels.get(progress.pairs)
        if level is not None and progress.pairs < looks.last:
            found = evaluate(scenario, session.records(), None, session.runs, complete=True, level=level)
            progress.looks.append({"pairs": progress.pairs, "level": level, "verdict": found["verdict"]})
            if found["verdict"] != "NO VERDICT":
                progress.stopped = "decided"
                return


def evaluate(
    scenario: Scenario,
    records: pd.DataFrame,
    samples: pd.DataFrame | None,
    runs: list[dict[str, Any]],
    *,
    complete: bool,
    level: float | None = None,
) -> dict[str, Any]:
    """The verdict and what it rests on, from records and what the generator said about each run.

    Args:
        samples: None for a look at what there is so far: what is only shown is left out.
        level: Two-sided level of error of this look; the rules' alpha when there is but one.
    """
    rules = scenario.verdict
    level = rules.alpha if level is None else level
    aside = [run for run in runs if run["set_aside"]]
    runs = [run for run in runs if not run["set_aside"]]
    measured = measured_records(records, aside)
    table = _runs(measured, runs, scenario)
    by_run = _by_run(measured)
    metrics = _compared_metrics(rules)
    comparisons = {name: _compare(table, by_run, name, level, scenario, samples is not None) for name in metrics}
    comparison = comparisons.pop(rules.primary)
    by_arm = {arm: measured[measured["arm"] == arm] for arm in ARMS}
    good = {"error_rate": Limits(), "goodput": rules.limits}
    losses: dict[str, ShareLoss | None] = {
        name: share_loss(by_arm, good[name], level, guards_that_count(rules)) for name in SHARES if name in rules.guards
    }
    fewest = min((row["requests"] - row["failed"] for row in table), default=0)
    said = {arm: answers(records[records["arm"] == arm]) for arm in ARMS}
    # All calls were covered before the first pair, so no look sees other categories than the look before.
    steady = scenario.dialect == "classify" and scenario.cover_calls
    quality = judge(said["a"], said["b"], rules.alpha if steady else level)
    lengths = judge_lengths(quality, rules)
    findings = [
        *_validity(runs),
        *([Finding("validity", "PASS", "set_aside", {"pairs": len(aside) // 2})] if aside else []),
        *([] if complete else [Finding("completeness", "NO VERDICT", "incomplete", {"pairs": len(table) // 2})]),
        *(
            [judge_speed(comparison, rules, fewest), *judge_guards(comparisons, losses, rules, level, fewest)]
            if lengths is None
            else [lengths]
        ),
        *(judge_errors(arm, int((~rows["ok"]).sum()), len(rows), rules, level) for arm, rows in by_arm.items()),
        *(judge_quality(quality, rules) if scenario.dialect == "classify" or texts_are_compared(scenario) else []),
    ]
    verdict = decide(findings)
    found = {
        "kind": "compare",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "findings": [asdict(finding) for finding in findings],
        "primary": rules.primary,
        "level": level,
        "comparison": None if comparison is None else asdict(comparison),
        "guards": {name: None if each is None else asdict(each) for name, each in comparisons.items()}
        | {name: None if each is None else asdict(each) for name, each in losses.items()},
        "quality": quality,
        "runs": table,
    }
    if samples is None:
        return found
    users = {
        arm: scenario.users or max((run["peak_in_flight"] for run in runs if run["arm"] == arm), default=0)
        for arm in ARMS
    }
    return found | {
        "pair_intervals": [] if comparison is None else _pair_intervals(by_run, table, scenario, level),
        "percentile_intervals": {arm: percentile_intervals(rows, rules.alpha) for arm, rows in by_arm.items()},
        "a": _figures(scenario, by_arm["a"], users["a"], samples, "server_a", _of(table, "a")),
        "b": _figures(scenario, by_arm["b"], users["b"], samples, "server_b", _of(table, "b")),
    }


def share_loss(by_arm: Mapping[Arm, pd.DataFrame], limits: Limits, level: float, guards: int) -> ShareLoss | None:
    """How many fewer of B's requests than of A's were answered within ``limits``; None where nothing was sent.

    Args:
        guards: So many share ``level`` where a guard may fail the candidate.
    """
    if not all(len(rows) for rows in by_arm.values()):
        return None
    a, b = (good_requests(by_arm[arm].sort_values("scheduled_s"), limits).tolist() for arm in ARMS)
    share_a, share_b = sum(a) / len(a), sum(b) / len(b)
    wide, strict = (
        independent_shares(share_a, share_interval(a, each), share_b, share_interval(b, each))
        for each in (level, level / guards)
    )
    return ShareLoss(share_a, share_b, wide, strict)


def percentile_intervals(rows: pd.DataFrame, alpha: float) -> dict[str, list[float] | None]:
    """Of the requests of one side, milliseconds: what chance among requests leaves open. Runs differ by more."""
    found: dict[str, list[float] | None] = {}
    for name in ("latency", "ttft", "tpot"):
        values = rows.loc[rows["ok"], _column(name)].dropna().to_numpy(float)
        for q in (50, 95, 99):
            interval = percentile_interval(values, q, alpha)
            found[f"{name}_p{q}_ms"] = None if interval is None else [1000 * interval.low, 1000 * interval.high]
    return found


def _refuse(summary: dict[str, Any], finding: Finding) -> None:
    """What was measured is not enough to be judged at all."""
    summary["findings"].insert(0, asdict(finding))
    summary["verdict"], summary["exit_code"] = finding.answer, EXIT_CODES[finding.answer]


def _by_run(measured: pd.DataFrame) -> dict[int, pd.DataFrame]:
    return {int(str(run)): records for run, records in measured.groupby("run")}


def _compared_metrics(rules: VerdictRules) -> list[Metric]:
    """Those that are compared by their ratio, the primary one first."""
    return [rules.primary, *(name for name in get_args(Metric) if name in rules.guards and name != rules.primary)]


def _figures(
    scenario: Scenario,
    records: pd.DataFrame,
    users: int,
    samples: pd.DataFrame,
    source: str,
    runs: list[dict[str, Any]],
) -> dict[str, Any]:
    """One side in a few numbers: how it answered, and what that took."""
    found = summarise(records, users)
    return found | server_use(samples, source, runs, tokens=found["output_tokens"], cost=scenario.cost)


def _of(table: list[dict[str, Any]], arm: Arm) -> list[dict[str, Any]]:
    return [row for row in table if row["arm"] == arm]


def _sides(scenario: Scenario) -> dict[Arm, Side]:
    if scenario.a is None or scenario.b is None:
        raise UsageError("two servers are needed: a=http://127.0.0.1:8001 b=http://127.0.0.1:8002")
    return {"a": Side(scenario.a, "A", scenario.a_pid), "b": Side(scenario.b, "B", scenario.b_pid)}


def _runs(measured: pd.DataFrame, runs: list[dict[str, Any]], scenario: Scenario) -> list[dict[str, Any]]:
    """One row per measured run, in the order they were done."""
    rules = scenario.verdict
    by_run = _by_run(measured)
    table = []
    for run in runs:
        if run["phase"] != "measure":
            continue
        records = by_run.get(run["run"], measured.iloc[:0])
        row = {key: run[key] for key in ("run", "arm", "pair", "started_s", "ended_s", "requests", "failed")}
        row |= {key: run[key] for key in ("client_cpu_share", "loop_lag_p50_s", "peak_in_flight")}
        row |= {name: metric_of_run(records, name) for name in ("qps", "latency_avg", "latency_p50")}
        row["metrics"] = {name: metric_of_run(records, name) for name in _compared_metrics(rules)}
        table.append(row | {"primary": row["metrics"][rules.primary]})
    return table


def _compare(
    table: list[dict[str, Any]],
    by_run: Mapping[int, pd.DataFrame],
    metric: Metric,
    level: float,
    scenario: Scenario,
    with_bootstrap: bool,
) -> PairedComparison | None:
    """Over the pairs that both sides ran; None with fewer than two, or when a run could not state the metric:
    leaving such pairs out would choose among the runs.
    """
    if any(row["metrics"][metric] is None for row in table):
        return None
    pairs: dict[int, dict[str, dict[str, Any]]] = {}
    for row in table:
        pairs.setdefault(row["pair"], {})[row["arm"]] = row
    whole = [rows for _, rows in sorted(pairs.items()) if len(rows) == 2]
    if len(whole) < 2:
        return None
    a, b = ([rows[arm]["metrics"][metric] for rows in whole] for arm in ARMS)
    if not with_bootstrap:
        return compare_pairs(a, b, level, resamples=0)
    chance = np.random.default_rng(scenario.seed)
    drawn = [[_draws(by_run[rows[arm]["run"]], metric, chance) for rows in whole] for arm in ARMS]
    within = None
    if all(each is not None for side in drawn for each in side):
        within = (np.stack(drawn[0]), np.stack(drawn[1]))  # type: ignore[arg-type]
    return compare_pairs(a, b, level, scenario.seed, within=within)


def _draws(records: pd.DataFrame, metric: Metric, chance: np.random.Generator) -> Floats | None:
    """``metric`` of one run, drawn anew from its own requests; None where they are too few."""
    good = records[records["ok"]].sort_values("end_s")
    if metric in HIGHER_IS_BETTER:
        parts = min(16, len(good) // 4)
        if parts < 2:
            return None
        amounts = np.ones(len(good)) if metric == "qps" else good["output_tokens"].fillna(0).to_numpy(float)
        ends = np.array_split(good["end_s"].to_numpy(float), parts)
        seconds = np.diff([float(records["scheduled_s"].min()), *(part[-1] for part in ends)])
        found = resampled_rate([part.sum() for part in np.array_split(amounts, parts)], seconds, DRAWS, chance)
    else:
        name, _, statistic = metric.partition("_")
        values = good[_column(name)].dropna().to_numpy(float)
        if statistic == "avg":
            found = resampled_mean(values, DRAWS, chance)
        else:
            found = resampled_percentile(values, float(statistic.removeprefix("p")), DRAWS, chance)
    return found if bool(np.isfinite(found).all() and (found > 0).all()) else None


def _column(name: str) -> str:
    return "tpot_s" if name == "tpot" else f"{name}_scheduled_s"


def _pair_intervals(
    by_run: Mapping[int, pd.DataFrame], table: list[dict[str, Any]], scenario: Scenario, level: float
) -> list[list[float] | None]:
    """For each whole pair, the interval of b / a from the noise within its two runs; None with too few answers."""
    batches = {
        (row["pair"], row["arm"]): batches_of_run(by_run[row["run"]], scenario.verdict.primary)
        for row in table
        if row["run"] in by_run
    }
    found: list[list[float] | None] = []
    for pair in sorted({row["pair"] for row in table}):
        a, b = batches.get((pair, "a")), batches.get((pair, "b"))
        if a is None or b is None:
            continue
        interval = ratio_of_batches(a, b, level) if a and b else None
        found.append(None if interval is None else [interval.low, interval.high])
    return found


def _validity(runs: list[dict[str, Any]]) -> list[Finding]:
    return [
        Finding("validity", "INVALID", "ill_health", {"run": run["run"], "reason": reason})
        for run in runs
        for reason in run["ill_health"]
    ]
