"""What peers wrote is read right: captures against what their own reports say, and against the kernel's accounts."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.errors import UsageError
from benchmarks.peers import tools
from benchmarks.peers.__main__ import (
    MODES,
    Figures,
    Work,
    cell,
    compare_cpu,
    cpu_table,
    main,
    ratio,
    report_table,
    run_tool,
    true_figures,
    write_between,
)
from benchmarks.peers.cpu import TreeCpu
from benchmarks.truth_server.running import running

CAPTURES = Path(__file__).parent / "peers"


def captured(name, tmp_path):
    """A folder as the tool leaves it.

    The captures are what guidellm 0.8.1 and vllm 0.32.0 wrote on 2026-11-23 (``benchmarks.peers only=reports
    keep=...``), cut to the keys that are read or compared here; NAME.txt is the table vllm printed beside its file.
    """
    tool = name.partition("_")[0]
    shutil.copy(CAPTURES / f"{name}.json", tmp_path / f"{tool}.json")
    return tmp_path


@pytest.mark.parametrize("name", ["vllm", "vllm_nospace"])
def test_vllms_file_says_what_its_own_table_says(tmp_path, name):
    found = tools.read_vllm(captured(name, tmp_path))

    printed = dict(re.findall(r"^(\w[\w ()%.]*):\s+([\d.]+)\s*$", (CAPTURES / f"{name}.txt").read_text(), re.MULTILINE))
    assert found.succeeded == int(printed["Successful requests"])
    assert found.failed == int(printed["Failed requests"])
    if found.succeeded:
        assert found.ttft_ms == pytest.approx(float(printed["Median TTFT (ms)"]), abs=0.006)
        assert found.tpot_ms == pytest.approx(float(printed["Median TPOT (ms)"]), abs=0.006)
        assert found.tokens * found.succeeded == pytest.approx(float(printed["Total generated tokens"]))
    else:
        assert (found.ttft_ms, found.tpot_ms, found.tokens) == (None, None, None)


@pytest.mark.parametrize("name", ["guidellm", "guidellm_several"])
def test_guidellms_summary_agrees_with_its_own_list_of_requests(tmp_path, name):
    found = tools.read_guidellm(captured(name, tmp_path))

    requests = json.loads((CAPTURES / f"{name}.json").read_text())["benchmarks"][0]["requests"]["successful"]
    assert found.succeeded == len(requests) == 16
    assert found.failed == 0
    # Its median is a value of the list, without interpolation: between the two in the middle.
    first = sorted(row["time_to_first_token_ms"] for row in requests)
    assert first[7] <= found.ttft_ms <= first[8]
    assert found.tokens == statistics.fmean(row["output_tokens"] for row in requests)
    assert found.tpot_ms == pytest.approx(
        statistics.median(row["time_per_output_token_ms"] for row in requests), rel=0.01
    )
    assert found.itl_ms == pytest.approx(statistics.median(row["inter_token_latency_ms"] for row in requests), rel=0.01)


def test_a_locustfiles_rows_become_figures(tmp_path):
    rows = [
        {"first_s": 0.1, "last_s": 0.73, "tokens": 64, "error": None},
        {"first_s": 0.2, "last_s": 1.46, "tokens": 64, "error": None},
        {"first_s": 0.3, "last_s": 0.93, "tokens": 64, "error": None},
        {"first_s": None, "last_s": None, "tokens": None, "error": "no token"},
    ]
    (tmp_path / "locust.json").write_text(json.dumps(rows))

    assert tools.read_locust(tmp_path) == Figures(3, 1, 200.0, pytest.approx(10.0), 64.0)


def test_a_locust_run_without_a_token_has_no_figures(tmp_path):
    (tmp_path / "locust.json").write_text(json.dumps([{"first_s": None, "last_s": None, "tokens": 3, "error": "x"}]))

    assert tools.read_locust(tmp_path) == Figures(0, 1, None, None, None)


def test_a_tool_that_leaves_no_report_is_quoted(tmp_path):
    tool = tools.Tool(
        "ours",
        "",
        lambda _: [sys.executable, "-c", "print('no such option: --x'); raise SystemExit(2)"],
        tools.read_ours,
        {},
    )

    reported, _ = run_tool(tool, Work("http://127.0.0.1:1", "plain", 1, 1, tmp_path / "x"))

    assert reported.startswith("exit 2, no report")
    assert reported.endswith("no such option: --x")


def test_the_truth_is_counted_from_what_the_server_wrote():
    """80 ms to an event of four tokens, then three more in 120 ms: 12 tokens after the first event."""
    entry = {"arrived": 10.0, "written": [10.08, 10.12, 10.16, 10.2], "tokens": [4, 4, 4, 4]}

    found = true_figures([entry, entry])

    assert (found.succeeded, found.tokens) == (2, 16)
    assert found.ttft_ms == pytest.approx(80)
    assert found.tpot_ms == pytest.approx(10)


def test_cells_mark_what_is_outside_our_own_bars():
    truth = Figures(16, 0, 50.0, 10.0, 64.0).to_json()

    def of(*figures):
        return cell({"reported": Figures(*figures).to_json(), "truth": truth, "reason": None})

    assert of(16, 0, 52.9, 10.09, 64.0) == "52.9 / 10.09 / 64"
    assert of(16, 0, 53.1, 10.11, 32.0) == "**53.1** / **10.11** / **32**"
    assert of(0, 16, None, None, None) == "**16 failed**"
    assert of(15, 1, 50.0, None, 64.0) == "**1 failed** 50.0 / **-** / 64"
    assert cell({"reported": None, "truth": None, "reason": "no environment"}) == "no environment"


def test_the_interval_of_the_ratio_is_students(tmp_path):
    ours, theirs = [50.0, 55.0, 48.0, 61.0], [100.0, 120.0, 90.0, 115.0]

    found = ratio(ours, theirs)

    logs = np.log(np.array(ours) / theirs)
    low, high = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert found["ratio"] == pytest.approx(scipy.stats.gmean(ours) / scipy.stats.gmean(theirs))
    assert (found["low"], found["high"]) == (pytest.approx(np.exp(low)), pytest.approx(np.exp(high)))
    assert ratio([50], [100]) == {"ratio": pytest.approx(0.5), "low": None, "high": None}
    table = cpu_table({"us_per_event": {"ours": ours, "guidellm": theirs}, "ratios": {"guidellm": found}})
    assert f"{scipy.stats.gmean(ours) / scipy.stats.gmean(theirs):.3f} [{np.exp(low):.3f}, {np.exp(high):.3f}]" in table
    assert "<= 0.5" in table


def test_tables_replace_only_what_is_between_their_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- cpu -->\nold\n<!-- /cpu -->\nb\n")

    write_between(path, "cpu", "new | table")

    assert path.read_text() == "a\n<!-- cpu -->\nnew | table\n<!-- /cpu -->\nb\n"
    with pytest.raises(UsageError, match="once each"):
        write_between(path, "reports", "x")


def test_the_readme_has_a_row_for_every_mode_and_a_column_for_every_client():
    whole = (tools.HERE / "README.md").read_text(encoding="utf-8")
    table = whole.partition("<!-- reports -->")[2].partition("<!-- /reports -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")]

    assert [row.split("|")[1].strip() for row in rows[2:]] == list(MODES)
    assert len(rows[0].split("|")) == len(tools.TOOLS) + 4
    for tool in tools.TOOLS:
        assert f"{tool.name} {tool.version}".strip() in rows[0]
        pins = tools.HERE / "requirements" / f"{tool.name}.txt"
        assert tool.name == "ours" or f"\n{tool.name}=={tool.version} " in "\n" + pins.read_text()


def test_an_absent_peer_is_a_cell_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("QWEN3_STACK_CACHE", str(tmp_path))
    tool = next(tool for tool in tools.TOOLS if tool.name == "vllm")

    found = {
        "plain": {
            each.name: {"reported": None, "truth": None, "reason": tool.absent} for each in tools.TOOLS
        }
    }  # fmt: skip
    assert "python -m benchmarks.peers install vllm" in report_table(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["only=x"], "only must be"), (["repetitions=0"], "repetitions must be"), (["install", "k6"], "no peer 'k6'")],
)
def test_misuse_is_refused(words, said):
    with pytest.raises(UsageError, match=said):
        main(words)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_of_a_process_tree_is_what_the_kernel_charges_at_its_end():
    """A child and a thread burn; what was burnt before the window does not count."""
    burn = "t = time.process_time()\nwhile time.process_time() - t < {}: pass"
    child = f"import time\n{burn.format(0.4)}\ntime.sleep(0.5)"
    program = f"""
