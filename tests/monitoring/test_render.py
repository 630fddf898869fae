"""Rules are judged by Prometheus' own promtool: it parses them, and runs them over invented series.

Each alert is shown to fire, to stay silent and to resolve. Inputs and times are written from R11's rows
("average > 1000 ms"), not from the expressions.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import yaml

from model_server.engine import EngineHealth
from model_server.metrics import Metrics
from monitoring import alerts, render

ROWS = {"high_latency", "low_qps", "high_error_rate", "memory_usage", "pod_restart"}
OK, BAD = (
    'qwen3_inference_requests_total{job="a",instance="a:1",status="200"}',
    ('qwen3_inference_requests_total{job="a",instance="a:1",status="503"}'),
)
SUM = 'qwen3_inference_duration_seconds_sum{job="a",instance="a:1",endpoint="inference"}'
COUNT = 'qwen3_inference_duration_seconds_count{job="a",instance="a:1",endpoint="inference"}'
USED = 'qwen3_model_memory_usage_bytes{job="a",instance="a:1"}'
LIMIT = 'qwen3_memory_limit_bytes{job="a",instance="a:1"}'
STARTED = 'qwen3_start_time_seconds{job="a",instance="a:1"}'
ENGINE = 'qwen3_engine_restarts_total{job="a",instance="a:1"}'
SYSTEMD = 'node_systemd_service_restart_total{job="a",instance="a:1",name="qwen3@1.service"}'

promtool = pytest.mark.promtool


def fires(tmp_path, name, series, minutes, rows=None, interval="1m"):
    """Which of ``minutes`` find the alert firing, according to promtool."""
    rules, test = tmp_path / "rules.yml", tmp_path / "test.yml"
    rules.write_text(render.render(alerts.load() if rows is None else rows), encoding="utf-8")
    # ALERTS is what Alertmanager and dashboards see. promtool complains of each minute at which it is missing.
    query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    one = [{"labels": "{}", "value": 1}]
    checks = [{"expr": query, "eval_time": f"{minute}m", "exp_samples": one} for minute in minutes]
    inputs = [{"series": key, "values": text} for key, text in series.items()]
    group = {"interval": interval, "input_series": inputs, "promql_expr_test": checks}
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [group]}
    test.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", test], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    silent = re.findall(r"time: (?:(\d+)h)?(?:(\d+)m)?(?:0s)?,\s+exp: \{\} 1E\+00\s+got: nil", output)
    # Nothing else went wrong.
    assert (output.count("expr:"), done.returncode) == (len(silent), 1 if silent else 0), output
    missing = {int(hours or 0) * 60 + int(rest or 0) for hours, rest in silent}
    return [minute for minute in minutes if minute not in missing]


@promtool
def test_promtool_accepts_the_rules(tmp_path):
    rules = tmp_path / "rules.yml"
    rules.write_text(render.render(alerts.load()), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "43 rules found" in done.stdout  # 22 signals, 19 alerts, 2 absences


@promtool
def test_high_latency_fires_above_a_second_on_average_and_resolves(tmp_path):
    """One request a second; each takes 0.9 s for 20 minutes, then 1.2 s for 20, then 0.9 s again."""
    series = {SUM: "0+54x20 1152+72x20 2574+54x20", COUNT: "0+60x62"}

    assert fires(tmp_path, "high_latency", series, [15, 20, 24, 32, 40, 50, 60]) == [32, 40]


@promtool
def test_high_latency_is_silent_when_nothing_is_asked(tmp_path):
    assert fires(tmp_path, "high_latency", {SUM: "500x40", COUNT: "100x40"}, [10, 20, 30]) == []


@promtool
def test_low_qps_fires_under_ten_a_second_and_resolves(tmp_path):
    """12 a second for 20 minutes, 8 for 25, 12 again; also a server that nobody asks anything fires."""
    series = {OK: "0+720x20 14880+480x24 26640+720x25"}

    assert fires(tmp_path, "low_qps", series, [12, 20, 25, 37, 44, 55, 65]) == [37, 44]
    assert fires(tmp_path, "low_qps", {OK: "0x40"}, [8, 20]) == [20]


@promtool
def test_low_qps_is_silent_on_an_idle_laptop_that_says_so(tmp_path):
    rows = alerts.load({"low_qps": 0})

    assert fires(tmp_path, "low_qps", {OK: "0x40"}, [20, 30], rows) == []


@promtool
def test_high_error_rate_fires_above_five_percent_and_resolves(tmp_path):
    """1000 answers a minute; 48 of them fail, then 52 of them, then 48 again."""
    series = {OK: "0+952x20 19988+948x20 39900+952x20", BAD: "0+48x20 1012+52x20 2100+48x20"}

    assert fires(tmp_path, "high_error_rate", series, [15, 20, 30, 40, 50, 60]) == [30, 40]


@promtool
def test_refusals_and_clients_mistakes_neither_raise_nor_hide_the_error_rate(tmp_path):
    refused = OK.replace("200", "429")
    mistaken = OK.replace("200", "400")

    flood = {OK: "0+100x30", refused: "0+9000x30", mistaken: "0+9000x30"}
    assert fires(tmp_path, "high_error_rate", flood, [20, 30]) == []
    assert fires(tmp_path, "high_error_rate", {BAD: "0+10x30", **flood}, [20, 30]) == [20, 30]


@promtool
def test_memory_usage_fires_above_four_fifths_of_the_limit_and_resolves(tmp_path):
    series = {USED: "790x10 810x15 790x15", LIMIT: "1000x42"}

    assert fires(tmp_path, "memory_usage", series, [10, 14, 18, 26, 30, 40]) == [18, 26]


@promtool
def test_pod_restart_fires_with_the_fourth_restart_within_an_hour_and_resolves(tmp_path):
    """The server starts anew at minutes 11, 21, 31 and 41."""
    series = {STARTED: "100x10 200x9 300x9 400x9 500x120", ENGINE: "0x160"}

    assert fires(tmp_path, "pod_restart", series, [5, 30, 40, 42, 60, 75, 120]) == [42, 60]


@promtool
def test_three_restarts_of_the_engine_do_not_become_more_than_three(tmp_path):
    """increase() over samples every 45 s extrapolates to the full hour: 3.04 at minute 70, unless rounded."""
    three = {STARTED: "100x120", ENGINE: "1x20 2x20 3x20 4x60"}
    four = {STARTED: "100x120", ENGINE: "1x20 2x20 3x10 4x10 5x60"}

    assert fires(tmp_path, "pod_restart", three, [50, 60, 70, 80], interval="45s") == []
    assert fires(tmp_path, "pod_restart", four, [70], interval="45s") == [70]


@promtool
def test_servers_that_do_not_live_to_be_scraped_are_counted_by_systemd(tmp_path):
    """Four restarts between two scrapes at minute 11; then also of a server that no scrape has ever met."""
    counted = {SYSTEMD: "0x10 4x120"}
    met = {STARTED: "100x10 200x120", ENGINE: "0x130"}

    assert fires(tmp_path, "pod_restart", met, [10, 12, 60]) == []
    assert fires(tmp_path, "pod_restart", met | counted, [10, 12, 60, 75]) == [12, 60]
    assert fires(tmp_path, "pod_restart", counted, [10, 12, 60, 75]) == [12, 60]


@promtool
def test_a_restart_that_both_server_and_systemd_tell_of_counts_once(tmp_path):
    both = {STARTED: "100x10 200x9 300x9 400x60", SYSTEMD: "0x10 1x9 2x9 3x60"}

    assert fires(tmp_path, "pod_restart", both | {ENGINE: "0x90"}, [32, 40, 60]) == []
    # Restarts of the engine are others, and come on top.
    assert fires(tmp_path, "pod_restart", both | {ENGINE: "0x50 1x40"}, [50, 52, 60]) == [52, 60]


@promtool
def test_systemds_counter_begins_anew_when_somebody_restarts_the_unit(tmp_path):
    """Four restarts of long ago, by then known, are none of this hour; those after it count."""
    started = {STARTED: "100x160", ENGINE: "0x160"}

    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x60"}, [75, 82, 100, 130]) == []
    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x9 3x60"}, [75, 82, 100, 130]) == []
    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x9 4x60"}, [75, 82, 100, 130]) == [100, 130]


@promtool
def test_three_restarts_right_after_prometheus_began_are_three(tmp_path):
    """At minute 10 there are two samples, 45 s apart, and increase() takes 3 for 4."""
    young = {STARTED: "_x11 100x60", SYSTEMD: "_x11 0x0 3x60"}
    assert fires(tmp_path, "pod_restart", young, [10, 11, 30], interval="45s") == []

    young[SYSTEMD] = "_x11 0x0 4x60"
    assert fires(tmp_path, "pod_restart", young, [10, 11, 30], interval="45s") == [10, 11, 30]


@promtool
def test_restarts_of_other_units_are_not_the_servers(tmp_path):
    other = SYSTEMD.replace("qwen3@1", "haproxy")

    assert fires(tmp_path, "pod_restart", {STARTED: "100x90", ENGINE: "0x90", other: "0x10 9x80"}, [12, 60]) == []


@promtool
@pytest.mark.parametrize(("name", "series"), [("high_error_rate", OK), ("pod_restart", STARTED)])
def test_a_critical_alert_that_has_gone_blind_says_so_and_resolves(tmp_path, name, series):
    seen = fires(tmp_path, f"{name}_absent", {series: "1x10 _x20 1x20"}, [5, 10, 25, 30, 40])

    assert seen == [25, 30]


@promtool
def test_a_firing_alert_reads_well(tmp_path):
    """What the person who is called gets, templates filled in by promtool."""
    rules, test = tmp_path / "rules.yml", tmp_path / "test.yml"
    rules.write_text(render.render(alerts.load(), runbooks="https://runbooks.example/qwen3"), encoding="utf-8")
    expected = {
        "memory_usage": (
            "warning",
            "81%; fires > 80 percent for 5m",
            "Memory use is close to the limit",
            "内存使用率过高",
        ),
        "high_latency": (
            "warning",
            "1.2s; fires > 1000 ms for 5m",
            "The average request takes too long",
            "平均请求延迟过高",
        ),
    }
    test.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(rules)],
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [
                            {"series": USED, "values": "810x20"},
                            {"series": LIMIT, "values": "1000x20"},
                            {"series": SUM, "values": "0+72x20"},
                            {"series": COUNT, "values": "0+60x20"},
                        ],
                        "alert_rule_test": [
                            {
                                "eval_time": "20m",
                                "alertname": name,
                                "exp_alerts": [
                                    {
                                        "exp_labels": {"severity": severity, "job": "a"}
                                        | ({"instance": "a:1"} if name == "memory_usage" else {}),
                                        "exp_annotations": {
                                            "description": description,
                                            "summary": english,
                                            "summary_zh": chinese,
                                            "runbook_url": f"https://runbooks.example/qwen3/{name}.md",
                                        },
                                    }
                                ],
                            }
                            for name, (severity, description, english, chinese) in expected.items()
                        ],
                    }
                ],
            }
        ),
        encoding="utf-8",
    )
    done = subprocess.run(["promtool", "test", "rules", test], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


# The whole path ------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """The server's metrics behind HTTP, with an engine that can be made to look restarted."""
    metrics = Metrics(memory_limit_bytes=1 << 40)
    engine = Engine()
    metrics.watch_engine(engine)

    class Scrape(BaseHTTPRequestHandler):
        def do_GET(self):
            body, content_type = metrics.render()
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Scrape) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield metrics, engine, http.server_port
        http.shutdown()
        thread.join()


