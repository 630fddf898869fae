"""Figures of merit of a classifier, and what is fitted on validation calls: temperature and review threshold.

Shapes: N calls, K labels. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from model_server.classification import CATEGORIES


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean over the twelve categories of 2TP/(2TP+FP+FN); a category that never occurs counts as left out."""
    scores = []
    for category in CATEGORIES:
        name = category.name
        both = sum(t == p == name for t, p in zip(truth, predicted, strict=True))
        either = sum((t == name) + (p == name) for t, p in zip(truth, predicted, strict=True))
        if either:
            scores.append(2 * both / either)
    return sum(scores) / len(scores)


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
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(confidence))
