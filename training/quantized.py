"""A base in 4 bits for QLoRA, and the guard against wrong gradients.

bitsandbytes 0.50.2 repacks 4-bit weights at the first forward pass in eval mode on CPUs with AVX512-BF16, and
training steps after it then use a kernel without a gradient: measured on a Qwen3 of 2 layers, the gradients of
the adapter had a cosine of 0.577 to the right ones, and nothing was said. Off, the repacking costs nothing that
training needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, Qwen3ForCausalLM

from training.errors import GradientCheckError

TOLERANCE = 0.05
"""Relative error of a gradient. Right ones differ by up to 0.012 in bfloat16, wrong ones by 0.49 and more."""


def load(path: Path, dtype: torch.dtype, device: torch.device, *, cure: bool = True) -> Qwen3ForCausalLM:
    """The network in NF4 with double quantisation (Dettmers et al., 2023, arXiv 2305.14314).

    Args:
        dtype: Of the computation and of what stays in full: embeddings and norms.
        cure: False leaves the defect in, to show that :func:`check_gradients` finds it.
    """
    model = Qwen3ForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        device_map={"": str(device)},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    model.requires_grad_(requires_grad=False)
    if cure:
        for _, layer in _layers(model):
            layer.support_avx512bf16_for_cpu = False
    return model


def dequantised(model: Qwen3ForCausalLM) -> dict[str, Tensor]:
    """Weights of the first block's 4-bit layers, (out, in), float32. Taken before anything can repack them."""
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        for name, layer in _layers(model.model.layers[0])
    }


def check_gradients(model: Qwen3ForCausalLM, reference: Mapping[str, Tensor]) -> float:
    """Compare gradients through the 4-bit layers with those through ``reference``, after a pass in eval mode.

    Returns:
        The largest relative error.

    Raises:
        GradientCheckError: It is more than :data:`TOLERANCE`.
    """
    with torch.no_grad():
        model.eval()
        model(input_ids=torch.arange(16, device=model.device)[None], use_cache=False)
    model.train()
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for name, layer in _layers(model.model.layers[0]):
        weight = reference[name]
        inputs = torch.randn(16, weight.shape[1], generator=generator).to(weight.device, layer.compute_dtype)
        outgoing = torch.randn(16, weight.shape[0], generator=generator).to(weight.device, layer.compute_dtype)
        inputs.requires_grad_()
        try:
            layer(inputs).backward(outgoing)
        except RuntimeError as error:
            raise GradientCheckError(f"the 4-bit layer {name} cannot go backward: {error}; {_ADVICE}") from error
        expected = outgoing.float() @ weight
        found = torch.zeros_like(expected) if inputs.grad is None else inputs.grad.float()
        errors[name] = float((found - expected).norm() / expected.norm())
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE:
        raise GradientCheckError(
            f"the gradient through the 4-bit layer {worst} is wrong by {errors[worst]:.0%} of its length after a pass "
            f"in eval mode ({TOLERANCE:.0%} is allowed); {_ADVICE}"
        )
    return errors[worst]


_ADVICE = "training would go on and learn badly: use method=lora, or the bitsandbytes of requirements/training.txt"


def packs_weights_in_eval() -> bool:
    """Whether this CPU is of the kind on which bitsandbytes repacks."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            yield name, layer
