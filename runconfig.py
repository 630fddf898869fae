"""Strict, frozen configuration from YAML, environment variables and ``key=value`` words.

Every folder reads its settings through :func:`load`: a YAML file, overridden by environment variables,
overridden by words of the command line. A key that no model knows is an error, because a misspelled
setting must not run.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the source, the key and what is allowed."""


class RunConfig(BaseModel):
    """Base of every config: unknown keys are errors and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads ``yes`` and ``on`` as true, which pydantic would take for the number 1."""
        kinds = set(_leaves(cls.model_fields[info.field_name or ""].annotation))
        values = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if {int, float} & kinds and bool not in kinds and any(isinstance(each, bool) for each in values):
            raise ValueError(f"a number is expected here, got {value!r}")
        return value


Config = TypeVar("Config", bound=RunConfig)


def load(
    model: type[Config],
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    env_prefix: str | None = None,
) -> Config:
    """Read ``path``, apply ``PREFIX_SECTION__KEY`` variables, then words such as ``serving.port=9000``.

    Args:
        path: None where words alone make the configuration.
        environ: Where variables are looked up; the process's own when None.
        env_prefix: For example ``MODEL_SERVER_``; None reads no variables.

    Raises:
        ConfigError: The file is missing or not YAML, an override has no ``=``, or a key is unknown,
            missing, of the wrong type or out of range. All problems are reported at once.
    """
    raw = {} if path is None else read_yaml(path)
    words: dict[tuple[str, ...], tuple[str, str]] = {}
    if env_prefix is not None:
        for name, value in sorted((os.environ if environ is None else environ).items()):
            if name.startswith(env_prefix):
                _assign(raw, tuple(name.removeprefix(env_prefix).lower().split("__")), value, name, words)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override must look like key=value, got {override!r}")
        _assign(raw, tuple(key.split(".")), value, override, words)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        # Only now is it known where text was wanted: model_version=2026-11-01 is a date to YAML.
        for problem in error.errors(include_url=False):
            path_of = tuple(map(str, problem["loc"]))
            if problem["type"] == "string_type" and path_of in words:
                _place(raw, path_of, words[path_of][1])
        return validate(model, raw, "the command line" if path is None else str(path), words)


def validate(
    model: type[Config],
    raw: Mapping[str, Any],
    source: str,
    words: Mapping[tuple[str, ...], tuple[str, str]] | None = None,
) -> Config:
    """Check ``raw`` against ``model``; ``source`` names it in the error.

    Args:
        words: Path of a key -> the variable or word that set it, and its text; named in the error too.

    Raises:
        ConfigError: With one line per problem.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _problems(model, error, words or {}))
        raise ConfigError(f"{source} cannot be used:\n{problems}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``; an empty file is an empty mapping.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    raw = _parsed(text, f"{path} is")
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, got a {type(raw).__name__}")
    return raw


def dump(config: RunConfig) -> str:
    """``config`` as YAML that :func:`load` reads back to the same values; written next to every result."""
    return yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; a setting that is there twice must not run."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be a single value, got {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice: keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parsed(text: str, what_is: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{what_is} not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{what_is} not valid YAML: nested too deeply") from error
    # PyYAML lets through what Python's own types say: ValueError of a 13th month, KeyError of `!!bool x`,
    # AttributeError of `!!timestamp x`.
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{what_is} not valid YAML: a value does not fit its type ({error})") from error


def _assign(
    raw: dict[str, Any],
    keys: tuple[str, ...],
    text: str,
    word: str,
    words: dict[tuple[str, ...], tuple[str, str]],
) -> None:
    value = _parsed(text, f"{word}: the value is")
    try:
        _place(raw, keys, value)
    except TypeError as error:
        raise ConfigError(f"{word}: {error}") from error
    words[keys] = (word, text)


def _place(raw: dict[str, Any], keys: Sequence[str], value: object) -> None:
    node = raw
    for key in keys[:-1]:
        if node.get(key) is None:  # absent, or a section left empty in the file
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise TypeError(f"{key!r} is a single value here, not a section")
    node[keys[-1]] = value


def _problems(
    model: type[BaseModel], error: ValidationError, words: Mapping[tuple[str, ...], tuple[str, str]]
) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        path = tuple(map(str, problem["loc"]))
        where = ".".join(path) or "(the whole file)"
        if path in words:
            where += f" (from {words[path][0]})"
        if problem["type"] == "extra_forbidden":
            allowed = _allowed(model, path[:-1])
            close = difflib.get_close_matches(path[-1], allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{where}: unknown key; {hint}allowed here: {', '.join(allowed)}"
        elif problem["type"] == "missing":
            yield f"{where}: missing; add it"
        elif problem["type"] == "string_type":
            yield f"{where}: text is expected, got {problem['input']!r}; put quotes around it"
        elif problem["type"] == "value_error":
            yield f"{where}: {problem['ctx']['error']}"
        else:
            yield f"{where}: {problem['msg']}, got {problem['input']!r}"


def _allowed(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Keys that the section at ``path`` takes."""
    sections = [model]
    for part in path:
        fields = (section.model_fields[part] for section in sections if part in section.model_fields)
        inner = [kind for field in fields for kind in _leaves(field.annotation)]
        # An index or a key of a mapping is part of the path but of no model: stay where we are.
        sections = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)] or sections
    return sorted({name for section in sections for name in section.model_fields})


def _leaves(annotation: object) -> Iterable[object]:
    """The types in ``X | None``, ``tuple[X, ...]``, ``Literal[4, 8]`` and the like."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, arguments)
    elif origin is Annotated:
        yield from _leaves(arguments[0])
    elif arguments:
        for argument in arguments:
            yield from _leaves(argument)
    else:
        yield annotation
