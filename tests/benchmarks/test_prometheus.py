"""Metrics of servers, written by the official client library and by ours, read over a real connection."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from benchmarks.__main__ import main
from benchmarks.errors import EndpointError
from benchmarks.prometheus import KNOWN, first_that_answers, metrics_urls, parse, scrape
from benchmarks.sampler import Sampler, Source, server_use
from model_server.metrics import Metrics


@contextmanager
def serving(pages, asked=None):
    """A server that answers GET with ``pages[path]()``, else 404; appends (its port, path, key) to ``asked``."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            if asked is not None:
                asked.append((self.server.server_port, self.path, self.headers["Authorization"]))
            found = pages.get(self.path)
            body = found() if found else b"not found"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def exposition():
    registry = CollectorRegistry()
    requests = Counter("vllm:request_success", "r", ["reason"], registry=registry)
    requests.labels("stop").inc(7)
    requests.labels('le"ngth').inc(5)
    Gauge("vllm:num_requests_waiting", "w", ["model"], registry=registry).labels("m").set(3)
    Gauge("broken", "b", registry=registry).set(float("nan"))
    seconds = Histogram("latency_seconds", "l", registry=registry)
    seconds.observe(0.5)
    seconds.observe(1.5)
    return generate_latest(registry)


def test_labels_are_summed_and_distributions_are_their_sum_and_count():
    found = parse(exposition().decode())

    assert found.counters == {"vllm:request_success_total": 12, "latency_seconds_sum": 2, "latency_seconds_count": 2}
    assert found.gauges == {"vllm:num_requests_waiting": 3}
    assert found.known() == {"requests_total": 12, "queue_depth": 3}


def test_our_own_server_names_what_is_known():
    """Its own names: a metric that is renamed there would otherwise be missing here without a word."""
    metrics = Metrics()
    metrics.requests_total.labels(endpoint="inference", status=200).inc(3)
    metrics.requests_total.labels(endpoint="classify", status=429).inc(2)
    metrics.generated_tokens_total.inc(40)
    body, _ = metrics.render()

    found = parse(body.decode()).known()

    assert found["requests_total"] == 5
    assert found["output_tokens_total"] == 40
    assert found.keys() >= KNOWN.keys() - {"open_files"}


@pytest.mark.parametrize("body", [b"<html><body>Welcome</body></html>", b"", b"\xff\xfe", b'{"a": 1}'])
def test_what_is_no_metrics_page_is_said_so(body):
    with serving({"/metrics": lambda: body}) as url, pytest.raises(EndpointError, match="no Prometheus metrics there"):
        scrape(f"{url}/metrics")


def test_the_page_is_found_beside_the_api_or_at_the_root():
    with serving({"/metrics": exposition}) as url:
        assert first_that_answers(metrics_urls(f"{url}/base")) == f"{url}/metrics"
        assert first_that_answers(metrics_urls(url)) == f"{url}/metrics"
        assert first_that_answers([f"{url}/other"]) is None


def test_counters_are_read_at_both_ends_of_a_run_and_what_was_before_does_not_count():
    registry = CollectorRegistry()
    requests = Counter("qwen3_inference_requests", "r", registry=registry)
    depth = Gauge("qwen3_queue_depth", "d", registry=registry)
    requests.inc(1000)
    with serving({"/metrics": lambda: generate_latest(registry)}) as url:
        source = Source(metrics_urls=tuple(metrics_urls(url)))
        # Read when it is told to only: a reading of its own might begin before the end and be answered after it.
        with Sampler(0.0, 30, {"server_a": source}) as sampler:
            sampler.mark()
            begin = sampler.frame()["at_s"].max()
            requests.inc(20)
            depth.set(4)
            threading.Event().wait(0.5)
            sampler.mark()
            requests.inc(30)
            depth.set(2)
            threading.Event().wait(0.3)
            sampler.mark()
            end = sampler.frame()["at_s"].max()
            requests.inc(500)

    counted = server_use(sampler.frame(), "server_a", [{"started_s": begin, "ended_s": end, "requests": 50}])

    assert counted["server_metrics"]["requests"] == pytest.approx(50, abs=0.5)
    assert counted["server_metrics"]["counters"]["qwen3_inference_requests_total"]["per_s"] == pytest.approx(
        50 / (end - begin), rel=0.02
    )
    assert counted["server_metrics"]["queue_depth_peak"] == 4
    assert counted["server_cpu_s_per_1000_requests"] is None


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yml").write_text("texts: [x]\nusers: 1\nrequests: 3\npairs: 2\npause_s: 0\n", encoding="utf-8")

    def run(*words):
        code = main([*words, "out=r", "--quiet"])
        return code, capsys.readouterr().err

    return run


