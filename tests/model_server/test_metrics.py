from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server import metrics as module
from model_server.engine import EngineHealth
from model_server.metrics import Metrics


class Engine:
    """Only what a scrape reads."""

    def __init__(self, health: EngineHealth) -> None:
        self.state = health

    def health(self) -> EngineHealth:
        return self.state


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read back with the Prometheus project's own parser."""
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return scrape(metrics)[name, frozenset(labels.items())]


def test_the_four_original_names_are_there_before_the_first_request():
    names = {name for name, _ in scrape(Metrics())}

    assert {
        "qwen3_inference_requests_total",
        "qwen3_inference_duration_seconds_bucket",
        "qwen3_inference_duration_seconds_count",
        "qwen3_inference_duration_seconds_sum",
        "qwen3_model_memory_usage_bytes",
        "qwen3_active_connections",
    } <= names


def test_a_first_failure_raises_a_counter_that_was_scraped_before():
    """A series that appears with its first increment has no rate: the first error would go unseen."""
    metrics = Metrics()
    before = scrape(metrics)

    for endpoint in ("inference", "classify", "chat_completions", "completions"):
        for status in ("200", "400", "401", "404", "413", "429", "499", "500", "503", "504"):
            labels = frozenset({("endpoint", endpoint), ("status", status)})
            assert before["qwen3_inference_requests_total", labels] == 0
            metrics.requests_total.labels(endpoint=endpoint, status=int(status)).inc()
            assert scrape(metrics)["qwen3_inference_requests_total", labels] == 1
    assert scrape(metrics).keys() == before.keys()


def test_every_name_has_the_prefix_and_a_base_unit():
    for name, _ in scrape(Metrics()):
        assert name.startswith("qwen3_")
        assert not name.endswith(("_ms", "_milliseconds", "_mb", "_percent", "_created"))


def test_clients_cannot_make_series():
    metrics = Metrics()
    metrics.expect_categories(["退费", "物流"])
    for i in range(1000):
        metrics.requests_total.labels(endpoint=f"/no/such/{i}", status=str(600 + i)).inc()
        metrics.rejected_total.labels(reason=f"reason {i}").inc()
        metrics.classifications_total.labels(category=f"category {i}").inc()

    assert value(metrics, "qwen3_inference_requests_total", endpoint="other", status="other") == 1000
    assert value(metrics, "qwen3_rejected_total", reason="other") == 1000
    assert value(metrics, "qwen3_classifications_total", category="other") == 1000
    assert value(metrics, "qwen3_classifications_total", category="退费") == 0
    assert len(scrape(metrics)) < 400


def test_labels_may_be_given_in_order_too():
    metrics = Metrics()
    metrics.requests_total.labels("classify", 200).inc()

    assert value(metrics, "qwen3_inference_requests_total", endpoint="classify", status="200") == 1


def test_one_second_and_one_minute_are_edges_of_the_latency_histogram():
    """The latency alert's threshold and the default time limit of a request."""
    metrics = Metrics()
    for seconds in (0.7, 1.0, 1.3, 59.0, 61.0):
        metrics.inference_duration_seconds.labels(endpoint="inference").observe(seconds)

    name = "qwen3_inference_duration_seconds_bucket"
    assert value(metrics, name, endpoint="inference", le="1.0") == 2
    assert value(metrics, name, endpoint="inference", le="60.0") == 4
    assert value(metrics, name, endpoint="inference", le="+Inf") == 5


def test_a_scrape_shows_the_engine_as_it_is_at_that_moment():
    metrics = Metrics()
    assert value(metrics, "qwen3_engine_up") == 0
    engine = Engine(EngineHealth("ready", running=3, waiting=2, cache_use=0.25, restarts=1, since_progress_s=0.5))
    metrics.watch_engine(engine)

    assert value(metrics, "qwen3_engine_up") == 1
    assert value(metrics, "qwen3_batch_size") == 3
    assert value(metrics, "qwen3_engine_waiting") == 2
    assert value(metrics, "qwen3_cache_usage_ratio") == 0.25
    assert value(metrics, "qwen3_engine_restarts_total") == 1
    assert value(metrics, "qwen3_engine_since_progress_seconds") == 0.5

    engine.state = EngineHealth("stalled")
    assert value(metrics, "qwen3_engine_up") == 0


