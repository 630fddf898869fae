"""Rollouts with a known truth, judged by the gate's own code: a few here, all of them with SLOW=1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import simulate_rollouts as simulation
from benchmarks.gate import GateScenario
from runconfig import load


@pytest.fixture(scope="module")
def scenario():
    return load(GateScenario, Path(__file__).parents[2] / "benchmarks/configs/rollout_gate.yml")


def test_what_is_drawn_is_what_was_planted(scenario):
    """Counted in the records themselves, so that no rule of the gate has a part in it."""
    drawn = {kind: simulation.records(scenario, candidate, 7, "none") for kind, candidate in simulation.KINDS.items()}
    every_call = {kind: rows[rows["phase"] == "warmup"] for kind, rows in drawn.items()}
    measured = {kind: rows[rows["phase"] == "measure"] for kind, rows in drawn.items()}

    def median(kind, arm="b"):
        return measured[kind].loc[measured[kind]["arm"] == arm, "latency_s"].median()

    def right(kind, arm="b"):
        rows = every_call[kind][every_call[kind]["arm"] == arm]
        return (rows["category"] == rows["label"]).mean()

    assert median("good") / median("good", "a") == pytest.approx(1.0, abs=0.03)
    assert median("slower") / median("good") == pytest.approx(1.1, abs=0.01)
    failed = {kind: rows.groupby("arm")["ok"].apply(lambda ok: (~ok).mean()) for kind, rows in measured.items()}
    assert failed["errors"]["b"] == pytest.approx(0.02, abs=0.005)
    assert failed["errors"]["a"] == failed["good"]["b"] == 0
    assert right("good") == pytest.approx(right("good", "a"), abs=0.015)
    assert right("good") - right("wrong weights") == pytest.approx(0.9 * 0.1, abs=0.04)


@pytest.mark.parametrize("kind", simulation.KINDS)
def test_a_few_rollouts_of_each_kind_end_as_they_should(scenario, kind):
    for number in range(2):
        taken_back, asked = simulation.roll_out(scenario, kind, shares=1, number=number)
        assert taken_back == (kind != "good"), asked


def test_after_the_first_gate_only_evidence_against_a_candidate_takes_it_back(scenario, monkeypatch):
    said = iter(["PASS", "NO VERDICT", "PASS", "PASS", "FAIL", "NO VERDICT"])
    monkeypatch.setattr(simulation, "ask", lambda *_: simulation.Asked(next(said), 5))

    assert simulation.roll_out(scenario, "good", 2, 0)[0] is False
    assert simulation.roll_out(scenario, "good", 2, 0)[0] is True
    assert simulation.roll_out(scenario, "good", 2, 0)[0] is True


def test_a_missed_bar_is_told_and_ends_with_1(monkeypatch, capsys):
    """A gate that passes whatever comes keeps the bar of the good ones only."""
    monkeypatch.setattr(simulation, "ask", lambda *_: simulation.Asked("PASS", 5))
    monkeypatch.setattr(simulation, "ProcessPoolExecutor", _InThisProcess)

    code = simulation.main(["rollouts=4"])

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["missed"]) == (1, ["slower", "errors", "wrong weights"])


class _InThisProcess:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, values, chunksize):
        assert chunksize
        return map(function, values)


@pytest.mark.parametrize("words", [["rollouts=few"], ["rollouts=0"], ["rolouts=3"], ["gate=nowhere.yml"]])
def test_what_cannot_be_asked_is_said_in_one_line(words, capsys):
    assert simulation.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.computing
@pytest.mark.timeout(3600)
def test_every_bar_is_kept_in_full():
    rows = simulation.simulate(simulation.Settings(rollouts=100))
    print("\n".join(map(simulation.text_of, rows)))
    assert [row["kind"] for row in rows if not row["kept"]] == []
