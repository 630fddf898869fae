"""Several load generators as one, by Locust's master and workers: processes of this machine, and other hosts.

The master (:class:`Crew`, inside the process that :mod:`benchmarks.generator` starts) splits each run: worker k of n
does requests k, k + n, ... of the one schedule. Workers send every record back, so that what is written is what one
process would have written, and percentiles are of all requests and not of averages.

Clocks: perf_counter is one clock for all processes of a machine. Another host's is related to it by the quickest of
several exchanges; half of that exchange's time bounds the error, and is reported. It moves when a record says that
something happened, never how long it took. Quartz is off by some 20 ppm, 70 ms in an hour, so clocks are related anew
before each run.
"""

from __future__ import annotations

# ruff: noqa: I001
from benchmarks.client import (
    Control,
    Workload,
    execute,
    merge,
    prepare,
)  # first: it imports Locust, which patches the rest

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gevent
import gevent.event
import gevent.queue
from locust.env import Environment

from benchmarks.calls import Call
from benchmarks.config import Scenario
from benchmarks.plan import Plan, Run

JOIN_S = 60.0
EXCHANGES = 20
LEAD_S = 0.25
"""A run is announced so long before it begins, that every worker hears it in time."""
SILENCE_S = 10.0
"""A worker that says nothing for so long is gone; each reports its progress four times a second."""
BATCH_BYTES = 2**18
CHILD = "child"


@dataclass
class _Worker:
    id: str
    offset_s: float = 0.0
    """Its perf_counter minus the master's."""
    clock_error_s: float = 0.0
    heard_at: float = 0.0
    ended: int = 0
    failed: int = 0
    ready: bool = False
    done: dict[str, Any] | None = None


