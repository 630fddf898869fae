"""Score labelled calls with what a run left in ``best``, as the server would.

Shapes: N calls, K labels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from model_server import classification
from model_server.classification import ClassificationSettings
from training import base_model, batches
from training.label_tokens import score
from training.records import TrainingData
from training.scores import Scored

AT_ONCE = 100
"""Calls in a forward pass: 1 GB of activations for Qwen3-0.6B and calls of 256 tokens."""


def score_parts(best: Path, parts: Mapping[str, Sequence[TrainingData]]) -> dict[str, Scored]:
    model, tokenizer = base_model.load_trained(best, dtype=torch.float32)
    settings = classification.load_settings(best)
    assert settings is not None
    found = {}
    for name, calls in parts.items():
        print(f"scoring {len(calls)} {name} calls ...", file=sys.stderr, flush=True)
        found[name] = Scored(calls, label_logprobs(model, tokenizer, settings, calls))
    return found


def label_logprobs(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    settings: ClassificationSettings,
    calls: Sequence[TrainingData],
) -> np.ndarray:
    """Log-probabilities of the labels over the vocabulary, (N, K)."""
    rows = batches.rows_of(calls, settings, tokenizer, "scored").rows
    label_ids = torch.tensor(list(settings.label_ids.values()), device=model.device)
    prefix = batches.encoder(tokenizer)(settings.prompt_prefix)
    scores: np.ndarray = score(model, prefix, rows, label_ids, tokenizer.pad_token_id, AT_ONCE).cpu().numpy()
    return scores
