"""The load generator: ``python -m benchmarks.client``, a process of its own that :mod:`benchmarks.generator` starts.

It is a process because Locust makes the whole interpreter cooperative (gevent) when it is imported, and because
its CPU can then be told from everybody else's. stdin: a :class:`Plan`, then one :class:`Run` per line, ``stop`` to
end the run under way, end of file to leave. stdout: one JSON object per event. Records go to the journal.

Traps of Locust 2.47 that this avoids (measured against a server with known token times):
``FastHttpUser.iter_lines`` waits for 1024 bytes (first token 111 ms instead of 50), so the body is read from the
socket as it arrives; ``spawn_later`` counts from libev's last loop time, so a run that follows seconds of CPU work
ends early, and deadlines here are compared with ``perf_counter`` after ``update_now``; the built-in pacing is a
closed loop and hides a frozen server, so the open loop has a schedule of its own.
"""

from __future__ import annotations

# ruff: noqa: I001
from locust import FastHttpUser, constant, task  # first: it patches what the rest imports

import json
import os
import random
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import gevent
import gevent.fileobject
import gevent.pool
import gevent.queue
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from geventhttpclient.url import URL
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.calls import Call, calls_of, order_of_calls
from benchmarks.config import Scenario
from benchmarks.dialects import PATHS, AnswerError, describe_failure, read_body, read_stream, request_body
from benchmarks.plan import Plan, Run
from benchmarks.records import Record
from benchmarks.arrivals import Arrivals, schedule
from benchmarks.sse import EventReader
from benchmarks.stats import percentile

READ_BYTES = 65536
LAG_TICK_S = 0.01
AFTER_DONE_S = 1.0  # a server that keeps the connection after [DONE] is left; its stream was complete
PAUSE_AFTER_ERROR_S = 0.1  # a closed loop would otherwise spin on a server that refuses


class _TookTooLongError(gevent.Timeout):  # type: ignore[misc]
    """``timeout_s`` passed."""


@dataclass
class Load:
    """A run under way."""

    plan: Plan
    run: Run
    scenario: Scenario
    calls: Sequence[Call]
    bodies: Sequence[bytes]
    headers: dict[str, str]
    journal: TextIO
    deadline: float
    order: Iterator[int]
    queue: gevent.queue.Queue = field(default_factory=gevent.queue.Queue)
    started: int = 0
    ended: int = 0
    failed: int = 0
    busy: int = 0
    peak_busy: int = 0
    stopping: bool = False
    lateness: list[float] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return (
            self.stopping
            or (self.run.requests is not None and self.started >= self.run.requests)
            or time.perf_counter() >= self.deadline
        )

    def next_due(self) -> float:
        """The moment the next request is due, perf_counter seconds; ends the user when none is."""
        if self.run.users is None:
            due: float | None = self.queue.get()
            if due is None:
                raise StopUser
            return due
        if self.over:
            raise StopUser
        return time.perf_counter()


