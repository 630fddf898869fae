"""Grafana's dashboards, as code: ``python -m monitoring.dashboards`` writes ``monitoring/dashboards/*.json``.

Six of them: what a service does, what it promises, its tokens, the inside of its engine, its machines, and two versions
side by side. Each panel says what it shows and in which unit; lines at thresholds are those of ``alerts.yml``. All ask
a data source that the reader chooses, narrowed by environment and instance.

Labels: ``environment`` is what the scrape configuration calls it (the namespace on Kubernetes, the environment's file
on servers, ``local`` on a laptop), ``track`` is stable or canary on Kubernetes. Where a Prometheus has neither, "All"
still finds everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from monitoring import alerts

FOLDER = Path(__file__).with_name("dashboards")
SCHEMA_VERSION = 39
"""Of Grafana 11; later ones migrate it when they load it."""
WIDTH = 24
"""Columns of Grafana's grid."""

Kind = Literal["timeseries", "stat", "heatmap"]

_SERVER = 'environment=~"$environment",instance=~"$instance"'
_NODE = 'environment=~"$environment",host=~"$host"'
_VERSION = "* on (job, instance) group_left (version) qwen3_model_info{@}"
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        queries: Legend -> PromQL; ``@`` stands for the matchers of the dashboard's variables. A legend may name labels,
            ``{{instance}}``.
        unit: Grafana's id of it.
        limit: Above it an alert fires, in that unit.
        least: Where the axis begins; None: where the values do.
        most: Where it ends; None: where the values do.
    """

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: Kind = "timeseries"
    limit: float | None = None
    least: float | None = 0
    most: float | None = None
    stacked: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the grid."""
        return (4, 4) if self.kind == "stat" else (12, 8)


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page; ``rows`` are headings and their panels. ``matchers`` narrow its queries."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]
    matchers: str = _SERVER
    variables: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def _limit(name: str) -> float:
    """Threshold of an alert, in base units (seconds, shares)."""
    return alerts.load()[name].limit


def _quantiles(metric: str, labels: str = "", *quantiles: float) -> dict[str, str]:
    matchers = f"{{@{',' if labels else ''}{labels}}}"
    return {
        f"p{100 * q:g}": f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{matchers}[$__rate_interval])))"
        for q in quantiles or (0.5, 0.95, 0.99)
    }