def test_metrics_that_are_named_and_not_there_end_it_at_its_start(command, truth_server):
    """Null would be read as: this server has none. Nothing is sent, and no folder is left behind."""
    server = truth_server("service_ms=1")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    run = ("run", "s.yml", f"url={server.url}")
    pair = ("compare", "s.yml", f"a={server.url}", f"b={server.url}")
    with serving({"/metrics": lambda: b"<html>Welcome</html>"}) as web:
        cases = [
            ((*run, f"metrics_url={nobody}/metrics"), 4, "got: [Errno 111] Connection refused): correct metrics_url"),
            ((*run, f"metrics_url={server.url}/metrik"), 4, "got: HTTP Error 404: Not Found): correct metrics_url"),
            ((*run, f"metrics_url={web}/metrics"), 4, "got: the answer begins with '<html>Welcome</html>'): correct"),
            ((*run, "metrics_url=localhost:9090/metrics"), 2, "a URL must begin with http://"),
            ((*pair, f"b_metrics_url={web}/metrics"), 4, "correct b_metrics_url, or leave it out"),
            ((*pair, f"metrics_url={server.url}/metrics"), 2, "metrics_url belongs to the server at url, which is not"),
            ((*run, f"a_metrics_url={server.url}/metrics"), 2, "a_metrics_url belongs to the server at a, which is no"),
            ((*run, "pid=4194305"), 2, "there is no process 4194305 here: correct pid"),
            ((*pair, "b_cgroup=/no/such.slice"), 2, "there is no control group /no/such.slice here: correct b_cgroup"),
        ]
        for words, code, said in cases:
            assert command(*words) == (code, mock.ANY), words
            assert said in command(*words)[1]
    assert not Path("r").exists()
    assert server.log() == []


def test_metrics_that_are_not_named_and_not_there_are_unknown(command):
    with serving({}) as url:
        code, said = command("run", "s.yml", f"url={url}")

    assert code == 4
    assert "metrics" not in said


def test_a_key_is_shown_to_the_server_that_is_measured_and_to_nobody_else(command, monkeypatch):
    monkeypatch.setenv("KEY", "secret")
    asked = []
    with serving({"/metrics": exposition}, asked) as other, serving({"/metrics": exposition}, asked) as own:
        for metrics in (own, other):
            command("run", "s.yml", f"url={own}", "api_key_env=KEY", f"metrics_url={metrics}/metrics")
        command("run", "s.yml", f"url={own}", "api_key_env=KEY")

    shown = {(port, key) for port, path, key in asked if path == "/metrics"}
    ports = [int(url.rpartition(":")[2]) for url in (own, other)]
    assert shown == {(ports[0], "Bearer secret"), (ports[1], None)}


def test_a_server_that_stops_answering_has_rows_without_values():
    with Sampler(0.0, 30, {}) as sampler:
        with serving({"/metrics": exposition}) as url:
            sampler.watch("server_a", Source(metrics_urls=(f"{url}/metrics",)))
            sampler.mark()
        sampler.mark()
    rows = sampler.frame()
    rows = rows[rows["source"] == "metrics_a"]
    assert rows["requests_total"].tolist()[0] == 12
    assert rows["requests_total"].isna().tolist() == [False, True, True]
