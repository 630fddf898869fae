"""``python -m benchmarks.peers``: every client on the same server, interleaved; writes the tables of README.md.

``install [NAME ...]`` makes the environments (guidellm 5.6 GB, vllm 7.5 GB, locust 30 MB). ``only=reports`` and
``only=cpu`` do one half; ``repetitions=5`` repeats each measurement of CPU; ``keep=FOLDER`` keeps what the clients
wrote. The last line is one JSON document.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import words_of
from benchmarks.errors import FAIL, PASS, BenchmarkError, UsageError
from benchmarks.manifest import machine
from benchmarks.peers.cpu import TreeCpu
from benchmarks.peers.tools import HERE, OUTPUT_TOKENS, TOOLS, Figures, Tool, Work, environ, install
from benchmarks.stats import t_quantile
from benchmarks.truth_server.running import TruthServer, running

MODES = ("plain", "role_first", "comments", "nospace", "reasoning", "several")
REPORT_STREAMS, REPORT_REQUESTS = 4, 16
CPU_STREAMS, CPU_ROUNDS, CPU_TPOT_MS = 32, 12, 20
CPU_PEERS = ("guidellm", "locust")
BARS = {"guidellm": 0.5, "locust": 1.1}
"""Our CPU per event over the peer's is to be at most this."""
FIGURES = (("ttft_ms", "{:.1f}"), ("tpot_ms", "{:.2f}"), ("tokens", "{:g}"))
TTFT_BAR_MS, TPOT_BAR = 3.0, 0.01
TOOL_LIMIT_S = 300


