"""What ``pulumi up`` runs: the stack of an environment, ``environments/<stack>.yml``, with the settings of
``Pulumi.<stack>.yaml`` (infra/stack_settings.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import pulumi
import pulumi_docker as docker

from infra import servers, stack_settings
from infra.component import ModelServer, ModelServerArgs
from infra.image_build import image_name, image_of, read_build
from infra.inventory import instances
from infra.local_containers import not_started, read_settings
from infra.local_stack import LocalStack, LocalStackArgs, pulled, state_folder
from infra.manifests import pinned, read_cluster
from infra.plan import report_changes
from infra.tracks import Rollout, read_rollout, versions
from model_server import capacity, deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import DeploymentError

ROOT = Path(__file__).resolve().parents[1]
"""The folder of Pulumi.yaml; pulumi.get_root_directory() is None with older language hosts."""


def main() -> None:
    os.chdir(ROOT)  # Pulumi starts it in infra/, and paths of an environment begin where a user stands
    stack_settings.check_names()
    settings = pulumi.Config()
    name = settings.get("environment") or f"environments/{pulumi.get_stack()}.yml"
    path = ROOT / name
    rollout = read_rollout(stack_settings.value("rollout"))
    stable, words = versions(rollout, stack_settings.overrides())
    config = deployment.load(path, stable)
    pulumi.log.info(f"{name} fits:\n{capacity.check(config).arithmetic}")
    report_changes(config)
    match config.deployment_type:
        case "kubernetes":
            candidate = None if words is None else deployment.load(path, words)
            if candidate is not None:
                pulumi.log.info(f"the candidate fits:\n{capacity.check(candidate).arithmetic}")
            on_kubernetes(config, settings, rollout, candidate)
        case "server":
            found = servers.hosts(stack_settings.value("hosts") or [])
            if found:
                instances(config, servers.read_hosts(found))  # refuses a site that cannot work
            pulumi.export("hosts", found)
        case "local":
            on_this_machine(config, settings)
    pulumi.export("environment", config.model_dump(mode="json"))


def on_kubernetes(
    config: DeploymentConfig, settings: pulumi.Config, rollout: Rollout | None, candidate: DeploymentConfig | None
) -> None:
    cluster = read_cluster(stack_settings.value("cluster") or {}, "cluster")
    keys = stack_settings.api_keys(config.serving.api_keys_file)
    image, built = image_or_build(config, settings)
    server = ModelServer(
        "qwen3",
        ModelServerArgs(
            config=config, cluster=cluster, image=image, api_keys=keys, rollout=rollout, candidate=candidate
        ),
        pulumi.ResourceOptions(depends_on=[] if built is None else [built]),
    )
    pulumi.export("url", server.url)
    pulumi.export("addresses", server.addresses)
    pulumi.export("namespace", cluster.namespace)


def on_this_machine(config: DeploymentConfig, settings: pulumi.Config) -> None:
    local = read_settings(stack_settings.value("local") or {})
    if (line := not_started(local)) is not None:
        pulumi.log.info(line)
    keys = stack_settings.api_keys(config.serving.api_keys_file)
    image, built = image_or_build(config, settings)
    args = LocalStackArgs(
        config=config,
        settings=local,
        # By its id, so that a container runs what was built or named now; of a pushed one that is the digest.
        image=pulled("qwen3-server", pinned(image)) if built is None else built.repo_digest,
        root=ROOT,
        folder=state_folder(pulumi.get_stack()),
        api_keys=keys,
    )
    pulumi.export("urls", LocalStack("qwen3", args).urls)


def image_or_build(config: DeploymentConfig, settings: pulumi.Config) -> tuple[str, docker.Image | None]:
    """Its name, and what builds it where nobody names one."""
    image = config.image or settings.get("image")
    if image is not None:
        return image, None
    build = read_build(stack_settings.value("build"))
    return image_name(ROOT, build), image_of(ROOT, build)


try:
    main()
except DeploymentError as error:
    raise pulumi.RunError(str(error)) from None  # its text alone: no traceback for a user's mistake
