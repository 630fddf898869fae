"""What each optimisation brings, on servers that are started; what their settings do is known (slots_server.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.candidates import refusal
from benchmarks.errors import UsageError
from benchmarks.optimisations import CONFIG, OptimisationsScenario, main, optimisations, proof, variant
from benchmarks.progress import Display
from runconfig import ConfigError, load

SERVER = Path(__file__).parent / "slots_server.py"
ROOT = Path(__file__).parents[2]
QUICK = (
    "duration_s=0.4", "users=16", "pause_s=0", "pairs=4", "max_calls=100", "verdict.max_accuracy_drop=0.08",
    "client_limits.loop_lag_p50_ms=50", "client_limits.cpu_share=1", "all_together=false",
)  # fmt: skip


def slots_server(environment, port):
    return [sys.executable, str(SERVER), str(environment), f"serving.port={port}"]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The laptop's, whose model is found from anywhere."""
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "environments" / "local.yml").read_text(encoding="utf-8"))
    raw["model_source"] = str(ROOT / raw["model_source"])
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.fixture
def measured(environment, calls_file):
    """Measure in an empty folder: exit code and summary."""

    def run(*words):
        scenario = load(
            OptimisationsScenario, CONFIG, [f"environment={environment}", f"calls={calls_file}", *QUICK, *words]
        )
        with Display(quiet=True) as display:
            return optimisations(scenario, display, slots_server)

    return run


def test_each_optimisation_is_measured_against_the_environment_without_any(measured, environment):
    """Batching is 16 times at 16 users; the stand-in's cache at 8 bits is faster and answers worse."""
    words = "{batching: {settings: {max_batch_size: 16}}, small_cache: {settings: {kv_cache_bits: 8}}}"
    code, summary = measured(f"optimisations={words}", "out=r")

    found = {result["name"]: result for result in summary["results"]}
    assert code == 0
    assert found["batching"]["answer"] == "PASS"
    assert found["batching"]["gain"] > 4
    assert found["batching"]["low"] > 1
    assert all(value > 0 for value in found["batching"]["memory_mb"])
    assert (found["small_cache"]["answer"], found["small_cache"]["key"]) == ("FAIL", "candidate_worse")
    reference = yaml.safe_load(Path("r/reference.yml").read_text(encoding="utf-8"))["optimization_settings"]
    assert (reference["max_batch_size"], reference["kv_cache_bits"]) == (1, 16)
    candidate = yaml.safe_load(Path("r/candidates/batching.yml").read_text(encoding="utf-8"))["optimization_settings"]
    assert candidate == reference | {"max_batch_size": 16}
    report = Path("r/report.md").read_text(encoding="utf-8")
    rows = [line for line in report.splitlines() if line.startswith("| `")]
    assert len(rows) == 2
    assert "MiB" in rows[0]
    assert (Path("r/batching/report.html")).exists()
    assert 'href="batching/report.html"' in Path(summary["report"]).read_text(encoding="utf-8")


def test_an_optimisation_brings_the_scenario_that_shows_it():
    words = "optimisations={a: {settings: {max_batch_size: 4}, scenario: {users: 3, verdict: {primary: latency_p50}}}}"
    scenario = load(OptimisationsScenario, CONFIG, [words, f"calls={ROOT}/data/calls.jsonl"])

    found = proof(scenario, "a")

    assert (found.users, found.verdict.primary, found.name) == (3, "latency_p50", "a")
    assert found.verdict.max_accuracy_drop == scenario.verdict.max_accuracy_drop
    assert proof(scenario, "all_together").users == scenario.users


def test_all_together_have_all_settings():
    words = "{a: {settings: {max_batch_size: 4}}, b: {settings: {kv_cache_bits: 8}, model_source: x}}"
    scenario = load(OptimisationsScenario, CONFIG, [f"optimisations={words}"])

    found = variant(scenario, "all_together")

    assert (dict(found.settings), found.model_source) == ({"max_batch_size": 4, "kv_cache_bits": 8}, "x")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (
            "optimisations={a: {settings: {max_batch_size: 4}, scenario: {user: 3}}}",
            ConfigError,
            "did you mean 'users'",
        ),
        ("optimisations={a: {settings: {}}}", ConfigError, "at least 1 item"),
        ("optimisations={a b: {settings: {max_batch_size: 4}}}", ConfigError, "pattern"),
        ("optimisations={all_together: {settings: {max_batch_size: 4}}}", ConfigError, "choose another"),
        ("reference={max_batch_size: 0}", UsageError, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_starts(measured, words, error, said):
    with pytest.raises(error, match=said):
        measured(words, "out=r")


def test_a_setting_that_the_server_refuses_is_said_in_one_line(environment):
    assert refusal(environment) is None
    raw = yaml.safe_load(environment.read_text(encoding="utf-8"))
    raw["resource_limits"]["memory_gb"] = 0.1
    environment.write_text(yaml.safe_dump(raw), encoding="utf-8")

    reason = refusal(environment)

    assert "GiB" in reason
    assert "\n" not in reason


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_model_is_faster_with_all_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    code = main(["environments/local.yml", "pairs=4", f"out={tmp_path / 'r'}"])

    summary = yaml.safe_load((tmp_path / "r/summary.json").read_text(encoding="utf-8"))
    found = {result["name"]: result for result in summary["results"]}
    assert code == 0
    assert found["all_together"]["gain"] > 1
    assert found["all_together"]["accuracy"][1] > 0.85
