"""What a plan says about an environment before anything changes: each field that differs, and what it takes."""

from __future__ import annotations

from typing import Any

import pulumi
from pydantic import ValidationError

from model_server import deployment
from model_server.deployment import DeploymentConfig

MEANING = {
    "hot": "the running servers take it over",
    "restart": "instances are replaced one by one",
    "replace": "instances are replaced one by one: a rollout with its gate is safer (python -m infra.rollout)",
}


def report_changes(config: DeploymentConfig) -> None:
    """Log in a preview how ``config`` differs from what the stack runs, as its outputs tell."""
    if not pulumi.runtime.is_dry_run():
        return  # the state is being written meanwhile, and half of it cannot be read
    organization, project, stack = pulumi.get_organization(), pulumi.get_project(), pulumi.get_stack()
    running = pulumi.StackReference(f"{organization}/{project}/{stack}")

    def report(raw: dict[str, Any] | None) -> None:
        for line in differences(raw, config):
            pulumi.log.info(line)

    running.get_output("environment").apply(report)


def differences(raw: dict[str, Any] | None, config: DeploymentConfig) -> list[str]:
    """Lines for people; ``raw`` is the environment that runs, None when nothing does."""
    if raw is None:
        return []
    try:
        old = DeploymentConfig.model_validate(raw)
    except ValidationError:
        return ["what runs was described by another version of this program: every instance is replaced"]
    return [
        f"{path}: {_value(old, path)!r} -> {_value(config, path)!r} ({takes}: {MEANING[takes]})"
        for path, takes in deployment.changes(old, config)
    ]


def _value(config: DeploymentConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return str(found) if hasattr(found, "__fspath__") else found
