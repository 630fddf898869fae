"""What is said of a classifier, on scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from model_server.classification import LABELS
from model_server.errors import ConfigurationError
from training.evaluate import calibrate, compare, labelled_lines, measure, slices
from training.records import TrainingData
from training.scores import Scored, read_scores, write_scores

NAMES = list(LABELS.values())


def scored(calls, *, seed, temperature=1.0):
    """Calls whose category is drawn from the very probabilities that the scores say at ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(calls, 12)) * 2.5
    truth = [rng.choice(12, p=np.exp(log_softmax(row))) for row in logits]
    rows = [
        TrainingData(
            conversation_id=f"{seed}-{at}",
            input_text="客户:喂" * (1 + at % 9),
            complaint_category=NAMES[category],
            confidence_score=1,
            metadata={"customer_id": str(at // 2), "kind": "plain" if at % 3 else "ordinal", "asr": at % 4 == 0},
        )
        for at, category in enumerate(truth)
    ]
    return Scored(rows, log_softmax(logits * temperature, axis=1))


def test_scores_that_are_three_times_too_sure_are_as_sure_as_they_are_right_afterwards():
    calibration = calibrate(scored(4000, seed=1, temperature=3), 0.95)
    assert calibration.temperature == pytest.approx(3, rel=0.05)
    found = measure(scored(4000, seed=2, temperature=3), calibration, resamples=100, seed=0)
    assert found["ece_15_uncalibrated"] > 0.15
    assert found["ece_15"] < 0.03
    assert found["nll"] < found["nll_uncalibrated"]
    # Fitted on other calls: about as right as asked for.
    assert found["accepted_accuracy"] == pytest.approx(0.95, abs=0.02)


def test_the_figures_of_a_part_agree_with_each_other():
    part = scored(600, seed=3)
    found = measure(part, calibrate(part, 0.9), resamples=200, seed=0)
    table = np.array(found["confusion"])
    assert table.sum() == found["calls"] == 600
    assert np.trace(table) / 600 == pytest.approx(found["accuracy"])
    assert [row["calls"] for row in found["per_class"].values()] == table.sum(1).tolist()
    assert np.mean([row["f1"] for row in found["per_class"].values()]) == pytest.approx(found["macro_f1"])
    for figure in ("accuracy", "macro_f1"):
        low, high = found[f"{figure}_interval"]
        assert low < found[figure] < high
    assert sum(row["calls"] for row in found["reliability"]) == 600
    assert found["risk_coverage"][-1] == [1, pytest.approx(1 - found["accuracy"])]
    kinds = found["slices"]["kind=ordinal"], found["slices"]["kind=plain"]
    assert sum(row["calls"] * row["accuracy"] for row in kinds) == pytest.approx(600 * found["accuracy"])


def test_a_category_that_never_occurs_has_no_recall_and_is_left_out_of_the_mean():
    part = scored(300, seed=4)
    kept = [at for at, call in enumerate(part.calls) if call.complaint_category != NAMES[3]]
    logprobs = part.logprobs[kept]
    logprobs[:, 3] = -50
    part = Scored([part.calls[at] for at in kept], logprobs)
    found = measure(part, calibrate(part, 0.9), resamples=100, seed=0)
    assert found["per_class"][NAMES[3]] == {"calls": 0, "precision": None, "recall": None, "f1": None}
    assert np.isfinite(found["macro_f1"])


def test_a_worse_classifier_is_behind_and_an_equal_one_is_not():
    part = scored(800, seed=5)
    ours = [NAMES[at] for at in part.logprobs.argmax(1)]
    other = compare(part, {"same": ours, "one": [NAMES[0]] * 800}, resamples=300, seed=0)
    assert other["same"]["macro_f1_lead"] == 0
    assert other["same"]["mcnemar"]["p_value"] == 1
    assert other["one"]["macro_f1_lead_interval"][0] > 0.3
    assert other["one"]["mcnemar"]["p_value"] < 1e-6


def test_fields_of_many_values_make_no_slices():
    found = slices(scored(60, seed=6).calls)
    assert {"asr", "kind=ordinal", "kind=plain"} < set(found)
    assert not [name for name in found if name.startswith("customer_id")]


def test_scores_are_read_back_as_they_were_written(tmp_path):
    parts = {"validation": scored(5, seed=7), "test": scored(9, seed=8)}
    write_scores(parts, tmp_path / "scores.parquet")
    again = read_scores(tmp_path / "scores.parquet")
    assert list(again) == ["validation", "test"]
    for name, part in parts.items():
        assert list(again[name].calls) == part.calls
        assert np.array_equal(again[name].logprobs, part.logprobs)


def test_further_calls_that_cannot_be_used_are_refused_with_their_line(tmp_path):
    path = tmp_path / "calls.jsonl"
    good = scored(1, seed=9).calls[0].model_dump_json()
    for line, said in (
        ("{", "calls.jsonl"),
        (good.replace("conversation_id", "id"), "calls.jsonl:2"),
        (good.replace(scored(1, seed=9).calls[0].complaint_category, "别的"), "calls.jsonl:2: complaint_category"),
    ):
        path.write_text(f"{good}\n{line}\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match=said):
            labelled_lines(path)
