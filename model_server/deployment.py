"""The one description of what runs: ``environments/*.yml`` as strict, frozen records and what follows.

Precedence: file < ``MODEL_SERVER_*`` variables < ``key=value`` words. Server, Pulumi, Helm and Ansible all
read these records; whatever they need beyond the fields is derived here once (:func:`timings`,
:func:`container_resources`, :func:`hpa_target`) and memory in :mod:`model_server.capacity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

import runconfig
from model_server.errors import ConfigurationError
from runconfig import RunConfig

ENV_PREFIX = "MODEL_SERVER_"

ChangeClass: TypeAlias = Literal["hot", "restart", "replace"]
EngineName: TypeAlias = Literal["openvino", "lmdeploy", "ollama", "transformers"]
DeploymentType: TypeAlias = Literal["local", "server", "kubernetes"]

HOT: Any = {"change": "hot"}
"""Applied by the running server, same PID (or read by nothing that runs in it)."""
RESTART: Any = {"change": "restart"}
"""The same instance starts again with the new value."""
REPLACE: Any = {"change": "replace"}
"""A new instance beside the old one, which takes traffic only after the rollout's gate."""


class ResourceLimits(RunConfig):
    """What one instance may use; the kernel enforces the first two."""

    cpu_cores: float = Field(ge=0.1, le=1024, json_schema_extra=REPLACE)
    """CPU time per second, in cores; may be fractional. Threads are its floor."""
    memory_gb: float = Field(ge=0.0625, le=16384, json_schema_extra=REPLACE)
    """Memory of server and engine together, GiB."""
    disk_gb: float = Field(gt=0, le=1_048_576, json_schema_extra=REPLACE)
    """Model files, logs and temporary files, GiB."""
    gpu_count: int = Field(default=0, ge=0, le=64, json_schema_extra=REPLACE)
    """Whole accelerators."""


class OptimizationSettings(RunConfig):
    """How the engine computes."""

    enable_quantization: bool = Field(json_schema_extra=RESTART)
    """Weights below 16 bits."""
    quantization_bits: Literal[4, 8, 16] = Field(json_schema_extra=RESTART)
    """Bits of a weight; 16 exactly when ``enable_quantization`` is false."""
    enable_kv_cache: bool = Field(default=True, json_schema_extra=RESTART)
    """False computes the whole sequence again for each token; only ``transformers`` can."""
    kv_cache_bits: Literal[8, 16] = Field(default=8, json_schema_extra=RESTART)
    """Bits of a cached key or value."""
    enable_prefix_caching: bool = Field(default=True, json_schema_extra=RESTART)
    """Keep the cache of finished prompts, so that a shared instruction is computed once."""
    max_batch_size: int = Field(ge=1, le=1024, json_schema_extra=RESTART)
    """Requests computed at once (slots)."""
    max_sequence_length: int = Field(ge=16, le=1_048_576, json_schema_extra=RESTART)
    """Tokens of prompt and answer together."""


class Replicas(RunConfig):
    """Instances that the autoscaler keeps; a server or laptop runs ``min``."""

    min: int = Field(default=1, ge=1, le=1000, json_schema_extra=HOT)
    """Never fewer."""
    max: int = Field(default=1, ge=1, le=1000, json_schema_extra=HOT)
    """Never more."""


