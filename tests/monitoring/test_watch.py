from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from model_server.engine import EngineHealth
from model_server.metrics import Metrics
from monitoring import alerts, watch
from monitoring.expressions import ExpressionError, parse
from runconfig import ConfigError

ROOT = Path(__file__).resolve().parents[2]


class Engine:
    state = EngineHealth("ready")

    def health(self):
        return self.state


class Server:
    """A server's metrics behind HTTP; ``answers`` False closes the door without ending it."""

    def __init__(self):
        self.metrics = Metrics(memory_limit_bytes=1 << 40)
        self.engine = Engine()
        self.metrics.watch_engine(self.engine)
        self.body = None
        self.answers = True
        server = self

        class Scrape(BaseHTTPRequestHandler):
            def do_GET(self):
                body = server.body or server.metrics.render()[0]
                self.send_response(200 if server.answers else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Scrape)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server():
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


@pytest.fixture
def client():
    with httpx2.Client(trust_env=False) as client:
        yield client


def minutes(watching, last, *, first=0):
    """One reading a minute, as fast as they can be made."""
    return [event for minute in range(first, last) for event in watching.step(60.0 * minute)]


def said(events):
    return [(event.state, event.alert) for event in events]


def test_an_alert_begins_and_is_over(server, client):
    watching = watch.Watch([server.url], watch.Rules(alerts.load({"low_qps": 0})), client)
    assert minutes(watching, 10) == []

    server.engine.state = EngineHealth("starting")
    [begun] = minutes(watching, 20, first=10)
    assert (begun.state, begun.alert, begun.severity) == ("firing", "engine_down", "warning")
    assert begun.labels == {"instance": server.url.removeprefix("http://"), "job": "qwen3-inference"}
    assert begun.time == "1970-01-01T00:15:00+00:00"
    assert begun.description == "0 up, fires < 1 up for 5m"
    assert (begun.summary, begun.summary_zh) == (
        "A server is up, but its engine does not compute",
        "服务在运行,但推理引擎不可用",
    )
    assert begun.runbook == "monitoring/runbooks/engine_down.md"
    assert watching.rules.firing == [begun]

    server.engine.state = EngineHealth("ready")
    assert said(minutes(watching, 25, first=20)) == [("resolved", "engine_down")]
    assert watching.rules.firing == []


