from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from model_server import capacity
from model_server.metrics import Metrics
from monitoring import alerts
from runconfig import ConfigError

# R11 of the original design, to the letter.
ROWS = {
    "high_latency": (">", 1000, "ms", "warning"),
    "low_qps": ("<", 10, "requests/s", "warning"),
    "high_error_rate": (">", 5, "percent", "critical"),
    "memory_usage": (">", 80, "percent", "warning"),
    "pod_restart": (">", 3, "restarts", "critical"),
}


def unknown_names(rows, exposition):
    """Names and label names of expressions that a server's scrape does not have."""
    names, labels = set(), {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            names.add(sample.name)
            labels.setdefault(sample.name, set()).update(sample.labels)
    unknown = set()
    for row in rows.values():
        for expression in filter(None, (row.expr, row.absent)):
            for name, matchers in re.findall(r"\b(qwen3_\w+)(?:\{([^}]*)\})?", expression):
                if name not in names:
                    unknown.add(name)
                for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
                    if label not in labels.get(name, ()):
                        unknown.add(f"{name}{{{label}}}")
    return unknown


def test_the_five_alerts_are_those_of_the_design():
    rows = alerts.load()

    assert {name: (row.compare, row.threshold, row.unit, row.severity) for name, row in rows.items()} == ROWS


@pytest.mark.parametrize(
    ("name", "limit"),
    [("high_latency", 1.0), ("low_qps", 10), ("high_error_rate", 0.05), ("memory_usage", 0.8), ("pod_restart", 3)],
)
def test_limits_are_in_base_units(name, limit):
    assert alerts.load()[name].limit == limit


def test_every_metric_that_an_alert_reads_is_in_a_servers_scrape():
    exposition = Metrics().render()[0].decode()

    assert unknown_names(alerts.load(), exposition) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("qwen3_memory_limit_bytes", "qwen3_memory_limit", "qwen3_memory_limit"),
        (
            "qwen3_inference_duration_seconds_sum",
            "qwen3_inference_latency_seconds_sum",
            "qwen3_inference_latency_seconds_sum",
        ),
        ('{status=~"5.."}', '{code=~"5.."}', "qwen3_inference_requests_total{code}"),
        ("absent: qwen3_start_time_seconds", "absent: qwen3_started", "qwen3_started"),
    ],
)
def test_a_name_that_no_server_exposes_is_found(tmp_path, right, wrong, found):
    text = alerts.FILE.read_text(encoding="utf-8")
    assert right in text
    changed = tmp_path / "alerts.yml"
    changed.write_text(text.replace(right, wrong), encoding="utf-8")

    assert unknown_names(alerts.load(path=changed), Metrics().render()[0].decode()) == {found}


def test_the_memory_that_may_be_planned_is_what_the_alert_allows():
    """
    Capacity may not import monitoring (each package stands alone), so the number is there twice, and here once
    more to hold the two together.
    """
    assert alerts.load()["memory_usage"].limit == capacity.MEMORY_ALERT_SHARE == 0.8


def test_an_environment_overrides_thresholds_and_nothing_else():
    changed = alerts.load({"low_qps": 0.5, "memory_usage": 70})

    assert (changed["low_qps"].threshold, changed["memory_usage"].limit) == (0.5, 0.7)
    default = alerts.load()
    assert {name: row.model_copy(update={"threshold": 0}) for name, row in changed.items()} == {
        name: row.model_copy(update={"threshold": 0}) for name, row in default.items()
    }


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"low_qp": 1}, r"alerts\.low_qp: no such alert; did you mean 'low_qps'\? there are: high_latency, low_qps"),
        ({"memory_usage": 101}, "memory_usage.*101 percent must be above 0 and at most 100"),
        ({"high_error_rate": 0}, "high_error_rate.*0 percent must be above 0"),
        ({"high_latency": -1}, "high_latency.threshold.*greater than or equal to 0"),
        ({"high_latency": float("nan")}, "high_latency.threshold.*finite"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(thresholds, message):
    with pytest.raises(ConfigError, match=message):
        alerts.load(thresholds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treshold": 3}, "unknown key"),
        ({"severity": "page"}, "severity.*'warning' or 'critical'"),
        ({"for": "soon"}, "for"),
        ({"record": "high_latency"}, "record"),
        ({"unit": "seconds"}, "unit"),
    ],
)
def test_a_row_with_a_mistake_is_refused_with_its_place(tmp_path, change, message):
    raw = yaml.safe_load(alerts.FILE.read_text(encoding="utf-8"))
    raw["alerts"]["high_latency"] |= change
    path = tmp_path / "alerts.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")

    with pytest.raises(ConfigError, match=f"(?s)high_latency.*{message}|{message}.*high_latency"):
        alerts.load(path=path)


def test_every_alert_has_its_section_in_the_runbook():
    text = alerts.FILE.with_name("RUNBOOK.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))

    assert {row.runbook for row in alerts.load().values()} == sections


def test_the_runbook_names_no_metric_that_a_server_does_not_have():
    text = alerts.FILE.with_name("RUNBOOK.md").read_text(encoding="utf-8")
    families = {family.name for family in text_string_to_metric_families(Metrics().render()[0].decode())}

    named = set(re.findall(r"\bqwen3_\w+", text))
    assert named
    assert {name for name in named if name not in families and name.removesuffix("_total") not in families} == set()


def test_thresholds_have_one_home():
    """Rendered rules are made when asked for, never kept beside the list."""
    kept = [
        path for path in Path(alerts.FILE).parent.rglob("*.yml") if "qwen3_alerts" in path.read_text(encoding="utf-8")
    ]

    assert kept == []
