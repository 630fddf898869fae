"""Under load: answers that need no engine stay fast, too much load is refused fast, SIGTERM cuts nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.figures.load import clients, span_s
from benchmarks.figures.processes import Server, serving
from benchmarks.figures.table import Figure
from benchmarks.figures.workload import environment, prompts
from benchmarks.stats import percentile

STREAMS = 16
SAMPLES = 300


def responsiveness(model: Path, folder: Path, _pairs: int) -> list[Figure]:
    """While 16 streams run: /health, a 429, and the time in which a client's leaving is noticed."""
    path = environment(folder, model, max_batch_size=STREAMS + 1, max_sequence_length=2048)
    log = folder / "server.log"
    with serving(path, ["serving.max_queue=0"], log) as server:
        health, refused, left = asyncio.run(_probe(server))
    noticed = _noticed_ms(log, left)
    return [
        Figure.of("p99 of /health beside 16 streams, ms", percentile(health, 99), at_most=20, detail=_many(health)),
        Figure.of("p99 of a 429 beside 16 streams, ms", percentile(refused, 99), at_most=20, detail=_many(refused)),
        Figure.of(
            "p99 until a client's leaving is noticed, ms", percentile(noticed, 99), at_most=20, detail=_many(noticed)
        ),
    ]


async def _probe(server: Server) -> tuple[list[float], list[float], list[tuple[str, float]]]:
    """Latencies of /health and of 429 in ms, and (request id, monotonic seconds) of each leaving."""
    limits = httpx2.Limits(max_connections=100)
    async with (
        httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client,
        _streams(client, STREAMS),
    ):
        health = [await _timed(lambda: client.get("/health"), 200) for _ in range(SAMPLES)]
        left = []
        for number in range(SAMPLES // 3):
            identity = f"leaving-{number}"
            async with client.stream(
                "POST", "/v1/chat/completions", json=_chat(900), headers={"x-request-id": identity}
            ) as answer:
                await anext(answer.aiter_lines())
            left.append((identity, time.monotonic()))
            await asyncio.sleep(0.05)
        async with _streams(client, 1):  # the last slot
            refused = [
                await _timed(lambda: client.post("/v1/chat/completions", json=_chat(8)), 429) for _ in range(SAMPLES)
            ]
    return health, refused, left


async def _timed(send: Callable[[], Awaitable[httpx2.Response]], status: int) -> float:
    begin = time.perf_counter()
    answer = await send()
    took_ms = 1000 * (time.perf_counter() - begin)
    if answer.status_code != status:
        raise RuntimeError(f"expected {status}, got {answer.status_code}: {answer.text[:200]}")
    await asyncio.sleep(0.01)
    return took_ms


@asynccontextmanager
async def _streams(client: httpx2.AsyncClient, number: int) -> AsyncIterator[None]:
    """Streams that go on until the block ends."""
    begun = asyncio.Semaphore(0)

    async def stream() -> None:
        while True:
            async with client.stream("POST", "/v1/chat/completions", json=_chat(1500)) as answer:
                if answer.status_code != 200:
                    raise RuntimeError(f"a stream was refused: {answer.status_code}")
                async for line in answer.aiter_lines():
                    if '"content":"' in line:
                        begun.release()

    tasks = [asyncio.create_task(stream()) for _ in range(number)]
    for _ in range(2 * number):
        async with asyncio.timeout(60):
            await begun.acquire()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _many(values_ms: list[float]) -> str:
    return f"median {percentile(values_ms, 50):.1f} ms, longest {max(values_ms):.1f} ms, {len(values_ms)} times"


def _chat(max_tokens: int) -> dict[str, Any]:
    turn = {"role": "user", "content": "请介绍一下你自己。"}
    return {"model": "figures", "messages": [turn], "max_tokens": max_tokens, "stream": True}


def _noticed_ms(log: Path, left: list[tuple[str, float]]) -> list[float]:
    """The server's log line of each request that was left has the same monotonic clock."""
    ended = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "request" and entry.get("status") == 499:
                ended[entry.get("request_id")] = entry["monotonic"]
    missing = [identity for identity, _ in left if identity not in ended]
    if missing:
        raise RuntimeError(f"the server never noticed that {len(missing)} clients left, {missing[0]} first")
    return [1000 * (ended[identity] - at) for identity, at in left]


def overload(model: Path, folder: Path, _pairs: int) -> list[Figure]:
    """Five times what it can do, for a minute."""
    slots, queue, tokens = 16, 32, 32
    # A prefix cache fills the pool with finished prompts, page by page, up to what the plan counted: no leak, but not
    # flat within a minute either. Without it, growth is growth.
    path = environment(folder, model, max_batch_size=slots, enable_prefix_caching=False)
    texts = prompts(model, 64, tokens=64)
    with (
        serving(path, [f"serving.max_queue={queue}"], folder / "server.log") as server,
        clients("chat_stream", texts, folder / "load", model="figures", max_tokens=tokens) as load,
    ):
        load.send(server.url, users=slots, requests=2 * slots)
        alone = load.send(server.url, users=1, requests=20)
        alone_s = (alone["end_s"] - alone["sent_s"]).tolist()
        closed = load.send(server.url, users=slots, requests=6 * slots)
        throughput = len(closed) / span_s(closed)
        memory = server.resident_bytes()
        records = load.send(server.url, rate_per_s=5 * throughput, duration_s=60)
        grown = server.resident_bytes() / memory
    latency = records["end_s"] - records["sent_s"]
    accepted = latency[records["status"] == 200][records["error"].isna()].tolist()
    refused = latency[records["status"] == 429].tolist()
    others = len(records) - len(accepted) - len(refused)
    bound = 1.2 * (queue + slots) / throughput + percentile(alone_s, 95)
    about = f"{len(records)} requests at {5 * throughput:.1f}/s, {len(accepted)} accepted, {len(refused)} refused"
    return [
        Figure.of("5x overload: p95 of accepted, s", percentile(accepted, 95), at_most=bound, detail=about),
        Figure.of(
            "5x overload: p99 of 429, ms",
            1000 * percentile(refused, 99),
            at_most=1000 * 0.05 * percentile(alone_s, 50),
            detail=f"bar: 5 % of {percentile(alone_s, 50):.2f} s unloaded",
        ),
        Figure.of("5x overload: other errors", others, at_most=0),
        Figure.of("5x overload: resident memory after / before", grown, at_most=1.05),
    ]


def drain(model: Path, folder: Path, _pairs: int) -> list[Figure]:
    """SIGTERM with 32 streams under way, each with seconds left."""
    path = environment(folder, model, max_batch_size=32)
    with serving(path, [], folder / "server.log") as server:
        done, refused, code, left_s = asyncio.run(_terminate(server, 32))
    return [
        Figure.of(
            "SIGTERM: streams of 32 that ended with [DONE]",
            done,
            at_least=32,
            detail=f"shortest went on {left_s:.1f} s",
        ),
        Figure.of("SIGTERM: shortest stream went on, s", left_s, at_least=2),
        Figure.of("SIGTERM: new connections refused", float(refused), at_least=1),
        Figure.of("SIGTERM: exit code", code, at_most=0),
    ]


async def _terminate(server: Server, streams: int) -> tuple[int, bool, int, float]:
    begun = asyncio.Semaphore(0)
    ends: list[float] = []

    async def stream(client: httpx2.AsyncClient) -> bool:
        done = begun_here = False
        async with client.stream("POST", "/v1/chat/completions", json=_chat(120)) as answer:
            async for line in answer.aiter_lines():
                if '"content":"' in line and not begun_here:
                    begun_here = True
                    begun.release()
                done = done or line == "data: [DONE]"
        ends.append(time.perf_counter())
        return done

    async with httpx2.AsyncClient(base_url=server.url, timeout=120, limits=httpx2.Limits(max_connections=64)) as client:
        tasks = [asyncio.create_task(stream(client)) for _ in range(streams)]
        for _ in range(streams):
            await begun.acquire()
        terminated = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        refused = False
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except ConnectionRefusedError:
            refused = True
        done = sum(await asyncio.gather(*tasks))
    code = await asyncio.to_thread(server.process.wait, 60)
    return done, refused, code, min(ends) - terminated
