"""Spans of a request: ``receive``, ``queue``, ``prefill``, ``decode`` and ``send`` under one ``request``.

Without an endpoint nothing is recorded and the SDK is not even imported; what a client sent as
``traceparent`` still goes into the log and on to a remote engine. Spans take their parent as an argument:
a stream outlives the task that began it, so an ambient "current span" would be the wrong one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry._logs import Logger

Attribute = str | float | None

REQUEST = "request"
STAGES = ("receive", "queue", "prefill", "decode", "send")

_W3C = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()

_tracer: Tracer | None = None
_stop: list[Callable[[], None]] = []


def configure(
    endpoint: str | None,
    service_name: str = "qwen3-inference",
    *,
    service_version: str = "",
    timeout_s: float = 5,
) -> list[logging.Handler]:
    """Send spans and log lines to the OTLP/HTTP collector at ``endpoint``; None sends nothing.

    Args:
        endpoint: Base URL, for example ``http://collector:4318``; ``/v1/traces`` and ``/v1/logs`` are added.
            Headers (a token) come from OTEL_EXPORTER_OTLP_HEADERS, more attributes of the service from
            OTEL_RESOURCE_ATTRIBUTES.
        timeout_s: For one export, in a thread of its own; what cannot be sent is dropped.

    Returns:
        Handlers for :func:`model_server.logs.configure`; none without an endpoint.
    """
    global _tracer
    shutdown()
    if endpoint is None:
        return []

    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    base = endpoint.rstrip("/")
    resource = Resource.create({"service.name": service_name, "service.version": service_version})
    spans = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{base}/v1/traces", timeout=timeout_s)))
    lines = LoggerProvider(resource=resource, shutdown_on_exit=False)
    lines.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{base}/v1/logs", timeout=timeout_s)))
    _stop[:] = [spans.shutdown, lines.shutdown]
    _tracer = spans.get_tracer("model_server")
    return [_OtlpLogs(lines.get_logger("model_server"))]


def shutdown(timeout_s: float = 2) -> None:
    """Send what is left, for at most ``timeout_s``: a collector that is away must not hold up an exit."""
    global _tracer
    _tracer = None
    threads = [threading.Thread(target=stop, daemon=True) for stop in _stop]
    _stop.clear()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def from_headers(headers: Mapping[str, str]) -> Span | None:
    """The caller's span by its ``traceparent`` (lower-case keys); None without one or with a broken one."""
    if "traceparent" not in headers:
        return None
    span = get_current_span(_W3C.extract(headers, context=_NO_CONTEXT))
    return span if span.get_span_context().is_valid else None


def to_headers(span: Span | None) -> dict[str, str]:
    """``traceparent`` (and ``tracestate``) for a call that goes on from here, or for the answer."""
    headers: dict[str, str] = {}
    if span is not None:
        _W3C.inject(headers, context=set_span_in_context(span, _NO_CONTEXT))
    return headers


def ids(span: Span | None) -> dict[str, str]:
    """``trace_id`` and ``span_id`` for ``structlog.contextvars.bind_contextvars``; nothing without a trace."""
    if span is None or not span.get_span_context().is_valid:
        return {}
    context = span.get_span_context()
    return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}


def start(name: str, parent: Span | None = None, **attributes: Attribute) -> Span:
    """A span from now until its ``end()``. Attributes that are None are left out.

    Without an endpoint this is ``parent`` itself or a span that does nothing, and ``end()`` does nothing.
    """
    if _tracer is None:
        return INVALID_SPAN if parent is None else parent
    return _span(_tracer, name, parent, attributes, None)


def record(name: str, parent: Span | None, began: float, ended: float, **attributes: Attribute) -> None:
    """A span that is known after the fact: prefill and decode are read off the arrival of tokens.

    Args:
        began: Seconds of ``time.monotonic()``, which is also the event loop's ``time()``.
        ended: The same.
    """
    if _tracer is None:
        return
    wall_ns, now = time.time_ns(), time.monotonic()
    span = _span(_tracer, name, parent, attributes, wall_ns - int((now - began) * 1e9))
    span.end(wall_ns - int((now - ended) * 1e9))


def fail(span: Span, code: str) -> None:
    """Mark the span as failed with an error's ``code``, never with its message: that may quote the client."""
    span.set_status(Status(StatusCode.ERROR, code))


def _span(
    tracer: Tracer,
    name: str,
    parent: Span | None,
    attributes: Mapping[str, Attribute],
    began_ns: int | None,
) -> Span:
    entered = parent is None or parent.get_span_context().is_remote
    return tracer.start_span(
        name,
        _NO_CONTEXT if parent is None else set_span_in_context(parent, _NO_CONTEXT),
        kind=SpanKind.SERVER if entered else SpanKind.INTERNAL,
        attributes={key: value for key, value in attributes.items() if value is not None},
        start_time=began_ns,
    )


class _OtlpLogs(logging.Handler):
    """The same fields as the JSON line, as an OTLP record: ``event`` is the body, the rest attributes."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger
        # What the exporter says about its own failures would be exported, fail, and be said again.
        self.addFilter(lambda record: not record.name.startswith(("opentelemetry", "urllib3", "requests")))

    def emit(self, record: logging.LogRecord) -> None:
        from opentelemetry._logs import LogRecord, SeverityNumber

        try:
            fields = json.loads(self.format(record))
            self._logger.emit(
                LogRecord(
                    timestamp=int(record.created * 1e9),
                    context=_context(fields.pop("trace_id", None), fields.pop("span_id", None)),
                    severity_text=record.levelname,
                    severity_number=SeverityNumber(_SEVERITY.get(record.levelno, 9)),
                    body=fields.pop("event", ""),
                    attributes={key: value for key, value in fields.items() if value is not None},
                )
            )
        except Exception:  # the line is on stdout as well; the service goes on
            return


# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber
_SEVERITY = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17, logging.CRITICAL: 21}


def _context(trace: str | None, span: str | None) -> Context | None:
    if trace is None or span is None:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED)
    ids = SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(ids), _NO_CONTEXT)
