from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

import runconfig
from model_server import capacity, deployment
from model_server.cache import cache_dir
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, ResourceInsufficientError
from model_server.model_source import ModelFiles, ModelShape

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models/complaints-tiny"
GIB, MIB = 2**30, 2**20

# Sizes of openvino_model.bin and GGUF files made from Qwen3-0.6B's shape by optimum-intel 2.3 and by gguf 0.17.
SHAPE = ModelShape("Qwen3ForCausalLM", 28, 1024, 16, 8, 128, 151_936, 40_960, 3072)
IR_BYTES = {4: 383_121_117, 8: 597_472_909, 16: 1_191_969_161}
GGUF_BYTES = {4: 335_503_360, 8: 633_495_552}


def environment(memory_gb=8.0, **more):
    settings = {"max_batch_size": 8, "max_sequence_length": 1024, "quantization_bits": 4} | more.pop("settings", {})
    raw = {
        "model_name": "qwen3-0.6b",
        "model_version": "1",
        "model_source": "models/not-on-this-machine",
        "deployment_type": "kubernetes",
        "engine": "openvino",
        "resource_limits": {"cpu_cores": 2, "memory_gb": memory_gb, "disk_gb": 20, **more.pop("limits", {})},
        "optimization_settings": {"enable_quantization": settings["quantization_bits"] < 16, **settings},
        **more,
    }
    return runconfig.validate(DeploymentConfig, raw, "test")


def ir(bits, *, classification=False, source="models/not-on-this-machine"):
    settings = Path("classification.json") if classification else None
    return ModelFiles("openvino", source, Path(source), None, SHAPE, IR_BYTES[bits], bits, settings)


def gguf(bits):
    return ModelFiles("gguf", "model.gguf", Path("model.gguf"), None, SHAPE, GGUF_BYTES[bits], bits)


def pool_of(bits, kv_bits=8, **settings):
    return capacity.check(environment(64, settings={"quantization_bits": bits, "kv_cache_bits": kv_bits, **settings}))


def test_a_plan_holds_exactly_the_sequences_that_the_slots_can_use_where_memory_is_plenty():
    plan = pool_of(4, max_batch_size=3, max_sequence_length=100)
    assert plan.slots == 3
    assert plan.kv_tokens == 3 * 128  # pages of 32 tokens: 100 needs four


@pytest.mark.parametrize(("kv_bits", "measured_bytes"), [(8, 212_172_800), (16, 367_001_600)])
def test_the_kv_pool_has_the_size_that_openvino_reports(kv_bits, measured_bytes):
    """get_metrics().kv_cache_size_in_bytes for num_kv_blocks=100, Qwen3-0.6B, OpenVINO GenAI 2026.4.1."""
    assert capacity.kv_bytes_per_token(SHAPE, kv_bits) * capacity.BLOCK_TOKENS * 100 == measured_bytes


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-1.7b"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weights_that_are_not_here_are_estimated_from_the_published_shape(name, bits):
    """0.6B against exported files; 1.7B against its 1,720,574,976 published parameters at 8 and 16 bits."""
    config = environment(64, model_name=name, settings={"quantization_bits": bits})
    weights = capacity.check(config).weights_bytes
    if name == "qwen3-0.6b":
        assert weights == pytest.approx(IR_BYTES[bits], rel=0.03)
    elif bits >= 8:
        assert weights == pytest.approx(1_720_574_976 * bits / 8, rel=0.01)


def test_a_model_of_unknown_size_has_to_be_here():
    with pytest.raises(ConfigurationError, match=r"qwen3-0\.6b, qwen3-1\.7b.*model_server\.optimize"):
        capacity.check(environment(model_name="my-own"))


def test_a_classifier_is_compiled_twice():
    config = environment()
    one = capacity.check(config, ir(4))
    two = capacity.check(config, ir(4, classification=True))
    assert two.weights_bytes == 2 * one.weights_bytes
    assert two.overhead_bytes > one.overhead_bytes
    assert "compiled twice" in two.arithmetic


def test_what_does_not_fit_is_refused_with_the_arithmetic_and_what_to_do():
    with pytest.raises(ResourceInsufficientError) as caught:
        capacity.check(environment(1.0), ir(4))
    message = str(caught.value)
    for words in ("short of one full sequence", "memory limit", "weights", "80% of it", "resource_limits.memory_gb"):
        assert words in message


def test_one_full_sequence_must_fit_the_pool():
    """0.5 GiB is left for the pool: 7,000 tokens of 66,304 bytes are too many, 5,000 are not."""
    left = capacity.check(environment(64), ir(4))
    memory = (left.weights_bytes + left.overhead_bytes + 0.5 * GIB) / 0.8 / GIB
    longer = {"max_batch_size": 8, "max_sequence_length": 5000}
    assert capacity.check(environment(memory, settings=longer), ir(4)).kv_tokens >= 5000
    with pytest.raises(ResourceInsufficientError):
        capacity.check(environment(memory, settings=longer | {"max_sequence_length": 9000}), ir(4))


