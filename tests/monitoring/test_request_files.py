"""Reading the daily files: recent requests, new ones as they come, and what a line is."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
import threading
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from model_server.daily_files import DailyLines, Retention, archive, set_aside
from monitoring import request_files
from monitoring.request_files import (
    MAX_LINE_BYTES,
    REQUEST_DECODER,
    RequestLine,
    SystemLine,
    Tail,
    follow,
    read_recent,
    request_line,
    requests_path,
    system_path,
)

CHINA = timezone(timedelta(hours=8))
NOON = datetime(2026, 11, 26, 12, tzinfo=CHINA)
TODAY = NOON.date()
DAY = timedelta(days=1)
R13 = {
    "model": "qwen3:0.6b",
    "prompt_length": 12,
    "response_length": 34,
    "latency_ms": 56.5,
    "error": None,
    "status": "success",
}


def write(folder, at, *numbers):
    """Lines whose request ids are ``numbers``, a second apart."""
    lines = DailyLines(folder, "requests", say=pytest.fail)
    for number in numbers:
        lines.append(at, R13 | {"request_id": str(number)})
        at += timedelta(seconds=1)
    lines.close()


def ids(lines):
    return [int(line.request_id) for line in lines]


# What a line is --------------------------------------------------------------------------------------------------


def test_names_of_files_and_fields_are_those_of_r13():
    assert requests_path(Path("logs"), TODAY) == Path("logs/requests_20261126.jsonl")
    assert system_path(Path("logs"), TODAY) == Path("logs/system_20261126.jsonl")
    assert {"timestamp", *R13} == {name for name, field in RequestLine.model_fields.items() if field.is_required()}
    assert set(SystemLine.model_fields) == {
        "timestamp",
        "cpu_percent",
        "memory_percent",
        "memory_used_gb",
        "disk_usage_percent",
    }


def test_a_line_is_read_with_its_offset_and_what_it_does_not_have_is_none():
    line = request_line(json.dumps(R13 | {"timestamp": "2026-11-26T12:00:00.125+08:00", "of_tomorrow": [1]}).encode())

    assert line.timestamp == NOON + timedelta(milliseconds=125)
    assert line.timestamp.utcoffset() == timedelta(hours=8)
    assert line.model_dump(exclude={"timestamp"}, exclude_none=True) == {k: v for k, v in R13.items() if v is not None}
    assert isinstance(line, RequestLine)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
GOOD = R13 | {"timestamp": "2026-11-26T12:00:00+08:00", "confidence": 0.5, "tokens_used": 3, "category": "x"}


@hypothesis.given(st.dictionaries(st.sampled_from(sorted(RequestLine.model_fields)), JSON, max_size=3))
@hypothesis.settings(max_examples=500, deadline=None)
def test_whatever_is_read_is_a_valid_line(changed):
    """Two libraries know the fields: the fast one, which judges, takes nothing that the record's own rules refuse."""
    raw = json.dumps(GOOD | changed).encode()
    line = request_line(raw)
    if line is not None:
        assert RequestLine.model_validate(line.model_dump()) == line
        assert RequestLine.model_validate_json(raw).model_dump() == line.model_dump()


@pytest.mark.parametrize(
    "changed",
    [
        {"timestamp": "2026-11-26T12:00:00"},
        {"timestamp": None},
        {"model": None},
        {"prompt_length": -1},
        {"response_length": 1.5},
        {"latency_ms": -0.1},
        {"latency_ms": "5"},
        {"status": "200"},
        {"confidence": 1.01},
        {"error": 5},
    ],
)
def test_what_is_out_of_range_is_corrupt_to_both(changed):
    raw = json.dumps(GOOD | changed).encode()

    assert request_line(raw) is None
    with pytest.raises(msgspec.MsgspecError):
        REQUEST_DECODER.decode(raw)
    with pytest.raises(ValidationError):
        RequestLine.model_validate(json.loads(raw), strict="timestamp" not in changed)


# The last ones ---------------------------------------------------------------------------------------------------


def test_recent_requests_come_newest_first_across_midnight_and_archives(tmp_path):
    write(tmp_path, NOON - 2 * DAY, 0, 1, 2)
    write(tmp_path, datetime(2026, 11, 25, 23, 59, 58, tzinfo=CHINA), 3, 4)
    write(tmp_path, datetime(2026, 11, 26, 0, 0, 0, tzinfo=CHINA), 5, 6)
    archive(tmp_path, ["requests"], Retention(gzip_after_days=2), TODAY)
    assert {path.suffix for path in tmp_path.iterdir()} == {".gz", ".jsonl"}

    assert ids(read_recent(tmp_path, 3)) == [6, 5, 4]
    assert ids(read_recent(tmp_path, 6)) == [6, 5, 4, 3, 2, 1]
    assert ids(read_recent(tmp_path, 100)) == [6, 5, 4, 3, 2, 1, 0]
    assert read_recent(tmp_path / "missing", 5) == []


def test_corrupt_and_half_written_lines_are_passed_over(tmp_path):
    write(tmp_path, NOON, 0, 1)
    path = requests_path(tmp_path, TODAY)
    good = path.read_bytes().splitlines()[0]
    with path.open("ab") as file:
        file.write(b'{"torn": \n\n\xff\xfe\n[1]\n"a"\n' + good[:-5] + b"\n" + good)

    assert ids(read_recent(tmp_path, 10)) == [1, 0], "the last line has no end yet"


