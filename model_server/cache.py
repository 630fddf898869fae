"""Where lies what is made once per machine: environments, test tools, models for measurements."""

from __future__ import annotations

import os
from pathlib import Path

from model_server.errors import ConfigurationError


def cache_dir() -> Path:
    """``QWEN3_STACK_CACHE``, by default ~/.cache/qwen3-stack; the Makefile has the same."""
    return Path(os.environ.get("QWEN3_STACK_CACHE", Path.home() / ".cache" / "qwen3-stack"))


def environment_python(name: str) -> Path:
    """The interpreter of one of the project's other environments (Makefile, ``make NAME-env``).

    Raises:
        ConfigurationError: It was not made.
    """
    python = cache_dir() / "venvs" / name / "bin" / "python"
    if not python.exists():
        raise ConfigurationError(f"there is no {name} environment at {python}: make it with 'make {name}-env'")
    return python
