"""CPU, memory, disk, network and the server's own metrics while a benchmark runs, on the clock of the records.

A source that is not there, or is there no longer, has rows without values: never 0. What grows (CPU seconds, bytes,
requests) is written down as it is counted, so that any two rows give what was used between them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import psutil

from benchmarks import cgroup, fetch, prometheus
from benchmarks.config import Cost, Scenario
from benchmarks.errors import EndpointError, UsageError

COLUMNS = (
    "at_s",
    "source",
    "cpu_percent",  # of one core; of the machine: of all
    "cpu_s",
    "memory_used_mb",
    "memory_percent",
    "processes",
    "threads",
    "open_files",
    "disk_read_mb",
    "disk_write_mb",
    "network_received_mb",
    "network_sent_mb",
    "energy_j",
    # of /metrics
    "requests_total",
    "prompt_tokens_total",
    "output_tokens_total",
    "queue_depth",
    "running",
    "metrics",  # all of it as JSON: {"counters": {name: value}, "gauges": {name: value}}
)
_TEXT_COLUMNS = ("source", "metrics")

SCRAPE_INTERVAL_S = 2.0  # our own 270 lines take 3.2 ms of CPU to read and the server 1.6 ms to write
MIN_INTERVAL_S = 0.04  # CPU time is counted in steps of 10 ms: a share over less says nothing
MARK_S = 0.1  # what was read just before and after a run belongs to it
_MIB = 2**20
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Source:
    """What can be read of one server; None: cannot be.

    Attributes:
        pid: Of its first process; children count with it.
        cgroup: Path of its control group; wins over ``pid``.
        metrics_urls: Where its Prometheus metrics may be; the first that answers is used.
        api_key_env: Variable that holds the key they ask for.
    """

    pid: int | None = None
    cgroup: str | None = None
    metrics_urls: tuple[str, ...] = ()
    api_key_env: str | None = None


def source_of(scenario: Scenario, arm: str, url: str, pid: int | None, *, compared: bool) -> Source:
    """What ``scenario`` lets be read of the server at ``url``, which is its side ``arm``; what it names is there.

    Raises:
        UsageError: No such process or control group.
        EndpointError: No metrics at the URL that it names.
    """
    prefix = f"{arm}_" if compared else ""
    group, metrics = (getattr(scenario, f"{prefix}{key}") for key in ("cgroup", "metrics_url"))
    if pid is not None and not psutil.pid_exists(pid):
        raise UsageError(f"there is no process {pid} here: correct {prefix}pid, or leave it out")
    if group is not None and not cgroup.find(group).exists():
        raise UsageError(f"there is no control group {group} here: correct {prefix}cgroup, or leave it out")
    if metrics is None:
        return Source(pid, group, tuple(prometheus.metrics_urls(url)), scenario.api_key_env)
    fetch.base_url(metrics)
    # A key is for the server that is measured, not for whoever else has its metrics.
    key = scenario.api_key_env if urlsplit(metrics)[:2] == urlsplit(url)[:2] else None
    try:
        prometheus.scrape(metrics, key)
    except EndpointError as error:
        raise EndpointError(
            metrics, f"{error.problem}: correct {prefix}metrics_url, or leave it out to do without the server's metrics"
        ) from error
    return Source(pid, group, (metrics,), key)


class Sampler:
    """A thread that reads every ``interval_s``; ``rows`` grows until it is closed.

    Args:
        origin: The benchmark's zero, perf_counter seconds.
        sources: Name such as ``server_a`` -> what it is, or just its process id. Rows of its metrics have the
            source ``metrics_a``.
        journal: File to which rows are appended as they come; what an earlier process wrote there is kept.
    """

    def __init__(
        self,
        origin: float,
        interval_s: float,
        sources: Mapping[str, int | Source],
        *,
        journal: Path | None = None,
        scrape_interval_s: float = SCRAPE_INTERVAL_S,
        powercap: Path = _POWERCAP,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.cpu_s = 0.0
        """What the sampler itself has used."""
        self._origin, self._interval = origin, interval_s
        self._scrape_interval = max(interval_s, scrape_interval_s)
        self._journal = journal
        self._log: TextIO | None = None
        self._powercap = powercap
        self._readers: dict[str, Callable[[], dict[str, Any]]] = {"machine": self._machine}
        self._energy: dict[Path, tuple[float, float]] = {}
        self._spent: dict[str, tuple[float, float]] = {}
        self._metrics: dict[str, tuple[str, str | None]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._before = _read_journal(journal)
        for name, source in sources.items():
            self.watch(name, source)

    def __enter__(self) -> Self:
        self._log = None if self._journal is None else self._journal.open("a", encoding="utf-8")
        self._threads.append(threading.Thread(target=self._work, daemon=True, name="sampler"))
        if self._metrics:
            self._threads.append(threading.Thread(target=self._scrape_on, daemon=True, name="scraper"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.mark()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def watch(self, name: str, source: int | Source) -> None:
        """Sample one more server, or one more process tree."""
        found = Source(pid=source) if isinstance(source, int) else source
        group = None
        if found.cgroup is not None:
            group = cgroup.find(found.cgroup)
        elif found.pid is not None:
            group = cgroup.of_process(found.pid)
        if group is not None:
            self._readers[name] = _Group(group).read
        elif found.pid is not None:
            self._readers[name] = _Tree(found.pid).read
        if found.metrics_urls:
            named = found.metrics_urls[0] if len(found.metrics_urls) == 1 else None
            url = named or prometheus.first_that_answers(found.metrics_urls, found.api_key_env)
            if url is not None:
                self._metrics[name.replace("server", "metrics", 1)] = url, found.api_key_env

    def mark(self) -> None:
        """Read everything now. Called before and after a run, so that its ends are in the rows."""
        self._read()
        self._scrape()

    def frame(self) -> pd.DataFrame:
        """The rows so far, in order of time; sources without a value have missing ones."""
        with self._lock:
            rows = self._before + self.rows
        found = pd.DataFrame(rows, columns=list(COLUMNS))
        numbers = [name for name in COLUMNS if name not in _TEXT_COLUMNS]
        found = found.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(_TEXT_COLUMNS, "string"))
        return found.sort_values("at_s", kind="stable", ignore_index=True)

    def _work(self) -> None:
        while not self._over.wait(self._interval):
            before = time.thread_time()
            self._read()
            self.cpu_s += time.thread_time() - before

    def _scrape_on(self) -> None:
        while not self._over.wait(self._scrape_interval):
            before = time.thread_time()
            self._scrape()
            self.cpu_s += time.thread_time() - before

    def _read(self) -> None:
        with self._lock:
            for name, read in list(self._readers.items()):
                now = time.perf_counter()
                row = {"at_s": now - self._origin, "source": name, **read()}
                row.setdefault("cpu_percent", self._percent(name, now, row.get("cpu_s")))
                self._keep(row)

    def _scrape(self) -> None:
        for name, (url, key) in self._metrics.items():
            at = time.perf_counter() - self._origin
            row: dict[str, Any] = {"at_s": at, "source": name}
            with contextlib.suppress(EndpointError):
                found = prometheus.scrape(url, key)
                row |= found.known()
                row["metrics"] = json.dumps({"counters": found.counters, "gauges": found.gauges})
            memory = row.pop("memory_bytes", None)
            row["memory_used_mb"] = None if memory is None else memory / _MIB
            with self._lock:
                self._keep(row)

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._log is not None and not self._log.closed:
            # A full disk is said by who writes the results; a thread has nobody to tell.
            with contextlib.suppress(OSError):
                self._log.write(json.dumps(row, allow_nan=False) + "\n")
                self._log.flush()

    def _percent(self, name: str, now: float, cpu_s: float | None) -> float | None:
        """Share of one core since the last row, in percent."""
        before = self._spent.get(name)
        if cpu_s is None or (before is not None and now - before[0] < MIN_INTERVAL_S):
            return None
        self._spent[name] = (now, cpu_s)
        return None if before is None else max(0.0, 100 * (cpu_s - before[1]) / (now - before[0]))

    def _machine(self) -> dict[str, Any]:
        times, memory = psutil.cpu_times(), psutil.virtual_memory()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guest time in user time too.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        cpu_s = sum(times) - guests - idle
        disk, network = psutil.disk_io_counters(nowrap=False), psutil.net_io_counters(nowrap=False)
        share = self._percent("machine", time.perf_counter(), cpu_s)
        return {
            "cpu_percent": None if share is None else min(100.0, share / (psutil.cpu_count() or 1)),
            "cpu_s": cpu_s,
            "memory_used_mb": memory.used / _MIB,
            "memory_percent": memory.percent,
            "disk_read_mb": None if disk is None else disk.read_bytes / _MIB,
            "disk_write_mb": None if disk is None else disk.write_bytes / _MIB,
            "network_received_mb": None if network is None else network.bytes_recv / _MIB,
            "network_sent_mb": None if network is None else network.bytes_sent / _MIB,
            "energy_j": self._joules(),
        }

    def _joules(self) -> float | None:
        """Energy of all packages since the first reading (RAPL); None where it cannot be read.

        Source:
            Documentation/power/powercap/powercap.rst of Linux: energy_uj wraps at max_energy_range_uj.
        """
        total = None
        for folder in sorted(self._powercap.glob("intel-rapl:?")):
            try:
                now = int((folder / "energy_uj").read_text())
                span = int((folder / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                return None  # root only since Linux 5.10
            before, joules = self._energy.get(folder, (now, 0.0))
            joules += ((now - before) % (span + 1)) / 1e6
            self._energy[folder] = (now, joules)
            total = (total or 0.0) + joules
        return total


class _Tree:
    """A process and what descends from it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = 0.0
        self._lost = 0.0
        self._fell = False
        self._known: dict[int, psutil.Process] = {}
        try:
            self._root: psutil.Process | None = psutil.Process(pid)
        except psutil.Error:
            self._root = None

    def read(self) -> dict[str, Any]:
        root = self._root
        try:
            # A number that was given to another process is not this one.
            if root is None or not root.is_running() or root.status() == psutil.STATUS_ZOMBIE:
                return {}
            members = _descendants(self._pid)
        except (psutil.Error, OSError):
            return {}
        found = _sum_of(members, self._known)
        if found:
            found["cpu_s"] = self._steady(found["cpu_s"])
            found |= _own_network(self._pid)
        return found

    def _steady(self, cpu_s: float) -> float:
        """CPU seconds that never fall.

        A process counts what its ended children had used once it has waited for them. One that nobody waits
        for takes its seconds away: they are kept here. A fall that is made up for at once is only the moment
        between two files being read.
        """
        now = cpu_s + self._lost
        if now >= self._last:
            self._last, self._fell = now, False
        elif self._fell:
            self._lost += self._last - now
            self._fell = False
        else:
            self._fell = True
        return self._last


