"""CPU and memory of the machine and of process trees, on the clock of the records."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import psutil

COLUMNS = ("at_s", "source", "cpu_percent", "cpu_s", "memory_used_mb", "memory_percent", "processes")


def server_use(samples: pd.DataFrame, source: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """CPU seconds per 1000 requests and the highest memory of ``source`` during ``runs``; None without samples.

    CPU seconds are read every interval and interpolated to the beginning and end of each run.
    """
    found = samples[samples["source"] == source]
    requests = sum(int(run["requests"]) for run in runs)
    if len(found) < 2 or not requests:
        return {"server_cpu_s_per_1000_requests": None, "server_peak_memory_mb": None}
    at, spent = found["at_s"].to_numpy(float), found["cpu_s"].to_numpy(float)
    cpu = sum(float(np.interp(run["ended_s"], at, spent) - np.interp(run["started_s"], at, spent)) for run in runs)
    within = np.zeros(len(at), dtype=bool)
    for run in runs:
        within |= (at >= run["started_s"]) & (at <= run["ended_s"])
    memory = found["memory_used_mb"].to_numpy(float)[within]
    return {
        "server_cpu_s_per_1000_requests": 1000 * cpu / requests,
        "server_peak_memory_mb": float(memory.max()) if len(memory) else None,
    }


class Sampler:
    """A thread that reads every ``interval_s``; ``rows`` grows until it is closed.

    Args:
        origin: The benchmark's zero, perf_counter seconds.
        trees: Source name -> process id; children are counted with their parent. A process that is gone
            ends its rows, it does not become 0.
    """

    def __init__(self, origin: float, interval_s: float, trees: Mapping[str, int]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._origin, self._interval = origin, interval_s
        self._trees = dict(trees)
        self._spent: dict[str, tuple[float, float]] = {}
        self._ended: dict[str, dict[int, float]] = {name: {} for name in trees}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="sampler")

    def __enter__(self) -> Self:
        psutil.cpu_percent()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def watch(self, source: str, pid: int) -> None:
        """Sample one more process tree."""
        self._ended[source] = {}
        self._trees[source] = pid

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(list(self.rows), columns=list(COLUMNS)).astype({"source": "string"})

    def _work(self) -> None:
        while not self._over.wait(self._interval):
            at = time.perf_counter() - self._origin
            memory = psutil.virtual_memory()
            self.rows.append(
                {
                    "at_s": at,
                    "source": "machine",
                    "cpu_percent": psutil.cpu_percent(),
                    "memory_used_mb": memory.used / 2**20,
                    "memory_percent": memory.percent,
                }
            )
            for source, pid in list(self._trees.items()):
                row = self._tree(source, pid)
                if row is not None:
                    self.rows.append({"at_s": at, "source": source, **row})

    def _tree(self, source: str, pid: int) -> dict[str, Any] | None:
        """CPU of a tree: the sum over its processes, those that ended included with what they last had."""
        spent = self._ended[source]
        memory = 0
        count = 0
        try:
            root = psutil.Process(pid)
            for member in (root, *root.children(recursive=True)):
                try:
                    with member.oneshot():
                        times = member.cpu_times()
                        memory += member.memory_info().rss
                except psutil.Error:
                    continue
                spent[member.pid] = times.user + times.system
                count += 1
        except psutil.Error:
            return None
        now, cpu = time.perf_counter(), sum(spent.values())
        before = self._spent.get(source)
        self._spent[source] = (now, cpu)
        percent = None if before is None else 100 * (cpu - before[1]) / max(now - before[0], 1e-9)
        return {"cpu_percent": percent, "cpu_s": cpu, "memory_used_mb": memory / 2**20, "processes": count}
