"""Each alert is shown to fire, to stay silent and to resolve, by both readers of the list.

Prometheus' own promtool runs the rendered rules over invented series, ``monitoring.watch`` evaluates them itself; of
every alert, at every minute of every test here, both have to say the same (readers.py). Inputs and times are written
from what an alert promises ("average > 1000 ms"), not from the expressions.
"""

from __future__ import annotations

import random
import re

import pytest
import readers
from readers import fires, of_watch, verdicts

from monitoring import alerts

OK, BAD = (
    'qwen3_inference_requests_total{job="a",instance="a:1",status="200"}',
    ('qwen3_inference_requests_total{job="a",instance="a:1",status="503"}'),
)
SUM = 'qwen3_inference_duration_seconds_sum{job="a",instance="a:1",endpoint="inference"}'
COUNT = 'qwen3_inference_duration_seconds_count{job="a",instance="a:1",endpoint="inference"}'
USED = 'qwen3_model_memory_usage_bytes{job="a",instance="a:1"}'
LIMIT = 'qwen3_memory_limit_bytes{job="a",instance="a:1"}'
STARTED = 'qwen3_start_time_seconds{job="a",instance="a:1"}'
ENGINE = 'qwen3_engine_restarts_total{job="a",instance="a:1"}'
SYSTEMD = 'node_systemd_service_restart_total{job="a",instance="a:1",name="qwen3@1.service"}'

NAME = re.compile(r"\b(?:qwen3|node)_\w+|\bup\b")

pytestmark = pytest.mark.promtool


def test_high_latency_fires_above_a_second_on_average_and_resolves(tmp_path):
    """One request a second; each takes 0.9 s for 20 minutes, then 1.2 s for 20, then 0.9 s again."""
    series = {SUM: "0+54x20 1152+72x20 2574+54x20", COUNT: "0+60x62"}

    assert fires(tmp_path, "high_latency", series, [15, 20, 24, 32, 40, 50, 60]) == [32, 40]


def test_high_latency_is_silent_when_nothing_is_asked(tmp_path):
    assert fires(tmp_path, "high_latency", {SUM: "500x40", COUNT: "100x40"}, [10, 20, 30]) == []


def test_low_qps_fires_under_ten_a_second_and_resolves(tmp_path):
    """12 a second for 20 minutes, 8 for 25, 12 again; also a server that nobody asks anything fires."""
    series = {OK: "0+720x20 14880+480x24 26640+720x25"}

    assert fires(tmp_path, "low_qps", series, [12, 20, 25, 37, 44, 55, 65]) == [37, 44]
    assert fires(tmp_path, "low_qps", {OK: "0x40"}, [8, 20]) == [20]


def test_low_qps_is_silent_on_an_idle_laptop_that_says_so(tmp_path):
    rows = alerts.load({"low_qps": 0})

    assert fires(tmp_path, "low_qps", {OK: "0x40"}, [20, 30], rows) == []


def test_high_error_rate_fires_above_five_percent_and_resolves(tmp_path):
    """1000 answers a minute; 48 of them fail, then 52 of them, then 48 again."""
    series = {OK: "0+952x20 19988+948x20 39900+952x20", BAD: "0+48x20 1012+52x20 2100+48x20"}

    assert fires(tmp_path, "high_error_rate", series, [15, 20, 30, 40, 50, 60]) == [30, 40]


def test_refusals_and_clients_mistakes_neither_raise_nor_hide_the_error_rate(tmp_path):
    refused = OK.replace("200", "429")
    mistaken = OK.replace("200", "400")

    flood = {OK: "0+100x30", refused: "0+9000x30", mistaken: "0+9000x30"}
    assert fires(tmp_path, "high_error_rate", flood, [20, 30]) == []
    assert fires(tmp_path, "high_error_rate", {BAD: "0+10x30", **flood}, [20, 30]) == [20, 30]


def test_memory_usage_fires_above_four_fifths_of_the_limit_and_resolves(tmp_path):
    series = {USED: "790x10 810x15 790x15", LIMIT: "1000x42"}

    assert fires(tmp_path, "memory_usage", series, [10, 14, 18, 26, 30, 40]) == [18, 26]


def test_pod_restart_fires_with_the_fourth_restart_within_an_hour_and_resolves(tmp_path):
    """The server starts anew at minutes 11, 21, 31 and 41."""
    series = {STARTED: "100x10 200x9 300x9 400x9 500x120", ENGINE: "0x160"}

    assert fires(tmp_path, "pod_restart", series, [5, 30, 40, 42, 60, 75, 120]) == [42, 60]


def test_three_restarts_of_the_engine_do_not_become_more_than_three(tmp_path):
    """increase() over samples every 45 s extrapolates to the full hour: 3.04 at minute 70, unless rounded."""
    three = {STARTED: "100x120", ENGINE: "1x20 2x20 3x20 4x60"}
    four = {STARTED: "100x120", ENGINE: "1x20 2x20 3x10 4x10 5x60"}

    assert fires(tmp_path, "pod_restart", three, [50, 60, 70, 80], interval="45s") == []
    assert fires(tmp_path, "pod_restart", four, [70], interval="45s") == [70]


def test_servers_that_do_not_live_to_be_scraped_are_counted_by_systemd(tmp_path):
    """Four restarts between two scrapes at minute 11; then also of a server that no scrape has ever met."""
    counted = {SYSTEMD: "0x10 4x120"}
    met = {STARTED: "100x10 200x120", ENGINE: "0x130"}

    assert fires(tmp_path, "pod_restart", met, [10, 12, 60]) == []
    assert fires(tmp_path, "pod_restart", met | counted, [10, 12, 60, 75]) == [12, 60]
    assert fires(tmp_path, "pod_restart", counted, [10, 12, 60, 75]) == [12, 60]


def test_a_restart_that_both_server_and_systemd_tell_of_counts_once(tmp_path):
    both = {STARTED: "100x10 200x9 300x9 400x60", SYSTEMD: "0x10 1x9 2x9 3x60"}

    assert fires(tmp_path, "pod_restart", both | {ENGINE: "0x90"}, [32, 40, 60]) == []
    # Restarts of the engine are others, and come on top.
    assert fires(tmp_path, "pod_restart", both | {ENGINE: "0x50 1x40"}, [50, 52, 60]) == [52, 60]


def test_systemds_counter_begins_anew_when_somebody_restarts_the_unit(tmp_path):
    """Four restarts of long ago, by then known, are none of this hour; those after it count."""
    started = {STARTED: "100x160", ENGINE: "0x160"}

    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x60"}, [75, 82, 100, 130]) == []
    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x9 3x60"}, [75, 82, 100, 130]) == []
    assert fires(tmp_path, "pod_restart", started | {SYSTEMD: "4x80 0x9 4x60"}, [75, 82, 100, 130]) == [100, 130]


def test_three_restarts_right_after_prometheus_began_are_three(tmp_path):
    """At minute 10 there are two samples, 45 s apart, and increase() takes 3 for 4."""
    young = {STARTED: "_x11 100x60", SYSTEMD: "_x11 0x0 3x60"}
    assert fires(tmp_path, "pod_restart", young, [10, 11, 30], interval="45s") == []

    young[SYSTEMD] = "_x11 0x0 4x60"
    assert fires(tmp_path, "pod_restart", young, [10, 11, 30], interval="45s") == [10, 11, 30]


def test_restarts_of_other_units_are_not_the_servers(tmp_path):
    other = SYSTEMD.replace("qwen3@1", "haproxy")

    assert fires(tmp_path, "pod_restart", {STARTED: "100x90", ENGINE: "0x90", other: "0x10 9x80"}, [12, 60]) == []


@pytest.mark.parametrize(("name", "series"), [("high_error_rate", OK), ("pod_restart", STARTED)])
def test_a_critical_alert_that_has_gone_blind_says_so_and_resolves(tmp_path, name, series):
    seen = fires(tmp_path, f"{name}_absent", {series: "1x10 _x20 1x20"}, [5, 10, 25, 30, 40])

    assert seen == [25, 30]


# Beside the five of the design ----------------------------------------------------------------------------


