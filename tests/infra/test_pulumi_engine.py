"""A real Pulumi engine against a real API server: what every later test of a stack stands on."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as kubernetes
import pytest
from cluster_fixture import KubectlError
from pulumi import automation

pytestmark = pytest.mark.cluster


def test_a_program_comes_up_once_changes_nothing_twice_and_leaves_nothing(pulumi_env, cluster, tmp_path):
    def program():
        provider = kubernetes.Provider("cluster", kubeconfig=str(cluster.kubeconfig))
        options = pulumi.ResourceOptions(provider=provider)
        namespace = kubernetes.core.v1.Namespace("stack", metadata={"name": "test-pulumi-engine"}, opts=options)
        settings = kubernetes.core.v1.ConfigMap(
            "settings",
            metadata={"name": "settings", "namespace": namespace.metadata["name"]},
            data={"log_level": "INFO"},
            opts=options,
        )
        pulumi.export("settings", settings.metadata["name"])

    stack = automation.create_or_select_stack(
        "test",
        project_name="engine",
        program=program,
        opts=automation.LocalWorkspaceOptions(work_dir=str(tmp_path), env_vars=pulumi_env),
    )

    first = stack.up()
    assert first.outputs["settings"].value == "settings"
    assert first.summary.resource_changes == {"create": 4}  # the stack, the provider, the two objects
    assert cluster.get("configmap", "settings", "-n", "test-pulumi-engine")["data"] == {"log_level": "INFO"}

    assert stack.up().summary.resource_changes == {"same": 4}
    assert stack.preview(expect_no_changes=True).change_summary == {"same": 4}

    cluster.kubectl("patch", "configmap/settings", "-n", "test-pulumi-engine", "-p", '{"data": {"log_level": "DEBUG"}}')
    assert stack.refresh().summary.resource_changes == {"same": 3, "update": 1}
    with pytest.raises(automation.CommandError, match="no changes were expected"):
        stack.preview(expect_no_changes=True)

    assert stack.destroy().summary.resource_changes == {"delete": 4}
    with pytest.raises(KubectlError, match="not found"):
        cluster.kubectl("get", "namespace", "test-pulumi-engine")