class Serving(RunConfig):
    """The HTTP side."""

    host: str = Field(default="127.0.0.1", min_length=1, json_schema_extra=RESTART)
    """Address to listen on; 0.0.0.0 in containers."""
    port: int = Field(default=8000, ge=0, le=65535, json_schema_extra=RESTART)
    """0 lets the system choose a free one."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535, json_schema_extra=RESTART)
    """Port of /metrics; null: the same as ``port``."""
    max_queue: int = Field(default=64, ge=0, le=100_000, json_schema_extra=RESTART)
    """Requests that may wait for a slot; the next one gets 429."""
    request_timeout_s: float = Field(default=60.0, gt=0, le=86_400, json_schema_extra=RESTART)
    """From acceptance to the last token, seconds."""
    drain_s: float = Field(default=75.0, gt=0, le=90_000, json_schema_extra=RESTART)
    """After SIGTERM, seconds for accepted requests to end."""
    api_keys_file: Path | None = Field(default=None, json_schema_extra=RESTART)
    """One key a line; null: no key is asked for. The file's content is read again while running."""
    rate_limit_per_minute: int | None = Field(default=None, ge=1, json_schema_extra=HOT)
    """Requests per key (per address without keys) and minute; null: no limit."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", json_schema_extra=HOT)
    """Least level that is written."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://", json_schema_extra=RESTART)
    """OTLP/HTTP collector for traces and logs, for example http://localhost:4318; null: none."""
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1, json_schema_extra=RESTART)
    """Share of the traces that begin here that are recorded; where a caller sends a traceparent, its word counts."""
    trace_max_per_s: float = Field(default=50.0, gt=0, le=100_000, json_schema_extra=RESTART)
    """Of the traces that begin here so many a second are recorded: what they cost is bounded at any load."""
    engine_url: str | None = Field(default=None, pattern=r"^https?://", json_schema_extra=RESTART)
    """A running Ollama or LMDeploy to speak to; null: Ollama at its usual port, LMDeploy as a child."""
    log_dir: Path | None = Field(default=None, json_schema_extra=RESTART)
    """Folder of rotated log files and of daily requests_YYYYMMDD.jsonl; null: the log goes to stdout."""
    record_text: bool = Field(default=False, json_schema_extra=RESTART)
    """Write prompts and answers to the log in masked form; otherwise only their lengths."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024, json_schema_extra=RESTART)
    """Largest request body; a larger one gets 413."""

    @model_validator(mode="after")
    def _timeouts_in_order(self) -> Serving:
        if self.drain_s < self.request_timeout_s + LAST_WORDS_S:
            raise ValueError(
                f"drain_s ({self.drain_s:g}) must be at least request_timeout_s + {LAST_WORDS_S} "
                f"({self.request_timeout_s + LAST_WORDS_S:g}): a request accepted just before SIGTERM may take "
                "all of request_timeout_s, and draining must outlast it or its stream is cut"
            )
        return self


class Rollout(RunConfig):
    """How a new version takes over."""

    strategy: Literal["canary", "blue-green"] = Field(default="canary", json_schema_extra=HOT)
    """canary: by shares of traffic; blue-green: at once, the old version kept until the gate is passed."""
    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(default=(10, 50, 100), json_schema_extra=HOT)
    """Shares of traffic, per cent, ascending to 100."""
    gate: Path | None = Field(default=None, json_schema_extra=HOT)
    """Scenario that decides (``python -m benchmarks gate``); null: readiness alone."""

    @model_validator(mode="after")
    def _steps_lead_to_everyone(self) -> Rollout:
        if not self.steps or self.steps[-1] != 100:
            raise ValueError(f"steps {list(self.steps)} must end in 100: otherwise the rollout never reaches everyone")
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps {list(self.steps)} must ascend: a rollout only ever widens")
        return self


class DeploymentConfig(RunConfig):
    """One environment."""

    model_name: str = Field(min_length=1, json_schema_extra=REPLACE)
    """Name that clients ask for."""
    model_version: str = Field(min_length=1, json_schema_extra=REPLACE)
    """Shown by /api/v1/model and in metrics; quote dates in YAML."""
    model_source: str = Field(min_length=1, json_schema_extra=REPLACE)
    """A prepared directory, a GGUF file, a run directory of training/, a hub id (org/name) or an Ollama name."""
    model_revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", json_schema_extra=REPLACE)
    """Commit of a hub id, 40 hex digits; null for local files."""
    model_fallback: str | None = Field(default=None, min_length=1, json_schema_extra=REPLACE)
    """Loaded when ``model_source`` cannot be, after 3 tries; a hub id carries its commit: org/name@commit."""
    deployment_type: DeploymentType = Field(json_schema_extra=REPLACE)
    """Where it runs."""
    engine: EngineName = Field(json_schema_extra=REPLACE)
    """What computes tokens; lmdeploy needs a GPU."""
    image: str | None = Field(default=None, min_length=1, json_schema_extra=REPLACE)
    """Container image, pinned by digest; null: built from the Dockerfile."""
    resource_limits: ResourceLimits
    optimization_settings: OptimizationSettings
    replicas: Replicas = Field(default_factory=Replicas)
    serving: Serving = Field(default_factory=Serving)
    rollout: Rollout = Field(default_factory=Rollout)
    alerts: dict[str, float] = Field(default_factory=dict, json_schema_extra=HOT)
    """Thresholds that differ from monitoring/alerts.yml: name of the alert -> number."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> DeploymentConfig:
        settings = self.optimization_settings
        if not settings.enable_kv_cache and self.engine != "transformers":
            raise ValueError(
                f"optimization_settings.enable_kv_cache is false, but engine {self.engine!r} always keeps a "
                "KV cache: set it to true, or use engine 'transformers' to measure what the cache brings"
            )
        if settings.enable_quantization != (settings.quantization_bits < 16):
            raise ValueError(
                f"optimization_settings.enable_quantization is {str(settings.enable_quantization).lower()} "
                f"but quantization_bits is {settings.quantization_bits}: 16 bits means no quantization, 4 or 8 "
                "bits mean quantization; change one of the two"
            )
        if self.replicas.min > self.replicas.max:
            raise ValueError(
                f"replicas.min ({self.replicas.min}) is above replicas.max ({self.replicas.max}): raise max "
                "or lower min"
            )
        return self