def first_tokens(*phases):
    """Cumulative buckets, phase by phase: minutes, and first tokens a minute within 1.5 s, 3 s, 6 s, and in all."""
    series = {}
    for index, edge in enumerate(("1.5", "3.0", "6.0", "+Inf")):
        total, words = 0, []
        for minutes, *counts in phases:
            words.append(f"{total + counts[index]}+{counts[index]}x{minutes - 1}")
            total += minutes * counts[index]
        key = f'qwen3_time_to_first_token_seconds_bucket{{job="a",instance="a:1",le="{edge}"}}'
        series[key] = " ".join(["0", *words])
    return series


def test_time_to_first_token_fires_when_one_in_twenty_waits_over_three_seconds_and_resolves(tmp_path):
    """96 of 100 within 3 s; then 94; then 96 again."""
    series = first_tokens((20, 50, 96, 100, 100), (20, 50, 94, 100, 100), (20, 50, 96, 100, 100))

    assert fires(tmp_path, "time_to_first_token", series, [15, 20, 24, 35, 40, 50, 60]) == [35, 40]


def test_time_to_first_token_is_silent_when_nothing_is_generated(tmp_path):
    assert fires(tmp_path, "time_to_first_token", first_tokens((30, 0, 0, 0, 0)), [10, 20, 30]) == []


UP, DOWN = 'up{job="a",instance="a:1"}', 'up{job="a",instance="b:1"}'
DEAD_STARTED = STARTED.replace("a:1", "b:1")


def test_instance_down_fires_for_one_that_is_dead_among_living_and_resolves(tmp_path):
    """The dead one's own series end with it; a scrape that fails writes that down."""
    series = {UP: "1x40", STARTED: "100x40", DOWN: "1x10 0x9 1x20", DEAD_STARTED: "100x10 stale _x9 200x20"}

    assert fires(tmp_path, "instance_down", series, [5, 10, 12, 13, 15, 20, 22, 30]) == [13, 15, 20]
    found = verdicts(tmp_path, series, 15)[15]
    assert ("instance_down", frozenset({("job", "a"), ("instance", "b:1")})) in found


def test_instance_down_leaves_it_to_the_absences_when_all_are_dead_and_forgets_those_taken_away(tmp_path):
    all_dead = {UP: "1x10 0x20", STARTED: "100x10 stale"}
    assert fires(tmp_path, "instance_down", all_dead, [12, 15, 20, 30]) == []
    assert fires(tmp_path, "pod_restart_absent", all_dead, [12, 20]) == [20]

    scaled_down = {UP: "1x30", STARTED: "100x30", DOWN: "1x10 stale", DEAD_STARTED: "100x10 stale"}
    assert fires(tmp_path, "instance_down", scaled_down, [12, 20, 30]) == []
    other_job = {UP: "1x30", STARTED: "100x30", 'up{job="node",instance="a"}': "0x30"}
    assert fires(tmp_path, "instance_down", other_job, [12, 20, 30]) == []


def test_engine_down_fires_after_the_minutes_that_a_load_takes_and_resolves(tmp_path):
    engine = 'qwen3_engine_up{job="a",instance="a:1"}'

    assert fires(tmp_path, "engine_down", {engine: "0x4 1x30"}, [2, 4, 5, 10]) == []
    assert fires(tmp_path, "engine_down", {engine: "1x10 0x9 1x10"}, [10, 14, 16, 20, 21, 25]) == [16, 20]


RUNNING = 'qwen3_running{job="a",instance="a:1"}'
GENERATED = 'qwen3_generated_tokens_total{job="a",instance="a:1"}'
PROMPTED = 'qwen3_prompt_tokens_total{job="a",instance="a:1"}'


def test_engine_stalled_fires_when_requests_run_and_no_token_comes_and_resolves(tmp_path):
    """600 tokens a minute until minute 10, none until 20, then again."""
    busy = {RUNNING: "4x120", PROMPTED: "0x120", GENERATED: "0+150x40 6000x39 6150+150x40"}

    assert fires(tmp_path, "engine_stalled", busy, [5, 10, 11, 13, 20, 21, 25], interval="15s") == [13, 20]


