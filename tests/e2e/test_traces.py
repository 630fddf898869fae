"""One request's way by its spans and log lines: load generator, HAProxy, server, engine process, and a collector."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import jinja2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_collector import attributes

from benchmarks import measure, results
from benchmarks.config import Scenario
from benchmarks.figures.processes import serving
from benchmarks.figures.workload import TINY, environment
from benchmarks.progress import Display

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "playbooks/roles/haproxy/templates/haproxy.cfg.j2"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def syslog():
    """Where HAProxy's lines arrive, and those that have."""
    lines = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.1)
        over = threading.Event()

        def receive():
            while not over.is_set():
                try:
                    lines.append(receiver.recv(65536).decode())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=receive)
        thread.start()
        yield receiver.getsockname()[1], lines
        over.set()
        thread.join()


def haproxy_configuration(server_port, port, syslog_port):
    """The role's own template; only where it logs to and what takes root to start is another."""
    values = {
        "ansible_managed": "test",
        "__haproxy_digest": "test",
        "haproxy_max_connections": 100,
        "haproxy_certificate": "",
        "haproxy_listen": "127.0.0.1",
        "haproxy_port": port,
        "haproxy_metrics_listen": "127.0.0.1",
        "haproxy_metrics_port": free_port(),
        "haproxy_instances": [{"name": "web1-1", "address": "127.0.0.1", "port": server_port}],
        "haproxy_timings": {
            "haproxy_client_s": 70,
            "haproxy_server_s": 65,
            "balancer": {"path": "/ready", "timeout_s": 2, "period_s": 1, "failure_threshold": 3},
        },
    }
    text = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True).render(values)
    text, replaced = re.subn(r"log /dev/log local0", f"log 127.0.0.1:{syslog_port} local0", text)
    assert replaced == 1
    return re.sub(r"(?m)^    (user|group|chroot|stats socket) .*\n", "", text) + "\n"


@pytest.fixture
def balanced(tmp_path, syslog):
    """Starts the role's HAProxy before a server; returns its URL."""
    port = free_port()
    started = []

    def start(server_port):
        path = tmp_path / "haproxy.cfg"
        path.write_text(haproxy_configuration(server_port, port, syslog[0]), encoding="utf-8")
        with (tmp_path / "haproxy.log").open("wb") as log:
            started.append(subprocess.Popen([HAPROXY, "-db", "-f", path], stdout=log, stderr=log))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert started[0].poll() is None, (tmp_path / "haproxy.log").read_text()
                time.sleep(0.05)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait()


def run(url, collector, out, dialect, **more):
    scenario = Scenario(
        dialect=dialect,
        texts=("宽带断了三天没人修", "多收了我五块钱"),
        url=url,
        users=2,
        requests=6,
        max_tokens=12,
        trace=True,
        otlp_endpoint=collector.url,
        trace_url="http://traces.example/{trace_id}?a&b",
        out=out,
        **more,
    )
    return measure.run(scenario, Display(quiet=True))


def lines_of(collector):
    return [attributes(line) | {"event": line.body.string_value, "trace": line.trace_id} for line in collector.records]


