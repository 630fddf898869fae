"""The order of a rollout, and who serves meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Instance: TypeAlias = Mapping[str, Any]

_STATE = re.compile(r'^haproxy_server_status\{proxy="model_servers",server="([^"]+)",state="(\w+)"\} 1$', re.MULTILINE)


def waves(instances: Sequence[Instance], batch_hosts: int = 1) -> list[list[Instance]]:
    """Instances that are updated together, wave after wave.

    The first host is the canary: its instances go one by one. Then one instance of each of ``batch_hosts`` hosts at a
    time, so that no host has more than one out, and no more than so many are out at all.
    """
    hosts: dict[str, list[Instance]] = {}
    for instance in instances:
        hosts.setdefault(instance["host"], []).append(instance)
    first, *others = list(hosts.values()) or [[]]
    found = [[instance] for instance in first]
    for start in range(0, len(others), batch_hosts):
        batch = others[start : start + batch_hosts]
        turns = range(max(map(len, batch)))
        found += [[each[turn] for each in batch if turn < len(each)] for turn in turns]
    return found


def differing(instances: Sequence[Instance], running: Mapping[str, str], wanted: Mapping[str, str]) -> list[Instance]:
    """Those that run another version than their host is to have.

    Args:
        running: Name of an instance -> version; who is not there is left out.
        wanted: Host -> version.
    """
    return [
        instance
        for instance in instances
        if instance["name"] in running and running[instance["name"]] != wanted[instance["host"]]
    ]


def balancer_states(metrics: str) -> dict[str, str]:
    """Instance -> UP, DOWN, DRAIN, MAINT or NOLB, of the metrics of HAProxy (2.4 and later)."""
    return dict(_STATE.findall(metrics))


class FilterModule:
    """As Ansible finds filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"waves": waves, "differing": differing, "balancer_states": balancer_states}
