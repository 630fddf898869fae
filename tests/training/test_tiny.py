"""The embedded model as it is served, against the float model it was made from and against the truth."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from model_server import capacity, classification, deployment, engines, model_source, tokenizer
from model_server.cache import cache_dir
from model_server.engine import Message, Sampling
from model_server.masking import mask
from training.baselines import keyword_category
from training.calls import CallSettings, make_splits
from training.metrics import macro_f1

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "complaints-tiny"
TRAINING = cache_dir() / "venvs/training/bin/python"


@pytest.fixture(scope="module")
def evaluation():
    return json.loads((MODEL / "evaluation.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def test_calls(evaluation):
    """The very calls that the training run was measured on, generated again."""
    return make_splits(CallSettings(**evaluation["config"]["calls"]), {"test": 1000})["test"]


async def loaded(model):
    config = deployment.load(ROOT / "environments" / "local.yml", [f"model_source={model}"], environ={})
    files = model_source.resolve(str(model))
    engine = engines.create(config, capacity.check(config, files), files)
    await engine.load()
    return engine


async def scores_of(engine, calls, model):
    settings = classification.load_settings(model)
    prompts = []
    for call in calls:
        text = classification.prepare_call(call.input_text, settings, lambda part: engine.prompt(part).tokens)
        prompts.append(engine.prompt(classification.prompt_text(text, settings)))
    ids = list(settings.label_ids.values())
    return [row for at in range(0, len(prompts), 16) for row in await engine.score(prompts[at : at + 16], ids)]


def compared(served, reference, settings):
    """Largest difference of a probability, and categories that differ where the float model leads by over 0.05."""
    difference, flipped = 0.0, 0
    for ours, theirs in zip(served, reference, strict=True):
        p, q = (np.array(list(classification.probabilities(row, settings).values())) for row in (ours, theirs))
        difference = max(difference, float(abs(p - q).max()))
        second, first = np.sort(q)[-2:]
        flipped += p.argmax() != q.argmax() and first - second > 0.05
    return difference, flipped


def test_the_directory_is_what_was_prepared_and_small():
    manifest = model_source.verify(MODEL)
    assert (manifest.engine, manifest.weight_bits) == ("openvino", 8)
    assert manifest.command == "python -m training.tiny training/configs/complaints_tiny.yml"
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8_000_000


def test_its_tokeniser_and_its_label_ids_belong_together():
    settings = classification.load_settings(MODEL)
    classification.check_labels(settings, tokenizer.load(MODEL).encode, str(MODEL))
    assert list(settings.labels) == list("ABCDEFGHIJKL")


def test_its_chat_template_renders_the_prompt_it_was_trained_with():
    settings = classification.load_settings(MODEL)
    rendered = tokenizer.load(MODEL).chat(classification.prompt_messages("客户:喂", settings))
    assert rendered == classification.prompt_text("客户:喂", settings)


async def test_served_it_scores_like_the_float_model_and_beats_the_keywords(test_calls, capsys):
    """The bars of the project: macro-F1 >= 0.90 where keywords stay under 0.70; INT8 costs next to nothing."""
    settings = classification.load_settings(MODEL)
    reference = json.loads((MODEL / "reference_scores.json").read_text("utf-8"))
    engine = await loaded(MODEL)
    try:
        served = await scores_of(engine, test_calls, MODEL)
    finally:
        await engine.close()
    assert [call.conversation_id for call in test_calls[: len(reference)]] == list(reference)
    difference, flipped = compared(served[: len(reference)], reference.values(), settings)
    truth = [call.complaint_category for call in test_calls]
    chosen = [classification.decide(row, settings)["category"] for row in served]
    keywords = [keyword_category(mask(classification.clean_call(call.input_text))) for call in test_calls]
    with capsys.disabled():
        print(
            f"\nserved macro-F1 {macro_f1(truth, chosen):.3f}, keywords {macro_f1(truth, keywords):.3f}; "
            f"max |dp| to the float model {difference:.4f} on {len(reference)} calls"
        )
    assert len(reference) == 200
    assert flipped == 0
    assert difference < 0.2
    assert macro_f1(truth, keywords) < 0.70
    assert macro_f1(truth, chosen) >= 0.90
    # What drift is measured against: these very answers.
    decisions = [classification.decide(row, settings) for row in served]
    assert settings.expected.calls == len(truth)
    assert settings.expected.confidence == pytest.approx(np.mean([one["confidence"] for one in decisions]), abs=0.005)
    assert {name: round(share * len(truth)) for name, share in settings.expected.categories.items()} == pytest.approx(
        {name: chosen.count(name) for name in settings.expected.categories}, abs=5
    )


async def test_confidence_is_lower_where_it_is_wrong(test_calls):
    """Calls sent to a person must be wrong more often than the others, or review is a lottery."""
    settings = classification.load_settings(MODEL)
    engine = await loaded(MODEL)
    try:
        served = await scores_of(engine, test_calls[:400], MODEL)
    finally:
        await engine.close()
    decisions = [classification.decide(row, settings) for row in served]
    right = [one["category"] == call.complaint_category for one, call in zip(decisions, test_calls, strict=False)]
    accepted = [ok for ok, one in zip(right, decisions, strict=True) if not one["needs_review"]]
    review = [ok for ok, one in zip(right, decisions, strict=True) if one["needs_review"]]
    assert review
    assert sum(accepted) / len(accepted) > 0.95
    assert sum(review) / len(review) < sum(accepted) / len(accepted) - 0.2


async def test_in_a_chat_it_answers_in_chinese():
    engine = await loaded(MODEL)
    try:
        prompt = engine.prompt([Message("user", "你好,请介绍一下你自己。")])
        chunks = [chunk async for chunk in engine.generate(prompt, Sampling(max_tokens=128))]
    finally:
        await engine.close()
    answer = "".join(chunk.text for chunk in chunks)
    assert len(chunks) > 5
    assert chunks[-1].finish_reason == "stop"
    assert "投诉" in answer
    assert "\ufffd" not in answer


@pytest.mark.training
async def test_a_small_run_learns_and_its_export_scores_like_its_float_model(tmp_path):
    """The whole path of the one command, in a minute's worth of steps: what it writes is loaded and compared."""
    words = [f"out={tmp_path / 'out'}", f"run_dir={tmp_path / 'run'}", "steps=60", "evaluate_every=30", "batch=32"]
    words += [
        "train_calls=600",
        "validation_calls=100",
        "test_calls=200",
        "warmup_steps=10",
        "layers=2",
        "chat_batch=2",
    ]
    command = [TRAINING, "-m", "training.tiny", ROOT / "training" / "configs" / "complaints_tiny.yml", *words]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["train_loss"] > steps[1]["train_loss"]
    # Twelve tokens of about 1,600 hold 0.0075 of the probability before anything is learned.
    assert steps[1]["validation_label_mass"] > 10 * 0.0075
    calls = make_splits(CallSettings(**report["config"]["calls"]), {"test": 200})["test"]
    engine = await loaded(tmp_path / "out")
    try:
        served = await scores_of(engine, calls, tmp_path / "out")
    finally:
        await engine.close()
    reference = json.loads((tmp_path / "out" / "reference_scores.json").read_text())
    difference, flipped = compared(served, reference.values(), classification.load_settings(tmp_path / "out"))
    assert (flipped, len(served)) == (0, 200)
    assert difference < 0.1


