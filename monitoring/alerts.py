"""The alerts of ``alerts.yml`` as records, with an environment's thresholds in place of the defaults."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from runconfig import ConfigError, RunConfig, read_yaml, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).with_name("alerts.yml")
RUNBOOKS = FILE.with_name("runbooks")

WINDOW = re.compile(r"\[([0-9]+[smhd])\]")
"""How far back a part of an expression looks."""

Duration = Annotated[str, Field(pattern=r"^[0-9]+[smhd]$")]
RecordName = Annotated[str, Field(pattern=r"^(job|instance):qwen3_\w+:\w+$")]
Expression = Annotated[str, Field(min_length=1)]
Series = Annotated[str, Field(pattern=r"^qwen3_\w+$")]
Severity = Literal["warning", "critical"]
Unit = Literal["ms", "percent", "requests/s", "tokens/s", "restarts", "up", "times budget"]

# Signals are recorded in base units; people write and read thresholds in these. A budget is its objective's.
_PER_BASE: Mapping[Unit, int] = MappingProxyType(
    {"ms": 1000, "percent": 100, "requests/s": 1, "tokens/s": 1, "restarts": 1, "up": 1}
)


class Summary(RunConfig):
    """One line for the person who is called."""

    en: str = Field(min_length=1)
    """English."""
    zh: str = Field(min_length=1)
    """Chinese."""


class _Threshold(RunConfig):
    """When a signal becomes an alert."""

    threshold: float = Field(ge=0)
    """In the alert's unit."""
    hold: Duration = Field(alias="for")
    """How long the signal must stay beyond the threshold."""
    severity: Severity
    """critical calls somebody."""


class Row(_Threshold):
    """One entry of ``alerts``. The keys are explained at the top of alerts.yml."""

    record: RecordName
    """Name of the recorded signal, level:metric:operation."""
    expr: Expression
    """PromQL of the signal, base units."""
    compare: Literal[">", "<"]
    """Fires above or below."""
    unit: Unit
    """Unit of ``threshold``."""
    absent: Series | None = None
    """Series whose absence leaves the alert blind."""
    summary: Summary
    """What it means."""


class Objective(RunConfig):
    """A promise about requests over 30 days."""

    target: float = Field(gt=0, lt=100)
    """Percent of the requests that are good."""
    record: RecordName
    """Name of the recorded share of bad requests, without its window."""
    bad: str = Field(pattern=r"\[WINDOW\]")
    """PromQL, bad requests per second over WINDOW."""
    all: str = Field(pattern=r"\[WINDOW\]")
    """PromQL, requests per second over WINDOW."""
    absent: Series
    """Series whose absence leaves the alerts blind."""
    summary: Summary
    """What burning means."""

    @property
    def per_budget(self) -> float:
        """How many budgets all requests are: 100 where 99 percent have to be good."""
        return 100 / (100 - self.target)


class BurnRate(_Threshold):
    """A speed at which a budget must not burn; ``threshold`` is in times the budget."""

    windows: tuple[Duration, Duration]
    """The long one and the short one."""


class _File(RunConfig):
    alerts: dict[str, Row] = Field(min_length=1)
    objectives: dict[str, Objective] = Field(default_factory=dict)
    burn_rates: dict[str, BurnRate] = Field(default_factory=dict)


class Alert(RunConfig):
    """What is watched for. A burn rate has a signal for each window, and all must be beyond the threshold."""

    signals: dict[RecordName, Expression] = Field(min_length=1)
    """Name of the recorded signal -> its PromQL, base units."""
    compare: Literal[">", "<"]
    threshold: float = Field(ge=0)
    """In ``unit``."""
    unit: Unit
    per_base: float
    """How many of ``unit`` one of the signal's base unit is."""
    hold: Duration
    severity: Severity
    absent: str | None
    summary: Summary
    runbook: str
    """Page in ``runbooks/``, without ``.md``."""

    @model_validator(mode="after")
    def _can_be(self) -> Alert:
        if self.unit == "percent" and not 0 < self.threshold <= 100:
            raise ValueError(f"threshold {self.threshold:g} percent must be above 0 and at most 100")
        if self.severity == "critical" and self.absent is None:
            raise ValueError("what is critical must not go blind unnoticed: name a series in absent")
        return self

    @property
    def limit(self) -> float:
        """The threshold in the signal's base unit: seconds, a ratio, 1/s, a count."""
        return self.threshold / self.per_base

    @property
    def condition(self) -> str:
        """PromQL that has a value, the first signal's, while all are beyond the threshold."""
        return " and ".join(f"{record} {self.compare} {self.limit:.12g}" for record in self.signals)


def seconds(duration: str) -> int:
    """Of ``90s``, ``5m``, ``1h``, ``3d``."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def load(thresholds: Mapping[str, float] = MappingProxyType({}), path: Path = FILE) -> dict[str, Alert]:
    """Read the alerts.

    Args:
        thresholds: ``alerts`` of an environment: name -> threshold in the alert's own unit.

    Raises:
        ConfigError: The file cannot be used, or a threshold names no alert or is out of range.
    """
    file = validate(_File, read_yaml(path), str(path))
    rows = {name: _alert(name, row) for name, row in file.alerts.items()}
    for name, objective in file.objectives.items():
        rows |= {f"{name}_{speed}": _burning(name, objective, burn) for speed, burn in file.burn_rates.items()}
    for name, threshold in thresholds.items():
        if name not in rows:
            close = difflib.get_close_matches(name, rows, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"alerts.{name}: no such alert; {hint}there are: {', '.join(rows)}")
        rows[name]["threshold"] = threshold
    return validate(_Alerts, {"alerts": rows}, str(path)).alerts


class _Alerts(RunConfig):
    alerts: dict[str, Alert]

    @model_validator(mode="after")
    def _one_meaning_each(self) -> _Alerts:
        known: dict[str, str] = {}
        for name, alert in self.alerts.items():
            for record, expr in alert.signals.items():
                if known.setdefault(record, expr) != expr:
                    raise ValueError(f"{name} records {record} with another expr than an alert before it")
        return self


def _alert(name: str, row: Row) -> dict[str, Any]:
    signal = {"signals": {row.record: row.expr}, "per_base": _PER_BASE[row.unit], "runbook": name}
    return row.model_dump(exclude={"record", "expr"}) | signal


def _burning(name: str, objective: Objective, burn: BurnRate) -> dict[str, Any]:
    signals = {
        f"{objective.record}{window}": f"{objective.bad} / {objective.all}".replace("WINDOW", window)
        for window in burn.windows
    }
    return burn.model_dump(exclude={"windows"}) | {
        "signals": signals,
        "compare": ">",
        "unit": "times budget",
        "per_base": objective.per_budget,
        "absent": objective.absent,
        "summary": objective.summary.model_dump(),
        "runbook": name,
    }
