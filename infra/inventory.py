"""``python -m infra.inventory --list``: hosts and what runs on them, in the form of Ansible's inventory scripts.

Hosts come from the outputs of the stack of the environment's name, or from the YAML file that ``QWEN3_HOSTS`` names
(``hosts:`` and the same list). What runs is the environment ``QWEN3_ENVIRONMENT``, by default ``onprem``: resolved,
with what is derived from it, so that no role computes a limit or an address of its own. Every host has

    qwen3_environment        resolved; qwen3_environment_file is where it was read
    qwen3_timings            seconds, model_server/deployment.py
    qwen3_limits             CPU and memory of an instance, in systemd's words
    qwen3_instances          all of the site, in the order of a rollout: name, host, number, listen, address, port,
                             metrics_port
    qwen3_home               of versions, models and instances on each model server
    qwen3_address            where the site's other hosts reach this one

and is in groups ``model_servers``, ``load_balancers`` and ``monitors``.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import runconfig
from infra.servers import Host, Role, read_hosts
from model_server import deployment
from model_server.deployment import DeploymentConfig, container_resources, timings
from model_server.errors import ConfigurationError, DeploymentError
from model_server.server import is_loopback

PROJECT = Path(__file__).resolve().parents[1]
GROUPS: Mapping[Role, str] = MappingProxyType(
    {"model_server": "model_servers", "load_balancer": "load_balancers", "monitor": "monitors"}
)
LOOPBACK = "127.0.0.1"
HOME = "/opt/qwen3"
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
    hosts = _with_a_door(
        read_hosts(
            _from_file(Path(environ["QWEN3_HOSTS"])) if "QWEN3_HOSTS" in environ else _from_stack(path.stem, project)
        )
    )
    variables = {
        "qwen3_environment": config.model_dump(mode="json"),
        "qwen3_environment_file": str(path),
        "qwen3_timings": dataclasses.asdict(timings(config)),
        "qwen3_limits": {"cpu_quota": resources.cpu_quota, "memory_max": resources.memory_max},
        "qwen3_instances": instances(config, hosts),
        "qwen3_home": HOME,
    }
    groups = {group: {"hosts": [host.name for host in hosts if role in host.roles]} for role, group in GROUPS.items()}
    return {
        "all": {"vars": variables},
        **groups,
        "_meta": {
            "hostvars": {
                host.name: {
                    "ansible_host": host.address,
                    "ansible_user": host.user,
                    "ansible_port": host.port,
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "qwen3_address": LOOPBACK if len(hosts) == 1 else internal_address(host),
                }
                for host in hosts
            }
        },
    }


def _with_a_door(hosts: Sequence[Host]) -> list[Host]:
    """``hosts``, the first of which balances the load where none was said to."""
    if not hosts or any("load_balancer" in host.roles for host in hosts):
        return list(hosts)
    first, *others = hosts
    return [first.model_copy(update={"roles": (*first.roles, "load_balancer")}), *others]


def instances(config: DeploymentConfig, hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """The model servers of a site: where each listens, and where the others reach it.

    On a site of one host they listen where the environment says. What others must reach does not stay on loopback.

    Raises:
        ConfigurationError: There are none, or they could be reached without a key, or ports meet or are left to chance.
    """
    serving = config.serving
    if not any("model_server" in host.roles for host in hosts):
        raise ConfigurationError("hosts: none has the role model_server: name at least one")
    if 0 in (serving.port, serving.metrics_port):
        raise ConfigurationError("serving.port and serving.metrics_port: a balancer must know them, and 0 leaves them")
    most = max(host.instances or config.replicas.min for host in hosts)
    if serving.metrics_port is not None and abs(serving.port - serving.metrics_port) < most:
        raise ConfigurationError(
            f"serving.port ({serving.port}) and serving.metrics_port ({serving.metrics_port}) count up by one for each "
            f"of {most} instances of a host: put them at least {most} apart"
        )
    alone = len(hosts) == 1
    if not alone and serving.api_keys_file is None:
        raise ConfigurationError(
            f"instances on {len(hosts)} hosts are reached over the network, and serving.api_keys_file is not set: name "
            "the file on the hosts that is to hold one key a line"
        )
    return [
        {
            "name": f"{host.name}-{number}",
            "host": host.name,
            "number": number,
            "listen": internal_address(host) if not alone and is_loopback(serving.host) else serving.host,
            "address": _reached_alone(serving.host) if alone else internal_address(host),
            "port": serving.port + number - 1,
            "metrics_port": (serving.port if serving.metrics_port is None else serving.metrics_port) + number - 1,
        }
        for host in hosts
        if "model_server" in host.roles
        for number in range(1, (host.instances or config.replicas.min) + 1)
    ]


def _reached_alone(listen: str) -> str:
    return LOOPBACK if listen in {"0.0.0.0", "::"} else listen  # noqa: S104  the words for "everywhere", not a choice


def internal_address(host: Host) -> str:
    """
    Raises:
        ConfigurationError: It is a name.
    """
    address = host.internal_address or host.address
    try:
        return str(ipaddress.ip_address(address))
    except ValueError as error:
        raise ConfigurationError(
            f"hosts: {host.name}: {address!r} is no IP address, and instances and firewalls need one: set "
            "internal_address"
        ) from error


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
