"""``soak``: one server under a steady load for as long as asked; does it get slower, or hold more and more?

The load is sent in cells. One that is finished is in the manifest, so that a soak that was killed goes on with the
next (``python -m benchmarks resume FOLDER``); each gives one value to each series, and a robust trend over the cells
decides (:mod:`benchmarks.trend`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, model_validator

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Scenario
from benchmarks.errors import UsageError
from benchmarks.measure import missed_objectives
from benchmarks.progress import Display
from benchmarks.sampler import increase, server_use
from benchmarks.session import Session, Side
from benchmarks.stats import percentile
from benchmarks.summary import summarise
from benchmarks.texts import say
from benchmarks.trend import MIN_VALUES, grows, trend
from benchmarks.verdict import EXIT_CODES, Answer
from runconfig import RunConfig

DESCRIPTION = """\
Send a steady load to one server for duration_s, in cells of cell_s, and look for a drift of its latency, memory, open
files and threads. Ends with 1 when one of them grew by more than its limit (or the objective was missed), 0 when all
such growth is ruled out, 3 when neither can be said yet. Killed or interrupted, it goes on with
python -m benchmarks resume FOLDER.

common keys: url, duration_s=1200, cell_s=60, rate_per_s=4 users=null (or users=2 rate_per_s=null), pid or cgroup (of
the server: without one its memory and files are known only if its /metrics tells them), limits.latency_p50=0.25 (share
per hour), limits.latency_p95, limits.memory_mb (per hour), limits.open_files, limits.threads, dialect, out, lang=en|zh
"""
NEIGHBOURS_CORES = 0.1  # so much more CPU used by others over the soak makes a slower server no fault of its own
MIN_REQUESTS = 20  # in a cell, for its p50 and p95 to be values of a series


class GrowthLimits(RunConfig):
    """From how much growth per hour on it is a fault. Less is allowed, however certain it is."""

    latency_p50: Annotated[float, Field(gt=0)] = 0.25
    """Of the median latency, as a share of what it was at first; for streams also of the time to first token."""
    latency_p95: Annotated[float, Field(gt=0)] = 0.5
    """Of the 95th percentile, as a share of what it was at first."""
    memory_mb: Annotated[float, Field(gt=0)] = 30.0
    """Of the server's memory, MiB."""
    open_files: Annotated[float, Field(gt=0)] = 12.0
    threads: Annotated[float, Field(gt=0)] = 12.0


class SoakScenario(Scenario):
    """A scenario that lasts, and what may grow meanwhile."""

    cell_s: Annotated[float, Field(gt=0)] = 60.0
    """Length of one cell, seconds; at least ten cells are needed for an answer."""
    limits: GrowthLimits = GrowthLimits()

    @model_validator(mode="after")
    def _lasts(self) -> SoakScenario:
        if self.duration_s is None:
            raise ValueError("a soak needs duration_s: it lasts as long as asked")
        if self.requests is not None:
            raise ValueError("a soak ends by duration_s: leave requests out")
        if self.duration_s < self.cell_s:
            raise ValueError(f"duration_s={self.duration_s:g} is shorter than one cell (cell_s={self.cell_s:g})")
        return self


@dataclass(frozen=True, slots=True)
class Series:
    """One figure over the cells; a cell that cannot state it has None."""

    name: str
    unit: str
    limit: float
    """Per hour; a share of the first values if ``relative``, else in ``unit``."""
    relative: bool
    by_cell: list[float | None]


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "soak",
        DESCRIPTION,
        "soak benchmarks/configs/soak.yml url=http://127.0.0.1:8000 pid=4711 duration_s=1200",
        "resume runs/latest",
    )
    return measure(SoakScenario, parser.parse_args(words), soak)


