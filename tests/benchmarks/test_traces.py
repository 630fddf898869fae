"""Traces: read strictly, made from the server's log without a word of what was said, replayed by the real client."""

from __future__ import annotations

import gzip
import json
import random
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.arrivals import Arrivals, check_trace, schedule
from benchmarks.errors import CallsFileError, UsageError
from benchmarks.request_log import convert
from benchmarks.traces import nearest_calls, read_trace

BOOT = 1_764_000_000.0
SECRET = "客户说了什么"


def log_line(arrived, *, latency=0.5, boot=BOOT, event="request", **fields):
    """What model_server/app.py writes when a request that came at ``arrived`` (monotonic) has ended."""
    end = arrived + latency
    row = {
        "timestamp": datetime.fromtimestamp(boot + end, UTC).isoformat().replace("+00:00", "Z"),
        "level": "info",
        "event": event,
        "logger": "model_server",
        "monotonic": round(end, 6),
    }
    if event == "request":
        row |= {"endpoint": "chat", "model": "m", "status": 200, "error": None, "latency_ms": latency * 1000}
        row |= {"prompt_length": 30, "response_length": 9, "prompt_tokens": 40, "tokens": 12, "queue_ms": 0.1}
        row |= {"first_token_ms": 20.0, "key": "team-secret", "request_id": "f00d", "prompt_masked": SECRET}
    return row | fields


def write_log(path, rows, pack=False):
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return path


def write_trace(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def offsets_of(rows):
    return [row["offset_s"] for row in rows]


def replay(path, **load):
    settings = {"pattern": "trace", "trace": path} | load.pop("arrivals", {})
    limits = {"duration_s": None, "requests": None, "seed": "1/0"} | load
    return schedule(Arrivals.model_validate(settings), rate_per_s=None, **limits)


# From the server's log.


def test_a_requests_moment_is_when_it_came_and_not_when_it_ended(tmp_path):
    """The second came while the first was answered: the log has them in the order of their ends."""
    log = write_log(tmp_path / "server.jsonl", [log_line(101.0, latency=0.2), log_line(100.0, latency=3.0)])

    rows, summary = convert([log])

    assert offsets_of(rows) == pytest.approx([0.0, 1.0])
    assert summary["requests"] == 2
    assert summary["span_s"] == pytest.approx(1.0)


def test_several_files_packed_or_not_in_any_order_give_one_trace(tmp_path):
    arrivals = np.cumsum(np.random.default_rng(5).exponential(0.3, 300)) + 50
    lines = [log_line(at, latency=0.1 + at % 1) for at in arrivals.tolist()]
    random.Random(3).shuffle(lines)
    first = write_log(tmp_path / "server-20261123-000001.jsonl.gz", lines[:120], pack=True)
    second = write_log(tmp_path / "server.jsonl", lines[120:])

    rows, summary = convert([second, first])

    assert offsets_of(rows) == pytest.approx(arrivals - arrivals[0], abs=2e-6)
    assert summary["gap_cv"] == pytest.approx(np.std(np.diff(arrivals)) / np.mean(np.diff(arrivals)), rel=1e-3)


def test_nothing_but_figures_gets_into_a_trace(tmp_path):
    log = write_log(tmp_path / "server.jsonl", [log_line(1.0, prompt_length=11, tokens=5), log_line(2.0)])
    out = tmp_path / "trace.jsonl"

    assert main(["trace", str(log), str(out)]) == 0

    text = out.read_text(encoding="utf-8")
    assert SECRET not in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"offset_s": 0.0, "prompt_characters": 11, "prompt_tokens": 40, "max_tokens": 5},
        {"offset_s": 1.0, "prompt_characters": 30, "prompt_tokens": 40, "max_tokens": 12},
    ]
    assert set(text) <= set('{}":,. \n_0123456789' + "offset_s prompt_characters prompt_tokens max_tokens")


def test_the_clock_that_was_set_under_a_running_server_moves_nothing(tmp_path):
    """An hour back in the middle: the monotonic clock goes on, and no server started since."""
    start = log_line(10.0, latency=0, event="listening")
    before = [log_line(10.0 + at) for at in range(5)]
    after = [log_line(15.0 + at, boot=BOOT - 3600) for at in range(5)]

    rows, summary = convert([write_log(tmp_path / "server.jsonl", [start, *before, *after])])

    assert offsets_of(rows) == pytest.approx(range(10))
    assert summary["clocks"] == 1


