from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, reject
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import runconfig
from benchmarks.gate import GateScenario
from model_server import deployment
from model_server.deployment import (
    DeploymentConfig,
    OptimizationSettings,
    Replicas,
    ResourceLimits,
    Rollout,
    Serving,
    changes,
    container_resources,
    timings,
)
from model_server.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = sorted((ROOT / "environments").glob("*.yml"))
SECTIONS = (DeploymentConfig, ResourceLimits, OptimizationSettings, Replicas, Serving, Rollout)

PRODUCTION = {
    "model_name": "qwen3-0.6b",
    "model_version": "2026-11-01",
    "model_source": "models/qwen3-0.6b-int4",
    "deployment_type": "kubernetes",
    "engine": "openvino",
    "resource_limits": {"cpu_cores": 4, "memory_gb": 8, "disk_gb": 20},
    "optimization_settings": {
        "enable_quantization": True,
        "quantization_bits": 4,
        "max_batch_size": 32,
        "max_sequence_length": 4096,
    },
}


def config(*words):
    """The design's production environment with ``words`` over it."""
    raw = yaml.safe_load(yaml.safe_dump(PRODUCTION))
    for word in words:
        key, _, value = word.partition("=")
        *parents, leaf = key.split(".")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = yaml.safe_load(value)
    return runconfig.validate(DeploymentConfig, raw, "test")


def refusal(*words):
    with pytest.raises(runconfig.ConfigError) as caught:
        config(*words)
    return str(caught.value)


# Names that requirement R9 fixes, and the fields of the design's example.
NAMES = {
    DeploymentConfig: {"model_name", "model_version", "deployment_type", "resource_limits", "optimization_settings"},
    ResourceLimits: {"cpu_cores", "memory_gb", "disk_gb", "gpu_count"},
    OptimizationSettings: {
        "enable_quantization",
        "quantization_bits",
        "enable_kv_cache",
        "max_batch_size",
        "max_sequence_length",
    },
}


@pytest.mark.parametrize("section", NAMES, ids=lambda section: section.__name__)
def test_the_required_fields_have_their_required_names(section):
    assert NAMES[section] <= section.model_fields.keys()


def test_gpu_count_is_0_unless_it_is_set():
    assert config().resource_limits.gpu_count == 0


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_says_what_it_is_and_what_its_change_takes(section):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        assert field.description, name
        assert field.json_schema_extra["change"] in {"hot", "restart", "replace"}, name


def test_every_environment_file_is_found():
    assert {path.stem for path in ENVIRONMENTS} >= {
        "local",
        "staging",
        "production",
        "onprem",
        "demo-baseline",
        "demo-candidate",
    }


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_every_environment_loads_and_survives_a_round_trip(path, tmp_path):
    loaded = deployment.load(path, environ={})
    again = tmp_path / "again.yml"
    again.write_text(runconfig.dump(loaded), encoding="utf-8")
    assert deployment.load(again, environ={}) == loaded


@pytest.mark.parametrize(
    ("name", "kind"),
    [("local", "local"), ("staging", "kubernetes"), ("production", "kubernetes"), ("onprem", "server")],
)
def test_an_environment_is_of_the_type_that_its_name_promises(name, kind):
    assert deployment.load(ROOT / f"environments/{name}.yml", environ={}).deployment_type == kind


def test_the_demo_compares_nothing_but_optimisation_settings():
    a, b = (deployment.load(ROOT / f"environments/demo-{name}.yml", environ={}) for name in ("baseline", "candidate"))
    different = [path for path, _ in changes(a, b)]
    assert different == [
        "optimization_settings.enable_prefix_caching",
        "optimization_settings.max_batch_size",
    ]


def test_local_files_are_overridden_by_variables_and_these_by_words():
    path = ROOT / "environments/local.yml"
    environ = {"MODEL_SERVER_SERVING__PORT": "7000", "MODEL_SERVER_MODEL_VERSION": "2026-11-02", "PORT": "1"}
    loaded = deployment.load(path, ["serving.port=7001"], environ)
    assert (loaded.serving.port, loaded.model_version) == (7001, "2026-11-02")
    assert deployment.load(path, environ=environ).serving.port == 7000


