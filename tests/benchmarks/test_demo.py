"""``make demo`` from end to end, on servers that stand in for the model server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

RUN = """
import sys
from pathlib import Path
from benchmarks import demo
stand_in = sys.argv[1]
command = lambda environment, port: [sys.executable, stand_in, str(environment), f"serving.port={port}"]
sys.exit(demo.main(sys.argv[2:], command))
"""
QUICK = ("pairs=3", "duration_s=0.7", "users=4", "pause_s=0.05")


@pytest.fixture
def demo(tmp_path, calls_file, monkeypatch):
    """The command of a demo whose candidate is as given; it runs in a process of its own, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*words, **candidate):
        for name, settings in (("baseline", {}), ("candidate", candidate)):
            stand_in = {"service_ms": 20, "wrong_percent": 0} | settings
            environment = {"model_name": "tiny", "optimization_settings": {"bits": len(name)}, "stand_in": stand_in}
            environment |= {"dies": True} if settings.get("dies") else {}
            (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(environment), encoding="utf-8")
        sides = (f"baseline={tmp_path / 'baseline.yml'}", f"candidate={tmp_path / 'candidate.yml'}")
        calls = () if any(word.startswith("calls=") for word in words) else (f"calls={calls_file}",)
        stand_in = str(Path(__file__).parent / "stand_in.py")
        return [sys.executable, "-c", RUN, stand_in, *sides, *calls, *QUICK, *words]

    return command


def finish(command):
    """The exit code, the last line of stdout as JSON, stdout, and stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else None, done.stdout, done.stderr


def left_over(tmp_path):
    """Servers of this test that still run."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or []) and "stand_in.py" in str(process.info)
    ]


def test_a_faster_candidate_that_answers_alike_passes(demo, tmp_path):
    code, last, text, progress = finish(demo(service_ms=10))

    folder = Path(last["folder"])
    assert (code, last["verdict"]) == (0, "PASS")
    assert folder.name.startswith("demo-")
    assert last["comparison"]["t"]["low"] > 1.2
    assert last["quality"]["agreement"] == 1.0
    assert "PASS" in text
    assert str(folder / "report.html") in text
    assert "pair 3 of 3" in progress
    names = {"manifest.json", "requests.jsonl", "requests.parquet", "samples.parquet", "summary.json", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    assert Path("runs/latest").resolve() == folder.resolve()
    assert "optimization_settings.bits" in (folder / "report.html").read_text(encoding="utf-8")
    assert left_over(tmp_path) == []


def test_a_faster_candidate_that_answers_worse_fails(demo):
    code, last, text, _ = finish(demo(service_ms=10, wrong_percent=20))

    assert (code, last["verdict"]) == (1, "FAIL")
    assert last["comparison"]["t"]["low"] > 1
    # 60 of the 240 calls have a number that ends in 00 to 19.
    assert last["quality"]["accuracy_b"] == pytest.approx(1 - 60 / 240)
    assert "B is worse" in text


def test_a_broken_calls_file_is_named_before_anything_starts(demo, tmp_path):
    calls = tmp_path / "mine.jsonl"
    calls.write_text('{"input_text": "好"}\n{"input_text": 7}\n', encoding="utf-8")

    code, _, _, said = finish(demo(f"calls={calls}"))

    assert code == 2
    assert f"{calls}:2:input_text" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_server_that_does_not_start_is_said_with_its_last_words(demo, tmp_path):
    code, last, _, said = finish(demo(dies=True))

    assert code == 4 == last["exit_code"]
    assert "cannot load the model: it is not there" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_demo_stops_its_servers_and_keeps_what_it_has(demo, tmp_path, number):
    process = subprocess.Popen(demo("pairs=50", "out=mine"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = Path("mine/requests.jsonl")
    end = time.monotonic() + 60
    while time.monotonic() < end and not (journal.exists() and b'"phase":"measure"' in journal.read_bytes()):
        time.sleep(0.1)

    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 3
    assert "interrupted" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []
    summary = json.loads(Path("mine/summary.json").read_text(encoding="utf-8"))
    assert summary["verdict"] == "NO VERDICT"
    assert json.loads(Path("mine/manifest.json").read_text(encoding="utf-8"))["complete"] is False
    assert summary["a"]["total_requests"] > 0
