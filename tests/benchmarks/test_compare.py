"""What a comparison makes of records, by frames of which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.compare import evaluate, order, percentile_intervals
from benchmarks.config import Scenario
from benchmarks.records import Record
from benchmarks.results import derive, frame
from benchmarks.sampler import COLUMNS

NO_SAMPLES = pd.DataFrame(columns=list(COLUMNS))
WELL = {"client_cpu_share": 0.1, "loop_lag_p50_s": 0.0002, "peak_in_flight": 4, "ill_health": [], "set_aside": False}


def scenario(dialect="chat_stream", **verdict):
    raw = {"texts": ["x"], "users": 4, "requests": 1, "pairs": 8, "dialect": dialect, "verdict": verdict}
    return Scenario.model_validate(raw)


def measured(*, slower=1.0, calls=150, tail=0.0, failed_b=0, tokens_b=20, text_b=None, again_a=None, pairs=8, seed=0):
    """Interleaved runs of a stream: TTFT 50 ms, 20 tokens of 10 ms, each with 10 % of noise; B as it is told.

    Args:
        tail: Share of B's requests that take five times as long.
        text_b, again_a: From a call's number to B's text, and to A's when it is asked again.
    """
    chance = np.random.default_rng(seed)
    rows, runs, now = [], [], 0.0
    for run, (pair, arm) in enumerate((number, side) for number in range(pairs) for side in order(number)):
        begin = now
        run_effect = math.exp(chance.normal(0, 0.01))
        for number in range(calls):
            factor = run_effect * math.exp(chance.normal(0, 0.1)) * (slower if arm == "b" else 1.0)
            factor *= 5 if arm == "b" and chance.random() < tail else 1
            tokens = tokens_b if arm == "b" else 20
            record = Record(
                run=run, arm=arm, pair=pair, phase="measure", number=number, user=0, call=f"c{number}", scheduled_s=now
            )  # fmt: skip
            record.sent_s = now
            record.first_token_s = now + 0.05 * factor
            record.last_token_s = record.end_s = record.first_token_s + (tokens - 1) * 0.01 * factor
            record.status, record.events, record.output_tokens, record.tokens_first_event = 200, tokens, tokens, 1
            record.finish_reason = "stop" if tokens == 20 else "length"
            text = f"第{number}通电话的内容是网络故障需要上门维修请尽快安排" * 2
            if arm == "b" and text_b is not None:
                text = text_b(number)
            if arm == "a" and pair > 0 and again_a is not None:
                text = again_a(number)
            record.output_text, record.output_sha256, record.output_characters = text, text, len(text)
            if arm == "b" and number < failed_b:
                record.error, record.status = "http_status", 500
            rows.append({name: getattr(record, name) for name in record.__slots__})
            now = record.end_s
        row = {"run": run, "arm": arm, "pair": pair, "phase": "measure", "started_s": begin, "ended_s": now}
        runs.append(row | {"requests": calls, "failed": failed_b if arm == "b" else 0} | WELL)
    return derive(frame(rows)), runs


def judged(rules=None, *, level=None, shown=True, **truth):
    records, runs = measured(**truth)
    samples = NO_SAMPLES if shown else None
    return evaluate(scenario(**(rules or {})), records, samples, runs, complete=True, level=level)


def answers_of(summary):
    return {finding["key"]: finding["answer"] for finding in summary["findings"]}


GUARDED = {"primary": "latency_p50", "guards": {"ttft_p95": 0.15, "tpot_p50": 0.05, "latency_p95": 0.15}}


def test_a_candidate_that_is_as_good_passes_with_every_guard():
    found = judged(GUARDED)

    assert found["verdict"] == "PASS"
    assert set(found["guards"]) == {"ttft_p95", "tpot_p50", "latency_p95"}
    assert [finding["rule"] for finding in found["findings"]].count("guard") == 3


def test_a_slow_tail_is_found_by_its_guard_where_the_median_sees_nothing():
    found = judged(GUARDED | {"margin": 0.1}, tail=0.08)

    assert found["verdict"] == "FAIL"
    speed = next(finding for finding in found["findings"] if finding["rule"] == "speed")
    assert speed["answer"] == "PASS"
    broken = {f["values"]["metric"] for f in found["findings"] if f["key"] == "guard_broken"}
    assert {"latency_p95", "ttft_p95"} == broken


def test_the_margin_of_a_guard_is_its_own():
    assert judged({"primary": "latency_p50", "margin": 0.2, "guards": {"tpot_p50": 0.02}}, slower=1.1)["verdict"] == (
        "FAIL"
    )
    assert judged({"primary": "latency_p50", "margin": 0.2, "guards": {"tpot_p50": 0.2}}, slower=1.1)["verdict"] == (
        "PASS"
    )


def test_a_percentile_of_too_few_requests_is_no_verdict_and_says_how_many_it_takes():
    found = judged({"primary": "latency_p50", "guards": {"latency_p99": 0.2}})

    missing = next(finding for finding in found["findings"] if finding["key"] == "guard_missing")
    assert found["verdict"] == "NO VERDICT"
    assert missing["values"] == {"metric": "latency_p99", "needed": 662, "fewest": 150}


def test_goodput_counts_requests_that_failed_or_were_late():
    rules = {"primary": "latency_p50", "guards": {"goodput": 0.02}, "limits": {"ttft_ms": 100}}

    found = judged(rules, tail=0.05)
    loss = found["guards"]["goodput"]
    late = judged(rules, failed_b=6)

    # 50 ms with 10 % of noise is never above 100 ms, five times that always is.
    assert loss["share_a"] == 1.0
    assert loss["share_b"] == pytest.approx(0.95, abs=0.02)
    assert loss["interval"]["low"] < 0.05 < loss["interval"]["high"]
    assert answers_of(found)["share_broken"] == "FAIL"
    assert late["guards"]["goodput"]["share_b"] == pytest.approx(1 - 6 / 150)


def test_an_error_rate_may_not_rise_by_more_than_its_margin():
    rules = {"primary": "latency_p50", "guards": {"error_rate": 0.02}, "max_error_rate": 1.0}

    assert answers_of(judged(rules, failed_b=15))["share_broken"] == "FAIL"
    assert answers_of(judged(rules))["share_kept"] == "PASS"


def test_a_stricter_look_has_wider_intervals():
    once, often = judged(GUARDED), judged(GUARDED, level=0.01)

    for name in ("low", "high"):
        gap = abs(math.log(once["comparison"]["t"][name] / once["comparison"]["ratio"]))
        assert gap < abs(math.log(often["comparison"]["t"][name] / often["comparison"]["ratio"]))
    assert once["comparison"]["ratio"] == often["comparison"]["ratio"]


def test_a_look_says_what_the_end_says_without_what_is_only_shown():
    look, end = judged(GUARDED, shown=False), judged(GUARDED)

    assert look["verdict"] == end["verdict"]
    assert look["comparison"]["bootstrap"] is None
    assert end["comparison"]["bootstrap"]["low"] < end["comparison"]["ratio"] < end["comparison"]["bootstrap"]["high"]
    assert {"a", "b", "pair_intervals", "percentile_intervals"} <= end.keys() - look.keys()


@pytest.mark.parametrize("metric", ["qps", "tokens_per_s", "latency_avg", "ttft_p50", "tpot_p50"])
def test_every_kind_of_metric_is_compared_and_bootstrapped(metric):
    found = judged({"primary": metric}, slower=1.25)["comparison"]

    expected = 0.8 if metric in {"qps", "tokens_per_s"} else 1.25
    assert found["ratio"] == pytest.approx(expected, rel=0.03)
    assert found["bootstrap"]["low"] <= found["ratio"] <= found["bootstrap"]["high"]


def test_shorter_answers_are_not_called_faster():
    found = judged({"primary": "latency_p50"}, tokens_b=10)

    assert found["verdict"] == "NO VERDICT"
    assert answers_of(found)["lengths_differ"] == "NO VERDICT"
    assert "speed" not in {finding["rule"] for finding in found["findings"]}
    assert found["quality"]["length_ratio"] == pytest.approx(0.5)
    assert found["quality"]["finish_reasons"] == {"a": {"stop": 150}, "b": {"length": 150}}


def test_longer_answers_are_not_called_slower():
    assert judged({"primary": "latency_p50"}, tokens_b=30)["verdict"] == "NO VERDICT"


def test_lengths_within_the_bound_are_judged():
    assert "lengths_differ" not in answers_of(
        judged({"primary": "latency_p50", "max_length_difference": 0.1}, tokens_b=19)
    )
    assert answers_of(judged({"primary": "latency_p50", "max_length_difference": 1.5}, tokens_b=10))["speed_faster"]


def test_faster_but_with_other_texts_fails():
    found = judged({"primary": "latency_p50"}, slower=0.7, text_b=lambda number: f"抱歉我不知道该怎么办{number}" * 5)

    assert found["verdict"] == "FAIL"
    assert (answers_of(found)["speed_faster"], answers_of(found)["texts_broken"]) == ("PASS", "FAIL")


def test_a_server_that_is_not_steady_is_compared_with_itself():
    """A changes every third of its own texts; B does no worse, though few of its texts are A's."""

    def other(number, unlike):
        text = f"第{number}通电话的内容是网络故障需要上门维修请尽快安排" * 2
        return "完全不同的一段回答" * 6 if number % 3 == unlike else text

    alike = judged({"primary": "latency_p50"}, again_a=lambda n: other(n, 0), text_b=lambda n: other(n, 1))
    worse = judged({"primary": "latency_p50"}, text_b=lambda n: other(n, 1))

    assert alike["quality"]["exact_match"] == pytest.approx(2 / 3, abs=0.01)
    assert alike["quality"]["exact_match_self"] == pytest.approx(2 / 3, abs=0.01)
    assert alike["quality"]["similarity_drop"] == pytest.approx(0, abs=0.01)
    assert answers_of(worse)["texts_broken"] == "FAIL"


def test_intervals_of_percentiles_hold_the_value_they_are_of():
    records, _ = measured(calls=200)
    rows = records[records["arm"] == "a"]

    found = percentile_intervals(rows, 0.05)

    for name, low_high in found.items():
        metric, q = name.removesuffix("_ms").rsplit("_p", 1)
        column = "tpot_s" if metric == "tpot" else f"{metric}_scheduled_s"
        value = 1000 * np.percentile(rows[column], int(q))
        assert low_high[0] < value < low_high[1]


def test_an_interval_is_called_what_it_is_at_one_look_of_several():
    """At a look's own level of 1 % the interval is of 99 %, and wider than that of the only look."""
    once, at_a_look = (
        next(f for f in judged(level=level)["findings"] if f["rule"] == "speed") for level in (None, 0.01)
    )

    assert once["values"]["confidence"] == pytest.approx(0.95)
    assert at_a_look["values"]["confidence"] == pytest.approx(0.99)
    assert at_a_look["values"]["low"] < once["values"]["low"] < once["values"]["high"] < at_a_look["values"]["high"]
