"""The daily summary: right, incremental, bounded, and what its command says."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tracemalloc
from datetime import date, datetime, timedelta, timezone

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from model_server.daily_files import DailyLines, Retention, archive, encode, local_now, set_aside
from monitoring import daily_summary
from monitoring.daily_summary import ACCURACY, DailySummary, day_of, main, summarise
from monitoring.request_files import requests_path, system_path
from runconfig import ConfigError

NOON = datetime(2026, 11, 26, 12, tzinfo=timezone(timedelta(hours=8)))
TODAY = NOON.date()
NAMES = [
    "total_requests",
    "successful_requests",
    "error_requests",
    "avg_latency_ms",
    "max_latency_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
    "avg_cpu_percent",
    "max_memory_percent",
]


def request(latency_ms, status="success"):
    row = {"model": "m", "prompt_length": 1, "response_length": 1, "latency_ms": latency_ms}
    return row | {"status": status, "error": None if status == "success" else "queue_full"}


def write(folder, *rows, at=NOON, name="requests"):
    lines = DailyLines(folder, name, say=pytest.fail)
    for row in rows:
        lines.append(at, row)
    lines.close()


def minute(cpu, memory, gb):
    return {"cpu_percent": cpu, "memory_percent": memory, "memory_used_gb": gb, "disk_usage_percent": 1}


# Right -----------------------------------------------------------------------------------------------------------


def test_a_day_by_hand(tmp_path):
    write(tmp_path, request(10), request(20), request(0.5, "error"), request(60))
    write(tmp_path, minute(10, 40, 3.5), minute(30, 50, 4.25), name="system")
    summary = summarise(tmp_path, TODAY)

    assert (summary.total_requests, summary.successful_requests, summary.error_requests) == (4, 3, 1)
    assert (summary.avg_latency_ms, summary.max_latency_ms) == (30, 60)
    assert (summary.avg_cpu_percent, summary.max_memory_percent, summary.max_memory_used_gb) == (20, 50, 4.25)
    assert summary.p50_latency_ms == pytest.approx(20, rel=ACCURACY)
    assert (summary.corrupt_lines, summary.day) == (0, TODAY)
    assert set(NAMES) < set(DailySummary.model_fields)


def test_a_day_without_files_or_without_successes_has_no_latency(tmp_path):
    empty = summarise(tmp_path / "missing", TODAY)
    write(tmp_path, request(5, "error"))
    failed = summarise(tmp_path, TODAY)

    assert (empty.total_requests, failed.total_requests, failed.error_requests) == (0, 1, 1)
    for summary in (empty, failed):
        assert all(getattr(summary, name) is None for name in NAMES[3:])
    assert not (tmp_path / "missing").exists()


@hypothesis.given(
    st.lists(st.floats(0.001, 1e7), min_size=1, max_size=200), st.integers(1, 5), st.sampled_from([50, 95, 99])
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_percentiles_are_those_of_numpy_within_the_accuracy(tmp_path_factory, latencies, pieces, q):
    """However the day was cut into pieces between which somebody asked."""
    folder = tmp_path_factory.mktemp("day")
    for piece in range(pieces):
        write(folder, *map(request, latencies[piece::pieces]))
        summary = summarise(folder, TODAY)

    expected = np.percentile(latencies, q)
    assert getattr(summary, f"p{q}_latency_ms") == pytest.approx(expected, rel=ACCURACY * 1.01, abs=0.0006)
    assert summary.avg_latency_ms == pytest.approx(np.mean(latencies), rel=1e-9, abs=0.0006)
    assert summary.max_latency_ms == pytest.approx(max(latencies), abs=0.0006)
    assert summary.total_requests == len(latencies)


def test_a_latency_of_nothing_is_the_least_that_is_recorded(tmp_path):
    write(tmp_path, request(0), request(0))

    assert (summarise(tmp_path, TODAY).p50_latency_ms, summarise(tmp_path, TODAY).max_latency_ms) == (0, 0)


def test_corrupt_lines_are_counted_and_half_written_ones_wait(tmp_path):
    write(tmp_path, request(1))
    write(tmp_path, minute(1, 2, 3), name="system")
    with requests_path(tmp_path, TODAY).open("ab") as file:
        file.write(b"{}\nnot json\n\xff\n\n" + encode(request(2) | {"timestamp": NOON.isoformat()})[:-9])
    with system_path(tmp_path, TODAY).open("ab") as file:
        file.write(b'{"cpu_percent": "much"}\n{"cpu')
    before = summarise(tmp_path, TODAY)
    with requests_path(tmp_path, TODAY).open("ab") as file:
        file.write(encode(request(2) | {"timestamp": NOON.isoformat()})[-9:])
    after = summarise(tmp_path, TODAY)

    assert (before.total_requests, before.corrupt_lines) == (1, 4)
    assert (after.total_requests, after.corrupt_lines) == (2, 4)


# Incremental -----------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_read(tmp_path):
    """What was read before is spoilt, and nobody notices."""
    write(tmp_path, request(10), request(30))
    summarise(tmp_path, TODAY)
    path = requests_path(tmp_path, TODAY)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"#" * (size - 1))
    write(tmp_path, request(50))

    assert (summarise(tmp_path, TODAY).avg_latency_ms, summarise(tmp_path, TODAY).corrupt_lines) == (30, 0)


def test_archiving_changes_no_summary_and_is_read_once(tmp_path):
    rows = [request(random.Random(number).uniform(1, 100)) for number in range(300)]
    write(tmp_path, *rows[:100])
    first = summarise(tmp_path, TODAY)
    write(tmp_path, *rows[100:200])
    set_aside(requests_path(tmp_path, TODAY), "requests", TODAY)
    second = summarise(tmp_path, TODAY)
    write(tmp_path, *rows[200:])  # a clock that stepped back
    write(tmp_path, request(1), at=NOON + 9 * timedelta(days=1))
    archive(tmp_path, ["requests"], Retention(gzip_after_days=1), date(2026, 12, 5))
    third = summarise(tmp_path, TODAY)

    assert [one.total_requests for one in (first, second, third)] == [100, 200, 300]
    assert {path.name for path in tmp_path.glob("*26.*.gz")} == {f"requests_20261126.{n}.jsonl.gz" for n in (1, 2)}
    assert third.avg_latency_ms == pytest.approx(np.mean([row["latency_ms"] for row in rows]), abs=0.001)
    for path in tmp_path.glob("*26.*.gz"):
        path.write_bytes(b"spoilt")
    assert summarise(tmp_path, TODAY) == third
    (tmp_path / "summary_20261126.json").unlink()
    assert summarise(tmp_path, TODAY).corrupt_lines == 2


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    write(tmp_path, request(1), request(2), request(3))
    summarise(tmp_path, TODAY)
    path = requests_path(tmp_path, TODAY)
    path.rename(tmp_path / "kept")
    write(tmp_path, *[request(7)] * 9)
    assert summarise(tmp_path, TODAY).total_requests == 9

    path.write_bytes(encode(request(5) | {"timestamp": NOON.isoformat()}))
    assert (summarise(tmp_path, TODAY).total_requests, summarise(tmp_path, TODAY).avg_latency_ms) == (1, 5)


@pytest.mark.parametrize(
    "spoilt", [b"", b"{", b"[]", b'{"read": {"parts": {"1": {"read_bytes": "x"}}}}', b'{"read": 5}']
)
def test_a_spoilt_memory_means_reading_again(tmp_path, spoilt):
    write(tmp_path, request(1), request(3))
    before = summarise(tmp_path, TODAY)
    (tmp_path / "summary_20261126.json").write_bytes(spoilt)

    assert summarise(tmp_path, TODAY) == before


def test_a_folder_that_cannot_be_written_is_summarised_all_the_same(tmp_path):
    """Root may write everywhere: a folder in the way of the new memory stands for the missing right."""
    write(tmp_path, request(1), request(3))
    (tmp_path / "summary_20261126.json").mkdir()

    assert summarise(tmp_path, TODAY).total_requests == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests_20261126.jsonl", "summary_20261126.json"]


def test_a_day_that_is_written_and_archived_meanwhile_is_counted_once(tmp_path):
    code = """