def service_health() -> Dashboard:
    """Is it up, who asks, what goes wrong."""
    return Dashboard(
        uid="qwen3-service-health",
        title="Qwen3: service health",
        description="What the service does now: instances, requests, errors, queue, and the alerts that fire.",
        rows={
            "Now": (
                Panel(
                    kind="stat",
                    title="Instances up",
                    description="Servers that Prometheus reaches.",
                    unit="none",
                    queries={"up": "sum(up{@} and on (job, instance) qwen3_start_time_seconds)"},
                ),
                Panel(
                    kind="stat",
                    title="Engines up",
                    description="Engines that answer and make progress; fewer than instances: one loads or was lost.",
                    unit="none",
                    queries={"engines": "sum(qwen3_engine_up{@})"},
                ),
                Panel(
                    kind="stat",
                    title="Requests",
                    description="Answered requests of all endpoints and statuses.",
                    unit="reqps",
                    queries={"requests": "sum(rate(qwen3_inference_requests_total{@}[$__rate_interval]))"},
                ),
                Panel(
                    kind="stat",
                    title="Errors",
                    description=(
                        "Share of the answers that are the server's fault (5xx), of those that are not the caller's."
                    ),
                    unit="percentunit",
                    queries={"errors": _ERRORS},
                    limit=_limit("high_error_rate"),
                ),
                Panel(
                    kind="stat",
                    title="p95 latency",
                    description="95 % of the successful requests of all endpoints ended within it.",
                    unit="s",
                    queries=_quantiles("qwen3_inference_duration_seconds", "", 0.95),
                ),
                Panel(
                    kind="stat",
                    title="Under way",
                    description="Requests that were accepted and are not answered to the end; 0 means drained.",
                    unit="none",
                    queries={"under way": "sum(qwen3_active_connections{@})"},
                ),
            ),
            "Requests": (
                Panel(
                    title="Requests by endpoint",
                    description="Answers per second, whatever their status.",
                    unit="reqps",
                    stacked=True,
                    queries={
                        "{{endpoint}}": "sum by (endpoint) (rate(qwen3_inference_requests_total{@}[$__rate_interval]))"
                    },
                ),
                Panel(
                    title="Answers by status",
                    description=(
                        "499: the client left. 429: the queue or a key's rate. 503: loading, replaced, draining."
                    ),
                    unit="reqps",
                    stacked=True,
                    queries={
                        "{{status}}": "sum by (status) (rate(qwen3_inference_requests_total{@}[$__rate_interval])) > 0"
                    },
                ),
                Panel(
                    title="Turned away",
                    description="Requests refused before any work, by reason.",
                    unit="reqps",
                    stacked=True,
                    queries={"{{reason}}": "sum by (reason) (rate(qwen3_rejected_total{@}[$__rate_interval]))"},
                ),
                Panel(
                    title="Stopped early",
                    description="Requests ended before their last token: the client left, time was up, or a shutdown.",
                    unit="reqps",
                    stacked=True,
                    queries={"{{reason}}": "sum by (reason) (rate(qwen3_cancelled_total{@}[$__rate_interval]))"},
                ),
            ),
            "Queue and health": (
                Panel(
                    title="Queue, share of its length",
                    description="Requests that wait for a slot, of those that may; at 100 % the next one gets 429.",
                    unit="percentunit",
                    most=1,
                    limit=_limit("queue_saturation"),
                    queries={"{{instance}}": "qwen3_queue_depth{@} / qwen3_queue_capacity{@}"},
                ),
                Panel(
                    title="Since the engine's last progress",
                    description=(
                        "Seconds without a step. While requests run it should stay under one; growing means a stall."
                    ),
                    unit="s",
                    queries={"{{instance}}": "qwen3_engine_since_progress_seconds{@}"},
                ),
                Panel(
                    title="Engine restarts",
                    description="Engines replaced because they died or stalled, within an hour.",
                    unit="none",
                    queries={"{{instance}}": "increase(qwen3_engine_restarts_total{@}[1h])"},
                ),
                Panel(
                    title="Alerts that fire",
                    description=(
                        "Alerts of monitoring/alerts.yml by severity; their runbooks are in monitoring/runbooks."
                    ),
                    unit="none",
                    queries={
                        "{{alertname}} ({{severity}})": 'sum by (alertname, severity) (ALERTS{alertstate="firing"})'
                    },
                ),
            ),
        },
    )


_ERRORS = (
    'sum(rate(qwen3_inference_requests_total{@,status=~"5.."}[$__rate_interval])) / '
    'sum(rate(qwen3_inference_requests_total{@,status=~"[25].."}[$__rate_interval]))'
)