def test_engine_stalled_is_silent_when_idle_and_while_prompts_are_computed(tmp_path):
    idle = {RUNNING: "0x80", PROMPTED: "100x80", GENERATED: "100x80"}
    now_and_then = idle | {RUNNING: " ".join(["1x2 0"] * 20)}
    prefills = idle | {RUNNING: "4x80", PROMPTED: "0+300x80"}

    for series in (idle, now_and_then, prefills):
        assert fires(tmp_path, "engine_stalled", series, range(20), interval="15s") == []


def test_queue_saturation_fires_above_four_fifths_over_five_minutes_and_resolves(tmp_path):
    capacity = 'qwen3_queue_capacity{job="a",instance="a:1"}'
    depth = capacity.replace("capacity", "depth")

    series = {capacity: "64x40", depth: "50x10 52x14 50x15"}
    assert fires(tmp_path, "queue_saturation", series, [8, 10, 15, 18, 24, 31, 39]) == [18, 24]
    burst = {capacity: "64x40", depth: "0x10 64x2 0x20"}
    assert fires(tmp_path, "queue_saturation", burst, range(30)) == []
    none_may_wait = {capacity: "0x20", depth: "0x20"}
    assert fires(tmp_path, "queue_saturation", none_may_wait, range(20)) == []


def classified(**per_minute):
    """Calls a minute of each category, in phases of 90 minutes; a quarter of the test calls were of each."""
    series = {}
    for category in ("A", "B", "C", "D"):
        total, words = 0, ["0"]
        for count in per_minute[category]:
            words.append(f"{total + count}+{count}x89")
            total += 90 * count
        labels = f'{{job="a",instance="a:1",category="{category}"}}'
        series[f"qwen3_classifications_total{labels}"] = " ".join(words)
        series[f"qwen3_expected_category_ratio{labels}"] = f"0.25x{90 * len(per_minute[category])}"
    return series


def test_category_drift_fires_when_a_quarter_of_the_calls_moved_and_resolves(tmp_path):
    """20 of 100 would have to move (.45 .25 .15 .15), then 30 (.55 .25 .1 .1), then none."""
    series = classified(A=(9, 11, 5), B=(5, 5, 5), C=(3, 2, 5), D=(3, 2, 5))

    assert fires(tmp_path, "category_drift", series, [60, 90, 120, 165, 180, 240, 270]) == [165, 180]


def test_category_drift_is_not_judged_on_few_calls_nor_without_an_expectation(tmp_path):
    few = classified(A=(3,), B=(0,), C=(0,), D=(0,))
    assert fires(tmp_path, "category_drift", few, [60, 90]) == []

    many = classified(A=(9,), B=(0,), C=(0,), D=(0,))
    assert fires(tmp_path, "category_drift", many, [60, 90]) == [60, 90]
    unmeasured = {key: text for key, text in many.items() if "expected" not in key}
    assert fires(tmp_path, "category_drift", unmeasured, [60, 90]) == []


@pytest.mark.parametrize(("mean", "drifted"), [(0.91, False), (0.82, False), (0.78, True), (0.995, False)])
def test_confidence_drift_fires_ten_points_below_what_was_tested(tmp_path, mean, drifted):
    """20 calls a minute of this mean confidence, 0.903 on the test calls; then 0.9."""
    labels = '{job="a",instance="a:1"}'
    series = {
        f"qwen3_expected_confidence{labels}": "0.903x180",
        f"qwen3_classification_confidence_count{labels}": "0+20x180",
        f"qwen3_classification_confidence_sum{labels}": f"0+{20 * mean:g}x90 {90 * 20 * mean + 18:g}+18x89",
    }

    assert fires(tmp_path, "confidence_drift", series, [60, 90, 165, 180]) == ([60, 90] if drifted else [])


def test_confidence_drift_fires_above_too_and_not_on_few_calls(tmp_path):
    labels = '{job="a",instance="a:1"}'
    series = {
        f"qwen3_expected_confidence{labels}": "0.8x90",
        f"qwen3_classification_confidence_count{labels}": "0+20x90",
        f"qwen3_classification_confidence_sum{labels}": "0+19.6x90",
    }
    assert fires(tmp_path, "confidence_drift", series, [60, 90]) == [60, 90]

    few = {key: text.replace("0+20x", "0+3x").replace("19.6", "2.94") for key, text in series.items()}
    assert fires(tmp_path, "confidence_drift", few, [60, 90]) == []