def test_a_gguf_file_needs_room_to_be_unpacked():
    """Q8_0 of 604 MiB took 1,672 MiB once running but 1,987 while loading, and the server is there as well."""
    short = {"quantization_bits": 8, "max_batch_size": 1, "max_sequence_length": 32}
    with pytest.raises(ResourceInsufficientError, match="short of loading it"):
        capacity.check(environment(2.3, settings=short), gguf(8))
    assert capacity.check(environment(2.5, settings=short), gguf(8)).weights_bytes > 2 * GGUF_BYTES[8]


def test_the_fallback_has_to_fit_as_well():
    """It is not here: taken for the same model at twice the bits."""
    with_fallback = capacity.check(environment(model_fallback="models/also-not-here"), ir(4))
    assert with_fallback.weights_bytes == pytest.approx(IR_BYTES[8], rel=0.03)
    memory = 1.375
    capacity.check(environment(memory), ir(4))
    with pytest.raises(ResourceInsufficientError):
        capacity.check(environment(memory, model_fallback="models/also-not-here"), ir(4))


def test_the_fallback_alone_is_planned_once_it_is_what_is_loaded():
    """Its bits may differ from those that the environment declares for the model."""
    config = environment(model_fallback="models/int8")
    assert capacity.check(config, ir(8, source="models/int8")).weights_bytes == IR_BYTES[8]


def test_bits_that_the_model_does_not_have_are_refused():
    with pytest.raises(ConfigurationError, match=r"quantization_bits is 4, but .* holds weights of 8 bits"):
        capacity.check(environment(), ir(8))


def test_a_sequence_longer_than_the_model_was_made_for_is_refused():
    with pytest.raises(ConfigurationError, match="made for 40960 tokens"):
        capacity.check(environment(settings={"max_sequence_length": 50_000}), ir(4))


def test_lmdeploy_without_a_gpu_is_refused_and_openvino_is_named():
    with pytest.raises(ConfigurationError, match="no CPU path; use engine 'openvino'"):
        capacity.check(environment(engine="lmdeploy"))


@pytest.mark.parametrize(
    "more", [{"limits": {"gpu_count": 1}}, {"serving": {"engine_url": "http://gpu-host:23333"}}], ids=["gpu", "url"]
)
def test_lmdeploy_with_a_gpu_or_a_running_server_is_accepted(more):
    plan = capacity.check(environment(1, engine="lmdeploy", **more))
    assert (plan.weights_bytes, plan.kv_tokens) == (0, 0)
    assert plan.predicted_resident_bytes < 0.8 * GIB


def test_openvino_with_a_gpu_is_refused():
    with pytest.raises(ConfigurationError, match="computes on the CPU"):
        capacity.check(environment(limits={"gpu_count": 1}))


def test_the_share_that_may_be_used_is_the_memory_alerts_threshold():
    alerts = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text(encoding="utf-8"))["alerts"]
    assert alerts["memory_usage"]["unit"] == "percent"
    assert alerts["memory_usage"]["threshold"] / 100 == capacity.MEMORY_ALERT_SHARE


def test_an_environment_that_is_warned_earlier_uses_less():
    config = environment(4, alerts={"memory_usage": 50}, settings={"max_batch_size": 64})
    assert capacity.check(config, ir(4)).predicted_resident_bytes <= 2 * GIB


@pytest.mark.parametrize("path", sorted((ROOT / "environments").glob("*.yml")), ids=lambda path: path.stem)
def test_every_environment_that_the_repository_carries_fits(path):
    plan = capacity.check(deployment.load(path, environ={}))
    assert plan.kv_tokens >= plan.slots
    assert "GiB" in plan.arithmetic


