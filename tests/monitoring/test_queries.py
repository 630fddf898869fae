"""Queries are true: real servers under load and in trouble, the real Prometheus, and every PromQL that we ship.

Names exist, labels match, results are not empty, signals rise and fall. A dashboard that is added to
monitoring/dashboards is judged like all else; a metric that is new to it is classified below.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from queries import Query, Run, everywhere, of_dashboards, plain, problems

from monitoring.faults import hang_engine, other_calls
from monitoring.watched_site import PROGRAMS, Load, chat, watched_site

pytestmark = [
    pytest.mark.promtool,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in PROGRAMS), reason=f"needs {' and '.join(PROGRAMS)} beside promtool"
    ),
]

MOVING = frozenset(
    f"qwen3_{name}"
    for name in (
        "active_connections",
        "cancelled_total",
        "classification_confidence_bucket",
        "classification_confidence_count",
        "classification_confidence_sum",
        "classification_reviews_total",
        "classifications_total",
        "cpu_seconds_total",
        "engine_restarts_total",
        "engine_since_progress_seconds",
        "engine_up",
        "generated_tokens_total",
        "inference_duration_seconds_bucket",
        "inference_duration_seconds_count",
        "inference_duration_seconds_sum",
        "inference_requests_total",
        "prompt_tokens_total",
        "queue_depth",
        "queue_wait_seconds_bucket",
        "queue_wait_seconds_count",
        "queue_wait_seconds_sum",
        "rejected_total",
        "running",
        "time_per_output_token_seconds_bucket",
        "time_per_output_token_seconds_count",
        "time_per_output_token_seconds_sum",
        "time_to_first_token_seconds_bucket",
        "time_to_first_token_seconds_count",
        "time_to_first_token_seconds_sum",
    )
)
STEADY = {
    "qwen3_batch_size": "at once what the engine computes: often 0 when it is asked",
    "qwen3_cache_usage_ratio": "the same",
    "qwen3_cancelled_tokens_saved_total": "only where clients leave",
    "qwen3_disk_free_bytes": "of the machine",
    "qwen3_disk_size_bytes": "of the machine",
    "qwen3_engine_waiting": "admission hands over no more than the engine takes",
    "qwen3_expected_category_ratio": "of the model",
    "qwen3_expected_confidence": "of the model",
    "qwen3_log_records_dropped_total": "only on a full disk",
    "qwen3_memory_limit_bytes": "of the deployment",
    "qwen3_model_info": "of the model",
    "qwen3_model_memory_usage_bytes": "rises once and stays",
    "qwen3_queue_capacity": "of the deployment",
    "qwen3_resident_memory_bytes": "rises once and stays",
    "qwen3_start_time_seconds": "of the process",
    "qwen3_cpu_limit_cores": "of the deployment",
    "qwen3_cpu_periods_total": "only in a control group with a quota",
    "qwen3_cpu_throttled_periods_total": "the same",
    "ALERTS": "which ones, is what test_faults.py and test_verdicts.py say",
    "up": "nothing goes away in this run",
}
# What the exporter says of a host, for the names; the real one is asked in tests/playbooks/test_monitoring.py.
NODE = b"""# TYPE node_systemd_service_restart_total counter
node_systemd_service_restart_total{name="qwen3@1.service",state=""} 0
node_uname_info{machine="x86_64",nodename="web1",sysname="Linux"} 1
node_cpu_seconds_total{cpu="0",mode="idle"} 100
node_cpu_seconds_total{cpu="0",mode="steal"} 1
node_load1 0.5
node_memory_MemAvailable_bytes 4e+09
node_memory_MemTotal_bytes 8e+09
node_filesystem_avail_bytes{device="/dev/vda1",fstype="ext4",mountpoint="/"} 4e+10
node_filesystem_size_bytes{device="/dev/vda1",fstype="ext4",mountpoint="/"} 8e+10
node_disk_io_time_seconds_total{device="vda"} 10
node_network_receive_bytes_total{device="eth0"} 1e+06
node_network_transmit_bytes_total{device="eth0"} 1e+06
node_pressure_cpu_waiting_seconds_total 10
node_pressure_memory_waiting_seconds_total 1
node_pressure_io_waiting_seconds_total 2
"""
OF_THE_HOST = [line.split(b"{")[0].split()[0].decode() for line in NODE.splitlines() if not line.startswith(b"#")]


@pytest.fixture(scope="module")
def exporter():
    class Scrape(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(NODE)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Scrape) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory, exporter):
    """Idle, then chats and classifications beyond what the queue holds, then an engine that hangs, then idle again."""
    folder = tmp_path_factory.mktemp("site")
    words = (
        f"serving.log_dir={folder}/logs",
        "optimization_settings.max_batch_size=2",
        "serving.max_queue=8",
        "serving.request_timeout_s=3",
        "serving.drain_s=8",
    )
    of_the_role = {"host": "web1", "environment": "test"}
    node = {"job_name": "qwen3-inference-node", "static_configs": [{"targets": [exporter], "labels": of_the_role}]}
    labels = {"namespace": "qwen3", "pod": "web1-0", "environment": "test", "track": "stable"}
    with watched_site(folder, 30, {"web1": words, "web2": words}, scrapes=[node], labels=labels) as site:
        time.sleep(8)
        worked = time.time()
        with Load(site.servers[0].url, 60, chat), other_calls(site):
            time.sleep(15)
            with hang_engine(site):
                time.sleep(12)
        rested = time.time()
        time.sleep(16)
        steady = STEADY | dict.fromkeys(OF_THE_HOST, "of a host that is not here")
        yield Run(site, worked - 6, worked, rested, time.time(), MOVING, steady)


def test_every_query_is_promql_to_promtool(tmp_path):
    queries = list(everywhere())
    assert {query.source for query in queries} >= {"prometheus_adapter.yml", "monitoring/runbooks/high_latency.md"}
    rules = [{"record": f"query_{index}", "expr": plain(query.text)} for index, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
    assert len(queries) > 80


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_query_has_names_labels_and_values_and_moves(run):
    wrong = {str(query): found for query in everywhere() if (found := problems(query, run))}

    assert wrong == {}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sum(rate(qwen3_inference_requests_total[5m])", "is no PromQL"),
        ("qwen3_queue_lenght", "nothing is qwen3_queue_lenght"),
        (
            'sum(rate(qwen3_inference_requests_total{code=~"5.."}[5m]))',
            "nothing is qwen3_inference_requests_total{code",
        ),
        ('qwen3_running{model="qwen3-0.6b"}', "nothing is qwen3_running{model"),
        ("sum by (model) (rate(qwen3_generated_tokens_total[5m]))", "no series has the label model"),
        ("qwen3_queue_depth / on (pod_name) qwen3_queue_capacity", "no series has the label pod_name"),
        ("rate(qwen3_inference_requests_total[5m]) / qwen3_queue_capacity", "is empty"),
        ("histogram_quantile(0.95, sum by (job) (rate(qwen3_queue_wait_seconds_bucket[5m])))", "is empty"),
        ("sum(qwen3_generated_tokens_total)", "does not fall"),
        ("avg(qwen3_time_to_first_token_seconds_sum) / avg(qwen3_time_to_first_token_seconds_count)", "does not fall"),
        ("0 * sum(qwen3_running)", "does not rise"),
        ("sum(qwen3_running > 1000)", "is empty"),
        ("sum(rate(scrape_samples_scraped[5m]))", "say whether load moves it"),
    ],
)
def test_a_wrong_query_is_caught(run, text, found):
    said = problems(Query("planted", text), run)

    assert said
    assert found in said[0].replace(" ", " ")


def test_queries_of_a_dashboard_are_found_wherever_they_hide(tmp_path):
    """In panels, in panels of a row, in variables."""
    panel = {"targets": [{"expr": 'rate(qwen3_running{instance=~"$instance"}[$__rate_interval])'}]}
    variable = {"type": "query", "query": {"query": "label_values(qwen3_engine_up, instance)"}}
    content = {
        "panels": [panel, {"type": "row", "panels": [{"targets": [{"expr": "up"}]}]}],
        "templating": {"list": [variable, {"type": "datasource", "query": "prometheus"}]},
    }
    (tmp_path / "one.json").write_text(json.dumps(content), encoding="utf-8")

    assert [plain(query.text) for query in of_dashboards(tmp_path)] == [
        'rate(qwen3_running{instance=~".*"}[5m])',
        "up",
        "count by (instance) (qwen3_engine_up)",
    ]
