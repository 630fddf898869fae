"""The alerts of ``alerts.yml`` as records, with an environment's thresholds in place of the defaults."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from runconfig import ConfigError, RunConfig, read_yaml, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).with_name("alerts.yml")

Unit = Literal["ms", "percent", "requests/s", "restarts"]

# Signals are recorded in base units; people write and read thresholds in these.
_PER_BASE: Mapping[Unit, int] = MappingProxyType({"ms": 1000, "percent": 100, "requests/s": 1, "restarts": 1})


class Summary(RunConfig):
    """One line for the person who is called."""

    en: str = Field(min_length=1)
    """English."""
    zh: str = Field(min_length=1)
    """Chinese."""


class Alert(RunConfig):
    """One row of R11. The keys are explained at the top of alerts.yml."""

    record: str = Field(pattern=r"^(job|instance):qwen3_\w+:\w+$")
    """Name of the recorded signal, level:metric:operation."""
    expr: str = Field(min_length=1)
    """PromQL of the signal, base units."""
    compare: Literal[">", "<"]
    """Fires above or below."""
    threshold: float = Field(ge=0)
    """In ``unit``."""
    unit: Unit
    """Unit of ``threshold``."""
    hold: str = Field(alias="for", pattern=r"^[0-9]+[smh]$")
    """How long the signal must stay beyond the threshold."""
    severity: Literal["warning", "critical"]
    """critical calls somebody."""
    absent: str | None = Field(default=None, pattern=r"^qwen3_\w+$")
    """Series whose absence leaves the alert blind."""
    summary: Summary
    """What it means."""
    runbook: str = Field(pattern=r"^[a-z_]+$")
    """Section of RUNBOOK.md."""

    @model_validator(mode="after")
    def _share_of_something(self) -> Alert:
        if self.unit == "percent" and not 0 < self.threshold <= 100:
            raise ValueError(f"threshold {self.threshold:g} percent must be above 0 and at most 100")
        return self

    @property
    def limit(self) -> float:
        """The threshold in the signal's base unit: seconds, a ratio, 1/s, a count."""
        return self.threshold / _PER_BASE[self.unit]


class Alerts(RunConfig):
    """All of them, by name."""

    alerts: dict[str, Alert] = Field(min_length=1)
    """Name -> alert."""


def load(thresholds: Mapping[str, float] = MappingProxyType({}), path: Path = FILE) -> dict[str, Alert]:
    """Read the alerts.

    Args:
        thresholds: ``alerts`` of an environment: name -> threshold in the alert's own unit.

    Raises:
        ConfigError: The file cannot be used, or a threshold names no alert or is out of range.
    """
    raw = read_yaml(path)
    rows = raw.get("alerts")
    for name, threshold in thresholds.items():
        if not isinstance(rows, dict) or name not in rows:
            names = [] if not isinstance(rows, dict) else list(rows)
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"alerts.{name}: no such alert; {hint}there are: {', '.join(names)}")
        rows[name]["threshold"] = threshold
    return validate(Alerts, raw, str(path)).alerts