@pytest.mark.training
def test_temperature_threshold_and_loss_agree_with_worked_examples():
    """Run where torch is; what it prints is compared with numbers from elsewhere."""
    code = """
import json, math, numpy as np, torch
from training.label_tokens import label_loss
from training.metrics import calibration_error, fit_temperature, review_threshold
torch.manual_seed(0)
true = torch.randn(20000, 12) * 2
truth = torch.distributions.Categorical(logits=true).sample()
logits = torch.zeros(1, 20); logits[0, 3] = math.log(9)
print(json.dumps({
    "temperature": [fit_temperature((true * t).numpy(), truth.numpy()) for t in (0.5, 1.0, 3.0)],
    "threshold": review_threshold(np.array([.9, .8, .7, .6]), np.array([True, True, False, True]), 0.99),
    "none": review_threshold(np.array([.9, .8]), np.array([False, True]), 0.99),
    "ece": calibration_error(np.array([.95, .95, .55, .55]), np.array([True, False, True, True])),
    "loss": label_loss(logits, torch.tensor([3, 4]), torch.tensor([0]), 0.1).item(),
}))
"""
    done = subprocess.run([TRAINING, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # A known temperature is recovered within 2 %.
    assert found["temperature"] == pytest.approx([0.5, 1.0, 3.0], rel=0.02)
    assert found["threshold"] == pytest.approx(0.8)
    assert found["none"] == 1.0
    # Two bins of two calls: |0.5 - 0.95| and |1 - 0.55|, each half of the calls.
    assert found["ece"] == pytest.approx(0.45)
    # Label probabilities are 0.9 and 0.1, their mass is 10/28: -ln 0.9 - 0.1 ln(10/28).
    assert found["loss"] == pytest.approx(0.10536 + 0.1 * 1.02962, abs=1e-4)


@pytest.mark.training
def test_a_misspelled_setting_is_explained():
    command = [TRAINING, "-m", "training.tiny", "training/configs/complaints_tiny.yml", "stepss=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "did you mean 'steps'" in done.stderr
    assert "Traceback" not in done.stderr