class Caller(FastHttpUser):  # type: ignore[misc]
    """One user: one connection, one request at a time."""

    wait_time = constant(0)
    concurrency = 1
    insecure = False  # Locust's default accepts every certificate

    def __init__(self, environment: Environment, load: Load, number: int) -> None:
        # The whole request has one limit, timeout_s; the socket's own must not be first.
        self.network_timeout = self.connection_timeout = 2 * load.scenario.timeout_s
        super().__init__(environment)
        self.load, self.number = load, number
        self.url = URL(load.run.url)
        self.path = urlsplit(load.run.url).path.rstrip("/") + PATHS[load.scenario.dialect]

    @task  # type: ignore[untyped-decorator]
    def call(self) -> None:
        load = self.load
        due = load.next_due()
        at = next(load.order)
        call = load.calls[at]
        origin = load.plan.origin
        record = Record(
            run=load.run.run,
            arm=load.run.arm,
            pair=load.run.pair,
            phase=load.run.phase,
            number=load.started,
            user=self.number,
            call=call.id,
            label=call.label,
            scheduled_s=due - origin,
        )
        load.started += 1
        load.busy += 1
        load.peak_busy = max(load.peak_busy, load.busy)
        try:
            self._send(load.bodies[at], record)
        finally:
            load.busy -= 1
        load.lateness.append(record.sent_s - record.scheduled_s)
        load.ended += 1
        load.journal.write(record.to_json() + "\n")
        if record.error is not None:
            load.failed += 1
            if load.run.users is not None:
                gevent.sleep(PAUSE_AFTER_ERROR_S)

    def _send(self, body: bytes, record: Record) -> None:
        """Send and read one request; everything that can go wrong becomes the record's error."""
        load = self.load
        origin = load.plan.origin
        record.wall_start = time.time()
        record.sent_s = time.perf_counter() - origin
        try:
            with _TookTooLongError(load.scenario.timeout_s):
                self._exchange(body, record)
        except _TookTooLongError:
            self._disconnect()
            record.error, record.error_detail = "timeout", f"longer than {load.scenario.timeout_s:g} s"
        except AnswerError as error:
            record.error, record.error_detail = error.kind, error.detail
        except TimeoutError as error:
            self._disconnect()
            record.error, record.error_detail = "timeout", str(error) or "the connection timed out"
        except (OSError, HTTPParseError) as error:
            self._disconnect()
            connected = record.first_byte_s is not None or isinstance(error, (HTTPParseError, ConnectionResetError))
            record.error = "reset" if connected else "connect"
            record.error_detail = str(error) or type(error).__name__
        if record.end_s == 0.0 or record.error is not None:
            record.end_s = time.perf_counter() - origin

    def _exchange(self, body: bytes, record: Record) -> None:
        load = self.load
        origin = load.plan.origin
        http = self.client.client.clientpool.get_client(self.url)
        # Nagle would hold back the end of a body longer than a segment until the server acknowledges.
        http._connection_pool.after_connect = _send_at_once  # noqa: SLF001
        response = http.request("POST", self.path, body=body, headers=load.headers)
        record.first_byte_s = time.perf_counter() - origin
        record.status = response.get_code()
        try:
            if record.status != 200:
                raise AnswerError("http_status", f"{record.status}: {describe_failure(response.read())}")
            if load.scenario.dialect == "chat_stream":
                self._read_stream(response, record)
            else:
                data = _read_whole(response)
                record.end_s = time.perf_counter() - origin
                record.bytes = len(data)
                read_body(load.scenario.dialect, data, record)
        finally:
            response.release()

    def _read_stream(self, response: Any, record: Record) -> None:
        """Read events as they arrive. Parsing JSON waits until the stream has ended: it would delay the clock."""
        origin = self.load.plan.origin
        kind = response.get("content-type") or ""
        if "text/event-stream" not in kind:
            raise AnswerError(
                "malformed", f"expected text/event-stream, got {kind!r}: {describe_failure(response.read())}"
            )
        reader = EventReader()
        broken: Exception | None = None
        patience = gevent.Timeout(AFTER_DONE_S)
        try:
            for data in _arriving(response):
                reader.feed(data, time.perf_counter() - origin)
                record.bytes += len(data)
                if reader.events and reader.events[-1].data == b"[DONE]":
                    # To the last chunk: a connection closed before it is lost for the next request.
                    patience.start()
        except (OSError, HTTPParseError) as error:
            broken = error
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
        finally:
            patience.close()
        reader.close(time.perf_counter() - origin)
        try:
            read_stream(reader.events, record)
        except AnswerError as error:
            if broken is not None and error.kind == "truncated":
                raise AnswerError("truncated", f"{error.detail}; the connection broke: {broken}") from broken
            raise

    def _disconnect(self) -> None:
        self.client.client.clientpool.close()