def test_after_a_boot_the_wall_clock_says_how_long_the_machine_was_away(tmp_path):
    """The monotonic clock begins anew: 100 s after the last request of the first boot comes the second's first."""
    first = [log_line(500.0, latency=0, event="listening"), log_line(500.0), log_line(502.0)]
    second = [
        log_line(20.0, latency=0, event="listening", boot=BOOT + 580),
        log_line(22.0, boot=BOOT + 580),
        log_line(23.0, boot=BOOT + 580),
    ]

    rows, summary = convert([write_log(tmp_path / "server.jsonl", first + second)])

    assert offsets_of(rows) == pytest.approx([0, 2, 102, 103])
    assert summary["clocks"] == 2


def test_lines_without_a_monotonic_clock_are_placed_by_their_timestamp(tmp_path):
    lines = [log_line(at) for at in (5.0, 6.5, 9.0)]
    for line in lines:
        del line["monotonic"]

    rows, _ = convert([write_log(tmp_path / "server.jsonl", lines)])

    assert offsets_of(rows) == pytest.approx([0, 1.5, 4.0], abs=2e-6)


def test_a_slow_drift_of_the_wall_clock_is_no_other_boot(tmp_path):
    """An hour at 500 parts in a million, as NTP may slew, is 1.8 s."""
    lines = [log_line(float(at), boot=BOOT + at * 500e-6) for at in range(0, 3600, 10)]

    rows, summary = convert([write_log(tmp_path / "server.jsonl", lines)])

    assert summary["clocks"] == 1
    assert offsets_of(rows) == pytest.approx(range(0, 3600, 10), abs=1e-6)


def test_broken_lines_are_told_with_their_number_and_the_rest_is_kept(tmp_path, capsys):
    log = write_log(
        tmp_path / "server.jsonl",
        [
            log_line(1.0),
            '{"timestamp": "2026-11-2',
            "[1]",
            log_line(2.0, timestamp="yesterday"),
            log_line(3.0, latency_ms="fast"),
            "",
            log_line(4.0),
        ],
    )
    out = tmp_path / "trace.jsonl"

    assert main(["trace", str(log), str(out)]) == 0

    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.err.splitlines()] == [f"{log}:{number}" for number in (2, 3, 4, 5)]
    summary = json.loads(said.out.splitlines()[-1])
    assert (summary["requests"], summary["broken_lines"]) == (2, 4)


def test_of_a_torn_archive_what_is_before_the_tear_is_kept(tmp_path, capsys):
    rows = [log_line(float(at), request_id=random.Random(at).randbytes(40).hex()) for at in range(2000)]
    log = write_log(tmp_path / "server.jsonl.gz", rows, pack=True)
    log.write_bytes(log.read_bytes()[:60_000])

    kept, summary = convert([log])

    assert 100 < len(kept) < 2000
    assert offsets_of(kept) == pytest.approx(range(len(kept)))
    assert summary["broken_lines"] >= 1
    assert "torn" in capsys.readouterr().err


def test_one_endpoint_is_chosen_and_refused_requests_are_counted_and_left_out(tmp_path):
    lines = [
        log_line(1.0),
        log_line(2.0, endpoint="classify", tokens=0),
        log_line(3.0, status=429, prompt_length=0, prompt_tokens=None, tokens=0, error="rate_limited"),
        log_line(4.0, status=503, prompt_tokens=None, tokens=0, error="overloaded"),
    ]
    log = write_log(tmp_path / "server.jsonl", lines)

    with pytest.raises(UsageError, match=r"choose one with endpoint=NAME: chat \(3\), classify \(1\)"):
        convert([log])
    with pytest.raises(UsageError, match="no request to 'generate'"):
        convert([log], "generate")
    rows, summary = convert([log], "chat")
    classified, _ = convert([log], "classify")

    assert offsets_of(rows) == pytest.approx([0, 3])
    assert rows[1] == {"offset_s": 3.0, "prompt_characters": 30}  # how long its answer would have been is unknown
    assert (summary["refused_unread"], summary["other_endpoints"]) == (1, 1)
    assert all("max_tokens" not in row for row in classified)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.jsonl", "out.jsonl"], "cannot read the log"),
        (["server.jsonl"], "name the log"),
        (["server.jsonl", "there.jsonl"], "exists"),
        (["other.jsonl", "out.jsonl"], "is it the model server's log?"),
        (["server.jsonl", "out.jsonl", "endpoint=x"], "there are: chat"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "server.jsonl", [log_line(1.0)])
    write_log(tmp_path / "there.jsonl", [])
    write_log(tmp_path / "other.jsonl", [{"a": 1}])

    assert main(["trace", *words]) == 2

    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "there.jsonl").read_text() == ""


