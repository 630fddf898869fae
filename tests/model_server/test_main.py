"""The server as a process: command line, exit codes, signals."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_engine.py")
ENVIRONMENT = {
    "model_name": "qwen3-test",
    "model_version": "1",
    "model_source": "memory",
    "deployment_type": "local",
    "engine": "openvino",
    "resource_limits": {"cpu_cores": 2, "memory_gb": 2, "disk_gb": 1},
    "optimization_settings": {
        "enable_quantization": True,
        "quantization_bits": 8,
        "max_batch_size": 4,
        "max_sequence_length": 1024,
    },
}


@pytest.fixture
def environment(tmp_path):
    """Write an environment; the words are those of ``serving:``."""

    def write(more=None, **serving):
        path = tmp_path / "env.yml"
        path.write_text(yaml.safe_dump(ENVIRONMENT | (more or {}) | {"serving": {"port": 0, **serving}}))
        return path

    return write


def command(*words, **variables):
    words = [str(word) for word in words]
    return subprocess.run(
        [sys.executable, "-m", "model_server", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | variables,
    )


class Running:
    """A process that serves an engine in memory, and what it has said."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    async def said(self, event):
        """The first line with this event that has not been asked for yet."""
        async with asyncio.timeout(30):
            async for line in self.process.stdout:
                if line.startswith(b"{"):
                    told = json.loads(line)
                    self.lines.append(told)
                    if told["event"] == event:
                        return told
        raise AssertionError(f"{event!r} was never said: {self.lines}")

    async def ready(self):
        return (await self.said("ready"))["url"]

    def signal(self, number):
        self.process.send_signal(number)

    async def ended(self, seconds=30):
        async with asyncio.timeout(seconds):
            await self.process.stdout.read()
            return await self.process.wait()


@pytest.fixture
async def run(environment):
    """Starts processes; takes the settings of the fake, then those of ``serving:``."""
    started = []

    async def start(engine=None, *, more=None, **serving):
        words = [f"{name}={value}" for name, value in (engine or {}).items()]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(FAKE),
            str(environment(more, **serving)),
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(process)
        return Running(process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        process._transport.close()


def chat(max_tokens, **more):
    turns = [{"role": "user", "content": "你好"}]
    return {"model": "qwen3-test", "messages": turns, "max_tokens": max_tokens, "stream": True} | more


# -- the command line -------------------------------------------------------------------------------------


def test_help_teaches_by_examples():
    shown = command("--help")

    assert shown.returncode == 0
    assert "python -m model_server environments/local.yml" in shown.stdout
    assert "exit codes" in shown.stdout
    assert "SIGHUP" in shown.stdout


def test_nothing_said_is_a_usage_error():
    assert command().returncode == 2


@pytest.mark.parametrize("verb", [[], ["check"]])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serving.prot=1"], "did you mean 'port'?"),
        (["optimization_settings.max_batch_size=many"], "optimization_settings.max_batch_size"),
        (["nonsense"], "key=value"),
    ],
)
def test_settings_that_cannot_be_used_are_one_clear_message(environment, verb, words, told):
    ended = command(*verb, environment(), *words)

    assert ended.returncode == 2
    assert told in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_file_is_one_clear_line():
    ended = command("nowhere.yml")

    assert ended.returncode == 2
    assert ended.stderr.strip() == "cannot serve nowhere.yml: cannot read nowhere.yml: No such file or directory"


def test_variables_win_over_the_file(environment):
    ended = command("check", environment(), MODEL_SERVER_SERVING__PORT="ninety")

    assert ended.returncode == 2
    assert "serving.port" in ended.stdout


def test_a_model_that_is_not_there_is_one_clear_line(environment, tmp_path):
    ended = command(environment({"model_source": str(tmp_path / "nothing")}))

    assert ended.returncode == 1
    assert "nothing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_check_prints_the_arithmetic(environment):
    words = ["model_name=qwen3-0.6b", "resource_limits.memory_gb=4"]
    text, parsed = command("check", environment(), *words), command("check", "--json", environment(), *words)

    assert (text.returncode, parsed.returncode) == (0, 0)
    assert "GiB" in text.stdout
    plan = json.loads(parsed.stdout)
    assert plan["fits"] is True
    assert plan["slots"] == 4


