"""Did a run measure the server, or the load generator and the way to it?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest

from benchmarks.__main__ import main
from benchmarks.config import ClientLimits
from benchmarks.generator import ill_health

WELL = {"client_cpu_share": 0.5, "loop_lag_p50_s": 0.001, "lateness_p99_s": 0.001, "mean_in_flight": 16.0}
WELL |= {"late_first_tokens": 0.1}


@pytest.mark.parametrize(
    ("said", "seen", "reason"),
    [
        ({"client_cpu_share": 0.99}, 16.0, "of its one CPU"),
        ({"loop_lag_p50_s": 0.02}, 16.0, "late at the median"),
        ({"lateness_p99_s": 0.2}, 16.0, "after they were due"),
        ({"late_first_tokens": 0.45}, 16.0, "45% of the first tokens"),
        ({}, 5.0, "the server saw 5"),
    ],
)
def test_each_limit_makes_a_run_invalid_and_says_why(said, seen, reason):
    assert ill_health(WELL, ClientLimits(), 15.0) == []
    assert ill_health(WELL, ClientLimits(), None) == []

    found = ill_health(WELL | said, ClientLimits(), seen)

    assert len(found) == 1
    assert reason in found[0]


def test_a_few_requests_say_nothing_about_concurrency():
    assert ill_health(WELL | {"mean_in_flight": 3.0}, ClientLimits(), 0.5) == []


@contextlib.contextmanager
def _slow_way(port, delay_s):
    """A proxy that holds back everything by ``delay_s``, in both directions; yields its port."""

    async def pipe(reader, writer):
        while data := await reader.read(65536):
            await asyncio.sleep(delay_s)
            writer.write(data)
        writer.close()

    async def connect(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(connect, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        loop.call_soon_threadsafe(loop.call_later, 0.2, loop.stop)
        thread.join(timeout=10)
        loop.close()


def test_requests_that_the_server_never_had_make_a_run_invalid(truth_server, tmp_path, capsys):
    """Eight users behind a way of 0.2 s to a server of 0.02 s: it has one of their requests at a time, not eight."""
    server = truth_server("service_ms=20")
    scenario = tmp_path / "s.yml"
    scenario.write_text("texts: [x]\nusers: 8\nduration_s: 11\n", encoding="utf-8")
    metrics = f"metrics_url={server.url}/metrics"
    with _slow_way(int(server.url.rpartition(":")[2]), 0.1) as port:
        code = main(["run", str(scenario), f"url=http://127.0.0.1:{port}", metrics, f"out={tmp_path / 'r'}"])

    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 4
    assert "the server saw" in said["reasons"][0]
