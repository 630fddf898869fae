"""Variables of the roles, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[1] / "roles"
ALIKE = 0.9
"""Of difflib's ratio: ``modelserver_wheelhouse`` is meant for ``model_server_wheelhouse`` (.98)."""


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Those that begin with the name of a role or look like a role's variable, and are none; a phrase for each."""
    known: set[str] = set()
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        known |= yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"].keys()
    prefixes = tuple(f"{role.name}_" for role in ROLES.iterdir())
    found = []
    for name in sorted(set(names) - known):
        ours = name.startswith(prefixes)
        like = get_close_matches(name, known, n=1, cutoff=0.6 if ours else ALIKE)
        if ours or like:
            found.append(f"{name} (did you mean {like[0]}?)" if like else name)
    return found


class FilterModule:
    """As Ansible finds filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"unknown_variables": unknown_variables}