class _Group:
    """A control group."""

    def __init__(self, group: cgroup.Group) -> None:
        self._group = group
        self._known: dict[int, psutil.Process] = {}

    def read(self) -> dict[str, Any]:
        group = self._group
        if not group.exists():
            return {}
        pids = group.pids()
        if not pids:
            return {}
        memory, disk = group.memory_bytes(), group.disk_bytes()
        # Threads, files and what the group does not count come from its processes.
        found = _sum_of(pids, self._known) | _own_network(pids[0])
        cpu_s = group.cpu_s()
        if cpu_s is not None:
            found["cpu_s"] = cpu_s
        if memory is not None:
            found["memory_used_mb"] = memory / _MIB
        if disk is not None:
            found["disk_read_mb"], found["disk_write_mb"] = disk[0] / _MIB, disk[1] / _MIB
        return found


def _descendants(pid: int) -> list[int]:
    """``pid`` and its children, theirs, and so on.

    The kernel's own lists are read where it has them: psutil looks at every process of the machine instead, which
    took 2.4 ms of CPU with 79 of them, and this 0.05 ms.

    Raises:
        OSError, psutil.Error: ``pid`` is gone.
    """
    if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):  # noqa: PTH110 - read twice a second, a Path costs as much as the call
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    found = [pid]
    for member in found:  # grows
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{member}/task"):  # noqa: PTH208 - as above
                with open(f"/proc/{member}/task/{task}/children", encoding="ascii") as lines:  # noqa: PTH123 - as above
                    found.extend(map(int, lines.read().split()))
    return found


