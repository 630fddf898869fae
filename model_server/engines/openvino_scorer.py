"""Log-probabilities of label tokens: one forward pass per prompt, the shared instruction computed once.

OpenVINO GenAI returns only the probability of the token it chose, so labels are scored on a second compiled
form of the same model: the paged-attention form that GenAI itself runs, with the logits cut to the last token
of each prompt. Paged attention takes prompts of different lengths in one batch without padding, and lets all of
them read the same blocks for what they have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# ruff: noqa: I001
from model_server.engines import telemetry  # noqa: F401  before openvino

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from model_server.engines.openvino_wire import BLOCK_TOKENS, PADDED_TO


class Scorer:
    """The compiled form, its KV blocks, and the prefix that lies in the first of them."""

    def __init__(self, model_path: str, properties: dict[str, Any], batch_tokens: int) -> None:
        model = ov.Core().read_model(str(Path(model_path) / "openvino_model.xml"))
        paged_attention_transformation(model)
        _keep_last_positions(model)
        compiled = ov.Core().compile_model(model, "CPU", properties)
        self._request = compiled.create_infer_request()
        self._caches = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        tokens_per_block = {
            port.get_partial_shape()[2].get_length() for port in self._caches if "value_cache" in port.get_any_name()
        }
        if tokens_per_block != {BLOCK_TOKENS}:
            raise RuntimeError(f"expected KV blocks of {BLOCK_TOKENS} tokens, the plugin has {tokens_per_block}")
        self._batch_tokens = batch_tokens
        self._blocks = 0
        self._prefix: tuple[int, ...] = ()

    def batches(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> Iterator[list[list[float]]]:
        """Log-softmax over the vocabulary at each prompt's end, for ``label_ids``: (prompts, labels).

        One forward pass at a time, of about ``batch_tokens`` tokens, so that streams can advance in between.
        """
        self._use_prefix(prompts)
        batch: list[Sequence[int]] = []
        tokens = 0
        for prompt in prompts:
            rest = len(prompt) - len(self._prefix)
            if batch and tokens + rest > self._batch_tokens:
                yield self._forward(batch, label_ids)
                batch, tokens = [], 0
            batch.append(prompt)
            tokens += rest
        if batch:
            yield self._forward(batch, label_ids)

    def _use_prefix(self, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the computed prefix while all prompts share it; else compute what these have in common.

        A single prompt shows nothing about what is shared; two or more do. Only whole blocks count, and the
        last token of a prompt never belongs to the prefix, since its logits are what is asked for.
        """
        kept = len(self._prefix)
        if kept and all(tuple(prompt[:kept]) == self._prefix and len(prompt) > kept for prompt in prompts):
            return
        common = _common_prefix([*prompts, self._prefix] if kept and len(prompts) == 1 else prompts)
        whole = min(common, min(len(prompt) for prompt in prompts) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if len(prompts) == 1 and not kept:
            whole = (len(prompts[0]) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        prefix = tuple(prompts[0][:whole])
        if prefix == self._prefix[:whole]:
            self._prefix = prefix  # its blocks are already there
            return
        self._prefix = ()
        if prefix:
            self._run([prefix], skip=0)
        self._prefix = prefix

    def _forward(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> list[list[float]]:
        logits = self._run(prompts, skip=len(self._prefix))
        top = logits.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
        scores: list[list[float]] = (logits[:, list(label_ids)] - log_total).tolist()
        return scores

    def _run(self, prompts: Sequence[Sequence[int]], skip: int) -> NDArray[np.float32]:
        """One inference over the tokens of ``prompts`` after the first ``skip``, which lie in the cache."""
        sequences = [(prompt, skip) for prompt in prompts]
        if padding := -sum(len(prompt) - skip for prompt in prompts) % PADDED_TO:
            # With a block of its own: keys are quantised by what else is in their block.
            sequences.append(([0] * padding, 0))
        ids: list[int] = []
        positions: list[int] = []
        begins = [0]
        blocks: list[int] = []
        block_begins = [0]
        free = skip // BLOCK_TOKENS
        for tokens, past in sequences:
            ids += tokens[past:]
            positions += range(past, len(tokens))
            begins.append(len(ids))
            own = -(-(len(tokens) - past) // BLOCK_TOKENS)
            blocks += [*range(past // BLOCK_TOKENS), *range(free, free + own)]
            free += own
            block_begins.append(len(blocks))
        self._reserve(free)
        values = {
            "input_ids": np.array(ids, np.int64),
            "position_ids": np.array(positions, np.int64),
            "past_lens": np.array([past for _, past in sequences], np.int32),
            "subsequence_begins": np.array(begins, np.int32),
            "block_indices": np.array(blocks, np.int32),
            "block_indices_begins": np.array(block_begins, np.int32),
            "max_context_len": np.array(max(len(tokens) for tokens, _ in sequences), np.int32),
            "last_positions": np.array(begins[1 : len(prompts) + 1], np.int64) - 1,
        }
        for name, value in values.items():
            self._request.set_tensor(name, ov.Tensor(value))
        self._request.infer()
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data[:, 0, :]
        return logits

    def _reserve(self, blocks: int) -> None:
        """Grow the cache to ``blocks``. What lay in it is lost, except that a prefix is copied over."""
        if blocks <= self._blocks:
            return
        keep = min(len(self._prefix) // BLOCK_TOKENS, self._blocks)
        for port in self._caches:
            shape = [size.get_length() if size.is_static else blocks for size in port.get_partial_shape()]
            tensor = ov.Tensor(port.get_element_type(), ov.Shape(shape))
            if keep:
                tensor.data[:keep] = self._request.get_tensor(port.get_any_name()).data[:keep]
            self._request.set_tensor(port.get_any_name(), tensor)
        self._blocks = blocks


def _keep_last_positions(model: ov.Model) -> None:
    """Gather the hidden states of the positions asked for before the vocabulary projection.

    The projection over all positions costs more than the layers of a small model: 152k rows for every token.
    """
    projection = model.get_results()[0].input_value(0).get_node()
    while projection.get_type_name() != "MatMul":
        projection = projection.input_value(0).get_node()
    positions = ops.parameter([-1], np.int64, name="last_positions")
    positions.output(0).set_names({"last_positions"})
    last = ops.gather(projection.input_value(0), positions, ops.constant(0, dtype=np.int64))
    projection.input(0).replace_source_output(last.output(0))
    model.add_parameters([positions])
    model.validate_nodes_and_infer_types()


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    first, *others = prompts
    length = min(map(len, prompts))
    for index in range(length):
        if any(other[index] != first[index] for other in others):
            return index
    return length
