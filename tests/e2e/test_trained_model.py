"""From raw calls to a served classifier: what is answered over HTTP is what the evaluation said.

Every command is run as a user runs it, in its own process and environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax

from benchmarks.figures.processes import request, serving
from model_server import classification
from model_server.cache import cache_dir
from model_server.engines.lmdeploy import LMDeployEngine
from training.parity import Reference, answers_of, compare
from training.scores import read_scores

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "environments" / "local.yml"
TRAINING = cache_dir() / "venvs/training/bin/python"
CALLS = 1_200
"""A tenth of them are for the test."""
EPSILON = 0.05
"""Of a probability: what INT8 may move."""

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]


def command(python, module, *words, status=0):
    """Run a command of the project; its last line of output, from JSON."""
    done = subprocess.run(
        [python, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


def finish(run_dir, *forms):
    """Evaluate a run and export it."""
    command(TRAINING, "training.evaluate", f"run_dir={run_dir}", "resamples=100", "accepted_accuracy=0.8")
    command(TRAINING, "training.export", f"run_dir={run_dir}", f"forms=[{', '.join(forms)}]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of method full with class weights, evaluated and exported, and the raw calls that it began with."""
    home = tmp_path_factory.mktemp("trained")
    calls, data, base, run = (home / name for name in ("calls.jsonl", "data", "base", "run"))
    command(sys.executable, "training.calls", f"out={calls}", f"count={CALLS}", "seed=3")
    command(
        sys.executable,
        "training.data",
        "training/configs/data_calls.yml",
        f"sources=[{{path: {calls}}}]",
        f"out={data}",
    )
    command(
        TRAINING,
        "training.new_base",
        "training/configs/new_base_tiny.yml",
        f"out={base}",
        f"data={data}",
        "replay=null",
        "vocabulary=1600",
    )
    words = [f"base_model={base}", f"data={data}", f"run_dir={run}", "class_weights=balanced", "replay=null"]
    size = ["steps=60", "batch=24", "micro_batch=24", "warmup_steps=10", "evaluate_every=60", "corruption=0"]
    command(TRAINING, "training.finetune", "training/configs/finetune_tiny.yml", *words, *size)
    finish(run, "merged", "openvino-int8")
    raw = [json.loads(line) for line in calls.read_text("utf-8").splitlines()]
    return SimpleNamespace(
        run=run, data=data, texts={call["conversation_id"]: call["input_text"] for call in raw}, home=home
    )


def evaluated(run):
    """The test calls of a run's evaluation: their ids, and calibrated probabilities worked from the files alone."""
    test = read_scores(run / "evaluation" / "scores.parquet")["test"]
    settings = json.loads((run / "best" / classification.FILE_NAME).read_bytes())
    weights = np.array([settings["log_class_weights"].get(letter, 0) for letter in settings["labels"]])
    return SimpleNamespace(
        ids=[call.conversation_id for call in test.calls],
        probabilities=softmax((test.logprobs - weights) / settings["temperature"], axis=1),
        names=list(settings["labels"].values()),
        threshold=settings["review_threshold"],
        temperature=settings["temperature"],
    )


def ask(server, texts):
    answers = []
    for text in texts:
        status, body = request(server.port, "POST", "/api/v1/classify", {"text": text})
        assert status == 200, body
        answers.append(json.loads(body))
    return answers


def differences(expected, answers):
    """Largest difference of a probability, and whether label and review are the same where they are clear."""
    found = np.array([[answer["probabilities"][name] for name in expected.names] for answer in answers])
    wanted = expected.probabilities[: len(answers)]
    for row, answer in zip(wanted, answers, strict=True):
        second, first = np.sort(row)[-2:]
        if first - second > EPSILON:
            assert answer["category"] == expected.names[int(row.argmax())]
        if abs(first - expected.threshold) > EPSILON:
            assert answer["needs_review"] == (first < expected.threshold)
        assert answer["confidence"] == pytest.approx(max(answer["probabilities"].values()))
    return float(np.abs(found - wanted).max())


def test_a_run_directory_is_served_as_it_was_evaluated(trained, tmp_path):
    """INT8 by engine openvino, asked with the calls as they were recorded: the server cleans and masks them itself."""
    expected = evaluated(trained.run)
    assert len(expected.ids) >= 100
    assert expected.temperature != 1, "what is compared must depend on it"
    assert 0 < np.mean(expected.probabilities.max(1) < expected.threshold) < 1
    with serving(LOCAL, [f"model_source={trained.run}"], tmp_path / "log") as server:
        answers = ask(server, [trained.texts[id_] for id_ in expected.ids])
        assert differences(expected, answers) < EPSILON
        found = command(
            sys.executable,
            "training.parity",
            f"run_dir={trained.run}",
            "forms=[]",
            f"urls={{served: {server.url}}}",
        )
    assert found["agree"] is True


