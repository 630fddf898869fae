"""The command line: what it writes, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import benchmarks
from benchmarks.__main__ import VERBS, main

CALLS = Path(benchmarks.__file__).parents[1] / "data" / "calls.jsonl"
CONFIGS = Path(benchmarks.__file__).parent / "configs"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code, last line as JSON, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        lines = out.strip().splitlines()
        return code, json.loads(lines[-1]) if lines else None, out, err

    return run


@pytest.fixture(scope="module")
def server(truth_server):
    return truth_server("service_ms=5", "ttft_ms=10", "tpot_ms=1", "tokens=8")


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_run_writes_a_results_folder_and_the_figures_people_asked_for(command, server, tmp_path):
    code, last, text, _ = command(
        "run", CONFIGS / "baseline.yml", f"url={server.url}", "users=2", "duration_s=1", "warmup_s=0.2",
        f"pid={server.pid}", "sample_interval_s=0.1",
    )  # fmt: skip

    folder = tmp_path / last["folder"]
    assert code == 0
    assert folder.parent == tmp_path / "runs"
    for name in ("total_requests", "successful_requests", "error_rate", "avg_latency_ms", "qps", "test_duration"):
        assert last[name] is not None
    assert last["concurrent_users"] == 2
    assert last["qps"] == pytest.approx(last["total_requests"] / last["test_duration"])
    assert last["server_peak_memory_mb"] > 10
    requests = pd.read_parquet(folder / "requests.parquet")
    assert set(requests["phase"]) == {"probe", "warmup", "measure"}
    assert last["total_requests"] == (requests["phase"] == "measure").sum()
    assert len((folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()) == len(requests)
    samples = pd.read_parquet(folder / "samples.parquet")
    assert set(samples["source"]) == {"machine", "generator", "server_a", "metrics_a"}
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["complete"] is True
    assert "p99 latency" not in text, "p99 of so few requests must not be stated"


def test_run_streams_from_a_chat_endpoint_whose_model_it_asks_for(command, server):
    code, last, _, _ = command(
        "run", CONFIGS / "latency.yml", f"url={server.url}", "requests=15", "warmup_s=0", "--json"
    )

    assert code == 0
    assert last["output_tokens"] == 15 * 8
    assert last["ttft_p50_ms"] == pytest.approx(10, abs=8)


def test_a_missed_objective_fails(command, server):
    code, last, _, _ = command(
        "run", CONFIGS / "baseline.yml", f"url={server.url}", "requests=20", "duration_s=null", "warmup_s=0",
        "objective.max_avg_latency_ms=1", "objective.min_qps=0.1",
    )  # fmt: skip

    assert (code, last["verdict"]) == (1, "FAIL")
    assert last["reasons"] == [f"avg_latency_ms is {last['avg_latency_ms']:.4g}, asked was at most 1"]


def test_a_generator_over_its_limit_makes_the_run_invalid(command, server):
    code, last, _, _ = command(
        "run", CONFIGS / "baseline.yml", f"url={server.url}", "requests=50", "duration_s=null", "warmup_s=0",
        "client_limits.cpu_share=0.0001",
    )  # fmt: skip

    assert (code, last["verdict"]) == (4, "INVALID")
    assert "the load generator used" in last["reasons"][0]


def test_a_report_is_written_again_in_the_other_language(command, server, tmp_path):
    command(
        "run", CONFIGS / "baseline.yml", f"url={server.url}", "requests=20", "duration_s=null", "warmup_s=0", "out=r"
    )
    report = tmp_path / "r" / "report.html"
    assert "Load test" in report.read_text(encoding="utf-8")

    code, _, _, _ = command("report", "r", "lang=zh")

    assert code == 0
    assert "负载测试" in report.read_text(encoding="utf-8")


def test_what_cannot_be_measured_is_said_in_one_line(command, server, tmp_path, monkeypatch):
    classify, latency = CONFIGS / "classify.yml", CONFIGS / "latency.yml"
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "manifest.json").write_text("{}", encoding="utf-8")
    url = f"url={server.url}"
    monkeypatch.setenv("TWO_LINES", "first\nsecond")
    cases = [
        (("run", latency, f"url=http://127.0.0.1:{unused_port()}", "model=x"), 4, "cannot connect"),
        (("run", latency, f"url=http://127.0.0.1:{unused_port()}"), 4, "cannot connect"),
        (("run", latency, f"url={server.url}/elsewhere"), 4, "names no model"),
        (("run", latency, url, "model=no_such_model"), 4, "check dialect and model"),
        (("run", latency, url, "model=html"), 4, "not the dialect"),
        (("run", latency, url, "model=http500"), 4, "http_status: 500"),
        (("run", latency), 2, "run needs a server"),
        (("run", latency, "url=localhost:80"), 2, "must begin with http"),
        (("run", latency, url, "usres=3"), 2, "did you mean 'users'"),
        (("run", latency, url, "users"), 2, "key=value"),
        (("run", tmp_path / "none.yml"), 2, "cannot read"),
        (("run", latency, url, "out=full"), 2, "holds results already"),
        (("run", latency, "url=http://me:secret@localhost"), 2, "must not hold a password"),
        (("run", latency, url, "api_key_env=NO_SUCH_KEY"), 2, "not set in the environment"),
        (("run", latency, url, "api_key_env=TWO_LINES"), 2, "TWO_LINES holds what no header may"),
        (("run", latency, f"url={server.url}/mode/http401"), 4, "set api_key_env"),
        (("run", latency, "url=http://127.0.0.1:99999"), 2, "is not a URL: Port out of range"),
        (("run", latency, f"{url}/a b"), 2, "write them as %20"),
        (("run", latency, url, "tokenizer=none.json"), 2, "cannot read the tokenizer none.json"),
        (("run", latency, url, "workers_listen=here"), 2, "workers_listen"),
        (("run", latency, url, "out=/dev/full/x"), 2, "cannot make the results folder"),
        (("compare", CONFIGS / "constant_rate.yml", "a=http://x", "b=http://y"), 2, "what the schedule makes it"),
        (("run", classify, url, "calls=empty.jsonl"), 2, "holds no call"),
        (("compare", classify, "calls=empty.jsonl", f"a={server.url}", f"b={server.url}"), 2, "holds no call"),
        (("compare", latency, "a=http://127.0.0.1:1"), 2, "two servers are needed"),
        (("compare", classify, "verdict.primary=ttft_p50"), 2, "ttft_p50 needs a dialect that streams, not classify"),
        (("report", "nowhere"), 2, "not a results folder"),
        (("report", "full", "lang=fr"), 2, "lang=en or lang=zh"),
    ]
    for words, expected, said in cases:
        code, last, _, err = command(*words)
        assert (code, said in err) == (expected, True), (words, code, err)
        assert "Traceback" not in err
        assert last is None or last["exit_code"] == expected


def test_a_start_that_came_to_nothing_leaves_its_folder_to_the_next_one(command, server):
    once = ("requests=3", "duration_s=null", "warmup_s=0")
    words = ("run", CONFIGS / "latency.yml", f"url={server.url}", *once, "out=r")

    assert command(*words, "model=no_such_model")[0] == 4
    assert command(*words, "model=plain")[0] == 0
    code, _, _, err = command(*words, "model=plain")

    assert (code, "r holds results already" in err) == (2, True)
    records = pd.read_parquet("r/requests.parquet")
    assert records["phase"].tolist() == ["probe", "measure", "measure", "measure"]
    assert records["error"].isna().all()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])

    assert caught.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_ctrl_c_is_heard_before_the_second_that_the_imports_take():
    """A KeyboardInterrupt while a module is imported that stands above ``main`` would be a traceback."""
    code = "import sys, benchmarks.__main__; print(sorted({'pydantic', 'rich', 'pandas'} & set(sys.modules)))"

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_flags_may_stand_between_settings(command):
    code, last, _, _ = command(
        "run", CONFIGS / "classify.yml", "--quiet", "url=http://127.0.0.1:1", "--json", "users=2", f"calls={CALLS}"
    )

    assert code == 4
    assert "cannot connect" in last["error"]


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_a_pair_in_which_the_generator_was_not_well_is_done_again_and_too_many_are_invalid(command, server):
    """With a limit that no run can keep, all spare pairs are used up."""
    code, last, text, progress = command(
        "compare", CONFIGS / "baseline.yml", f"a={server.url}", f"b={server.url}", "requests=10", "duration_s=null",
        "warmup_s=0", "pairs=2", "spare_pairs=1", "pause_s=0", "client_limits.cpu_share=0.0001", "out=r",
    )  # fmt: skip

    runs = json.loads(Path("r/manifest.json").read_text(encoding="utf-8"))["runs"]
    measured = [run for run in runs if run["phase"] == "measure"]
    assert [(run["arm"], run["pair"], run["set_aside"]) for run in measured] == [
        ("a", 0, True), ("b", 0, True), ("b", 1, False), ("a", 1, False), ("a", 2, False), ("b", 2, False),
    ]  # fmt: skip
    assert (code, last["verdict"]) == (4, "INVALID")
    assert last["a"]["total_requests"] == 20
    assert "pair 3 of 3" in progress
    assert "set aside" in text


def test_a_terminal_shows_no_json_and_a_pipe_ends_with_it(server, tmp_path):
    words = [sys.executable, "-m", "benchmarks", "run", CONFIGS / "baseline.yml", f"url={server.url}"]
    words += ["users=1", "requests=5", "duration_s=null", "warmup_s=0"]
    leader, terminal = os.openpty()
    with os.fdopen(leader, "rb", closefd=True) as screen:
        with subprocess.Popen([*words, "out=one"], cwd=tmp_path, stdout=terminal, stderr=subprocess.DEVNULL) as shown:
            os.close(terminal)
            said = b""
            with contextlib.suppress(OSError):  # Linux: EIO when the last writer has gone
                while more := screen.read1():
                    said += more
        assert shown.returncode == 0
    piped = subprocess.run([*words, "out=two"], cwd=tmp_path, capture_output=True, check=True)

    assert b"report.html" in said
    assert b"{" not in said
    assert json.loads(piped.stdout.splitlines()[-1])["total_requests"] == 5
