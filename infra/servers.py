"""Hosts of a stack of Linux servers: what the Ansible inventory reads from its outputs."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

import runconfig
from model_server.errors import ConfigurationError
from runconfig import RunConfig

Role: TypeAlias = Literal["model_server", "load_balancer", "monitor"]


class Host(RunConfig):
    """One server."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
    """As the inventory calls it."""
    address: Annotated[str, Field(min_length=1)]
    """Where SSH reaches it."""
    user: str = "root"
    """Who logs in; becomes root."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """Of SSH."""
    roles: tuple[Role, ...] = ("model_server",)
    """What it is for. Where no host is a load_balancer, the first one is."""
    internal_address: str | None = None
    """IP address where the site's other hosts reach it; null: ``address``."""
    instances: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Model servers on it; null: the environment's replicas.min."""

    @field_validator("internal_address")
    @classmethod
    def _is_an_ip_address(cls, value: str | None) -> str | None:
        # Instances listen on it and firewalls name it, before there is anybody to resolve a name.
        if value is not None:
            ipaddress.ip_address(value)
        return value


class Hosts(RunConfig):
    """All of them."""

    hosts: tuple[Host, ...]
    """In the order of a rollout."""


def read_hosts(raw: object) -> tuple[Host, ...]:
    """``raw`` as the stack has it, checked.

    Raises:
        ConfigurationError: With one line per problem; two hosts of one name.
    """
    try:
        found = runconfig.validate(Hosts, {"hosts": raw}, "the stack's hosts").hosts
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error
    names = [host.name for host in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"hosts: {', '.join(twice)} stands there twice; each server has a name of its own")
    return found


def hosts(raw: object) -> list[dict[str, Any]]:
    """The same, to be exported.

    Raises:
        ConfigurationError: As for :func:`read_hosts`.
    """
    return [host.model_dump(mode="json") for host in read_hosts(raw)]
