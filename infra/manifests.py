"""Every Kubernetes object of a deployment, from one environment: pure functions over dicts.

The Pulumi component and the Helm chart both take their objects from here, so they cannot differ. Times, resources and
targets are derived in :mod:`model_server.deployment`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

import runconfig
from infra.cluster import ClusterSettings
from model_server import deployment
from model_server.deletion_cost import SIGNAL
from model_server.deployment import DeploymentConfig, Probe, container_resources, disk_limit, hpa_target, timings
from model_server.errors import ConfigurationError, ResourceInsufficientError
from monitoring import alerts, dashboards, render

NAME = "qwen3-inference"
CONTAINER = "qwen3-server"
KEEPER = "qwen3-deletion-cost"
USER = 65532  # the image's
CONFIG_DIR = PurePosixPath("/etc/qwen3")
CONFIG_FILE = "environment.yml"
WORK_DIR = PurePosixPath("/opt/qwen3")
"""The image's; where relative ``model_source`` paths begin."""
KEYS = f"{NAME}-api-keys"
CPU_TARGET_PERCENT = 160
"""Of the request, which is half of the limit: 0.8 of what an instance may use."""

Manifest = dict[str, Any]

_POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_CONTENT_TAG = re.compile(r":[0-9a-f]{12,64}$")


def pinned(image: str) -> str:
    """``image``, which says exactly what runs: by digest, or a local one whose tag is a hash of its content.

    Raises:
        ConfigurationError: It does not.
    """
    if not _DIGEST.search(image) and not _CONTENT_TAG.search(image):
        raise ConfigurationError(
            f"image {image!r} is not pinned: its tag may name something else tomorrow, on one node and not on the "
            "other; write NAME@sha256:DIGEST, or, for an image that was built here, NAME:HASH (12 hex digits or more)"
        )
    return image


def manifests(config: DeploymentConfig, cluster: ClusterSettings, image: str) -> list[Manifest]:
    """All objects, in the order in which they have to be made; the Secret's content is the caller's.

    Raises:
        ConfigurationError: Settings that cannot be meant on Kubernetes.
        ResourceInsufficientError: More than ``cluster.capacity``; the message carries the arithmetic.
    """
    _check(config, cluster)
    found = [
        *([_namespace(cluster)] if cluster.create_namespace else []),
        _object("v1", "ServiceAccount", cluster, automountServiceAccountToken=False),
        config_map(config, cluster),
        network_policy(config, cluster),
        *([weights_claim(cluster)] if cluster.weights_claim_gb is not None else []),
        service(cluster),
        metrics_service(config, cluster),
        server(config, cluster, image),
        _object(
            "policy/v1",
            "PodDisruptionBudget",
            cluster,
            spec={"maxUnavailable": 1, "selector": {"matchLabels": {"app": NAME}}},
        ),
        autoscaler(config, cluster),
        *(keeper(config, cluster, image) if keeps_costs(config, cluster) else []),
    ]
    if cluster.prometheus_operator:
        found += [_service_monitor(cluster), _prometheus_rule(config, cluster)]
    if cluster.grafana_dashboards:
        found.append(_dashboards(cluster))
    return found


def _check(config: DeploymentConfig, cluster: ClusterSettings) -> None:
    if config.deployment_type != "kubernetes":
        raise ConfigurationError(
            f"deployment_type is {config.deployment_type!r}: these are the objects of 'kubernetes'; servers are set up "
            "by playbooks/, a laptop by the stack local"
        )
    if config.serving.host in {"127.0.0.1", "localhost", "::1"}:
        raise ConfigurationError(
            f"serving.host is {config.serving.host!r}: nobody outside the container could reach it, not even "
            "its probes; set 0.0.0.0"
        )
    if config.serving.log_dir is not None:
        raise ConfigurationError(
            f"serving.log_dir is {str(config.serving.log_dir)!r}: the container's root is read-only and its logs are "
            "collected from stdout; set null"
        )
    _check_ports(config)
    keys = config.serving.api_keys_file
    if keys is None:
        raise ConfigurationError(
            f"serving.api_keys_file is null, and serving.host {config.serving.host!r} is within others' reach: the "
            "server refuses to start without keys; set /run/secrets/api_keys"
        )
    if _hides(PurePosixPath(keys).parent):
        raise ConfigurationError(
            f"serving.api_keys_file is {str(keys)!r}: its folder becomes the mount of the Secret and would hide what "
            "the image has there; choose a folder of its own, such as /run/secrets/api_keys"
        )
    if (cluster.weights == "download") != (config.model_revision is not None):
        raise ConfigurationError(
            f"cluster.weights is {cluster.weights!r} and model_revision {config.model_revision!r}: download is for a "
            "hub id with its commit, and only for that"
        )
    if cluster.capacity is not None:
        _check_capacity(config, cluster)


