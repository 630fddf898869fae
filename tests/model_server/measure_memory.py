"""Run the real server inside a control group, fill its KV pool, and compare resident memory with the plan.

python tests/model_server/measure_memory.py ENVIRONMENT.yml [key=value ...]

Needs root and a writable cgroup hierarchy. The group's limit is exactly the environment's ``memory_gb``. Prints
one JSON object: predicted and measured bytes, the peak the kernel charged, and how many processes it killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil

from model_server import capacity, cgroup, deployment, tokenizer
from model_server.model_source import resolve

ANSWER_TOKENS = 8
ALL_LENGTHS = 240
URL = re.compile(r"http://127\.0\.0\.1:\d+")
# Long limits: what is measured here is memory, on machines of any speed.
COMMON = ("serving.port=0", "serving.log_dir=null", "serving.request_timeout_s=1200", "serving.drain_s=1300")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes, with the whole pool in use."""

    predicted: int
    server: int
    engine: int
    peak_charged: int
    limit: int
    oom_kills: int
    restarts: int
    tokens: int
    kv_tokens: int

    @property
    def resident(self):
        return self.server + self.engine


class Group:
    """A memory control group with a limit, removed at the end."""

    def __init__(self, name, limit):
        root = Path("/sys/fs/cgroup")
        self.v1 = (root / "memory").is_dir()
        self.path = (root / "memory" if self.v1 else root) / name
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self.v1 else "memory.max")).write_text(str(limit))

    def view(self):
        return cgroup.Cgroup(1 if self.v1 else 2, (), (self.path,))

    def remove(self):
        for _ in range(50):
            try:
                self.path.rmdir()
            except OSError:  # the kernel is still reaping its last process
                time.sleep(0.1)
            else:
                return


def measure(environment, overrides, log, lengths=ALL_LENGTHS):
    """Serve, fill, look, stop. ``log``: file for what the server writes; ``lengths``: different ones to ask for."""
    words = [*overrides, *COMMON]
    config = deployment.load(environment, words, {})
    plan = capacity.check(config)
    limit = deployment.memory_limit_bytes(config)
    group = Group(f"qwen3-measure-{time.monotonic_ns()}", limit)
    join = f'echo $$ > "{group.path}/cgroup.procs"; exec "$@"'
    command = [sys.executable, "-m", "model_server", str(environment), *words]
    try:
        with log.open("wb") as output:
            server = subprocess.Popen(["sh", "-c", join, "sh", *command], stdout=output, stderr=subprocess.STDOUT)
        try:
            return asyncio.run(_fill(server, config, plan, group, log, lengths))
        finally:
            server.terminate()
            server.wait(30)
    finally:
        group.remove()


async def _fill(server, config, plan, group, log, lengths):
    url = await _listening(server, log)
    async with httpx2.AsyncClient(base_url=url, timeout=1300) as client:
        while (await client.get("/ready")).status_code != 200:
            assert server.poll() is None, log.read_text()
            await asyncio.sleep(0.2)
        length = config.optimization_settings.max_sequence_length
        files = resolve(config.model_source, engine=config.engine, check_hashes=False)
        words = tokenizer.load(files.path)
        generator = random.Random(0)
        # Prefix caching keeps the pages of finished requests, so the pool fills up even if few run at once.
        number = -(-plan.kv_tokens // length)
        answers = await asyncio.gather(
            *(_complete(client, config.model_name, _text(words, generator, length)) for _ in range(number))
        )
        # Of every length, for which the engine compiles kernels of their own. One at a time: each its own step.
        asked = generator.sample(range(ANSWER_TOKENS + 1, min(length, plan.batched_tokens)), lengths)
        for each in asked:
            await _complete(client, config.model_name, _text(words, generator, each))
        if files.classification is not None:
            await asyncio.gather(*(_classify(client, "我的宽带断了三天没人来修。" * 8, number) for number in range(32)))
            for each in asked:
                await _classify(client, _text(words, generator, each), each)
        health = (await client.get("/health")).json()
        process = psutil.Process(server.pid)
        engine = max(process.children(), key=lambda child: child.memory_info().rss)
        return Measured(
            predicted=plan.predicted_resident_bytes,
            server=process.memory_info().rss,
            engine=engine.memory_info().rss,
            peak_charged=group.view().memory_peak_bytes() or 0,
            limit=deployment.memory_limit_bytes(config),
            oom_kills=group.view().oom_kills() or 0,
            restarts=health["restarts"],
            tokens=sum(answers),
            kv_tokens=plan.kv_tokens,
        )


async def _listening(server, log):
    while True:
        found = URL.search(log.read_text())
        if found:
            return found[0]
        assert server.poll() is None, log.read_text()
        await asyncio.sleep(0.1)


async def _complete(client, model, text):
    answer = await client.post(
        "/v1/completions", json={"model": model, "prompt": text, "max_tokens": ANSWER_TOKENS, "seed": 0}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["total_tokens"]


async def _classify(client, text, number):
    answer = await client.post("/api/v1/classify", json={"text": f"第{number}通电话。{text}"})
    assert answer.status_code == 200, answer.text


def _text(words, generator, length):
    """Random text of almost ``length`` tokens with its answer."""
    wanted = length - ANSWER_TOKENS
    vocabulary = _vocabulary(words)
    text = "".join(generator.choices(vocabulary, k=wanted))
    while (tokens := len(words.encode(text))) > wanted:
        text = text[: int(len(text) * min(0.999, wanted / tokens))]
    return text


def _vocabulary(words):
    found = []
    for token in range(300, 100_000, 7):
        try:
            word = words.decode([token])
        except (IndexError, ValueError, OverflowError):
            break
        if word.strip() and "�" not in word and "<" not in word:
            found.append(word)
    return found


if __name__ == "__main__":
    measured = measure(Path(sys.argv[1]), sys.argv[2:], Path(f"/tmp/measure-memory-{time.monotonic_ns()}.log"))
    print(json.dumps({**dataclasses.asdict(measured), "resident": measured.resident}))
