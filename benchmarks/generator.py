"""The load generator seen from outside: started, told what to do, stopped, asked how it was."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import TypeAdapter

from benchmarks.config import ClientLimits, Scenario
from benchmarks.errors import InvalidRunError
from benchmarks.plan import Plan, Run

START_S = 60.0
Progress = Callable[[int, int], None]
"""Called with the requests that ended and those that failed, a few times a second."""


class Generator:
    """A process that sends load. One per benchmark, so that its start-up is not part of any run.

    It has a process group of its own: Ctrl-C reaches this side only, which then ends the run in order.

    Args:
        lock: Is held open by it too, as long as it may write.
    """

    def __init__(
        self, scenario: Scenario, *, origin: float, journal: Path, log: Path, lock: IO[bytes] | None = None
    ) -> None:
        self._log, self._lock = log, lock
        self._plan = Plan(
            origin=origin,
            journal=str(journal.absolute()),
            # As the base class: what a verb adds is none of the client's business.
            scenario=TypeAdapter(Scenario).dump_json(scenario).decode(),
            seed=scenario.seed,
        )
        self._timeout = scenario.timeout_s
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.pid = 0

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                pass_fds=() if self._lock is None else (self._lock.fileno(),),
            )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        try:
            self._say(json.dumps(asdict(self._plan)))
            self._wait_for("ready", START_S, None)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, run: Run, progress: Progress | None = None) -> dict[str, Any]:
        """Do ``run`` and return what the generator says about it.

        Raises:
            InvalidRunError: The generator died, or did not come back in time.
            KeyboardInterrupt: Passed on after the requests under way were waited for.
        """
        self._say(json.dumps(asdict(run)))
        # A run by number of requests alone ends when the server has answered them.
        limit = None if run.duration_s is None else run.duration_s + 2 * self._timeout + 30
        try:
            return self._wait_for("done", limit, progress)
        except KeyboardInterrupt:
            self._say("stop")
            with contextlib.suppress(InvalidRunError):
                self._wait_for("done", min(self._timeout, 10.0) + 1, None)
            raise

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise InvalidRunError(f"the load generator is gone: {self._last_words()}") from error

    def _wait_for(self, name: str, limit: float | None, progress: Progress | None) -> dict[str, Any]:
        import time

        end = None if limit is None else time.monotonic() + limit
        while True:
            try:
                # A wait without end would not be interruptible by Ctrl-C on every system.
                event = self._events.get(timeout=1.0 if end is None else max(0.0, min(1.0, end - time.monotonic())))
            except queue.Empty:
                if end is not None and time.monotonic() >= end:
                    raise InvalidRunError(f"the load generator did not answer within {limit:.0f} s") from None
                continue
            if event is None:
                raise InvalidRunError(f"the load generator ended: {self._last_words()}")
            if event["event"] == name:
                return event
            if event["event"] == "progress" and progress is not None:
                progress(event["requests"], event["failed"])

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with contextlib.suppress(ValueError):
                self._events.put(json.loads(line))
        self._events.put(None)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"{lines[-1]} (all of it: {self._log})" if lines else "without a word"
        return "without a word"

    def _end(self) -> None:
        """Closing its input asks it to leave; what does not leave is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._reader.join(timeout=5)
        self._process.stdout.close()


FEW_IN_FLIGHT = 4
"""Fewer are often on the way when the server's gauges are read, which says nothing."""


def ill_health(run: dict[str, Any], limits: ClientLimits, seen: float | None = None) -> list[str]:
    """Why this run measured the generator and not the server; empty when it was well.

    Args:
        seen: Requests that the server said it had at a time, on average; None where it does not say.
    """
    found = []
    claimed = run["mean_in_flight"]
    if seen is not None and claimed >= FEW_IN_FLIGHT and seen < (1 - limits.unseen_concurrency) * claimed:
        found.append(
            f"the load generator believed {claimed:.0f} requests under way on average, the server saw {seen:.0f}: "
            "the others were held up in the generator or on the way"
        )
    if run["client_cpu_share"] > limits.cpu_share:
        found.append(
            f"the load generator used {run['client_cpu_share']:.0%} of its one CPU (limit {limits.cpu_share:.0%}): "
            "send less, or from more processes"
        )
    lag = run["loop_lag_p50_s"]
    if lag is not None and lag * 1000 > limits.loop_lag_p50_ms:
        found.append(
            f"timers in the load generator were {lag * 1000:.1f} ms late at the median "
            f"(limit {limits.loop_lag_p50_ms:g} ms): it had too little CPU"
        )
    tokens = run["late_first_tokens"]
    if tokens is not None and tokens > limits.late_first_tokens:
        found.append(
            f"{tokens:.0%} of the first tokens came while the load generator was busy with others, and their times are "
            f"too late (limit {limits.late_first_tokens:.0%}): send less, or from more processes"
        )
    late = run["lateness_p99_s"]
    if late is not None and late * 1000 > limits.dispatch_lateness_p99_ms:
        found.append(
            f"1 % of the requests left more than {late * 1000:.0f} ms after they were due "
            f"(limit {limits.dispatch_lateness_p99_ms:g} ms)"
        )
    return found
