"""Does it fit? Weights + KV cache + overhead against the limits, before anything is started.

Pulumi's preview, Ansible's first task and the server's own start all call :func:`check`; it refuses with
the arithmetic in the message. What it accepts is what the engine is given: threads, slots and KV pool come
from the plan and from nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from model_server import cgroup
from model_server.deployment import DeploymentConfig, memory_limit_bytes
from model_server.engines.openvino_wire import BLOCK_TOKENS, generation_kernels, scoring_kernels
from model_server.errors import ConfigurationError, ResourceInsufficientError
from model_server.model_source import PREPARE, ModelFiles, ModelShape, resolve

MEMORY_ALERT_SHARE = 0.8
"""Share of the memory limit that may be used: the threshold of ``memory_usage`` in monitoring/alerts.yml."""

BATCHED_TOKENS = 256
"""Prompt tokens computed in one step; bounds activations and the wait of streams for a long prompt."""

_KIB, _MIB = 2**10, 2**20

# Resident memory, measured on 2 cores of an AMD EPYC with AVX-512, OpenVINO 2026.4.1, 2026-11-23, with the pool
# in full use and the mapped weights released (mapped_weights.py): a 1 M-parameter model with a vocabulary of
# 1,600, Qwen3-0.6B at INT4, INT8 and FP16, each at 1 to 32 slots. tests/model_server/test_capacity.py repeats
# it on the real server. INFERENCE_PRECISION_HINT=f32 (what CPUs without bf16 compute in) took the same memory.
_SERVER_BYTES = 90 * _MIB  # tiny model: 88 MiB idle, 94 with 32 streams
_SERVER_BYTES_PER_WORD = 600  # its tokenizer: 177 MiB with a vocabulary of 151,936
_ENGINE_BYTES = 135 * _MIB  # libraries, Python: 139 MiB with the tiny model; 80 of it are files
_ENGINE_BYTES_PER_WORD = 350  # GenAI's tokenizer
_ENGINE_BYTES_PER_LAYER = 3 * _MIB // 2  # graph and kernels: 50 MiB (FP16) to 85 MiB (INT4) for 28 layers
_SLOT_BYTES_PER_WORD = 16  # logits and the sampler's copies: 74 MiB for 32 slots
_FAULT_BYTES = 64 * _KIB  # a lookup in the mapped embedding table brings in 16 pages around it
# The second form that scores labels: 15 MiB for the tiny model's 4 layers, 64 MiB for 28.
_SCORER_BYTES = 8 * _MIB
_SCORER_BYTES_PER_LAYER = 2 * _MIB
# Kernels compiled for the lengths of prompts and answers (openvino_wire.py), once every length was met: 85, 117 and 193
# MiB with 1, 8 and 32 slots of the tiny model and its scorer.
_KERNEL_BYTES = _MIB // 3
# GGUF is unpacked, not mapped: 0.6B as Q4_0, Q4_0 with Q8_0 embeddings, and Q8_0 (320, 396, 604 MiB) took 807,
# 953 and 1,421 MiB once running and up to 908, 1,133 and 1,769 MiB while loading.
_GGUF_COPIES, _GGUF_LOADING_COPIES, _GGUF_BYTES_PER_EMBEDDING = 2.15, 3.0, 0.8
_TRANSFORMERS_BYTES = 700 * _MIB  # torch and transformers; the reference engine, not measured at scale
_LOADING_SHARE = 0.95  # of the limit; the alert waits minutes, the kernel does not

# Published shapes, for plans made where the weights are not at hand. Source: config.json of the models.
_KNOWN_SHAPES = {
    "qwen3-0.6b": ModelShape("Qwen3ForCausalLM", 28, 1024, 16, 8, 128, 151_936, 40_960, 3072),
    "qwen3-1.7b": ModelShape("Qwen3ForCausalLM", 28, 2048, 16, 8, 128, 151_936, 40_960, 6144),
}


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What one instance will use.

    Attributes:
        threads: Compute threads of the engine.
        slots: Requests computed at once.
        batched_tokens: Prompt tokens computed in one step.
        weights_bytes: Resident weights, every compiled form counted.
        overhead_bytes: Server, engine, activations, the label scorer's cache.
        kv_bytes_per_token: 0 where the engine keeps its own pool; so are the next three.
        kv_pool_bytes: ``kv_blocks`` pages.
        kv_tokens: Tokens that the pool holds.
        kv_blocks: Pages of ``BLOCK_TOKENS`` tokens.
        predicted_resident_bytes: Server and engine with the whole pool in use.
        arithmetic: For people.
    """

    threads: int
    slots: int
    batched_tokens: int
    weights_bytes: int
    overhead_bytes: int
    kv_bytes_per_token: int
    kv_pool_bytes: int
    kv_tokens: int
    kv_blocks: int
    predicted_resident_bytes: int
    arithmetic: str


