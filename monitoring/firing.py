"""Alerts that fire now: the one place where the live page asks for them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Literal

import httpx2
from pydantic import AwareDatetime, Field

from monitoring.watch import Event, Watch
from runconfig import RunConfig

Standing = Literal["known", "no_source", "unreachable", "unusable"]


class Firing(RunConfig):
    """One alert that fires."""

    name: str
    """As in alerts.yml."""
    severity: str
    since: AwareDatetime | None
    summary: str
    """English; the name where the rule has none."""
    summary_zh: str
    """Chinese; English where the rule has none."""
    description: str = ""
    """English, with the value, where the rule gives it."""
    description_zh: str = ""
    """Chinese; English where the rule has none."""
    runbook: str | None = None
    """Address of the section of the runbook."""
    labels: dict[str, str] = Field(default_factory=dict)
    """What tells it from others of its name: instance, job, ..."""


class Alerts(RunConfig):
    """What is known. Only ``known`` with an empty list means that nothing fires."""

    standing: Standing
    source: str | None
    """Whom it was asked from."""
    reason: str = ""
    """Why it is not known, in the source's words."""
    firing: list[Firing] = Field(default_factory=list)
    """Critical ones first, then the oldest."""


async def firing(
    prometheus: str | None, client: httpx2.AsyncClient, watch: Watch | None = None, at: float = 0.0
) -> Alerts:
    """The alerts that fire at Unix time ``at``; pending ones are left out.

    Args:
        prometheus: Asked at ``/api/v1/alerts``.
        watch: Judges where there is no Prometheus; it reads the server itself, and must be asked every 30 s or oftener.
    """
    if prometheus is None and watch is not None:
        await asyncio.to_thread(watch.step, at)
        return _sorted([_of_watch(event) for event in watch.rules.firing], "monitoring/alerts.yml")
    if prometheus is None:
        return Alerts(standing="no_source", source=None)
    try:
        answer = await client.get(f"{prometheus.rstrip('/')}/api/v1/alerts")
        answer.raise_for_status()
        found = [_read(row) for row in answer.json()["data"]["alerts"] if row["state"] == "firing"]
    except httpx2.HTTPError as error:
        return Alerts(standing="unreachable", source=prometheus, reason=str(error) or type(error).__name__)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Alerts(standing="unusable", source=prometheus, reason=f"{type(error).__name__}: {error}"[:200])
    return _sorted(found, prometheus)


def _sorted(found: list[Firing], source: str) -> Alerts:
    found.sort(key=lambda each: (each.severity != "critical", each.since is None, each.since, each.name))
    return Alerts(standing="known", source=source, firing=found)


def _of_watch(event: Event) -> Firing:
    return Firing(
        name=event.alert,
        severity=event.severity,
        since=datetime.fromisoformat(event.time),
        summary=event.summary,
        summary_zh=event.summary_zh,
        description=event.description,
        description_zh=event.description,
        runbook=_link(event.runbook),
        labels=dict(event.labels),
    )


def _link(address: str) -> str | None:
    """Becomes a link: nothing that a browser would run."""
    return address if address.startswith(("http://", "https://")) else None


def _read(row: dict[str, Any]) -> Firing:
    labels, notes = row["labels"], row["annotations"]
    name = labels["alertname"]
    summary, description = notes.get("summary", name), notes.get("description", "")
    return Firing(
        name=name,
        severity=labels.get("severity", "warning"),
        since=datetime.fromisoformat(row["activeAt"]) if row.get("activeAt") else None,
        summary=summary,
        summary_zh=notes.get("summary_zh", summary),
        description=description,
        description_zh=notes.get("description_zh", description),
        runbook=_link(str(notes.get("runbook_url", ""))),
        labels={key: value for key, value in labels.items() if key not in {"alertname", "severity"}},
    )