class Crew:
    """The master. Use as a context; :meth:`run` does one run on all workers.

    Raises:
        SystemExit: Workers did not come, or one was lost; the text says which.
    """

    def __init__(
        self,
        plan: Plan,
        scenario: Scenario,
        calls: Sequence[Call],
        write: Callable[[bytes], object],
        progress: Callable[[int, int], object],
    ) -> None:
        self._plan, self._scenario, self._calls = plan, scenario, calls
        self._write, self._progress = write, progress
        self._workers: dict[str, _Worker] = {}
        self._changed = gevent.event.Event()
        self._pongs: gevent.queue.Queue = gevent.queue.Queue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        host, _, port = self._scenario.workers_listen.rpartition(":")
        bound = host or "127.0.0.1"
        self._runner = Environment().create_master_runner(bound, int(port))
        for name in ("pong", "ready", "records", "progress", "done", "failed"):
            self._runner.register_message(name, getattr(self, f"_on_{name}"))
        address = f"{bound}:{self._runner.server.port}"
        for _ in range(self._scenario.workers):
            command = [sys.executable, "-m", "benchmarks.workers", bound, str(self._runner.server.port), CHILD]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr))
        wanted = self._scenario.workers + self._scenario.remote_workers
        if self._scenario.remote_workers:
            print(f"waiting for {self._scenario.remote_workers} workers at {address}", file=sys.stderr, flush=True)
        end = time.monotonic() + JOIN_S
        while len(self._runner.clients) < wanted:
            if time.monotonic() > end:
                sys.exit(f"{len(self._runner.clients)} of {wanted} workers came to {address} within {JOIN_S:.0f} s")
            gevent.sleep(0.05)
        self._workers = {name: _Worker(name) for name in list(self._runner.clients)[:wanted]}
        calls = [[call.id, call.text, call.label] for call in self._calls]
        for worker in self._workers.values():
            self._runner.send_message("plan", {"plan": asdict(self._plan), "calls": calls}, worker.id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.quit()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End the run under way: no new requests."""
        for worker in self._workers.values():
            self._runner.send_message("stop", None, worker.id)

    def run(self, run: Run) -> dict[str, Any]:
        """Do ``run`` on all workers at once; what the generators say, as one would say it."""
        workers = list(self._workers.values())
        for number, worker in enumerate(workers):
            worker.ready, worker.done, worker.ended, worker.failed = False, None, 0, 0
            self._relate_clock(worker)
            worker.heard_at = time.monotonic()
            task = {"run": asdict(run), "share": [number, len(workers)], "origin": self._plan.origin + worker.offset_s}
            self._runner.send_message("prepare", task, worker.id)
        while not all(worker.ready for worker in workers):
            self._changed.wait(0.5)
            self._changed.clear()
            self._look_for_silence(JOIN_S)
        begin = time.perf_counter() + LEAD_S
        for worker in workers:
            worker.heard_at = time.monotonic()
            self._runner.send_message("begin", begin + worker.offset_s, worker.id)
        while any(worker.done is None for worker in workers):
            self._changed.wait(0.5)
            self._changed.clear()
            self._progress(sum(worker.ended for worker in workers), sum(worker.failed for worker in workers))
            self._look_for_silence(SILENCE_S)
        found = merge([worker.done for worker in workers if worker.done is not None])
        for said, worker in zip(found["workers"], workers, strict=True):
            said["clock_error_s"] = worker.clock_error_s
        return found

    def _look_for_silence(self, limit_s: float) -> None:
        for process in self._processes:
            if process.poll() is not None:
                sys.exit(f"a worker on this machine ended with {process.returncode}")
        for worker in self._workers.values():
            if worker.done is None and time.monotonic() - worker.heard_at > limit_s:
                sys.exit(f"worker {worker.id} was not heard of for {limit_s:.0f} s")

    def _relate_clock(self, worker: _Worker) -> None:
        best = float("inf")
        for _ in range(EXCHANGES):
            before = time.perf_counter()
            self._runner.send_message("ping", None, worker.id)
            worker.heard_at = time.monotonic()
            while True:
                with contextlib.suppress(gevent.queue.Empty):
                    pong = self._pongs.get(timeout=0.5)
                    break
                self._look_for_silence(JOIN_S)
            after = time.perf_counter()
            if pong["clock"] is not None and pong["clock"] == _clock_id():
                return  # one machine, one clock
            if after - before < best:
                best = after - before
                worker.offset_s = pong["at"] - (before + after) / 2
                worker.clock_error_s = best / 2

    def _on_pong(self, msg: Any, **_: Any) -> None:
        self._pongs.put(msg.data)

    def _on_ready(self, msg: Any, **_: Any) -> None:
        self._workers[msg.node_id].ready = True
        self._changed.set()

    def _on_records(self, msg: Any, **_: Any) -> None:
        for line in msg.data.splitlines():
            self._write(line)

    def _on_progress(self, msg: Any, **_: Any) -> None:
        worker = self._workers[msg.node_id]
        worker.ended, worker.failed = msg.data
        worker.heard_at = time.monotonic()

    def _on_done(self, msg: Any, **_: Any) -> None:
        worker = self._workers[msg.node_id]
        found = msg.data
        worker.done = found
        worker.ended, worker.failed = found["requests"], found["failed"]
        self._changed.set()

    def _on_failed(self, msg: Any, **_: Any) -> None:
        sys.exit(f"worker {msg.node_id}: {msg.data}")


def _clock_id() -> str | None:
    """Names this clock: this boot of this kernel, and what a container may have set off against it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/time').readlink()}"
    except OSError:
        return None


def work(host: str, port: int, *, child: bool = False) -> None:
    """Be a worker until the master says that it is over, or is gone.

    Args:
        child: The master started it, and holds the other end of its standard input.
    """
    environment = Environment()
    control = Control()
    state: dict[str, Any] = {}
    tasks: gevent.queue.Queue = gevent.queue.Queue()
    begins: gevent.queue.Queue = gevent.queue.Queue()
    runner = environment.create_worker_runner(host, port)

    def on_plan(msg: Any, **_: Any) -> None:
        plan = Plan(**msg.data["plan"])
        calls = [Call(*fields) for fields in msg.data["calls"]]
        state["plan"], state["workload"] = plan, Workload.of(Scenario.model_validate_json(plan.scenario), calls)

    runner.register_message(
        "ping", lambda **_: runner.send_message("pong", {"at": time.perf_counter(), "clock": _clock_id()})
    )
    runner.register_message("plan", on_plan)
    runner.register_message("prepare", lambda msg, **_: tasks.put(msg.data))
    runner.register_message("begin", lambda msg, **_: begins.put(msg.data))
    runner.register_message("stop", lambda **_: control.on_stop())
    runner.greenlet.spawn(lambda: _serve(runner, state, control, tasks, begins))
    if child:
        gevent.spawn(_leave_with_parent)
    runner.greenlet.join()


def _leave_with_parent() -> None:
    """A master that is killed cannot say goodbye, but its end of the pipe closes."""
    from gevent.fileobject import FileObject

    FileObject(sys.stdin.buffer, "rb").read()
    os._exit(1)


class _Outbox:
    """Records on their way to the master, several in a message."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._batch = bytearray()

    def write(self, line: bytes) -> None:
        self._batch += line + b"\n"
        if len(self._batch) > BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self._runner.send_message("records", bytes(self._batch))
            self._batch.clear()

    def progress(self, ended: int, failed: int) -> None:
        self.flush()
        self._runner.send_message("progress", [ended, failed])


def _serve(
    runner: Any, state: dict[str, Any], control: Control, tasks: gevent.queue.Queue, begins: gevent.queue.Queue
) -> None:
    outbox = _Outbox(runner)
    while True:
        task = tasks.get()
        try:
            which, of = task["share"]
            plan = replace(state["plan"], origin=task["origin"])
            control.load = prepare(plan, Run(**task["run"]), state["workload"], (which, of))
            runner.send_message("ready")
            found = execute(control.load, outbox.write, outbox.progress, begins.get())
        except Exception as error:
            runner.send_message("failed", f"{socket.gethostname()}: {error!r}")
            raise
        control.load = None
        outbox.flush()
        runner.send_message("done", found)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), child=CHILD in sys.argv[3:])
