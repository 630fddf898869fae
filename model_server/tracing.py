"""Spans of a request: ``receive``, ``queue``, ``prefill``, ``decode`` and ``send`` under one ``request``.

Without an endpoint nothing is recorded and the SDK is not even imported; what a client sent as
``traceparent`` still goes into the log and on to a remote engine. Spans take their parent as an argument:
a stream outlives the task that began it, so an ambient "current span" would be the wrong one.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from random import getrandbits
from typing import TYPE_CHECKING, Any, NamedTuple

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
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry._logs import Logger

Attribute = str | float | None

REQUEST = "request"
STAGES = ("receive", "queue", "prefill", "decode", "send")

_W3C = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()

SCOPE = "model_server"
_UNSET = Status(StatusCode.UNSET)
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)


class _Pipeline(NamedTuple):
    is_recorded: Callable[[int], bool]
    """Of a trace that begins here, by its id."""
    finish: Callable[..., None]
    """Sends a finished span; takes what the SDK's ReadableSpan takes."""


_pipeline: _Pipeline | None = None
_carried: ContextVar[Span | None] = ContextVar("carried", default=None)
_stop: list[Callable[[], None]] = []


def configure(
    endpoint: str | None,
    service_name: str = "qwen3-inference",
    *,
    service_version: str = "",
    timeout_s: float = 5,
    ratio: float = 1.0,
    max_per_s: float = math.inf,
) -> list[logging.Handler]:
    """Send spans and log lines to the OTLP/HTTP collector at ``endpoint``; None sends nothing.

    Args:
        endpoint: Base URL, for example ``http://collector:4318``; ``/v1/traces`` and ``/v1/logs`` are added.
            Headers (a token) come from OTEL_EXPORTER_OTLP_HEADERS, more attributes of the service from
            OTEL_RESOURCE_ATTRIBUTES.
        timeout_s: For one export, in a thread of its own; what cannot be sent is dropped.
        ratio: Share of the traces that begin here that are recorded, by their ids, so that every service which looks at
            the same id decides alike. A caller's ``traceparent`` says by itself whether its trace is.
        max_per_s: Of those that begin here, so many a second at the most.

    Returns:
        Handlers for :func:`model_server.logs.configure`; none without an endpoint.
    """
    global _pipeline
    shutdown()
    if endpoint is None:
        return []

    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from model_server.span_export import SpanExporter

    base = endpoint.rstrip("/")
    resource = Resource.create({"service.name": service_name, "service.version": service_version})
    batches = BatchSpanProcessor(SpanExporter(f"{base}/v1/traces", timeout_s, resource, SCOPE))
    lines = LoggerProvider(resource=resource, shutdown_on_exit=False)
    lines.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{base}/v1/logs", timeout=timeout_s)))
    _stop[:] = [batches.shutdown, lines.shutdown]

    def finish(name: str, context: SpanContext, parent: SpanContext | None, **named: Any) -> None:
        # Without a resource each would detect one of its own, in a thread: 1 ms.
        batches.on_end(ReadableSpan(name, context, parent, resource, **named))

    _pipeline = _Pipeline(_root_sampler(ratio, max_per_s), finish)
    return [_OtlpLogs(lines.get_logger(SCOPE))]


def shutdown(timeout_s: float = 2) -> None:
    """Send what is left, for at most ``timeout_s``: a collector that is away must not hold up an exit."""
    global _pipeline
    _pipeline = None
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


def carry(span: Span | None) -> None:
    """From here on in this request, calls to other servers belong to ``span``."""
    _carried.set(span)


def carried() -> Span | None:
    """What :func:`carry` was given last in this request; None outside of one."""
    return _carried.get()


