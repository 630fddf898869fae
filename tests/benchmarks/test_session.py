"""What a benchmark leaves behind: provenance, records for other tools, and one line when the disk is full."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import benchmarks
from benchmarks.__main__ import main
from benchmarks.performance import TestResult

SCENARIO = "name: short\ntexts: ['a #x', 'b #y']\nusers: 2\nduration_s: 1\nsample_interval_s: 0.1\n"


@pytest.fixture(scope="module")
def server(truth_server):
    return truth_server("service_ms=5")


@pytest.fixture
def scenario(tmp_path) -> Path:
    path = tmp_path / "scenario.yml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def test_a_results_folder_says_where_with_what_and_for_whom_it_was_made(server, scenario, tmp_path):
    out = tmp_path / "r"

    assert main(["run", str(scenario), f"url={server.url}", f"out={out}", "warmup_s=0.2", "--quiet"]) == 0

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    assert manifest["machine"]["cpu_model"] == model.partition(":")[2].strip()
    assert manifest["machine"]["system"] == f"Linux {os.uname().release}"
    assert {"cpu_quota", "memory_limit_gib", "cpu_governor", "cpu_flags"} <= manifest["machine"].keys()
    git = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=Path(benchmarks.__file__).parent, text=True).strip()
    assert manifest["software"]["git_revision"].startswith(git[:7])
    assert (manifest["complete"], manifest["journal_whole"]) == (True, True)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    result = TestResult.model_validate_json((out / "test_result.json").read_bytes())
    assert result.test_type == "run"
    assert result.summary["total_requests"] == summary["total_requests"]
    assert sum(window.qps for window in result.metrics) / len(result.metrics) == pytest.approx(summary["qps"], rel=0.02)
    assert all(window.cpu_usage_percent is not None for window in result.metrics)
    assert {"junit.xml", "report.md", "report.html", "requests.jsonl", "requests.parquet", "samples.parquet"} <= {
        path.name for path in out.iterdir()
    }
    frame = benchmarks.load(out)
    assert len(frame) == len((out / "requests.jsonl").read_bytes().splitlines())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_there_is_and_marks_it(server, scenario, tmp_path, stop):
    """Whoever cancels a job of CI sends SIGTERM."""
    out = tmp_path / "r"
    words = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        str(scenario),
        f"url={server.url}",
        "duration_s=60",
        f"out={out}",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (out / "requests.jsonl").exists():
        time.sleep(0.1)
    while time.monotonic() < end and b'"measure"' not in (out / "requests.jsonl").read_bytes():
        time.sleep(0.1)

    process.send_signal(stop)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 3
    assert "Traceback" not in said
    assert "marked as incomplete" in said
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["complete"] is False
    assert "measure" in pq.read_table(out / "requests.parquet")["phase"].to_pylist()
    assert "interrupted" in (out / "report.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_said_in_one_line_and_what_was_written_is_kept(server, scenario, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        words = ["run", str(scenario), f"url={server.url}", "duration_s=30", f"out={small / 'r'}", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *words], capture_output=True, text=True, timeout=90, check=False
        )
        kept = (small / "r" / "requests.jsonl").read_bytes().splitlines()
    finally:
        subprocess.run(["umount", str(small)], check=True)

    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "is full" in lines[0]
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 4
    assert json.loads(kept[0])["phase"] == "probe"


def test_a_server_that_describes_itself_is_in_the_manifest(server, scenario, tmp_path):
    """The truth server's own /api/tags, asked directly, is the expected value."""
    import urllib.request

    try:
        with urllib.request.urlopen(server.url + "/api/tags", timeout=5) as answer:
            tags = json.load(answer)["models"]
    except OSError:
        pytest.skip("this truth server does not list models")
    out = tmp_path / "r"

    main(["run", str(scenario), f"url={server.url}", f"model={tags[0]['name']}", f"out={out}", "--quiet"])

    described = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["sides"]["a"]["description"]
    assert described["digest"] == tags[0]["digest"]


def test_the_digest_of_the_work_is_over_its_parts(server, scenario, tmp_path):
    out = tmp_path / "r"
    main(["run", str(scenario), f"url={server.url}", f"out={out}", "--quiet"])

    work = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["workload"]

    stated = work.pop("sha256")
    packed = json.dumps(work, ensure_ascii=False, sort_keys=True)
    assert stated == hashlib.sha256(packed.encode()).hexdigest()
