"""Make a base from nothing: a tokeniser learned from the calls, and a Qwen3 with random weights, to train in full.

    python -m training.new_base training/configs/new_base_tiny.yml [key=value ...]

A model of this size knows no language; method full teaches it the calls within minutes on a CPU. Writes ``out`` as a
Hugging Face directory. The same settings and calls give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import runconfig
from model_server import model_source
from model_server.classification import INSTRUCTION, clean_call
from model_server.masking import KINDS, mask
from training import batches, prepared
from training.bpe import train_bpe
from training.chat_template import CHAT_TEMPLATE

_PAIRS = 3000
"""Of a replay file, whose answers the tokeniser learns too: further ones say the same."""


class NewBase(runconfig.RunConfig):
    """Sizes of the network and of its vocabulary."""

    out: Path
    """Directory to write; it must not exist."""
    data: Path
    """Prepared folder, whose training calls the tokeniser is learned from."""
    replay: Path | None = None
    """JSON lines with prompt and answer: the tokeniser learns the answers too."""
    seed: int = Field(default=0, ge=0)
    vocabulary: int = Field(default=1_600, ge=600)
    """Tokens, special ones not counted. The output layer is the dearest part of a small model."""
    hidden: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=32, ge=2)
    intermediate: int = Field(default=384, ge=8)
    context: int = Field(default=4096, ge=64)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with those of Qwen's special tokens that a chat needs."""
    tokenizer = train_bpe(texts, vocabulary)
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106  a token of text, not a secret
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


def random_network(config: NewBase, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Weights drawn with ``config.seed``, float32."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def main(config: NewBase) -> dict[str, Any]:
    """
    Raises:
        ConfigError: ``out`` is there, or there are no calls.
    """
    if config.out.exists():
        raise runconfig.ConfigError(f"{config.out} is already there: name another directory")
    if not (config.data / "train.parquet").is_file():
        raise runconfig.ConfigError(f"there is no train.parquet in {config.data}: make it with python -m training.data")
    calls = [mask(clean_call(call.input_text)) for call in prepared.load(config.data, "train")]
    tokens = "".join(f"<{kind}1>" for kind in KINDS)
    answers = [] if config.replay is None else [pair.answer for pair in batches.read_pairs(config.replay)[:_PAIRS]]
    tokenizer = train_tokenizer([*calls, *[INSTRUCTION, tokens] * 500, *answers], config.vocabulary, config.context)
    model = random_network(config, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    partial = config.out.parent / f".{config.out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        model_source.write_manifest(
            partial,
            architecture=model_source.ARCHITECTURE,
            engine="transformers",
            weight_bits=32,
            method="random weights of transformers' initialisation",
            source=f"seed {config.seed}, calls of {config.data.name}",
            command="python -m training.new_base",
            versions={"torch": torch.__version__},
        )
        partial.rename(config.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(config.out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": len(tokenizer),
        "calls": len(calls),
    }


def run(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        report = main(runconfig.load(NewBase, Path(arguments[0]), arguments[1:]))
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
