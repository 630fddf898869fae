"""Write a model of the exact shape of Qwen3-0.6B or 1.7B with random weights, for measuring without a download.

    python -m training.random_model shape=0.6b|1.7b out=DIR [seed=0]

Speed and memory depend on the shape, not on what the weights say; texts it generates mean nothing. Weights are
bfloat16 safetensors, as published. The tokeniser has the real number of entries: a byte-level BPE trained on
generated calls, filled up with pairs of its tokens, and Qwen3's special tokens at their real ids. The same
seed gives the same bytes. Needs numpy and tokenizers only, no torch.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from tokenizers import AddedToken, Tokenizer

import runconfig
from model_server import classification, model_source
from training.bpe import train_bpe
from training.calls import CallSettings, make_splits
from training.chat_template import CHAT_TEMPLATE

INITIAL_STD = 0.02
"""Standard deviation of Qwen3's initialisation (initializer_range)."""

# Control tokens first, then those that are text to a reader. Source: tokenizer_config.json of Qwen3.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad", "vision") for side in ("start", "end")),
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED = (
    "<tool_call>",
    "</tool_call>",
    *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 decoder with tied embeddings."""

    hidden: int
    intermediate: int
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    tokens: int = 151_643
    """Entries of the tokeniser before the special ones."""
    vocab: int = 151_936
    """Rows of the embedding, more than there are tokens."""
    context: int = 40_960


# Source: config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-1.7B.
SHAPES = {"0.6b": Shape(hidden=1024, intermediate=3072), "1.7b": Shape(hidden=2048, intermediate=6144)}


class Words(runconfig.RunConfig):
    """The command line."""

    shape: Literal["0.6b", "1.7b"]
    out: Path
    """Directory to write; it must not exist."""
    seed: int = Field(default=0, ge=0)


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all weights, in the order in which they are drawn."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (shape.hidden,)
        yield f"{at}.self_attn.q_proj.weight", (queries, shape.hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{at}.self_attn.o_proj.weight", (shape.hidden, queries)
        yield f"{at}.self_attn.q_norm.weight", (shape.head_dim,)
        yield f"{at}.self_attn.k_norm.weight", (shape.head_dim,)
        yield f"{at}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{at}.mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{at}.mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{at}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
    yield "model.norm.weight", (shape.hidden,)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to bfloat16, nearest and ties to even, as its 16 bits."""
    bits = values.view(np.uint32)
    rounded: np.ndarray = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return rounded


def write_weights(shape: Shape, path: Path, seed: int) -> int:
    """Write one safetensors file, piece by piece, and return the number of parameters.

    Source: the safetensors format: length of the header in 8 bytes, header in JSON, then the data.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors(shape):
        begin, end = end, end + 2 * int(np.prod(size))
        entries[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    rng = np.random.Generator(np.random.PCG64(seed))
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, size in tensors(shape):
            if "norm" in name:
                file.write(bfloat16(np.ones(size, np.float32)).tobytes())
                continue
            left = int(np.prod(size))
            while left:  # 64 MB at a time, so that memory does not grow with the shape
                piece = rng.standard_normal(min(left, 1 << 24), np.float32) * np.float32(INITIAL_STD)
                file.write(bfloat16(piece).tobytes())
                left -= len(piece)
    return end // 2


def make_tokenizer(shape: Shape, seed: int) -> Tokenizer:
    """A tokeniser with exactly ``shape.tokens`` entries, and Qwen3's added tokens after them."""
    calls = make_splits(CallSettings(seed=seed), {"train": 1000})["train"]
    texts = [classification.INSTRUCTION, *[classification.clean_call(call.input_text) for call in calls]]
    state = json.loads(train_bpe(texts, min(2000, shape.tokens)).to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    learned = sorted(vocabulary, key=vocabulary.__getitem__)
    for left, right in itertools.product(learned, learned):
        if len(vocabulary) >= shape.tokens:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            state["model"]["merges"].append([left, right])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer


def write_model(shape: Shape, out: Path, seed: int, name: str) -> int:
    """Write the model directory, whole or not at all, and return the number of parameters."""
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tokenizer = make_tokenizer(shape, seed)
        tokenizer.save(str(partial / "tokenizer.json"))
        ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
        files = {
            "config.json": {
                "architectures": [model_source.ARCHITECTURE],
                "model_type": "qwen3",
                "hidden_size": shape.hidden,
                "intermediate_size": shape.intermediate,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "vocab_size": shape.vocab,
                "max_position_embeddings": shape.context,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "rope_theta": 1_000_000,
                "attention_bias": False,
                "attention_dropout": 0.0,
                "initializer_range": INITIAL_STD,
                "tie_word_embeddings": True,
                "use_cache": True,
                "bos_token_id": ends[1],
                "eos_token_id": ends[0],
                "dtype": "bfloat16",
            },
            "generation_config.json": {
                "bos_token_id": ends[1],
                "eos_token_id": ends,
                "pad_token_id": ends[1],
                "do_sample": True,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
            },
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 131_072,
                "clean_up_tokenization_spaces": False,
                "chat_template": CHAT_TEMPLATE,
            },
        }
        for file, content in files.items():
            (partial / file).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (partial / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        settings = classification.settings_for(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            temperature=1.0,
            review_threshold=0.5,
            max_call_tokens=1024,
        )
        classification.write_settings(settings, partial)
        parameters = write_weights(shape, partial / "model.safetensors", seed)
        model_source.write_manifest(
            partial,
            architecture=model_source.ARCHITECTURE,
            engine="transformers",
            weight_bits=16,
            method=f"random weights, normal with standard deviation {INITIAL_STD}",
            source=f"seed {seed}, {asdict(shape)}",
            command=f"python -m training.random_model shape={name} out={out.name} seed={seed}",
        )
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return parameters


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        words = runconfig.validate(
            Words, dict(word.partition("=")[::2] for word in arguments), "python -m training.random_model"
        )
        if words.out.exists():
            raise runconfig.ConfigError(f"{words.out} is already there: name another directory")  # noqa: TRY301
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"writing {words.out} (shape {words.shape}, seed {words.seed}) ...", file=sys.stderr)
    parameters = write_model(SHAPES[words.shape], words.out, words.seed, words.shape)
    print(json.dumps({"out": str(words.out), "parameters": parameters, "seed": words.seed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