@pytest.mark.skipif(HAPROXY is None, reason="no haproxy on PATH: apt-get install haproxy")
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("dialect", "stages"),
    [("chat_stream", ["receive", "queue", "prefill", "decode", "send"]), ("classify", ["receive", "queue", "prefill"])],
)
def test_one_request_is_found_everywhere_by_its_trace(tmp_path, collector, syslog, balanced, dialect, stages):
    path = environment(tmp_path, TINY, cpu_cores=1, memory_gb=2)
    with serving(path, [f"serving.otlp_endpoint={collector.url}"], tmp_path / "server.log") as server:
        pids = [process.pid for process in server.processes()]
        code, summary = run(balanced(server.port), collector, tmp_path / "run", dialect)
    assert (code, summary["spans_sent"]) == (0, 6 + 1)  # the probe's too

    records = results.load(tmp_path / "run")
    for row in records.to_dict("records"):
        trace = row["trace_id"]
        spans = {span.name: span for span in collector.spans if span.trace_id.hex() == trace}
        client = spans.pop(next(name for name in spans if name.startswith("POST /")))
        request = spans.pop("request")
        assert set(spans) == set(stages)
        assert (client.parent_span_id, request.parent_span_id) == (b"", client.span_id)
        assert (client.kind, request.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
        assert {span.parent_span_id for span in spans.values()} == {request.span_id}

        # One behind the other, within the request, within what the client saw. One clock for all.
        order = [client.start_time_unix_nano, request.start_time_unix_nano]
        for stage in stages:
            order += [spans[stage].start_time_unix_nano, spans[stage].end_time_unix_nano]
        order += [request.end_time_unix_nano]
        assert all(later - earlier > -2e6 for earlier, later in pairwise(order)), (stages, order)

        about = attributes(request)
        assert about["gen_ai.request.model"] == "figures"
        assert about["gen_ai.usage.input_tokens"] == attributes(spans["prefill"])["tokens"] > 0
        assert about["queue_s"] >= 0
        # Measured in the engine's process and told over the wire.
        assert attributes(spans["prefill"])["pid"] == pids[1] != pids[0]
        if dialect == "chat_stream":
            assert about["gen_ai.usage.output_tokens"] == attributes(spans["decode"])["tokens"] == row["output_tokens"]
            assert attributes(client)["gen_ai.usage.output_tokens"] == row["output_tokens"]

        [line] = [line for line in lines_of(collector) if line["trace"].hex() == trace and line["event"] == "request"]
        balancer = [told for told in syslog[1] if f"{{{trace}}}" in told]
        assert len(balancer) == 1
        assert f"{{{line['request_id']}}}" in balancer[0]
        assert line["request_id"] == about["request_id"]

    report = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    slow = records[records["phase"] == "measure"].nlargest(1, "latency_scheduled_s")["trace_id"].item()
    assert f'<a href="http://traces.example/{slow}?a&amp;b" rel="noreferrer"><code>{slow}</code></a>' in report


@pytest.mark.timeout(120)
def test_a_failure_is_an_error_on_both_sides(tmp_path, collector):
    path = environment(tmp_path, TINY, cpu_cores=1, memory_gb=2)
    words = [f"serving.otlp_endpoint={collector.url}", "serving.max_body_bytes=1024"]
    with serving(path, words, tmp_path / "server.log") as server:
        scenario = Scenario(
            dialect="classify",
            texts=("短", "长" * 2000),
            url=server.url,
            users=1,
            requests=8,
            trace=True,
            otlp_endpoint=collector.url,
            out=tmp_path / "run",
        )
        measure.run(scenario, Display(quiet=True))

    failed = [span for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR]
    records = results.load(tmp_path / "run")
    traces = set(records.loc[records["error"].notna(), "trace_id"])
    assert traces
    assert {span.trace_id.hex() for span in failed} == traces
    for trace in traces:
        codes = {span.name: attributes(span)["error.type"] for span in failed if span.trace_id.hex() == trace}
        assert codes == {
            "POST /api/v1/classify": "http_status",
            "request": "payload_too_large",
            "receive": "payload_too_large",
        }


@pytest.mark.timeout(120)
def test_a_line_of_the_log_is_found_at_the_collector_by_its_request_id(tmp_path, collector):
    path = environment(tmp_path, TINY, cpu_cores=1, memory_gb=2)
    words = [f"serving.otlp_endpoint={collector.url}", f"serving.log_dir={tmp_path / 'logs'}"]
    with serving(path, words, tmp_path / "server.log") as server:
        run(server.url, collector, tmp_path / "run", "classify")

    written = [json.loads(line) for line in (tmp_path / "logs/server.jsonl").read_text(encoding="utf-8").splitlines()]
    own = {line["request_id"]: line for line in written if line["event"] == "request"}
    assert len(own) == 7
    sent = {line["request_id"]: line for line in lines_of(collector) if line["event"] == "request"}
    assert sent.keys() == own.keys()
    for request_id, line in own.items():
        assert sent[request_id]["status"] == line["status"] == 200
        assert sent[request_id]["latency_ms"] == line["latency_ms"]
        assert sent[request_id]["trace"].hex() == line["trace_id"]
