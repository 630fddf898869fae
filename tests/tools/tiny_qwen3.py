"""Write a tiny Qwen3 model with seeded random weights, as a Hugging Face directory, with NumPy alone.

python tests/tools/tiny_qwen3.py DIRECTORY

The same directory serves every engine: transformers and LMDeploy read it, ``training.gguf_model`` makes Ollama's file
of it. Weights are large enough for the next token to be far from even, and the output layer is not tied to the
embedding, so that greedy text does not fall into one repeated token (Ollama cuts such text off). It writes
printable ASCII and three whole Chinese characters: Ollama drops bytes that are not UTF-8, and texts would differ.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# "the", " the", and the bytes of 你, 好 and 退 in the characters of byte-level BPE.
MERGES = (
    *(("t", "h"), ("th", "e"), ("Ġ", "the")),
    *(("ä", "½"), ("ä½", "ł"), ("å", "¥"), ("å¥", "½"), ("é", "Ģ"), ("éĢ", "Ģ")),
)
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT = 64, 2, 4, 2, 32, 128, 2048

# Qwen2Tokenizer's own split of text into words (tokenizer.json of the Qwen models).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's encoder.py)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = iter(range(256, 512))
    return [chr(byte if byte in kept else next(moved)) for byte in range(256)]


def vocabulary() -> dict[str, int]:
    words = [*byte_characters(), *("".join(pair) for pair in MERGES), *SPECIAL]
    return {word: number for number, word in enumerate(words)}


def weights(seed: int) -> dict[str, np.ndarray]:
    """Tensors by their names in Qwen3ForCausalLM, float32."""
    random = np.random.default_rng(seed)
    vocab = vocabulary()

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(len(vocab), HIDDEN, 1.0),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": matrix(len(vocab), HIDDEN, 0.4),
    }
    for word, number in vocab.items():
        whole = word in ("the", "Ġthe", "ä½ł", "å¥½", "éĢĢ", "<|im_end|>")
        if not whole and not (len(word) == 1 and " " < word <= "~"):
            tensors["lm_head.weight"][number] = 0  # logit 0: hundreds of others are above it
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        tensors |= {
            f"{layer}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{layer}.self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN, 0.15),
            f"{layer}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.15),
            f"{layer}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN, 0.15),
            f"{layer}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM, 0.15),
            f"{layer}.self_attn.q_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{layer}.self_attn.k_norm.weight": np.ones(HEAD_DIM, np.float32),
            f"{layer}.mlp.gate_proj.weight": matrix(FFN, HIDDEN, 0.15),
            f"{layer}.mlp.up_proj.weight": matrix(FFN, HIDDEN, 0.15),
            f"{layer}.mlp.down_proj.weight": matrix(HIDDEN, FFN, 0.15),
        }
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Eight bytes of header length, a JSON header, the raw tensors (github.com/huggingface/safetensors)."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def write(directory: Path, *, seed: int = 0) -> Path:
    vocab = vocabulary()
    end = vocab["<|im_end|>"]
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", weights(seed))
    files = {
        "config.json": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "torch_dtype": "float32",
            "vocab_size": len(vocab),
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": vocab["<|endoftext|>"],
            "eos_token_id": end,
        },
        "generation_config.json": {"eos_token_id": end, "pad_token_id": vocab["<|endoftext|>"]},
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT,
            "chat_template": CHAT_TEMPLATE,
        },
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [
                {"id": vocab[word], "content": word, "special": True}
                | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                for word in SPECIAL
            ],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            "model": {
                "type": "BPE",
                "vocab": {word: number for word, number in vocab.items() if word not in SPECIAL},
                "merges": [list(pair) for pair in MERGES],
                "byte_fallback": False,
            },
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return directory


if __name__ == "__main__":
    write(Path(sys.argv[1]))
