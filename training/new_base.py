"""Make a base from nothing: a tokeniser learned from the calls, and a Qwen3 with random weights, to train in full.

    python -m training.new_base training/configs/new_base_tiny.yml [key=value ...]

A model of this size knows no language; method full teaches it the calls within minutes on a CPU. Where calls have
rationales, tokens begin with what naive Bayes makes of them. Writes ``out`` as a Hugging Face directory. The same
settings and calls give the same bytes.

Shapes: V vocabulary, K categories.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import runconfig
from model_server import model_source
from model_server.classification import INSTRUCTION, clean_call, settings_for
from model_server.masking import KINDS, mask
from training import batches, dialogue, prepared
from training.bpe import train_bpe
from training.chat_template import CHAT_TEMPLATE
from training.records import TrainingData


class NewBase(runconfig.RunConfig):
    """Sizes of the network and of its vocabulary."""

    out: Path
    """Directory to write; it must not exist."""
    data: Path
    """Prepared folder, whose training calls the tokeniser is learned from."""
    replay: Path | None = None
    """JSON lines with prompt and answer: the tokeniser learns the first answers too."""
    seed: int = Field(default=0, ge=0)
    vocabulary: int = Field(default=3_000, ge=600)
    """Tokens, special ones not counted. The output layer is the dearest part of a small model."""
    hidden: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=32, ge=2)
    intermediate: int = Field(default=384, ge=8)
    context: int = Field(default=4096, ge=64)
    naive_bayes: float = Field(default=1.0, ge=0)
    """What naive Bayes knows of a token, in the first K of its numbers, so many times the width of a random start; 0
    begins at random."""


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


def log_odds(
    rows: Sequence[Sequence[int]], told: Sequence[Sequence[int]], vocabulary: int, labels: int
) -> torch.Tensor:
    """What each token says about the categories: log-odds to the mean category, (V, K), of naive Bayes.

    Args:
        told: For each token of each row the category that it tells of, UNTOLD ones are left out.
    """
    counts = np.zeros((vocabulary, labels))
    for row, marks in zip(rows, told, strict=True):
        pairs = [(token, mark) for token, mark in zip(row, marks, strict=True) if mark != batches.UNTOLD]
        np.add.at(counts, tuple(np.array(pairs, dtype=np.int64).reshape(-1, 2).T), 1)
    logs = np.log((counts + 0.5) / (counts.sum(0) + 0.5 * vocabulary))
    return torch.tensor(logs - logs.mean(1, keepdims=True), dtype=torch.float32)


def begin_with_naive_bayes(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, calls: Sequence[TrainingData], times: float
) -> None:
    """Write the log-odds of the tokens into the first numbers of their embeddings."""
    settings = settings_for(batches.encoder(tokenizer), temperature=1.0, review_threshold=0.0, max_call_tokens=512)
    rows = batches.rows_of(calls, settings, tokenizer, "train", rationales=True)
    if all(mark == batches.UNTOLD for marks in rows.rationales for mark in marks):
        return
    found = log_odds(rows.rows, rows.rationales, len(tokenizer), len(settings.labels))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, : found.shape[1]] = times * model.config.initializer_range * found


def main(config: NewBase) -> dict[str, Any]:
    """
    Raises:
        ConfigError: ``out`` is there, or there are no calls.
    """
    if config.out.exists():
        raise runconfig.ConfigError(f"{config.out} is already there: name another directory")
    if not (config.data / "train.parquet").is_file():
        raise runconfig.ConfigError(f"there is no train.parquet in {config.data}: make it with python -m training.data")
    train = prepared.load(config.data, "train")
    calls = [mask(clean_call(call.input_text)) for call in train]
    tokens = "".join(f"<{kind}1>" for kind in KINDS)
    answers = (
        [] if config.replay is None else [pair.answer for pair in batches.read_pairs(config.replay)[: dialogue.REMARKS]]
    )
    tokenizer = train_tokenizer([*calls, *[INSTRUCTION, tokens] * 500, *answers], config.vocabulary, config.context)
    model = random_network(config, tokenizer)
    if config.naive_bayes:
        begin_with_naive_bayes(model, tokenizer, train, config.naive_bayes)
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
            method="random weights of transformers' initialisation, tokens by naive Bayes where calls have rationales",
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