def latency_objectives() -> Dashboard:
    """What is promised, and how fast the budget burns."""
    burning = {
        f"{objective}: {title}": Panel(
            title=f"{title} burn rate",
            description=(
                f"How many times as fast as allowed the 30 days' {objective.replace('_', ' ')} burns, over "
                "the windows of the alerts; at 1 it lasts exactly 30 days."
            ),
            unit="suffix: x budget",
            limit=1,
            queries={
                f"{{{{job}}}} {window}": f"{record}{window} * {per_budget:g}"
                for window, record, per_budget in _windows(objective)
            },
        )
        for objective, title in (("error_budget", "Errors"), ("latency_budget", "Latency"))
    }
    return Dashboard(
        uid="qwen3-latency-objectives",
        title="Qwen3: latency and objectives",
        description="Latency by stage of a request, and the objectives of monitoring/alerts.yml with their budgets.",
        rows={
            "Objectives": tuple(burning.values()),
            "Latency": (
                Panel(
                    title="Latency of successful requests",
                    description="From a request's arrival to the last byte of its answer, all endpoints.",
                    unit="s",
                    limit=_limit("high_latency"),
                    queries=_quantiles("qwen3_inference_duration_seconds")
                    | {
                        "mean": "sum(rate(qwen3_inference_duration_seconds_sum{@}[$__rate_interval])) / "
                        "sum(rate(qwen3_inference_duration_seconds_count{@}[$__rate_interval]))"
                    },
                ),
                Panel(
                    title="p95 by endpoint",
                    description="95 % of the successful requests of an endpoint ended within it.",
                    unit="s",
                    queries={
                        "{{endpoint}}": "histogram_quantile(0.95, sum by (endpoint, le) "
                        "(rate(qwen3_inference_duration_seconds_bucket{@}[$__rate_interval])))"
                    },
                ),
                Panel(
                    title="Time to first token",
                    description="From a request's arrival to its first token: what a person waits for.",
                    unit="s",
                    limit=_limit("time_to_first_token"),
                    queries=_quantiles("qwen3_time_to_first_token_seconds"),
                ),
                Panel(
                    title="Wait in the queue",
                    description=(
                        "From admission to the hand-over to the engine; the part of latency that more instances cure."
                    ),
                    unit="s",
                    queries=_quantiles("qwen3_queue_wait_seconds"),
                ),
                Panel(
                    title="Time per output token",
                    description=(
                        "Mean time between the tokens of one request after its first; 0.1 s is about reading speed."
                    ),
                    unit="s",
                    queries=_quantiles("qwen3_time_per_output_token_seconds"),
                ),
                Panel(
                    kind="heatmap",
                    title="Latency, all of it",
                    description="How many requests a second ended within each edge of the histogram.",
                    unit="s",
                    queries={
                        "{{le}}": "sum by (le) (rate(qwen3_inference_duration_seconds_bucket{@}[$__rate_interval]))"
                    },
                ),
            ),
        },
    )


def _windows(objective: str) -> Iterator[tuple[str, str, float]]:
    """Window, the record's name before it, and budgets in all requests, once for each window of the alerts."""
    seen = set()
    for name, alert in alerts.load().items():
        if not name.startswith(f"{objective}_"):
            continue
        per_budget = alert.threshold / alert.limit
        for record in alert.signals:
            head, _, window = record.rpartition("ratio_rate")
            if window not in seen:
                seen.add(window)
                yield window, f"{head}ratio_rate", per_budget


