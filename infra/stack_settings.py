"""What stands in ``Pulumi.<stack>.yaml``, read with the strictness of an environment.

environment  another file than environments/<stack>.yml
cluster      of a stack on Kubernetes: infra/cluster.py
hosts        of a stack of servers: infra/servers.py
local        of a laptop: infra/local_containers.py
image        pinned; or build: infra/image_build.py
api_keys     secret, one a line
rollout, overrides   written by ``python -m infra.rollout``: the step under way, and what was promoted
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

import pulumi
from pulumi.runtime.config import CONFIG

from model_server.errors import ConfigurationError

KEYS = ("environment", "cluster", "hosts", "local", "image", "build", "api_keys", "rollout", "overrides")


def check_names(given: Iterable[str] | None = None) -> None:
    """Refuse a key that nothing reads: a misspelled setting must not run.

    Args:
        given: Keys of this project; None: those of the stack.

    Raises:
        ConfigurationError: There is one.
    """
    if given is None:
        prefix = f"{pulumi.get_project()}:"
        given = [name.removeprefix(prefix) for name in CONFIG.get() if name.startswith(prefix)]
    for name in sorted(set(given) - set(KEYS)):
        close = difflib.get_close_matches(name, KEYS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigurationError(f"{name} in the stack's settings: unknown key; {hint}allowed: {', '.join(KEYS)}")


def value(name: str) -> Any:
    """The mapping or list at ``name``; None when it is not set.

    Raises:
        ConfigurationError: It is something else.
    """
    text = pulumi.Config().get(name)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if not isinstance(found, dict | list):
        raise ConfigurationError(
            f"{name} is {text!r}, a single value: it has keys of its own, `pulumi config set --path {name}.KEY VALUE`"
        )
    return found


def overrides() -> list[str]:
    found = value("overrides")
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ConfigurationError(f"overrides is {found!r}: it is a list of words such as serving.max_queue=3")
    return found


def api_keys(wanted_by: object) -> pulumi.Output[str] | None:
    """The secret; None where ``wanted_by``, ``serving.api_keys_file``, asks for none.

    Raises:
        ConfigurationError: It is missing, empty, or no secret.
    """
    if wanted_by is None:
        return None
    text = pulumi.Config().get("api_keys")
    if text is None or not text.strip():
        raise ConfigurationError(
            f"serving.api_keys_file is {str(wanted_by)!r}, but the stack has no keys: "
            "`pulumi config set --secret api_keys` (one a line), or set api_keys_file to null to ask for none"
        )
    if not pulumi.runtime.is_config_secret(f"{pulumi.get_project()}:api_keys"):
        raise ConfigurationError(
            f"api_keys stands in plain text in Pulumi.{pulumi.get_stack()}.yaml: make new keys, and set them with "
            "`pulumi config set --secret api_keys`"
        )
    return pulumi.Config().require_secret("api_keys")
