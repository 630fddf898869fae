"""A claim for the weights that the program makes, on a real cluster: mounted, and there after all else is gone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from live_site import engine, environment
from pulumi import automation
from traffic import KEY, call, wait_until

from infra.cluster import ClusterSettings
from infra.component import ModelServer, ModelServerArgs
from infra.manifests import NAME

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture
def volume(cluster):
    """A volume with the embedded model in it, and the class by which a claim finds it."""
    name = f"weights-{secrets.token_hex(4)}"
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": name,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(REPOSITORY / "models"), "type": "Directory"},
    }
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    yield name
    cluster.kubectl("delete", "pv", name)


@pytest.mark.skipif("QWEN3_TEST_KUBECONFIG" in os.environ, reason="its nodes do not see this folder")
def test_weights_outlive_destroy_and_the_next_up_takes_them_again(cluster, server_image, pulumi_env, tmp_path, volume):
    cluster.load_image(server_image)
    namespace = f"test-{secrets.token_hex(4)}"
    settings = ClusterSettings(
        namespace=namespace,
        weights_claim_gb=0.5,
        weights_storage_class=volume,
        weights_access="ReadWriteOnce",
    )

    def program():
        ModelServer("qwen3", ModelServerArgs(config=environment(), cluster=settings, image=server_image, api_keys=KEY))

    variables = pulumi_env | {"KUBECONFIG": str(cluster.kubeconfig)}
    options = automation.LocalWorkspaceOptions(work_dir=str(tmp_path), env_vars=variables)
    stack = automation.create_or_select_stack("claim", project_name="claim", program=program, opts=options)

    def claim():
        return cluster.get("pvc", "qwen3-models", "-n", namespace)

    def serves():
        host = cluster.get("service", NAME, "-n", namespace)["spec"]["clusterIP"]
        return call(host) == "whole"

    try:
        engine(stack.up)
        first = claim()
        assert first["status"]["phase"] == "Bound"
        wait_until(serves, "an answer from the claim's weights")

        engine(stack.destroy)
        assert claim()["metadata"]["uid"] == first["metadata"]["uid"]
        left = cluster.get("deployment,service,serviceaccount,hpa", "-n", namespace)["items"]
        assert [each["metadata"]["name"] for each in left] == ["default"]

        engine(stack.up)
        assert claim()["metadata"]["uid"] == first["metadata"]["uid"]
        wait_until(serves, "an answer from the same weights")
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--timeout=120s", "--ignore-not-found")
