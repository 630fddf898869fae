"""Scores of the label tokens at the one position that answers, and the loss over them.

Shapes: B calls, T tokens, V vocabulary, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM


def pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """(B, T) of token ids, filled up on the right: with causal attention nothing reads the filling."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def hidden_states(
    model: Qwen3ForCausalLM, prefix: Sequence[int], rows: Sequence[Sequence[int]], fill: int
) -> tuple[Tensor, Tensor]:
    """What the network makes of each row after ``prefix``: before its last layer and after it, (B, T, H) each.

    The prefix is the same for all, so its keys and values are computed once, gradients included; it is 60 %
    of a prompt, and a step costs less than half.
    """
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([list(prefix)]), past_key_values=cache)
    cache.batch_repeat_interleave(len(rows))
    found = model.model(input_ids=pad(rows, fill), past_key_values=cache, output_hidden_states=True)
    return found.hidden_states[-2], found.last_hidden_state


def last_logits(model: Qwen3ForCausalLM, hidden: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits over the vocabulary at the last token of each row, (B, V), from (B, T, H)."""
    last = torch.tensor([len(row) - 1 for row in rows])
    logits: Tensor = model.lm_head(hidden[torch.arange(len(rows)), last])
    return logits.float()


def label_logits(model: Qwen3ForCausalLM, prefix: Sequence[int], rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Logits over the vocabulary after ``prefix`` + row, for each row, (B, V)."""
    return last_logits(model, hidden_states(model, prefix, rows, fill)[1], rows)


def label_loss(logits: Tensor, label_ids: Tensor, truth: Tensor, mass_weight: float) -> Tensor:
    """CE over the K labels + weight * (-log mass of the labels), mean over calls, nats."""
    labels = logits[:, label_ids]
    mass = torch.logsumexp(logits, 1) - torch.logsumexp(labels, 1)
    return torch.nn.functional.cross_entropy(labels, truth) + mass_weight * mass.mean()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def score(
    model: Qwen3ForCausalLM, prefix: Sequence[int], rows: Sequence[Sequence[int]], label_ids: Tensor, fill: int
) -> Tensor:
    """Log-probabilities over the vocabulary of the labels, (B, K)."""
    model.eval()
    parts = []
    for start in range(0, len(rows), 100):
        logits = label_logits(model, prefix, rows[start : start + 100], fill)
        parts.append(torch.log_softmax(logits, 1)[:, label_ids])
    return torch.cat(parts)
