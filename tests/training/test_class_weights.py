"""Class weights shift what a model says of rare categories; what it is served with takes them out again."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.training

# Eight things that callers say, as often as each other, and how often each is a billing matter; else it is sales.
SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.6)
PREPARE = f"""
import random
from pathlib import Path
from training import prepared
from training.records import TrainingData

def call(number, text, billing):
    return TrainingData(
        conversation_id=str(number), input_text=f"客户:{{'一二三四五六七八'[text]}}",
        complaint_category="收费争议" if billing else "营销误导", confidence_score=1, metadata={{}},
    )

def part(count, seed):
    rng = random.Random(seed)
    return [call(at, at % 8, rng.random() < {SHARES}[at % 8]) for at in range(count)]
"""


@pytest.fixture(scope="module")
def models(training, small, tmp_path_factory):
    """Name -> the settings that finetune wrote, and the probabilities of a billing matter by them, (8,)."""
    folder = tmp_path_factory.mktemp("weights")
    training.code(
        f"{PREPARE}\nprepared.write(Path({str(folder / 'data')!r}), "
        "{'train': part(4000, 0), 'validation': part(800, 1), 'test': part(80, 2)})\nprint(1)"
    )
    found = {}
    for name, weights in {"plain": "null", "balanced": "balanced"}.items():
        words = [f"class_weights={weights}", f"data={folder / 'data'}", f"run_dir={folder / name}", "method=full"]
        words += ["steps=200", "evaluate_every=200", "batch=64", "micro_batch=64", "learning_rate=2e-3"]
        done = training.finetune(small.config, *words)
        assert done.status == 0, done.stderr
        code = f"""{PREPARE}
import json
from model_server import classification
from training import scoring
best = Path({str(folder / name / "best")!r})
scored = scoring.score_parts(best, {{"texts": [call(at, at, True) for at in range(8)]}})["texts"]
settings = classification.load_settings(best)
without = settings.model_copy(update={{"log_class_weights": {{}}}})
print(json.dumps([
    settings.log_class_weights,
    *([classification.probabilities(row, each)["收费争议"] for row in scored.logprobs] for each in (settings, without)),
]))
"""
        found[name] = training.code(code)
    return found


def error(probabilities):
    """Mean distance from the true shares: what a calibration error measures, here without bins and without noise."""
    return sum(abs(said - true) for said, true in zip(probabilities, SHARES, strict=True)) / len(SHARES)


def test_a_run_with_class_weights_says_so_to_the_server_and_one_without_does_not(models):
    """Those of class_weights: balanced are n / (K n_k) over the categories that occur: one half over each share."""
    assert models["plain"][0] == {}
    billing = sum(SHARES) / len(SHARES)
    assert models["balanced"][0] == pytest.approx(
        {"A": math.log(0.5 / billing), "B": math.log(0.5 / (1 - billing))}, abs=0.1
    )


def test_corrected_probabilities_are_as_true_as_those_of_a_run_without_weights(models):
    """Measured: 0.02 without weights, 0.02 corrected, 0.21 uncorrected."""
    (_, plain, _), (_, corrected, uncorrected) = models["plain"], models["balanced"]
    assert error(plain) < 0.05
    assert error(corrected) < error(plain) + 0.02
    assert error(uncorrected) > 0.15