def load(path: Path | str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> DeploymentConfig:
    """Read an environment.

    Args:
        path: For example ``environments/local.yml``.
        overrides: Words such as ``serving.port=0``.
        environ: Where ``MODEL_SERVER_SECTION__KEY`` is looked up; the process's own when None.

    Raises:
        ConfigurationError: With one line per problem.
    """
    try:
        return runconfig.load(DeploymentConfig, Path(path), overrides, environ=environ, env_prefix=ENV_PREFIX)
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error


def change_of(path: str) -> ChangeClass:
    """What applying a new value of the field ``path`` takes, such as ``serving.port``."""
    model: type[RunConfig] = DeploymentConfig
    *parents, name = path.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation  # type: ignore[assignment]
    extra = model.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)  # test_every_field_says_what_its_change_takes
    return extra["change"]  # type: ignore[return-value]


def changes(old: DeploymentConfig, new: DeploymentConfig) -> list[tuple[str, ChangeClass]]:
    """Fields that differ, as (path, what applying it takes), in the order of the file."""
    return list(_changes(old, new, ""))


def _changes(old: RunConfig, new: RunConfig, prefix: str) -> Iterator[tuple[str, ChangeClass]]:
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, RunConfig):
            yield from _changes(before, after, f"{prefix}{name}.")
        elif before != after:
            yield f"{prefix}{name}", change_of(f"{prefix}{name}")


# What follows from the description -----------------------------------------------------------------------

LAST_WORDS_S = 5
"""Between a request's time limit and the end of draining: its 504 or last chunk still has to be written."""

_PRE_STOP_S = 5
# kube-proxy and ingress controllers stop sending to a leaving pod only once they have heard of it; the pod
# serves on meanwhile. Counter-driven drains of the field take 5 s for it (GPUStack operator, LiteLLM 29439).

_ENGINE_STOP_S = 10
# After draining: the engine process is asked to end, then killed; logs and spans are flushed.

_LOAD_BASE_S, _LOAD_S_PER_GIB = 15, 15
# One load. Measured 2-3 s for 0.4 GB of IR and 8-9 s for the same as GGUF (2 cores, 2026-11-23), so this is
# about three times the slowest seen; weights cannot exceed the memory limit.
_LOADS = 4  # 3 tries, then the fallback


@dataclass(frozen=True, slots=True)
class Probe:
    """A kubelet probe on ``serving.port``; seconds."""

    path: str
    period_s: int
    timeout_s: int
    failure_threshold: int

    @property
    def budget_s(self) -> int:
        return self.period_s * self.failure_threshold


