"""What the server tells Prometheus: every name starts with ``qwen3_``, base units, bounded labels.

Series exist from the first scrape on, before the first request: an alert or an autoscaler that queries a
series that is not there yet sees nothing, and nothing looks like health. A label value that nobody
announced is counted as ``other``, so that no client can make series.
"""

from __future__ import annotations

import os
import shutil
import time
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_server import cgroup
from model_server.engine import Engine, EngineHealth
from model_server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

ENDPOINTS = ("inference", "classify", "chat_completions", "completions")
REJECTED = ("queue_full", "kv_pool", "rate_limit", "draining", "unavailable")
CANCELLED = ("client_gone", "timeout", "shutdown")
OTHER = "other"

# Edges follow what CPUs do with this model family, measured on 2 cores: a tiny classifier answers in 7 ms,
# Qwen3-0.6B INT4 prefills 111-435 tokens/s and decodes one stream at 14-43 tokens/s, 32 streams at 35-268
# tokens/s together. 1 s (the latency alert) and 60 s (the default request_timeout_s) are edges, so that the
# share on either side is exact and not interpolated.
DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1, 1.5, 3, 6, 12, 30, 60)
# 23 ms a token at one stream on AVX-512, 0.9 s at 32 streams on AVX2.
TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2)
QUEUE_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Chance among 12 categories is 0.083; thresholds for a human's look lie in the upper half.
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class _KnownLabels:
    """Label values outside ``known`` become ``other``; the known ones exist from the start."""

    known: Mapping[str, Iterable[str]]

    def labels(self, *values: Any, **named: Any) -> Self:
        named |= dict(zip(self._labelnames, values, strict=False))  # type: ignore[attr-defined]
        bounded = {label: str(value) if str(value) in self.known[label] else OTHER for label, value in named.items()}
        return super().labels(**bounded)  # type: ignore[misc, no-any-return]

    def expect(self, **known: Iterable[str]) -> Self:
        self.known = {label: frozenset(values) for label, values in known.items()}
        for values in product(*known.values()):
            self.labels(**dict(zip(known, values, strict=True)))
        return self


class _Counter(_KnownLabels, Counter):
    pass


class _Histogram(_KnownLabels, Histogram):
    pass


