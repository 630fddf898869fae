"""Search over settings, on servers that are started; what their settings do is known (slots_server.py)."""

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

from benchmarks.errors import InterruptedRunError, UsageError
from benchmarks.progress import Display
from benchmarks.session import resuming
from benchmarks.tune import CONFIG, TuneScenario, combinations, main, tune
from runconfig import load

SERVER = Path(__file__).parent / "slots_server.py"
ROOT = Path(__file__).parents[2]
QUICK = (
    "duration_s=0.4", "users=16", "pause_s=0", "pairs=5", "screen_pairs=2", "max_calls=100",
    "verdict.max_accuracy_drop=0.08", "client_limits.loop_lag_p50_ms=50", "client_limits.cpu_share=1",
)  # fmt: skip


def slots_server(environment, port):
    return [sys.executable, str(SERVER), str(environment), f"serving.port={port}"]


def starts_nothing(environment, port):
    raise AssertionError(f"{environment} was started")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """One slot, 10 ms a call; the model is the repository's, so that ``model_server check`` has one to look at."""
    monkeypatch.chdir(tmp_path)
    settings = {"enable_quantization": True, "quantization_bits": 8, "kv_cache_bits": 16, "max_batch_size": 1}
    raw = {
        "model_name": "complaints-tiny",
        "model_version": "1",
        "model_source": str(ROOT / "models" / "complaints-tiny"),
        "deployment_type": "local",
        "engine": "openvino",
        "resource_limits": {"cpu_cores": 2, "memory_gb": 1, "disk_gb": 1},
        "optimization_settings": settings | {"max_sequence_length": 1024},
        "serving": {"port": 0},
    }
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.fixture
def tuned(environment, calls_file):
    """Tune in an empty folder: exit code and summary."""

    def run(*words, command=slots_server):
        scenario = load(TuneScenario, CONFIG, [f"environment={environment}", f"calls={calls_file}", *QUICK, *words])
        with Display(quiet=True) as display:
            return tune(scenario, display, command)

    return run


def settings_of(path):
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))["optimization_settings"]


def test_a_planted_winner_is_found_and_written_with_its_evidence(tuned, environment):
    """16 slots against 1 under 16 users is 16 times; 5000 are refused."""
    code, summary = tuned("space={max_batch_size: [1, 16, 5000]}", "out=r")

    assert (code, summary["verdict"], summary["changed"]) == (0, "PASS", {"max_batch_size": 16})
    assert summary["winner"]["gain"] > 4
    assert summary["winner"]["pairs"] == 5
    [refused] = [found for found in summary["results"] if found["key"] == "candidate_refused"]
    assert "less than or equal to 1024" in refused["values"]["reason"]
    written = Path(summary["environment_file"])
    before, after = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (environment, written))
    assert after["optimization_settings"] == before["optimization_settings"] | {"max_batch_size": 16}
    assert {**after, "optimization_settings": None} == {**before, "optimization_settings": None}
    header = "".join(line for line in written.read_text(encoding="utf-8").splitlines(keepends=True) if line[0] == "#")
    assert "Use max_batch_size=16" in header
    assert "5 fresh pairs" in header
    assert "max_batch_size=5000: refused" in header
    assert "`max_batch_size=16`" in Path("r/report.md").read_text(encoding="utf-8")

    report = Path(summary["report"]).read_text(encoding="utf-8")
    assert 'href="decision/max_batch_size%3D16/report.html"' in report
    assert 'href="environment.yml"' in report
    assert json.loads(Path("r/summary.json").read_text(encoding="utf-8"))["results"][0]["key"] == "candidate_refused"

    # Resumed, it answers from what is there and starts nothing.
    with resuming(Path("r")):
        again = tuned("space={max_batch_size: [1, 16, 5000]}", "out=r", command=starts_nothing)
    assert again == (code, summary)


def test_a_space_in_which_nothing_differs_keeps_the_reference(tuned, environment):
    """The stand-in does not look at prefix caching."""
    code, summary = tuned("space={enable_prefix_caching: [false]}", "out=r")

    assert (code, summary["changed"], summary["winner"]) == (0, {}, None)
    assert settings_of(summary["environment_file"]) == settings_of(environment)
    assert "Keep the reference" in Path(summary["environment_file"]).read_text(encoding="utf-8")


def test_a_faster_setting_that_answers_worse_is_not_taken(tuned):
    """8 bits of cache are twice as fast and wrong on every fifth call."""
    code, summary = tuned("space={kv_cache_bits: [8]}", "out=r")

    assert (code, summary["changed"]) == (0, {})
    [worse] = summary["results"]
    assert worse["key"] == "candidate_worse"
    assert worse["gain"] > 1.2
    assert worse["accuracy"][1] == pytest.approx(0.8, abs=0.1)


