"""Spans and log lines as a collector receives them (tests/telemetry/otlp_collector.py)."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_collector import attributes

from model_server import logs, tracing

# The example of the W3C's recommendation, https://www.w3.org/TR/trace-context/#examples-of-http-traceparent-headers
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def test_a_request_arrives_at_the_collector_as_one_tree_under_the_callers_span(collector):
    tracing.configure(collector.url, "qwen3-inference", service_version="2026-11-01")
    request = tracing.start(tracing.REQUEST, tracing.from_headers({"traceparent": TRACEPARENT}), endpoint="inference")
    for stage in tracing.STAGES:
        tracing.start(stage, request, tokens=3, missing=None).end()
    request.end()
    tracing.shutdown(10)

    by_name = {span.name: span for span in collector.spans}
    assert by_name.keys() == {"request", "receive", "queue", "prefill", "decode", "send"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    root = by_name.pop("request")
    assert root.parent_span_id.hex() == PARENT
    assert root.kind == Span.SPAN_KIND_SERVER
    assert attributes(root) == {"endpoint": "inference"}
    for span in by_name.values():
        assert span.parent_span_id == root.span_id
        assert span.kind == Span.SPAN_KIND_INTERNAL
        assert attributes(span) == {"tokens": 3}
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "qwen3-inference"
    assert collector.resources[0]["service.version"] == "2026-11-01"


def test_a_request_without_a_caller_begins_a_trace_of_its_own(collector):
    tracing.configure(collector.url)
    for _ in range(2):
        tracing.start(tracing.REQUEST).end()
    tracing.shutdown(10)

    first, second = collector.spans
    assert first.parent_span_id == second.parent_span_id == b""
    assert first.trace_id != second.trace_id


def test_a_span_recorded_afterwards_has_the_times_it_really_had(collector):
    tracing.configure(collector.url)
    wall_ns = time.time_ns()
    began = time.monotonic()
    time.sleep(0.02)
    ended = time.monotonic()
    time.sleep(0.05)
    request = tracing.start("request")
    tracing.record("prefill", request, began, ended, prompt_tokens=7)
    tracing.shutdown(10)

    (span,) = collector.spans
    assert span.trace_id.hex() == tracing.ids(request)["trace_id"]
    assert span.parent_span_id.hex() == tracing.ids(request)["span_id"]
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx((ended - began) * 1e9, abs=1000)
    assert span.start_time_unix_nano == pytest.approx(wall_ns, abs=5e6)
    assert attributes(span) == {"prompt_tokens": 7}


def test_a_failed_span_carries_the_errors_code(collector):
    tracing.configure(collector.url)
    span = tracing.start("decode")
    tracing.fail(span, "engine_error")
    span.end()
    tracing.shutdown(10)

    (received,) = collector.spans
    assert (received.status.code, received.status.message) == (Status.STATUS_CODE_ERROR, "engine_error")


def test_the_context_handed_on_is_the_spans_own(collector):
    tracing.configure(collector.url)
    span = tracing.start("decode", tracing.from_headers({"traceparent": TRACEPARENT, "tracestate": "vendor=1"}))
    headers = tracing.to_headers(span)
    span.end()
    tracing.shutdown(10)

    (received,) = collector.spans
    assert headers == {"traceparent": f"00-{TRACE}-{received.span_id.hex()}-01", "tracestate": "vendor=1"}
    assert tracing.ids(span) == {"trace_id": TRACE, "span_id": received.span_id.hex()}


def test_what_the_caller_does_not_sample_is_not_sent(collector):
    tracing.configure(collector.url)
    tracing.start("request", tracing.from_headers({"traceparent": f"00-{TRACE}-{PARENT}-00"})).end()
    tracing.start("request").end()
    tracing.shutdown(10)

    assert len(collector.spans) == 1
    assert collector.spans[0].trace_id.hex() != TRACE


def test_log_lines_go_to_the_collector_with_their_trace(collector):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logs.configure("INFO", stream=io.StringIO(), handlers=tracing.configure(collector.url))
    try:
        span = tracing.start("request")
        with structlog.contextvars.bound_contextvars(request_id="r-1", **tracing.ids(span)):
            structlog.get_logger("server").warning("queue full", waiting=64, prompt="你好")
        logging.getLogger("opentelemetry.exporter").warning("cannot export")
        span.end()
        tracing.shutdown(10)
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)
        structlog.reset_defaults()

    (record,) = collector.records  # the exporter's own trouble is not exported
    (sent,) = collector.spans
    assert record.body.string_value == "queue full"
    assert (record.severity_text, record.severity_number) == ("WARNING", 13)
    assert (record.trace_id, record.span_id) == (sent.trace_id, sent.span_id)
    found = attributes(record)
    assert (found["request_id"], found["waiting"], found["prompt_length"]) == ("r-1", 64, 2)
    assert "prompt" not in found


def test_the_ratio_speaks_for_traces_that_begin_here_and_not_for_callers(collector):
    tracing.configure(collector.url, ratio=0)
    root = tracing.start("request")
    tracing.record("queue", root, 0.0, 1.0)
    root.end()
    tracing.start("request", tracing.from_headers({"traceparent": TRACEPARENT})).end()
    tracing.shutdown(10)

    assert [span.trace_id.hex() for span in collector.spans] == [TRACE]
    assert len(tracing.ids(root)["trace_id"]) == 32  # the log names it all the same


def test_of_traces_that_begin_here_so_many_a_second_are_recorded(collector):
    tracing.configure(collector.url, max_per_s=5)
    began = time.monotonic()
    for _ in range(200):
        tracing.start("request").end()
    seconds = time.monotonic() - began
    tracing.shutdown(10)

    assert 5 <= len(collector.spans) <= 5 + 5 * seconds + 1


def test_half_of_the_traces_are_half(collector):
    tracing.configure(collector.url, ratio=0.5)
    for _ in range(400):
        tracing.start("request").end()
    tracing.shutdown(10)

    assert 140 < len(collector.spans) < 260  # within 6 standard deviations


def test_what_is_known_late_is_described_and_none_is_left_out(collector):
    tracing.configure(collector.url)
    span = tracing.start("request")
    tracing.describe(span, {"gen_ai.usage.output_tokens": 7, "queue_s": None})
    tracing.record("decode", span, 1.0, 2.0, error="engine_error")
    span.end()
    tracing.shutdown(10)

    decode, request = collector.spans
    assert attributes(request) == {"gen_ai.usage.output_tokens": 7}
    assert decode.status.code == Status.STATUS_CODE_ERROR
    assert attributes(decode) == {"error.type": "engine_error"}


# Without an endpoint -------------------------------------------------------------------------------------


def test_without_an_endpoint_the_callers_context_passes_through_unchanged():
    assert tracing.configure(None) == []
    caller = tracing.from_headers({"traceparent": TRACEPARENT})
    span = tracing.start("request", caller, endpoint="inference")
    tracing.record("prefill", span, 0.0, 1.0)
    tracing.fail(span, "engine_error")
    span.end()

    assert tracing.to_headers(span) == {"traceparent": TRACEPARENT}
    assert tracing.ids(span) == {"trace_id": TRACE, "span_id": PARENT}


def test_without_an_endpoint_and_a_caller_there_is_no_trace():
    span = tracing.start("request", tracing.from_headers({}))
    span.end()

    assert tracing.ids(span) == tracing.ids(None) == {}
    assert tracing.to_headers(span) == tracing.to_headers(None) == {}


def test_without_an_endpoint_the_sdk_is_not_even_imported():
    code = (
        "import sys; from model_server import tracing; tracing.configure(None); tracing.start('request').end();"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_without_an_endpoint_a_span_costs_next_to_nothing(collector):
    """Against the same calls with an endpoint, in the same process, best of five."""

    def seconds(calls=2000):
        def once():
            began = time.perf_counter()
            for _ in range(calls):
                tracing.start("decode", None, tokens=3).end()
            return time.perf_counter() - began

        return min(once() for _ in range(5))

    off = seconds()
    tracing.configure(collector.url)
    on = seconds()
    tracing.shutdown(10)

    assert off < on / 10


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        "00-你-好-01",
    ],
)
def test_a_broken_traceparent_begins_no_trace_and_harms_nothing(header):
    assert tracing.from_headers({"traceparent": header}) is None


# A collector in trouble ----------------------------------------------------------------------------------


def test_a_collector_that_is_away_or_hangs_does_not_hold_up_the_exit():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as deaf:  # accepts and never reads
        code = (
            "import sys; from model_server import tracing; tracing.configure(sys.argv[1], timeout_s=60);"
            "[tracing.start('decode').end() for _ in range(3000)]; tracing.shutdown(0.5); print('done')"
        )
        for url in ("http://127.0.0.1:9", f"http://127.0.0.1:{deaf.server_port}"):
            done = subprocess.run(
                [sys.executable, "-c", code, url], capture_output=True, text=True, check=False, timeout=30
            )
            assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr
