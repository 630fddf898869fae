"""Shares of requests that wait behind one another."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from benchmarks.goodput import Limits, cell, good_requests, share_interval
from benchmarks.results import derive, frame
from benchmarks.stats import wilson


def answered(number: int, latency_s: float, **more: object) -> dict[str, object]:
    """A record of a request that was due at ``number`` / 10 s."""
    due = number / 10
    return {
        "run": 0, "arm": "a", "pair": 0, "phase": "measure", "number": number, "user": 0, "call": f"c{number}",
        "scheduled_s": due, "sent_s": due, "end_s": due + latency_s, "wall_start": 0.0, "events": 0, "bytes": 1, **more,
    }  # fmt: skip


def records(rows: list[dict[str, object]]) -> pd.DataFrame:
    return derive(frame(rows))


def test_a_request_that_failed_or_is_late_is_not_good():
    found = records([answered(0, 0.1), answered(1, 0.3), answered(2, 0.1, error="timeout", end_s=0.25)])

    assert good_requests(found, Limits(latency_ms=200)).tolist() == [True, False, False]
    assert good_requests(found, Limits()).tolist() == [True, True, False]


def test_limits_on_tokens_are_kept_by_an_answer_of_a_single_token():
    stream = {"events": 3, "output_tokens": 3, "tokens_first_event": 1.0}
    rows = [
        answered(0, 0.5, first_token_s=0.1, last_token_s=0.3, **stream),  # 100 ms to the first, 100 ms per token
        answered(1, 0.5, first_token_s=0.5, last_token_s=0.54, **stream),  # 400 ms, 20 ms
        answered(2, 0.5, first_token_s=0.25, last_token_s=0.25, events=1, output_tokens=1, tokens_first_event=1.0),
    ]

    assert good_requests(records(rows), Limits(tpot_ms=50)).tolist() == [False, True, True]
    assert good_requests(records(rows), Limits(ttft_ms=200)).tolist() == [True, False, True]


def test_an_interval_of_independent_requests_is_wilsons():
    """With all kept, or none, there is nothing to correct; otherwise it is at most a little wider."""
    assert share_interval([True] * 100) == wilson(100, 100)
    chance = random.Random(1)
    kept = [chance.random() < 0.9 for _ in range(400)]
    plain, found = wilson(sum(kept), 400), share_interval(kept)
    assert found.low <= plain.low + 0.01
    assert found.high - found.low < 2.5 * (plain.high - plain.low)


def test_requests_that_share_one_queue_say_less_than_independent_ones():
    """A share of 0.9 in 400 requests: scattered it rules out 0.95, as one stall of the machine it does not."""
    scattered, stall = [at % 10 != 0 for at in range(400)], [at < 360 for at in range(400)]

    assert share_interval(scattered).high < 0.95
    assert share_interval(stall).high > 0.95


def test_the_interval_of_batches_that_share_their_fate_covers_the_truth():
    """2000 made-up probes whose requests come in groups of 20 with a common fate, 0.9 of them kept: 95 % intervals of
    independent requests miss the truth far too often, these about as often as they say.
    """
    chance = random.Random(7)
    plain = corrected = 0
    for _ in range(2000):
        kept = [fate for _ in range(30) for fate in [chance.random() < 0.9] * 20]
        low, high = wilson(sum(kept), 600).low, wilson(sum(kept), 600).high
        plain += low <= 0.9 <= high
        found = share_interval(kept)
        corrected += found.low <= 0.9 <= found.high
    assert plain / 2000 < 0.75
    assert corrected / 2000 > 0.88


def test_a_cell_states_nothing_that_it_does_not_know():
    found = cell(records([answered(at, 0.1, error="http_status", status=500) for at in range(3)]), {"users": 2})

    assert found["users"] == 2
    assert (found["qps"], found["error_rate"], found["errors"]) == (0.0, 1.0, {"http_status": 3})
    assert found["latency_p50_ms"] is found["latency_avg_ms"] is found["ttft_p95_ms"] is found["goodput"] is None


def test_no_requests_have_no_share():
    with pytest.raises(ValueError):
        share_interval([])