def test_disk_usage_fires_above_85_percent_of_the_one_disk_that_is_full_and_resolves(tmp_path):
    size = 'qwen3_disk_size_bytes{job="a",instance="a:1",directory="logs"}'
    free = size.replace("size", "free")
    models = {size.replace("logs", "models"): "1000x50", free.replace("logs", "models"): "600x50"}
    series = {size: "1000x50", free: "160x10 140x19 160x20", **models}

    assert fires(tmp_path, "disk_usage", series, [10, 15, 20, 22, 30, 31, 45]) == [22, 30]
    found = {labels for alert, labels in verdicts(tmp_path, series, 25)[25] if alert == "disk_usage"}
    assert found == {frozenset({("job", "a"), ("instance", "a:1"), ("directory", "logs")})}


# Burn rates: (percent of bad requests that spends the budget too fast, and not quite; minutes of `for`) -------

BURNS = {
    "error_budget_fast": (15, 14, 2),
    "error_budget_medium": (6.5, 5.5, 15),
    "error_budget_slow": (1.5, 0.5, 60),
    "latency_budget_fast": (73, 71, 2),
    "latency_budget_medium": (31, 29, 15),
    "latency_budget_slow": (5.5, 4.5, 60),
}


def burning(name, *phases):
    """1000 requests a minute; (minutes, percent that are bad), one after the other."""
    words, good, total = {"bad": ["0"], "good": ["0"]}, 0, 0
    for minutes, percent in phases:
        bad = round(percent * 10)
        words["bad"].append(f"{total - good + bad}+{bad}x{minutes - 1}")
        words["good"].append(f"{good + 1000 - bad}+{1000 - bad}x{minutes - 1}")
        total, good = total + 1000 * minutes, good + (1000 - bad) * minutes
    bad, good = (" ".join(words[key]) for key in ("bad", "good"))
    if name.startswith("error"):
        return {BAD: bad, OK: good}
    count = 'qwen3_inference_duration_seconds_count{job="a",instance="a:1",endpoint="inference"}'
    bucket = count.replace("_count", "_bucket").replace("}", ',le="1.0"}')
    return {count: f"0+1000x{total // 1000}", bucket: good}


