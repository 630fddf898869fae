"""Journals and results folders, whole and broken; what follows from the times."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import benchmarks
from benchmarks.errors import ResultsError
from benchmarks.records import COLUMNS, Record
from benchmarks.results import (
    MANIFEST,
    MANIFEST_OF_RUNS,
    PARQUET,
    RESULTS_VERSION,
    derive,
    frame,
    load,
    read_journal,
    read_manifest,
    write_parquet,
)


def record(**values):
    made = Record(run=0, arm="a", pair=0, phase="measure", number=0, user=0, call="c", scheduled_s=1.0)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write_folder(folder, records, version=RESULTS_VERSION):
    folder.mkdir()
    manifest = {key: kind() for key, kind in (MANIFEST | MANIFEST_OF_RUNS).items()} | {"results_version": version}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "requests.jsonl").write_bytes(b"".join(item.to_json() + b"\n" for item in records))
    write_parquet(folder / "requests.jsonl", folder / "requests.parquet")
    return folder


@pytest.mark.parametrize("key", [*MANIFEST, *MANIFEST_OF_RUNS])
@pytest.mark.parametrize("change", ["missing", "of another type"])
def test_a_damaged_manifest_is_said_with_what_is_wrong(tmp_path, key, change):
    folder = write_folder(tmp_path / "run", [])
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest = {name: value for name, value in manifest.items() if name != key}
    path.write_text(json.dumps(manifest | ({key: None} if change == "of another type" else {})), encoding="utf-8")

    with pytest.raises(ResultsError, match=f"manifest.json is damaged: {key} missing or of another type"):
        read_manifest(folder)


def test_what_stands_before_a_break_in_the_journal_is_kept(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [record(number=n).to_json().decode() for n in range(3)]
    path.write_text("\n".join(lines) + "\n" + lines[0][:40], encoding="utf-8")

    found, whole = read_journal(path)

    assert found["number"].tolist() == [0, 1, 2]
    assert not whole


def test_an_empty_journal_has_all_columns(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("", encoding="utf-8")

    found, whole = read_journal(path)

    assert list(found.columns) == list(COLUMNS)
    assert whole
    assert derive(found).empty


def test_records_survive_the_journal_and_parquet(tmp_path):
    first = record(category="网络故障", error=None, status=200, event_times_s=[1.5, 1.6], needs_review=True)
    second = record(number=1, error="timeout", error_detail='said "no"\n')

    found = benchmarks.load(write_folder(tmp_path / "run", [first, second]), event_times=True)

    assert found["category"].tolist()[0] == "网络故障"
    assert list(found["event_times_s"][0]) == pytest.approx([1.5, 1.6], abs=1e-6)
    assert len(found["event_times_s"][1]) == 0
    assert "event_times_s" not in load(tmp_path / "run")
    assert found["error"].isna().tolist() == [True, False]
    assert found["error_detail"][1] == 'said "no"\n'
    assert found["ok"].tolist() == [True, False]


def test_another_version_and_a_folder_without_results_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="not a results folder"):
        load(tmp_path)
    with pytest.raises(ResultsError, match="version 0"):
        load(write_folder(tmp_path / "old", [record()], version=0))


def test_latency_counts_from_when_a_request_was_due_and_from_when_it_was_sent():
    found = derive(frame([json.loads(record(scheduled_s=1.0, sent_s=1.5, end_s=2.0).to_json())]))

    assert found["latency_s"][0] == 0.5
    assert found["latency_scheduled_s"][0] == 1.0
    assert found["late_s"][0] == 0.5


@pytest.mark.parametrize(
    ("events", "known_first", "expected"),
    [(64, None, 0.010), (16, None, 0.010), (16, 4, 0.010), (1, None, None)],
    ids=["one token an event", "four, not counted", "four, counted", "all in one event"],
)
def test_time_per_token_of_known_streams(events, known_first, expected):
    """64 tokens, one each 10 ms, written when an event's last token is there."""
    per_event = 64 // events
    first, last = 0.04 + per_event * 0.01, 0.04 + 64 * 0.01
    made = record(sent_s=0.0, end_s=last, first_token_s=first, last_token_s=last, output_tokens=64, events=events)
    made.tokens_first_event = known_first

    found = derive(frame([json.loads(made.to_json())]))["tpot_s"]

    if expected is None:
        assert found.isna().all()
    else:
        assert found[0] == pytest.approx(expected)


def test_a_failure_has_no_latency_however_fast_it_was():
    found = derive(frame([json.loads(record(sent_s=1.0, end_s=1.001, error="http_status", status=429).to_json())]))

    assert found[["latency_s", "latency_scheduled_s", "ttft_s", "tpot_s"]].isna().all(axis=None)