def start(name: str, parent: Span | None = None, **attributes: Attribute) -> Span:
    """A span from now until its ``end()``. Attributes that are None are left out.

    Without an endpoint this is ``parent`` itself or a span that does nothing, and ``end()`` does nothing.
    """
    if _pipeline is None:
        return INVALID_SPAN if parent is None else parent
    above = None if parent is None else parent.get_span_context()
    trace_id = getrandbits(128) or 1 if above is None else above.trace_id
    recorded = _pipeline.is_recorded(trace_id) if above is None else above.trace_flags.sampled
    context = SpanContext(
        trace_id,
        getrandbits(64) or 1,
        is_remote=False,
        trace_flags=_SAMPLED if recorded else _NOT_SAMPLED,
        trace_state=None if above is None else above.trace_state,
    )
    if not recorded:
        return NonRecordingSpan(context)
    known: dict[str, Attribute] = {key: value for key, value in attributes.items() if value is not None}
    return _Recording(name, context, above, known, _pipeline.finish)


def describe(span: Span, attributes: Mapping[str, Attribute]) -> None:
    """What was not known when it began. Attributes that are None are left out."""
    if span.is_recording():
        span.set_attributes({key: value for key, value in attributes.items() if value is not None})


def record(
    name: str, parent: Span | None, began: float, ended: float, *, error: str | None = None, **attributes: Attribute
) -> None:
    """A span under ``parent`` that is known after the fact: prefill and decode are read off the arrival of tokens.

    Args:
        began: Seconds of ``time.monotonic()``, which is also the event loop's ``time()``.
        ended: The same.
        error: Code of the error that ended it.
    """
    if _pipeline is None or parent is None or not parent.is_recording():
        return
    if error is not None:
        attributes["error.type"] = error
    context = parent.get_span_context()
    zero_ns = time.time_ns() - int(time.monotonic() * 1e9)
    _pipeline.finish(
        name,
        SpanContext(context.trace_id, getrandbits(64) or 1, is_remote=False, trace_flags=context.trace_flags),
        context,
        attributes={key: value for key, value in attributes.items() if value is not None},
        status=_UNSET if error is None else Status(StatusCode.ERROR, error),
        start_time=zero_ns + int(began * 1e9),
        end_time=zero_ns + int(ended * 1e9),
    )


def fail(span: Span, code: str) -> None:
    """Mark the span as failed with an error's ``code``, never with its message: that may quote the client."""
    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, code))


def _root_sampler(ratio: float, max_per_s: float) -> Callable[[int], bool]:
    """Whether a trace that begins here, with this id, is recorded: ``ratio`` of the ids, and no more than ``max_per_s``
    of them, counted by a bucket that holds one second's.
    """
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    by_id = TraceIdRatioBased(ratio)
    most = max(1.0, max_per_s)
    left, at = most, time.monotonic()

    def is_recorded(trace_id: int) -> bool:
        nonlocal left, at
        if by_id.should_sample(None, trace_id, REQUEST).decision is Decision.DROP:
            return False
        now = time.monotonic()
        left, at = min(most, left + (now - at) * max_per_s), now
        if left < 1:
            return False
        left -= 1
        return True

    return is_recorded


class _Recording(NonRecordingSpan):
    """A span under way. The SDK's own takes ten times as long to make and to end (span_export)."""

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Attribute],
        finish: Callable[..., None],
    ) -> None:
        super().__init__(context)
        self._name, self._parent, self._attributes = name, parent, attributes
        self._finish: Callable[..., None] | None = finish
        self._began_ns = time.time_ns()
        self._status = _UNSET

    def is_recording(self) -> bool:
        return self._finish is not None

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._attributes.update(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self._attributes[key] = value

    def set_status(self, status: Any, description: str | None = None) -> None:
        self._status = status if isinstance(status, Status) else Status(status, description)

    def end(self, end_time: int | None = None) -> None:
        if self._finish is None:
            return
        finish, self._finish = self._finish, None
        entered = self._parent is None or self._parent.is_remote
        finish(
            self._name,
            self.get_span_context(),
            self._parent,
            attributes=self._attributes,
            status=self._status,
            kind=SpanKind.SERVER if entered else SpanKind.INTERNAL,
            start_time=self._began_ns,
            end_time=end_time or time.time_ns(),
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