@pytest.mark.parametrize("trouble", ["refuses", "is something else"])
def test_a_server_that_is_gone_is_told_by_the_absences_and_one_of_two_by_its_name(server, client, trouble):
    other = Server()
    thread = threading.Thread(target=other.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        watching = watch.Watch([server.url, other.url], watch.Rules(alerts.load({"low_qps": 0})), client)
        assert minutes(watching, 5) == []
        if trouble == "refuses":
            server.answers = False
        else:
            server.body = b"<html>welcome</html>"
        [event] = minutes(watching, 15, first=5)
        assert (event.alert, event.labels["instance"]) == ("instance_down", server.url.removeprefix("http://"))

        other.answers = False
        seen = said(minutes(watching, 25, first=15))
        assert ("resolved", "instance_down") in seen
        assert {alert for state, alert in seen if state == "firing"} == {"high_error_rate_absent", "pod_restart_absent"}
    finally:
        other.http.shutdown()
        thread.join()
        other.http.server_close()


def test_what_an_alert_does_not_read_is_not_kept_and_what_is_old_is_forgotten(server, client):
    watching = watch.Watch([server.url], watch.Rules(alerts.load()), client)
    minutes(watching, 200)
    store = watching.rules.store

    kept = {name for name, known in store._series.items() if any(known.values())}
    assert "qwen3_time_per_output_token_seconds_bucket" not in kept
    edges = {
        dict(labels).get("le")
        for labels, series in store._series["qwen3_inference_duration_seconds_bucket"].items()
        if series
    }
    assert edges == {"1.0"}
    [series] = [series for series in store._series["qwen3_engine_up"].values() if series]
    assert len(series.times) <= 7  # five minutes


def test_a_burn_rate_over_three_days_is_evaluated_within_the_time_between_two_readings(server, client, capsys):
    """Three days of readings every 15 s, all series of one server."""
    watching = watch.Watch([server.url], watch.Rules(alerts.load()), client)
    watching.step(0)
    for known in watching.rules.store._series.values():
        for series in filter(None, known.values()):
            for at in range(15, int(min(series.keep_s, 3 * 86400)), 15):
                series.add(at, series.values[0])
    began = time.perf_counter()
    watching.rules.evaluate(3 * 86400)
    seconds = time.perf_counter() - began
    with capsys.disabled():
        print(f"\nwatch: one evaluation over three days {seconds:.2f} s")
    assert seconds < 7


# The command line ----------------------------------------------------------------------------------------


def run(*words, **more):
    command = [sys.executable, "-m", "monitoring.watch", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.fixture
def quiet(tmp_path):
    path = tmp_path / "quiet.yml"
    path.write_text((ROOT / "environments/local.yml").read_text("utf-8") + "  pod_restart: 0\n", encoding="utf-8")
    return str(path)


def test_it_ends_with_0_when_nothing_fired_and_with_1_when_something_did(server, quiet):
    done = run(quiet, f"url={server.url}", "every_s=0.2", "for_s=1")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["fired"], last["firing"]) == ({}, [])
    assert last["answered"] == last["evaluations"] >= 4

    child = subprocess.Popen(
        [sys.executable, "-m", "monitoring.watch", quiet, f"url={server.url}", "every_s=0.2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr.readline().startswith(f"watching {server.url}")
    time.sleep(1)
    server.engine.state = EngineHealth("ready", restarts=1)  # the environment allows none
    lines = [child.stdout.readline() for _ in range(3)]
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 1, err
    assert "FIRING    critical  pod_restart  instance=127.0.0.1:" in lines[0]
    assert "The server or its engine keeps restarting / 服务或推理引擎频繁重启: " in lines[1]
    assert "restarts, fires > 0 restarts for 0m" in lines[1]
    assert lines[2].strip() == "monitoring/runbooks/pod_restart.md"
    assert json.loads(out.splitlines()[-1])["fired"] == {"pod_restart": 1}
    assert "Traceback" not in err


def test_as_json_each_change_is_an_object(server, quiet, tmp_path):
    text = (
        Path(quiet).read_text("utf-8").replace("pod_restart: 0", "low_qps: 5").replace("low_qps: 0 ", "pod_restart: 9 ")
    )
    Path(quiet).write_text(text, encoding="utf-8")
    changed = alerts.FILE.read_text("utf-8").replace("for: 10m", "for: 0s", 1)
    code = f"""
import sys
from pathlib import Path
from monitoring import alerts, watch
load = alerts.load
alerts.load = lambda thresholds: load(thresholds, Path({str(tmp_path / "alerts.yml")!r}))
sys.exit(watch.main({[quiet, f"url={server.url}", "every_s=0.2", "for_s=1.5", "--json"]!r}))
"""
    (tmp_path / "alerts.yml").write_text(changed, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    event, last = map(json.loads, done.stdout.splitlines())
    assert (event["state"], event["alert"], event["severity"]) == ("firing", "low_qps", "warning")
    assert event["description"] == "0 requests/s, fires < 5 requests/s for 0s"
    assert event["summary_zh"] == "每秒请求数过低"
    assert last["firing"] == ["low_qps"]


def test_a_server_that_never_answers_is_no_quiet_server():
    done = run("url=http://127.0.0.1:9", "every_s=0.2", "for_s=0.5")
    assert done.returncode == 4
    assert "no server answers yet" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["answered"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such.yml"], "no/such.yml"),
        (["environments/local.yml", "alerts.low_qp=1"], "did you mean 'low_qps'"),
        (["alerts.low_qps=1"], "give one environment file"),
        (["one.yml", "two.yml"], "give one environment file"),
        (["--jason"], "give one environment file"),
        (["every_s=60"], "every_s"),
        (["for_s=0"], "for_s"),
        (["url=localhost:8000"], "url"),
        (["url=http://me:secret@localhost"], "must not hold a password"),
    ],
)
def test_bad_usage_is_told_in_a_line_or_two(words, message):
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stdout


def test_help_teaches():
    done = run("--help")
    assert done.returncode == 0
    assert "python -m monitoring.watch environments/local.yml" in done.stdout


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "http://127.0.0.1:9000"), ("0.0.0.0", "http://127.0.0.1:9000"), ("::1", "http://[::1]:9000")],
)
def test_the_environment_says_where_the_metrics_are(host, expected):
    config = watch.deployment.load(
        ROOT / "environments/local.yml", [f"serving.host={host}", "serving.metrics_port=9000"]
    )
    assert watch.urls_of(config) == [expected]


# What is not evaluated -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sum(", "is no PromQL"),
        ("qwen3_running offset 5m", "without offset"),
        ("topk(3, qwen3_running)", "topk is not evaluated here"),
        ("stddev_over_time(qwen3_running[5m])", "stddev_over_time"),
        ("max_over_time(rate(qwen3_prompt_tokens_total[5m])[1h:])", "subqueries"),
        ("qwen3_running == bool 1", "in this form"),
        ("qwen3_running * on (job) group_left (version) qwen3_model_info", "group_left"),
        ('{__name__=~"qwen3_.+"}', "only NAME"),
        ("1 > 2", "BOOL"),
    ],
)
def test_what_only_prometheus_can_evaluate_is_refused_and_not_guessed(text, message):
    with pytest.raises(ExpressionError, match=message):
        parse(text)


def test_an_alert_that_watch_cannot_evaluate_is_refused_at_the_start(tmp_path):
    path = tmp_path / "alerts.yml"
    changed = alerts.FILE.read_text("utf-8").replace(
        "sum by (job) (rate(qwen3_inference_requests_total[5m]))", "vector(1)"
    )
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(ExpressionError, match=r"vector\(\) is not evaluated"):
        watch.Rules(alerts.load(path=path))
    with pytest.raises(ConfigError):
        alerts.load({"none": 1}, path)
