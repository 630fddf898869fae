"""Write a GGUF file of a Qwen3 model directory (Hugging Face layout), for Ollama and other llama.cpp servers.

python -m training.gguf_model MODEL_DIRECTORY OUT.gguf [f32 | f16 | q8_0 | q4_0]

With q4_0 the embedding and the output layer stay q8_0, as llama.cpp's own quantiser leaves them finer than the rest;
norms are always f32. Tensors are converted one at a time: the 0.6B model takes 10 s on 2 cores.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
TENSOR_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def read_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors as float32; NumPy knows no bfloat16, whose bits are a float32's upper half."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = data[8 + length + start : 8 + length + end]
        match entry["dtype"]:
            case "F32":
                tensor = raw.view(np.float32)
            case "F16":
                tensor = raw.view(np.float16).astype(np.float32)
            case "BF16":
                tensor = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            case other:
                raise SystemExit(f"{path}: {name} is {other}; F32, F16 and BF16 can be read")
        yield name, tensor.reshape(entry["shape"])


def add_config(writer: gguf.GGUFWriter, config: dict[str, Any], file_type: str) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_file_type(FILE_TYPES[file_type])


def add_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    size = config["vocab_size"]  # Qwen pads its vocabulary: rows without a word need a name too
    names = {number: f"[PAD{number}]" for number in range(size)} | words | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names[number] for number in range(size)])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL
            if number in special
            else gguf.TokenType.NORMAL
            if number in words
            else gguf.TokenType.UNUSED
            for number in range(size)
        ]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    end = config["eos_token_id"]
    writer.add_eos_token_id(end if isinstance(end, int) else end[0])
    writer.add_add_bos_token(False)


def write(directory: Path, out: Path, file_type: str = "q4_0") -> Path:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(out, "qwen3")
    add_config(writer, config, file_type)
    add_tokenizer(writer, directory, config)
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor in read_safetensors(path):
            kind = TENSOR_TYPES[file_type]
            if tensor.ndim == 1:
                kind = gguf.GGMLQuantizationType.F32
            elif file_type == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight"):
                kind = gguf.GGMLQuantizationType.Q8_0
            mapped = names.get_name(name, try_suffixes=(".weight",))
            if mapped is None:
                raise SystemExit(f"{path}: {name} is no tensor of Qwen3")
            writer.add_tensor(mapped, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    partial = out.with_name(out.name + ".partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(out)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