@pytest.mark.parametrize("broken_at", [0, 1, 777, 1499])
def test_everything_before_a_broken_line_is_kept_wherever_it_is(tmp_path, broken_at):
    path = tmp_path / "requests.jsonl"
    lines = [record(number=n).to_json() + b"\n" for n in range(1500)]
    lines[broken_at] = lines[broken_at][:25] + b"\n"
    path.write_bytes(b"".join(lines))

    found, whole = read_journal(path)

    assert found["number"].tolist() == list(range(broken_at))
    assert not whole


@pytest.mark.parametrize("line", [b"[]", b"{}", b"null", b"\x00\x00", b'{"run": "x"}'], ids=repr)
def test_a_line_that_is_no_record_is_a_break(tmp_path, line):
    path = tmp_path / "requests.jsonl"
    good = record().to_json()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")

    found, whole = read_journal(path)

    assert (len(found), whole) == (1, False)


def test_the_frame_of_a_journal_has_the_types_of_a_frame_of_rows(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(record(status=200, output_tokens=3).to_json() + b"\n" + record().to_json() + b"\n")

    found, _ = read_journal(path)

    assert found.dtypes.to_dict() == frame([json.loads(record().to_json())]).dtypes.to_dict()
    assert found["output_tokens"].isna().tolist() == [False, True]


def spoil(folder, name, column):
    """Replace a column of the folder's Parquet."""
    path = folder / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("arm", pa.array(["a", "c"]), "column arm, row 1: must be one of a, b, got 'c'"),
        ("error", pa.array([None, "tired"], pa.string()), "column error, row 1: must be one of connect"),
        ("number", pa.array([-1, 0]), "column number, row 0: must not be negative, got -1"),
        ("call", pa.array(["c", None]), "column call, row 1: a value is needed"),
        ("end_s", pa.array([2.0, 0.5]), "column end_s, row 1: must not be before sent_s, got 0.5"),
        ("status", pa.array(["200", "200"]), "column status must be int32, is string"),
    ],
)
def test_a_frame_that_breaks_the_schema_names_column_and_problem(tmp_path, name, values, said):
    folder = write_folder(tmp_path / "run", [record(sent_s=1.0, end_s=2.0), record(number=1, sent_s=1.0, end_s=2.0)])
    spoil(folder, name, values)

    with pytest.raises(ResultsError, match=said):
        load(folder)


def test_a_missing_and_an_unknown_column_are_named(tmp_path):
    folder = write_folder(tmp_path / "run", [record()])
    path = folder / "requests.parquet"
    table = pq.read_table(path)

    pq.write_table(table.drop_columns(["bytes"]), path)
    with pytest.raises(ResultsError, match="the column bytes is missing"):
        load(folder)

    pq.write_table(table.append_column("extra", pa.array([1])), path)
    with pytest.raises(ResultsError, match="unknown column extra"):
        load(folder)


def test_runs_that_were_broken_off_are_left_out_of_parquet_and_stay_in_the_journal(tmp_path):
    journal = tmp_path / "requests.jsonl"
    journal.write_bytes(b"".join(record(run=n % 3, number=n).to_json() + b"\n" for n in range(9)))

    assert write_parquet(journal, tmp_path / "requests.parquet", without_runs=[1])

    assert set(pq.read_table(tmp_path / "requests.parquet")["run"].to_pylist()) == {0, 2}
    assert len(read_journal(journal)[0]) == 9


def test_gaps_are_those_of_the_times_by_plain_arithmetic(tmp_path):
    chance = np.random.default_rng(1)
    times = [np.round(1 + np.cumsum(chance.exponential(0.02, size)), 6).tolist() for size in (5, 0, 1, 17)]
    records = [record(number=n, sent_s=1.0, end_s=99.0, event_times_s=each) for n, each in enumerate(times)]
    folder = write_folder(tmp_path / "run", records)

    found = pq.read_table(folder / "requests.parquet")["event_gaps_s"].to_pylist()

    for gaps, each in zip(found, times, strict=True):
        assert gaps == pytest.approx(
            [after - before for before, after in zip([1.0, *each], each, strict=False)], abs=1e-6
        )


def test_importing_the_package_imports_no_frames():
    program = "import sys, benchmarks; print(sorted({'pandas', 'pyarrow', 'numpy', 'locust'} & sys.modules.keys()))"

    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_the_schema_has_a_column_for_each_of_a_record():
    assert [name for name in PARQUET.names if name != "event_gaps_s"] == [
        name for name in COLUMNS if name != "event_times_s"
    ]
