"""The stack of a laptop as containers of its Docker Engine: the server, and Prometheus and Grafana if images are named.

Pure functions from an environment to files and to arguments of pulumi_docker's Container, which infra/local_stack.py
makes. Times and limits are derived in :mod:`model_server.deployment`, as everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator, model_validator

import runconfig
from infra.manifests import CONFIG_DIR, CONFIG_FILE, NAME, USER, WORK_DIR, checksum, pinned
from model_server.deployment import DeploymentConfig, memory_limit_bytes, timings
from model_server.errors import ConfigurationError
from monitoring import alerts, render
from runconfig import RunConfig

LOOPBACK = "127.0.0.1"
"""Where every port is published: a laptop's stack is for who sits before it."""
KEYS_DIR = "/run/secrets"
PROMETHEUS, GRAFANA = "qwen3-prometheus", "qwen3-grafana"
DASHBOARDS = "monitoring/dashboards"
"""JSON files, shown by Grafana where the repository has them."""
NETWORK = "qwen3"

Arguments = dict[str, Any]
"""Of one pulumi_docker.Container."""
Port = Annotated[int, Field(ge=1, le=65535)]

_MIB = 2**20
_DASHBOARDS_DIR = "/etc/qwen3/dashboards"


class LocalSettings(RunConfig):
    """``local`` in ``Pulumi.<stack>.yaml``."""

    prometheus_image: str | None = None
    """Pinned, such as prom/prometheus@sha256:...; there is no default, because a site may have no public registry.
    null: it is not started."""
    grafana_image: str | None = None
    """The same of Grafana, which shows what Prometheus has; null: it is not started."""
    prometheus_port: Port = 9090
    """Where it is published."""
    grafana_port: Port = 3000
    """The same of Grafana."""

    @field_validator("prometheus_image", "grafana_image")
    @classmethod
    def _names_one_image(cls, image: str | None) -> str | None:
        try:
            return None if image is None else pinned(image)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _something_to_show(self) -> LocalSettings:
        if self.grafana_image is not None and self.prometheus_image is None:
            raise ValueError("grafana_image is set and prometheus_image is not: Grafana would have nothing to show")
        return self


def read_settings(raw: object) -> LocalSettings:
    """``local`` as the stack has it.

    Raises:
        ConfigurationError: With one line per problem.
    """
    if not isinstance(raw, dict):
        raise ConfigurationError(f"local must be a mapping such as {{prometheus_image: NAME@sha256:...}}, got {raw!r}")
    try:
        return runconfig.validate(LocalSettings, raw, "the stack's local")
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error


def not_started(settings: LocalSettings) -> str | None:
    """One line for the plan; None when everything is."""
    absent = [name for name in ("prometheus_image", "grafana_image") if getattr(settings, name) is None]
    if not absent:
        return None
    return f"not started, because the stack names no image: {', '.join(f'local.{name}' for name in absent)}"


def inside(config: DeploymentConfig, settings: LocalSettings, root: Path) -> DeploymentConfig:
    """The environment as the server in the container reads it: paths and addresses are the container's.

    Args:
        root: Where relative model paths begin on this machine.

    Raises:
        ConfigurationError: Something that a container here cannot have.
    """
    _check(config, settings, root)
    changed = {"host": "0.0.0.0", "log_dir": None}  # noqa: S104  of the container; its logs are the engine's
    if config.serving.api_keys_file is not None:
        changed["api_keys_file"] = Path(KEYS_DIR, "api_keys")  # type: ignore[assignment]
    return config.model_copy(update={"serving": config.serving.model_copy(update=changed)})


