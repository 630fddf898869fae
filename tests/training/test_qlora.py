"""4-bit bases: the gradients through them are checked before the first step, and are right with the cure."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def packs(training):
    """Whether bitsandbytes repacks weights in eval mode here, which is where the defect shows."""
    return training.code("from training import quantized\nprint(str(quantized.packs_weights_in_eval()).lower())")


def check(training, base, *, cure):
    code = f"""
import json, torch
from pathlib import Path
from training import quantized
from training.errors import GradientCheckError
model = quantized.load(Path({str(base)!r}), torch.bfloat16, torch.device("cpu"), cure={cure})
try:
    print(json.dumps(quantized.check_gradients(model, quantized.dequantised(model))))
except GradientCheckError as error:
    print(json.dumps(str(error)))
"""
    return training.code(code)


def test_with_the_cure_gradients_are_right_after_a_pass_in_eval_mode(training, small):
    assert check(training, small.base, cure=True) < 0.02


def test_without_the_cure_the_check_fails(training, small, packs):
    if not packs:
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes does not repack here, so the defect cannot be shown")
    told = check(training, small.base, cure=False)
    assert isinstance(told, str), told
    assert "4-bit layer" in told
    assert "use method=lora" in told


def test_the_gradients_of_an_adapter_are_those_on_the_dequantised_base(training, small):
    """The whole path, after an evaluation: each gradient's cosine to that on a base of the same, unpacked weights."""
    code = f"""
import json, torch
from pathlib import Path
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import Qwen3ForCausalLM
from training import base_model, quantized
from training.label_tokens import label_logits, label_loss
from training.settings import Lora
base, cpu = Path({str(small.base)!r}), torch.device("cpu")
four = quantized.load(base, torch.float32, cpu)
plain = Qwen3ForCausalLM.from_pretrained(base)
for (name, layer), (_, other) in zip(four.named_modules(), plain.named_modules()):
    if isinstance(layer, Linear4bit):
        other.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
gradients = []
for network in (four, plain):
    torch.manual_seed(0)
    model = base_model.add_adapter(network, Lora(dropout=0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.eval()
    with torch.no_grad():
        label_logits(network, [1, 2, 3], [[4, 5]], 0)
    model.train()
    logits = label_logits(network, [1, 2, 3], [[4, 5], [6, 7, 8]], 0)
    label_loss(logits, torch.arange(12), torch.tensor([1, 2]), 0.1).backward()
    gradients.append([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])
print(json.dumps(min(torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(*gradients))))
"""
    assert training.code(code) > 0.999


def test_a_qlora_run_checks_first_evaluates_between_steps_and_goes_on(training, small, tmp_path):
    run_dir = tmp_path / "run"
    words = [f"run_dir={run_dir}", "method=qlora", "dtype=bfloat16", "evaluate_every=2"]
    killed = training.finetune(small.config, *words, kill_after_lines=[str(run_dir / "metrics.jsonl"), 8], signal=9)
    assert killed.status == -9
    again = training.finetune(small.config, *words)
    assert again.status == 0, again.stderr
    assert "4-bit gradients after a pass in eval mode: relative error 0.0" in again.stderr
    assert "going on from" in again.stderr
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
