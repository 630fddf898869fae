from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitoring import alerts, faults, render
from monitoring.watched_site import PROGRAMS, Site, Times, _alertmanager

ROOT = Path(__file__).resolve().parents[2]
EVERY = {*alerts.load(), "high_error_rate_absent", "pod_restart_absent"}


def site(scale):
    return Site(Times.of_the_roles(scale), Path(), (None, None), "", "", [])


def run(*words):
    command = [sys.executable, "-m", "monitoring.faults", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def test_every_alert_has_one_fault_that_makes_it_fire():
    rendered = {
        rule["alert"] for group in render.rules(alerts.load())["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert rendered == EVERY
    assert sorted(name for fault in faults.FAULTS for name in fault.alerts) == sorted(EVERY)


@pytest.mark.parametrize(
    ("name", "shipped_s"),
    [
        # for + window + scrape 15 s + evaluation 15 s + group wait 30 s + 10 s, reckoned by hand.
        ("high_latency", 300 + 300 + 60 + 10),
        ("memory_usage", 300 + 0 + 60 + 10),
        ("engine_stalled", 60 + 60 + 60 + 10),
        ("pod_restart", 0 + 3600 + 60 + 10),
        ("error_budget_fast", 120 + 300 + 60 + 10),
        ("pod_restart_absent", 300 + 0 + 60 + 10),
    ],
)
def test_what_is_allowed_comes_from_the_configuration(name, shipped_s):
    assert faults.allowed(site(1), name)[0] == shipped_s
    assert faults.allowed(site(30), name)[0] == pytest.approx((shipped_s - 10) / 30 + 10)


def test_all_times_are_divided_and_nothing_else_is():
    plain = render.rules(alerts.load())
    scaled = Times.of_the_roles(30).scaled(render.rules(alerts.load()))

    text = json.dumps(scaled)
    assert set(alerts.WINDOW.findall(json.dumps(plain))) == {"1m", "5m", "30m", "1h", "6h", "3d"}
    assert set(re.findall(r"\[(\d+ms)\]", text)) == {
        "2000ms",
        "10000ms",
        "60000ms",
        "120000ms",
        "720000ms",
        "8640000ms",
    }
    assert alerts.WINDOW.sub("", json.dumps(plain["groups"][0]["rules"][3]["expr"])) == re.sub(
        r"\[\d+ms\]", "", json.dumps(scaled["groups"][0]["rules"][3]["expr"])
    )
    holds = {rule["alert"]: rule["for"] for rule in scaled["groups"][0]["rules"] if "for" in rule}
    assert (holds["high_latency"], holds["pod_restart"], holds["pod_restart_absent"]) == ("10000ms", "0ms", "10000ms")


def test_alertmanager_is_configured_by_the_roles_own_template():
    content = yaml.safe_load(_alertmanager(Times.of_the_roles(30), "http://127.0.0.1:1"))

    assert content["route"]["group_wait"] == "1000ms"
    assert content["inhibit_rules"][0]["equal"] == ["job", "host"]
    assert {
        each["name"]: [hook["url"] for hook in each.get("webhook_configs", [])] for each in content["receivers"]
    } == {
        "nobody": [],
        "critical": ["http://127.0.0.1:1/critical"],
        "warning": ["http://127.0.0.1:1/warning"],
    }


@pytest.mark.parametrize(
    ("name", "scale", "wanted"),
    [
        ("faults.md", 30, EVERY),
        (
            "faults_full_length.md",
            1,
            {"instance_down", "high_error_rate_absent", "pod_restart_absent", "memory_usage", "pod_restart"},
        ),
    ],
)
def test_the_committed_tables_have_their_alerts_in_time(name, scale, wanted):
    text = (ROOT / "monitoring" / name).read_text(encoding="utf-8")
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]

    assert (f"divided by {scale}" in text) == (scale > 1)
    assert {alert: (verdict, told) for _, alert, _, _, _, verdict, told in rows}.keys() == wanted
    assert {alert: verdict for _, alert, _, _, _, verdict, _ in rows if verdict != "yes"} == {}
    for _, alert, severity, seconds, limit, _, _ in rows:
        assert float(seconds) <= float(limit.split(" = ")[0])
        assert float(limit.split(" = ")[0]) == pytest.approx(faults.allowed(site(scale), alert)[0], abs=0.1)
        assert severity == ("critical" if alert.endswith("_absent") else alerts.load()[alert].severity)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["time_scale=0"], "time_scale"),
        (["time_scale=100"], "time_scale"),
        (["only=flood"], "no such fault: flood; there are: stop_one"),
        (["outt=x"], "did you mean 'out'"),
    ],
)
def test_bad_usage_is_told(words, message):
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_faults_and_their_alerts():
    done = run("--help")
    assert done.returncode == 0
    assert "hang_engine: " in done.stdout


@pytest.mark.slow
@pytest.mark.promtool
@pytest.mark.skipif(any(shutil.which(name) is None for name in PROGRAMS), reason=f"needs {' and '.join(PROGRAMS)}")
def test_somebody_is_told_of_one_dead_server_in_time(tmp_path):
    """The shortest of the faults, for real: servers, Prometheus, Alertmanager, the receiver."""
    out = tmp_path / "faults.md"
    done = run("only=stop_one", f"out={out}")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["late"] == []
    assert "| SIGTERM to one of two servers | instance_down | warning |" in out.read_text(encoding="utf-8")
