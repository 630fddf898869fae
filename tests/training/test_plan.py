"""Predictions of memory and time, against what runs then take."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from model_server.cache import cache_dir

pytestmark = pytest.mark.training
ROOT = Path(__file__).resolve().parents[2]
PYTHON = cache_dir() / "venvs/training/bin/python"


def report(module, words):
    command = [PYTHON, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.computing
def test_the_predicted_peak_is_what_a_run_takes(small, tmp_path):
    """Within 15 %, each in a process of its own, whose libraries count; the step takes a quarter of it here."""
    words = ["method=lora", "batch=64", "micro_batch=64", "dtype=bfloat16", "steps=3", "checkpoint_every=null"]
    words = [small.config, *words, f"run_dir={tmp_path / 'run'}"]
    predicted = report("training.plan", words)["peak_memory_bytes"]
    assert predicted == pytest.approx(report("training.finetune", words)["peak_memory_bytes"], rel=0.15)


def test_a_plan_says_how_long_the_run_will_take(training, small):
    """Steps of a second at most, and more steps take longer in proportion."""
    plans = []
    for steps in (10, 1000):
        done = training.task(run=["training.plan", str(small.config), f"steps={steps}"])
        assert done.status == 0, done.stderr
        plans.append(json.loads(done.stdout.splitlines()[-1]))
        assert f"{steps} steps of 8 calls" in done.stdout
    assert [plan["steps"] for plan in plans] == [10, 1000]
    assert 20 < plans[1]["training_s"] / plans[0]["training_s"] < 500
    # 14 matrices of rank 16: two blocks, each r * (in + out) summed over its seven layers.
    sizes = ((64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64))
    assert plans[0]["trainable_parameters"] == 2 * 16 * sum(map(sum, sizes))


def test_what_cannot_fit_is_refused_with_the_arithmetic(training, small):
    done = training.task(run=["training.plan", str(small.config), "batch=131072", "micro_batch=131072"])
    assert done.status == 2
    assert "this run does not fit: memory" in done.stderr
    assert "lower micro_batch or max_call_tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_number_of_parameters_is_that_of_the_network(training, small):
    """Counted on the network itself, by torch."""
    code = f"""
import json
from pathlib import Path
from transformers import Qwen3ForCausalLM
from training import base_model
model = Qwen3ForCausalLM.from_pretrained({str(small.base)!r})
shape = base_model.find({str(small.base)!r}).shape
print(json.dumps([base_model.parameter_count(shape), sum(p.numel() for p in model.parameters())]))
"""
    counted, true = training.code(code)
    assert counted == true
