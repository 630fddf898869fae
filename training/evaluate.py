"""How good a trained classifier is, said once for everybody: JSON, Markdown, a page with plots, and its card.

    python -m training.evaluate run_dir=runs/finetune-... [data=data/prepared] [more='{natural: FILE.jsonl}']

in the training environment. It scores the validation and test calls with the model in ``run_dir/best``, fits
temperature and review threshold on the validation calls alone and writes them into the model's
``classification.json``, and measures once on the test calls, beside keyword rules and character n-grams with
logistic regression that learned from the same training calls. In ``run_dir/evaluation``:

    evaluation.json   every figure
    evaluation.md     the same to read; index.html with plots
    scores.parquet    one row a call: truth, label log-probabilities, part; from it all of the above can be made again
                      without the model: ``again=true``

``run_dir/result.json`` is the run's :class:`~training.records.FineTuningResult`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy.special import softmax

import runconfig
from model_server import classification
from model_server.classification import LABELS
from model_server.errors import ConfigurationError, DeploymentError
from training import baselines, metrics, prepared
from training.errors import DataError
from training.records import FineTuningResult, TrainingData
from training.scores import Scored, read_scores, write_scores

MOST_KINDS = 12
"""A field of the metadata with more values than this makes no slices."""
CURVE_POINTS = 100


class EvaluationSettings(runconfig.RunConfig):
    """What to measure."""

    run_dir: Path
    data: Path | None = None
    """Prepared folder; None takes the one the run was trained on."""
    more: dict[str, Path] = Field(default_factory=dict)
    """Name -> JSON lines of further labelled calls, measured beside the test calls."""
    accepted_accuracy: float = Field(default=0.99, gt=0, le=1)
    """The review threshold is the lowest confidence above which validation calls are right this often."""
    resamples: int = Field(default=2_000, ge=100)
    """Of the bootstrap."""
    seed: int = 0
    again: bool = False
    """Measure anew from scores.parquet; no model is loaded."""


@dataclass(frozen=True)
class Calibration:
    """What is fitted on validation calls."""

    temperature: float
    review_threshold: float


def calibrate(validation: Scored, accepted_accuracy: float) -> Calibration:
    temperature = metrics.fit_temperature(validation.logprobs, validation.truth)
    sure = softmax(validation.logprobs / temperature, axis=1)
    right = sure.argmax(1) == validation.truth
    threshold = metrics.review_threshold(sure.max(1), right, accepted_accuracy)
    return Calibration(round(temperature, 4), round(threshold, 4))


def measure(scored: Scored, calibration: Calibration, *, resamples: int, seed: int) -> dict[str, Any]:
    """Every figure of one part, with 95 % intervals from a bootstrap over customers."""
    names, truth = list(LABELS.values()), scored.truth
    raw = softmax(scored.logprobs, axis=1)
    sure = softmax(scored.logprobs / calibration.temperature, axis=1)
    chosen, confidence = sure.argmax(1), sure.max(1)
    right = chosen == truth
    table = metrics.confusion(truth, chosen, len(names))
    accepted = confidence >= calibration.review_threshold
    coverage, risk = metrics.risk_coverage(confidence, right)
    shown = np.unique(np.linspace(0, len(right) - 1, CURVE_POINTS).astype(int))
    draws = [
        (np.average(right, weights=often), np.nanmean(metrics.f1_scores(_weighted(truth, chosen, often, len(names)))))
        for often in metrics.resampled(_groups(scored.calls), resamples, seed)
    ]
    accuracies, scores = np.array(draws).T
    return {
        "calls": len(truth),
        "accuracy": float(right.mean()),
        "accuracy_interval": metrics.interval(accuracies),
        "macro_f1": float(np.nanmean(metrics.f1_scores(table))),
        "macro_f1_interval": metrics.interval(scores),
        "nll": _nll(sure, truth),
        "nll_uncalibrated": _nll(raw, truth),
        "brier": float(((sure - np.eye(len(names))[truth]) ** 2).sum(1).mean()),
        "ece_15": metrics.calibration_error(confidence, right),
        "ece_15_uncalibrated": metrics.calibration_error(raw.max(1), right),
        "label_mass": float(np.exp(scored.logprobs).sum(1).mean()),
        "review_share": float(1 - accepted.mean()),
        "accepted_accuracy": float(right[accepted].mean()) if accepted.any() else None,
        "risk_coverage_area": float(risk.mean()),
        "risk_coverage": [[float(coverage[at]), float(risk[at])] for at in shown],
        "reliability": metrics.reliability(confidence, right),
        "reliability_uncalibrated": metrics.reliability(raw.max(1), right),
        "per_class": _per_class(table, names),
        "confusion": table.tolist(),
        "slices": {
            name: {"calls": int(of.sum()), "accuracy": float(right[of].mean())}
            for name, of in slices(scored.calls).items()
        },
    }


def compare(scored: Scored, others: Mapping[str, Sequence[str]], *, resamples: int, seed: int) -> dict[str, Any]:
    """Each other classifier's figures on the same calls, and the model's lead over it with a paired interval."""
    names, truth = list(LABELS.values()), scored.truth
    chosen = scored.logprobs.argmax(1)
    groups = _groups(scored.calls)
    found = {}
    for name, categories in others.items():
        other = np.array([names.index(category) for category in categories])
        leads = [
            np.nanmean(metrics.f1_scores(_weighted(truth, chosen, often, len(names))))
            - np.nanmean(metrics.f1_scores(_weighted(truth, other, often, len(names))))
            for often in metrics.resampled(groups, resamples, seed)
        ]
        f1 = float(np.nanmean(metrics.f1_scores(metrics.confusion(truth, other, len(names)))))
        ours = float(np.nanmean(metrics.f1_scores(metrics.confusion(truth, chosen, len(names)))))
        found[name] = {
            "accuracy": float((other == truth).mean()),
            "macro_f1": f1,
            "macro_f1_lead": ours - f1,
            "macro_f1_lead_interval": metrics.interval(np.array(leads)),
            "mcnemar": metrics.mcnemar(chosen == truth, other == truth),
            "slices": {
                slice_: {"calls": int(of.sum()), "accuracy": float((other == truth)[of].mean())}
                for slice_, of in slices(scored.calls).items()
            },
        }
    return found


def slices(calls: Sequence[TrainingData]) -> dict[str, np.ndarray]:
    """Calls by what their metadata says (switches, and fields of few values), and by thirds of length; masks (N,)."""
    found: dict[str, np.ndarray] = {}
    fields = sorted({field for call in calls for field in call.metadata})
    for field in fields:
        values = [call.metadata.get(field) for call in calls]
        kinds = {value for value in values if isinstance(value, bool | str)}
        if kinds <= {True, False}:
            if True in kinds:
                found[field] = np.array([value is True for value in values])
        elif len(kinds) <= MOST_KINDS:
            found |= {
                f"{field}={kind}": np.array([value == kind for value in values]) for kind in sorted(map(str, kinds))
            }
    lengths = np.array([len(call.input_text) for call in calls])
    shorter, longer = (int(edge) for edge in np.quantile(lengths, [1 / 3, 2 / 3]))
    found[f"length<={shorter}"] = lengths <= shorter
    found[f"length>{longer}"] = lengths > longer
    return {name: of for name, of in found.items() if of.any()}


def _weighted(truth: np.ndarray, chosen: np.ndarray, often: np.ndarray, labels: int) -> np.ndarray:
    return np.bincount(truth * labels + chosen, weights=often, minlength=labels**2).reshape(labels, labels)


def _groups(calls: Sequence[TrainingData]) -> np.ndarray:
    return np.array([str(call.metadata.get("customer_id") or call.conversation_id) for call in calls])


def _nll(sure: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(np.maximum(sure[np.arange(len(truth)), truth], 1e-12)).mean())


def _per_class(table: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    scores = metrics.f1_scores(table)
    return {
        name: {
            "calls": int(table[at].sum()),
            "precision": share(table[at, at], table[:, at].sum()),
            "recall": share(table[at, at], table[at].sum()),
            "f1": None if np.isnan(scores[at]) else float(scores[at]),
        }
        for at, name in enumerate(names)
    }


def labelled_lines(path: Path) -> list[TrainingData]:
    """
    Raises:
        ConfigurationError: The file cannot be read, or a line is no labelled call.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        calls = [
            runconfig.validate(TrainingData, json.loads(line), f"{path}:{number}")
            for number, line in enumerate(lines, 1)
        ]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    known = set(LABELS.values())
    for number, call in enumerate(calls, 1):
        if call.complaint_category not in known:
            raise ConfigurationError(
                f"{path}:{number}: complaint_category is {call.complaint_category!r}: give one of {', '.join(known)}"
            )
    return calls