def _check(config: DeploymentConfig, settings: LocalSettings, root: Path) -> None:
    serving = config.serving
    if 0 in {serving.port, serving.metrics_port}:
        raise ConfigurationError("serving.port or metrics_port is 0, any free one: its address has to be known")
    if config.replicas.min > 1:
        raise ConfigurationError(f"replicas.min is {config.replicas.min}: the stack of a laptop starts one server")
    if config.resource_limits.gpu_count:
        raise ConfigurationError(
            f"resource_limits.gpu_count is {config.resource_limits.gpu_count}: containers of this stack get no device"
        )
    if serving.api_keys_file is not None and serving.metrics_port is None and settings.prometheus_image is not None:
        raise ConfigurationError(
            "serving.api_keys_file is set and metrics_port is not: /metrics would ask Prometheus for a key; "
            "give it a port of its own, such as 9000"
        )
    taken = _published(serving.port, settings)
    if len(set(taken)) < len(taken):
        raise ConfigurationError(f"ports {taken} of server, Prometheus and Grafana must differ")
    for name in ("engine_url", "otlp_endpoint"):
        url = getattr(serving, name)
        if url is not None and urlsplit(url).hostname in {"localhost", LOOPBACK, "::1"}:
            raise ConfigurationError(f"serving.{name} is {url!r}: in a container that is the container; name the host")
    if config.engine == "ollama":
        if serving.engine_url is None:
            raise ConfigurationError("engine is 'ollama' without serving.engine_url: none runs in the container")
        return
    for source in _sources(config):
        if not (root / source).exists():
            raise ConfigurationError(
                f"{source} is no path on this machine: the container's models are mounted from here; fetch it first"
            )


def _published(port: int, settings: LocalSettings) -> list[int]:
    found = [port]
    found += [settings.prometheus_port] if settings.prometheus_image is not None else []
    return found + ([settings.grafana_port] if settings.grafana_image is not None else [])


def _sources(config: DeploymentConfig) -> list[str]:
    return [source for source in (config.model_source, config.model_fallback) if source is not None]


# What the containers read ----------------------------------------------------------------------------------


def server_files(config: DeploymentConfig) -> Mapping[str, str]:
    return {CONFIG_FILE: yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)}


def prometheus_files(config: DeploymentConfig) -> Mapping[str, str]:
    serving = config.serving
    port = serving.port if serving.metrics_port is None else serving.metrics_port
    target = {"targets": [f"{NAME}:{port}"], "labels": {"environment": "local"}}
    scrape = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": NAME, "static_configs": [target]}],
    }
    return {
        "prometheus.yml": yaml.safe_dump(scrape, sort_keys=False),
        "rules.yml": render.render(alerts.load(config.alerts)),
    }


def grafana_files(*, dashboards: bool) -> Mapping[str, str]:
    """https://grafana.com/docs/grafana/latest/administration/provisioning/"""
    source = {
        "name": "Prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://{PROMETHEUS}:9090",
        "isDefault": True,
        "jsonData": {"timeInterval": "15s"},
    }
    files = {"datasources/prometheus.yml": yaml.safe_dump({"apiVersion": 1, "datasources": [source]}, sort_keys=False)}
    if dashboards:
        provider = {"name": NAME, "type": "file", "options": {"path": _DASHBOARDS_DIR}}
        files["dashboards/qwen3.yml"] = yaml.safe_dump({"apiVersion": 1, "providers": [provider]}, sort_keys=False)
    return files


def named(name: str, files: Mapping[str, str]) -> str:
    """``name-<hash>`` of the content: other content is another folder, and a container that mounts it is replaced."""
    return f"{name}-{hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]}"


def server_folder(config: DeploymentConfig) -> str:
    """By what a running server cannot take over: hot settings are written into the folder that it has mounted."""
    return f"server-{checksum(config)}"


# The containers --------------------------------------------------------------------------------------------


def server(config: DeploymentConfig, folder: Path, root: Path) -> Arguments:
    """Of :func:`inside`; ``folder`` holds its files. Keys are mounted by the caller, who has them."""
    times = timings(config)
    port = config.serving.port
    sources = [] if config.engine == "ollama" else _sources(config)
    models = [_bind(str(root / source), str(Path(WORK_DIR) / source)) for source in sources]
    return _container(
        NAME,
        user=f"{USER}:{USER}",
        memory_mib=memory_limit_bytes(config) // _MIB,
        cpus=config.resource_limits.cpu_cores,
        grace_s=times.timeout_stop_s,
        port=(port, port),
        mounts=[_bind(str(folder), str(CONFIG_DIR)), *models],
        command=[str(CONFIG_DIR / CONFIG_FILE)],
        healthcheck={
            "tests": ["CMD", "python", f"{WORK_DIR}/app/health.py"],
            "interval": f"{times.liveness.period_s}s",
            "timeout": f"{times.liveness.timeout_s}s",
            "retries": times.liveness.failure_threshold,
            "start_period": f"{times.startup.budget_s}s",
        },
        wait_timeout=times.timeout_start_s,
    )