@pytest.mark.parametrize("name", BURNS)
def test_a_burn_rate_fires_when_both_windows_burn_and_resolves_with_the_short_one(tmp_path, name):
    above, below, hold = BURNS[name]
    row = alerts.load()[name]
    long, short = (alerts.seconds(record.rsplit("ratio_rate", 1)[1]) // 60 for record in row.signals)
    step = max(1, hold // 5)

    def firing(*phases):
        last = sum(minutes for minutes, _ in phases) // step * step
        found = verdicts(tmp_path, burning(name, *phases), last, every=step)
        return {minute for minute, seen in found.items() if (name, frozenset({("job", "a")})) in seen}

    # Young series: as long as the short window and `for`, and a little more.
    burn = 2 * short + 2 * hold
    lasting = firing((burn, above), (2 * short + 4 * step, 0))
    assert max(lasting) >= burn
    assert min(lasting) <= hold + 3 * step
    assert max(lasting) <= burn + short + 2 * step
    assert firing((burn, below)) == set()
    # What is over does not call, although the long window still remembers it; nor does a moment within a calm hour.
    if long <= 360:
        calm_then_burst = firing((long, 0), (max(1, short // 10), above))
        assert calm_then_burst == set()


# Whatever comes -------------------------------------------------------------------------------------------

MOVING = {
    "qwen3_inference_requests_total": [{"status": "200"}, {"status": "503"}, {"status": "429"}],
    "qwen3_inference_duration_seconds_bucket": [{"le": "1.0"}],
    "qwen3_inference_duration_seconds_count": [{}],
    "qwen3_inference_duration_seconds_sum": [{}],
    "qwen3_time_to_first_token_seconds_bucket": [{"le": "1.0"}, {"le": "3.0"}, {"le": "6.0"}, {"le": "+Inf"}],
    "qwen3_generated_tokens_total": [{}],
    "qwen3_prompt_tokens_total": [{}],
    "qwen3_engine_restarts_total": [{}],
    "qwen3_classifications_total": [{"category": "A"}, {"category": "B"}],
    "qwen3_classification_confidence_sum": [{}],
    "qwen3_classification_confidence_count": [{}],
    "node_systemd_service_restart_total": [{"name": "qwen3@1.service"}],
}
GAUGES = {
    "qwen3_model_memory_usage_bytes": ([{}], (500, 790, 810, 950)),
    "qwen3_memory_limit_bytes": ([{}], (1000,)),
    "qwen3_start_time_seconds": ([{}], (100, 200, 300)),
    "qwen3_engine_up": ([{}], (0, 1, 1)),
    "qwen3_running": ([{}], (0, 1, 4)),
    "qwen3_queue_depth": ([{}], (0, 40, 60, 64)),
    "qwen3_queue_capacity": ([{}], (64,)),
    "qwen3_expected_category_ratio": ([{"category": "A"}, {"category": "B"}], (0.1, 0.5, 0.9)),
    "qwen3_expected_confidence": ([{}], (0.5, 0.9)),
    "qwen3_disk_size_bytes": ([{"directory": "logs"}, {"directory": "models"}], (1000,)),
    "qwen3_disk_free_bytes": ([{"directory": "logs"}, {"directory": "models"}], (10, 100, 300, 900)),
    "up": ([{}], (0, 1, 1)),
}
LONG = 150  # minutes


def random_walk(chance, rises, values):
    """A counter that stands still, crawls, runs and begins anew, or a gauge; with gaps, and ends of the series."""
    words, value, minute = [], 0, 0
    while minute < LONG:
        length = chance.choice((1, 2, 5, 10, 20, 30))
        minute += length
        kind = chance.random()
        if kind < 0.06:
            words.append(f"_x{length}")
        elif kind < 0.12:
            words += ["stale", f"_x{length}"]
        elif not rises:
            words.append(f"{chance.choice(values)}x{length - 1}")
        else:
            value = 0 if kind < 0.25 else value + chance.choice((0, 1, 7))
            step = chance.choice((0, 0, 1, 3, 40, 700))
            words.append(f"{value}+{step}x{length - 1}")
            value += step * (length - 1)
    return " ".join(words)


def whatever(seed):
    chance, series = random.Random(seed), {}
    for instance in ("a:1", "b:1"):
        for name, variants, values in [
            *((name, variants, None) for name, variants in MOVING.items()),
            *((name, *rest) for name, rest in GAUGES.items()),
        ]:
            if chance.random() < 0.15:
                continue  # a server that does not have it
            for labels in variants:
                text = ",".join(
                    f'{key}="{value}"' for key, value in {"job": "a", "instance": instance, **labels}.items()
                )
                series[f"{name}{{{text}}}"] = random_walk(chance, values is None, values)
    return series


def test_of_whatever_comes_both_readers_say_the_same_of_every_alert(tmp_path):
    """Random series of two servers, of every metric that an alert reads. Each alert is seen to fire."""
    names = {name for row in alerts.load().values() for expr in row.signals.values() for name in NAME.findall(expr)}
    assert names == {*MOVING, *GAUGES}

    fired = set()
    for seed in range(8):
        found = verdicts(tmp_path, whatever(seed), LONG)
        fired |= {alert for seen in found.values() for alert, _ in seen}
        always = set.intersection(*({alert for alert, _ in seen} for seen in found.values()))
        assert always == set()
    assert set(alerts.load()) - fired == set()


def test_readers_that_differ_are_found(tmp_path, monkeypatch):
    """One of them with another threshold: the very minutes in between are named."""
    other = alerts.load({"memory_usage": 90})
    monkeypatch.setattr(
        readers, "of_watch", lambda series, minutes, rows, interval: of_watch(series, minutes, other, interval)
    )

    with pytest.raises(AssertionError, match=r"(?s)10: .*Prometheus alone.*memory_usage"):
        verdicts(tmp_path, {USED: "850x12", LIMIT: "1000x12"}, 10)
