"""Results of a million requests: how long their analysis takes, against pandas reading the same file, and how much
memory; what a report of 100,000 requests weighs.

Each side is a process of its own, so that its peak of memory is its own; imports are not timed. The side of pandas
reads only the columns that the same percentiles need.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures.classification import interleave
from benchmarks.figures.table import Figure, ratio_figure
from benchmarks.results import PARQUET, RESULTS_VERSION, ROWS_OF_A_GROUP

REQUESTS = 1_000_000
REQUESTS_OF_A_REPORT = 100_000
EVENTS = 64
OURS = """
def peak():
    # getrusage's is the parent's where that was higher.
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
import json, sys, time
from pathlib import Path
from benchmarks.results import load, measured_records
from benchmarks.summary import event_gaps, summarise
import scipy.stats
folder = Path(sys.argv[1])
begin = time.perf_counter()
records = measured_records(load(folder, []), [])
found = summarise(records, 64)
if sys.argv[2] == "events":
    found |= event_gaps(folder / "requests.parquet", records["run"].unique().tolist()).summarise()
seconds = time.perf_counter() - begin
names = ("p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "ttft_p50_ms", "tpot_p50_ms", "event_gap_p50_ms")
print(json.dumps({"seconds": seconds, "mib": peak()}
    | {name: found.get(name) for name in names}))
"""
PANDAS = """
def peak():
    # getrusage's is the parent's where that was higher.
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
import json, sys, time
from pathlib import Path
import numpy as np, pandas as pd
path = Path(sys.argv[1]) / "requests.parquet"
columns = ["phase", "error", "scheduled_s", "end_s", "first_token_s", "last_token_s", "output_tokens"]
columns += ["tokens_first_event"] + (["event_gaps_s"] if sys.argv[2] == "events" else [])
begin = time.perf_counter()
rows = pd.read_parquet(path, columns=columns)
rows = rows[(rows["phase"] == "measure") & rows["error"].isna()]
latency = 1000 * np.percentile(rows["end_s"] - rows["scheduled_s"], [50, 95, 99])
ttft = 1000 * np.percentile(rows["first_token_s"] - rows["scheduled_s"], [50, 95, 99])
after = rows["output_tokens"] - rows["tokens_first_event"]
tpot = 1000 * np.percentile((rows["last_token_s"] - rows["first_token_s"]) / after, [50, 95, 99])
gap = None
if sys.argv[2] == "events":
    gaps = np.concatenate([row[1:] for row in rows["event_gaps_s"]])
    gap = 1000 * float(np.percentile(gaps, [50, 95, 99])[0])
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "mib": peak(),
    "p50_latency_ms": latency[0], "p95_latency_ms": latency[1], "p99_latency_ms": latency[2],
    "ttft_p50_ms": ttft[0], "tpot_p50_ms": tpot[0], "event_gap_p50_ms": gap}))