def tokens() -> Dashboard:
    """How many, how fast, and what for."""
    return Dashboard(
        uid="qwen3-tokens",
        title="Qwen3: tokens and answers",
        description=(
            "Tokens read and written, and what the classifier answers beside what it answered when it was tested."
        ),
        rows={
            "Tokens": (
                Panel(
                    title="Tokens",
                    description="Prompt tokens that were computed, and tokens that were generated.",
                    unit="suffix: tokens/s",
                    queries={
                        "prompt": "sum(rate(qwen3_prompt_tokens_total{@}[$__rate_interval]))",
                        "generated": "sum(rate(qwen3_generated_tokens_total{@}[$__rate_interval]))",
                    },
                ),
                Panel(
                    title="Generated tokens by instance",
                    description="An instance that lags behind the others has less CPU than they, or fewer requests.",
                    unit="suffix: tokens/s",
                    queries={
                        "{{instance}}": "sum by (instance) (rate(qwen3_generated_tokens_total{@}[$__rate_interval]))"
                    },
                ),
                Panel(
                    title="Tokens of an answered request",
                    description="Mean tokens read and written per answered request.",
                    unit="suffix: tokens",
                    queries={
                        "prompt": "sum(rate(qwen3_prompt_tokens_total{@}[$__rate_interval])) / "
                        'sum(rate(qwen3_inference_requests_total{@,status="200"}[$__rate_interval]))',
                        "generated": "sum(rate(qwen3_generated_tokens_total{@}[$__rate_interval])) / "
                        'sum(rate(qwen3_inference_requests_total{@,status="200"}[$__rate_interval]))',
                    },
                ),
                Panel(
                    title="Tokens saved",
                    description="Tokens that stopped requests had asked for and that were not computed.",
                    unit="suffix: tokens/s",
                    queries={"saved": "sum(rate(qwen3_cancelled_tokens_saved_total{@}[$__rate_interval]))"},
                ),
            ),
            "Classification": (
                Panel(
                    title="Calls by category",
                    description="Classified calls per second, by predicted category.",
                    unit="suffix: calls/s",
                    stacked=True,
                    queries={
                        "{{category}}": "sum by (category) (rate(qwen3_classifications_total{@}[$__rate_interval]))"
                    },
                ),
                Panel(
                    title="Share of each category against the test",
                    description=(
                        "Predicted share within an hour, less the share on the model's test calls; 0 is as tested."
                    ),
                    unit="percentunit",
                    least=None,
                    queries={
                        "{{category}}": "sum by (category) (increase(qwen3_classifications_total{@}[1h])) "
                        "/ on () group_left () sum(increase(qwen3_classifications_total{@}[1h])) "
                        "- on (category) avg by (category) (qwen3_expected_category_ratio{@})"
                    },
                ),
                Panel(
                    title="Confidence",
                    description=(
                        "Mean calibrated probability of the predicted category, and what it was on the test calls."
                    ),
                    unit="percentunit",
                    most=1,
                    queries={
                        "now": "sum(rate(qwen3_classification_confidence_sum{@}[$__rate_interval])) / "
                        "sum(rate(qwen3_classification_confidence_count{@}[$__rate_interval]))",
                        "when tested": "avg(qwen3_expected_confidence{@})",
                    },
                ),
                Panel(
                    title="For a human",
                    description="Share of the classified calls that the model marks needs_review.",
                    unit="percentunit",
                    most=1,
                    queries={
                        "needs_review": "sum(rate(qwen3_classification_reviews_total{@}[$__rate_interval])) / "
                        "sum(rate(qwen3_classifications_total{@}[$__rate_interval]))"
                    },
                ),
            ),
        },
    )


def engine_internals() -> Dashboard:
    """Batch, cache, processes."""
    return Dashboard(
        uid="qwen3-engine",
        title="Qwen3: engine internals",
        description=(
            "What the engine computes together, its KV pool, and the CPU and memory of its process and the server's."
        ),
        rows={
            "Batch": (
                Panel(
                    title="Running and waiting",
                    description=(
                        "Requests that hold a slot, that the engine computes together, and that wait, here and there."
                    ),
                    unit="none",
                    queries={
                        "hold a slot": "sum(qwen3_running{@})",
                        "computed together": "sum(qwen3_batch_size{@})",
                        "wait in the queue": "sum(qwen3_queue_depth{@})",
                        "wait in the engine": "sum(qwen3_engine_waiting{@})",
                    },
                ),
                Panel(
                    title="KV pool",
                    description="Share of the key-value cache in use; at 100 % the next long prompt waits.",
                    unit="percentunit",
                    most=1,
                    queries={"{{instance}}": "qwen3_cache_usage_ratio{@}"},
                ),
            ),
            "Processes": (
                Panel(
                    title="CPU by process",
                    description="Cores that the HTTP side and the engine use, and what they may use.",
                    unit="suffix: cores",
                    queries={
                        "{{instance}} {{process}}": "sum by (instance, process) "
                        "(rate(qwen3_cpu_seconds_total{@}[$__rate_interval]))",
                        "{{instance}} limit": "qwen3_cpu_limit_cores{@}",
                    },
                ),
                Panel(
                    title="Throttled",
                    description=(
                        "Share of the scheduling periods in which the quota stopped all threads: threads are too many."
                    ),
                    unit="percentunit",
                    most=1,
                    queries={
                        "{{instance}}": "rate(qwen3_cpu_throttled_periods_total{@}[$__rate_interval]) / "
                        "(rate(qwen3_cpu_periods_total{@}[$__rate_interval]) > 0) "
                        "or 0 * qwen3_cpu_limit_cores{@}"
                    },
                ),
                Panel(
                    title="Memory by process",
                    description="Resident memory of server and engine.",
                    unit="bytes",
                    stacked=True,
                    queries={"{{instance}} {{process}}": "sum by (instance, process) (qwen3_resident_memory_bytes{@})"},
                ),
                Panel(
                    title="Memory of the limit",
                    description="Resident memory of everything that serves the model, of what ends it.",
                    unit="percentunit",
                    most=1,
                    limit=_limit("memory_usage"),
                    queries={"{{instance}}": "qwen3_model_memory_usage_bytes{@} / qwen3_memory_limit_bytes{@}"},
                ),
                Panel(
                    title="Disks",
                    description="Use of the file systems that hold the models and the logs.",
                    unit="percentunit",
                    most=1,
                    limit=_limit("disk_usage"),
                    queries={"{{instance}} {{directory}}": "1 - qwen3_disk_free_bytes{@} / qwen3_disk_size_bytes{@}"},
                ),
                Panel(
                    title="Log lines lost",
                    description="Lines that could not be written, as on a full disk; serving goes on.",
                    unit="suffix: lines/s",
                    queries={"{{instance}}": "rate(qwen3_log_records_dropped_total{@}[$__rate_interval])"},
                ),
            ),
        },
    )


