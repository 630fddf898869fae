"""Predictions of memory and time, against what runs then take."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.training


@pytest.mark.parametrize(
    "words",
    [
        ["method=full", "batch=96", "micro_batch=96"],
        ["method=lora", "batch=64", "micro_batch=64", "dtype=bfloat16"],
    ],
    ids=lambda words: words[0],
)
def test_the_predicted_peak_is_what_a_run_takes(training, small, tmp_path, words):
    """Within 15 % of the process, and within a third of what the step adds to it."""
    words = [*words, f"run_dir={tmp_path / 'run'}", "steps=3", "evaluate_every=3", "checkpoint_every=null"]
    planned = training.task(run=["training.plan", str(small.config), *words])
    assert planned.status == 0, planned.stderr
    plan = json.loads(planned.stdout.splitlines()[-1])
    done = training.finetune(small.config, *words)
    assert done.status == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"]
    assert plan["peak_memory_bytes"] == pytest.approx(measured, rel=0.15)
    assert plan["steps"] == 3
    assert plan["seconds"] > 0


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
