"""Hosts of a stack of Linux servers: what the Ansible inventory reads from its outputs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

import runconfig
from model_server.errors import ConfigurationError
from runconfig import RunConfig


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


class Hosts(RunConfig):
    """All of them."""

    hosts: tuple[Host, ...]
    """In the order of a rollout."""


def hosts(raw: object) -> list[dict[str, Any]]:
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
    return [host.model_dump() for host in found]
