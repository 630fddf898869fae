"""The live view, and the lines of a log."""

from __future__ import annotations

import io
import json

from rich.console import Console

from benchmarks.progress import Display, recent_requests


def row(end, latency, error=None):
    return json.dumps({"end_s": end, "scheduled_s": end - latency, "error": error}) + "\n"


def test_recent_requests_are_those_of_the_last_seconds(tmp_path):
    journal = tmp_path / "requests.jsonl"
    old = "".join(row(at / 10, 9.0) for at in range(200))
    new = "".join(row(100 + at / 10, 0.25, "timeout" if at == 5 else None) for at in range(1, 51))
    journal.write_text(old + new + '{"end_s": 1', encoding="utf-8")

    found = recent_requests(journal, window_s=5.0)

    assert found is not None
    assert found.rate == 10.0
    assert found.failed == 1
    assert {round(value) for value in found.latencies_ms} == {250}
    assert round(found.in_flight, 3) == 2.5  # Little: 10 a second, a quarter of a second each


def test_only_the_end_of_a_long_journal_is_read(tmp_path):
    journal = tmp_path / "requests.jsonl"
    journal.write_text("".join(row(at / 1000, 0.01) for at in range(20_000)), encoding="utf-8")

    found = recent_requests(journal)

    assert found is not None
    assert 900 < found.rate < 1100


def test_no_journal_and_an_empty_one_say_nothing(tmp_path):
    (tmp_path / "empty").write_text("", encoding="utf-8")

    assert recent_requests(tmp_path / "none") is None
    assert recent_requests(tmp_path / "empty") is None


def test_the_view_says_what_runs_how_fast_and_how_far(tmp_path):
    journal = tmp_path / "requests.jsonl"
    journal.write_text("".join(row(at / 10, 0.04) for at in range(100)), encoding="utf-8")
    display = Display(quiet=True)
    display.expect(4)
    display.watch(journal)
    for _ in range(2):
        display.begin("warm")
        display.end()
    display.begin("pair 1 of 2, A")
    display.load(8, None, 60.0, None)
    display.tick(100, 3)

    shown = io.StringIO()
    Console(file=shown, width=110).print(display.view())

    text = shown.getvalue()
    for part in (
        "pair 1 of 2, A",
        "2/4",
        "10.0/s",
        "8 users",
        "p50 40.0",
        "p95 40.0 ms",
        "100 requests",
        "3 failed",
        "left",
    ):
        assert part in text, (part, text)


def test_a_narrow_terminal_is_not_overrun(tmp_path):
    display = Display(quiet=True)
    display.begin("a step with quite a long name that does not fit")

    shown = io.StringIO()
    Console(file=shown, width=30).print(display.view())

    assert max(map(len, shown.getvalue().splitlines())) <= 30


def test_a_terminal_gets_a_live_view_and_a_log_gets_lines(capsys):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    for console in (screen, Console(file=io.StringIO(), force_terminal=False, width=80)):
        with Display(console=console) as display:
            display.expect(1)
            display.begin("one")
            display.tick(7, 1)
            display.end()

    assert capsys.readouterr().err == "one: 7 requests, 1 failed\n"
    assert "one" in screen.file.getvalue()