def test_check_refuses_what_does_not_fit(environment):
    words = ["model_name=qwen3-0.6b", "resource_limits.memory_gb=0.25"]
    text, parsed = command("check", environment(), *words), command("check", "--json", environment(), *words)

    assert (text.returncode, parsed.returncode) == (1, 1)
    assert "memory_gb" in text.stdout
    assert json.loads(parsed.stdout)["error"] == "ResourceInsufficientError"


def test_check_refuses_lmdeploy_without_a_gpu(environment):
    ended = command("check", environment({"engine": "lmdeploy", "model_name": "qwen3-0.6b"}))

    assert ended.returncode == 2
    assert "openvino" in ended.stdout


# -- start ------------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_one_clear_line_before_anything_is_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = await run({"load_s": 60}, port=port)
        said = (await server.process.stdout.read()).decode()

    assert await server.ended() == 2
    assert said.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in said


async def test_an_open_door_is_refused(run):
    server = await run(host="0.0.0.0")
    said = (await server.process.stdout.read()).decode()

    assert await server.ended() == 2
    assert "api_keys_file" in said


async def test_health_is_answered_while_the_model_loads(run):
    server = await run({"load_s": 2})
    url = (await server.said("listening"))["url"]
    async with httpx2.AsyncClient(base_url=url) as client:
        health, ready = await client.get("/health"), await client.get("/ready")
        await server.ready()
        after = await client.get("/ready")

    assert (health.status_code, ready.status_code, after.status_code) == (200, 503, 200)


async def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(run):
    server = await run({"load_error": "truncated"})
    said = await server.said("cannot serve")

    assert "truncated" in said["reason"]
    assert await server.ended() == 1


async def test_a_signal_while_the_model_loads_ends_the_process(run):
    server = await run({"load_s": 60})
    await server.said("listening")
    server.signal(signal.SIGTERM)

    assert await server.ended() == 0