def system() -> Dashboard:
    """The hosts below: node_exporter on servers."""
    return Dashboard(
        uid="qwen3-system",
        title="Qwen3: system",
        description=(
            "The hosts by node_exporter (playbooks/roles/node_exporter), beside the control groups of the servers."
        ),
        matchers=_NODE,
        variables=(
            _query_variable("host", "Host", 'label_values(node_uname_info{environment=~"$environment"}, host)'),
        ),
        rows={
            "CPU": (
                Panel(
                    title="CPU use",
                    description="Share of all cores' time that is not idle.",
                    unit="percentunit",
                    most=1,
                    queries={
                        "{{host}}": 'avg by (host) (1 - rate(node_cpu_seconds_total{@,mode="idle"}[$__rate_interval]))'
                    },
                ),
                Panel(
                    title="CPU stolen",
                    description=(
                        "Share of the time that the hypervisor gave to others: tokens get slow and nothing here is "
                        "busy."
                    ),
                    unit="percentunit",
                    queries={
                        "{{host}}": 'avg by (host) (rate(node_cpu_seconds_total{@,mode="steal"}[$__rate_interval]))'
                    },
                ),
                Panel(
                    title="Pressure",
                    description="Share of the time in which something waited for CPU, memory or disk (PSI).",
                    unit="percentunit",
                    queries={
                        "{{host}} CPU": "rate(node_pressure_cpu_waiting_seconds_total{@}[$__rate_interval])",
                        "{{host}} memory": "rate(node_pressure_memory_waiting_seconds_total{@}[$__rate_interval])",
                        "{{host}} disk": "rate(node_pressure_io_waiting_seconds_total{@}[$__rate_interval])",
                    },
                ),
                Panel(
                    title="Load",
                    description="Processes that run or wait for CPU or disk, mean of a minute.",
                    unit="none",
                    queries={"{{host}}": "node_load1{@}"},
                ),
            ),
            "Memory, disk and network": (
                Panel(
                    title="Memory available",
                    description="What programs can have without swapping.",
                    unit="percentunit",
                    most=1,
                    queries={"{{host}}": "node_memory_MemAvailable_bytes{@} / node_memory_MemTotal_bytes{@}"},
                ),
                Panel(
                    title="File systems",
                    description="Use of each real file system, as a user who is not root sees it.",
                    unit="percentunit",
                    most=1,
                    limit=_limit("disk_usage"),
                    queries={
                        "{{host}} {{mountpoint}}": '1 - node_filesystem_avail_bytes{@,fstype!~"tmpfs|overlay"} / '
                        'node_filesystem_size_bytes{@,fstype!~"tmpfs|overlay"}'
                    },
                ),
                Panel(
                    title="Disk busy",
                    description="Share of the time in which the device had something to do.",
                    unit="percentunit",
                    most=1,
                    queries={"{{host}} {{device}}": "rate(node_disk_io_time_seconds_total{@}[$__rate_interval])"},
                ),
                Panel(
                    title="Network",
                    description="Bytes in and out, without loopback.",
                    unit="Bps",
                    queries={
                        "{{host}} in": "sum by (host) "
                        '(rate(node_network_receive_bytes_total{@,device!="lo"}[$__rate_interval]))',
                        "{{host}} out": "sum by (host) "
                        '(rate(node_network_transmit_bytes_total{@,device!="lo"}[$__rate_interval]))',
                    },
                ),
            ),
            "Units and control groups": (
                Panel(
                    title="Restarts by systemd",
                    description="Restarts of the units of the site within an hour.",
                    unit="none",
                    queries={
                        "{{host}} {{name}}": "sum by (host, name) (increase(node_systemd_service_restart_total{@}[1h]))"
                    },
                ),
                Panel(
                    title="Servers: CPU of the quota",
                    description=(
                        "CPU of server and engine, of their control group's quota (of all cores where there is none)."
                    ),
                    unit="percentunit",
                    most=1,
                    queries={
                        "{{instance}}": "sum by (instance) (rate(qwen3_cpu_seconds_total{@}[$__rate_interval])) / "
                        "on (instance) sum by (instance) (qwen3_cpu_limit_cores{@})"
                    },
                ),
            ),
        },
    )


