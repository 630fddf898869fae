"""``smoke``: does a server answer, and how fast? Seconds, three prompts; for a plain Ollama too.

First one request after the other, then a few users at once. Beside the usual results the folder gets
``ollama_metrics.jsonl``, one line for each request, and ``system_metrics.jsonl``, one for each sample of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from benchmarks.command_line import measure, scenario_parser
from benchmarks.config import Scenario
from benchmarks.errors import UsageError
from benchmarks.measure import missed_objectives
from benchmarks.progress import Display
from benchmarks.sampler import server_use
from benchmarks.session import Session, Side, disk_is_not_full
from benchmarks.summary import summarise
from benchmarks.texts import say
from benchmarks.verdict import EXIT_CODES, Answer

DESCRIPTION = """\
Send three short prompts to one server: `iterations` requests one after the other (latency), then `users` at once for
`duration_s` (requests per second). Ends with 1 when a request failed. For a plain Ollama: ollama=URL model=NAME.

common keys: url or ollama, model, iterations=10, users=2, duration_s=30, max_tokens=32, dialect=chat_stream, pid, out,
lang=en|zh
"""
SCENARIO = Path(__file__).parent / "configs" / "smoke.yml"


class SmokeScenario(Scenario):
    """``users`` and ``duration_s`` are those of the second part."""

    iterations: Annotated[int, Field(gt=0, le=10_000)] = 10
    """Requests of the first part, one after the other."""


def main(words: Sequence[str]) -> int:
    parser = scenario_parser(
        "smoke",
        DESCRIPTION,
        "smoke url=http://127.0.0.1:8000",
        "smoke ollama=http://127.0.0.1:11434 model=qwen3:0.6b",
        scenario=SCENARIO,
    )
    return measure(SmokeScenario, parser.parse_args(words), smoke)


def smoke(scenario: SmokeScenario, display: Display) -> tuple[int, dict[str, Any]]:
    """Try ``scenario.url``; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
        InterruptedRunError: Ctrl-C; what was measured is kept.
    """
    if scenario.url is None:
        raise UsageError("smoke needs a server: url=http://127.0.0.1:8000, or ollama=http://127.0.0.1:11434 model=NAME")
    if scenario.users is None:
        raise UsageError("smoke needs users, not rate_per_s: its second part is a closed loop")
    side = Side(url=scenario.url, name=scenario.name, pid=scenario.pid)
    stopped = False
    with Session(scenario, "smoke", {"a": side}, display) as session:
        display.expect(3)
        try:
            display.begin(say("smoke_latency", scenario.lang, requests=scenario.iterations))
            session.send("a", 0, "measure", users=1, requests=scenario.iterations, duration_s=None)
            display.end()
            display.begin(say("smoke_qps", scenario.lang, users=scenario.users))
            session.send("a", 1, "measure", requests=None)
            display.end()
            session.complete = True
        except KeyboardInterrupt:
            stopped = True
    records, samples = session.records(), session.samples()
    with disk_is_not_full(session.folder):
        write_lines(session.folder / "ollama_metrics.jsonl", request_lines(records))
        write_lines(session.folder / "system_metrics.jsonl", system_lines(samples, session.created_at.timestamp()))
    runs = [found for found in session.runs if found["phase"] == "measure"]
    one_by_one, at_once = (records[(records["phase"] == "measure") & (records["pair"] == part)] for part in (0, 1))
    summary: dict[str, Any] = summarise(at_once, scenario.users)
    summary["latency_test"] = summarise(one_by_one, 1) | {"iterations": scenario.iterations}
    summary |= server_use(
        samples,
        "server_a",
        [run for run in runs if run["pair"] == 1],
        tokens=summary["output_tokens"],
        cost=scenario.cost,
    )
    reasons = [reason for found in runs for reason in found["ill_health"]]
    missed = missed_objectives(scenario.objective, summary)
    failed = sum(not ok for ok in one_by_one["ok"])
    if failed:
        missed.append(say("smoke_failed", scenario.lang, failed=failed, total=len(one_by_one)))
    verdict: Answer = "INVALID" if reasons else "FAIL" if missed else "NO VERDICT" if stopped else "PASS"
    summary |= {
        "kind": "smoke",
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "objective": scenario.objective.model_dump(exclude_none=True),
        "reasons": reasons + missed,
    }
    return session.conclude(summary, stopped=stopped)


def request_lines(records: pd.DataFrame) -> list[dict[str, Any]]:
    """One line for each measured request; ``response`` is None where there was none, latency in milliseconds."""
    measured = records[records["phase"] == "measure"].sort_values("sent_s")
    return [
        {
            "response": None if pd.isna(row["output_text"]) else str(row["output_text"]),
            "latency_ms": 1000 * float(row["end_s"] - row["sent_s"]),
            "status_code": None if pd.isna(row["status"]) else int(row["status"]),
            "timestamp": _moment(float(row["wall_start"])),
        }
        for _, row in measured.iterrows()
    ]


def system_lines(samples: pd.DataFrame, zero: float) -> list[dict[str, Any]]:
    """One line for each sample of the machine.

    Args:
        zero: Unix time of the samples' zero.
    """
    machine = samples[samples["source"] == "machine"]
    names = ("cpu_percent", "memory_percent", "memory_used_mb")
    return [
        {"timestamp": _moment(zero + row["at_s"])} | {name: None if pd.isna(row[name]) else row[name] for name in names}
        for _, row in machine.iterrows()
    ]


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")
