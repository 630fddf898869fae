"""When do two forms of a model give the same labels?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from model_server import classification
from model_server.classification import LABELS
from training.calls import make_splits
from training.parity import Reference, compare
from training.scores import Scored, write_scores
from training.tiny import TinySettings

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "complaints-tiny"
NAMES = list(LABELS.values())
CALLS = 40


def answers(rows, threshold=0.0):
    return [
        {
            "category": NAMES[int(np.argmax(row))],
            "probabilities": dict(zip(NAMES, row, strict=True)),
            "needs_review": bool(row.max() < threshold),
        }
        for row in rows
    ]


def leads(*of):
    """One call for each lead of the first category over the second, in calibrated probability."""
    rows = np.zeros((len(of), 12))
    rows[:, 0] = [(1 + lead) / 2 for lead in of]
    rows[:, 1] = [(1 - lead) / 2 for lead in of]
    return rows


def judged(expected, found, *, truth=None, epsilon=0.05, threshold=0.0, judged=True, **settings):
    truth = np.zeros(len(expected), dtype=int) if truth is None else np.array(truth)
    reference = Reference(expected, truth, threshold)
    return compare("form", reference, found, epsilon, 0.05, judged=judged, **settings)


def test_a_label_may_differ_where_the_lead_is_within_epsilon_and_nowhere_else():
    trained, truth = leads(0.5, 0.04, 0.06), [0, 1, 0]
    swapped = trained[:, [1, 0, *range(2, 12)]]
    form = answers([trained[0], swapped[1], swapped[2]])
    found = judged(trained, form, truth=truth)
    assert (found.clear, found.differing, found.differing_unclear) == (2, 1, 1)
    assert found.largest_difference == pytest.approx(0.06)
    assert (found.accuracy, found.accuracy_loss) == (pytest.approx(2 / 3), 0)
    assert found.faults == ("1 of 2 clear calls have another label",)
    assert judged(trained, form, truth=truth, epsilon=0.07).agrees
    assert judged(trained, form, truth=truth, judged=False).agrees


def test_an_engine_without_probabilities_is_compared_by_its_labels():
    form = [{"category": name, "probabilities": None, "needs_review": True} for name in NAMES[:2]]
    found = judged(leads(0.5, 0.5), form, threshold=0.2)
    assert (found.differing, found.largest_difference, found.temperature_ratio) == (1, None, None)
    assert found.differing_review == 0, "who gives no probability asks for review always"


def test_another_temperature_is_found_though_every_label_is_right():
    """Log-odds at 1.2 times the temperature, with the rounding of a quantised form on top: a tenth of a nat."""
    rng = np.random.default_rng(0)
    scores = log_softmax(rng.normal(size=(200, 12)) * 3, axis=1)
    noise = rng.normal(size=scores.shape) * 0.1
    for temperature, agrees in ((1.0, True), (1.02, True), (1.2, False), (0.8, False)):
        found = judged(softmax(scores, axis=1), answers(softmax((scores + noise) / temperature, axis=1)), epsilon=0.4)
        assert found.temperature_ratio == pytest.approx(temperature, abs=0.01)
        assert found.differing == 0
        assert found.agrees is agrees
    assert judged(leads(0.0), answers(leads(0.0))).temperature_ratio is None


def test_another_review_threshold_is_found():
    trained = leads(0.9, 0.5, 0.0)
    found = judged(trained, answers(trained, threshold=0.9), threshold=0.7, epsilon=0.1)
    assert found.differing_review == 0, "0.75 is within epsilon of the threshold"
    found = judged(trained, answers(trained, threshold=0.9), threshold=0.7, epsilon=0.01)
    assert found.faults == ("1 calls are sent to review, or not, against the threshold",)


def test_other_settings_are_a_fault_of_forms_that_are_not_judged_too():
    found = judged(leads(0.5), answers(leads(0.5)), judged=False, other_settings=["temperature"])
    assert found.faults == ("other settings: temperature",)


@pytest.fixture
def run_dir(tmp_path):
    """The embedded model as a run left it: best, one form, and what the float model scored (reference_scores.json)."""
    for folder in ("best", "openvino-int8"):
        shutil.copytree(MODEL, tmp_path / folder)
    (tmp_path / "evaluation").mkdir()
    recorded = json.loads((MODEL / "reference_scores.json").read_text("utf-8"))
    calls = make_splits(TinySettings().calls, {"test": CALLS})["test"]
    logprobs = np.array([recorded[call.conversation_id] for call in calls])
    write_scores({"test": Scored(calls, logprobs)}, tmp_path / "evaluation" / "scores.parquet")
    return tmp_path


def judge(run_dir, *words):
    command = [sys.executable, "-m", "training.parity", f"run_dir={run_dir}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_served_form_gives_the_labels_that_were_evaluated(run_dir):
    done = judge(run_dir)
    assert done.returncode == 0, done.stderr
    [form] = json.loads((run_dir / "evaluation" / "parity.json").read_text())["forms"]
    assert (form["form"], form["calls"], form["differing"]) == ("openvino-int8", CALLS, 0)
    assert 0 < form["largest_difference"] < 0.1
    assert form["temperature_ratio"] == pytest.approx(1, abs=0.005)


def test_a_form_with_another_prompt_is_caught(run_dir):
    """Template drift, the most frequent fault of served fine-tunes: here the letters' order in the instruction."""
    settings = classification.load_settings(run_dir / "openvino-int8")
    prefix = settings.prompt_prefix.replace("A 收费争议\nB 营销误导\n", "")
    drifted = settings.model_copy(
        update={
            "prompt_prefix": prefix,
            "prompt_sha256": classification.prompt_sha256(prefix, settings.prompt_suffix),
            "labels": {letter: NAMES[at - 1] for at, letter in enumerate(settings.labels)},
        }
    )
    classification.write_settings(drifted, run_dir / "openvino-int8")
    manifest = run_dir / "openvino-int8" / "manifest.json"
    manifest.unlink()
    done = judge(run_dir)
    assert done.returncode == 1, done.stderr
    assert '"agree": false' in done.stdout
    assert "openvino-int8: other settings: labels, prompt_prefix, prompt_sha256" in done.stderr
    assert "clear calls have another label" in done.stderr


def test_a_run_without_scores_or_a_server_that_is_not_there_is_named(run_dir):
    done = judge(run_dir, "urls={gone: http://127.0.0.1:9}")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 does not answer" in done.stderr
    (run_dir / "evaluation" / "scores.parquet").unlink()
    done = judge(run_dir)
    assert done.returncode == 2
    assert "evaluate without again=true first" in done.stderr
    assert "Traceback" not in done.stderr
