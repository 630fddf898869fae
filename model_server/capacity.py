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
from model_server.errors import ConfigurationError, ResourceInsufficientError
from model_server.model_source import PREPARE, ModelFiles, ModelShape, resolve

MEMORY_ALERT_SHARE = 0.8
"""Share of the memory limit that may be used: the threshold of ``memory_usage`` in monitoring/alerts.yml."""

BLOCK_TOKENS = 32
"""Tokens in a page of the KV pool (OpenVINO GenAI 2026.4 on CPU; measured: pool bytes / blocks)."""

BATCHED_TOKENS = 256
"""Prompt tokens computed in one step; bounds activations and the wait of streams for a long prompt."""

_MIB = 2**20
_SERVER_BYTES = 150 * _MIB
_ENGINE_BYTES = 250 * _MIB
_TRANSFORMERS_BYTES = 700 * _MIB

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
        weights_bytes: Every compiled form counted.
        overhead_bytes: Server, engine, activations.
        kv_bytes_per_token: 0 where the engine keeps its own pool.
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


def check(config: DeploymentConfig, files: ModelFiles | None = None) -> CapacityPlan:
    """Plan ``config`` or refuse it.

    Args:
        files: The model, where it is here; otherwise looked up, or estimated from ``model_name``.

    Raises:
        ConfigurationError: Engine and device, or settings and model, contradict each other.
        ResourceInsufficientError: It does not fit; the message carries the arithmetic.
        ModelLoadError: The model is here and cannot be used.
    """
    _check_device(config)
    threads = cgroup.available_threads(config.resource_limits.cpu_cores)
    settings = config.optimization_settings
    slots = settings.max_batch_size
    if config.engine in {"ollama", "lmdeploy"}:
        text = f"engine {config.engine} keeps weights and KV cache itself; counted here: the server alone"
        return CapacityPlan(threads, slots, 0, 0, _SERVER_BYTES, 0, 0, 0, 0, _SERVER_BYTES, text)
    if files is None and Path(config.model_source).exists():
        files = resolve(config.model_source, config.model_revision, config.engine, check_hashes=False)
    shape, weights = _model(config, files)
    if settings.max_sequence_length > shape.context:
        raise ConfigurationError(
            f"optimization_settings.max_sequence_length is {settings.max_sequence_length}, but the model was made "
            f"for {shape.context} tokens: lower it"
        )
    overhead = _overhead(config, shape, slots)
    per_token = kv_bytes_per_token(shape, settings.kv_cache_bits)
    per_block = per_token * BLOCK_TOKENS
    sequence_blocks = math.ceil(settings.max_sequence_length / BLOCK_TOKENS)
    limit = memory_limit_bytes(config)
    share = min(MEMORY_ALERT_SHARE, config.alerts.get("memory_usage", 100) / 100)
    room = math.floor(limit * share) - weights - overhead
    blocks = min(room // per_block, slots * sequence_blocks)
    lines = [
        f"memory limit                {_gib(limit)}",
        f"usable, {share:.0%} of it        {_gib(limit * share)}   (above it the memory alert fires)",
        f"weights                     {_gib(weights)}",
        f"server and engine           {_gib(overhead)}",
        f"left for the KV pool        {_gib(room)}",
        f"one sequence                {_gib(sequence_blocks * per_block)}   "
        f"({settings.max_sequence_length} tokens x {per_token} bytes)",
        f"all {slots} slots full         {_gib(slots * sequence_blocks * per_block)}",
    ]
    if blocks < sequence_blocks:
        lack = sequence_blocks * per_block - room
        raise ResourceInsufficientError(
            f"{config.model_name} does not fit: {_gib(lack).strip()} short of one full sequence\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nraise resource_limits.memory_gb, or lower max_sequence_length, max_batch_size or quantization_bits"
        )
    pool = blocks * per_block
    resident = weights + overhead + pool
    lines += [
        f"KV pool                     {_gib(pool)}   ({blocks * BLOCK_TOKENS} tokens)",
        f"resident, pool full         {_gib(resident)}",
        f"threads                     {threads}   (floor of {config.resource_limits.cpu_cores:g} cores and quota)",
    ]
    return CapacityPlan(
        threads=threads,
        slots=slots,
        batched_tokens=BATCHED_TOKENS,
        weights_bytes=weights,
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
    if bits == 16:
        per_head = 4 * head
    else:
        per_head = (head + head * 8 // BLOCK_TOKENS) + (head + 8)
    return shape.layers * shape.kv_heads * per_head


def _check_device(config: DeploymentConfig) -> None:
    gpus = config.resource_limits.gpu_count
    if config.engine == "lmdeploy" and gpus == 0 and config.serving.engine_url is None:
        raise ConfigurationError(
            "engine 'lmdeploy' needs a GPU and resource_limits.gpu_count is 0: LMDeploy has no CPU path; use engine "
            "'openvino', give it a GPU, or name a running LMDeploy in serving.engine_url"
        )
    if config.engine == "openvino" and gpus > 0:
        raise ConfigurationError(
            f"engine 'openvino' computes on the CPU, but resource_limits.gpu_count is {gpus}: set it to 0, or use "
            "engine 'lmdeploy'"
        )


def _model(config: DeploymentConfig, files: ModelFiles | None) -> tuple[ModelShape, int]:
    """Shape and bytes of all compiled forms."""
    bits = config.optimization_settings.quantization_bits
    if files is None:
        shape = _KNOWN_SHAPES.get(config.model_name.lower())
        if shape is None:
            raise ConfigurationError(
                f"cannot plan {config.model_name!r}: {config.model_source} is not on this machine and its size is "
                f"known only for {', '.join(_KNOWN_SHAPES)}: fetch or prepare it first (`{PREPARE}`)"
            )
        return shape, _estimated_weights(shape, bits)
    if files.shape is None or files.weights_bytes is None:
        raise ConfigurationError(f"cannot plan {files.source}: a {files.kind} source does not tell its size")
    if files.weight_bits not in {None, bits} and files.source == config.model_source:
        raise ConfigurationError(
            f"optimization_settings.quantization_bits is {bits}, but {files.source} holds weights of "
            f"{files.weight_bits} bits: change one of the two"
        )
    forms = 2 if files.classification is not None and files.kind == "openvino" else 1
    return files.shape, files.weights_bytes * forms


def _estimated_weights(shape: ModelShape, bits: int) -> int:
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    linear = shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    embedding = shape.vocab * shape.hidden
    # 4-bit exports keep embeddings at 8 bits; a scale per 128 weights adds 1/64 of them.
    return linear * bits // 8 + linear // 64 + embedding * max(bits, 8) // 8


def _overhead(config: DeploymentConfig, shape: ModelShape, slots: int) -> int:
    if config.engine == "transformers":
        return _SERVER_BYTES + _TRANSFORMERS_BYTES + slots * shape.vocab * 4
    return _SERVER_BYTES + _ENGINE_BYTES + slots * shape.vocab * 4 * 2


def _gib(size: float) -> str:
    return f"{size / 2**30:7.2f} GiB"
