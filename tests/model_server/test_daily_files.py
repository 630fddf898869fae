"""Daily files: whole lines from two processes, clocks that are set, archives, disks that are full."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from model_server import daily_files
from model_server.daily_files import DailyLines, Retention, archive, files, path_of, set_aside
from model_server.shared_file import SharedFile, compress

CHINA = timezone(timedelta(hours=8))
NOON = datetime(2026, 11, 26, 12, tzinfo=CHINA)
DAY = timedelta(days=1)


def rows_of(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def lines_in(folder, **more):
    """What writes, and the list of what it says."""
    said = []
    return DailyLines(folder, "requests", say=said.append, **more), said


# Lines -----------------------------------------------------------------------------------------------------------


def test_a_line_goes_to_the_local_day_that_its_own_timestamp_tells(tmp_path):
    lines, _ = lines_in(tmp_path / "made")
    late = datetime(2026, 11, 26, 23, 59, 59, 999_000, tzinfo=CHINA)  # in UTC it is 16 o'clock
    lines.append(late, {"n": 1})
    lines.append(late + timedelta(milliseconds=1), {"n": 2})
    lines.close()

    assert names(tmp_path / "made") == ["requests_20261126.jsonl", "requests_20261127.jsonl"]
    assert rows_of(tmp_path / "made/requests_20261126.jsonl") == [
        {"timestamp": "2026-11-26T23:59:59.999+08:00", "n": 1}
    ]
    assert rows_of(tmp_path / "made/requests_20261127.jsonl")[0]["timestamp"] == "2026-11-27T00:00:00.000+08:00"


def test_a_clock_that_steps_back_and_forth_puts_every_line_into_its_own_day(tmp_path):
    began = []
    lines, _ = lines_in(tmp_path, on_new_day=lambda: began.append(1))
    for number, days in enumerate([0, -1, 0, 400, 0, -400, 0]):
        lines.append(NOON + days * DAY, {"n": number})
    lines.close()

    found = {path.name: [row["n"] for row in rows_of(path)] for path in tmp_path.iterdir()}
    assert found == {
        "requests_20261126.jsonl": [0, 2, 4, 6],
        "requests_20261125.jsonl": [1],
        "requests_20271231.jsonl": [3],
        "requests_20251022.jsonl": [5],
    }
    assert len(began) == 7


def test_text_that_is_no_unicode_is_written_escaped(tmp_path):
    lines, _ = lines_in(tmp_path)
    lines.append(NOON, {"model": "\ud800"})

    assert rows_of(path_of(tmp_path, "requests", NOON.date()))[0]["model"] == "\ud800"


def test_two_processes_tear_and_lose_no_line(tmp_path):
    """While a third archives the file again and again, as after a clock that was set."""
    code = textwrap.dedent("""
        import sys
        from datetime import datetime, timezone
        from pathlib import Path
        from model_server.daily_files import DailyLines
        lines = DailyLines(Path(sys.argv[1]), "requests", say=sys.exit)
        for number in range(2000):
            # Lengths around a page, where writes that are no single ones would be torn.
            row = {"writer": sys.argv[2], "number": number, "padding": "p" * (7 * number % 5000)}
            lines.append(datetime(2026, 11, 26, tzinfo=timezone.utc), row)
    """)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    live = path_of(tmp_path, "requests", NOON.date())
    while any(writer.poll() is None for writer in writers):
        set_aside(live, "requests", NOON.date())
        for part in tmp_path.glob("*.jsonl"):
            if part != live:
                compress(part)
    assert [writer.wait() for writer in writers] == [0, 0]

    parts = files(tmp_path, "requests")
    seen = [(row["writer"], row["number"]) for part in parts for row in rows_of(part.path)]
    assert sorted(seen) == [(writer, number) for writer in "ab" for number in range(2000)]
    assert len(parts) > 5


def test_who_died_in_the_middle_of_a_line_costs_no_line_of_others(tmp_path):
    path = path_of(tmp_path, "requests", NOON.date())
    path.write_bytes(b'{"n": 1}\n{"n": 2, "half')
    lines, _ = lines_in(tmp_path)
    lines.append(NOON, {"n": 3})
    lines.append(NOON, {"n": 4})

    first, torn, third, fourth = path.read_bytes().splitlines()
    assert (json.loads(first)["n"], torn) == (1, b'{"n": 2, "half')
    assert [json.loads(line)["n"] for line in (third, fourth)] == [3, 4]


# Places that cannot be written -----------------------------------------------------------------------------------


def test_a_full_disk_costs_lines_is_said_once_and_they_come_back_with_the_space(small_disk):
    lost = []
    lines, said = lines_in(small_disk, on_lost=lambda: lost.append(1))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 44_000)
    for number in range(500):
        lines.append(NOON, {"n": number, "padding": "p" * 100})
    assert 300 < len(lost) == lines.lost < 500
    assert len(said) == 1
    assert "No space left on device" in said[0] or "did not fit" in said[0]

    ballast.unlink()
    for number in range(500, 520):
        lines.append(NOON, {"n": number, "padding": "p" * 100})

    assert said[1:] == [f"{small_disk}/requests_20261126.jsonl is written again; {len(lost)} lines were lost"]
    written = [row["n"] for row in rows_of(small_disk / "requests_20261126.jsonl")]  # parses each: no torn line
    assert (len(written), lines.written) == (520 - len(lost), 520 - len(lost))
    assert written[-20:] == list(range(500, 520))


def test_a_folder_that_cannot_be_made_costs_lines_and_is_said_with_its_name(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    lines, said = lines_in(tmp_path / "logs")
    lines.append(NOON, {"n": 1})
    (tmp_path / "logs").unlink()
    lines.append(NOON, {"n": 2})

    assert [row["n"] for row in rows_of(tmp_path / "logs/requests_20261126.jsonl")] == [2]
    assert said[0].startswith(f"cannot write {tmp_path}/logs/requests_20261126.jsonl (")
    assert said[1].endswith("1 lines were lost")


def test_a_file_or_folder_that_was_moved_away_is_made_anew(tmp_path):
    lines, said = lines_in(tmp_path / "logs")
    lines.append(NOON, {"n": 1})
    (tmp_path / "logs").rename(tmp_path / "moved")
    lines.append(NOON, {"n": 2})

    assert [row["n"] for row in rows_of(tmp_path / "moved/requests_20261126.jsonl")] == [1]
    assert [row["n"] for row in rows_of(tmp_path / "logs/requests_20261126.jsonl")] == [2]
    assert said == []


# Archives --------------------------------------------------------------------------------------------------------

KEEP = Retention(gzip_after_days=2, delete_after_days=4)


def write_days(folder, *days):
    for day in days:
        path_of(folder, "requests", NOON.date() + day * DAY).write_text(f'{{"n": {day}}}\n')


def test_old_days_are_compressed_and_older_ones_deleted(tmp_path):
    write_days(tmp_path, 0, -1, -2, -3, -4)
    (tmp_path / "requests_notes.jsonl").write_text("not ours")
    (tmp_path / "requests_20261126.jsonl").chmod(0o640)
    (tmp_path / "requests_20261124.jsonl").chmod(0o640)
    for _ in range(2):
        archive(tmp_path, ["requests", "system"], KEEP, NOON.date())

        assert names(tmp_path) == [
            "requests_20261123.1.jsonl.gz",
            "requests_20261124.1.jsonl.gz",
            "requests_20261125.jsonl",
            "requests_20261126.jsonl",
            "requests_notes.jsonl",
        ]
    assert rows_of(tmp_path / "requests_20261124.1.jsonl.gz") == [{"n": -2}]
    assert (tmp_path / "requests_20261124.1.jsonl.gz").stat().st_mode & 0o777 == 0o640


def test_a_day_that_a_clock_goes_back_to_gets_a_second_part(tmp_path):
    write_days(tmp_path, 0, -1, -5)
    archive(tmp_path, ["requests"], KEEP, NOON.date())
    lines, _ = lines_in(tmp_path)
    lines.append(NOON - 5 * DAY, {"n": "again"})
    archive(tmp_path, ["requests"], KEEP, NOON.date())

    assert [(file.path.name, file.part) for file in files(tmp_path, "requests", NOON.date() - 5 * DAY)] == [
        ("requests_20261121.2.jsonl.gz", 2),
        ("requests_20261121.1.jsonl.gz", 1),
    ]


def test_a_clock_that_was_years_ahead_deletes_nothing_that_is_young(tmp_path):
    write_days(tmp_path, 0, -1, 9000)
    archive(tmp_path, ["requests"], KEEP, NOON.date() + 9000 * DAY)
    archive(tmp_path, ["requests"], KEEP, NOON.date())

    assert names(tmp_path) == ["requests_20261125.1.jsonl.gz", "requests_20261126.jsonl", "requests_20510718.jsonl"]


def test_the_day_that_the_clock_shows_is_left_alone_whatever_else_is_there(tmp_path):
    write_days(tmp_path, 0, *range(1000, 1010))
    archive(tmp_path, ["requests"], KEEP, NOON.date())

    assert path_of(tmp_path, "requests", NOON.date()).exists()


def test_a_file_without_a_day_in_its_name_is_set_aside_when_its_day_has_ended(tmp_path):
    """Also when it was left by an earlier run."""
    path = tmp_path / "calls.jsonl"
    path.write_text('{"n": 0}\n')
    yesterday = NOON - DAY
    os.utime(path, (yesterday.timestamp(), yesterday.timestamp()))
    lines = DailyLines(tmp_path, "calls", undated=True, say=pytest.fail)
    for number, at in enumerate([NOON, NOON, NOON + DAY, NOON], 1):
        lines.append(at, {"n": number})

    day = datetime.fromtimestamp(yesterday.timestamp()).astimezone().strftime("%Y%m%d")
    found = {path.name: [row["n"] for row in rows_of(path)] for path in tmp_path.iterdir()}
    assert found == {
        f"calls_{day}.1.jsonl": [0],
        "calls_20261126.1.jsonl": [1, 2],
        "calls_20261127.1.jsonl": [3],
        "calls.jsonl": [4],
    }


def test_what_a_killed_archiver_left_is_done_again(tmp_path):
    """Killed while it compressed; killed before it could delete what it had compressed."""
    write_days(tmp_path, 0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"requests_20261120.1.jsonl.{ended.pid}.part").write_text("half")
    (tmp_path / "requests_20261120.1.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "requests_20261120.2.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "requests_20261120.2.jsonl.gz").write_bytes(gzip.compress(b'{"n": 2}\n'))
    assert [file.path.name for file in files(tmp_path, "requests", date(2026, 11, 20))] == [
        "requests_20261120.2.jsonl",
        "requests_20261120.1.jsonl",
    ], "each part once"
    archive(tmp_path, ["requests"], KEEP, NOON.date())

    assert names(tmp_path) == [
        "requests_20261120.1.jsonl.gz",
        "requests_20261120.2.jsonl.gz",
        "requests_20261126.jsonl",
    ]
    assert rows_of(tmp_path / "requests_20261120.2.jsonl.gz") == [{"n": 2}]


def test_an_archive_for_which_there_is_no_space_leaves_the_day_as_it_is(small_disk):
    noise = os.urandom(8_000).hex()
    path_of(small_disk, "requests", NOON.date() - 9 * DAY).write_text(noise)
    write_days(small_disk, 0, -1)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096) == 4096:
            if os.statvfs(small_disk).f_bavail < 2:
                break

    with pytest.raises(OSError, match="No space left"):
        archive(small_disk, ["requests"], KEEP, NOON.date())
    said = []
    daily_files.archive_in_background(small_disk, ["requests"], KEEP, said.append)
    while not said:
        time.sleep(0.01)

    assert "cannot archive in" in said[0]
    [left] = files(small_disk, "requests", NOON.date() - 9 * DAY)
    assert left.path.read_text() == noise


def test_a_folder_that_is_missing_has_no_files_and_nothing_to_archive(tmp_path):
    archive(tmp_path / "no", ["requests"], KEEP, NOON.date())

    assert files(tmp_path / "no", "requests") == []


def test_names_that_are_no_days_are_nobodys(tmp_path):
    for name in ("requests_20269999", "requests_2026112", "requests_20261126.1.2", "xrequests_20261126"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")

    assert files(tmp_path, "requests") == []


def test_local_now_knows_its_zone():
    assert abs(daily_files.local_now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_shared_file_that_is_moved_while_another_waits_for_it_is_opened_anew(tmp_path):
    path = tmp_path / "f"
    first, second = SharedFile(path), SharedFile(path)
    first.append(b"1\n")
    second.append(b"2\n")
    path.rename(tmp_path / "g")
    first.append(b"3\n")
    second.append(b"4\n")

    assert ((tmp_path / "g").read_bytes(), path.read_bytes()) == (b"1\n2\n", b"3\n4\n")
    assert (first.openings, second.openings) == (2, 2)
