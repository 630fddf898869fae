"""One module per engine; :func:`create` picks the one an environment names."""

from __future__ import annotations

import math

from model_server.capacity import CapacityPlan
from model_server.deployment import DeploymentConfig
from model_server.engine import Engine
from model_server.errors import ConfigurationError
from model_server.model_source import ModelFiles, resolve
from model_server.recovery import RecoveringEngine


def create(config: DeploymentConfig, plan: CapacityPlan, files: ModelFiles) -> RecoveringEngine:
    """The engine of ``config``, not loaded yet; it reloads, falls back and retries as recovery.py says.

    Args:
        plan: Accepted by :func:`model_server.capacity.check`.
        files: ``config.model_source`` as it was resolved for the plan.
    """
    sources = [config.model_source, *([config.model_fallback] if config.model_fallback else [])]
    found = {config.model_source: files}

    def build(source: str, slots: int) -> Engine:
        if source not in found:
            found[source] = resolve(source, engine=config.engine)
        return _build(config, plan, found[source], slots)

    return RecoveringEngine(build, sources, plan.slots)


def _build(config: DeploymentConfig, plan: CapacityPlan, files: ModelFiles, slots: int) -> Engine:
    settings = config.optimization_settings
    match config.engine:
        case "openvino":
            from model_server.engines.openvino import OpenVINOEngine

            assert files.path is not None
            return OpenVINOEngine(
                model=config.model_name,
                path=files.path,
                threads=plan.threads,
                slots=slots,
                # After running out of memory there are fewer slots: the pool shrinks with them.
                kv_blocks=math.ceil(plan.kv_blocks * slots / plan.slots),
                kv_cache_bits=settings.kv_cache_bits,
                context_tokens=settings.max_sequence_length,
                batch_tokens=plan.batched_tokens,
                prefix_caching=settings.enable_prefix_caching,
                scoring=files.classification is not None,
                weight_bits=files.weight_bits,
                weights_bytes=files.weights_bytes,
            )
        case other:
            raise ConfigurationError(f"engine {other!r} is not built in")