def soak(scenario: SoakScenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Load ``scenario.url`` cell by cell; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
        InterruptedRunError: Ctrl-C; the finished cells are kept and judged as far as they go.
    """
    if scenario.url is None:
        raise UsageError("soak needs a server: url=http://127.0.0.1:8000")
    lengths = cells(scenario)
    side = Side(url=scenario.url, name=scenario.name, pid=scenario.pid)
    stopped = False
    with Session(scenario, "soak", {"a": side}, display) as session:
        display.expect(len(lengths) + 1)
        try:
            session.warm_up()
            for number, seconds in enumerate(lengths):
                display.begin(say("soak_cell", scenario.lang, cell=number + 1, cells=len(lengths)))
                found = session.send("a", number, "measure", duration_s=seconds, requests=None)
                display.end()
                if found["requests"] and found["failed"] == found["requests"]:
                    break  # nobody is there any more: hours of refusals say nothing
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    runs = [found for found in session.runs if found["phase"] == "measure"]
    records, samples = session.records(), session.samples()
    measured = records[(records["phase"] == "measure") & records["run"].isin([run["run"] for run in runs])]
    users = scenario.users or max((found["peak_in_flight"] for found in runs), default=0)
    summary: dict[str, Any] = summarise(measured, users)
    summary |= server_use(samples, "server_a", runs, tokens=summary["output_tokens"], cost=scenario.cost)
    table = table_of(runs, measured, samples)
    summary["cells"] = table.astype(object).where(table.notna(), None).to_dict("records")
    summary["series"] = [
        judge(series, table["at_s"].tolist(), scenario.verdict.alpha) for series in series_of(scenario, table)
    ]
    summary["neighbours_grew"] = neighbours_grew(table, scenario.verdict.alpha)
    if summary["neighbours_grew"]:
        for series in summary["series"]:
            if series["name"].startswith(("latency", "ttft")) and series["verdict"] == "FAIL":
                series["verdict"] = "NO VERDICT"
    verdict, reasons = conclude(scenario, summary, runs, stopped=stopped)
    summary |= {
        "kind": "soak",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "objective": scenario.objective.model_dump(exclude_none=True),
        "reasons": reasons,
    }
    return session.conclude(summary, stopped=stopped)


def cells(scenario: SoakScenario) -> list[float]:
    """Seconds of each cell. A rest shorter than half a cell is left out: it would be a value with more noise."""
    assert scenario.duration_s is not None
    whole = max(1, math.floor(scenario.duration_s / scenario.cell_s + 1e-9))
    rest = scenario.duration_s - whole * scenario.cell_s
    return [scenario.cell_s] * whole + ([rest] if rest >= scenario.cell_s / 2 else [])


def table_of(runs: Sequence[dict[str, Any]], measured: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell: its middle in seconds, requests, and the value of each series; NaN where unknown.

    Latencies of a cell in which the load generator was not well are the generator's, and unknown.
    """
    own = {name: samples[samples["source"] == name] for name in ("server_a", "metrics_a")}
    rows = []
    for run in runs:
        records = measured[measured["run"] == run["run"]]
        good = records[records["ok"]]
        row: dict[str, Any] = {
            "cell": run["pair"],
            "at_s": (run["started_s"] + run["ended_s"]) / 2,
            "requests": run["requests"],
            "failed": run["failed"],
            "ill_health": list(run["ill_health"]),
        }
        for name, column, q in (
            ("latency_p50", "latency_scheduled_s", 50),
            ("latency_p95", "latency_scheduled_s", 95),
            ("ttft_p50", "ttft_scheduled_s", 50),
        ):
            values = good[column].dropna().tolist()
            known = len(values) >= MIN_REQUESTS and not run["ill_health"]
            row[name] = 1000 * percentile(values, q) if known else math.nan
        for name in ("memory_used_mb", "open_files", "threads"):
            read = [_median(found, name, run) for found in own.values()]
            row[name] = next((value for value in read if not math.isnan(value)), math.nan)
        row["neighbours_cores"] = _neighbours(samples, run)
        rows.append(row)
    columns = ["cell", "at_s", "requests", "failed", "ill_health", "latency_p50", "latency_p95", "ttft_p50"]
    return pd.DataFrame(rows, columns=[*columns, "memory_used_mb", "open_files", "threads", "neighbours_cores"])


def series_of(scenario: SoakScenario, table: pd.DataFrame) -> list[Series]:
    """The figures that can be followed here: those of which at least one cell has a value."""
    limits = scenario.limits
    every = (
        ("latency_p50", "ms", limits.latency_p50, True),
        ("latency_p95", "ms", limits.latency_p95, True),
        ("ttft_p50", "ms", limits.latency_p50, True),
        ("memory_used_mb", "MiB", limits.memory_mb, False),
        ("open_files", "", limits.open_files, False),
        ("threads", "", limits.threads, False),
    )
    found = []
    for name, unit, limit, relative in every:
        values = [None if math.isnan(value) else float(value) for value in table[name]]
        if any(value is not None for value in values):
            found.append(Series(name, unit, limit, relative, values))
    return found


def judge(series: Series, at_s: Sequence[float], alpha: float) -> dict[str, Any]:
    """Does it grow by its limit or more? ``alpha`` is shared by the six series there can be (Bonferroni)."""
    known = [(float(at), value) for at, value in zip(at_s, series.by_cell, strict=True) if value is not None]
    times, values = [at for at, _ in known], [value for _, value in known]
    # What it was at first: a quarter of the cells, so that one slow cell does not set the scale.
    first = percentile(values[: max(1, len(values) // 4)], 50)
    limit = series.limit * first if series.relative else series.limit
    answer, found = grows(times, values, limit, alpha / 6) if limit > 0 else ("NO VERDICT", None)
    return {
        "name": series.name,
        "unit": series.unit,
        "at_s": [float(at) for at in at_s],
        "values": series.by_cell,
        "first": first,
        "slope_per_hour": None if found is None else found.slope,
        "slope_low": None if found is None else found.low,
        "slope_high": None if found is None else found.high,
        "p_value": None if found is None else found.p_value,
        "limit_per_hour": limit,
        "verdict": answer,
    }


def neighbours_grew(table: pd.DataFrame, alpha: float) -> bool:
    """Did other processes of the server's machine use more and more CPU? Then a latency that rises is not its own."""
    known = table[table["neighbours_cores"].notna()]
    if len(known) < MIN_VALUES:
        return False
    found = trend(known["at_s"].tolist(), known["neighbours_cores"].tolist(), alpha)
    lasted = float(known["at_s"].iloc[-1] - known["at_s"].iloc[0])
    return found.p_value < alpha and found.slope * lasted >= NEIGHBOURS_CORES


def conclude(
    scenario: SoakScenario, summary: dict[str, Any], runs: Sequence[dict[str, Any]], *, stopped: bool
) -> tuple[Answer, list[str]]:
    """The verdict over all series, and the sentences that explain it."""
    lang = scenario.lang
    ill = [
        say("soak_cell_ill", lang, cell=run["pair"] + 1, reason=run["ill_health"][0])
        for run in runs
        if run["ill_health"]
    ]
    if not summary["successful_requests"]:
        return "INVALID", [say("none_succeeded", lang, total=summary["total_requests"])]
    if len(ill) > len(runs) / 2:
        return "INVALID", ill
    last = runs[-1]
    gone = bool(last["requests"]) and last["failed"] == last["requests"]
    missed = missed_objectives(scenario.objective, summary)
    sentences = [_sentence(series, scenario) for series in summary["series"]]
    if gone:
        missed = [say("soak_gone", lang, cell=last["pair"] + 1), *missed]
    answers = {series["verdict"] for series in summary["series"]}
    if stopped:
        sentences = [say("soak_stopped", lang, cells=len(runs)), *sentences]
    unwell = [say("soak_ill", lang, cells=len(ill))] if ill else []
    if summary["neighbours_grew"]:
        unwell.append(say("soak_neighbours", lang))
    verdict: Answer = (
        "FAIL" if missed or "FAIL" in answers else "NO VERDICT" if stopped or "NO VERDICT" in answers else "PASS"
    )
    return verdict, missed + sentences + unwell


def _sentence(series: dict[str, Any], scenario: SoakScenario) -> str:
    lang, what = scenario.lang, say(f"soak_{series['name']}", scenario.lang)
    known = sum(value is not None for value in series["values"])
    if series["slope_per_hour"] is None:
        return say("soak_short", lang, what=what, known=known, needed=MIN_VALUES)
    unit = f" {series['unit']}" if series["unit"] else ""
    shown = {key: f"{series[key]:+,.3g}{unit}" for key in ("slope_per_hour", "slope_low", "slope_high")}
    key = {"PASS": "soak_steady", "FAIL": "soak_grows"}.get(series["verdict"], "soak_unsure")
    limit = f"{series['limit_per_hour']:,.3g}{unit}"
    return say(key, lang, what=what, limit=limit, p=series["p_value"], **shown)


def _median(rows: pd.DataFrame, column: str, run: dict[str, Any]) -> float:
    inside = rows[(rows["at_s"] >= run["started_s"]) & (rows["at_s"] <= run["ended_s"])]
    return float(inside[column].median())


def _neighbours(samples: pd.DataFrame, run: dict[str, Any]) -> float:
    """Cores that neither the server nor the load generator used; NaN where the server's own use is not known."""
    used = [
        increase(samples[samples["source"] == name], "cpu_s", [run]) for name in ("machine", "server_a", "generator")
    ]
    machine, server, generator = used
    if machine is None or server is None or generator is None:
        return math.nan
    return max(0.0, machine - server - generator) / float(run["ended_s"] - run["started_s"])