def test_what_does_not_start_or_has_no_weights_is_skipped_with_the_reason(tuned):
    code, summary = tuned("space={max_sequence_length: [16], quantization_bits: [8, 4]}", "out=r")

    reasons = {found["name"]: found["values"]["reason"] for found in summary["results"]}
    assert "the KV pool is too small" in reasons["max_sequence_length=16"]
    assert "no weights of 4 bits" in reasons["max_sequence_length=16,quantization_bits=4"]
    assert (code, summary["verdict"]) == (4, "INVALID")
    assert "no candidate could be measured" in Path(summary["report"]).read_text(encoding="utf-8")


def test_more_combinations_than_wanted_are_sampled_by_the_seed(environment):
    raw = yaml.safe_load(environment.read_text(encoding="utf-8"))

    def names(*words):
        scenario = load(TuneScenario, CONFIG, ["space={max_batch_size: [1, 2, 4, 8], kv_cache_bits: [8, 16]}", *words])
        return [variant.name for variant in combinations(scenario, raw)]

    assert len(names()) == 7  # all but the environment itself
    assert names("max_candidates=3", "seed=1") == names("max_candidates=3", "seed=1")
    assert len({tuple(names("max_candidates=3", f"seed={seed}")) for seed in range(5)}) > 1


def test_an_environment_that_cannot_be_read_is_said(tuned, environment, calls_file):
    environment.unlink()

    with pytest.raises(Exception, match="cannot read"):
        tuned("out=r")
    scenario = load(TuneScenario, CONFIG, [f"calls={calls_file}"])
    with Display(quiet=True) as display, pytest.raises(UsageError, match="needs an environment"):
        tune(scenario, display, slots_server)


def test_an_environment_that_the_server_refuses_is_no_reference(tuned, environment):
    raw = yaml.safe_load(environment.read_text(encoding="utf-8"))
    environment.write_text(yaml.safe_dump(raw | {"engin": "x"}), encoding="utf-8")

    with pytest.raises(UsageError, match=r"the reference, .*mine.yml: .*did you mean 'engine'"):
        tuned("space={max_batch_size: [16]}", "out=r", command=starts_nothing)
    assert not Path("r").exists()


def test_an_interruption_leaves_a_folder_that_says_so(tuned):
    def interrupted(_environment, _port):
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="go on with python -m benchmarks resume r"):
        tuned("space={max_batch_size: [16, 5000]}", "out=r", command=interrupted)

    kept = json.loads(Path("r/summary.json").read_text(encoding="utf-8"))
    assert (kept["verdict"], kept["exit_code"], kept["complete"]) == ("NO VERDICT", 3, False)
    assert [found["key"] for found in kept["results"]] == ["candidate_refused"]
    assert "interrupted" in Path("r/report.md").read_text(encoding="utf-8")


RUN = """
import sys
from benchmarks import tune
from benchmarks.__main__ import main
server = sys.argv[1]
command = lambda environment, port: [sys.executable, server, str(environment), f"serving.port={port}"]
tune.tune.__defaults__ = (command,)
sys.exit(main(sys.argv[2:]))
"""


def left_over(tmp_path):
    """Servers of this test that still run."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in process.info["cmdline"] or []) and SERVER.name in str(process.info)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_search_stops_its_servers_and_is_resumed_without_doing_again_what_is_done(
    environment, calls_file, tmp_path
):
    words = ("tune", environment, f"calls={calls_file}", *QUICK, "space={max_batch_size: [2, 16]}", "out=r")
    command = [sys.executable, "-c", RUN, str(SERVER)]
    process = subprocess.Popen([*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first, end = tmp_path / "r/round-1/max_batch_size=2/report.html", time.monotonic() + 90
    while time.monotonic() < end and not first.exists():
        time.sleep(0.1)
    time.sleep(1)

    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 3, said
    assert "interrupted" in said
    assert "benchmarks resume r" in said
    assert "Traceback" not in said
    assert left_over(tmp_path) == []
    kept = json.loads((tmp_path / "r/summary.json").read_text(encoding="utf-8"))
    assert (kept["verdict"], kept["complete"]) == ("NO VERDICT", False)
    before = first.stat().st_mtime_ns

    done = subprocess.run([*command, "resume", "r"], capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "r/summary.json").read_text(encoding="utf-8"))
    assert last["changed"] == {"max_batch_size": 16}
    stages = [(Path(found["folder"]).parent.name, found["name"], found["pairs"]) for found in last["results"]]
    assert stages == [
        ("round-1", "max_batch_size=2", 2), ("round-1", "max_batch_size=16", 2), ("decision", "max_batch_size=16", 5),
    ]  # fmt: skip
    assert first.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_model_is_tuned(tmp_path, monkeypatch):
    """The real server: 16 at once and the instruction computed once, against one at a time, under 16 users."""
    monkeypatch.chdir(ROOT)

    code = main(
        ["environments/demo-baseline.yml", "space={max_batch_size: [16], enable_prefix_caching: [true]}", "pairs=12",
         f"out={tmp_path / 'r'}"]
    )  # fmt: skip

    summary = json.loads((tmp_path / "r/summary.json").read_text(encoding="utf-8"))
    assert (code, summary["changed"]) == (0, {"max_batch_size": 16, "enable_prefix_caching": True})