class Engine:
    state = EngineHealth("ready")

    def health(self):
        return self.state


@promtool
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="promtool is here without prometheus")
def test_a_real_prometheus_sees_a_servers_trouble(tmp_path, server):
    """Our rules, our exposition, Prometheus between them; only the waiting times (``for``) are cut to nothing."""
    metrics, engine, port = server
    rows = {name: row.model_copy(update={"hold": "0s"}) for name, row in alerts.load().items()}
    (tmp_path / "rules.yml").write_text(render.render(rows), encoding="utf-8")
    scrape = {"job_name": "qwen3", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "prometheus.log").open("w") as log:
        prometheus = subprocess.Popen(["prometheus", *arguments, f"--web.listen-address={own}"], stdout=log, stderr=log)
    try:
        # Nobody asks anything: that alone is told.
        wait_for(own, {"low_qps"})

        answered = metrics.inference_duration_seconds.labels(endpoint="classify")
        for _ in range(300):
            answered.observe(1.5)
            metrics.requests_total.labels(endpoint="classify", status=200).inc()
            metrics.requests_total.labels(endpoint="classify", status=500).inc()
        engine.state = EngineHealth("ready", restarts=4)
        metrics._engine._limit_bytes = psutil.Process().memory_info().rss  # all of it is in use
        burning = {name for name, row in rows.items() if row.unit == "times budget"}
        wait_for(own, burning | {"low_qps", "high_latency", "high_error_rate", "memory_usage", "pod_restart"})
    finally:
        prometheus.terminate()
        prometheus.wait(30)


