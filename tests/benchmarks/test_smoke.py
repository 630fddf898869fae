"""The quick test against the truth server, a real Ollama and the real model server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.__main__ import main
from benchmarks.config import Scenario
from model_server.cache import cache_dir

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tests" / "tools"
PROMPTS = ["你好,请介绍一下你自己。", "请解释一下人工智能的基本概念。", "写一个简单的 Python 函数来计算阶乘。"]
R7 = (
    "total_requests",
    "successful_requests",
    "error_rate",
    "avg_latency_ms",
    "qps",
    "test_duration",
    "concurrent_users",
)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code, last line as JSON, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        lines = out.strip().splitlines()
        return code, json.loads(lines[-1]) if lines else None, err

    return run


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_folder(folder, last, iterations):
    """What R1 and R7 ask for is there, and says the same as the records."""
    requests = pd.read_parquet(folder / "requests.parquet")
    measured = requests[requests["phase"] == "measure"].sort_values("sent_s")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    at_once = measured[measured["pair"] == 1]
    assert all(summary[name] is not None for name in R7)
    assert summary["concurrent_users"] == 2
    assert summary["total_requests"] == last["total_requests"] == len(at_once)
    assert summary["latency_test"]["total_requests"] == summary["latency_test"]["iterations"] == iterations
    assert (measured["pair"] == 0).sum() == iterations

    lines = lines_of(folder / "ollama_metrics.jsonl")
    assert [line.keys() for line in lines] == [{"response", "latency_ms", "status_code", "timestamp"}] * len(measured)
    assert {line["status_code"] for line in lines} == {200}
    assert [line["latency_ms"] for line in lines] == pytest.approx(
        ((measured["end_s"] - measured["sent_s"]) * 1000).tolist()
    )
    moments = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
    assert moments == pytest.approx(measured["wall_start"].tolist(), abs=0.002)
    system = lines_of(folder / "system_metrics.jsonl")
    assert all({"cpu_percent", "memory_percent", "memory_used_mb"} <= line.keys() for line in system)
    assert all(line["memory_used_mb"] > 1 for line in system)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    return summary, lines


# -- the truth server --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(truth_server):
    return truth_server("ttft_ms=10", "tpot_ms=1", "tokens=8", "service_ms=5")


def test_ten_requests_one_after_the_other_and_then_two_users(command, server, tmp_path):
    code, last, _ = command("smoke", f"url={server.url}", "duration_s=1.5", f"pid={server.pid}", "cost.per_hour=1.2")

    assert code == 0
    summary, lines = check_folder(tmp_path / last["folder"], last, iterations=10)
    asked = [entry for entry in server.log() if entry["path"] == "/v1/chat/completions"]
    assert len(asked) == len(lines) + 1, "one more to see that it answers"
    assert all(line["response"] for line in lines)
    assert summary["server_peak_memory_mb"] > 5
    # 8 tokens an answer at 1.2 an hour.
    tokens_per_hour = 8 * summary["total_requests"] / summary["test_duration"] * 3600
    assert summary["price_per_million_tokens"] == pytest.approx(1.2e6 / tokens_per_hour, rel=0.05)
    assert (tmp_path / "runs" / "latest" / "summary.json").exists()


def test_the_three_prompts_of_the_quick_test_are_sent(command, server, tmp_path):
    _, last, _ = command("smoke", f"url={server.url}", "iterations=3", "duration_s=0.3")

    manifest = json.loads((tmp_path / last["folder"] / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["scenario"]["texts"] == PROMPTS
    assert manifest["workload"]["calls"] == 3


def test_a_smoke_test_in_which_requests_fail_fails(command, truth_server):
    """The server fails half of all texts; which, it is asked first."""
    failing = truth_server("ttft_ms=5", "tpot_ms=1", "tokens=4", "service_ms=1", "error_share=0.5")
    fails = {text: _fails(failing.url, text) for text in (f"text {number}" for number in range(20))}
    good = next(text for text, failed in fails.items() if not failed)
    bad = next(text for text, failed in fails.items() if failed)

    code, last, _ = command("smoke", f"url={failing.url}", "duration_s=0.5", f"texts=[{good}, {bad}]")

    assert (code, last["verdict"]) == (1, "FAIL")
    assert last["errors"].keys() == {"http_status"}
    assert "5 of the 10 requests one after the other failed." in last["reasons"]


def _fails(url, text):
    body = json.dumps({"text": text, "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/api/v1/inference", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            return False
    except urllib.error.HTTPError as error:
        return error.code == 500


def test_what_cannot_be_tried_is_said_in_one_line(command, server):
    for words, expected, said in (
        (["smoke"], 2, "smoke needs a server"),
        (["smoke", "url=http://x", "ollama=http://y"], 2, "set url or ollama, not both"),
        (["smoke", f"ollama=http://127.0.0.1:{unused_port()}", "model=m"], 4, "is 'ollama serve' running"),
        (["smoke", f"url={server.url}", "users=null", "rate_per_s=3"], 2, "closed loop"),
        (["smoke", f"url={server.url}", "iteration=3"], 2, "did you mean 'iterations'"),
    ):
        code, _, err = command(*words)
        assert (code, said in err) == (expected, True), (words, code, err)
        assert "Traceback" not in err


def test_ollama_is_short_for_its_url_and_dialect():
    common = {"texts": ["t"], "users": 1, "requests": 1}
    short = Scenario.model_validate({"ollama": "http://h:1", "dialect": "inference"} | common)
    chat = Scenario.model_validate({"ollama": "http://h:1", "dialect": "ollama_chat_stream"} | common)

    assert (short.url, short.dialect) == ("http://h:1", "ollama_stream")
    assert chat.dialect == "ollama_chat_stream"
    assert Scenario.model_validate(short.model_dump()) == short, "what is written down reads back the same"


# -- a real Ollama -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    """``ollama serve`` with two tiny Qwen3 models: its URL and process id."""
    binary = shutil.which("ollama") or shutil.which("ollama", path=cache_dir() / "bin")
    home = tmp_path_factory.mktemp("ollama")
    for command in (
        [TOOLS / "tiny_qwen3.py", home / "tiny"],
        ["-m", "training.gguf_model", home / "tiny", home / "tiny.gguf", "f32"],
    ):
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
    url = f"http://127.0.0.1:{unused_port()}"
    environ = os.environ | {"OLLAMA_HOST": url, "HOME": str(home), "OLLAMA_MODELS": str(home / "models")}
    with (home / "log").open("w") as log:
        process = subprocess.Popen([binary, "serve"], env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_it_answers(f"{url}/api/version", process)
        (home / "Modelfile").write_text(f"FROM {home}/tiny.gguf")
        for name in ("tiny", "other:v1"):
            create = [binary, "create", name, "-f", str(home / "Modelfile")]
            subprocess.run(create, env=environ, check=True, capture_output=True)
        yield url, process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(url, process, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.mark.ollama
def test_a_plain_ollama_is_tried(command, ollama, tmp_path):
    url, pid = ollama
    code, last, err = command("smoke", f"ollama={url}", "model=tiny", f"pid={pid}", "duration_s=2", "max_tokens=8")

    assert code == 0, err
    summary, lines = check_folder(tmp_path / last["folder"], last, iterations=10)
    assert any(line["response"] for line in lines)
    records = pd.read_parquet(tmp_path / last["folder"] / "requests.parquet")
    assert (records["output_tokens"] <= 8).all(), "num_predict reached Ollama"
    assert (records["token_source"] == "server").all()
    waited = (records["first_token_s"] - records["sent_s"])[records["output_text"].fillna("") != ""]
    assert len(waited) > 0
    assert (waited > 0).all()
    assert summary["server_cpu_s_per_token"] > 0, "its runners are children of the server"


@pytest.mark.ollama
def test_a_plain_ollama_is_measured_by_run_with_any_scenario(command, ollama):
    url, _ = ollama
    scenario = ROOT / "benchmarks" / "configs" / "baseline.yml"
    code, last, err = command(
        "run", scenario, f"ollama={url}", "model=tiny:latest", "duration_s=2", "warmup_s=0", "max_tokens=4"
    )

    assert code == 0, err
    assert last["successful_requests"] == last["total_requests"] > 0
    assert last["output_tokens"] <= 4 * last["total_requests"]


@pytest.mark.ollama
def test_a_wrong_model_name_lists_those_that_are_there(command, ollama):
    url, _ = ollama
    code, _, err = command("smoke", f"ollama={url}", "model=qwen3:0.6b")
    assert code == 4
    assert "no model 'qwen3:0.6b'; there: " in err
    assert {"tiny:latest", "other:v1"} <= set(err.replace(",", "").replace(";", "").split())
    assert "ollama pull qwen3:0.6b" in err

    code, _, err = command("smoke", f"ollama={url}")
    assert code == 4
    assert "which model?" in err


# -- the real model server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_server(tmp_path_factory):
    """``python -m model_server environments/local.yml`` with the embedded model: its URL and process id."""
    home = tmp_path_factory.mktemp("model_server")
    port = unused_port()
    words = ["environments/local.yml", f"serving.port={port}", f"serving.log_dir={home}"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "model_server", *words], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/ready", process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_the_model_server_is_tried_and_counts_what_the_client_claims(command, model_server, tmp_path):
    url, pid = model_server
    code, last, err = command("smoke", f"url={url}", f"pid={pid}", "duration_s=2", "max_tokens=8")

    assert code == 0, err
    summary, _ = check_folder(tmp_path / last["folder"], last, iterations=10)
    counted = summary["server_metrics"]
    # The server counts a request a moment after its last byte is out: what is under way may be missing at an end.
    assert counted["requests"] == pytest.approx(summary["total_requests"], abs=2.5)
    assert counted["output_tokens"] == pytest.approx(summary["output_tokens"], abs=2.5 * 8)
    assert counted["running_peak"] is not None
    assert summary["server_peak_memory_mb"] == pytest.approx(
        counted["gauges"]["qwen3_model_memory_usage_bytes"]["peak"] / 2**20, rel=0.1
    )
    assert summary["server_cpu_s_per_token"] > 0
