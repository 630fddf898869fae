"""The kernel kills the engine for memory, for real: a control group that another process fills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from benchmarks.figures.processes import serving

ROOT = Path(__file__).parents[2]
CALL = "客户说上个月话费多扣了五十块钱,要求查清楚并且退款。"

pytestmark = pytest.mark.cgroup

# Fills the group. The kernel kills what scores most: the engine, whose oom_score_adj of 500 counts as half of the limit
# on top of its memory, and none of four that hold a quarter of the rest each.
# Each leaves at the first kill: the next would be the engine's successor. Where the kernel kills again before the
# engine's memory is free, as a busy one can (it overlooks a victim whose last thread is on its way out), 300 of their
# own make it one of them and not the server.
BALLAST = """
import sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("300")
counts, before, held = Path(sys.argv[1]), sys.argv[2], []
while f"oom_kill {before}" in counts.read_text().splitlines():
    held.append(bytearray(b"x" * (4 << 20)))
"""


@contextmanager
def memory_group(limit_bytes):
    hierarchy = Path("/sys/fs/cgroup/memory")
    version_1 = hierarchy.is_dir()
    path = (hierarchy if version_1 else hierarchy.parent) / f"qwen3-test-{os.getpid()}"
    path.mkdir()
    (path / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit_bytes))
    try:
        yield path
    finally:
        path.rmdir()


def inside(group):
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


def counts_of(group):
    return next(group / name for name in ("memory.events", "memory.oom_control") if (group / name).exists())


def oom_kills(group):
    fields = dict(line.split() for line in counts_of(group).read_text().splitlines())
    return int(fields["oom_kill"])


async def until(condition, timeout_s=30):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_requests_survive_the_oom_kill_of_the_engine_and_slots_are_halved(tmp_path):
    log = tmp_path / "server.log"
    overrides = ["optimization_settings.max_batch_size=8"]
    with (
        memory_group(440 << 20) as group,
        serving(ROOT / "environments" / "local.yml", overrides, log, prefix=inside(group)) as server,
    ):
        http, engine = server.processes()
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            assert (await client.get("/api/v1/model")).json()["slots"] == 8
            engine.send_signal(signal.SIGSTOP)  # nothing is answered before the kill
            body = {"text": CALL, "max_tokens": 8, "temperature": 0}
            generations = [asyncio.create_task(client.post("/api/v1/inference", json=body)) for _ in range(4)]
            scores = [asyncio.create_task(client.post("/api/v1/classify", json={"text": CALL})) for _ in range(4)]
            await asyncio.sleep(0.3)
            words = [*inside(group), sys.executable, "-c", BALLAST, counts_of(group), str(oom_kills(group))]
            ballast = [subprocess.Popen(words) for _ in range(4)]
            try:
                await until(lambda: oom_kills(group) > 0)
            finally:
                for process in ballast:
                    process.kill()
                    process.wait()
            # The server answers while its engine is being replaced.
            assert (await client.get("/health")).status_code in (200, 503)
            answers = await asyncio.gather(*generations, *scores)
            model = (await client.get("/api/v1/model")).json()
            metrics = (await client.get("/metrics")).text

        assert [answer.status_code for answer in answers] == [200] * 8
        assert answers[-1].json()["category"] == "收费争议"
        assert model["slots"] == 4
        assert model["restarts"] == 1
        assert server.processes()[0].pid == http.pid
        assert server.processes()[1].pid != engine.pid
        assert "qwen3_engine_restarts_total 1.0" in metrics
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert events.count("slots_halved") == 1
    assert server.process.returncode == 0
