"""The self-test from end to end, and that it fails when the client is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from typing import get_args

import pytest

from benchmarks.__main__ import main as benchmarks
from benchmarks.config import Dialect
from benchmarks.records import Record
from benchmarks.results import derive, frame
from benchmarks.selftest import Cell, Settings, cells_of, judge, main
from benchmarks.truth_server.modes import COMBINATIONS, MODES

TEXTS = ["selftest 0 #0", "selftest 1 #1"]


def selftest(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "selftest", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_client_is_right_in_a_few_modes_of_a_dialect(tmp_path):
    out = tmp_path / "selftest.json"

    done = selftest("dialect=chat_stream", "mode=plain,role_first,several,stale,http500,truncated", f"out={out}")

    found = json.loads(out.read_text())
    summary = json.loads(done.stdout.splitlines()[-1])
    assert {cell["mode"]: cell["wrong"] for cell in found["cells"]} == {
        key: [] for key in ["plain", "role_first", "several", "stale", "http500", "truncated"]
    }
    assert summary == {key: value for key, value in found.items() if key != "cells"} | {"cells": 6}
    assert done.returncode == summary["exit_code"] == {"PASS": 0, "FAIL": 1, "INVALID": 4}[summary["verdict"]]
    assert summary["requests"] == 4 + 4 + 4 + 4 + 2 + 2
    assert "role_first" in done.stdout
    by_mode = {cell["mode"]: cell for cell in found["cells"]}
    assert by_mode["several"]["tpot_error"] is not None
    assert by_mode["http500"]["classes"] == ["http_status"]
    assert by_mode["http500"]["ttft_error_s"] is None


def test_a_truth_that_differs_from_what_the_client_says_fails(tmp_path):
    """The server says on purpose what is not: written 10 ms earlier, a token more, another end."""
    out = tmp_path / "selftest.json"

    done = selftest("dialect=ollama_stream,llamacpp_stream", "mode=plain,false_truth", "--json", f"out={out}")

    summary = json.loads(done.stdout)
    assert done.returncode == 1
    assert {"ollama_stream: false_truth", "llamacpp_stream: false_truth"} <= set(summary["failed"])
    for cell in json.loads(out.read_text())["cells"]:
        if cell["mode"] == "false_truth":
            assert cell["tokens_wrong"] == cell["requests"] == 4
            assert any("25" in note for note in cell["wrong"])
            assert any("finish reason" in note for note in cell["wrong"])
            assert cell["ttft_error_s"] > 0.005


def test_all_modes_are_tried_in_every_dialect_that_has_them():
    cells = {(cell.mode, cell.dialect) for cell in cells_of(Settings())}

    for name, mode in MODES.items():
        wanted = mode.on if mode.in_selftest else frozenset()
        assert {dialect for seen, dialect in cells if seen == name} == wanted
    for name, on in COMBINATIONS.items():
        assert {dialect for seen, dialect in cells if seen == name} == on
    assert {dialect for _, dialect in cells} == set(get_args(Dialect))


# The judgement, on records and a server's log that are made up here.

ORIGIN = 100.0


def entry(text, **changes):
    """Asked at 1.000 s, four tokens at 1.050, 1.060, 1.070 and 1.080 s of the records' clock."""
    written = [101.05, 101.06, 101.07, 101.08]
    truth = {
        "errors": [None],
        "status": 200,
        "output_tokens": 4,
        "prompt_tokens": 7,
        "usage": True,
        "finish_reason": "stop",
        "n_first": 1,
        "events": 4,
        "first_content": 0,
        "text_sha256": [sha256(text.encode()).hexdigest()],
        "category": None,
    }
    return {
        "dialect": "chat_stream",
        "mode": "plain",
        "arrived": 101.0,
        "ended": 101.081,
        "written": written,
        "due": written,
        "tokens": [1, 1, 1, 1],
        "truth": truth,
    } | changes


