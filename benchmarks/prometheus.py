"""What a server says about itself on ``/metrics``, read with the official parser of the text format.

Labels are summed: a benchmark asks how many requests the server counted, not by which replica or status.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import fetch
from benchmarks.errors import EndpointError

TIMEOUT_S = 2.0

# Column of samples.parquet -> what servers call it: our own, vLLM, SGLang, llama.cpp, LMDeploy, TGI.
KNOWN: dict[str, tuple[str, ...]] = {
    "requests_total": (
        "qwen3_inference_requests_total",
        "vllm:request_success_total",
        "sglang:num_requests_total",
        "tgi_request_count",
    ),
    "output_tokens_total": (
        "qwen3_generated_tokens_total",
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
        "lmdeploy:generation_tokens_total",
    ),
    "prompt_tokens_total": (
        "qwen3_prompt_tokens_total",
        "vllm:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "llamacpp:prompt_tokens_total",
        "lmdeploy:prompt_tokens_total",
    ),
    "queue_depth": (
        "qwen3_queue_depth",
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "llamacpp:requests_deferred",
        "lmdeploy:num_requests_waiting",
        "tgi_queue_size",
    ),
    "running": (
        "qwen3_running",
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "llamacpp:requests_processing",
        "lmdeploy:num_requests_running",
        "tgi_batch_current_size",
    ),
    "memory_bytes": ("qwen3_model_memory_usage_bytes", "process_resident_memory_bytes"),
    "cpu_s": ("qwen3_cpu_seconds_total", "process_cpu_seconds_total"),
    "open_files": ("process_open_fds",),
}


@dataclass(frozen=True, slots=True)
class Scrape:
    """Values by name, labels summed. A histogram is its ``_sum`` and ``_count``, which are counters."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def known(self) -> dict[str, float]:
        """What is there of :data:`KNOWN`, by its column."""
        values = self.gauges | self.counters
        found = ((column, next((name for name in names if name in values), None)) for column, names in KNOWN.items())
        return {column: values[name] for column, name in found if name is not None}


def scrape(url: str, api_key_env: str | None = None) -> Scrape:
    """Read ``url``.

    Raises:
        EndpointError: It does not answer with status 200 in the text format of Prometheus.
    """
    body = b""
    try:
        body = fetch.get(url, api_key_env=api_key_env, accept="text/plain;version=0.0.4", timeout_s=TIMEOUT_S)
        return parse(body.decode("utf-8"))
    except (OSError, ValueError) as error:
        begins = repr(body[:40].decode("utf-8", "replace"))
        got = str(error) if isinstance(error, OSError) else f"the answer begins with {begins}" if body else "nothing"
        raise EndpointError(url, f"no Prometheus metrics there (got: {got})") from error


def parse(text: str) -> Scrape:
    """The values in ``text``.

    Raises:
        ValueError: Not the text format, or nothing in it.
    """
    counters: dict[str, float] = {}
    gauges: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if family.type not in {"counter", "gauge", "histogram", "summary", "unknown"}:
            continue
        for sample in family.samples:
            if _left_out(sample.name, sample.labels) or not math.isfinite(sample.value):
                continue
            # A server that names no types (unknown) follows the naming rules all the same.
            counted = family.type == "counter" or sample.name.endswith(("_total", "_sum", "_count"))
            into = counters if counted else gauges
            into[sample.name] = into.get(sample.name, 0.0) + sample.value
    if not counters and not gauges:
        raise ValueError("no values")
    return Scrape(counters, gauges)


def metrics_urls(url: str) -> list[str]:
    """Where the metrics of the server at ``url`` usually are."""
    parts = urlsplit(url)
    beside, at_root = f"{url.rstrip('/')}/metrics", f"{parts.scheme}://{parts.netloc}/metrics"
    return list(dict.fromkeys((beside, at_root)))


def first_that_answers(urls: Iterable[str], api_key_env: str | None = None) -> str | None:
    """The first of ``urls`` that has metrics; None when none has."""
    for url in urls:
        try:
            scrape(url, api_key_env)
        except EndpointError:
            continue
        return url
    return None


def _left_out(name: str, labels: dict[str, str]) -> bool:
    """Parts of a distribution, and the moments at which counters began."""
    return name.endswith(("_bucket", "_created")) or "quantile" in labels
