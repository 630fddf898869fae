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
    model: Qwen3ForCausalLM, prefix: Sequence[int], rows: Sequence[Sequence[int]], fill: int, *, below: bool = False
) -> Tensor:
    """What the network makes of each row after ``prefix``, (B, T, H), or (2, B, T, H) with ``below``.

    The prefix is the same for all, so its keys and values are computed once, gradients included; it is 60 %
    of a prompt, and a step costs less than half. A single row goes through in one piece.

    Args:
        below: The states under the last layer too; they come first.
    """
    device = model.device
    if len(rows) == 1:
        whole = torch.tensor([[*prefix, *rows[0]]], device=device)
        found = model.model(input_ids=whole, use_cache=False, output_hidden_states=below)
        start = len(prefix)
    else:
        cache = DynamicCache(config=model.config)
        model.model(input_ids=torch.tensor([list(prefix)], device=device), past_key_values=cache)
        cache.batch_repeat_interleave(len(rows))
        padded = pad(rows, fill).to(device)
        found = model.model(input_ids=padded, past_key_values=cache, output_hidden_states=below)
        start = 0
    last: Tensor = found.last_hidden_state[:, start:]
    return torch.stack([found.hidden_states[-2][:, start:], last]) if below else last


def last_logits(model: Qwen3ForCausalLM, hidden: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits over the vocabulary at the last token of each row, (B, V) float32, from (B, T, H)."""
    last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
    logits: Tensor = model.lm_head(hidden[torch.arange(len(rows), device=hidden.device), last])
    return logits.float()


def label_logits(model: Qwen3ForCausalLM, prefix: Sequence[int], rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Logits over the vocabulary after ``prefix`` + row, for each row, (B, V), float32."""
    return last_logits(model, hidden_states(model, prefix, rows, fill), rows)


def label_loss(
    logits: Tensor,
    label_ids: Tensor,
    truth: Tensor,
    mass_weight: float,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    divisor: float | None = None,
) -> Tensor:
    """CE over the K labels + weight * (-log mass of the labels), mean over calls, nats.

    Args:
        class_weights: (K,); a call counts as much as its category's weight.
        focal_gamma: Of the factor (1 - p)^gamma (Lin et al., 2017, arXiv 1708.02002); 0 leaves it out.
        divisor: Sum of the calls' weights, that of these calls when None. A step in several micro-batches gives the
            sum over the whole step, so that how it was split changes nothing.
    """
    labels = logits[:, label_ids]
    right = torch.log_softmax(labels, 1).gather(1, truth[:, None])[:, 0]
    entropy = -right if focal_gamma == 0 else -right * (1 - right.exp()) ** focal_gamma
    if mass_weight:
        entropy = entropy + mass_weight * (torch.logsumexp(logits, 1) - torch.logsumexp(labels, 1))
    weights = torch.ones_like(right) if class_weights is None else class_weights[truth]
    return (entropy * weights).sum() / (weights.sum() if divisor is None else divisor)


def answer_loss(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    fill: int,
    divisor: float | None = None,
) -> Tensor:
    """Mean cross-entropy over the tokens of the answers, nats; scores only where a token of an answer follows.

    Args:
        divisor: Tokens of all answers of the step; those of these when None.
    """
    rows = pad([[*p, *a] for p, a in zip(prompts, answers, strict=True)], fill)
    targets = pad([[-100] * len(p) + list(a) for p, a in zip(prompts, answers, strict=True)], -100)[:, 1:]
    asked = targets != -100
    hidden = model.model(input_ids=rows.to(model.device), use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[asked.to(model.device)]).float()
    wanted = targets[asked].to(model.device)
    loss: Tensor = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    return loss / (len(wanted) if divisor is None else divisor)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def score(
    model: Qwen3ForCausalLM,
    prefix: Sequence[int],
    rows: Sequence[Sequence[int]],
    label_ids: Tensor,
    fill: int,
    rows_per_pass: int = 100,
) -> Tensor:
    """Log-probabilities over the vocabulary of the labels, (B, K), on the CPU."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))  # rows of a pass are filled up to its longest
    scores = torch.empty(len(rows), len(label_ids))
    for start in range(0, len(rows), rows_per_pass):
        places = order[start : start + rows_per_pass]
        logits = label_logits(model, prefix, [rows[at] for at in places], fill)
        scores[places] = torch.log_softmax(logits, 1)[:, label_ids].cpu()
    return scores