def _sum_of(pids: Sequence[int], known: dict[int, psutil.Process]) -> dict[str, Any]:
    """Sums over processes; {} when none is there. What one of them does not show is None for all.

    Args:
        known: Those of the last reading: asking for a process again costs a third of reading it.
    """
    sums = {"cpu_s": 0.0, "memory_used_mb": 0.0, "threads": 0.0}
    files: float | None = 0.0
    disk: tuple[float, float] | None = (0.0, 0.0)
    count = 0
    for pid in pids:
        try:
            # psutil's oneshot() took twice as long for these: it reads one file more.
            member = known[pid] = known.get(pid) or psutil.Process(pid)
            times, memory, threads = member.cpu_times(), member.memory_info(), member.num_threads()
        except psutil.Error:
            known.pop(pid, None)
            continue
        count += 1
        sums["threads"] += threads
        waited_for = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        sums["cpu_s"] += times.user + times.system + waited_for
        sums["memory_used_mb"] += memory.rss / _MIB
        files = _plus(files, _open_files(member))
        moved = _moved(member)
        disk = None if disk is None or moved is None else (disk[0] + moved[0], disk[1] + moved[1])
    if not count:
        return {}
    read, written = disk or (None, None)
    return sums | {"processes": count, "open_files": files, "disk_read_mb": read, "disk_write_mb": written}


