"""The gate from end to end, between servers of which the truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.config import VerdictRules
from benchmarks.gate import GateScenario, levels_of_looks
from runconfig import ConfigError, load, validate

QUICK = ("duration_s=0.4", "users=4", "pause_s=0.02", "pairs=3", "max_pairs=10", "verdict.margin=0.1", "lang=en")
LABELLED = """
name: gate
dialect: classify
calls: calls.jsonl
max_calls: 200
users: 4
duration_s: 1
cover_calls: true
verdict: {primary: latency_p50, guards: {error_rate: 0.05}}
"""
TEXTS = """
name: gate
dialect: chat_stream
texts: [%s]
max_tokens: 16
users: 4
duration_s: 1
warmup_s: 0.2
verdict: {primary: latency_p50, guards: {ttft_p50: 0.3, tpot_p50: 0.3}}
"""


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys, calls_file):
    """Run a gate in an empty folder: exit code, the summary that was written, and what was said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labelled.yml").write_text(LABELLED, encoding="utf-8")
    prompts = ", ".join(f"为什么第 {n} 次打不通" for n in range(40))
    (tmp_path / "texts.yml").write_text(TEXTS % prompts, encoding="utf-8")

    def run(scenario, a, b, *words):
        code = main(["gate", f"{scenario}.yml", f"a={a.url}", f"b={b.url}", "out=r", *QUICK, *words, "--quiet"])
        out, err = capsys.readouterr()
        path = Path("r/summary.json")
        return code, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None, out + err

    return run


@pytest.fixture(scope="module")
def steady(truth_server):
    return truth_server("service_ms=20", "ttft_ms=12", "tpot_ms=1.2", "tokens=16")


def keys(summary):
    return {finding["key"]: finding["answer"] for finding in summary["findings"]}


def test_equal_servers_pass_as_soon_as_that_is_certain(gate, steady, truth_server):
    code, summary, said = gate("labelled", steady, truth_server("service_ms=20"))

    assert (code, summary["verdict"]) == (0, "PASS"), said
    assert summary["sequential"]["stopped"] == "decided"
    assert 3 <= summary["comparison"]["pairs"] < 10
    assert summary["comparison"]["ratio"] == pytest.approx(1, abs=0.05)
    assert keys(summary)["share_kept"] == "PASS"
    assert "PASS" in said
    folder = {path.name for path in Path("r").iterdir()}
    assert {"summary.json", "requests.parquet", "report.html"} <= folder


def test_a_server_passes_against_itself_with_texts_too(gate, steady):
    code, summary, said = gate("texts", steady, steady)

    assert (code, summary["verdict"]) == (0, "PASS"), said
    assert summary["quality"]["exact_match"] == 1.0
    assert summary["quality"]["length_ratio"] == pytest.approx(1)
    assert keys(summary) | {"texts_kept": "PASS", "guard_kept": "PASS"} == keys(summary)


def test_twenty_percent_slower_fails(gate, steady, truth_server):
    code, summary, said = gate("labelled", steady, truth_server("service_ms=24"), "verdict.margin=0.05")

    assert (code, summary["verdict"]) == (1, "FAIL"), said
    assert summary["comparison"]["ratio"] == pytest.approx(1.2, rel=0.05)
    assert keys(summary)["speed_slower"] == "FAIL"


def test_too_few_pairs_are_no_verdict(gate, truth_server):
    """Two pairs leave one degree of freedom, and the requests of these servers differ by 50 %."""
    a, b = truth_server("service_ms=10", "jitter=0.5"), truth_server("service_ms=10", "jitter=0.5", "seed=1")

    code, summary, said = gate("labelled", a, b, "pairs=2", "max_pairs=null", "verdict.margin=0.02")

    assert (code, summary["verdict"]) == (3, "NO VERDICT"), said
    assert "run more pairs" in said