def test_the_float_form_gives_the_very_probabilities(trained, tmp_path):
    """Engine transformers, merged weights: nothing is rounded, so a thousandth of temperature would show."""
    expected = evaluated(trained.run)
    words = [f"model_source={trained.run}", "engine=transformers", "resource_limits.memory_gb=4"]
    words += ["optimization_settings.enable_quantization=false", "optimization_settings.quantization_bits=16"]
    with serving(LOCAL, words, tmp_path / "log") as server:
        answers = ask(server, [trained.texts[id_] for id_ in expected.ids[:25]])
    assert differences(expected, answers) < 1e-4


def hotter(run, out):
    """A copy whose served form has another temperature, as one exported before the evaluation was run again has."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("checkpoints", "merged"))
    form = out / "openvino-int8"
    settings = classification.load_settings(form)
    classification.write_settings(settings.model_copy(update={"temperature": settings.temperature * 1.2}), form)
    (form / "manifest.json").unlink()
    return out


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (hotter, "served: its temperature is 1.2"),
        (lambda run, out: ROOT / "models" / "complaints-tiny", "clear calls have another label"),
    ],
    ids=["temperature", "weights of another run"],
)
def test_a_server_that_answers_otherwise_is_found(trained, tmp_path, served, told):
    source = served(trained.run, tmp_path / "served")
    with serving(LOCAL, [f"model_source={source}"], tmp_path / "log") as server:
        words = [f"run_dir={trained.run}", "forms=[]", f"urls={{served: {server.url}}}"]
        found = command(sys.executable, "training.parity", *words, status=1)
    assert found["agree"] is False
    assert told in found["stderr"]


def test_a_form_older_than_the_evaluation_is_found_and_named(trained, tmp_path):
    done = command(sys.executable, "training.parity", f"run_dir={hotter(trained.run, tmp_path / 'run')}", status=1)
    assert "openvino-int8: other settings: temperature" in done["stderr"]


@pytest.mark.lmdeploy
async def test_what_4_bits_for_lmdeploy_cost_is_measured_and_lmdeploy_itself_loses_the_same(trained, tmp_path):
    """Parity reads the packed weights back and asks transformers. LMDeploy's real API server unpacks them with its own
    code, in float16, and computes on the CPU (tests/model_server/engines/cpu_lmdeploy.py).
    """
    run = tmp_path / "run"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("checkpoints"))
    command(TRAINING, "training.export", f"run_dir={run}", "forms=[awq]")
    command(sys.executable, "training.parity", f"run_dir={run}", "forms=[awq]", "calls=60")
    [measured] = json.loads((run / "evaluation" / "parity.json").read_bytes())["forms"]
    assert (measured["form"], measured["judged"], measured["calls"]) == ("awq", False, 60)
    assert 0.001 < measured["largest_difference"] < 0.5, "rounded to 4 bits, and not to nonsense"
    assert abs(measured["accuracy_loss"]) < 0.1

    expected, settings = evaluated(run), classification.load_settings(run / "awq")
    engine = LMDeployEngine(
        model="awq",
        path=run / "awq",
        backend="pytorch",
        launcher=ROOT / "tests/model_server/engines/cpu_lmdeploy.py",
        context_tokens=1024,
        prefix_caching=False,
        top_logprobs=2_000,  # all: after so few steps the labels are not among the likeliest tokens yet
        load_timeout_s=300,
    )
    await engine.load()
    try:
        answers = await answers_of(engine, settings, [trained.texts[id_] for id_ in expected.ids[:60]])
    finally:
        await engine.close()
    assert engine.floored_labels == 0
    truth = read_scores(run / "evaluation" / "scores.parquet")["test"].truth[:60]
    reference = Reference(expected.probabilities[:60], truth, expected.threshold)
    served = compare("lmdeploy", reference, answers, EPSILON, 0.05, judged=False)
    assert served.accuracy == pytest.approx(measured["accuracy"], abs=1 / 60)
    assert served.largest_difference == pytest.approx(measured["largest_difference"], abs=0.01)
    assert served.temperature_ratio == pytest.approx(measured["temperature_ratio"], abs=0.01)


@pytest.mark.slow
def test_an_adapter_is_merged_and_served_as_it_was_evaluated(trained, tmp_path):
    run = tmp_path / "lora"
    words = [f"base_model={trained.run / 'best'}", f"data={trained.data}", f"run_dir={run}", "method=lora"]
    words += ["replay=null", "optimiser=adamw", "rationale_weight=0"]
    size = ["steps=10", "batch=24", "micro_batch=24", "warmup_steps=2", "evaluate_every=10"]
    command(TRAINING, "training.finetune", "training/configs/finetune_tiny.yml", *words, *size)
    finish(run, "adapter", "openvino-int8")
    assert json.loads((run / "adapter" / "adapter_config.json").read_bytes())["r"] == 16
    expected = evaluated(run)
    with serving(LOCAL, [f"model_source={run}"], tmp_path / "log") as server:
        answers = ask(server, [trained.texts[id_] for id_ in expected.ids])
    assert differences(expected, answers) < EPSILON
    before = evaluated(trained.run).probabilities
    assert np.abs(before - expected.probabilities).max() > 2 * EPSILON, "the adapter must have changed something"
