"""The prompts and environments of the figures."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from benchmarks.calls import read_calls
from model_server import capacity, deployment, tokenizer
from model_server.cache import cache_dir
from model_server.engine import Message
from model_server.model_source import resolve

CALLS = Path("data/calls.jsonl")
TINY = Path("models/complaints-tiny")


def random_model() -> Path:
    """A random-weight Qwen3-0.6B at INT4, and beside it the same weights as Q4_0 for Ollama; made when missing.

    Without classification.json, so that a server compiles only the form that the raw pipeline has too.
    """
    models = cache_dir() / "models"
    source, prepared, plain = models / "random-0.6b", models / "random-0.6b-int4", models / "figures-0.6b-int4"
    run = [sys.executable, "-m"]
    if not source.exists():
        subprocess.run([*run, "training.random_model", "shape=0.6b", f"out={source}"], check=True, stdout=sys.stderr)
    if not prepared.exists():
        subprocess.run(
            [*run, "model_server.optimize", str(source), str(prepared), "bits=4"], check=True, stdout=sys.stderr
        )
    if not plain.exists():
        plain.mkdir(parents=True)
        for file in prepared.iterdir():
            if file.name not in {"classification.json", "manifest.json"}:
                os.link(file, plain / file.name)
    weights = gguf_of(plain)
    if not weights.exists():
        subprocess.run([*run, "training.gguf_model", str(source), str(weights), "q4_0"], check=True, stdout=sys.stderr)
    return plain


def gguf_of(model: Path) -> Path:
    """Where the Q4_0 form of ``model`` lies."""
    return model.with_name(model.name.removesuffix("-int4") + "-q4_0.gguf")


@cache
def _tokenizer(model: Path) -> tokenizer.Tokenizer:
    return tokenizer.load(model)


def prompts(model: Path, number: int, *, tokens: int, seed: int = 0) -> list[str]:
    """Texts of about ``tokens`` tokens each for this model's tokenizer, cut from the repository's calls."""
    encode = _tokenizer(model).encode
    calls = [call.text for call in read_calls(CALLS)]
    chance = random.Random(seed)
    found = []
    for index in range(number):
        text = f"{index} "
        while len(encode(text)) < tokens:
            text += chance.choice(calls)
        # Cut by characters until it fits: a cut by tokens could end inside a character.
        while len(encode(text)) > tokens:
            text = text[:-1]
        found.append(text)
    return found


def rendered(model: Path, text: str) -> str:
    """What the server makes of a user's message, for pipelines without a server."""
    return _tokenizer(model).chat([Message("user", text)])


def environment(folder: Path, model: Path, *, cpu_cores: float = 2, memory_gb: float = 4, **settings: object) -> Path:
    """Write an environment for ``model`` and return its path."""
    files = resolve(str(model), check_hashes=False)
    bits = files.weight_bits or 4
    document = {
        "model_name": "figures",
        "model_version": "1",
        "model_source": str(model),
        "deployment_type": "local",
        "engine": "openvino",
        "resource_limits": {"cpu_cores": cpu_cores, "memory_gb": memory_gb, "disk_gb": 10},
        "optimization_settings": {
            "enable_quantization": bits < 16,
            "quantization_bits": bits,
            "max_batch_size": 16,
            "max_sequence_length": 1024,
            **settings,
        },
        "serving": {"request_timeout_s": 120, "drain_s": 130},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "environment.yml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))
    return path


def plan_words(path: Path) -> list[str]:
    """The settings the server derives from ``path``, as words for the raw pipeline: both run with the same."""
    config = deployment.load(path)
    plan = capacity.check(config)
    settings = config.optimization_settings
    return [
        f"threads={plan.threads}",
        f"slots={plan.slots}",
        f"kv_blocks={plan.kv_blocks}",
        f"batch_tokens={plan.batched_tokens}",
        f"prefix_caching={str(settings.enable_prefix_caching).lower()}",
        f"kv_precision={'u8' if settings.kv_cache_bits == 8 else 'f16'}",
    ]