def _send_at_once(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _read_whole(response: Any) -> bytes:
    try:
        data: bytes = response.read()
    except (OSError, HTTPParseError) as error:
        raise AnswerError("truncated", f"the body ended early: {error}") from error
    if not response.message_complete:
        raise AnswerError("truncated", "the body ended early")
    return data


def _arriving(response: Any) -> Iterator[bytes]:
    """The body, as each read from the socket gives it.

    ``read(n)`` would wait for n bytes; this reads what is there, through the same parser.
    """
    while True:
        if response._body_buffer:  # noqa: SLF001
            data = bytes(response._body_buffer)  # noqa: SLF001
            del response._body_buffer[:]  # noqa: SLF001
            yield data
        if response.message_complete:
            return
        connection = response._sock  # noqa: SLF001
        if connection is None:
            raise HTTPConnectionClosed("connection closed")
        received = connection.recv(READ_BYTES)
        response.feed(received)
        if not received and not response.message_complete:
            raise HTTPConnectionClosed("connection closed in the body")


def execute(
    plan: Plan, run: Run, scenario: Scenario, calls: Sequence[Call], journal: TextIO, control: Control
) -> dict[str, Any]:
    """Do one run and say how the generator itself was."""
    environment = Environment(user_classes=[Caller], host=run.url, catch_exceptions=False)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if scenario.api_key_env:
        headers["Authorization"] = f"Bearer {os.environ.get(scenario.api_key_env, '')}"
    bodies = [request_body(scenario, call, run.model) for call in calls]
    gevent.get_hub().loop.update_now()
    begin = time.perf_counter()
    load = Load(
        plan=plan,
        run=run,
        scenario=scenario,
        calls=calls,
        bodies=bodies,
        headers=headers,
        journal=journal,
        deadline=float("inf") if run.duration_s is None else begin + run.duration_s,
        order=order_of_calls(len(calls), seed=plan.seed, pair=run.pair, shuffled=run.phase == "measure"),
    )
    Caller.host = run.url
    control.load = load
    group = gevent.pool.Group()
    lags: list[float] = []
    attendants = [gevent.spawn(_measure_lag, lags), gevent.spawn(_report_progress, load)]
    cpu = time.process_time()
    if run.users is not None:
        users = run.users
        for number in range(users):
            Caller(environment, load, number).start(group)
    else:
        users = _dispatch(environment, load, group, begin)
    group.join(raise_error=True)
    end = time.perf_counter()
    cpu = time.process_time() - cpu
    gevent.killall(attendants)
    control.load = None
    journal.flush()
    return {
        "run": run.run,
        "arm": run.arm,
        "pair": run.pair,
        "phase": run.phase,
        "started_s": begin - plan.origin,
        "ended_s": end - plan.origin,
        "users": users,
        "peak_in_flight": load.peak_busy,
        "requests": load.ended,
        "failed": load.failed,
        "stopped": load.stopping,
        "client_cpu_share": cpu / max(end - begin, 1e-9),
        "loop_lag_p50_s": percentile(lags, 50) if lags else None,
        "loop_lag_p99_s": percentile(lags, 99) if lags else None,
        "lateness_p99_s": percentile(load.lateness, 99) if load.lateness else None,
    }


def _dispatch(environment: Environment, load: Load, group: gevent.pool.Group, begin: float) -> int:
    """Hand out requests on their schedule; a user is added when all are busy, so that none waits for another."""
    run = load.run
    plan = schedule(
        load.scenario.arrivals if run.arrivals is None else Arrivals.model_validate_json(run.arrivals),
        rate_per_s=run.rate_per_s,
        duration_s=run.duration_s,
        requests=run.requests,
        seed=f"{load.plan.seed}/{run.pair}",
    )
    users = 0
    for offset in plan.offsets_s.tolist():
        due = begin + offset
        while not load.stopping and (left := due - time.perf_counter()) > 0:
            gevent.sleep(left)
        if load.stopping:
            break
        waiting = users - load.busy - load.queue.qsize()
        if waiting <= 0:
            Caller(environment, load, users).start(group)
            users += 1
        load.queue.put(due)
    for _ in range(users):
        load.queue.put(None)
    return users


def _measure_lag(lags: list[float]) -> None:
    while True:
        before = time.perf_counter()
        gevent.sleep(LAG_TICK_S)
        lags.append(max(0.0, time.perf_counter() - before - LAG_TICK_S))


def _report_progress(load: Load) -> None:
    while True:
        gevent.sleep(0.25)
        load.journal.flush()
        _emit({"event": "progress", "requests": load.ended, "failed": load.failed})


def _emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Control:
    """Reads stdin beside the load, so that ``stop`` reaches a run under way."""

    def __init__(self) -> None:
        self.load: Load | None = None
        self.lines: gevent.queue.Queue = gevent.queue.Queue()

    def listen(self) -> None:
        for line in gevent.fileobject.FileObject(sys.stdin.buffer, "rb"):
            if line.strip() == b"stop":
                self.stop()
            else:
                self.lines.put(line)
        self.stop()
        self.lines.put(None)

    def stop(self) -> None:
        if self.load is not None:
            self.load.stopping = True


def main() -> None:
    random.seed(0)
    control = Control()
    gevent.spawn(control.listen)
    plan = Plan(**json.loads(control.lines.get()))
    scenario = Scenario.model_validate_json(plan.scenario)
    calls = calls_of(scenario)
    with Path(plan.journal).open("a", encoding="utf-8") as journal:
        _emit({"event": "ready", "pid": os.getpid()})
        while (line := control.lines.get()) is not None:
            run = Run(**json.loads(line))
            _emit({"event": "done", **execute(plan, run, scenario, calls, journal, control)})


if __name__ == "__main__":
    main()