def prometheus(settings: LocalSettings, folder: Path) -> Arguments:
    return _container(
        PROMETHEUS,
        user="65534:65534",  # who owns /prometheus in the image, and so in a new volume
        memory_mib=512,  # 100 MB with this one target; the rest is for queries
        cpus=0.5,
        grace_s=30,
        port=(9090, settings.prometheus_port),
        mounts=[_bind(str(folder), "/etc/prometheus"), _volume(PROMETHEUS, "/prometheus")],
        command=[
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=15d",
        ],
        healthcheck=_check_every_10_s("promtool", "query", "instant", "http://127.0.0.1:9090", "1"),
        wait_timeout=60,
    )


def grafana(settings: LocalSettings, folder: Path, root: Path) -> Arguments:
    dashboards = root / DASHBOARDS
    shown = [_bind(str(dashboards), _DASHBOARDS_DIR)] if dashboards.is_dir() else []
    return _container(
        GRAFANA,
        user="472:0",  # the image's
        memory_mib=512,
        cpus=0.5,
        grace_s=30,
        port=(3000, settings.grafana_port),
        mounts=[_bind(str(folder), "/etc/grafana/provisioning"), *shown, _volume(GRAFANA, "/var/lib/grafana")],
        envs=[
            # Nobody logs in, so there is no password to keep: what it shows is provisioned, on the loopback address.
            "GF_AUTH_ANONYMOUS_ENABLED=true",
            "GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer",
            "GF_AUTH_DISABLE_LOGIN_FORM=true",
            "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true",
            # It reports to nobody and asks nobody.
            "GF_ANALYTICS_REPORTING_ENABLED=false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES=false",
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES=false",
            "GF_NEWS_NEWS_FEED_ENABLED=false",
            "GF_PLUGINS_PREINSTALL_DISABLED=true",
        ],
        healthcheck=_check_every_10_s("wget", "-q", "-O", "/dev/null", "http://127.0.0.1:3000/api/health"),
        wait_timeout=120,
    )


def _container(
    name: str,
    *,
    user: str,
    memory_mib: int,
    cpus: float,
    grace_s: int,
    port: tuple[int, int],
    mounts: list[Arguments],
    **rest: object,
) -> Arguments:
    """What is the same for all: limits, no privileges, nothing to write to but /tmp and volumes, a time to end in."""
    inner, outer = port
    return {
        "name": name,
        "user": user,
        "memory": memory_mib,
        "memory_swap": memory_mib,  # no swap beside it
        "cpus": f"{cpus:g}",
        "read_only": True,
        "capabilities": {"drops": ["ALL"]},
        "security_opts": ["no-new-privileges:true"],
        "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m"},  # noqa: S108  of the container; counts as memory
        "mounts": mounts,
        "ports": [{"internal": inner, "external": outer, "ip": LOOPBACK}],
        "networks_advanced": [{"name": NETWORK}],
        "restart": "unless-stopped",
        "log_driver": "json-file",
        "log_opts": {"max-size": "10m", "max-file": "3"},
        "stop_timeout": grace_s,
        "destroy_grace_seconds": grace_s,  # without it the provider kills instead of stopping
        "wait": True,
        **rest,
    }


def _check_every_10_s(*command: str) -> Arguments:
    timing = {"interval": "10s", "timeout": "5s", "retries": 3, "start_period": "60s"}
    return {"tests": ["CMD", *command], **timing}


def _bind(source: str, target: str) -> Arguments:
    return {"type": "bind", "source": source, "target": target, "read_only": True}


def _volume(source: str, target: str) -> Arguments:
    return {"type": "volume", "source": source, "target": target, "read_only": False}