def wait_for(address, expected):
    """Until exactly these alerts fire, every rule having been evaluated without an error."""
    deadline = time.monotonic() + 60
    seen: object = None
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/api/v1/rules") as answer:
            groups = json.load(answer)["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
            seen = firing, {rule["health"] for rule in rules}
            if seen == (expected, {"ok"}):
                return
        time.sleep(0.2)
    pytest.fail(f"fires {seen}, expected {expected}")


# The command line ----------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    path = tmp_path / "quiet.yml"
    path.write_text(
        """
        model_name: tiny
        model_version: "1"
        model_source: models/tiny
        deployment_type: local
        engine: openvino
        resource_limits: {cpu_cores: 2, memory_gb: 4, disk_gb: 5}
        optimization_settings:
          {enable_quantization: true, quantization_bits: 8, max_batch_size: 8, max_sequence_length: 1024}
        alerts: {low_qps: 0.5}
        """,
        encoding="utf-8",
    )
    return str(path)


def expressions(text):
    groups = yaml.safe_load(text)["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_an_environments_thresholds_and_words_of_the_command_line_reach_the_rules(environment, tmp_path, capsys):
    assert render.main([environment]) == 0
    assert expressions(capsys.readouterr().out)["low_qps"].endswith(" < 0.5")

    out = tmp_path / "rules.yml"
    assert render.main([environment, "alerts.low_qps=2", "alerts.high_latency=30000", f"out={out}"]) == 0
    rendered = expressions(out.read_text(encoding="utf-8"))
    assert rendered["low_qps"].endswith(" < 2")
    assert rendered["high_latency"].endswith(" > 30")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == str(out)


def test_without_an_environment_the_designs_thresholds_hold(capsys):
    assert render.main([]) == 0

    found = expressions(capsys.readouterr().out)
    assert {name: expr.split(" ", 1)[1] for name, expr in found.items() if name in ROWS} == {
        "high_latency": "> 1",
        "low_qps": "< 10",
        "high_error_rate": "> 0.05",
        "memory_usage": "> 0.8",
        "pod_restart": "> 3",
    }


def test_rendering_twice_gives_the_same_bytes():
    assert render.render(alerts.load()) == render.render(alerts.load())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{environment}", "alerts.low_qp=1"], "did you mean 'low_qps'?"),
        (["{environment}", "alert.low_qps=1"], "unknown key"),
        (["no/such.yml"], "no/such.yml"),
        (["one.yml", "two.yml"], "one environment file"),
        (["alerts.low_qps=1"], "one environment file"),
        (["out=/no/such/folder/rules.yml"], "/no/such/folder"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_clear_message(environment, capsys, words, message):
    assert render.main([word.format(environment=environment) for word in words]) == 2

    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_help_teaches(capsys):
    assert render.main(["--help"]) == 0
    assert "out=FILE" in capsys.readouterr().out
