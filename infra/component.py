"""The model server on Kubernetes, as a Pulumi component.

Not infra/model_server.py: Pulumi puts infra/ on the path of modules, where that would hide the package model_server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra.cluster import ClusterSettings
from infra.manifests import KEYS, NAME, Manifest, manifests
from infra.tracks import Rollout, candidate, under_rollout
from model_server.deployment import DeploymentConfig, timings

_TYPES: Mapping[str, Any] = {
    "Namespace": kubernetes.core.v1.Namespace,
    "ServiceAccount": kubernetes.core.v1.ServiceAccount,
    "ConfigMap": kubernetes.core.v1.ConfigMap,
    "NetworkPolicy": kubernetes.networking.v1.NetworkPolicy,
    "PersistentVolumeClaim": kubernetes.core.v1.PersistentVolumeClaim,
    "Role": kubernetes.rbac.v1.Role,
    "RoleBinding": kubernetes.rbac.v1.RoleBinding,
    "Service": kubernetes.core.v1.Service,
    "Deployment": kubernetes.apps.v1.Deployment,
    "PodDisruptionBudget": kubernetes.policy.v1.PodDisruptionBudget,
    "HorizontalPodAutoscaler": kubernetes.autoscaling.v2.HorizontalPodAutoscaler,
}
"""Kinds that pulumi-kubernetes knows; others are custom resources of an operator."""


@dataclass(frozen=True, kw_only=True)
class ModelServerArgs:
    """What runs.

    Attributes:
        config: The environment.
        cluster: The site.
        image: Pinned.
        api_keys: One a line; required when ``serving.api_keys_file`` is set.
        rollout: The step under way, and ``candidate``, its environment; None: there is none.
    """

    config: DeploymentConfig
    cluster: ClusterSettings
    image: str
    api_keys: pulumi.Input[str] | None = None
    rollout: Rollout | None = None
    candidate: DeploymentConfig | None = None

    def manifests(self) -> list[Manifest]:
        """Of the stable track, and of the candidate while there is one."""
        stable = manifests(self.config, self.cluster, self.image)
        if self.rollout is None or self.candidate is None:
            return stable
        image = self.candidate.image or self.image
        return [
            *under_rollout(stable, self.rollout),
            *candidate(self.candidate, self.cluster, image, self.rollout.canary),
        ]


class ModelServer(pulumi.ComponentResource):
    """Everything of :func:`infra.manifests.manifests`, and the Secret with the API keys.

    Attributes:
        url: Inside the cluster.
        addresses: Service -> its address in the cluster; a rollout's gate asks the tracks there.
    """

    url: pulumi.Output[str]
    addresses: pulumi.Output[dict[str, str]]

    def __init__(self, name: str, args: ModelServerArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("qwen3:infra:ModelServer", name, {}, opts)
        made: dict[str, pulumi.Resource] = {}
        for manifest in args.manifests():
            kind = manifest["kind"]
            if kind == "Deployment" and args.api_keys is not None and "Secret" not in made:
                made["Secret"] = self._secret(args.api_keys, args.cluster.namespace, made)
            made[f"{kind}/{_logical(manifest)}"] = self._make(manifest, args, made)
        namespace = args.cluster.namespace
        self.url = pulumi.Output.from_input(f"http://{NAME}.{namespace}.svc")
        services = {
            key.partition("/")[2]: each.spec.apply(lambda spec: spec.cluster_ip)
            for key, each in made.items()
            if isinstance(each, kubernetes.core.v1.Service)
        }
        self.addresses = pulumi.Output.all(**services)
        self.register_outputs({"url": self.url, "addresses": self.addresses})

    def _make(self, manifest: Manifest, args: ModelServerArgs, made: Mapping[str, pulumi.Resource]) -> pulumi.Resource:
        kind = manifest["kind"]
        rest = {_snake(key): value for key, value in manifest.items() if key not in {"apiVersion", "kind", "metadata"}}
        metadata = manifest["metadata"]
        opts = pulumi.ResourceOptions(parent=self, depends_on=list(made.values()))
        if args.cluster.weights == "claim" and kind in {"Namespace", "PersistentVolumeClaim"}:
            # Weights are the site's: neither `destroy` nor another setting deletes them, or the namespace they are in.
            opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(retain_on_delete=True))
        if kind == "PersistentVolumeClaim":  # many storage classes bind one only when the first pod mounts it
            metadata = metadata | {"annotations": {"pulumi.com/skipAwait": "true"}}
        if kind == "Deployment":
            deadline = timings(args.config).progress_deadline_s
            if metadata["name"] == NAME:  # replaced one by one; a candidate's start together
                deadline *= args.config.replicas.max + 1
            metadata = metadata | {"annotations": {"pulumi.com/timeoutSeconds": str(deadline)}}
        if kind == "Deployment" and metadata["name"] == NAME:
            # The autoscaler owns the number from the first moment on; a later `up` must not set it back.
            opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(ignore_changes=["spec.replicas"]))
        name = f"{NAME}-{kind.lower()}" if _logical(manifest) == NAME else f"{_logical(manifest)}-{kind.lower()}"
        if kind in _TYPES:
            found: pulumi.Resource = _TYPES[kind](name, metadata=metadata, **rest, opts=opts)
            return found
        return kubernetes.apiextensions.CustomResource(
            name, api_version=manifest["apiVersion"], kind=kind, metadata=metadata, spec=rest["spec"], opts=opts
        )

    def _secret(
        self, keys: pulumi.Input[str], namespace: str, made: Mapping[str, pulumi.Resource]
    ) -> kubernetes.core.v1.Secret:
        return kubernetes.core.v1.Secret(
            KEYS,
            metadata={"name": KEYS, "namespace": namespace, "labels": {"app": NAME}},
            string_data={"api_keys": keys},
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=list(made.values()), additional_secret_outputs=["data", "stringData"]
            ),
        )


def _snake(key: str) -> str:
    """As the Python SDK calls an object's own keys; below them it takes the API's."""
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", key)


def _logical(manifest: Manifest) -> str:
    """Name in the plan: a ConfigMap's own carries a checksum, and a new name there would be another resource."""
    name: str = manifest["metadata"]["name"]
    return {"ConfigMap": name.rpartition("-")[0], "Namespace": NAME}.get(manifest["kind"], name)
