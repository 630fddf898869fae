"""What ``pulumi up`` runs: the stack of an environment, ``environments/<stack>.yml``.

Keys of a stack (``Pulumi.<stack>.yaml``): ``environment`` (another file), ``cluster`` (infra/cluster.py), ``image``
(pinned) or ``build`` (infra/image_build.py), ``api_keys`` (secret, one a line), ``hosts`` (of a stack of servers);
written by ``python -m infra.rollout``: ``rollout`` (the step under way) and ``overrides`` (of what was promoted).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pulumi

from infra import servers
from infra.component import ModelServer, ModelServerArgs
from infra.image_build import image_name, image_of, read_build
from infra.manifests import read_cluster
from infra.plan import report_changes
from infra.tracks import Rollout, read_rollout
from model_server import capacity, deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError

ROOT = Path(__file__).resolve().parents[1]
"""The folder of Pulumi.yaml; pulumi.get_root_directory() is None with older language hosts."""


def main() -> None:
    os.chdir(ROOT)  # Pulumi starts it in infra/, and paths of an environment begin where a user stands
    settings = pulumi.Config()
    path = ROOT / (settings.get("environment") or f"environments/{pulumi.get_stack()}.yml")
    overrides: list[str] = settings.get_object("overrides") or []
    config = deployment.load(path, overrides)
    pulumi.log.info(f"{path.relative_to(ROOT)} fits:\n{capacity.check(config).arithmetic}")
    report_changes(config)
    match config.deployment_type:
        case "kubernetes":
            rollout = read_rollout(settings.get_object("rollout"))
            candidate = None if rollout is None else deployment.load(path, [*overrides, *rollout.overrides])
            if candidate is not None:
                pulumi.log.info(f"the candidate fits:\n{capacity.check(candidate).arithmetic}")
            on_kubernetes(config, settings, rollout, candidate)
        case "server":
            pulumi.export("hosts", servers.hosts(settings.get_object("hosts") or []))
        case "local":
            raise ConfigurationError(
                f"{path.name} is of type local: run it with `python -m model_server {path.relative_to(ROOT)}`"
            )
    pulumi.export("environment", config.model_dump(mode="json"))


def on_kubernetes(
    config: DeploymentConfig, settings: pulumi.Config, rollout: Rollout | None, candidate: DeploymentConfig | None
) -> None:
    raw: Any = settings.get_object("cluster") or {}
    cluster = read_cluster(raw, "cluster")
    keys = None
    if config.serving.api_keys_file is not None:
        if settings.get("api_keys") is None:
            raise ConfigurationError(
                f"serving.api_keys_file is {str(config.serving.api_keys_file)!r}, but the stack has no keys: "
                "`pulumi config set --secret api_keys` (one a line), or set api_keys_file to null to ask for none"
            )
        keys = settings.require_secret("api_keys")
    image, made = config.image or settings.get("image"), []
    if image is None:
        build = read_build(settings.get_object("build"))
        image, made = image_name(ROOT, build), [image_of(ROOT, build)]
    server = ModelServer(
        "qwen3",
        ModelServerArgs(
            config=config, cluster=cluster, image=image, api_keys=keys, rollout=rollout, candidate=candidate
        ),
        pulumi.ResourceOptions(depends_on=made),
    )
    pulumi.export("url", server.url)
    pulumi.export("addresses", server.addresses)
    pulumi.export("namespace", cluster.namespace)


try:
    main()
except DeploymentError as error:
    raise pulumi.RunError(str(error)) from None  # its text alone: no traceback for a user's mistake