@dataclass(frozen=True, slots=True)
class _Model:
    """What memory depends on.

    Attributes:
        resident_bytes: All compiled forms.
        loading_bytes: The most while loading; 0 where it is never more than afterwards.
    """

    shape: ModelShape
    resident_bytes: int
    loading_bytes: int
    embedding_bytes: int
    scores_labels: bool
    note: str


def check(config: DeploymentConfig, files: ModelFiles | None = None) -> CapacityPlan:
    """Plan ``config`` or refuse it.

    Args:
        files: The model, where the caller has it; otherwise looked up here, or estimated from ``model_name``
            where it is not on this machine. The fallback, if there is one, has to fit as well.

    Raises:
        ConfigurationError: Engine and device, or settings and model, contradict each other.
        ResourceInsufficientError: It does not fit; the message carries the arithmetic.
        ModelLoadError: The model is here and cannot be used.
    """
    _check_device(config)
    threads = cgroup.available_threads(config.resource_limits.cpu_cores)
    settings = config.optimization_settings
    slots = settings.max_batch_size
    limit = memory_limit_bytes(config)
    share = min(MEMORY_ALERT_SHARE, config.alerts.get("memory_usage", 100) / 100)
    usable = math.floor(limit * share)
    if config.engine in {"ollama", "lmdeploy"}:
        # LMDeploy's weights and KV cache lie on the GPU, Ollama's in a server of its own.
        overhead = _SERVER_BYTES + 151_936 * _SERVER_BYTES_PER_WORD
        lines = [
            _line("memory limit", limit),
            _line("usable", usable, f"{share:.0%} of it; above, the memory alert fires"),
            _line("server", overhead, f"{config.engine} keeps weights and KV cache elsewhere"),
        ]
        if overhead > usable:
            raise _too_small(config, overhead - usable, "the server", lines)
        return CapacityPlan(threads, slots, 0, 0, overhead, 0, 0, 0, 0, overhead, "\n".join(lines))

    model = _largest_model(config, files)
    if settings.max_sequence_length > model.shape.context:
        raise ConfigurationError(
            f"optimization_settings.max_sequence_length is {settings.max_sequence_length}, but the model was "
            f"made for {model.shape.context} tokens: lower it"
        )
    # transformers computes and caches in the 32 bits of its reference.
    kv_bits = 32 if config.engine == "transformers" else settings.kv_cache_bits
    per_token = kv_bytes_per_token(model.shape, kv_bits)
    per_block = per_token * BLOCK_TOKENS
    sequence_blocks = math.ceil(settings.max_sequence_length / BLOCK_TOKENS)
    overhead = _overhead(config, model, per_token)
    room = usable - model.resident_bytes - overhead
    blocks = min(room // per_block, slots * sequence_blocks)
    lines = [
        _line("memory limit", limit),
        _line("usable", usable, f"{share:.0%} of it; above, the memory alert fires"),
        _line("weights", model.resident_bytes, model.note),
        _line("server and engine", overhead),
        _line("left for the KV pool", room),
        _line(
            "one full sequence",
            sequence_blocks * per_block,
            f"{settings.max_sequence_length} tokens x {per_token} bytes",
        ),
        _line("all slots full", slots * sequence_blocks * per_block, f"{slots} of them"),
    ]
    if blocks < sequence_blocks:
        raise _too_small(config, sequence_blocks * per_block - room, "one full sequence", lines)
    if model.loading_bytes + overhead > limit * _LOADING_SHARE:
        lines.append(_line("while loading", model.loading_bytes + overhead, "GGUF is unpacked in memory"))
        lack = model.loading_bytes + overhead - math.floor(limit * _LOADING_SHARE)
        raise _too_small(config, lack, f"loading it within {_LOADING_SHARE:.0%} of the limit", lines)
    pool = blocks * per_block
    resident = model.resident_bytes + overhead + pool
    cores = config.resource_limits.cpu_cores
    lines += [
        _line("KV pool", pool, f"{blocks * BLOCK_TOKENS} tokens"),
        _line("resident, pool full", resident),
        f"{'threads':<22}{threads:>8}       floor of {cores:g} cores, the CPU quota and the cores allowed here",
    ]
    return CapacityPlan(
        threads=threads,
        slots=slots,
        batched_tokens=BATCHED_TOKENS,
        weights_bytes=model.resident_bytes,
        overhead_bytes=overhead,
        kv_bytes_per_token=per_token,
        kv_pool_bytes=pool,
        kv_tokens=blocks * BLOCK_TOKENS,
        kv_blocks=blocks,
        predicted_resident_bytes=resident,
        arithmetic="\n".join(lines),
    )


def kv_bytes_per_token(shape: ModelShape, bits: int) -> int:
    """Bytes of keys and values of one token over all layers.

    At 8 bits OpenVINO quantises keys by channel within a page and values by token, each group with a scale
    and a zero point in fp32. Measured for head_dim 128: 296 bytes per head at 8 bits, 512 at 16.
    """
    head = shape.head_dim
    per_head = 2 * head * bits // 8 if bits > 8 else (head + head * 8 // BLOCK_TOKENS) + (head + 8)
    return shape.layers * shape.kv_heads * per_head


def _check_device(config: DeploymentConfig) -> None:
    gpus = config.resource_limits.gpu_count
    if config.engine == "lmdeploy" and gpus == 0 and config.serving.engine_url is None:
        raise ConfigurationError(
            "engine 'lmdeploy' needs a GPU and resource_limits.gpu_count is 0: LMDeploy has no CPU path; use "
            "engine 'openvino', give it a GPU, or name a running LMDeploy in serving.engine_url"
        )
    if config.engine == "openvino" and gpus > 0:
        raise ConfigurationError(
            f"engine 'openvino' computes on the CPU, but resource_limits.gpu_count is {gpus}: set it to 0, or "
            "use engine 'lmdeploy'"
        )


def _largest_model(config: DeploymentConfig, files: ModelFiles | None) -> _Model:
    """``files`` alone while the fallback is what is loaded, else the larger of model and fallback."""
    if files is not None and files.source == config.model_fallback:
        return _measure(config, files)
    if files is None:
        files = _look_up(config, config.model_source, config.model_revision)
    bits = config.optimization_settings.quantization_bits
    if files is not None and files.weight_bits not in {None, bits}:
        raise ConfigurationError(
            f"optimization_settings.quantization_bits is {bits}, but {files.source} holds weights of "
            f"{files.weight_bits} bits: change one of the two"
        )
    model = _estimate(config, _known_shape(config), bits) if files is None else _measure(config, files)
    if config.model_fallback is None or config.model_fallback == config.model_source:
        return model
    found = _look_up(config, config.model_fallback, None)
    # A fallback that is not here is taken for the same model at twice the bits.
    fallback = _estimate(config, model.shape, min(16, bits * 2)) if found is None else _measure(config, found)
    return max(model, fallback, key=lambda each: each.resident_bytes)


def _look_up(config: DeploymentConfig, source: str, revision: str | None) -> ModelFiles | None:
    """None where it is not on this machine: a plan must not download."""
    if not Path(source).expanduser().exists():
        return None
    return resolve(source, revision, config.engine, check_hashes=False)


def _measure(config: DeploymentConfig, files: ModelFiles) -> _Model:
    shape, weights = files.shape, files.weights_bytes
    if shape is None or weights is None:
        raise ConfigurationError(f"cannot plan {files.source}: a {files.kind} source does not tell its size")
    scores_labels = files.classification is not None and config.engine == "openvino"
    embedding = shape.vocab * shape.hidden
    if files.kind == "gguf":
        unpacked = int(weights * _GGUF_COPIES + embedding * _GGUF_BYTES_PER_EMBEDDING)
        return _Model(
            shape,
            resident_bytes=unpacked,
            loading_bytes=int(weights * _GGUF_LOADING_COPIES),
            embedding_bytes=0,
            scores_labels=False,
            note=f"{_mib(weights)} of GGUF, unpacked",
        )
    if config.engine == "transformers":
        # The reference computes in fp32, published weights are bf16.
        resident = weights * 32 // (files.weight_bits or 16)
        return _Model(shape, resident, 0, 0, scores_labels=False, note=f"{_mib(weights)}, as fp32")
    forms = 2 if scores_labels else 1
    return _Model(
        shape,
        resident_bytes=weights * forms,
        loading_bytes=0,
        embedding_bytes=embedding * (2 if files.weight_bits == 16 else 1),
        scores_labels=scores_labels,
        note=f"{_mib(weights)}" + (", compiled twice: generation and label scores" if forms == 2 else ""),
    )


def _known_shape(config: DeploymentConfig) -> ModelShape:
    shape = _KNOWN_SHAPES.get(config.model_name.lower())
    if shape is None:
        raise ConfigurationError(
            f"cannot plan {config.model_name!r}: {config.model_source} is not on this machine, and sizes are "
            f"known without it only for {', '.join(_KNOWN_SHAPES)}: fetch or prepare it first (`{PREPARE}`)"
        )
    return shape


def _estimate(config: DeploymentConfig, shape: ModelShape, bits: int) -> _Model:
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    linear = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    embedding = shape.vocab * shape.hidden * max(bits, 8) // 8  # 4-bit exports keep embeddings at 8 bits
    scales = linear // 64 if bits == 4 else 0  # an fp16 scale for each group of 128
    return _Model(
        shape,
        resident_bytes=linear * bits // 8 + scales + embedding,
        loading_bytes=0,
        embedding_bytes=embedding,
        scores_labels=False,
        note=f"estimated for {config.model_name} at {bits} bits: the files are not here",
    )


def _overhead(config: DeploymentConfig, model: _Model, per_token: int) -> int:
    """Bytes beside weights and KV pool."""
    settings, shape = config.optimization_settings, model.shape
    slots, length = settings.max_batch_size, settings.max_sequence_length
    server = _SERVER_BYTES + shape.vocab * _SERVER_BYTES_PER_WORD
    sampling = slots * shape.vocab * _SLOT_BYTES_PER_WORD
    if config.engine == "transformers":
        return server + _TRANSFORMERS_BYTES + sampling
    engine = (
        _ENGINE_BYTES
        + shape.vocab * _ENGINE_BYTES_PER_WORD
        + shape.layers * _ENGINE_BYTES_PER_LAYER
        + BATCHED_TOKENS * shape.intermediate * 4
        + generation_kernels(slots) * _KERNEL_BYTES
    )
    # At 16 bits the whole table is read for every step, otherwise the rows of the tokens that were seen.
    eight_bits = model.embedding_bytes <= shape.vocab * shape.hidden
    seen = slots * length * _FAULT_BYTES if eight_bits else model.embedding_bytes
    scorer = 0
    if model.scores_labels:
        # Its cache holds a batch of BATCHED_TOKENS after the longest prompt, each call in pages of its own.
        cached = length + BATCHED_TOKENS + slots * BLOCK_TOKENS
        kernels = scoring_kernels(slots, BATCHED_TOKENS) * _KERNEL_BYTES
        scorer = _SCORER_BYTES + shape.layers * _SCORER_BYTES_PER_LAYER + cached * per_token + kernels
    return server + engine + sampling + min(seen, model.embedding_bytes) + scorer


def _too_small(config: DeploymentConfig, lack: int, what: str, lines: list[str]) -> ResourceInsufficientError:
    return ResourceInsufficientError(
        f"{config.model_name} does not fit: {_mib(lack)} short of {what}\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nraise resource_limits.memory_gb, or lower max_sequence_length, max_batch_size or quantization_bits"
    )


def _line(what: str, size: float, note: str = "") -> str:
    return f"{what:<22}{size / 2**30:>8.3f} GiB   {note}".rstrip()


def _mib(size: float) -> str:
    return f"{math.ceil(size / _MIB)} MiB"
