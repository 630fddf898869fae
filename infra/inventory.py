"""``python -m infra.inventory --list``: hosts and what runs on them, in the form of Ansible's inventory scripts.

Hosts come from the outputs of the stack of the environment's name, or from the YAML file that ``QWEN3_HOSTS`` names
(``hosts:`` and the same list). What runs is the environment ``QWEN3_ENVIRONMENT``, by default ``onprem``: resolved,
with what is derived from it, so that no role computes a limit of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import runconfig
from infra.servers import hosts
from model_server import deployment
from model_server.deployment import container_resources, timings
from model_server.errors import ConfigurationError, DeploymentError

PROJECT = Path(__file__).resolve().parents[1]
GROUP = "model_servers"
LIMIT_S = 120


def inventory(environ: Mapping[str, str], project: Path = PROJECT) -> dict[str, Any]:
    """
    Raises:
        ConfigurationError: The environment cannot be used, or there are no hosts.
    """
    name = environ.get("QWEN3_ENVIRONMENT", "onprem")
    path = Path(name).resolve() if name.endswith(".yml") else project / "environments" / f"{name}.yml"
    config = deployment.load(path, (), {})
    if config.deployment_type != "server":
        raise ConfigurationError(
            f"{path}: deployment_type is {config.deployment_type!r}; playbooks are for environments of type 'server'"
        )
    resources = container_resources(config)
    found = hosts(
        _from_file(Path(environ["QWEN3_HOSTS"])) if "QWEN3_HOSTS" in environ else _from_stack(path.stem, project)
    )
    variables = {
        "qwen3_environment": config.model_dump(mode="json"),
        "qwen3_timings": dataclasses.asdict(timings(config)),
        "qwen3_limits": {"cpu_quota": resources.cpu_quota, "memory_max": resources.memory_max},
        "qwen3_environment_file": str(path),
    }
    return {
        GROUP: {"hosts": [host["name"] for host in found], "vars": variables},
        "_meta": {
            "hostvars": {
                host["name"]: {
                    "ansible_host": host["address"],
                    "ansible_user": host["user"],
                    "ansible_port": host["port"],
                    "ansible_python_interpreter": "/usr/bin/python3",
                }
                for host in found
            }
        },
    }


def _from_file(path: Path) -> object:
    try:
        return runconfig.read_yaml(path).get("hosts")
    except runconfig.ConfigError as error:
        raise ConfigurationError(f"QWEN3_HOSTS: {error}") from error


def _from_stack(name: str, project: Path) -> object:
    command = ["pulumi", "stack", "output", "--json", "--stack", name, "-C", str(project)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot ask stack {name!r} for its hosts: {error}") from error
    if done.returncode != 0:
        raise ConfigurationError(
            f"stack {name!r} tells no hosts: {done.stderr.strip() or done.stdout.strip()}; `pulumi up` it first, or "
            "name a file of hosts with QWEN3_HOSTS"
        )
    try:
        return json.loads(done.stdout)["hosts"]
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"stack {name!r} exports no `hosts`: is its environment of type server?") from error


def main(words: Sequence[str]) -> int:
    if list(words) not in (["--list"], []):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(json.dumps(inventory(os.environ), ensure_ascii=False))
    except DeploymentError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