def _hides(folder: PurePosixPath) -> bool:
    """Whether a mount there would hide files of the image, or another mount."""
    system = {
        PurePosixPath("/", name)
        for name in ("", *["bin", "dev", "etc", "lib", "lib64", "opt", "proc", "sbin", "sys", "tmp", "usr", "var"])
    }
    ours = (CONFIG_DIR, WORK_DIR)
    return not folder.is_absolute() or folder in system or any(folder.is_relative_to(place) for place in ours)


def _check_ports(config: DeploymentConfig) -> None:
    serving = config.serving
    for name, port in (("port", serving.port), ("metrics_port", serving.metrics_port)):
        if port == 0:
            raise ConfigurationError(
                f"serving.{name} is 0, any free one: Services and probes have to know it; write a number"
            )
    for name, url in (("otlp_endpoint", serving.otlp_endpoint), ("engine_url", serving.engine_url)):
        if url is not None:
            try:
                _port(url)
            except ValueError as error:
                raise ConfigurationError(f"serving.{name} is {url!r}: {error}") from error


def _check_capacity(config: DeploymentConfig, cluster: ClusterSettings) -> None:
    assert cluster.capacity is not None
    most = config.replicas.max + 1  # a rollout starts one more before it ends one
    limits = config.resource_limits
    for what, each, there, unit in (
        ("CPU", limits.cpu_cores / 2, cluster.capacity.cpu_cores, "cores"),
        ("memory", limits.memory_gb / 2, cluster.capacity.memory_gb, "GiB"),
    ):
        if most * each > there:
            raise ResourceInsufficientError(
                f"replicas.max = {config.replicas.max}, and one more during a rollout, request {most} x {each:g} = "
                f"{most * each:g} {unit} of {what}, but cluster.capacity is {there:g}: pods would stay pending. "
                f"replicas.max = {max(0, int(there / each) - 1)} fits"
            )


def checksum(config: DeploymentConfig) -> str:
    """Of everything that a running server cannot take over: it changes exactly when pods have to be replaced."""
    cold = {
        path: value for path, value in _leaves(config.model_dump(mode="json")) if deployment.change_of(path) != "hot"
    }
    return hashlib.sha256(json.dumps(cold, sort_keys=True).encode()).hexdigest()[:12]


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" != "alerts":
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def config_map(config: DeploymentConfig, cluster: ClusterSettings) -> Manifest:
    """The environment as the server reads it.

    Its name carries the checksum: a hot change alters the content of the one that is mounted, and the servers read it
    again; any other makes a new one, so that pods of the old version that start again meanwhile keep theirs.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return _object("v1", "ConfigMap", cluster, name=f"{NAME}-{checksum(config)}", data={CONFIG_FILE: text})


def server(config: DeploymentConfig, cluster: ClusterSettings, image: str) -> Manifest:
    times = timings(config)
    labels = {**_labels(), "track": "stable"}
    return _object(
        "apps/v1",
        "Deployment",
        cluster,
        spec={
            "replicas": config.replicas.min,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": times.progress_deadline_s,
            "selector": {"matchLabels": {"app": NAME, "track": "stable"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": labels | {"app.kubernetes.io/version": _label(config.model_version)},
                    "annotations": {"checksum/config": checksum(config)},
                },
                "spec": pod(config, cluster, image),
            },
        },
    )


def pod(config: DeploymentConfig, cluster: ClusterSettings, image: str) -> Manifest:
    times = timings(config)
    resources = container_resources(config)
    serving = config.serving
    keys = PurePosixPath(serving.api_keys_file or "")  # there: _check
    secret = {"secretName": KEYS, "items": [{"key": "api_keys", "path": keys.name}], "defaultMode": 0o440}
    volumes: list[Manifest] = [
        {"name": "config", "configMap": {"name": f"{NAME}-{checksum(config)}"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": disk_limit(config.resource_limits.disk_gb)}},
        {"name": "keys", "secret": secret},
    ]
    # Folders, not files (subPath): what Kubernetes writes anew reaches only these.
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": str(CONFIG_DIR), "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  of the container
        {"name": "keys", "mountPath": str(keys.parent), "readOnly": True},
    ]
    env = dict(cluster.env)
    if cluster.weights == "claim":
        claim = {"claimName": cluster.weights_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
        mounts.append({"name": "models", "mountPath": str(WORK_DIR / "models"), "readOnly": True})
    if cluster.weights == "download":
        env["HF_HOME"] = "/tmp/huggingface"  # noqa: S108  of the container
    ports = [{"name": "http", "containerPort": serving.port}]
    if serving.metrics_port not in {None, serving.port}:
        ports.append({"name": "metrics", "containerPort": serving.metrics_port})
    container: Manifest = {
        "name": CONTAINER,
        "image": pinned(image),
        "imagePullPolicy": "IfNotPresent",
        "args": [str(CONFIG_DIR / CONFIG_FILE)],
        "env": [{"name": name, "value": value} for name, value in sorted(env.items())],
        "ports": ports,
        "resources": {"requests": resources.requests, "limits": resources.limits},
        "startupProbe": _probe(times.startup),
        "readinessProbe": _probe(times.readiness),
        "livenessProbe": {**_probe(times.liveness), "terminationGracePeriodSeconds": times.hung_grace_period_s},
        # The kubelet's own sleep: the image needs no shell for it.
        "lifecycle": {"preStop": {"sleep": {"seconds": times.pre_stop_s}}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }
    return {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": times.termination_grace_period_s,
        "securityContext": _POD_SECURITY,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": NAME}},
            }
        ],
        "containers": [container],
        "volumes": volumes,
    }


def _probe(probe: Probe) -> Manifest:
    return {
        "httpGet": {"path": probe.path, "port": "http"},
        "periodSeconds": probe.period_s,
        "timeoutSeconds": probe.timeout_s,
        "failureThreshold": probe.failure_threshold,
    }


def service(cluster: ClusterSettings) -> Manifest:
    """Clients' way to the stable track; a rollout widens it (infra/tracks.py)."""
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    selector = {"app": NAME, "track": "stable"}
    return _object("v1", "Service", cluster, spec={"type": "ClusterIP", "selector": selector, "ports": ports})


