"""Rules are judged by Prometheus' own promtool: it parses them, and runs them over invented series.

Each alert is shown to fire, to stay silent and to resolve. Inputs and times are written from R11's rows
("average > 1000 ms"), not from the expressions.
"""

from __future__ import annotations

import contextlib
import json
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


@promtool
def test_promtool_accepts_the_rules(tmp_path):
    rules = tmp_path / "rules.yml"
    rules.write_text(render.render(alerts.load()), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "43 rules found" in done.stdout  # 22 signals, 19 alerts, 2 absences


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
