"""When do two forms of a model give the same labels?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_server import classification
from model_server.classification import LABELS
from training.calls import make_splits
from training.parity import compare
from training.scores import Scored, write_scores
from training.tiny import TinySettings

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "complaints-tiny"
NAMES = list(LABELS.values())
CALLS = 40


def answer(row):
    return {"category": NAMES[int(np.argmax(row))], "probabilities": dict(zip(NAMES, row, strict=True))}


def reference(*leads):
    """One call for each lead of the first category over the second, in calibrated probability."""
    rows = np.zeros((len(leads), 12))
    rows[:, 0] = [(1 + lead) / 2 for lead in leads]
    rows[:, 1] = [(1 - lead) / 2 for lead in leads]
    return rows


def test_a_label_may_differ_where_the_lead_is_within_epsilon_and_nowhere_else():
    trained, truth = reference(0.5, 0.04, 0.06), np.array([0, 1, 0])
    swapped = trained[:, [1, 0, *range(2, 12)]]
    form = np.stack([trained[0], swapped[1], swapped[2]])
    found = compare("form", trained, [answer(row) for row in form], truth, 0.05, judged=True)
    assert (found.clear, found.differing, found.differing_unclear) == (2, 1, 1)
    assert found.largest_difference == pytest.approx(0.06)
    assert (found.accuracy, found.accuracy_loss) == (pytest.approx(2 / 3), 0)
    assert not found.agrees
    assert compare("form", trained, [answer(row) for row in form], truth, 0.07, judged=True).agrees
    assert compare("int4", trained, [answer(row) for row in form], truth, 0.05, judged=False).agrees


def test_an_engine_without_probabilities_is_compared_by_its_labels():
    trained = reference(0.5, 0.5)
    answers = [{"category": NAMES[0], "probabilities": None}, {"category": NAMES[1], "probabilities": None}]
    found = compare("ollama", trained, answers, np.array([0, 0]), 0.05, judged=True)
    assert (found.differing, found.largest_difference) == (1, None)


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


def test_a_run_without_scores_or_a_server_that_is_not_there_is_named(run_dir):
    done = judge(run_dir, "urls={gone: http://127.0.0.1:9}")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 does not answer" in done.stderr
    (run_dir / "evaluation" / "scores.parquet").unlink()
    done = judge(run_dir)
    assert done.returncode == 2
    assert "evaluate without again=true first" in done.stderr
    assert "Traceback" not in done.stderr
