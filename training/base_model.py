"""What a run begins with: the base model, its tokeniser, and the adapter on it; and how a finished one is loaded.

Shapes: r rank of the adapter.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from model_server import model_source
from model_server.errors import ModelLoadError
from training import quantized
from training.durable_files import sha256
from training.settings import Lora

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a decoder block, by name: what "all-linear" saves for a small model has other keys, and
servers of adapters read nothing else (lm_head and embeddings make them refuse the adapter)."""

BASE = "base.json"
"""Beside an adapter: which base it was trained on."""

Method = Literal["lora", "qlora", "full"]


def find(source: str) -> model_source.ModelFiles:
    """The files of a base: a directory, ``org/name@commit``, or ``org/name`` at the commit that is newest now.

    Raises:
        ModelLoadError: Missing, damaged, not to be fetched, or no Qwen3.
    """
    pinned = source if Path(source).expanduser().exists() or source.count("/") != 1 else _pinned(source)
    files = model_source.resolve(pinned, engine="transformers", check_hashes=True)
    if files.shape is None or files.shape.architecture != model_source.ARCHITECTURE:
        found = None if files.shape is None else files.shape.architecture
        raise ModelLoadError(
            source, f"architecture is {found}, expected {model_source.ARCHITECTURE}: fine-tuning knows Qwen3 only"
        )
    return files


def _pinned(source: str) -> str:
    if "@" in source:
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # The hub's newest commit; without a network that of the copy in its cache.
        return f"{source}@{Path(snapshot_download(source, allow_patterns='config.json')).name}"
    except HFValidationError as error:
        raise ModelLoadError(source, "no such file or directory, and it is no hub id (org/name)") from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            source,
            f"no such directory, and the hub did not give it: {reason}; HF_ENDPOINT names a mirror, and a directory in "
            "base_model needs no network",
        ) from error


def digests(path: Path) -> dict[str, str]:
    """sha256 of what the weights and the tokens of a base depend on, by file."""
    names = ["config.json", "tokenizer.json", *sorted(file.name for file in path.glob("*.safetensors"))]
    return {name: sha256(path / name) for name in names if (path / name).is_file()}


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """
    Raises:
        ModelLoadError: There is none, or it is damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(path), f"its tokeniser cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        raise ModelLoadError(str(path), "its tokeniser has no pad token: add pad_token to tokenizer_config.json")
    return tokenizer


def load_base(path: Path, method: Method, dtype: torch.dtype, device: torch.device) -> Qwen3ForCausalLM:
    """The network with the weights at ``path``; for qlora in 4 bits."""
    transformers.utils.logging.disable_progress_bar()
    if method == "qlora":
        return quantized.load(path, dtype, device)
    model, report = Qwen3ForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(str(path), f"weights are missing, {', '.join(missing[:3])} and so on: copy it again")
    return model.to(device)


def add_adapter(network: Qwen3ForCausalLM, lora: Lora) -> nn.Module:
    """Put a new adapter on the network. Seed before: its A matrices are drawn here.

    The adapter is float32 whatever the base is: steps of 1e-4 vanish in a bfloat16 of 8 bits.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel, and works without
    from peft import LoraConfig, get_peft_model  # late: it imports bitsandbytes, which takes seconds

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(TARGET_MODULES),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.23 by an old name
        model = get_peft_model(network, config)  # with float32 matrices, whatever the base has
    for module in model.modules():
        # Otherwise inputs are copied to float32 for each of the matrices, against what mixed_precision is there
        # for: 3.0 s of CPU and 3.7 GiB for a step of 256 tokens with Qwen3-0.6B, instead of 2.6 s and 3.1 GiB.
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = network.dtype == torch.float32
    return model


def has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def mixed_precision(network: Qwen3ForCausalLM) -> torch.autocast:
    """Multiply in bfloat16 on a GPU, and where the base is bfloat16; what is trained is float32 all the same."""
    device = network.device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or network.dtype == torch.bfloat16)