@dataclass(frozen=True, slots=True)
class Timings:
    """Every waiting time outside the server. Always::

        request_timeout_s < haproxy_server_s < haproxy_client_s < pre_stop_s + drain_s
        < termination_grace_period_s

    so the server's own 504 comes before the balancer's, and nothing is killed that was accepted.

    Attributes:
        pre_stop_s: preStop sleep; 0 where nobody routes by endpoints (HAProxy is told to drain instead).
        termination_grace_period_s: Kubernetes kills after it.
        hung_grace_period_s: The same after a failed liveness probe: what does not answer will not drain either.
        timeout_stop_s: systemd's TimeoutStopSec.
        timeout_start_s: systemd's TimeoutStartSec; covers 3 tries and the fallback.
        progress_deadline_s: Deployment's progressDeadlineSeconds; longer than the slowest start.
        startup: Until it first succeeds, the other two are not asked.
        readiness: Never later than "first after 30 s, every 10 s".
        liveness: Restarts a server that does not answer; a hung engine it replaces itself.
        balancer: HAProxy's check, from where requests wait in what is hung.
    """

    pre_stop_s: int
    termination_grace_period_s: int
    hung_grace_period_s: int
    timeout_stop_s: int
    timeout_start_s: int
    progress_deadline_s: int
    haproxy_server_s: float
    haproxy_client_s: float
    startup: Probe
    readiness: Probe
    liveness: Probe
    balancer: Probe


def timings(config: DeploymentConfig) -> Timings:
    serving = config.serving
    pre_stop = _PRE_STOP_S if config.deployment_type == "kubernetes" else 0
    grace = math.ceil(pre_stop + serving.drain_s) + _ENGINE_STOP_S
    start = math.ceil(_LOADS * (_LOAD_BASE_S + _LOAD_S_PER_GIB * config.resource_limits.memory_gb))
    slack = serving.drain_s - serving.request_timeout_s
    return Timings(
        pre_stop_s=pre_stop,
        termination_grace_period_s=grace,
        hung_grace_period_s=pre_stop + _ENGINE_STOP_S,
        timeout_stop_s=grace,
        timeout_start_s=start,
        progress_deadline_s=start + grace,
        haproxy_server_s=serving.request_timeout_s + slack / 3,
        haproxy_client_s=serving.request_timeout_s + slack * 2 / 3,
        startup=Probe("/ready", period_s=2, timeout_s=2, failure_threshold=math.ceil(start / 2)),
        readiness=Probe("/ready", period_s=5, timeout_s=2, failure_threshold=2),
        liveness=Probe("/health", period_s=10, timeout_s=5, failure_threshold=3),
        balancer=Probe("/ready", period_s=1, timeout_s=2, failure_threshold=2),
    )


@dataclass(frozen=True, slots=True)
class ContainerResources:
    """Kubernetes quantities, and the same limits in systemd's words."""

    requests: dict[str, str]
    limits: dict[str, str]
    cpu_quota: str
    memory_max: str


def container_resources(config: DeploymentConfig) -> ContainerResources:
    """Requests are half of the limits: 8 GiB and 4 cores ask for 4Gi and 2 CPU."""
    limits = config.resource_limits
    memory = memory_limit_bytes(config)
    gpus = {"nvidia.com/gpu": str(limits.gpu_count)} if limits.gpu_count else {}
    return ContainerResources(
        requests={"cpu": _cpu(limits.cpu_cores / 2), "memory": _memory(memory // 2), **gpus},
        limits={"cpu": _cpu(limits.cpu_cores), "memory": _memory(memory), **gpus},
        cpu_quota=f"{round(limits.cpu_cores * 100)}%",
        memory_max=str(memory),
    )


def memory_limit_bytes(config: DeploymentConfig) -> int:
    """Whole MiB, so that the kernel, Kubernetes and the arithmetic have the same number."""
    return math.floor(config.resource_limits.memory_gb * 1024) * 2**20


def disk_limit(gib: float) -> str:
    """Kubernetes quantity of ``gib``, in whole MiB and never 0, which would be no limit."""
    return _memory(math.ceil(gib * 1024) * 2**20)


def hpa_target(config: DeploymentConfig) -> int:
    """Requests running and waiting per instance, on average, above which one more is started.

    Three quarters of the slots: CPU use says nothing (one decode loop pins its threads), the running
    count alone stops at the number of slots, and a queue is noticed too late for the start of an instance.
    """
    return max(1, config.optimization_settings.max_batch_size * 3 // 4)


def _cpu(cores: float) -> str:
    milli = round(cores * 1000)
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def _memory(size: int) -> str:
    mebi = size // 2**20
    return f"{mebi // 1024}Gi" if mebi % 1024 == 0 else f"{mebi}Mi"