"""


def measure(_model: Path, folder: Path, pairs: int) -> list[Figure]:
    million = synthetic(folder / "million", REQUESTS, EVENTS)
    found = []
    for what, said in (("events", "with the gaps of 64 events each"), ("requests", "without events")):
        ours: list[float] = []
        pandas: list[float] = []
        peaks: list[float] = []

        def run_ours(what: str = what, ours: list[float] = ours, peaks: list[float] = peaks) -> None:
            said_by_us = ask(OURS, million, what)
            ours.append(said_by_us["seconds"])
            peaks.append(said_by_us["mib"])

        def run_pandas(what: str = what, pandas: list[float] = pandas) -> None:
            pandas.append(ask(PANDAS, million, what)["seconds"])

        interleave(max(3, min(pairs, 5)), run_pandas, run_ours, forget=(pandas, ours))
        name = f"1,000,000 requests, {said}"
        found.append(ratio_figure(f"{name}: analysis / pandas", pandas, ours, at_most=3.0, unit="s"))
        found.append(Figure.of(f"{name}: peak memory, GiB", max(peaks) / 1024, at_most=2.0))
    shutil.rmtree(million)
    report = synthetic(folder / "report", REQUESTS_OF_A_REPORT, EVENTS)
    from benchmarks.report import write_report

    size = write_report(report, "en").stat().st_size
    return [*found, Figure.of("report of 100,000 requests, MB", size / 1e6, at_most=5.0)]


def ask(program: str, folder: Path, what: str) -> dict[str, Any]:
    """What ``program`` prints about ``folder``; it is one of the two above."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), what], check=True, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def synthetic(folder: Path, requests: int, events: int, seed: int = 0) -> Path:
    """A results folder of ``requests`` streams of ``events`` events, seeded; one in a thousand failed."""
    from benchmarks.manifest import machine, software
    from benchmarks.sampler import COLUMNS as SAMPLES
    from benchmarks.summary import summarise

    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    with pq.ParquetWriter(folder / "requests.parquet", PARQUET, compression="zstd") as writer:
        for first in range(0, requests, ROWS_OF_A_GROUP):
            writer.write_table(_table(chance, first, min(ROWS_OF_A_GROUP, requests - first), events))
    manifest = {
        "results_version": RESULTS_VERSION,
        "kind": "run",
        "name": "synthetic",
        "created_at": "2026-11-23T00:00:00+00:00",
        "complete": True,
        "command": [],
        "scenario": {"dialect": "chat_stream", "users": 64, "rate_per_s": None, "arrivals": {"pattern": "constant"}},
        "workload": {"calls": 1000, "labelled": 0, "sha256": ""},
        "runs": [{"run": 0, "phase": "measure", "set_aside": False}],
        "sides": {},
        "broken_off_runs": [],
        "resumed_at": [],
        "created_unix": 0.0,
        "machine": machine(),
        "software": software(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    seconds = np.arange(0, requests / 500, 0.5)
    samples = {name: pa.nulls(len(seconds), pa.float64()) for name in SAMPLES}
    samples |= {"at_s": pa.array(seconds), "source": pa.array(["machine"] * len(seconds))}
    samples["cpu_percent"] = pa.array(chance.uniform(40, 60, len(seconds)))
    pq.write_table(pa.table(samples), folder / "samples.parquet")
    from benchmarks.results import load

    summary = summarise(load(folder), 64) | {"kind": "run", "name": "synthetic", "verdict": "PASS", "reasons": []}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _table(chance: np.random.Generator, first: int, rows: int, events: int) -> pa.Table:
    """``rows`` requests from number ``first``, 500 a second: exponential TTFT, gamma gaps."""
    number = np.arange(first, first + rows)
    due = number / 500
    gaps = chance.gamma(4, 0.010 / 4, (rows, events)).astype(np.float32)
    gaps[:, 0] = 0.05 + chance.exponential(0.05, rows)
    total = gaps.sum(axis=1, dtype=float)
    first_token = due + gaps[:, 0]
    failed = chance.random(rows) < 0.001
    known: dict[str, Any] = {
        **dict.fromkeys(("run", "pair", "user"), pa.array(np.zeros(rows, np.int64))),
        **dict.fromkeys(("scheduled_s", "sent_s"), pa.array(due)),
        **dict.fromkeys(("first_byte_s", "first_token_s", "first_content_s"), pa.array(first_token)),
        **dict.fromkeys(("last_token_s", "end_s"), pa.array(due + total)),
        "number": pa.array(number),
        "arm": pa.array(["a"] * rows),
        "phase": pa.array(["measure"] * rows),
        "call": pa.array([f"call-{each % 1000}" for each in number]),
        "wall_start": pa.array(due + 1.7e9),
        "status": pa.array(np.where(failed, 503, 200), pa.int32()),
        "error": pa.array(["http_status" if each else None for each in failed], pa.string()),
        "output_tokens": pa.array(np.full(rows, events), pa.int32()),
        "token_source": pa.array(["server"] * rows),
        "tokens_first_event": pa.array(np.ones(rows)),
        "events": pa.array(np.full(rows, events)),
        "bytes": pa.array(np.full(rows, 200 * events)),
        "finish_reason": pa.array(["length"] * rows),
        "output_sha256": pa.array([f"{each:064x}" for each in chance.integers(0, 1 << 62, rows).tolist()]),
        "event_gaps_s": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * events), pa.array(gaps.ravel())
        ),
    }
    return pa.table(
        [known.get(each.name, pa.nulls(rows, each.type)).cast(each.type) for each in PARQUET], schema=PARQUET
    )