def _plus(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def _open_files(member: psutil.Process) -> float | None:
    """File descriptors; None without the right to look, and on Windows."""
    if not hasattr(member, "num_fds"):
        return None
    try:
        return float(member.num_fds())
    except psutil.NoSuchProcess:
        return 0.0  # it ended since
    except psutil.Error:
        return None


def _moved(member: psutil.Process) -> tuple[float, float] | None:
    """MiB read from and written to disks; None where the system does not tell."""
    if not hasattr(member, "io_counters"):
        return None
    try:
        counted = member.io_counters()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    except psutil.Error:
        return None
    return counted.read_bytes / _MIB, counted.write_bytes / _MIB


def _own_network(pid: int) -> dict[str, float]:
    """Traffic of a network namespace that ``pid`` has for itself, as in a container; {} where it has none.

    The kernel does not count the traffic of a process.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):  # noqa: PTH115 - as above
            lines = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
            rows = [line.partition(":")[2].split() for line in lines if line.split(":")[0].strip() != "lo"]
            received, sent = sum(int(row[0]) for row in rows), sum(int(row[8]) for row in rows)
            return {"network_received_mb": received / _MIB, "network_sent_mb": sent / _MIB}
    return {}


def _read_journal(path: Path | None) -> list[dict[str, Any]]:
    """Rows that an earlier process wrote, up to a line that is broken; its end is cut off there."""
    rows: list[dict[str, Any]] = []
    if path is None or not path.exists():
        return rows
    whole = 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(_is_sample(name, value) for name, value in row.items()):
            break
        rows.append(row)
        whole += len(line)
    if whole < len(data):
        os.truncate(path, whole)
    return rows


def _is_sample(name: str, value: object) -> bool:
    return value is None or isinstance(value, str if name in _TEXT_COLUMNS else (int, float))


# -- what a run used ---------------------------------------------------------------------------------------------


def server_use(
    samples: pd.DataFrame,
    source: str,
    runs: Sequence[Mapping[str, Any]],
    *,
    tokens: int | None = None,
    cost: Cost | None = None,
) -> dict[str, Any]:
    """What ``source`` used during ``runs``, per request and per token; None for what was not sampled.

    Args:
        tokens: Output tokens as the client counts them; what the server's metrics count where the client cannot.
        cost: Price of the machine; None states no price.
    """
    requests = sum(int(run["requests"]) for run in runs)
    own = samples[samples["source"] == source]
    metrics = samples[samples["source"] == source.replace("server", "metrics", 1)]
    machine = samples[samples["source"] == "machine"]
    counted = served(metrics, runs)
    tokens = tokens or _whole(counted["output_tokens"]) or None
    # A server elsewhere may tell in its metrics what cannot be read here.
    rows = own if own["cpu_s"].notna().sum() >= 2 else metrics
    cpu, joules = increase(rows, "cpu_s", runs), increase(machine, "energy_j", runs)
    seconds = sum(float(run["ended_s"] - run["started_s"]) for run in runs)
    price = None if cost is None or cost.per_hour is None else cost.per_hour * seconds / 3600
    return {
        "server_cpu_s_per_1000_requests": _per(cpu, requests, 1000),
        "server_cpu_s_per_token": _per(cpu, tokens),
        "server_cpu_percent": _per(cpu, seconds, 100),
        "server_peak_memory_mb": _peak(own, "memory_used_mb", runs) or _peak(metrics, "memory_used_mb", runs),
        "server_peak_open_files": _peak(own, "open_files", runs) or _peak(metrics, "open_files", runs),
        "server_peak_threads": _peak(own, "threads", runs),
        "server_disk_read_mb": increase(own, "disk_read_mb", runs),
        "server_disk_write_mb": increase(own, "disk_write_mb", runs),
        "server_network_received_mb": increase(own, "network_received_mb", runs),
        "server_network_sent_mb": increase(own, "network_sent_mb", runs),
        "machine_cpu_s": increase(machine, "cpu_s", runs),
        "machine_peak_memory_percent": _peak(machine, "memory_percent", runs),
        "machine_disk_read_mb": increase(machine, "disk_read_mb", runs),
        "machine_disk_write_mb": increase(machine, "disk_write_mb", runs),
        "machine_network_received_mb": increase(machine, "network_received_mb", runs),
        "machine_network_sent_mb": increase(machine, "network_sent_mb", runs),
        "joules_per_token": _per(joules, tokens),
        "price_per_million_tokens": _per(price, tokens, 1e6),
        "price_per_1000_requests": _per(price, requests, 1000),
        "currency": None if price is None or cost is None else cost.currency,
        "server_metrics": counted if metrics["metrics"].notna().any() else None,
    }


def served(metrics: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the server's own metrics say about ``runs``: totals and rates of counters, mean and peak of gauges.

    Args:
        metrics: Rows of one server's metrics.
    """
    seconds = sum(float(run["ended_s"] - run["started_s"]) for run in runs)
    found: dict[str, Any] = {
        "client_requests": sum(int(run["requests"]) for run in runs),
        "requests": increase(metrics, "requests_total", runs, marked=True),
        "prompt_tokens": increase(metrics, "prompt_tokens_total", runs, marked=True),
        "output_tokens": increase(metrics, "output_tokens_total", runs, marked=True),
    }
    for name in ("queue_depth", "running"):
        found[f"{name}_mean"], found[f"{name}_peak"] = _mean(metrics, name, runs), _peak(metrics, name, runs)
    every = [json.loads(text) for text in metrics["metrics"].dropna()]
    spread = pd.DataFrame(
        {name: value for kind in ("counters", "gauges") for name, value in row[kind].items()} for row in every
    )
    spread["at_s"] = metrics.loc[metrics["metrics"].notna(), "at_s"].to_numpy(float)
    totals = {name: increase(spread, name, runs, marked=True) for name in _names(every, "counters")}
    found["counters"] = {name: {"total": total, "per_s": _per(total, seconds)} for name, total in totals.items()}
    found["gauges"] = {
        name: {"mean": _mean(spread, name, runs), "peak": _peak(spread, name, runs)} for name in _names(every, "gauges")
    }
    return found


def _names(every: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    return sorted({name for row in every for name in row[kind]})


def increase(
    rows: pd.DataFrame, column: str, runs: Sequence[Mapping[str, Any]], *, marked: bool = False
) -> float | None:
    """By how much a counter grew during ``runs``; None when fewer than two rows hold it.

    A counter that falls was set to 0 in between, as a server's are when it starts again.

    Args:
        marked: Take what was read just before and after a run as its ends, for a count that must be exact; else the
            ends are interpolated, for what is used all the time.
    """
    values = rows[column].to_numpy(float)
    there = ~np.isnan(values)
    at, values = rows["at_s"].to_numpy(float)[there], values[there]
    if len(at) < 2 or not runs:
        return None
    steps = np.diff(values)
    steps = np.where(steps < 0, values[1:], steps)
    grown = np.concatenate(([0.0], np.cumsum(steps)))
    total = 0.0
    for run in runs:
        begin, end = run["started_s"], run["ended_s"]
        if marked:
            before, after = at[at <= begin], at[at >= end]
            begin = before[-1] if len(before) and begin - before[-1] <= MARK_S else begin
            end = after[0] if len(after) and after[0] - end <= MARK_S else end
        total += float(np.interp(end, at, grown) - np.interp(begin, at, grown))
    return total


def _within(rows: pd.DataFrame, column: str, runs: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
    at, values = rows["at_s"].to_numpy(float), rows[column].to_numpy(float)
    inside = np.zeros(len(at), dtype=bool)
    for run in runs:
        inside |= (at >= run["started_s"] - MARK_S) & (at <= run["ended_s"] + MARK_S)
    found: np.ndarray[Any, Any] = values[inside & ~np.isnan(values)]
    return found


def _peak(rows: pd.DataFrame, column: str, runs: Sequence[Mapping[str, Any]]) -> float | None:
    values = _within(rows, column, runs)
    return float(values.max()) if len(values) else None


def _mean(rows: pd.DataFrame, column: str, runs: Sequence[Mapping[str, Any]]) -> float | None:
    values = _within(rows, column, runs)
    return float(values.mean()) if len(values) else None


def _per(amount: float | None, of: float | None, scale: float = 1.0) -> float | None:
    return None if amount is None or not of else scale * amount / of


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
