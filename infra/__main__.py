"""What ``pulumi up`` runs: the stack of an environment, ``environments/<stack>.yml``.

Keys of a stack (``Pulumi.<stack>.yaml``): ``environment`` (another file), ``cluster`` (infra/cluster.py), ``image``
(pinned) or ``build`` (infra/image_build.py), ``api_keys`` (secret, one a line), ``hosts`` (of a stack of servers),
``local`` (of a laptop, infra/local_containers.py); written by ``python -m infra.rollout``: ``rollout`` (the step under
way) and ``overrides`` (of what was promoted).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pulumi
import pulumi_docker as docker

from infra import servers
from infra.component import ModelServer, ModelServerArgs
from infra.image_build import image_name, image_of, read_build
from infra.local_containers import not_started, read_settings
from infra.local_stack import LocalStack, LocalStackArgs, pulled, state_folder
from infra.manifests import pinned, read_cluster
from infra.plan import report_changes
from infra.tracks import Rollout, read_rollout, versions
from model_server import capacity, deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError

ROOT = Path(__file__).resolve().parents[1]
"""The folder of Pulumi.yaml; pulumi.get_root_directory() is None with older language hosts."""


def main() -> None:
    os.chdir(ROOT)  # Pulumi starts it in infra/, and paths of an environment begin where a user stands
    settings = pulumi.Config()
    path = ROOT / (settings.get("environment") or f"environments/{pulumi.get_stack()}.yml")
    rollout = read_rollout(settings.get_object("rollout"))
    stable, words = versions(rollout, settings.get_object("overrides") or [])
    config = deployment.load(path, stable)
    pulumi.log.info(f"{path.relative_to(ROOT)} fits:\n{capacity.check(config).arithmetic}")
    report_changes(config)
    match config.deployment_type:
        case "kubernetes":
            candidate = None if words is None else deployment.load(path, words)
            if candidate is not None:
                pulumi.log.info(f"the candidate fits:\n{capacity.check(candidate).arithmetic}")
            on_kubernetes(config, settings, rollout, candidate)
        case "server":
            pulumi.export("hosts", servers.hosts(settings.get_object("hosts") or []))
        case "local":
            on_this_machine(config, settings)
    pulumi.export("environment", config.model_dump(mode="json"))


def on_kubernetes(
    config: DeploymentConfig, settings: pulumi.Config, rollout: Rollout | None, candidate: DeploymentConfig | None
) -> None:
    raw: Any = settings.get_object("cluster") or {}
    cluster = read_cluster(raw, "cluster")
    keys = api_keys(config, settings)
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
    raw: Any = settings.get_object("local") or {}
    local = read_settings(raw)
    if (line := not_started(local)) is not None:
        pulumi.log.info(line)
    keys = api_keys(config, settings)
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


def api_keys(config: DeploymentConfig, settings: pulumi.Config) -> pulumi.Output[str] | None:
    if config.serving.api_keys_file is None:
        return None
    if settings.get("api_keys") is None:
        raise ConfigurationError(
            f"serving.api_keys_file is {str(config.serving.api_keys_file)!r}, but the stack has no keys: "
            "`pulumi config set --secret api_keys` (one a line), or set api_keys_file to null to ask for none"
        )
    return settings.require_secret("api_keys")


def image_or_build(config: DeploymentConfig, settings: pulumi.Config) -> tuple[str, docker.Image | None]:
    """Its name, and what builds it where nobody names one."""
    image = config.image or settings.get("image")
    if image is not None:
        return image, None
    build = read_build(settings.get_object("build"))
    return image_name(ROOT, build), image_of(ROOT, build)


try:
    main()
except DeploymentError as error:
    raise pulumi.RunError(str(error)) from None  # its text alone: no traceback for a user's mistake
