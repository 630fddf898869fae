"""The objects of an environment on a live cluster, as ``kubectl apply`` would bring them there."""

from __future__ import annotations

import pytest
from cluster_fixture import TINY, Cluster
from pulumi import automation
from traffic import KEY

from infra.cluster import ClusterSettings
from infra.manifests import KEYS, NAME, manifests
from model_server.deployment import DeploymentConfig

PORT, METRICS_PORT = 8000, TINY["serving"]["metrics_port"]


def environment(**changes) -> DeploymentConfig:
    return DeploymentConfig.model_validate(TINY | changes)


def engine(verb, *words, **options):
    """What ``stack.up`` and the like return; where it fails its words, and no traceback through the SDK."""
    try:
        return verb(*words, **options)
    except automation.CommandError as error:
        said = str(error)[-3000:]
    return pytest.fail(said, pytrace=False)


class LiveSite:
    """Everything but the autoscaler: here a test says how many."""

    def __init__(self, cluster: Cluster, namespace: str, config: DeploymentConfig, image: str) -> None:
        self.cluster, self.namespace, self.config = cluster, namespace, config
        settings = ClusterSettings(namespace=namespace, create_namespace=False, weights="image")
        found = manifests(config, settings, image)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, "namespace": namespace}}
        found.append(secret | {"stringData": {"api_keys": KEY}})
        cluster.apply([each for each in found if each["kind"] != "HorizontalPodAutoscaler"])

    def ready(self, replicas: int, limit_s: int = 180) -> None:
        """Wait for the Deployment to have ``replicas`` ready pods and no other."""
        words = ("-n", self.namespace, f"--timeout={limit_s}s")
        self.cluster.kubectl("rollout", "status", f"deployment/{NAME}", *words)
        found = self.cluster.get("deployment", NAME, "-n", self.namespace)["status"]
        assert found["readyReplicas"] == replicas

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl("scale", f"deployment/{NAME}", f"--replicas={replicas}", "-n", self.namespace)

    def pods(self) -> dict[str, dict]:
        """Name -> pod, of those that are not ending."""
        items = self.cluster.get("pods", "-n", self.namespace, "-l", f"app={NAME}")["items"]
        return {item["metadata"]["name"]: item for item in items if "deletionTimestamp" not in item["metadata"]}

    def endpoints(self) -> set[str]:
        """Names of the pods that get new requests."""
        words = ("-n", self.namespace, "-l", f"kubernetes.io/service-name={NAME}")
        slices = self.cluster.get("endpointslices", *words)["items"]
        return {
            each["targetRef"]["name"]
            for found in slices
            for each in found["endpoints"] or []
            if each["conditions"].get("ready")
        }

    @property
    def host(self) -> str:
        address: str = self.cluster.get("service", NAME, "-n", self.namespace)["spec"]["clusterIP"]
        return address
