"""The client against servers that nobody here made up: the truth server is only worth what this agrees with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.config import Scenario
from benchmarks.generator import Generator
from benchmarks.plan import Run
from benchmarks.results import derive, read_journal
from model_server.cache import cache_dir

ROOT = Path(__file__).parents[2]
TOKENS = 12


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def _serving(command, url, log, ready, **variables):
    """The server until the block ends; ``ready`` is the path that answers 200 when it may be asked."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.PIPE, start_new_session=True,
                                   cwd=ROOT, env=os.environ | variables)  # fmt: skip
    try:
        process.stdin.write(b"\n")
        process.stdin.flush()
        end = time.monotonic() + 180
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(url + ready, timeout=5) as answer:
                if answer.status == 200:
                    break
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def _ask(folder, url, dialect, model=None, **settings):
    """Four requests by two users of the real client."""
    folder.mkdir()
    scenario = Scenario.model_validate(
        {"texts": ["你好,请介绍一下你自己。"], "dialect": dialect, "users": 2, "requests": 4, "max_tokens": TOKENS}
        | settings
    )
    journal = folder / "requests.jsonl"
    with Generator(scenario, origin=time.perf_counter(), journal=journal, log=folder / "log") as generator:
        generator.run(
            Run(run=0, arm="a", pair=0, phase="measure", url=url, model=model, users=2, requests=4, duration_s=None)
        )
    records, whole = read_journal(journal)
    assert whole
    return derive(records)


def _is_a_measured_stream(records):
    assert records["error"].isna().all(), records["error_detail"].tolist()
    assert (records["output_tokens"].between(1, TOKENS)).all()
    assert (records["token_source"] == "server").all()
    assert (records["ttft_s"] > 0).all()
    assert (records["end_s"] >= records["last_token_s"]).all()
    assert (records["last_token_s"] >= records["first_token_s"]).all()
    assert records["finish_reason"].isin(["stop", "length"]).all()
    assert (records["prompt_tokens"] > 3).all()


@pytest.fixture(scope="module")
def model_server(tmp_path_factory):
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "model_server", "environments/local.yml", f"serving.port={port}"]
    with _serving([*command, f"serving.log_dir={log.parent}"], url, log, "/ready"):
        yield url


@pytest.mark.parametrize("dialect", ["chat_stream", "completions_stream"])
def test_our_server_streams(model_server, tmp_path, dialect):
    with urllib.request.urlopen(model_server + "/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]

    _is_a_measured_stream(_ask(tmp_path / dialect, model_server, dialect, model))


def test_our_server_classifies_and_infers(model_server, tmp_path):
    classified = _ask(tmp_path / "classify", model_server, "classify")
    inferred = _ask(tmp_path / "inference", model_server, "inference")

    assert classified["error"].isna().all()
    assert classified["category"].nunique() == 1
    assert classified["confidence"].between(0, 1).all()
    assert inferred["error"].isna().all()
    assert (inferred["output_characters"] > 0).all()


@pytest.fixture(scope="module")
def lmdeploy(tmp_path_factory):
    """LMDeploy 0.18's own server; only what computes tokens is replaced (see cpu_lmdeploy.py)."""
    folder = tmp_path_factory.mktemp("lmdeploy")
    subprocess.run([sys.executable, ROOT / "tests/tools/tiny_qwen3.py", folder / "tiny"], check=True)
    port = _free_port()
    command = [cache_dir() / "venvs/lmdeploy/bin/python", ROOT / "tests/model_server/engines/cpu_lmdeploy.py"]
    command += ["serve", "api_server", folder / "tiny", "--server-name", "127.0.0.1", "--server-port", str(port)]
    command += ["--model-name", "tiny", "--backend", "turbomind", "--max-batch-size", "4", "--session-len", "512"]
    command += ["--generation-config", "lmdeploy", "--log-level", "WARNING", "--disable-fastapi-docs"]
    url = f"http://127.0.0.1:{port}"
    with _serving(command, url, folder / "log", "/health", HF_HUB_OFFLINE="1", CPU_ENGINE_STEP_S="0.02"):
        yield url


@pytest.mark.lmdeploy
@pytest.mark.parametrize("dialect", ["chat_stream", "completions_stream", "lmdeploy_stream"])
def test_lmdeploy_streams(lmdeploy, tmp_path, dialect):
    _is_a_measured_stream(_ask(tmp_path / dialect, lmdeploy, dialect, "tiny", temperature=0.5))
