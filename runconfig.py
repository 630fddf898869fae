"""Strict, frozen configuration from YAML, environment variables and ``key=value`` words.

Every folder reads its settings through :func:`load`: a YAML file, overridden by environment variables,
overridden by words of the command line. A key that no model knows is an error, because a misspelled
setting must not run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the source, the key and what is allowed."""


class RunConfig(BaseModel):
    """Base of every config: unknown keys are errors and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


Config = TypeVar("Config", bound=RunConfig)


def load(
    model: type[Config],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    env_prefix: str | None = None,
) -> Config:
    """Read ``path``, apply ``PREFIX_SECTION__KEY`` variables, then words such as ``serving.port=9000``.

    Args:
        environ: Where variables are looked up; the process's own when None.
        env_prefix: For example ``MODEL_SERVER_``; None reads no variables.

    Raises:
        ConfigError: The file is missing or not YAML, an override has no ``=``, or a key is unknown,
            missing, of the wrong type or out of range. All problems are reported at once.
    """
    raw = read_yaml(path)
    if env_prefix is not None:
        for name, value in sorted((os.environ if environ is None else environ).items()):
            if name.startswith(env_prefix):
                _assign(raw, name.removeprefix(env_prefix).lower().split("__"), value, name)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override must look like key=value, got {override!r}")
        _assign(raw, key.split("."), value, override)
    return validate(model, raw, str(path))


def validate(model: type[Config], raw: Mapping[str, Any], source: str) -> Config:
    """Check ``raw`` against ``model``; ``source`` names it in the error.

    Raises:
        ConfigError: With one line per problem.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _problems(model, error))
        raise ConfigError(f"{source} cannot be used:\n{problems}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``; an empty file is an empty mapping.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or holds something other than a mapping.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, got a {type(raw).__name__}")
    return raw


def _assign(raw: dict[str, Any], keys: Sequence[str], value: str, word: str) -> None:
    node = raw
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{word}: {key!r} is a single value here, not a section")
        node = child
    try:
        node[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{word}: the value is not valid YAML: {error}") from error


def _problems(model: type[BaseModel], error: ValidationError) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
        if problem["type"] == "extra_forbidden":
            allowed = _allowed(model, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{where}: unknown key; {hint}allowed here: {', '.join(allowed)}"
        elif problem["type"] == "missing":
            yield f"{where}: missing; add it"
        else:
            yield f"{where}: {problem['msg']}, got {problem['input']!r}"


def _allowed(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Keys that the section at ``path`` takes."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return sorted(model.model_fields)
