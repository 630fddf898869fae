"""Alerts that fire, as a real Prometheus tells them; and what is said where it cannot be known."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time

import httpx2
import pytest
import yaml
from page_server import free_port, get, until

from monitoring.firing import firing

ROW = {
    "labels": {"alertname": "high_latency", "severity": "warning", "job": "a"},
    "annotations": {"summary": "slow", "summary_zh": "慢", "runbook_url": "javascript:alert(1)"},
    "state": "firing",
    "activeAt": "2026-11-26T10:00:00.123456789Z",
    "value": "1.2e+00",
}


async def told(answer, url="http://prometheus"):
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        return await firing(url, client)


def answering(*rows):
    return lambda _: httpx2.Response(200, json={"status": "success", "data": {"alerts": list(rows)}})


async def test_without_a_source_nothing_is_known():
    alerts = await told(answering(), url=None)
    assert (alerts.standing, alerts.firing) == ("no_source", [])


async def test_a_prometheus_that_does_not_answer_is_no_all_clear():
    def refuse(request):
        raise httpx2.ConnectError("connection refused", request=request)

    alerts = await told(refuse)
    assert alerts.standing == "unreachable"
    assert "refused" in alerts.reason


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: httpx2.Response(200, text="<html>"),
        lambda _: httpx2.Response(200, json={"data": []}),
        lambda _: httpx2.Response(200, json={"data": {"alerts": [{"state": "firing"}]}}),
        lambda _: httpx2.Response(200, json=[1]),
        answering(ROW | {"labels": "none"}),
        answering(ROW | {"annotations": []}),
        answering(ROW | {"activeAt": "yesterday"}),
    ],
)
async def test_something_else_than_a_prometheus_is_no_all_clear(answer):
    assert (await told(answer)).standing == "unusable"


async def test_critical_ones_come_first_then_the_oldest():
    def row(name, severity, at):
        return ROW | {"labels": {"alertname": name, "severity": severity}, "activeAt": at}

    alerts = await told(
        answering(
            row("b", "warning", "2026-11-26T09:00:00Z"),
            row("c", "warning", "2026-11-26T08:00:00Z"),
            row("a", "critical", "2026-11-26T10:00:00Z"),
            row("z", "critical", "2026-11-26T10:00:00Z") | {"state": "pending"},
        )
    )
    assert [each.name for each in alerts.firing] == ["a", "c", "b"]


async def test_a_runbook_that_a_browser_would_run_is_no_link():
    (alert,) = (await told(answering(ROW))).firing
    assert alert.runbook is None
    assert (alert.summary, alert.summary_zh, alert.labels) == ("slow", "慢", {"job": "a"})


@pytest.mark.promtool
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="promtool is here without prometheus")
async def test_a_real_prometheus_tells_what_fires(tmp_path):
    """What the fakes above answer is what Prometheus 2.42 answers: same keys, a time that can be read."""
    rules = {
        "groups": [
            {
                "name": "planted",
                "rules": [
                    {
                        "alert": "high_error_rate",
                        "expr": "vector(0.07) > 0.05",
                        "labels": {"severity": "critical"},
                        "annotations": {"summary": "Too many", "summary_zh": "过多", "runbook_url": "https://x/#a"},
                    },
                    {"alert": "waits", "expr": "vector(1)", "for": "1h"},
                    {"alert": "silent", "expr": "vector(1) > 2"},
                ],
            }
        ]
    }
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules, allow_unicode=True), encoding="utf-8")
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    arguments = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *arguments, f"--web.listen-address={url.removeprefix('http://')}"], stdout=log, stderr=log
        )
    try:
        with contextlib.suppress(AssertionError):
            until(lambda: len(((get(f"{url}/api/v1/alerts")[1] or {}).get("data") or {}).get("alerts", [])) == 2, 30)
        async with httpx2.AsyncClient(trust_env=False) as client:
            alerts = await firing(url, client)
    finally:
        process.terminate()
        process.wait()
    assert alerts.standing == "known", alerts
    (alert,) = alerts.firing
    assert (alert.name, alert.severity, alert.summary_zh) == ("high_error_rate", "critical", "过多")
    assert alert.runbook == "https://x/#a"
    assert 0 <= time.time() - alert.since.timestamp() < 60