def check_adapter(adapter: Path, base: Mapping[str, str]) -> None:
    """
    Args:
        base: :func:`digests` of the base that it is to be put on.

    Raises:
        ModelLoadError: It is no adapter, or was trained on another base.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ModelLoadError(str(adapter), "no adapter_config.json there: name the best/ directory of a lora run")
    if not (adapter / BASE).is_file():
        raise ModelLoadError(str(adapter), f"no {BASE} there, so nothing says which base it belongs to")
    written = json.loads((adapter / BASE).read_bytes())
    other = sorted(name for name, digest in written["sha256"].items() if base.get(name) != digest)
    if other:
        raise ModelLoadError(
            str(adapter),
            f"it was trained on another base ({written['source']}): {', '.join(other)} differ; use that base",
        )


def load_weights(model: nn.Module, saved: Path) -> None:
    """Take over what :func:`save` wrote, into a model of the same method.

    Raises:
        ModelLoadError: Names or shapes differ.
    """
    try:
        if has_adapter(model):
            from peft import set_peft_model_state_dict

            weights = load_file(saved / "adapter_model.safetensors")
            report = set_peft_model_state_dict(model, weights)
            lacking = [name for name in report.missing_keys if "lora_" in name]
        else:
            weights = load_file(saved / "model.safetensors")
            report = model.load_state_dict(weights, strict=False)
            lacking = [name for name in report.missing_keys if name != "lm_head.weight"]  # tied to the embedding
    except RuntimeError as error:  # what torch says of another shape
        raise ModelLoadError(str(saved), f"its weights do not fit: {' '.join(str(error).split())[:300]}") from error
    if lacking or report.unexpected_keys:
        different = ", ".join([*lacking, *report.unexpected_keys][:3])
        raise ModelLoadError(str(saved), f"its weights do not fit: {different} and so on differ in name")


def save(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    base: Mapping[str, Any],
    out: Path,
) -> None:
    """Write the model as others load it, with its tokeniser; an adapter says which base it belongs to.

    The bytes depend on nothing but the weights.
    """
    if has_adapter(model):
        # "auto" would ask the hub whether the vocabulary has changed.
        model.save_pretrained(out, save_embedding_layers=False)
        config = json.loads((out / "adapter_config.json").read_bytes())
        config["target_modules"] = list(TARGET_MODULES)  # from a set, whose order changes from process to process
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (out / "README.md").unlink(missing_ok=True)
        (out / BASE).write_text(json.dumps(base, indent=1) + "\n", encoding="utf-8")
    else:
        model.save_pretrained(out, max_shard_size="100GB")
    tokenizer.save_pretrained(out)


def load_trained(
    model_dir: Path, base_source: str | None = None, dtype: torch.dtype | None = None, *, merged: bool = False
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase]:
    """A finished model, in eval mode: ``best/`` of a run, its adapter (if it is one) on its base.

    Args:
        base_source: Where the base lies now; where it lay in training when None.
        dtype: Of the base; as saved when None.
        merged: Add the adapter to the weights.

    Raises:
        ModelLoadError: The base is missing or another.
    """
    tokenizer = load_tokenizer(model_dir)
    if not (model_dir / BASE).is_file():
        return Qwen3ForCausalLM.from_pretrained(model_dir, dtype=dtype or "auto").eval(), tokenizer
    files = find(base_source or json.loads((model_dir / BASE).read_bytes())["source"])
    assert files.path is not None
    check_adapter(model_dir, digests(files.path))
    from peft import PeftModel

    network = Qwen3ForCausalLM.from_pretrained(files.path, dtype=dtype or "auto")
    model = PeftModel.from_pretrained(network, model_dir)
    return (model.merge_and_unload() if merged else model.get_base_model()).eval(), tokenizer


def parameter_count(shape: model_source.ModelShape) -> int:
    """Weights of a Qwen3 with tied embeddings."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * queries + 2 * keys) + 2 * shape.head_dim
    block = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return math.prod((shape.vocab, shape.hidden)) + shape.layers * block + shape.hidden