class Metrics:
    """All series of one server, in a registry of their own (tests and a reload make several)."""

    def __init__(self, *, memory_limit_bytes: int | None = None) -> None:
        """Args: memory_limit_bytes: What the deployment may use; a lower cgroup limit wins over it."""
        # The *_created twins of counters and histograms double the scrape and nothing here reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        statuses = {"200", *(str(status) for status in _error_statuses())}

        self.requests_total = _Counter(
            "qwen3_inference_requests_total",
            "Requests answered, by endpoint and HTTP status (499: the client left).",
            ("endpoint", "status"),
            registry=registry,
        ).expect(endpoint=ENDPOINTS, status=sorted(statuses))
        self.inference_duration_seconds = _Histogram(
            "qwen3_inference_duration_seconds",
            "Seconds from the request's arrival to the last byte of a successful answer.",
            ("endpoint",),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        ).expect(endpoint=ENDPOINTS)
        self.active_connections = Gauge(
            "qwen3_active_connections",
            "Requests accepted and not yet answered to the end, streams included; 0 means drained.",
            registry=registry,
        )
        self.time_to_first_token_seconds = Histogram(
            "qwen3_time_to_first_token_seconds",
            "Seconds from the request's arrival to its first token.",
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.time_per_output_token_seconds = Histogram(
            "qwen3_time_per_output_token_seconds",
            "Mean seconds between the tokens of one request after its first; one observation a request.",
            buckets=TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.queue_wait_seconds = Histogram(
            "qwen3_queue_wait_seconds",
            "Seconds between admission to the queue and the hand-over to the engine.",
            buckets=QUEUE_BUCKETS_S,
            registry=registry,
        )
        self.prompt_tokens_total = Counter(
            "qwen3_prompt_tokens_total", "Tokens of prompts that were computed.", registry=registry
        )
        self.generated_tokens_total = Counter(
            "qwen3_generated_tokens_total", "Tokens that the engine produced.", registry=registry
        )
        self.queue_depth = Gauge("qwen3_queue_depth", "Requests waiting for a slot.", registry=registry)
        self.queue_capacity = Gauge(
            "qwen3_queue_capacity", "Requests that may wait; one more is turned away.", registry=registry
        )
        self.running = Gauge("qwen3_running", "Requests that hold a slot of the engine.", registry=registry)
        self.rejected_total = _Counter(
            "qwen3_rejected_total", "Requests turned away before any work.", ("reason",), registry=registry
        ).expect(reason=REJECTED)
        self.cancelled_total = _Counter(
            "qwen3_cancelled_total",
            "Requests stopped before their last token.",
            ("reason",),
            registry=registry,
        ).expect(reason=CANCELLED)
        self.cancelled_tokens_saved_total = Counter(
            "qwen3_cancelled_tokens_saved_total",
            "Tokens that cancelled requests had asked for (max_tokens) and that were not computed.",
            registry=registry,
        )
        self.classifications_total = _Counter(
            "qwen3_classifications_total",
            "Texts classified, by predicted category.",
            ("category",),
            registry=registry,
        ).expect(category=())
        self.classification_confidence = Histogram(
            "qwen3_classification_confidence",
            "Calibrated probability of the predicted category, 0 to 1.",
            buckets=CONFIDENCE_BUCKETS,
            registry=registry,
        )
        self.classification_reviews_total = Counter(
            "qwen3_classification_reviews_total",
            "Classifications under the model's threshold, marked needs_review.",
            registry=registry,
        )
        self.expected_category_ratio = Gauge(
            "qwen3_expected_category_ratio",
            "Share of its test calls that the model put into the category, 0 to 1; none where it was not measured.",
            ("category",),
            registry=registry,
        )
        self.expected_confidence = Gauge(
            "qwen3_expected_confidence",
            "Mean confidence of the model on its test calls, 0 to 1; none where it was not measured.",
            (),
            registry=None,
        )
        self.log_records_dropped_total = Counter(
            "qwen3_log_records_dropped_total", "Log records that could not be written.", registry=registry
        )
        self._model = Info("qwen3_model", "The model that answers.", registry=registry)
        self._engine = _EngineCollector(memory_limit(memory_limit_bytes))
        registry.register(self._engine)

    def watch_engine(self, engine: Engine) -> None:
        """Read ``engine.health()`` at each scrape from now on; a second engine takes its place."""
        self._engine.engine = engine

    def describe_model(self, *, name: str, version: str, engine: str, bits: int | None) -> None:
        """Say what answers, as the labels of ``qwen3_model_info``; ``bits`` None: unknown."""
        self._model.info({"name": name, "version": version, "engine": engine, "bits": str(bits or "unknown")})

    def expect_categories(self, categories: Iterable[str]) -> None:
        """Announce the categories of the loaded classifier; any other is counted as ``other``."""
        self.classifications_total.expect(category=tuple(categories))

    def expect_answers(self, confidence: float, categories: Mapping[str, float]) -> None:
        """Say what the loaded classifier answered on its test calls: mean confidence, and share of each category."""
        for category, share in categories.items():
            self.expected_category_ratio.labels(category=category).set(share)
        self.expected_confidence.set(confidence)
        self.registry.register(self.expected_confidence)

    def watch_disks(self, directories: Mapping[str, Path]) -> None:
        """Read at each scrape what is left on the file systems of these: ``models`` and ``logs``."""
        self.registry.register(_DiskCollector(directories))

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _EngineCollector(Collector):
    """The engine and the memory, read when Prometheus asks."""

    def __init__(self, limit_bytes: int) -> None:
        self.engine: Engine | None = None
        self._limit_bytes = limit_bytes
        self._server = psutil.Process()
        self._engine_process: psutil.Process | None = None
        # Taken once: psutil derives it from the boot time, which moves when the clock is set.
        self._started = time.time()

    def collect(self) -> Iterable[Metric]:
        health = EngineHealth("starting") if self.engine is None else self.engine.health()
        yield _gauge("qwen3_engine_up", "1 while the engine answers and makes progress.", health.state == "ready")
        yield _gauge("qwen3_batch_size", "Requests that the engine computes together.", health.running)
        yield _gauge("qwen3_engine_waiting", "Requests handed to the engine that wait for its batch.", health.waiting)
        yield _gauge("qwen3_cache_usage_ratio", "Share of the KV pool in use, 0 to 1.", health.cache_use)
        yield _gauge(
            "qwen3_engine_since_progress_seconds",
            "Seconds since the engine's last step, or since it was last idle.",
            health.since_progress_s,
        )
        yield CounterMetricFamily(
            "qwen3_engine_restarts_total",
            "Times a dead or stalled engine was replaced.",
            value=health.restarts,
        )
        yield _gauge("qwen3_start_time_seconds", "When the server started, Unix time.", self._started)

        resident, cpu = self._usage(health.pid)
        yield _gauge(
            "qwen3_model_memory_usage_bytes",
            "Resident memory of everything that serves the model on this machine.",
            sum(resident.values()),
        )
        yield _gauge("qwen3_memory_limit_bytes", "What it may use before it is killed.", self._limit_bytes)
        by_process = GaugeMetricFamily(
            "qwen3_resident_memory_bytes", "Resident memory of each process.", labels=("process",)
        )
        cpu_by_process = CounterMetricFamily(
            "qwen3_cpu_seconds_total", "CPU time of each process, user and system.", labels=("process",)
        )
        for process in ("server", "engine"):
            by_process.add_metric((process,), resident.get(process, 0))
            cpu_by_process.add_metric((process,), cpu.get(process, 0))
        yield by_process
        yield cpu_by_process

        group = cgroup.locate()
        throttling = group.throttling()
        quota = group.cpu_quota_cores()
        yield _gauge(
            "qwen3_cpu_limit_cores", "CPU that it may use: its quota, or all cores.", quota or os.cpu_count() or 1
        )
        # 0 of 0 where nothing can be throttled.
        yield CounterMetricFamily(
            "qwen3_cpu_periods_total",
            "Scheduling periods in which the control group had something to run.",
            value=0 if throttling is None else throttling.nr_periods,
        )
        yield CounterMetricFamily(
            "qwen3_cpu_throttled_periods_total",
            "Those in which its quota was used up and all its threads were stopped.",
            value=0 if throttling is None else throttling.nr_throttled,
        )

    def _usage(self, engine_pid: int | None) -> tuple[dict[str, int], dict[str, float]]:
        """Resident bytes and CPU seconds; an engine without a local process has none."""
        processes = {"server": self._server}
        if engine_pid is not None and engine_pid != self._server.pid:
            try:
                if self._engine_process is None or self._engine_process.pid != engine_pid:
                    self._engine_process = psutil.Process(engine_pid)
                processes["engine"] = self._engine_process
            except psutil.NoSuchProcess:
                self._engine_process = None
        resident: dict[str, int] = {}
        cpu: dict[str, float] = {}
        for name, process in processes.items():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    resident[name], cpu[name] = process.memory_info().rss, times.user + times.system
            except psutil.NoSuchProcess:
                continue  # it died between health() and now; the engine's supervisor deals with that
        return resident, cpu


class _DiskCollector(Collector):
    """File systems, asked when Prometheus asks."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def collect(self) -> Iterable[Metric]:
        size = GaugeMetricFamily(
            "qwen3_disk_size_bytes", "Size of the file system that holds the directory.", labels=("directory",)
        )
        free = GaugeMetricFamily(
            "qwen3_disk_free_bytes", "What the server may still write there.", labels=("directory",)
        )
        for name, path in self._directories.items():
            try:
                usage = shutil.disk_usage(path)
            except OSError:
                continue  # gone for now, such as a mount: no value rather than a wrong one
            size.add_metric((name,), usage.total)
            free.add_metric((name,), usage.free)
        yield size
        yield free


def memory_limit(configured_bytes: int | None) -> int:
    """Bytes at which it is ended: the least of RAM, the cgroup's limit and ``configured_bytes``."""
    limits = (psutil.virtual_memory().total, cgroup.locate().memory_limit_bytes(), configured_bytes)
    return min(limit for limit in limits if limit is not None)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _error_statuses() -> set[int]:
    return {error.status for error in RequestError.__subclasses__()}