def rollouts() -> Dashboard:
    """What runs beside what may follow it."""

    def of_version(expr: str, by: str = "") -> str:
        labels = ", ".join(["track", "version", *([by] if by else [])])
        return f"sum by ({labels}) ({expr} {_VERSION})"

    legend = "{{track}} {{version}}"
    requests = "rate(qwen3_inference_requests_total{@}[$__rate_interval])"
    failed = 'rate(qwen3_inference_requests_total{@,status=~"5.."}[$__rate_interval])'
    judged = 'rate(qwen3_inference_requests_total{@,status=~"[25].."}[$__rate_interval])'

    def quantile(metric: str) -> str:
        return f"histogram_quantile(0.95, {of_version(f'rate({metric}_bucket{{@}}[$__rate_interval])', 'le')})"

    return Dashboard(
        uid="qwen3-rollouts",
        title="Qwen3: rollouts",
        description=(
            "Two tracks, or two versions, side by side while a rollout goes on; what decides is the gate's paired test."
        ),
        rows={
            "Traffic": (
                Panel(
                    title="Instances",
                    description="Instances that have loaded a model, by track and version.",
                    unit="none",
                    queries={legend: "count by (track, version) (qwen3_model_info{@})"},
                ),
                Panel(
                    title="Requests",
                    description=(
                        "Answered requests of each track and version: the share that the candidate really gets."
                    ),
                    unit="reqps",
                    stacked=True,
                    queries={legend: of_version(requests)},
                ),
            ),
            "Side by side": (
                Panel(
                    title="Errors",
                    description="Share of each version's answers that are its fault (5xx).",
                    unit="percentunit",
                    limit=_limit("high_error_rate"),
                    queries={legend: f"{of_version(failed)} / {of_version(judged)}"},
                ),
                Panel(
                    title="p95 latency",
                    description="95 % of a version's successful requests ended within it.",
                    unit="s",
                    queries={legend: quantile("qwen3_inference_duration_seconds")},
                ),
                Panel(
                    title="p95 time to first token",
                    description="95 % of a version's requests had their first token within it.",
                    unit="s",
                    queries={legend: quantile("qwen3_time_to_first_token_seconds")},
                ),
                Panel(
                    title="Generated tokens",
                    description="Tokens a second of each version; compare them at the same traffic.",
                    unit="suffix: tokens/s",
                    queries={legend: of_version("rate(qwen3_generated_tokens_total{@}[$__rate_interval])")},
                ),
                Panel(
                    title="Confidence",
                    description="Mean confidence of each version's classifications.",
                    unit="percentunit",
                    most=1,
                    queries={
                        legend: f"{of_version('rate(qwen3_classification_confidence_sum{@}[$__rate_interval])')} / "
                        f"{of_version('rate(qwen3_classification_confidence_count{@}[$__rate_interval])')}"
                    },
                ),
                Panel(
                    title="Memory of an instance",
                    description="Largest resident memory of an instance, by track and version.",
                    unit="bytes",
                    queries={legend: f"max by (track, version) (qwen3_model_memory_usage_bytes{{@}} {_VERSION})"},
                ),
                Panel(
                    title="Under way",
                    description="Requests not answered to the end: a track that drains goes to 0 before it is ended.",
                    unit="none",
                    queries={legend: of_version("qwen3_active_connections{@}")},
                ),
                Panel(
                    title="Since the start",
                    description="Age of the oldest instance of each track and version.",
                    unit="s",
                    queries={legend: f"max by (track, version) ((time() - qwen3_start_time_seconds{{@}}) {_VERSION})"},
                ),
            ),
        },
    )


