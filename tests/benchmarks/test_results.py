"""Journals and results folders, whole and broken; what follows from the times."""

from __future__ import annotations

import json

import pytest

from benchmarks.dialects import AnswerError, read_stream
from benchmarks.errors import ResultsError
from benchmarks.records import COLUMNS, Record
from benchmarks.results import RESULTS_VERSION, derive, frame, load, read_journal
from benchmarks.sse import Event


def record(**values):
    made = Record(run=0, arm="a", pair=0, phase="measure", number=0, user=0, call="c", scheduled_s=1.0)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write_folder(folder, records, version=RESULTS_VERSION):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"results_version": version}), encoding="utf-8")
    frame([json.loads(item.to_json()) for item in records]).to_parquet(folder / "requests.parquet", index=False)
    return folder


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

    found = load(write_folder(tmp_path / "run", [first, second]))

    assert found["category"].tolist()[0] == "网络故障"
    assert list(found["event_times_s"][0]) == [1.5, 1.6]
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


def chunk(at: float, **delta: str) -> Event:
    return Event(at, json.dumps({"choices": [{"delta": delta}]}).encode())


DONE = b"[DONE]"


def test_an_empty_delta_is_no_token():
    made = record()

    read_stream([chunk(1, role="assistant", content=""), chunk(2, content="a"), chunk(3), Event(4, DONE)], made)

    assert (made.first_token_s, made.last_token_s, made.end_s, made.events) == (2, 2, 4, 1)


def test_an_error_inside_a_stream_is_an_error_event():
    with pytest.raises(AnswerError) as caught:
        read_stream([chunk(1, content="a"), Event(2, b'{"error": {"message": "out of memory"}}')], record())

    assert (caught.value.kind, caught.value.detail) == ("error_event", "out of memory")


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([chunk(1, content="a")], "truncated"),
        ([], "truncated"),
        ([Event(1, DONE)], "malformed"),
        ([Event(1, b"<html>"), Event(2, DONE)], "malformed"),
        ([Event(1, b"[1]"), Event(2, DONE)], "malformed"),
        ([Event(1, b'{"choices": [7]}'), Event(2, DONE)], "malformed"),
    ],
)
def test_a_stream_that_is_not_one_is_an_error(events, kind):
    with pytest.raises(AnswerError) as caught:
        read_stream(events, record())

    assert caught.value.kind == kind
