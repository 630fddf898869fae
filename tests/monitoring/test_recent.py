"""Slots, rates and percentiles; expected values from the standard library."""

from __future__ import annotations

import random
import statistics
from datetime import UTC, datetime

import pytest

from monitoring.recent import COLUMNS, KEPT_LINES, KEPT_S, SLOT_S, WINDOW_S, Recent
from monitoring.request_files import RequestLine

BEGAN = 1_790_000_000.0


def request(at, latency_ms=10.0, **more):
    row = {"model": "m", "prompt_length": 1, "response_length": 1, "status": "success", "error": None}
    return RequestLine(timestamp=datetime.fromtimestamp(at, UTC), latency_ms=latency_ms, **(row | more))


def failed(at, error="queue full"):
    return request(at, 1.0, status="error", error=error)


def named(rows):
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}


def test_percentiles_are_of_the_successful_requests_of_the_minute_before():
    """As statistics.quantiles interpolates (inclusive): failures fail fast and must not look fast."""
    recent, draw = Recent(BEGAN), random.Random(4)
    latencies = [draw.lognormvariate(3, 1) for _ in range(500)]
    for number, latency in enumerate(latencies):
        recent.add(request(BEGAN + 60 + number / 10, latency), BEGAN + 120)
        recent.add(failed(BEGAN + 60 + number / 10), BEGAN + 120)
    recent.add(request(BEGAN + 1, 9999), BEGAN + 120)  # more than a minute before

    rates = recent.rates(BEGAN + 110)
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    for name, rank in (("p50_ms", 49), ("p95_ms", 94), ("p99_ms", 98)):
        assert rates[name] == pytest.approx(percentiles[rank])
    assert rates["error_ratio"] == 0.5


def test_the_rate_is_of_whole_slots():
    """100 a second, whenever it is asked: neither the slot being filled nor the lines not yet read pull it down."""
    for moment in (20.0, 20.1, 20.9, 21.5, 21.99):
        recent = Recent(BEGAN)
        for number in range(int(moment * 100)):
            recent.add(request(BEGAN + number / 100), BEGAN + moment)
        assert recent.rates(BEGAN + moment)["requests_s"] == pytest.approx(100, rel=0.02)


def test_every_slot_has_a_row_and_counts_add_up():
    recent, draw = Recent(BEGAN), random.Random(5)
    moments = [BEGAN + draw.random() * 300 for _ in range(700)]
    for moment in moments:
        recent.add(failed(moment) if moment % 1 < 0.2 else request(moment), BEGAN + 300)

    rows = recent.rows(BEGAN + 300)
    assert [row[0] for row in rows] == list(range(int(BEGAN), int(BEGAN) + 302, SLOT_S))
    assert sum(row["requests"] for row in named(rows).values()) == 700
    assert sum(row["errors"] for row in named(rows).values()) == sum(moment % 1 < 0.2 for moment in moments)


def test_a_late_line_changes_the_rows_that_were_sent():
    """A page that follows the changes holds the same rows as one that asks anew."""
    recent, draw, held = Recent(BEGAN), random.Random(6), {}
    for second in range(200):
        now = BEGAN + second
        for _ in range(5):
            recent.add(request(max(BEGAN, now - draw.random() * 40), draw.random() * 100), now)
        if second % 7 == 0:
            recent.tell(now, waiting=second, cpu_percent=None)
        held |= named(recent.changed_rows(now))
    assert held == named(recent.rows(BEGAN + 199))


def test_memory_is_bounded():
    recent = Recent(BEGAN)
    seconds = KEPT_S + 200
    for second in range(0, seconds, SLOT_S):
        for _ in range(6):
            recent.add(request(BEGAN + second), BEGAN + second)
        recent.tell(BEGAN + second, cpu_percent=1.0)
        recent.changed_rows(BEGAN + second)
    assert len(recent.rows(BEGAN + seconds)) <= KEPT_S / SLOT_S + 1
    assert len(recent.lines) == KEPT_LINES
    assert len(recent._slots) <= (KEPT_S + WINDOW_S) / SLOT_S + 1
    assert len(recent._rows) <= KEPT_S / SLOT_S + 1
    assert recent.read == 3 * seconds


def test_a_clock_that_is_set_back_leaves_no_future():
    recent = Recent(BEGAN)
    recent.add(request(BEGAN + 5), BEGAN + 10)
    recent.rows(BEGAN + 10)

    recent.add(request(BEGAN - 100), BEGAN - 100)
    rows = recent.rows(BEGAN - 100)
    assert [row["requests"] for row in named(rows).values()] == [1]


def test_a_line_from_the_future_counts_as_now():
    recent = Recent(BEGAN)
    recent.add(request(BEGAN + 4000), BEGAN + 10)
    assert named(recent.rows(BEGAN + 10))[int(BEGAN) + 10]["requests"] == 1


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["e", "d", "c", "b", "a"]),
        ({"status": "error"}, ["d"]),
        ({"model": "QWEN"}, ["e", "c"]),
        ({"error": "FULL"}, ["d"]),
        ({"latency_above_ms": 30}, ["e", "c"]),
        ({"latency_above_ms": 30, "model": "qwen", "status": "success"}, ["e", "c"]),
        ({"model": "none"}, []),
    ],
)
def test_filters_leave_what_fits_newest_first(filters, expected):
    recent = Recent(BEGAN)
    recent.add(request(BEGAN, 10, request_id="a"), BEGAN)
    recent.add(request(BEGAN, 20, request_id="b"), BEGAN)
    recent.add(request(BEGAN, 30, request_id="c", model="qwen3-0.6b"), BEGAN)
    recent.add(failed(BEGAN, "queue full").model_copy(update={"request_id": "d"}), BEGAN)
    recent.add(request(BEGAN, 50, request_id="e", model="Qwen3-1.7b"), BEGAN)
    assert [each.request_id for each in recent.newest(10, **filters)] == expected
    assert len(recent.newest(1, **filters)) == min(1, len(expected))