DASHBOARDS = (service_health, latency_objectives, tokens, engine_internals, system, rollouts)


# As Grafana reads it ----------------------------------------------------------------------------------------


def document(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard in Grafana's JSON model.

    Source:
        https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
    """
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["qwen3"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"title": "Qwen3", "type": "dashboards", "tags": ["qwen3"], "asDropdown": True, "keepTime": True}
            | {"includeVars": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": ""}
        ],
        "annotations": {"list": []},
        "templating": {"list": [*_variables(dashboard)]},
        "panels": [*_panels(dashboard)],
    }


def _variables(dashboard: Dashboard) -> Iterator[Mapping[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "regex": "",
    }
    yield _query_variable("environment", "Environment", "label_values(qwen3_start_time_seconds, environment)")
    yield _query_variable(
        "instance", "Instance", 'label_values(qwen3_start_time_seconds{environment=~"$environment"}, instance)'
    )
    yield from dashboard.variables


def _query_variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # also when the time changes: pods come and go
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Not the list of what is there: a Prometheus without the label still finds everything.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "regex": "",
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    top, number = 0, 0
    for heading, panels in dashboard.rows.items():
        number += 1
        position = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": heading, "collapsed": False, "gridPos": position, "panels": []}
        top += 1
        left = lowest = 0
        for panel in panels:
            width, height = panel.size
            if left + width > WIDTH:
                top, left = top + lowest, 0
            number += 1
            yield _panel(panel, number, {"x": left, "y": top, "w": width, "h": height}, dashboard.matchers)
            left, lowest = left + width, height
        top += lowest


def _panel(panel: Panel, number: int, position: dict[str, int], matchers: str) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": expr.replace("@", _SERVER if "qwen3_" in expr and matchers == _NODE else matchers),
            "legendFormat": legend,
            "range": True,
        }
        | ({"format": "heatmap"} if panel.kind == "heatmap" else {})
        for index, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": position,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    found: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    found |= {name: end for name, end in (("min", panel.least), ("max", panel.most)) if end is not None}
    if panel.kind == "timeseries":
        found["custom"] = {
            "fillOpacity": 20 if panel.stacked else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
        }
    return found


_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "yAxis": {"unit": "s"},
        "color": {"mode": "scheme", "scheme": "Blues"},
    },
}


def files() -> dict[str, str]:
    """File name -> content, as it is committed."""
    return {
        f"{dashboard.uid.removeprefix('qwen3-')}.json": json.dumps(document(dashboard), indent=1) + "\n"
        for dashboard in (make() for make in DASHBOARDS)
    }


def main(words: Sequence[str]) -> int:
    """Write them; what the folder has beside them goes."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.dashboards", description="Write Grafana's dashboards into monitoring/dashboards."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where the folder is not what the code makes"
    )
    options = parser.parse_args(words)
    wanted = files()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    changed = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if not options.check:
        FOLDER.mkdir(exist_ok=True)
        for name in there.keys() - wanted.keys():
            (FOLDER / name).unlink()
        for name, text in wanted.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    print(json.dumps({"dashboards": len(wanted), "changed": changed}))
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