def metrics_service(config: DeploymentConfig, cluster: ClusterSettings) -> Manifest:
    """Every pod by its own address, also while it loads or drains: that is when one wants to know."""
    ports = [{"name": "metrics", "port": _metrics_port(config), "targetPort": _metrics_port(config)}]
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": NAME}, "ports": ports}
    return _object("v1", "Service", cluster, name=f"{NAME}-metrics", spec=spec)


def autoscaler(config: DeploymentConfig, cluster: ClusterSettings) -> Manifest:
    if cluster.autoscaling == "requests":
        target = {"type": "AverageValue", "averageValue": str(hpa_target(config))}
        metric: Manifest = {"type": "Pods", "pods": {"metric": {"name": SIGNAL}, "target": target}}
    else:
        target_cpu = {"type": "Utilization", "averageUtilization": CPU_TARGET_PERCENT}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target_cpu}}
    return _object(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        cluster,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": config.replicas.min,
            "maxReplicas": config.replicas.max,
            "metrics": [metric],
            "behavior": {
                # One at a time: instances that start on the same node slow each other and those that serve.
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 180,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 90}],
                },
            },
        },
    )


def weights_claim(cluster: ClusterSettings) -> Manifest:
    """Storage for the weights, which somebody fills; the servers mount it for reading."""
    spec: Manifest = {
        "accessModes": [cluster.weights_access],
        "resources": {"requests": {"storage": disk_limit(cluster.weights_claim_gb or 0)}},
    }
    if cluster.weights_storage_class is not None:
        spec["storageClassName"] = cluster.weights_storage_class
    return _object("v1", "PersistentVolumeClaim", cluster, name=cluster.weights_claim, spec=spec)


def keeps_costs(config: DeploymentConfig, cluster: ClusterSettings) -> bool:
    """Whether pods get a deletion cost: where their number changes and /metrics asks for no key."""
    own_port = config.serving.metrics_port is not None
    return cluster.deletion_cost and own_port and config.replicas.min < config.replicas.max


def keeper(config: DeploymentConfig, cluster: ClusterSettings, image: str) -> list[Manifest]:
    """What keeps the pods' deletion costs (model_server/deletion_cost.py): the only one here with a token.

    The token may patch any pod of the namespace, since RBAC knows no labels; so nobody may speak to its pod. Out of it
    goes what it needs, to an API server whose port differs from site to site.
    """
    own = {"matchLabels": {"app": KEEPER}}
    who = {"kind": "ServiceAccount", "name": KEEPER, "namespace": cluster.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": KEEPER}
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        _object("v1", "ServiceAccount", cluster, name=KEEPER, automountServiceAccountToken=False),
        _object(rbac, "Role", cluster, name=KEEPER, rules=[rule]),
        _object(rbac, "RoleBinding", cluster, name=KEEPER, roleRef=role, subjects=[who]),
        _object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            cluster,
            name=KEEPER,
            spec={"podSelector": own, "policyTypes": ["Ingress"]},
        ),
        _object(
            "apps/v1",
            "Deployment",
            cluster,
            name=KEEPER,
            spec={
                "replicas": 1,
                "revisionHistoryLimit": 3,
                "selector": own,
                "template": {"metadata": {"labels": {**_labels(), "app": KEEPER}}, "spec": _keeper_pod(config, image)},
            },
        ),
    ]


