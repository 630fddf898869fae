"""Weights as LMDeploy packs them; that LMDeploy itself reads the same is tested in tests/e2e/test_trained_model.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from model_server.cache import environment_python

pytestmark = pytest.mark.training
ROOT = Path(__file__).resolve().parents[2]


def test_packed_weights_are_scale_times_value_less_zero(training):
    """By hand: 4 inputs in two groups, 8 outputs. An integer holds outputs 0 2 4 6 1 3 5 7 from its lowest part on."""
    code = """
import json, torch
from training.awq_weights import dequantised
rows = [0x76543210, 0x76543210, 0x11111111, -1]
packed = torch.tensor(rows, dtype=torch.int32)[:, None]
zeros = torch.tensor([0x22222222, 0x00000000], dtype=torch.int32)[:, None]
scales = torch.tensor([[0.5] * 8, [2.0] * 7 + [4.0]], dtype=torch.float16)
found = dequantised({"a.qweight": packed, "a.qzeros": zeros, "a.scales": scales, "norm.weight": torch.ones(2)})
print(json.dumps({name: tensor.tolist() for name, tensor in found.items()}))
"""
    found = training.code(code)
    assert found["norm.weight"] == [1, 1]
    first = [(value - 2) * 0.5 for value in (0, 4, 1, 5, 2, 6, 3, 7)]
    inputs = [first, first, [2.0] * 7 + [4.0], [30.0] * 7 + [60.0]]
    assert found["a.weight"] == [list(column) for column in zip(*inputs, strict=True)]


def test_what_holds_no_packed_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    command = [environment_python("training"), "-m", "training.awq_weights", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no AWQ weights" in done.stderr
    assert "Traceback" not in done.stderr