import subprocess, sys, threading, time
{burn.format(0.5)}
time.sleep(0.2)
print("begin", time.perf_counter(), flush=True)
child = subprocess.Popen([sys.executable, "-c", {child!r}])
def work():
    end = time.thread_time() + 0.3
    while time.thread_time() < end: pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
child.wait()
time.sleep(0.2)
print("end", time.perf_counter(), flush=True)
time.sleep(0.3)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with TreeCpu(process.pid) as cpu:
        moments = [float(line.split()[1]) for line in process.stdout.read().splitlines()]
        _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()

    inside = cpu.between(*moments)
    assert inside == pytest.approx(used.ru_utime + used.ru_stime - 0.5, abs=0.12)
    assert inside > 0.69
    assert cpu.between(moments[0], time.perf_counter() + 9) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tool", tools.TOOLS, ids=lambda tool: tool.name)
def test_each_peer_runs_and_reports_the_plain_truth(tool, tmp_path):
    """TTFT within a tenth of the stream: Locust's is a block too late, which is what the table shows."""
    if tool.absent is not None:
        pytest.skip(tool.absent)
    with running("ttft_ms=50", "tpot_ms=10", "tokens=64") as server:
        reported, _ = run_tool(tool, Work(server.url, "plain", 4, 16, tmp_path / tool.name))

    assert isinstance(reported, Figures), reported
    assert (reported.succeeded, reported.failed, reported.tokens) == (16, 0, 64)
    assert 49 < reported.ttft_ms < 140
    assert reported.tpot_ms == pytest.approx(10, rel=0.15)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cpu_per_event_is_measured_for_ours_and_for_locust(tmp_path):
    compared = [tool for tool in tools.TOOLS if tool.name in {"ours", "locust"}]
    if compared[1].absent is not None:
        pytest.skip(compared[1].absent)

    found = compare_cpu(compared, 1, tmp_path)

    assert all(5 < values[0] < 1000 for values in found["us_per_event"].values())