def test_a_second_engine_takes_the_place_of_the_first():
    metrics = Metrics()
    metrics.watch_engine(Engine(EngineHealth("dead", running=9)))
    metrics.watch_engine(Engine(EngineHealth("ready", running=1)))

    assert value(metrics, "qwen3_batch_size") == 1


def test_memory_is_that_of_the_server_and_of_the_engine_process():
    """A child that holds 64 MiB stands for the engine; the expected figures come from the kernel."""
    code = "block = bytearray(64 << 20); block[::4096] = b'x' * len(block[::4096]); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        metrics = Metrics()
        metrics.watch_engine(Engine(EngineHealth("ready", pid=child.pid)))
        engine_bytes = value(metrics, "qwen3_resident_memory_bytes", process="engine")
        server_bytes = value(metrics, "qwen3_resident_memory_bytes", process="server")
        total = value(metrics, "qwen3_model_memory_usage_bytes")
        child.communicate("")

    assert 64 << 20 < engine_bytes < 128 << 20
    assert server_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert total == pytest.approx(engine_bytes + server_bytes, rel=0.05)

    # The process is gone, health() does not know yet: the scrape goes on.
    assert value(metrics, "qwen3_resident_memory_bytes", process="engine") == 0
    assert value(metrics, "qwen3_model_memory_usage_bytes") > 0


def test_an_engine_in_the_servers_own_process_is_counted_once():
    metrics = Metrics()
    metrics.watch_engine(Engine(EngineHealth("ready", pid=os.getpid())))

    assert value(metrics, "qwen3_resident_memory_bytes", process="engine") == 0


def test_the_least_memory_limit_wins():
    ram = psutil.virtual_memory().total

    assert module.memory_limit(123) == 123
    assert module.memory_limit(2**60) <= ram
    assert value(Metrics(memory_limit_bytes=456), "qwen3_memory_limit_bytes") == 456


def test_the_model_is_described_and_described_anew_after_a_fallback():
    metrics = Metrics()
    metrics.describe_model(name="qwen3-0.6b", version="1", engine="openvino", bits=4)
    metrics.describe_model(name="qwen3-0.6b", version="1", engine="openvino", bits=None)

    rows = [dict(labels) for name, labels in scrape(metrics) if name == "qwen3_model_info"]
    assert rows == [{"name": "qwen3-0.6b", "version": "1", "engine": "openvino", "bits": "unknown"}]


def test_two_servers_in_one_process_do_not_share_counts():
    first, second = Metrics(), Metrics()
    first.generated_tokens_total.inc(5)

    assert value(second, "qwen3_generated_tokens_total") == 0


@pytest.mark.promtool
def test_promtool_finds_nothing_to_improve_in_the_exposition():
    """It checks names and units against Prometheus' conventions."""
    metrics = Metrics()
    metrics.describe_model(name="qwen3-0.6b", version="1", engine="openvino", bits=4)
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.render()[0], capture_output=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_what_the_model_is_expected_to_answer_is_there_when_it_was_measured_and_only_then():
    metrics = Metrics()
    assert not {name for name, _ in scrape(metrics) if "expected" in name}

    metrics.expect_answers(0.9, {"退费": 0.25, "物流": 0.75})
    assert value(metrics, "qwen3_expected_confidence") == 0.9
    assert value(metrics, "qwen3_expected_category_ratio", category="物流") == 0.75


def test_disks_are_those_of_the_directories_and_one_that_is_gone_has_no_value(tmp_path):
    """Expected figures come from df."""
    metrics = Metrics()
    metrics.watch_disks({"models": tmp_path, "logs": tmp_path / "gone"})

    df = subprocess.run(
        ["df", "-B1", "--output=size,avail", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    size, free = map(int, df.splitlines()[1].split())
    assert value(metrics, "qwen3_disk_size_bytes", directory="models") == size
    assert value(metrics, "qwen3_disk_free_bytes", directory="models") == pytest.approx(free, rel=0.05)
    assert not [labels for _, labels in scrape(metrics) if ("directory", "logs") in labels]
