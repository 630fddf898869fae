from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from tokenizers import Tokenizer

from model_server import classification, model_source
from model_server.cache import cache_dir
from model_server.errors import ModelLoadError
from training import random_model
from training.random_model import SHAPES, Shape, bfloat16, tensors, write_model

SMALL = Shape(
    hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_dim=16, tokens=3000, vocab=3072, context=512
)
TRAINING = cache_dir() / "venvs/training/bin/python"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "small"
    write_model(SMALL, out, 0, "small")
    return out


@pytest.mark.parametrize(("shape", "parameters"), [("0.6b", 596_049_920), ("1.7b", 1_720_574_976)])
def test_the_shapes_have_as_many_parameters_as_the_published_models(shape, parameters):
    assert sum(math.prod(size) for _, size in tensors(SHAPES[shape])) == parameters


def test_rounding_to_bfloat16_is_to_the_nearest_and_to_even():
    """Worked by hand: 1 + 2^-8 is half-way to the next bfloat16 and goes to even, anything above goes up."""
    values = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, -2.5], np.float32)
    back = [struct.unpack("<f", b"\0\0" + int(bits).to_bytes(2, "little"))[0] for bits in bfloat16(values)]
    assert back == [1.0, 1.0, 1 + 2**-7, 1 + 2**-6, -2.5]


def test_the_server_reads_shape_settings_and_manifest(model):
    files = model_source.resolve(str(model), engine="transformers")
    assert (files.shape.layers, files.shape.hidden, files.shape.vocab, files.weight_bits) == (2, 64, 3072, 16)
    assert classification.load_settings(model) is not None


def test_the_tokeniser_has_every_entry_and_qwen3_s_special_tokens_behind_them(model):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 3000 + 26
    assert [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>", "</think>")] == [3000, 3002, 3025]
    text = "客户:你好,请介绍一下你自己。1234 <|im_end|>\n😀"
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_real_sizes_put_special_tokens_at_their_published_ids():
    """Ids as in Qwen3's tokenizer_config.json."""
    tokenizer = random_model.make_tokenizer(SHAPES["0.6b"], 0)
    published = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_pad|>": 151654}
    published |= {"<tool_call>": 151657, "<|fim_prefix|>": 151659, "<think>": 151667, "</think>": 151668}
    assert {token: tokenizer.token_to_id(token) for token in published} == published


def test_the_same_seed_gives_the_same_bytes_in_every_process(model, tmp_path):
    code = (
        "import sys; from pathlib import Path; from training.random_model import Shape, write_model\n"
        f"write_model(Shape(**{asdict(SMALL)!r}), Path(sys.argv[1]), 0, 'small')"
    )
    again = tmp_path / "small"
    subprocess.run([sys.executable, "-c", code, str(again)], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (again / "manifest.json").read_bytes() == (model / "manifest.json").read_bytes()


def test_another_seed_gives_other_weights(model, tmp_path):
    write_model(SMALL, tmp_path / "small", 1, "small")
    first, second = (
        json.loads((path / "manifest.json").read_bytes())["files"]["model.safetensors"]["sha256"]
        for path in (model, tmp_path / "small")
    )
    assert first != second


def test_a_changed_weight_is_noticed(model, tmp_path):
    write_model(SMALL, tmp_path / "small", 0, "small")
    weights = tmp_path / "small" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ModelLoadError, match="altered"):
        model_source.resolve(str(tmp_path / "small"), engine="transformers")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "python -m training.random_model"),
        (["shape=4b", "out=x"], "shape"),
        (["shape=0.6b"], "out: missing"),
        (["shape=0.6b", "out=."], "already there"),
        (["shape=0.6b", "out=x", "seed=-1"], "seed"),
    ],
)
def test_misuse_is_explained(words, told, capsys):
    assert random_model.main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.training
def test_transformers_loads_every_weight_and_tokenises_alike(model):
    code = """
import json, sys
from transformers import AutoTokenizer, Qwen3ForCausalLM
model, report = Qwen3ForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
weights = model.model.layers[0].mlp.up_proj.weight.float()
print(json.dumps({
    "missing": sorted(report["missing_keys"]), "unexpected": sorted(report["unexpected_keys"]),
    "dtype": str(model.dtype), "std": weights.std().item(), "mean": weights.mean().item(),
    "prompt": tokenizer.apply_chat_template([{"role": "user", "content": "喂"}], tokenize=False,
                                            add_generation_prompt=True, enable_thinking=False),
    "ids": tokenizer.encode("客服:您好,请讲", add_special_tokens=False),
}))
"""
    done = subprocess.run(
        [TRAINING, "-c", code, str(model)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["missing"], report["unexpected"], report["dtype"]) == ([], [], "torch.bfloat16")
    assert report["std"] == pytest.approx(0.02, rel=0.05)
    assert abs(report["mean"]) < 0.001
    assert report["prompt"] == "<|im_start|>user\n喂<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert report["ids"] == Tokenizer.from_file(str(model / "tokenizer.json")).encode("客服:您好,请讲").ids