# --- the command -----------------------------------------------------------------------------------------


def main(config: EvaluationSettings) -> dict[str, Any]:
    """Measure, and write what ``run_dir/evaluation`` and the model's card say.

    Raises:
        ConfigurationError: The run is not finished, or calls cannot be read.
    """
    from training import evaluation_report

    best, folder = config.run_dir / "best", config.run_dir / "evaluation"
    settings = classification.load_settings(best)
    if settings is None:
        raise ConfigurationError(f"there is no {best / classification.FILE_NAME}: give the folder of a finished run")
    folder.mkdir(exist_ok=True)
    run = runconfig.read_yaml(config.run_dir / "config.yml")
    data = Path(run["data"]) if config.data is None else config.data
    scores = folder / "scores.parquet"
    if config.again:
        parts = read_scores(scores)
    else:
        from training import scoring

        parts = scoring.score_parts(best, calls_to_score(data, config.more))
        write_scores(parts, scores)

    calibration = calibrate(parts["validation"], config.accepted_accuracy)
    settings = settings.model_copy(
        update={
            "temperature": calibration.temperature,
            "review_threshold": calibration.review_threshold,
            "expected": classification.expected_answers(
                softmax(parts["test"].logprobs / calibration.temperature, axis=1)
            ),
        }
    )
    bootstrap = {"resamples": config.resamples, "seed": config.seed}
    train = prepared.load(data, "train")
    others = baselines.predictions(train, parts["test"].calls)
    evaluation: dict[str, Any] = {
        "model_id": config.run_dir.name,
        "base_model": run["base_model"],
        "method": run["method"],
        "temperature": calibration.temperature,
        "review_threshold": calibration.review_threshold,
        "parts": {name: measure(scored, calibration, **bootstrap) for name, scored in parts.items()},
        "baselines": compare(parts["test"], others, **bootstrap),
        "data": {"folder": str(data), "files": prepared.read_manifest(data)["files"]},
        "settings": config.model_dump(mode="json"),
    }
    test = evaluation["parts"]["test"]
    result = FineTuningResult(
        model_id=config.run_dir.name,
        base_model=run["base_model"],
        training_config=run,
        evaluation_metrics={name: value for name, value in test.items() if isinstance(value, int | float | list)},
        model_path=str(best),
        created_at=datetime.now(UTC),
    )
    classification.write_settings(settings, best)
    for path, content in (
        (config.run_dir / "result.json", result.model_dump_json(indent=2) + "\n"),
        (folder / "evaluation.json", json.dumps(evaluation, ensure_ascii=False, indent=2) + "\n"),
        (folder / "evaluation.md", evaluation_report.markdown(evaluation)),
        (folder / "index.html", evaluation_report.page(evaluation)),
        (best / "README.md", evaluation_report.card(evaluation)),
    ):
        path.write_text(content, encoding="utf-8")
    return evaluation


def calls_to_score(data: Path, more: Mapping[str, Path]) -> dict[str, Sequence[TrainingData]]:
    """Validation calls first: what is fitted is fitted on them."""
    files = prepared.read_manifest(data)["files"]
    held = [Path(name).stem for name in files if name.endswith(".parquet")]
    further = sorted(set(held) - {"train", "validation"})
    calls = {part: prepared.load(data, part) for part in ("validation", *further)}
    return {**calls, **{name: labelled_lines(path) for name, path in more.items()}}


def run(words: Sequence[str]) -> int:
    try:
        config = runconfig.load(EvaluationSettings, None, words)
        found = main(config)
    except (runconfig.ConfigError, DeploymentError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    test, page = found["parts"]["test"], config.run_dir / "evaluation" / "index.html"
    print(f"macro-F1 {test['macro_f1']:.3f}, calibration error {test['ece_15']:.3f}: {page}")
    print(json.dumps({"macro_f1": test["macro_f1"], "ece_15": test["ece_15"], "report": str(page)}))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
