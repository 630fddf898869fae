"""Figures of a results folder against numpy on the raw times, and what the analysis of many requests costs."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.figures.analysis import OURS, PANDAS, ask, synthetic
from benchmarks.results import load, measured_records
from benchmarks.summary import event_gaps, shown_figures, summarise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("synthetic"), requests=70_000, events=16)


def test_percentiles_are_numpys_of_the_successful_requests(folder):
    rows = pq.read_table(folder / "requests.parquet").to_pandas()
    good = rows[rows["error"].isna()]
    latency = 1000 * (good["end_s"] - good["scheduled_s"])

    found = summarise(load(folder), 64)

    assert found["error_rate"] == pytest.approx(rows["error"].notna().mean())
    for q in (50, 95, 99):
        assert found[f"p{q}_latency_ms"] == pytest.approx(np.percentile(latency, q))
        low, high = found["percentile_intervals"][f"latency_p{q}_ms"]
        assert low < found[f"p{q}_latency_ms"] < high
    assert found["tokens_per_event"] == pytest.approx(1.0)
    assert found["tpot_p50_ms"] == pytest.approx(10, rel=0.05)


def test_gaps_between_events_are_within_a_thousandth_of_the_exact_ones_and_leave_out_the_first(folder):
    rows = pq.read_table(folder / "requests.parquet").to_pandas()
    gaps = np.concatenate([row[1:] for row in rows.loc[rows["error"].isna(), "event_gaps_s"]]).astype(float)

    found = event_gaps(folder / "requests.parquet", [0])

    assert found.total == len(gaps)
    for q in (50, 95, 99):
        assert found.summarise()[f"event_gap_p{q}_ms"] == pytest.approx(1000 * np.percentile(gaps, q), rel=1e-3)
    assert event_gaps(folder / "requests.parquet", [7]).total == 0


def test_too_few_requests_state_no_percentile(folder):
    found = summarise(load(folder).head(20), 1)

    assert found["p99_latency_ms"] is None
    assert found["p50_latency_ms"] is not None


def test_no_requests_give_no_figures_and_no_zeros():
    from benchmarks.results import derive, frame

    found = summarise(derive(frame([])), 4)

    assert found["total_requests"] == 0
    stated = {key for key, value in found.items() if value is not None}
    assert stated <= {
        *(
            "total_requests",
            "successful_requests",
            "test_duration",
            "concurrent_users",
            "errors",
            "percentile_intervals",
        )
    }


def test_what_a_verb_adds_is_shown_where_a_text_names_it(folder):
    summary = summarise(measured_records(load(folder), []), 64) | {"kind": "new", "goodput": 0.5, "secret_sauce": 3}

    heads, rows = shown_figures(summary, "zh")

    assert heads == []
    assert ["有效吞吐（在限值之内）", "50.0%"] in rows
    assert not any("secret" in cell for row in rows for cell in row)


@pytest.mark.parametrize("requests", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_analysis_is_close_to_pandas_in_time_and_bounded_in_memory(tmp_path, requests):
    """The bar is three times pandas on the same file and 2 GiB for a million."""
    made = synthetic(tmp_path / "made", requests, 64)

    sides = [(ask(OURS, made, "events"), ask(PANDAS, made, "events")) for _ in range(3)]

    ours, pandas = (min(side[at]["seconds"] for side in sides) for at in (0, 1))
    assert ours <= 3 * pandas
    assert max(side[0]["mib"] for side in sides) < 2048
    for name in ("p50_latency_ms", "p99_latency_ms", "ttft_p50_ms", "tpot_p50_ms"):
        assert sides[0][0][name] == pytest.approx(sides[0][1][name], rel=1e-9)
    assert sides[0][0]["event_gap_p50_ms"] == pytest.approx(sides[0][1]["event_gap_p50_ms"], rel=1e-3)
