"""Adapters that every server reads alike, and the forms of a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_server.cache import environment_python
from model_server.errors import ConfigurationError
from training.export import ADAPTER_KEYS, normalised_config
from training.random_model import Shape, write_model

ROOT = Path(__file__).resolve().parents[2]
NARROW = Shape(
    hidden=64, intermediate=128, layers=1, heads=4, kv_heads=2, head_dim=32, tokens=2000, vocab=2048, context=512
)
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "bias": "none",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": None,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "corda_config": None,
    "peft_version": "0.21.2",
}


def test_keys_that_the_servers_peft_does_not_know_are_left_out():
    config = normalised_config(LORA)
    assert set(config) <= set(ADAPTER_KEYS)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (16, 32, ["q_proj", "v_proj"])


def test_rank_stabilised_scales_become_plain_ones():
    """The scale is alpha / sqrt(r) there and alpha' / r here."""
    config = normalised_config(LORA | {"use_rslora": True})
    assert (config["lora_alpha"], config["use_rslora"]) == (128, False)
    assert normalised_config(LORA | {"use_rslora": True, "r": 8})["lora_alpha"] == pytest.approx(32 * 8**0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["score"]}, "modules trained beside the adapter"),
        ({"rank_pattern": {"q_proj": 4}}, "ranks that differ"),
        ({"alpha_pattern": {"q_proj": 4}}, "scales that differ"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"lora_bias": True}, "biases of the adapter"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear': give a list"),
        ({"target_modules": ["q_proj", "lm_head"]}, "changes lm_head"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_what_servers_would_ignore_is_refused_by_name(change, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        normalised_config(LORA | change)
    assert "export merged" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["forms=[awq]"], "group_size=128 does not divide hidden_size 64"),
        (["forms=[awq]"], "LMDeploy loads no other; serve it unquantised, or by engine openvino (group_size: use a "),
        (["forms=[openvino-int4]"], "group_size=128 does not divide hidden_size 64"),
        (["forms=[openvino-int4]", "group_size=96"], "group_size=96 does not divide hidden_size 64"),
        (["forms=[openvino-int4]", "group_size=4"], "group_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_widths_that_no_group_fits_are_refused_with_what_can_be_done(tmp_path, words, told):
    """The merged form is there, so that nothing but the refusal is left to do."""
    write_model(NARROW, tmp_path / "merged", 0, "narrow")
    (tmp_path / "best").mkdir()
    shutil.copyfile(tmp_path / "merged" / "classification.json", tmp_path / "best" / "classification.json")
    command = [sys.executable, "-m", "training.export", f"run_dir={tmp_path}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "merged"]


@pytest.mark.training
def test_the_normalised_adapter_computes_what_the_trained_one_does(tmp_path):
    """On a model whose adapter is rank-stabilised; PEFT itself is the judge. The old peft reads it back whole."""
    subprocess.run([ROOT / ".venv/bin/python", ROOT / "tests/tools/tiny_qwen3.py", tmp_path / "base"], check=True)
    code = f"""
import json, torch
from pathlib import Path
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from training.export import write_adapter
home = Path({str(tmp_path)!r})
torch.manual_seed(0)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, use_rslora=True, target_modules=targets))
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.05)
model.save_pretrained(home / "best")
write_adapter(home / "best", home / "adapter")
ids = torch.arange(5, 45)[None]
base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
untrained = base(ids).logits
again = PeftModel.from_pretrained(base, home / "adapter")
with torch.inference_mode():
    trained, served = model.eval()(ids).logits, again.eval()(ids).logits
print(json.dumps([float((trained - served).abs().max()), float((trained - untrained).abs().max())]))
"""
    done = subprocess.run(
        [environment_python("training"), "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    difference, effect = json.loads(done.stdout.splitlines()[-1])
    assert difference == 0
    assert effect > 0.1


@pytest.mark.lmdeploy
def test_the_peft_of_lmdeploy_reads_rank_scale_and_targets(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(normalised_config(LORA | {"r": 4})))
    code = "import json, sys\nfrom peft import PeftConfig\nc = PeftConfig.from_pretrained(sys.argv[1])\n"
    code += "print(json.dumps([c.r, c.lora_alpha, sorted(c.target_modules)]))"
    done = subprocess.run(
        [environment_python("lmdeploy"), "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [4, 32, ["q_proj", "v_proj"]]
