from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from model_server import capacity
from model_server.metrics import DURATION_BUCKETS_S, FIRST_TOKEN_BUCKETS_S, Metrics
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
        for expression in filter(None, (*row.signals.values(), row.absent)):
            for name, matchers in re.findall(r"\b(qwen3_\w+)(?:\{([^}]*)\})?", expression):
                if name not in names:
                    unknown.add(name)
                for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
                    if label not in labels.get(name, ()):
                        unknown.add(f"{name}{{{label}}}")
    return unknown


def exposition():
    """What a server exposes that classifies, has its logs in files and has answered nothing yet."""
    metrics = Metrics()
    metrics.expect_categories(["退费", "物流"])
    metrics.expect_answers(0.9, {"退费": 0.5, "物流": 0.5})
    metrics.watch_disks({"models": alerts.FILE.parent, "logs": alerts.FILE.parent})
    return metrics.render()[0].decode()


def test_the_five_alerts_are_those_of_the_design():
    rows = {name: row for name, row in alerts.load().items() if name in ROWS}

    assert {name: (row.compare, row.threshold, row.unit, row.severity) for name, row in rows.items()} == ROWS


def test_burn_rates_are_those_of_the_site_reliability_workbook():
    """Table 5-8: 2 % of 30 days' budget in an hour, 5 % in six hours, 10 % in three days; see also its windows."""
    rows = alerts.load()
    spent_by = {"fast": (0.02, 1, "1h", "5m"), "medium": (0.05, 6, "6h", "30m"), "slow": (0.10, 72, "3d", "6h")}
    for objective, budget in {"error_budget": 0.01, "latency_budget": 0.05}.items():
        for speed, (share, hours, long, short) in spent_by.items():
            row = rows[f"{objective}_{speed}"]
            assert row.threshold == pytest.approx(share * 30 * 24 / hours)
            assert row.limit == pytest.approx(row.threshold * budget)
            assert [name.rsplit("ratio_rate", 1)[1] for name in row.signals] == [long, short]
            assert all(
                f"[{window}]" in row.signals[name] for name, window in zip(row.signals, (long, short), strict=True)
            )
            assert row.severity == ("warning" if speed == "slow" else "critical")


def test_the_latency_objective_is_an_edge_of_the_histogram_and_so_is_the_first_token():
    rows = alerts.load()
    [edge] = set(
        re.findall(r'le="([^"]+)"', rows["latency_budget_fast"].signals["job:qwen3_inference_slow:ratio_rate1h"])
    )

    assert float(edge) in DURATION_BUCKETS_S
    assert float(edge) == rows["high_latency"].limit
    assert rows["time_to_first_token"].limit in FIRST_TOKEN_BUCKETS_S


def test_whatever_is_critical_says_when_it_is_blind():
    assert [name for name, row in alerts.load().items() if row.severity == "critical" and row.absent is None] == []


@pytest.mark.parametrize(
    ("name", "limit"),
    [("high_latency", 1.0), ("low_qps", 10), ("high_error_rate", 0.05), ("memory_usage", 0.8), ("pod_restart", 3)],
)
def test_limits_are_in_base_units(name, limit):
    assert alerts.load()[name].limit == limit


def test_every_metric_that_an_alert_reads_is_in_a_servers_scrape():
    assert unknown_names(alerts.load(), exposition()) == set()


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

    assert unknown_names(alerts.load(path=changed), exposition()) == {found}


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
        (
            {"low_qp": 1},
            r"alerts\.low_qp: no such alert; did you mean 'low_qps'\? there are: high_latency, ",
        ),
        ({"memory_usage": 101}, "memory_usage.*101 percent must be above 0 and at most 100"),
        ({"high_error_rate": 0}, "high_error_rate.*0 percent must be above 0"),
        ({"high_latency": -1}, "high_latency.threshold.*greater than or equal to 0"),
        ({"high_latency": float("nan")}, "high_latency.threshold.*finite"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(thresholds, message):
    with pytest.raises(ConfigError, match=message):
        alerts.load(thresholds)


def test_a_second_meaning_of_a_recorded_name_is_refused(tmp_path):
    raw = yaml.safe_load(alerts.FILE.read_text(encoding="utf-8"))
    raw["alerts"]["low_qps"]["record"] = raw["alerts"]["high_latency"]["record"]
    path = tmp_path / "alerts.yml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")

    with pytest.raises(ConfigError, match="low_qps records job:qwen3_inference_duration_seconds:mean5m with another"):
        alerts.load(path=path)


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


def pages():
    return {path.stem: path.read_text(encoding="utf-8") for path in alerts.RUNBOOKS.glob("*.md")}


def test_every_alert_has_its_page_and_every_page_its_alert():
    assert {row.runbook for row in alerts.load().values()} | {"absent"} == set(pages())


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_says_what_it_means_how_to_see_it_what_to_do_and_how_to_silence_it(name):
    text = pages()[name]
    title, meaning = text.split("\n\n")[:2]

    assert title.startswith("# ")
    assert len(meaning) > 70
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["See it", "Do", "Silence it"]
    assert "amtool silence add" in " ".join(text.split())
    assert len(text.splitlines()) <= 60  # short
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (alerts.RUNBOOKS / link).is_file()


@pytest.mark.parametrize("name", sorted({row.runbook for row in alerts.load().values()}))
def test_a_page_shows_the_signal_of_its_alert_and_a_threshold_that_can_be_set(name):
    text = pages()[name]
    rows = {key: row for key, row in alerts.load().items() if row.runbook == name}

    assert all(
        record in text
        for key, row in rows.items()
        for record in row.signals
        if not key.endswith("_medium") and not record.endswith("6h")
    )
    for mapping in re.findall(r"`(alerts: \{[^}]+\})`", " ".join(text.split())):
        thresholds = yaml.safe_load(mapping)["alerts"]
        assert set(thresholds) <= set(rows)
        alerts.load(thresholds)


def test_the_runbooks_name_no_metric_that_a_server_does_not_have():
    families = {family.name for family in text_string_to_metric_families(exposition())}
    of_histograms = {f"{name}_{part}" for name in families for part in ("bucket", "sum", "count", "total")}

    named = {name for text in pages().values() for name in re.findall(r"(?<![:\w])qwen3_\w+(?!:)\b", text)}
    assert named
    assert (
        named
        - families
        - of_histograms
        - {record.split(":")[1] for row in alerts.load().values() for record in row.signals}
        == set()
    )


def test_thresholds_have_one_home():
    """Rendered rules are made when asked for, never kept beside the list."""
    kept = [
        path for path in Path(alerts.FILE).parent.rglob("*.yml") if "qwen3_alerts" in path.read_text(encoding="utf-8")
    ]

    assert kept == []
