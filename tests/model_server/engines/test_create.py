"""The engine that an environment names is built with what the environment says."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from model_server import capacity, deployment, engines
from model_server.deployment import EngineName
from model_server.model_source import ModelFiles, resolve

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models" / "complaints-tiny"


def environment(tmp_path, engine, **changes):
    path = tmp_path / "environment.yml"
    path.write_text(
        f"""
model_name: tiny
model_version: "1"
model_source: {MODEL}
deployment_type: local
engine: {engine}
resource_limits: {{cpu_cores: 2, memory_gb: 4, disk_gb: 2, gpu_count: {int(engine == "lmdeploy")}}}
optimization_settings: {{enable_quantization: true, quantization_bits: 8, max_batch_size: 4, max_sequence_length: 512}}
"""
    )
    return deployment.load(path, [f"{key}={value}" for key, value in changes.items()], environ={})


def files_of(engine):
    if engine == "ollama":
        return ModelFiles("ollama", "qwen3:0.6b", None)
    return resolve(str(MODEL))


@pytest.mark.parametrize("engine", get_args(EngineName))
async def test_every_engine_that_an_environment_may_name_is_built(tmp_path, engine):
    config = environment(tmp_path, engine)
    files = files_of(engine)
    plan = capacity.check(config, files)
    built = engines._build(config, plan, files, plan.slots)

    assert type(built).__name__.lower() == f"{engine}engine"
    assert built.health().state == "starting"


async def test_openvino_gets_its_numbers_from_the_plan_and_shrinks_with_its_slots(tmp_path):
    config = environment(tmp_path, "openvino")
    files = files_of("openvino")
    plan = capacity.check(config, files)
    whole = engines._build(config, plan, files, plan.slots)._load
    half = engines._build(config, plan, files, plan.slots // 2)._load

    assert (whole.threads, whole.slots, whole.kv_blocks) == (plan.threads, plan.slots, plan.kv_blocks)
    assert (half.slots, half.kv_blocks) == (plan.slots // 2, plan.kv_blocks // 2)
    assert whole.scoring


async def test_a_fallback_is_resolved_only_when_it_is_needed(tmp_path):
    config = environment(tmp_path, "openvino", model_name="qwen3-0.6b", model_fallback="models/not-here")
    files = files_of("openvino")
    engine = engines.create(config, capacity.check(config, files), files)
    info = await engine.load()

    assert info.source == str(MODEL)
    await engine.close()