def test_a_misspelled_key_is_refused_with_its_path_and_the_allowed_ones():
    with pytest.raises(ConfigurationError) as caught:
        deployment.load(ROOT / "environments/local.yml", ["optimization_settings.max_batchsize=4"], {})
    message = str(caught.value)
    assert "optimization_settings.max_batchsize" in message
    assert "did you mean 'max_batch_size'?" in message
    assert "quantization_bits" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimization_settings.enable_kv_cache=false"], "use engine 'transformers'"),
        (["optimization_settings.enable_quantization=false"], "16 bits means no quantization"),
        (["optimization_settings.quantization_bits=16"], "16 bits means no quantization"),
        (["optimization_settings.quantization_bits=5"], "Input should be 4, 8 or 16"),
        (["optimization_settings.max_batch_size=0"], "greater than or equal to 1"),
        (["replicas.min=4", "replicas.max=3"], "replicas.min (4) is above replicas.max (3)"),
        (["serving.drain_s=60"], "drain_s (60) must be at least request_timeout_s + 5 (65)"),
        (["rollout.steps=[10, 50]"], "must end in 100"),
        (["rollout.steps=[]"], "must end in 100"),
        (["rollout.steps=[50, 10, 100]"], "must ascend"),
        (["rollout.steps=[50, 50, 100]"], "must ascend"),
        (["resource_limits.cpu_cores=0"], "resource_limits.cpu_cores"),
        (["resource_limits.memory_gb=true"], "a number is expected"),
        (["resource_limits.memory_gb=-1"], "resource_limits.memory_gb"),
        (["resource_limits.gpu_count=0.5"], "resource_limits.gpu_count"),
        (["engine=vllm"], "'openvino', 'lmdeploy', 'ollama' or 'transformers'"),
        (["deployment_type=cloud"], "'local', 'server' or 'kubernetes'"),
        (["model_revision=main"], "model_revision"),
        (["serving.port=70000"], "serving.port"),
        (["serving.otlp_endpoint=localhost:4318"], "serving.otlp_endpoint"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_contradicts_itself_or_cannot_be_is_refused_with_the_reason(words, said):
    assert said in refusal(*words)


def test_the_kv_cache_can_be_switched_off_for_the_reference_engine():
    words = ["engine=transformers", "optimization_settings.enable_kv_cache=false"]
    assert config(*words).optimization_settings.enable_kv_cache is False


def test_records_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        config().resource_limits.memory_gb = 16


def test_changes_name_the_path_and_what_applying_it_takes():
    new = config(
        "serving.log_level=DEBUG",
        "serving.rate_limit_per_minute=10",
        "serving.max_queue=8",
        "optimization_settings.max_batch_size=16",
        "model_source=models/other",
        "alerts={low_qps: 1}",
    )
    assert changes(config(), new) == [
        ("model_source", "replace"),
        ("optimization_settings.max_batch_size", "restart"),
        ("serving.max_queue", "restart"),
        ("serving.rate_limit_per_minute", "hot"),
        ("serving.log_level", "hot"),
        ("alerts", "hot"),
    ]
    assert changes(new, new) == []


def test_8_gib_and_4_cores_ask_for_half_of_it():
    """Requirement R4: requests 4Gi and 2 CPU, limits 8Gi and 4 CPU."""
    resources = container_resources(config())
    assert resources.requests == {"cpu": "2", "memory": "4Gi"}
    assert resources.limits == {"cpu": "4", "memory": "8Gi"}
    assert (resources.cpu_quota, resources.memory_max) == ("400%", str(8 * 1024**3))


def test_fractions_become_millicores_and_mebibytes():
    resources = container_resources(config("resource_limits.cpu_cores=1.5", "resource_limits.memory_gb=1.25"))
    assert resources.limits == {"cpu": "1500m", "memory": "1280Mi"}
    assert resources.requests == {"cpu": "750m", "memory": "640Mi"}
    assert (resources.cpu_quota, resources.memory_max) == ("150%", str(1280 * 1024**2))


def test_gpus_are_requested_whole():
    resources = container_resources(config("engine=lmdeploy", "resource_limits.gpu_count=1"))
    assert resources.requests["nvidia.com/gpu"] == resources.limits["nvidia.com/gpu"] == "1"


def test_the_designs_production_environment_gets_these_times():
    """Worked out by hand from request_timeout_s 60, drain_s 75, 5 s preStop and 10 s for the engine to stop."""
    times = timings(config())
    assert (times.pre_stop_s, times.termination_grace_period_s) == (5, 90)
    assert (times.haproxy_server_s, times.haproxy_client_s) == (65, 70)


limits = st.builds(
    ResourceLimits,
    cpu_cores=st.floats(0.1, 1024),
    memory_gb=st.floats(0.0625, 16384),
    disk_gb=st.just(1),
    gpu_count=st.integers(0, 8),
)


@st.composite
def accepted(draw):
    """Any environment that the model accepts, tried from fields that often clash."""
    request = draw(st.floats(0.001, 90_000))
    raw = {
        **PRODUCTION,
        "deployment_type": draw(st.sampled_from(["local", "server", "kubernetes"])),
        "resource_limits": draw(limits).model_dump(),
        "serving": {"request_timeout_s": request, "drain_s": request + draw(st.floats(-10, 1000))},
    }
    try:
        return DeploymentConfig.model_validate(raw)
    except ValidationError:
        reject()


@given(accepted())
def test_no_accepted_environment_can_cut_an_accepted_stream(found):
    """Longest request < balancer < preStop + drain < kill, in Kubernetes and under systemd."""
    serving, times = found.serving, timings(found)
    assert serving.request_timeout_s < times.haproxy_server_s < times.haproxy_client_s
    assert times.haproxy_client_s < times.pre_stop_s + serving.drain_s < times.termination_grace_period_s
    assert times.pre_stop_s + serving.drain_s < times.timeout_stop_s


@given(accepted())
def test_probes_are_never_later_than_first_after_30_s_and_then_every_10_s(found):
    times = timings(found)
    assert times.startup.period_s <= 30
    assert times.readiness.period_s <= 10
    assert times.startup.budget_s >= times.timeout_start_s
    assert times.progress_deadline_s > times.startup.budget_s
    assert times.liveness.period_s > times.liveness.timeout_s


@given(limits)
def test_kubernetes_and_systemd_are_given_the_same_limits(resource_limits):
    found = DeploymentConfig.model_validate({**PRODUCTION, "resource_limits": resource_limits.model_dump()})
    resources = container_resources(found)
    assert quantity(resources.limits["memory"]) == int(resources.memory_max) <= resource_limits.memory_gb * 2**30
    assert 0 < quantity(resources.requests["memory"]) <= quantity(resources.limits["memory"]) / 2
    assert 0 < quantity(resources.requests["cpu"]) <= quantity(resources.limits["cpu"])
    assert quantity(resources.limits["cpu"]) * 100 == pytest.approx(float(resources.cpu_quota[:-1]), abs=0.6)


def quantity(text):
    """A Kubernetes quantity as a number, after the API's own definition of the suffixes."""
    number, suffix = re.fullmatch(r"(\d+)(\D*)", text).groups()
    return int(number) * {"": 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}[suffix]


@given(st.integers(1, 1024))
def test_an_autoscaler_starts_an_instance_before_all_slots_are_taken(slots):
    target = deployment.hpa_target(config(f"optimization_settings.max_batch_size={slots}"))
    assert 1 <= target <= slots
    assert target < slots or slots == 1


def test_every_gate_that_an_environment_names_is_a_scenario():
    root = Path(__file__).parents[2]
    gates = {deployment.load(path, environ={}).rollout.gate for path in (root / "environments").glob("*.yml")} - {None}

    assert gates
    for gate in gates:
        runconfig.load(GateScenario, root / gate)