def run_tool(tool: Tool, work: Work) -> tuple[Figures | str, TreeCpu]:
    """Run it to its end: what it reports, or why it reports nothing; and the CPU it had."""
    work.folder.mkdir(parents=True)
    with (work.folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            tool.command(work), cwd=HERE.parents[1], env=environ(tool), stdout=output, stderr=subprocess.STDOUT
        )
        with TreeCpu(process.pid) as cpu:
            try:
                code: int | str = process.wait(TOOL_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = f"still running after {TOOL_LIMIT_S} s"
    try:
        return tool.read(work.folder), cpu
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        lines = (work.folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit {code}, no report ({type(error).__name__}): {lines[-1] if lines else 'no output'}"[:200], cpu


def true_figures(entries: Sequence[dict[str, Any]]) -> Figures:
    """What happened, by the server's own clock."""
    spans = [
        (entry["written"][-1] - entry["written"][0]) / (sum(entry["tokens"]) - entry["tokens"][0]) for entry in entries
    ]
    return Figures(
        succeeded=len(entries),
        failed=0,
        ttft_ms=float(np.median([entry["written"][0] - entry["arrived"] for entry in entries])) * 1000,
        tpot_ms=float(np.median(spans)) * 1000,
        tokens=float(np.mean([sum(entry["tokens"]) for entry in entries])),
    )


def compare_reports(tools: Sequence[Tool], folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Mode -> client -> its figures, the truth while it ran, and why there is none."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with running("ttft_ms=50", "tpot_ms=10", f"tokens={OUTPUT_TOKENS}") as server:
        for turn, mode in enumerate(MODES):
            found[mode] = {}
            for tool in (*tools[turn % len(tools) :], *tools[: turn % len(tools)]):
                if tool.absent is not None:
                    found[mode][tool.name] = {"reported": None, "truth": None, "reason": tool.absent}
                    continue
                before = len(server.log())
                work = Work(server.url, mode, REPORT_STREAMS, REPORT_REQUESTS, folder / mode / tool.name)
                reported, _ = run_tool(tool, work)
                # A client may send more than was asked for (a probe, a request that is left at the end).
                whole = [entry for entry in server.log()[before:] if entry["written"] and entry["outcome"] == "done"]
                found[mode][tool.name] = {
                    "reported": reported.to_json() if isinstance(reported, Figures) else None,
                    "truth": true_figures(whole).to_json() if whole else None,
                    "reason": reported if isinstance(reported, str) else None,
                }
                print(f"{mode:<11} {tool.name:<9} {cell(found[mode][tool.name])}", file=sys.stderr, flush=True)
    return found


def cpu_per_event(tool: Tool, server: TruthServer, folder: Path) -> float:
    """Microseconds of user and system CPU of all the client's processes for each event with text.

    Counted from the first request that follows another to the first request of the last round: what starts, connects
    and sums up is outside, and every stream that ends inside is paid for by one that began before.

    Raises:
        BenchmarkError: The client did not do its work.
    """
    before = len(server.log())
    requests = CPU_STREAMS * CPU_ROUNDS
    reported, cpu = run_tool(tool, Work(server.url, "plain", CPU_STREAMS, requests, folder))
    entries = server.log()[before:]
    arrived = sorted(entry["arrived"] for entry in entries)
    if isinstance(reported, str) or len(arrived) < requests:
        raise BenchmarkError(f"{tool.name} sent {len(arrived)} of {requests} requests: {reported}")
    begin, end = arrived[CPU_STREAMS + len(arrived) - requests], arrived[-CPU_STREAMS]
    events = sum(begin <= at < end for entry in entries for at in entry["written"])
    spent = cpu.between(begin, end)
    if spent is None or not events:
        raise BenchmarkError(f"the CPU of {tool.name} was not sampled")
    return float(spent / events * 1e6)


def compare_cpu(tools: Sequence[Tool], repetitions: int, folder: Path) -> dict[str, Any]:
    """CPU per event of each client in each repetition, one after the other, and ours over theirs with an interval."""
    found: dict[str, list[float]] = {tool.name: [] for tool in tools}
    words = ("ttft_ms=50", f"tpot_ms={CPU_TPOT_MS}", f"tokens={OUTPUT_TOKENS}")
    for repetition in range(repetitions):
        order = [*tools[repetition % len(tools) :], *tools[: repetition % len(tools)]]
        for tool in order:
            with running(*words) as server:
                spent = cpu_per_event(tool, server, folder / f"{tool.name}-{repetition}")
            found[tool.name].append(spent)
            print(
                f"cpu {repetition + 1}/{repetitions} {tool.name:<9} {spent:.1f} us/event", file=sys.stderr, flush=True
            )
    return {
        "us_per_event": found,
        "ratios": {name: ratio(found["ours"], found[name]) for name in found if name != "ours"},
        "streams": CPU_STREAMS,
        "events_per_s": CPU_STREAMS * 1000 / CPU_TPOT_MS,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Geometric mean of ours over theirs, pair by pair, with a 95 % t interval; no interval from one pair."""
    logs = np.log(np.array(ours) / np.array(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return {"ratio": math.exp(mean), "low": None, "high": None}
    half = t_quantile(0.05, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def cell(found: dict[str, Any]) -> str:
    """One cell of the table of reports; what is outside our own bars is bold."""
    reported, truth = found["reported"], found["truth"]
    if reported is None:
        return str(found["reason"])
    if not reported["succeeded"]:
        return f"**{reported['failed']} failed**"
    if truth is None:
        return "nothing was streamed to its end"
    off = {
        "ttft_ms": reported["ttft_ms"] is None or abs(reported["ttft_ms"] - truth["ttft_ms"]) > TTFT_BAR_MS,
        "tpot_ms": reported["tpot_ms"] is None or abs(reported["tpot_ms"] / truth["tpot_ms"] - 1) > TPOT_BAR,
        "tokens": reported["tokens"] is None or reported["tokens"] != truth["tokens"],
    }
    figures = " / ".join(
        _bold("-" if reported[name] is None else pattern.format(reported[name]), bold=off[name])
        for name, pattern in FIGURES
    )
    return f"**{reported['failed']} failed** {figures}" if reported["failed"] else figures


def _bold(text: str, *, bold: bool) -> str:
    return f"**{text}**" if bold else text


def report_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    names = [tool.name for tool in TOOLS]
    lines = [
        "| server | truth | " + " | ".join(f"{tool.name} {tool.version}".strip() for tool in TOOLS) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for mode, clients in found.items():
        truths = [each["truth"] for each in clients.values() if each["truth"]]
        truth = " / ".join(
            pattern.format(float(np.median([each[name] for each in truths]))) if truths else "-"
            for name, pattern in FIGURES
        )
        cells = " | ".join(cell(clients[name]) for name in names)
        lines.append(f"| {mode} | {truth} | {cells} |")
    return "\n".join(lines)


def cpu_table(found: dict[str, Any]) -> str:
    lines = ["| client | us per event, each repetition | median | ours / it [95 %] | bar |", "|---|---|---|---|---|"]
    for name, values in found["us_per_event"].items():
        each = ", ".join(f"{value:.1f}" for value in values)
        row = [name, each, f"{np.median(values):.1f}", "", ""]
        if name in found["ratios"]:
            of = found["ratios"][name]
            interval = "" if of["low"] is None else f" [{of['low']:.3f}, {of['high']:.3f}]"
            row[3:] = [f"{of['ratio']:.3f}{interval}", f"<= {BARS[name]:g}" if name in BARS else ""]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def write_between(path: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- MARKER -->`` and ``<!-- /MARKER -->``.

    Raises:
        UsageError: The markers are not there, once each.
    """
    whole = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise UsageError(f"{path} must hold {begin} and {end} once each")
    head, _, rest = whole.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def setting() -> str:
    """Where and when: a line above each table."""
    found = machine()
    model = found.get("cpu_model") or found.get("cpu")
    load = Path("/proc/loadavg").read_text(encoding="ascii").split()[0]
    return f"{datetime.now(UTC):%Y-%m-%d}, {model}, load average {load} at the end."


def main(words: Sequence[str]) -> int:
    if words[:1] == ["install"]:
        for name in words[1:] or [tool.name for tool in TOOLS if tool.name != "ours"]:
            if name not in {tool.name for tool in TOOLS} - {"ours"}:
                raise UsageError(f"there is no peer {name!r}: use {', '.join(tool.name for tool in TOOLS[1:])}")
            print(f"installing {name} ...", file=sys.stderr, flush=True)
            install(name)
        return PASS
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return PASS
    found = words_of(words, ("only", "repetitions", "keep"))
    only, repetitions = found.get("only"), found.get("repetitions", "5")
    if only not in {None, "reports", "cpu"}:
        raise UsageError(f"only must be reports or cpu, got {only!r}")
    if not repetitions.isdecimal() or int(repetitions) < 1:
        raise UsageError(f"repetitions must be a number above 0, got {repetitions!r}")
    summary: dict[str, Any] = {}
    missed = False
    with tempfile.TemporaryDirectory() as made:
        folder = Path(found["keep"]) if "keep" in found else Path(made)
        folder = folder / time.strftime("%H%M%S")
        if only != "cpu":
            summary["reports"] = compare_reports(TOOLS, folder / "reports")
            write_between(HERE / "README.md", "reports", f"{setting()}\n\n{report_table(summary['reports'])}")
        if only != "reports":
            tools = [tool for tool in TOOLS if tool.name in ("ours", *CPU_PEERS) and tool.absent is None]
            summary["cpu"] = compare_cpu(tools, int(repetitions), folder / "cpu")
            write_between(HERE / "README.md", "cpu", f"{setting()}\n\n{cpu_table(summary['cpu'])}")
            missed = any(of["ratio"] > BARS[name] for name, of in summary["cpu"]["ratios"].items() if name in BARS)
    print(json.dumps(summary))
    return FAIL if missed else PASS


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BenchmarkError, OSError, subprocess.CalledProcessError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code if isinstance(problem, BenchmarkError) else 4)