import sys, time
from datetime import datetime, timezone
from pathlib import Path
from model_server.daily_files import DailyLines, set_aside, path_of
folder = Path(sys.argv[1])
at = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
row = {"model": "m", "prompt_length": 1, "response_length": 1, "latency_ms": 1, "status": "success", "error": None}
lines = DailyLines(folder, "requests", say=sys.exit)
for number in range(4000):
    lines.append(at, row)
    if number % 400 == 0:
        set_aside(path_of(folder, "requests", at.date()), "requests", at.date())
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    seen = []
    while writer.poll() is None:
        seen.append(summarise(tmp_path, TODAY).total_requests)
    seen.append(summarise(tmp_path, TODAY).total_requests)

    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert seen[-1] == 4000


def test_memory_is_bounded_by_blocks_and_not_by_the_day(tmp_path, monkeypatch):
    monkeypatch.setattr(daily_summary, "BLOCK_BYTES", 1 << 16)
    line = encode(request(5) | {"timestamp": NOON.isoformat()})
    peaks = []
    for times in (1, 20):
        folder = tmp_path / str(times)
        folder.mkdir()
        requests_path(folder, TODAY).write_bytes(line * 3000 * times)
        tracemalloc.start()
        assert summarise(folder, TODAY).total_requests == 3000 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.5 * peaks[0]


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_tells_people_and_programs(tmp_path, capsys):
    write(tmp_path, request(1234.5), at=local_now())
    assert main([f"logs={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "1,234.5 ms" in told
    assert json.loads(told.splitlines()[-1])["total_requests"] == 1

    assert main([f"logs={tmp_path}", "day=today", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert DailySummary.model_validate_json(line).max_latency_ms == 1234.5


def test_a_day_can_be_written_in_each_usual_way(tmp_path, capsys):
    for text, expected in (("2026-11-25", date(2026, 11, 25)), ("20261125", date(2026, 11, 25))):
        assert day_of(text, TODAY) == expected
        assert main([f"logs={tmp_path}", f"day={text}"]) == 1
        assert "nothing was recorded on 2026-11-25; in" in capsys.readouterr().err
    assert day_of("yesterday", TODAY) == date(2026, 11, 25)
    assert day_of("today", TODAY) == TODAY


@pytest.mark.parametrize("text", ["2026-13-01", "2026-02-30", "26.11.2026", "20261301", "tomorrow", "1", "-5", "2026"])
def test_a_wrong_date_is_explained(tmp_path, capsys, text):
    assert main([f"logs={tmp_path}", f"day={text}"]) == 2
    said = capsys.readouterr().err
    assert f"day={text} is no date" in said
    assert "write year-month-day, for example day=" in said


def test_what_else_is_wrong_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(ConfigError, match="is yet to come: today is 2026-11-26"):
        day_of("2026-11-27", TODAY)
    write(tmp_path, request(1))
    for words, code, told in (
        ([f"log={tmp_path}"], 2, "did you mean 'logs'"),
        ([f"logs={tmp_path}", "day=2026-01-01"], 1, "there is 2026-11-26"),
        ([f"logs={tmp_path}/no"], 1, "no day at all"),
        ([f"logs={requests_path(tmp_path, TODAY)}"], 2, "Not a directory"),
    ):
        assert main(words) == code
        assert told in capsys.readouterr().err


def test_archives_of_the_machine_are_read_too(tmp_path):
    path = tmp_path / "system_20261126.1.jsonl.gz"
    path.write_bytes(gzip.compress(encode(minute(80, 90, 7) | {"timestamp": NOON.isoformat()})))

    assert (summarise(tmp_path, TODAY).avg_cpu_percent, summarise(tmp_path, TODAY).max_memory_percent) == (80, 90)
