"""One module per engine; :func:`create` picks the one an environment names.

Imports nothing heavy by itself: the engine's own process comes through here too, and its start is part of what a
client waits for.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_server.capacity import CapacityPlan
    from model_server.deployment import DeploymentConfig
    from model_server.engine import Engine
    from model_server.model_source import ModelFiles
    from model_server.recovery import RecoveringEngine

LMDEPLOY_KEY = "LMDEPLOY_API_KEY"
"""Environment variable with the key of an LMDeploy that runs elsewhere; a child gets a random one."""


def create(config: DeploymentConfig, plan: CapacityPlan, files: ModelFiles) -> RecoveringEngine:
    """The engine of ``config``, not loaded yet; it reloads, falls back and retries as recovery.py says.

    Args:
        plan: Accepted by :func:`model_server.capacity.check`.
        files: ``config.model_source`` as it was resolved for the plan.
    """
    from model_server.model_source import resolve
    from model_server.recovery import RecoveringEngine

    sources = [config.model_source, *([config.model_fallback] if config.model_fallback else [])]
    found = {config.model_source: files}

    def build(source: str, slots: int) -> Engine:
        if source not in found:
            found[source] = resolve(source, engine=config.engine)
        return _build(config, plan, found[source], slots)

    return RecoveringEngine(build, sources, plan.slots)


def _build(config: DeploymentConfig, plan: CapacityPlan, files: ModelFiles, slots: int) -> Engine:
    settings, serving = config.optimization_settings, config.serving
    match config.engine:
        case "openvino":
            from model_server.engines.openvino import OpenVINOEngine

            return OpenVINOEngine(
                model=config.model_name,
                path=_path(files),
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
        case "transformers":
            from model_server.engines.transformers import TransformersEngine

            return TransformersEngine(
                model=config.model_name,
                path=_path(files),
                threads=plan.threads,
                slots=slots,
                context_tokens=settings.max_sequence_length,
                kv_cache=settings.enable_kv_cache,
            )
        case "ollama":
            from model_server.engines.ollama import DEFAULT_URL, OllamaEngine

            return OllamaEngine(
                model=config.model_name,
                source=files.source,
                url=serving.engine_url or DEFAULT_URL,
                slots=slots,
                context_tokens=settings.max_sequence_length,
            )
        case "lmdeploy":
            from model_server.engines.lmdeploy import LMDeployEngine

            return LMDeployEngine(
                model=config.model_name,
                path=_path(files),
                url=serving.engine_url,
                api_key=os.environ.get(LMDEPLOY_KEY),
                slots=slots,
                context_tokens=settings.max_sequence_length,
                kv_cache_bits=settings.kv_cache_bits,
                prefix_caching=settings.enable_prefix_caching,
                weight_bits=files.weight_bits,
                weights_bytes=files.weights_bytes,
                drain_s=serving.drain_s,
            )


def _path(files: ModelFiles) -> Path:
    from model_server.errors import ModelLoadError

    if files.path is None:
        raise ModelLoadError(files.source, "this engine loads files, and the name stands for none")
    return files.path
