"""Prometheus rules from ``alerts.yml``: a recording rule for each signal, an alert on it, and its absence.

    python -m monitoring.render [ENVIRONMENT.yml] [out=FILE] [runbooks=URL] [key=value ...]

Without ENVIRONMENT the thresholds of alerts.yml hold; with one, its ``alerts:`` override them, and further
words override the environment (``alerts.low_qps=1``). ``runbooks=`` is where the
folder ``monitoring/runbooks`` can be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from model_server import deployment
from model_server.errors import ConfigurationError
from monitoring import alerts
from runconfig import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUNBOOKS = "monitoring/runbooks"
ABSENT_FOR = "5m"

# Prometheus template functions that write a base unit for people.
_FOR_PEOPLE = {"ms": "humanizeDuration", "percent": "humanizePercentage", "times budget": "humanizePercentage"}


def rules(rows: Mapping[str, alerts.Alert], runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    signals: dict[str, str] = {}
    alerting: list[dict[str, Any]] = []
    blind: dict[str, list[str]] = {}
    for name, row in rows.items():
        signals |= row.signals
        if row.absent is not None:
            blind.setdefault(row.absent, []).append(name)
        value = f"{{{{ $value | {_FOR_PEOPLE.get(row.unit, 'humanize')} }}}}"
        alerting.append(
            {
                "alert": name,
                "expr": row.condition,
                "for": row.hold,
                "labels": {"severity": row.severity},
                "annotations": {
                    "summary": row.summary.en,
                    "summary_zh": row.summary.zh,
                    "description": f"{value}; fires {row.compare} {row.threshold:g} {row.unit} for {row.hold}",
                    "runbook_url": f"{runbooks}/{row.runbook}.md",
                },
            }
        )
    alerting += [_absence(series, names, rows[names[0]], runbooks) for series, names in blind.items()]
    recording = [{"record": record, "expr": expr} for record, expr in signals.items()]
    # One group: its rules are evaluated in order, so that an alert sees the signal of this evaluation, not of the last.
    return {"groups": [{"name": "qwen3_alerts", "rules": recording + alerting}]}


def _absence(series: str, names: Sequence[str], row: alerts.Alert, runbooks: str) -> dict[str, Any]:
    """The twin of alerts that are blind without ``series``."""
    return {
        "alert": f"{names[0]}_absent",
        "expr": f"absent({series})",
        "for": ABSENT_FOR,
        "labels": {"severity": row.severity},
        "annotations": {
            "summary": f"No server reports {series}: {', '.join(names)} cannot be judged",
            "summary_zh": f"没有服务上报 {series}:无法判断 {'、'.join(names)}",
            "runbook_url": f"{runbooks}/absent.md",
        },
    }


def render(rows: Mapping[str, alerts.Alert], runbooks: str = RUNBOOKS) -> str:
    """The rule file as YAML."""
    head = "# Made by python -m monitoring.render from monitoring/alerts.yml; changes belong there.\n"
    return head + yaml.safe_dump(rules(rows, runbooks), allow_unicode=True, sort_keys=False, width=110)


def main(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    options = dict(word.split("=", 1) for word in words if word.startswith(("out=", "runbooks=")))
    environments = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word and word.split("=")[0] not in options]
    if len(environments) > 1 or (overrides and not environments):
        print(f"one environment file is needed, got {environments}; see --help", file=sys.stderr)
        return 2
    try:
        thresholds = deployment.load(environments[0], overrides).alerts if environments else {}
        rows = alerts.load(thresholds)
        text = render(rows, options.get("runbooks", RUNBOOKS))
        if "out" in options:
            Path(options["out"]).write_text(text, encoding="utf-8")
    except (ConfigError, ConfigurationError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if "out" in options:
        print(json.dumps({"out": options["out"], "alerts": list(rows)}))
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
