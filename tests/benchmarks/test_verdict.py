"""Three answers, by frames of which the truth is known."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.compare import evaluate, order
from benchmarks.config import Scenario
from benchmarks.records import Record
from benchmarks.results import derive, frame
from benchmarks.sampler import COLUMNS
from benchmarks.texts import TEXTS, Language, say_finding

CATEGORIES = ("网络故障", "账单争议", "服务态度", "物流")
NO_SAMPLES = pd.DataFrame(columns=list(COLUMNS))
WELL = {"client_cpu_share": 0.1, "loop_lag_p50_s": 0.0002, "peak_in_flight": 4, "ill_health": [], "set_aside": False}


def scenario(pairs: int = 5, **verdict: object) -> Scenario:
    return Scenario.model_validate({"texts": ["x"], "users": 4, "requests": 1, "pairs": pairs, "verdict": verdict})


def comparison(
    speed=1.0, noise=(0.01, -0.02, 0.0, 0.02, -0.01), calls=200, wrong_a=0, wrong_b=0, failed_b=0, labels=True, pairs=5
):
    """Records of interleaved runs: B answers ``speed`` times as fast; its first ``wrong_b`` calls are wrong."""
    rows, runs, now = [], [], 0.0
    for run, (pair, arm) in enumerate((number, side) for number in range(pairs) for side in order(number)):
        begin = now
        step = 0.01 / ((speed * (1 + noise[pair % len(noise)])) if arm == "b" else 1.0)
        for number in range(calls):
            true = CATEGORIES[number % 4]
            wrong = number < (wrong_a if arm == "a" else wrong_b)
            record = Record(
                run=run, arm=arm, pair=pair, phase="measure", number=number, user=0, call=f"c{number}", scheduled_s=now
            )  # fmt: skip
            record.sent_s, record.end_s, record.status = now, now + step, 200
            record.label = true if labels else None
            record.category = "非投诉" if wrong else true
            if arm == "b" and number < failed_b:
                record.error, record.status, record.category = "http_status", 500, None
            rows.append({name: getattr(record, name) for name in record.__slots__})
            now += step
        run_row = {"run": run, "arm": arm, "pair": pair, "phase": "measure", "started_s": begin, "ended_s": now}
        runs.append(run_row | {"requests": calls, "failed": 0} | WELL)
    return derive(frame(rows)), runs


def verdict_of(*, rules: dict[str, object] | None = None, complete: bool = True, **truth: object):
    records, runs = comparison(**truth)
    return evaluate(scenario(**(rules or {})), records, NO_SAMPLES, runs, complete=complete)


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ({}, "PASS"),
        ({"speed": 1.2}, "PASS"),
        ({"speed": 0.8}, "FAIL"),
        ({"speed": 0.95}, "NO VERDICT"),
        ({"noise": (0.3, -0.2, 0.1, -0.3, 0.2)}, "NO VERDICT"),
        ({"speed": 1.5, "wrong_b": 30}, "FAIL"),
        ({"speed": 1.5, "wrong_b": 6}, "NO VERDICT"),
        ({"speed": 1.2, "wrong_a": 20, "wrong_b": 20}, "PASS"),
        ({"speed": 1.2, "wrong_a": 20}, "PASS"),
        ({"speed": 1.2, "failed_b": 40}, "FAIL"),
        ({"speed": 1.2, "failed_b": 200}, "FAIL"),
        ({"speed": 1.2, "calls": 40}, "NO VERDICT"),
        ({"speed": 1.2, "labels": False}, "PASS"),
        ({"speed": 1.2, "labels": False, "wrong_b": 60}, "FAIL"),
        ({"speed": 1.2, "labels": False, "wrong_b": 20}, "NO VERDICT"),
    ],
    ids=str,
)  # fmt: skip
def test_the_verdict_is_what_the_truth_deserves(truth, expected):
    assert verdict_of(**truth)["verdict"] == expected


def test_the_ratio_is_the_one_that_was_put_in():
    found = verdict_of(speed=1.2, noise=(0.0,))["comparison"]

    assert found["ratio"] == pytest.approx(1.2, rel=1e-6)
    assert (found["t"]["low"], found["t"]["high"]) == pytest.approx((1.2, 1.2), rel=1e-6)


def test_a_latency_that_falls_is_a_gain():
    found = verdict_of(speed=1.25, rules={"primary": "latency_avg"})

    speed = next(finding for finding in found["findings"] if finding["rule"] == "speed")
    assert found["comparison"]["ratio"] == pytest.approx(0.8, abs=0.02)
    assert speed["values"]["gain"] == pytest.approx(1.25, abs=0.03)
    assert (speed["answer"], speed["key"]) == ("PASS", "speed_faster")


def test_a_p99_of_200_requests_gets_no_verdict():
    assert verdict_of(speed=1.5, rules={"primary": "latency_p99"})["verdict"] == "NO VERDICT"
    assert verdict_of(speed=1.5, calls=700, rules={"primary": "latency_p99"})["verdict"] == "PASS"


def test_a_saturated_generator_makes_everything_invalid():
    records, runs = comparison(speed=1.5)
    runs[3]["ill_health"] = ["the load generator used 99% of its one CPU"]

    found = evaluate(scenario(), records, NO_SAMPLES, runs, complete=True)

    assert (found["verdict"], found["exit_code"]) == ("INVALID", 4)


def test_a_pair_that_was_set_aside_does_not_count_and_is_told():
    records, runs = comparison(speed=1.5, pairs=6)
    slow = records["run"].isin([2, 3]) & (records["arm"] == "b")
    records.loc[slow, "latency_scheduled_s"] *= 100
    for run in runs[2:4]:
        run |= {"ill_health": ["it had too little CPU"], "set_aside": True}

    found = evaluate(scenario(primary="latency_avg"), records, NO_SAMPLES, runs, complete=True)

    assert found["verdict"] == "PASS"
    assert found["comparison"]["pairs"] == 5
    assert found["a"]["total_requests"] == 5 * 200
    assert "1 pairs were set aside" in say_finding(found["findings"][0], "en")


def test_an_interrupted_comparison_has_no_verdict_even_if_it_looked_bad():
    assert verdict_of(speed=0.5, complete=False)["verdict"] == "NO VERDICT"


def test_summaries_carry_the_names_people_asked_for():
    found = verdict_of(failed_b=20)["b"]

    assert found["total_requests"] == 1000
    assert found["successful_requests"] == 900
    assert found["error_rate"] == pytest.approx(0.1)
    assert found["avg_latency_ms"] == pytest.approx(10, rel=0.02)
    assert found["qps"] == pytest.approx(90, rel=0.02)
    assert found["test_duration"] == pytest.approx(10, rel=0.02)
    assert found["concurrent_users"] == 4


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_finding_can_be_said(lang: Language):
    for truth in (
        {},
        {"speed": 0.5},
        {"wrong_b": 6},
        {"failed_b": 3},
        {"failed_b": 200},
        {"calls": 8, "labels": False},
    ):
        for finding in verdict_of(**truth)["findings"]:
            assert "{" not in say_finding(finding, lang)


def test_every_sentence_exists_in_both_languages_with_the_same_values():
    import string

    for key, texts in TEXTS.items():
        names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in texts.values()]
        assert set(texts) == {"en", "zh"}, key
        assert names[0] == names[1], key
