"""Figures of merit of a classifier, and what is fitted on validation calls: temperature and review threshold.

Shapes: N calls, K labels. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import binomtest

from model_server.classification import CATEGORIES


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean over the twelve categories of 2TP/(2TP+FP+FN); a category that never occurs counts as left out."""
    places = {category.name: at for at, category in enumerate(CATEGORIES)}
    table = confusion(np.array([places[t] for t in truth]), np.array([places[p] for p in predicted]), len(places))
    return float(np.nanmean(f1_scores(table)))


def confusion(truth: np.ndarray, chosen: np.ndarray, labels: int) -> np.ndarray:
    """Counts, (K, K); a row is what the calls are, a column what they were taken for."""
    return np.bincount(truth * labels + chosen, minlength=labels * labels).reshape(labels, labels)


def f1_scores(table: np.ndarray) -> np.ndarray:
    """Of each label, (..., K) for tables (..., K, K); NaN where it neither occurs nor is chosen."""
    right = np.diagonal(table, axis1=-2, axis2=-1)
    either = table.sum(-1) + table.sum(-2)
    with np.errstate(invalid="ignore"):
        scores: np.ndarray = 2 * right / either
    return scores


def fit_temperature(logprobs: np.ndarray, truth: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., 2017, arXiv 1706.04599).

    Args:
        logprobs: Of the labels, (N, K); logits do as well.
        truth: Place of the right label, (N,).
    """
    scores = np.asarray(logprobs, dtype=np.float64)
    rows = np.arange(len(scores))

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[rows, truth]).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.02), np.log(50)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def review_threshold(confidence: np.ndarray, right: np.ndarray, accuracy: float) -> float:
    """Lowest confidence so that calls at or above it are right at least this often; 1 where none is."""
    order = np.argsort(-confidence, kind="stable")
    running = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(running >= accuracy)
    return float(confidence[order][good[-1]]) if len(good) else 1.0


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equally wide bins."""
    table = reliability(confidence, right, bins)
    return sum(row["calls"] * abs(row["accuracy"] - row["confidence"]) for row in table) / len(confidence)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Mean confidence and accuracy of the calls in each of the equally wide bins that have any."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "calls": int((place == b).sum()),
            "confidence": float(confidence[place == b].mean()),
            "accuracy": float(right[place == b].mean()),
        }
        for b in np.unique(place)
    ]


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the calls that are answered, most confident first, and the share of those that is wrong; (N,) each.

    Their mean risk is the area under the curve (Geifman and El-Yaniv, 2017, arXiv 1705.08500).
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(~right[order]) / answered


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> dict[str, float]:
    """Exact test of whether two classifiers err alike on the same calls (McNemar, 1947): the calls that only one of
    them gets right, and the two-sided probability of a split at least as uneven.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p}


def resampled(groups: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each call is in a bootstrap sample of whole groups (a customer's calls err together), (N,) a draw."""
    _, place = np.unique(groups, return_inverse=True)
    count = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.multinomial(count, np.full(count, 1 / count))[place]


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """Percentile interval of bootstrap values."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
