"""What the kernel lets this container, unit or shell use: CPU quota, memory limit, and their counters.

Reads control groups of version 1 and 2. A limit anywhere up the tree counts, so the smallest one wins.
The host's core count is never the answer: eight threads under a quota of four cores were 45 times slower
than four (ollama issue 17916), because the kernel stops all of them for the rest of each period.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# A v1 group without a limit reads PAGE_COUNTER_MAX, 2^63 less a page; no machine has an exbibyte.
_UNLIMITED_BYTES = 1 << 60

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CpuThrottling:
    """Counters of the group since it was made.

    Attributes:
        nr_periods: Scheduling periods in which the group had something to run.
        nr_throttled: Those in which it ran into its quota and was stopped.
    """

    nr_periods: int
    nr_throttled: int


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The groups that bind one process, from its own up to the root that is mounted here.

    Attributes:
        version: 1 or 2; 0 where there are no control groups (not Linux, or not mounted).
    """

    version: int
    cpu: tuple[Path, ...] = ()
    memory: tuple[Path, ...] = ()

    def cpu_quota_cores(self) -> float | None:
        """Cores' worth of CPU time per second; None without a limit."""
        return min(_present(map(self._quota, self.cpu)), default=None)

    def memory_limit_bytes(self) -> int | None:
        """None without a limit."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        limits = _present(_integer(group / name) for group in self.memory)
        return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)

    def memory_usage_bytes(self) -> int | None:
        """What is charged to the own group now, page cache included."""
        return self._own("memory.usage_in_bytes", "memory.current")

    def memory_peak_bytes(self) -> int | None:
        """The most that was ever charged; None before Linux 5.19 on version 2."""
        return self._own("memory.max_usage_in_bytes", "memory.peak")

    def oom_kills(self) -> int | None:
        """Processes of the own group that the kernel killed for memory."""
        if not self.memory:
            return None
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _fields(self.memory[0] / name).get("oom_kill")

    def throttling(self) -> CpuThrottling | None:
        """None where the group keeps no count (the root of version 2 does not)."""
        if not self.cpu:
            return None
        counters = _fields(self.cpu[0] / "cpu.stat")
        if "nr_throttled" not in counters:
            return None
        return CpuThrottling(counters.get("nr_periods", 0), counters["nr_throttled"])

    def _own(self, v1: str, v2: str) -> int | None:
        return _integer(self.memory[0] / (v2 if self.version == 2 else v1)) if self.memory else None

    def _quota(self, group: Path) -> float | None:
        if self.version == 2:
            quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
            return None if quota == "max" else int(quota) / int(period or 100_000)
        quota_us, period_us = _integer(group / "cpu.cfs_quota_us"), _integer(group / "cpu.cfs_period_us")
        return None if quota_us is None or quota_us <= 0 or not period_us else quota_us / period_us


def locate(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Cgroup:
    """Find the groups of the process whose ``/proc/PID/cgroup`` is ``membership``.

    Source:
        cgroups(7), "/proc files": lines ``id:controllers:path``; version 2 is ``0::path``.
    """
    paths: dict[str, str] = {}
    for line in (_text(membership) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    if (root / "cgroup.controllers").exists():
        chain = _chain(root, paths.get("", "/"))
        return Cgroup(2, chain, chain)
    cpu, memory = _mount_v1(root, "cpu"), _mount_v1(root, "memory")
    if cpu is None and memory is None:
        return Cgroup(0)
    return Cgroup(
        1,
        () if cpu is None else _chain(cpu, paths.get("cpu", "/")),
        () if memory is None else _chain(memory, paths.get("memory", "/")),
    )


def available_threads(limit_cores: float, cgroup: Cgroup | None = None, affinity: int | None = None) -> int:
    """Threads that can run all the time: the floor of the smallest of limit, quota and affinity, at least 1.

    Args:
        limit_cores: ``resource_limits.cpu_cores``, may be fractional.
        cgroup: Groups of this process when None.
        affinity: Number of cores that this process may be scheduled on; asked of the kernel when None.
    """
    quota = (locate() if cgroup is None else cgroup).cpu_quota_cores()
    cores = _affinity() if affinity is None else affinity
    return max(1, math.floor(min(limit_cores, cores, math.inf if quota is None else quota)))


def _affinity() -> int:
    # macOS has no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mount_v1(root: Path, controller: str) -> Path | None:
    """Controllers may share a mount: ``cpu,cpuacct`` on Debian and Red Hat."""
    if not root.is_dir():
        return None
    found = (path for path in sorted(root.iterdir()) if controller in path.name.split(",") and path.is_dir())
    return next(found, None)


def _chain(mount: Path, path: str) -> tuple[Path, ...]:
    """Own group first, then its parents up to ``mount``.

    A container without a cgroup namespace sees the host's path in ``/proc/self/cgroup`` but has its own
    group mounted as the root, so the longest end of the path that exists below the mount is taken.
    """
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:  # a namespace shows groups outside it this way: nothing of them is mounted here
        parts = []
    for start in range(len(parts) + 1):
        group = mount.joinpath(*parts[start:])
        if group.is_dir():
            kept = parts[start:]
            return tuple(mount.joinpath(*kept[:end]) for end in range(len(kept), -1, -1))
    return (mount,)


def _present(values: Iterable[T | None]) -> Iterable[T]:
    return (value for value in values if value is not None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    return None if text is None or text == "max" else int(text)


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in (_text(path) or "").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}