async def test_systemd_hears_that_it_is_ready_and_that_it_stops(run, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        server = await run({"load_s": 0.5})
        await server.ready()
        server.signal(signal.SIGHUP)
        await server.said("read again")
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
        said = [manager.recv(1000).decode().partition("\n")[0] for _ in range(5)]

    assert said == ["WATCHDOG=1", "READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


async def test_the_embedded_model_is_served(tmp_path):
    """The command of the README, on a free port: it classifies, streams, tells how it started, and drains."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "model_server",
        "environments/local.yml",
        "serving.port=0",
        "serving.log_dir=null",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    server = Running(process)
    try:
        url = await server.ready()
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            call = "客户:我家的宽带断了三天,报修了也没有人来。"
            decision = (await client.post("/api/v1/classify", json={"text": call})).json()
            body = {"model": "complaints-tiny", "prompt": "你好", "max_tokens": 300, "ignore_eos": True, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                server.signal(signal.SIGTERM)
                text = "".join([part async for part in answer.aiter_text()])
        assert await server.ended() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()

    assert math.isclose(sum(decision["probabilities"].values()), 1)
    assert decision["category"] == max(decision["probabilities"], key=decision["probabilities"].get)
    assert text.endswith("data: [DONE]\n\n")
    [ready] = [line for line in server.lines if line["event"] == "ready"]
    assert next(iter(ready["phases_s"])) == "process"


# -- draining ---------------------------------------------------------------------------------------------


async def test_sigterm_lets_32_streams_finish_and_refuses_new_connections(run):
    server = await run({"token_s": 0.05, "slots": 32})
    url = await server.ready()
    async with httpx2.AsyncClient(base_url=url, timeout=30, limits=httpx2.Limits(max_connections=100)) as client:

        async def stream(started):
            async with client.stream("POST", "/v1/chat/completions", json=chat(60)) as answer:
                text = ""
                async for part in answer.aiter_text():
                    text += part
                    if 'content":"' in part:
                        started.set()
                return text

        started = [asyncio.Event() for _ in range(32)]
        streams = [asyncio.create_task(stream(event)) for event in started]
        for event in started:
            await event.wait()
        server.signal(signal.SIGTERM)
        await server.said("draining")
        await asyncio.sleep(0.3)
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient(base_url=url) as another:
                await another.get("/health")
        texts = await asyncio.gather(*streams)

    assert await server.ended() == 0
    assert sum(text.endswith("data: [DONE]\n\n") for text in texts) == 32


async def test_the_metrics_port_tells_how_far_draining_is(run):
    server = await run({"token_s": 0.05}, metrics_port=0)
    metrics_url = (await server.said("metrics"))["url"]
    url = await server.ready()
    async with httpx2.AsyncClient(timeout=30) as client, httpx2.AsyncClient(timeout=30) as scraper:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=chat(40)) as answer:
            server.signal(signal.SIGTERM)
            await server.said("draining")
            ready = await scraper.get(metrics_url.replace("/metrics", "/ready"))
            scraped = (await scraper.get(metrics_url)).text
            text = "".join([part async for part in answer.aiter_text()])
        assert (await scraper.get(metrics_url.replace("/metrics", "/nothing"))).status_code == 404

    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert "qwen3_active_connections 1.0" in scraped
    assert text.endswith("[DONE]\n\n")
    assert await server.ended() == 0


async def test_what_outlasts_the_drain_is_cut_with_an_error_and_exit_code_1(run):
    """Two signals: who asks twice does not want to wait."""
    server = await run({"token_s": 0.05})
    url = await server.ready()
    async with (
        httpx2.AsyncClient(timeout=30) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=chat(1000)) as answer,
    ):
        server.signal(signal.SIGTERM)
        await server.said("draining")
        server.signal(signal.SIGTERM)
        text = "".join([part async for part in answer.aiter_text()])

    assert "the server is stopping" in text
    assert "[DONE]" not in text
    assert await server.ended() == 1


# -- hot reload -------------------------------------------------------------------------------------------


async def test_hot_settings_change_in_the_same_process_while_a_stream_runs(run, environment, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key")
    serving = {"api_keys_file": str(keys), "rate_limit_per_minute": 1000}
    server = await run({"token_s": 0.05}, **serving)
    url = await server.ready()
    first, second = {"authorization": "Bearer first-key"}, {"authorization": "Bearer second-key"}
    async with (
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
        client.stream("POST", "/v1/chat/completions", json=chat(80), headers=first) as answer,
    ):
        keys.write_text("second-key")
        await server.said("reloaded")
        refused = await client.get("/api/v1/model", headers=first)
        allowed = await client.get("/api/v1/model", headers=second)
        environment(**serving | {"rate_limit_per_minute": 1})
        assert (await server.said("reloaded"))["setting"] == "serving.rate_limit_per_minute"
        body = {"text": "你好", "max_tokens": 1}
        limited = [(await client.post("/api/v1/inference", json=body, headers=second)).status_code for _ in range(2)]
        environment(**serving | {"rate_limit_per_minut": 3})
        refusal = await server.said("reload refused, the settings stay as they are")
        text = "".join([part async for part in answer.aiter_text()])

    assert "rate_limit_per_minut" in refusal["reason"]
    assert (refused.status_code, allowed.status_code) == (401, 200)
    assert limited == [200, 429]
    assert text.endswith("[DONE]\n\n")
    assert server.process.returncode is None
    server.signal(signal.SIGTERM)
    assert await server.ended() == 0


async def test_sighup_reads_the_settings_again(run):
    server = await run()
    await server.ready()

    server.signal(signal.SIGHUP)
    await server.said("read again")
    server.signal(signal.SIGTERM)

    assert await server.ended() == 0


async def test_keys_never_reach_the_log_or_the_command_line(run, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("shop:sk-very-secret")
    server = await run(api_keys_file=str(keys), log_level="DEBUG")
    url = await server.ready()
    async with httpx2.AsyncClient(base_url=url) as client:
        headers = {"authorization": "Bearer sk-very-secret"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post("/api/v1/inference", json={"text": "你好"}, headers=headers)).status_code == 200
    arguments = psutil.Process(server.process.pid).cmdline()
    server.signal(signal.SIGTERM)
    rest = await server.process.stdout.read()

    assert await server.ended() == 0
    assert b"sk-very-secret" not in rest
    assert "sk-very-secret" not in str(arguments)
    assert not re.search("sk-very-secret", json.dumps(server.lines))