def _keeper_pod(config: DeploymentConfig, image: str) -> Manifest:
    program = ["python", "-m", "model_server.deletion_cost"]
    alive = {"exec": {"command": [*program, "alive"]}, "timeoutSeconds": 10}
    container = {
        "name": "keeper",
        "image": pinned(image),
        "imagePullPolicy": "IfNotPresent",
        "command": program,
        "args": [f"app={NAME}", str(_metrics_port(config))],
        # 20 MiB with its modules (measured in the image, 2026-11-25), and as much for a probe.
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}},
        "readinessProbe": {**alive, "periodSeconds": 10, "failureThreshold": 3},
        "livenessProbe": {**alive, "periodSeconds": 60, "failureThreshold": 5},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  of the container
    }
    return {
        "serviceAccountName": KEEPER,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}],
    }


def network_policy(config: DeploymentConfig, cluster: ClusterSettings) -> Manifest:
    """The API from the cluster, metrics for the monitoring namespace and the keeper of costs; out go names and what is
    configured.
    """
    metrics_from: list[Manifest] = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.monitoring_namespace}}}
    ]
    if keeps_costs(config, cluster):
        metrics_from.append({"podSelector": {"matchLabels": {"app": KEEPER}}})
    ingress: list[Manifest] = [
        {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": config.serving.port}]}
    ]
    if _metrics_port(config) != config.serving.port:
        ingress.append({"from": metrics_from, "ports": [{"protocol": "TCP", "port": _metrics_port(config)}]})
    egress: list[Manifest] = [{"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}]
    outside = {_port(url) for url in (config.serving.otlp_endpoint, config.serving.engine_url) if url}
    outside |= {443} if cluster.weights == "download" else set()
    if outside:
        egress.append({"ports": [{"protocol": "TCP", "port": port} for port in sorted(outside)]})
    spec = {
        "podSelector": {"matchLabels": {"app": NAME}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", cluster, spec=spec)


def _service_monitor(cluster: ClusterSettings) -> Manifest:
    spec = {
        "selector": {"matchLabels": _labels()},
        # The dashboards' labels: which environment, and which of the tracks of a rollout.
        "podTargetLabels": ["track"],
        "endpoints": [
            {
                "port": "metrics",
                "interval": "15s",
                "relabelings": [{"sourceLabels": ["__meta_kubernetes_namespace"], "targetLabel": "environment"}],
            }
        ],
        "namespaceSelector": {"matchNames": [cluster.namespace]},
    }
    return _object("monitoring.coreos.com/v1", "ServiceMonitor", cluster, spec=spec)


def _prometheus_rule(config: DeploymentConfig, cluster: ClusterSettings) -> Manifest:
    spec = render.rules(alerts.load(config.alerts))
    return _object("monitoring.coreos.com/v1", "PrometheusRule", cluster, spec=spec)


def _dashboards(cluster: ClusterSettings) -> Manifest:
    found = _object("v1", "ConfigMap", cluster, name=f"{NAME}-dashboards", data=dashboards.files())
    found["metadata"]["labels"]["grafana_dashboard"] = "1"
    return found


def _namespace(cluster: ClusterSettings) -> Manifest:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace, "labels": labels}}


def _object(api: str, kind: str, cluster: ClusterSettings, *, name: str = NAME, **rest: object) -> Manifest:
    metadata = {"name": name, "namespace": cluster.namespace, "labels": _labels()}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def _labels() -> dict[str, str]:
    return {"app": NAME, "app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "qwen3-stack"}


def _label(text: str) -> str:
    """``text`` as the value of a label: 63 characters, letters and digits at the ends."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-._")


def _metrics_port(config: DeploymentConfig) -> int:
    return config.serving.port if config.serving.metrics_port is None else config.serving.metrics_port


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or {"http": 80, "https": 443}[parts.scheme]


def read_cluster(raw: object, source: str) -> ClusterSettings:
    """Settings of a cluster as YAML gives them.

    Raises:
        ConfigurationError: With one line per problem.
    """
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{source} must be a mapping such as {{namespace: qwen3}}, got {raw!r}")
    try:
        return runconfig.validate(ClusterSettings, raw, source)
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error