def test_faster_but_wrong_fails(gate, steady, truth_server):
    code, summary, said = gate("labelled", steady, truth_server("service_ms=10", "wrong_share=0.2"))

    assert (code, summary["verdict"]) == (1, "FAIL"), said
    found = keys(summary)
    assert (found["speed_faster"], found["accuracy_broken"]) == ("PASS", "FAIL")
    assert summary["quality"]["accuracy_a"] == 1
    assert summary["quality"]["accuracy_b"] == pytest.approx(0.8, abs=0.1)
    assert len(summary["sequential"]["looks"]) <= 1, "there is nothing to wait for"


def test_faster_but_with_other_texts_fails(gate, steady, truth_server):
    other = truth_server("ttft_ms=6", "tpot_ms=0.6", "tokens=16", "wrong_text_share=0.4")

    code, summary, said = gate("texts", steady, other)

    assert (code, summary["verdict"]) == (1, "FAIL"), said
    assert keys(summary)["texts_broken"] == "FAIL"
    assert summary["quality"]["exact_match"] == pytest.approx(0.6, abs=0.2)


def test_shorter_answers_get_no_verdict_on_speed(gate, steady, truth_server):
    """They are faster, and as far as they go the same."""
    short = truth_server("ttft_ms=12", "tpot_ms=1.2", "tokens=16", "shorter_share=0.6")

    code, summary, said = gate("texts", steady, short, "max_pairs=4")

    assert (code, summary["verdict"]) == (3, "NO VERDICT"), said
    found = keys(summary)
    assert found["lengths_differ"] == "NO VERDICT"
    assert found["texts_kept"] == "PASS"
    assert not any(key.startswith("speed") for key in found)
    assert summary["quality"]["length_ratio"] == pytest.approx(1 - 0.6 / 2, abs=0.12)
    assert "Speed is not judged: B's answers are" in said


def test_a_baseline_that_fails_is_no_baseline(gate, steady, truth_server):
    code, summary, said = gate("labelled", truth_server("service_ms=20", "error_share=0.3"), steady)

    assert (code, summary["verdict"]) == (4, "INVALID"), said
    assert keys(summary)["errors_many"] == "INVALID"


def test_a_budget_ends_it_without_a_verdict(gate, steady):
    code, summary, said = gate("labelled", steady, steady, "budget_s=3", "pairs=8", "max_pairs=40", "duration_s=0.8")

    assert (code, summary["verdict"]) == (3, "NO VERDICT")
    assert summary["sequential"]["stopped"] == "budget"
    assert summary["sequential"]["pairs"] < 8
    assert "budget of 3 s was spent" in said


def test_one_look_has_all_of_alpha_and_many_share_it():
    rules = VerdictRules()

    assert levels_of_looks(8, None, rules) == {8: 0.05}
    assert levels_of_looks(8, 8, rules) == {8: 0.05}
    many = levels_of_looks(5, 16, rules)
    assert list(many) == list(range(5, 17))
    assert max(many.values()) < 0.05 < sum(many.values()), "they overlap, so their sum may be more than alpha"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"max_pairs": 4}, "max_pairs=4 is below pairs=5"), ({"budget_s": 0}, "budget_s"), ({"maxpairs": 9}, "max_pairs")],
)
def test_what_cannot_be_asked_is_refused(change, said):
    raw = {"texts": ["x"], "users": 1, "requests": 1, "pairs": 5} | change

    with pytest.raises(ConfigError) as caught:
        validate(GateScenario, raw, "test.yml")

    assert said in str(caught.value)


def test_goodput_without_limits_is_refused(gate, steady):
    code, _, said = gate("labelled", steady, steady, "verdict.guards.goodput=0.05")

    assert code == 2
    assert "needs verdict.limits" in said


def test_the_rollout_gate_is_a_gate():
    scenario = load(GateScenario, Path(__file__).parents[2] / "benchmarks/configs/rollout_gate.yml")

    assert scenario.max_pairs is not None
    assert scenario.verdict.primary not in scenario.verdict.guards