@given(
    bits=st.sampled_from([4, 8, 16]),
    kv_bits=st.sampled_from([8, 16]),
    memory_gb=st.floats(0.5, 64),
    cores=st.floats(0.1, 128),
    slots=st.integers(1, 256),
    length=st.integers(16, 40_960),
    classification=st.booleans(),
    unpacked=st.booleans(),
)
@example(4, 8, 1.5, 1.9, 8, 1024, False, False)
def test_whatever_is_accepted_fits_its_limit(bits, kv_bits, memory_gb, cores, slots, length, classification, unpacked):
    files = gguf(bits) if unpacked and bits < 16 else ir(bits, classification=classification)
    config = environment(
        memory_gb,
        limits={"cpu_cores": cores},
        settings={
            "quantization_bits": bits,
            "kv_cache_bits": kv_bits,
            "max_batch_size": slots,
            "max_sequence_length": length,
        },
    )
    try:
        plan = capacity.check(config, files)
    except ResourceInsufficientError:
        # Refused for a reason: with a GiB for server and engine beside what must be there, it would not fit.
        needed = files.weights_bytes * (3 if files.kind == "gguf" else 2) + slots * 8 * MIB
        cached = (length * 2 + slots * 32 + 512) * capacity.kv_bytes_per_token(SHAPE, kv_bits)
        assert needed + cached + GIB > memory_gb * GIB * 0.8
        return
    assert plan.weights_bytes + plan.overhead_bytes + plan.kv_pool_bytes == plan.predicted_resident_bytes
    assert plan.predicted_resident_bytes <= 0.8 * deployment.memory_limit_bytes(config)
    assert plan.weights_bytes >= files.weights_bytes
    assert length <= plan.kv_tokens <= slots * (length + 31)
    assert plan.kv_tokens * plan.kv_bytes_per_token == plan.kv_pool_bytes
    assert plan.kv_blocks * capacity.BLOCK_TOKENS == plan.kv_tokens
    assert plan.slots == slots
    assert 1 <= plan.threads <= max(1, cores)


@given(st.floats(1.0, 32), st.floats(1.0, 32))
def test_more_memory_never_means_a_smaller_pool(one, other):
    assume(one <= other)
    plans = []
    for memory in (one, other):
        try:
            plans.append(capacity.check(environment(memory, settings={"max_batch_size": 64}), ir(4)).kv_tokens)
        except ResourceInsufficientError:
            plans.append(0)
    assert plans[0] <= plans[1]


# The prediction against the real server -------------------------------------------------------------------

SMALL = "optimization_settings.max_sequence_length=512"


def smallest_memory_gb(words):
    """The least limit, in 64ths of a GiB, that the check accepts."""
    low, high = 1, 64 * 64
    while low < high:
        middle = (low + high) // 2
        try:
            capacity.check(deployment.load(ROOT / "environments/local.yml", [*words, memory(middle / 64)], {}))
        except ResourceInsufficientError:
            low = middle + 1
        else:
            high = middle
    return low / 64


def memory(gib):
    return f"resource_limits.memory_gb={gib}"


def words_for(model, bits, slots):
    return [
        f"model_source={model}",
        f"optimization_settings.quantization_bits={bits}",
        f"optimization_settings.max_batch_size={slots}",
        SMALL,
    ]


@pytest.fixture(scope="module")
def random_model():
    """Directories of a random-weight Qwen3-0.6B, made once: minutes, and the export environment."""
    cache = cache_dir() / "models"

    def prepare(bits):
        source, out = cache / "random-0.6b", cache / f"random-0.6b-int{bits}"
        if not (source / "manifest.json").exists():
            run("training.random_model", "shape=0.6b", f"out={source}")
        if not (out / "manifest.json").exists():
            run("model_server.optimize", str(source), str(out), f"bits={bits}")
        return out

    def run(module, *words):
        subprocess.run([sys.executable, "-m", module, *words], check=True, cwd=ROOT, timeout=1800)

    return prepare


@pytest.fixture
def measure(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))  # with import mode importlib tests are no package
    import measure_memory

    def measure(words, **more):
        return measure_memory.measure(ROOT / "environments/local.yml", words, tmp_path / "server.log", **more)

    return measure


def assert_as_predicted(measured):
    assert measured.oom_kills == measured.restarts == 0
    assert measured.tokens >= 0.9 * measured.kv_tokens  # the pool really was in use
    assert measured.predicted == pytest.approx(measured.resident, rel=0.15)


@pytest.mark.cgroup
@pytest.mark.parametrize("slots", [1, 32])
def test_the_embedded_model_takes_the_memory_that_was_predicted(measure, slots):
    """At exactly the smallest limit that the check accepts."""
    words = words_for(TINY, 8, slots)
    measured = measure([*words, memory(smallest_memory_gb(words))])
    assert_as_predicted(measured)


# Kernels take the same of any model: all lengths are asked of the embedded one, which answers in milliseconds.
FEW = {"lengths": 32}


@pytest.mark.slow
@pytest.mark.cgroup
@pytest.mark.training
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("slots", [1, 8, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_06b_takes_the_memory_that_was_predicted(measure, random_model, bits, slots):
    assert_as_predicted(measure([*words_for(random_model(bits), bits, slots), memory(5)], **FEW))


@pytest.mark.slow
@pytest.mark.cgroup
@pytest.mark.training
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bits", [4, 8])
def test_06b_is_not_killed_at_the_smallest_limit_that_is_accepted(measure, random_model, bits):
    words = words_for(random_model(bits), bits, 4)
    measured = measure([*words, memory(smallest_memory_gb(words))], **FEW)
    assert measured.oom_kills == measured.restarts == 0
    assert measured.tokens >= 0.9 * measured.kv_tokens