def record(number, **changes):
    values = {
        "run": 1,
        "arm": "a",
        "pair": 0,
        "phase": "probe",
        "number": number,
        "user": 0,
        "call": f"text-{number + 1}",
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "first_byte_s": 1.01,
        "first_token_s": 1.05,
        "first_content_s": 1.05,
        "last_token_s": 1.08,
        "end_s": 1.081,
        "status": 200,
        "prompt_tokens": 7,
        "output_tokens": 4,
        "tokens_first_event": 1.0,
        "events": 4,
        "finish_reason": "stop",
        "output_sha256": sha256(TEXTS[number].encode()).hexdigest(),
    } | changes
    return json.loads(Record(**values).to_json())


def judged(changes=None, entry_changes=None, mode="plain"):
    """A cell of two requests, the records (and entries) of both changed in the same way."""
    cell = Cell(mode, "chat_stream")
    records = derive(frame([record(number, **(changes or {})) for number in range(2)]))
    entries = {(mode, sha256(text.encode()).hexdigest()[:16]): [entry(text, **(entry_changes or {}))] for text in TEXTS}
    judge(cell, records, entries, TEXTS, ORIGIN)
    return cell


def test_records_that_say_what_the_server_wrote_pass():
    cell = judged()

    assert (cell.verdict, cell.wrong, cell.slow) == ("PASS", [], [])
    assert cell.ttft_error_s == pytest.approx(0, abs=1e-9)
    assert cell.tpot_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first_token_s": 1.0535, "first_content_s": 1.0535}, "first token off by 3.5 ms"),
        ({"first_token_s": 1.0465, "first_content_s": 1.0465}, "first token off by 3.5 ms"),
        ({"end_s": 1.0851}, "end off by 4.1 ms"),
        ({"last_token_s": 1.0804}, "time per token off by 1.3%"),
        ({"tokens_first_event": 0.5}, "time per token off by 14.3%"),
        ({"output_tokens": 5}, "5 tokens, true are 4"),
        ({"output_tokens": None}, "tokens, true are 4"),
        ({"events": 5}, "events: 5, true: 4"),
        ({"finish_reason": "length"}, "finish reason length, true is stop"),
        ({"output_sha256": "0" * 64}, "another text"),
        ({"prompt_tokens": 8}, "prompt tokens: 8, true: 7"),
        ({"error": "truncated"}, "error truncated, true is none"),
        ({"status": 500, "error": "http_status"}, "error http_status, true is none"),
        ({"first_token_s": None, "first_content_s": None}, "no figure for ttft"),
    ],
)
def test_records_that_say_something_else_fail(changes, said):
    cell = judged(changes)

    assert cell.verdict == "FAIL"
    assert any(said in note for note in cell.wrong + cell.slow), cell.wrong + cell.slow


def test_a_failure_that_is_reported_as_a_success_fails():
    cell = judged(mode="truncated")

    assert cell.verdict == "FAIL"
    assert "true is truncated" in cell.wrong[0]


def test_a_request_that_the_server_never_saw_fails():
    cell = Cell("plain", "chat_stream")
    judge(cell, derive(frame([record(0)])), {}, TEXTS, ORIGIN)

    assert "never saw" in cell.wrong[0]


def test_a_late_server_leaves_times_undecided_but_not_counts():
    late = {"due": [at - 0.02 for at in (101.05, 101.06, 101.07, 101.08)]}

    assert judged({"end_s": 1.0851}, late).verdict == "INVALID"
    assert judged({"end_s": 1.0851, "output_tokens": 5}, late).verdict == "FAIL"
    assert judged({}, late).verdict == "PASS"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mode=nosuch"], "no mode 'nosuch'"),
        (["dialect=nosuch"], "no dialect 'nosuch'"),
        (["dialect=classify", "mode=nospace"], "not classify"),
        (["nonsense"], "key=value"),
        (["requests=0"], "requests"),
        (["speed=3"], "unknown key"),
    ],
)
def test_a_wrong_word_ends_in_one_line(words, said, capsys):
    assert benchmarks(["selftest", *words]) == 2

    assert said in capsys.readouterr().err


def test_the_verb_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])

    assert left.value.code == 0
    assert "bars:" in capsys.readouterr().out