def test_what_our_own_server_logs_can_be_converted(tmp_path):
    """Through the server's own logging set-up, not a line written here."""
    import subprocess
    import sys

    program = """
import sys, time
from pathlib import Path
import structlog
from model_server.logs import configure
configure("INFO", Path(sys.argv[1]))
log = structlog.get_logger("model_server")
log.info("listening", url="http://x")
for number in range(5):
    time.sleep(0.05)
    log.info("request", endpoint="chat", status=200, error=None, latency_ms=1.0, prompt_length=7 + number,
             response_length=3, prompt_tokens=9, tokens=4, key="k", prompt_masked="words")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)

    rows, summary = convert([tmp_path / "server.jsonl"])

    assert [row["prompt_characters"] for row in rows] == [7, 8, 9, 10, 11]
    assert np.diff(offsets_of(rows)) == pytest.approx(0.05, abs=0.03)
    assert summary["broken_lines"] == 0


# Read and replayed.


def test_a_trace_is_replayed_at_its_times_faster_when_asked(tmp_path):
    rows = [{"offset_s": at, "max_tokens": tokens} for at, tokens in ((4, 14), (0, 10), (1, 11), (2.5, 30), (8, 50))]
    path = write_trace(tmp_path / "t.jsonl", rows)

    assert replay(path).offsets_s.tolist() == [0, 1, 2.5, 4, 8]
    assert replay(path).max_tokens.tolist() == [10, 11, 30, 14, 50]
    assert replay(path, arrivals={"speed": 4}).offsets_s.tolist() == [0, 0.25, 0.625, 1, 2]
    assert replay(path, duration_s=4).offsets_s.tolist() == [0, 1, 2.5]
    assert replay(path, requests=2).max_tokens.tolist() == [10, 11]
    assert replay(path).calls is None


@given(
    wanted=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    data=st.data(),
)
def test_the_nearest_call_is_one_of_the_nearest_and_each_of_them_can_be_it(wanted, lengths, data):
    chance = [data.draw(st.floats(0, 1, exclude_max=True)) for _ in wanted]

    found = nearest_calls(np.array(wanted), np.array(lengths), np.array(chance))

    for want, at in zip(wanted, found.tolist(), strict=True):
        assert abs(lengths[at] - want) == min(abs(length - want) for length in lengths)
    want = wanted[0]
    equals = {
        at for at, length in enumerate(lengths) if abs(length - want) == min(abs(each - want) for each in lengths)
    }
    tried = nearest_calls(np.full(200, want), np.array(lengths), np.linspace(0, 1, 200, endpoint=False))
    assert set(tried.tolist()) == equals


def test_texts_come_from_the_calls_by_length_and_the_seed_breaks_ties(tmp_path):
    texts = ["a" * 10, "b" * 20, "c" * 20, "d" * 90]
    path = write_trace(
        tmp_path / "t.jsonl", [{"offset_s": at, "prompt_characters": 8 if at < 5 else 19} for at in range(50)]
    )

    found = replay(path, texts=texts)

    assert set(found.calls[:5].tolist()) == {0}
    assert set(found.calls[5:].tolist()) == {1, 2}
    assert found.characters is None
    assert found.sha256 == replay(path, texts=texts).sha256
    assert found.sha256 != replay(path, texts=texts, seed="2/0").sha256
    cut = replay(path, texts=texts, arrivals={"fit": "cut"})
    assert cut.characters.tolist() == [8] * 5 + [19] * 45


def test_calls_of_quite_another_length_are_refused_before_anything_is_started(tmp_path):
    long = write_trace(tmp_path / "long.jsonl", [{"offset_s": at, "prompt_characters": 4000} for at in range(9)])
    near = write_trace(tmp_path / "near.jsonl", [{"offset_s": at, "prompt_characters": 22} for at in range(9)])
    texts = ["b" * 20, "d" * 90]

    def check(path, fit):
        check_trace(Arrivals.model_validate({"pattern": "trace", "trace": path, "fit": fit}), texts, None)

    check(near, None)
    check(long, "cut")
    with pytest.raises(UsageError, match=r"98% or more too long or too short .* set arrivals\.fit=cut"):
        check(long, None)
    with pytest.raises(UsageError, match="cannot read the trace"):
        check(tmp_path / "absent.jsonl", None)


def test_tokens_are_counted_by_the_tokenizer_that_is_given(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    path = write_trace(tmp_path / "t.jsonl", [{"offset_s": 0, "prompt_tokens": 4}, {"offset_s": 1, "prompt_tokens": 2}])
    texts = ["a a", "a a a a a"]

    found = replay(path, texts=texts, tokenizer=tmp_path / "tokenizer.json", arrivals={"fit": "cut"})

    assert found.calls.tolist() == [1, 0]
    assert found.characters.tolist() == [7, 3]  # 9 characters are 5 tokens: 4 are 7.2; and 3 are 2
    with pytest.raises(UsageError, match="set tokenizer="):
        replay(path, texts=texts)


@pytest.mark.parametrize(
    ("lines", "field", "line"),
    [
        (['{"offset_s": 0}', '{"offset_s": -1}'], "offset_s", 2),
        (['{"offset_s": 1e999}'], "offset_s", 1),
        (['{"offset_s": NaN}'], "offset_s", 1),
        (['{"offset_s": true}'], "offset_s", 1),
        pytest.param(['{"offset_s": ' + "9" * 400 + "}"], "offset_s", 1, id="huge"),
        pytest.param(["[" * 100_000], "(line)", 1, id="deep"),
        (['{"prompt_tokens": 3}'], "offset_s", 1),
        (['{"offset_s": 0}', "", "{"], "(line)", 3),
        (["7"], "(line)", 1),
        (['{"offset_s": 0, "max_tokens": 1.5}'], "max_tokens", 1),
        (['{"offset_s": 0, "max_tokens": 0}'], "max_tokens", 1),
        (['{"offset_s": 0, "text": "x"}'], "text", 1),
        (['{"offset_s": 0, "prompt_tokens": 3}', '{"offset_s": 1}'], "prompt_tokens", 2),
    ],
)
def test_a_broken_trace_is_named_by_file_line_and_field(tmp_path, lines, field, line):
    path = write_trace(tmp_path / "t.jsonl", lines)

    with pytest.raises(CallsFileError) as caught:
        read_trace(path)

    assert str(caught.value).startswith(f"{path}:{line}:{field}: ")


def test_an_empty_or_absent_trace_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="holds no request"):
        read_trace(write_trace(tmp_path / "t.jsonl", [""]))


def test_an_answer_of_unknown_length_gets_the_usual_one(tmp_path):
    lines = [{"offset_s": at, "max_tokens": 7} for at in range(3)] + [
        {"offset_s": 3},
        {"offset_s": 4, "max_tokens": 90},
    ]

    assert read_trace(write_trace(tmp_path / "t.jsonl", lines)).max_tokens.tolist() == [7, 7, 7, 7, 90]


def test_the_client_replays_a_trace_as_the_server_sees_it(truth_server, client, tmp_path):
    rows = [{"offset_s": at / 20, "max_tokens": 5 + at} for at in range(40)]
    path = write_trace(tmp_path / "t.jsonl", rows)
    server = truth_server("service_ms=2")

    records, _ = client("classify").run(
        server.url, arrivals=Arrivals.model_validate({"pattern": "trace", "trace": path, "speed": 2}).model_dump_json()
    )

    seen = np.sort([entry["arrived"] for entry in server.log()])
    assert len(seen) == len(records) == 40
    assert records["error"].isna().all()
    assert np.diff(np.sort(records["scheduled_s"])) == pytest.approx(0.025)
    assert np.median(np.diff(seen)) == pytest.approx(0.025, abs=0.003)