@pytest.mark.parametrize("padding", [0, 1, 500, 65_000, 200_000, 1_000_000])
def test_lines_over_the_seams_of_blocks_are_whole_and_endless_ones_are_passed_over(tmp_path, padding):
    """Whatever stands between, and wherever the blocks that are read from the end begin."""
    numbers = range(400)
    write(tmp_path, NOON, *numbers[:200])
    with requests_path(tmp_path, TODAY).open("ab") as file:
        file.write(b"x" * padding + b"\n")
    write(tmp_path, NOON + timedelta(hours=1), *numbers[200:])

    assert ids(read_recent(tmp_path, 1000)) == list(reversed(numbers))


def test_only_the_end_of_a_large_file_is_read_and_in_bounded_memory(tmp_path):
    write(tmp_path, NOON, 0)
    path = requests_path(tmp_path, TODAY)
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse: to read it all would take for ever
        file.seek(0, 2)
        file.write(b"\n")
    write(tmp_path, NOON, *range(1, 101))

    assert ids(read_recent(tmp_path, 100)) == list(range(100, 0, -1))


def test_an_archive_that_is_torn_gives_what_is_before_the_tear(tmp_path):
    write(tmp_path, NOON, *range(2000))
    set_aside(requests_path(tmp_path, TODAY), "requests", TODAY)
    plain = tmp_path / "requests_20261126.1.jsonl"
    packed = gzip.compress(plain.read_bytes())
    (tmp_path / "requests_20261126.1.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    plain.unlink()

    found = ids(read_recent(tmp_path, 10))
    assert found == list(range(found[0], found[0] - 10, -1))
    assert 100 < found[0] < 1999


def test_requests_are_read_while_their_file_is_archived(tmp_path):
    write(tmp_path, NOON, *range(50))
    over = threading.Event()

    def move():
        while not over.is_set():
            set_aside(requests_path(tmp_path, TODAY), "requests", TODAY)
            for part in tmp_path.glob("*.*.jsonl"):
                part.rename(requests_path(tmp_path, TODAY))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(300):
            assert len(read_recent(tmp_path, 50)) in (0, 50), "0: between two names, which only this test knows"
    finally:
        over.set()
        mover.join()


# New ones --------------------------------------------------------------------------------------------------------


def test_new_requests_come_once_each_and_in_order_from_the_call_on(tmp_path):
    write(tmp_path, NOON, 0, 1)
    coming = follow(tmp_path)
    write(tmp_path, NOON, 2, 3)

    assert ids([next(coming), next(coming)]) == [2, 3]
    coming.close()


def test_a_half_written_line_waits_for_its_end(tmp_path):
    write(tmp_path, NOON, 0)
    path = requests_path(tmp_path, TODAY)
    line = path.read_bytes()
    with path.open("ab", buffering=0) as file:
        file.write(line[:40])
        tail = Tail(tmp_path)  # begins in the middle of a line
        assert tail.new_lines() == []
        file.write(line[40:-1])
        assert tail.new_lines() == []
        file.write(b"\n")
        assert ids(tail.new_lines()) == [0]
        assert (tail.new_lines(), tail.corrupt) == ([], 0)
    tail.close()


def test_following_goes_over_midnight_archives_and_clocks_that_are_set(tmp_path):
    folder = tmp_path / "logs"  # not there yet
    tail = Tail(folder)
    seen = []
    for number, days in enumerate([0, 1, 1, 0, 2, -3, 2]):
        at = NOON + days * DAY
        write(folder, at, 3 * number)
        seen += ids(tail.new_lines())
        write(folder, at, 3 * number + 1)
        set_aside(requests_path(folder, at.date()), "requests", at.date())
        write(folder, at, 3 * number + 2)  # the same name, another file
        seen += ids(tail.new_lines())
    tail.new_lines()

    assert sorted(seen) == list(range(21))
    assert sorted(growing.path for growing in tail._open) == sorted(folder.glob("requests_????????.jsonl"))
    tail.close()


def test_corrupt_lines_are_counted_and_skipped(tmp_path):
    tail = Tail(tmp_path)
    requests_path(tmp_path, TODAY).write_bytes(b"{}\n" + b"x" * (3 << 20) + b"\n")
    write(tmp_path, NOON, 7)
    found = [line for _ in range(6) for line in tail.new_lines()]

    assert ids(found) == [7]
    assert tail.corrupt >= 2
    tail.close()


def test_a_file_that_was_cut_goes_on_with_what_comes(tmp_path):
    write(tmp_path, NOON, 0, 1, 2)
    tail = Tail(tmp_path)
    requests_path(tmp_path, TODAY).write_bytes(b"")
    assert tail.new_lines() == []
    write(tmp_path, NOON, 3)

    assert ids(tail.new_lines()) == [3]
    tail.close()


def test_a_thousand_lines_of_another_process_are_followed_without_a_miss(tmp_path):
    code = textwrap.dedent("""
        import sys
        from datetime import datetime, timedelta, timezone
        from pathlib import Path
        from model_server.daily_files import DailyLines
        lines = DailyLines(Path(sys.argv[1]), "requests", say=sys.exit)
        row = {"model": "m", "prompt_length": 1, "response_length": 1, "latency_ms": 1}
        row |= {"error": None, "status": "success"}
        at = datetime(2026, 11, 26, 23, 59, 59, tzinfo=timezone.utc)
        for number in range(1000):
            lines.append(at + timedelta(milliseconds=2 * number), row | {"request_id": str(number)})
    """)
    coming = follow(tmp_path)
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    found = [int(next(coming).request_id) for _ in range(1000)]
    coming.close()
    assert writer.wait() == 0

    assert sorted(found) == list(range(1000))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["requests_20261126.jsonl", "requests_20261127.jsonl"]


def test_limits_agree_with_what_is_written():
    assert MAX_LINE_BYTES > 100 * 500
    assert request_files._BLOCK_BYTES >= MAX_LINE_BYTES
    assert date(2026, 11, 26) == TODAY
