"""The load generator's own spans, made from its records when all runs are over: what is measured pays nothing for them.

A span reaches from sending to the end of the answer and is the parent of the server's, which learnt its id from the
request's ``traceparent``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pandas as pd
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from benchmarks.config import Scenario
from benchmarks.dialects import APIS
from benchmarks.records import span_id

SERVICE = "qwen3-benchmarks"
BATCH = 512
"""Spans of one POST, as in the SDK's own batches."""
TIMEOUT_S = 5.0


def send_spans(records: pd.DataFrame, scenario: Scenario) -> int:
    """Send a span for each record to ``scenario.otlp_endpoint``; how many the collector took.

    A collector that does not answer costs a line on stderr and ends it: the benchmark has its results all the same.
    """
    assert scenario.otlp_endpoint is not None
    exporter = OTLPSpanExporter(f"{scenario.otlp_endpoint.rstrip('/')}/v1/traces", timeout=TIMEOUT_S)
    sent = 0
    try:
        found = spans(records, scenario)
        while batch := list(islice(found, BATCH)):
            if exporter.export(batch) is not SpanExportResult.SUCCESS:
                rest = int(records["trace_id"].notna().sum()) - sent
                print(f"{rest} spans were not taken by {scenario.otlp_endpoint} (otlp_endpoint)", file=sys.stderr)
                break
            sent += len(batch)
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    return sent


def spans(records: pd.DataFrame, scenario: Scenario) -> Iterator[ReadableSpan]:
    """One for each record with a trace."""
    resource = Resource.create({"service.name": SERVICE})
    path = APIS[scenario.dialect].path
    for row in records[records["trace_id"].notna()].to_dict("records"):
        context = SpanContext(
            int(row["trace_id"], 16),
            int(span_id(row["trace_id"]), 16),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
        began_ns = int(row["wall_start"] * 1e9)
        yield ReadableSpan(
            f"POST {path}",
            context,
            resource=resource,
            kind=SpanKind.CLIENT,
            attributes=_attributes(row, scenario),
            status=Status(StatusCode.UNSET if pd.isna(row["error"]) else StatusCode.ERROR, None),
            start_time=began_ns,
            end_time=began_ns + int((row["end_s"] - row["sent_s"]) * 1e9),
        )


def _attributes(row: Mapping[Any, Any], scenario: Scenario) -> dict[str, str | int | float]:
    """By the names of OpenTelemetry's conventions where there are some; what is unknown is left out."""
    found = {
        "http.request.method": "POST",
        "http.response.status_code": row["status"],
        "error.type": row["error"],
        "gen_ai.request.model": scenario.model,
        "gen_ai.usage.input_tokens": row["prompt_tokens"],
        "gen_ai.usage.output_tokens": row["output_tokens"],
        "benchmark.run": row["run"],
        "benchmark.phase": row["phase"],
        "benchmark.call": row["call"],
        "benchmark.late_s": row["sent_s"] - row["scheduled_s"],
    }
    return {name: value for name, value in found.items() if not (value is None or pd.isna(value))}
