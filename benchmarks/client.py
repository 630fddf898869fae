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

import contextlib
import itertools
import json
import math
import os
import random
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import gevent
import gevent.fileobject
import gevent.monkey
import gevent.pool
import gevent.queue
import gevent.ssl
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPResponse
from geventhttpclient.url import URL
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.calls import Call, calls_of, order_of_calls
from benchmarks.config import Scenario
from benchmarks.dialects import APIS, AnswerError, CountTokens, describe_failure, read_body, read_stream, request_body
from benchmarks.plan import Plan, Run
from benchmarks.records import Record, traceparent
from benchmarks import stamps
from benchmarks.alarm import Alarm
from benchmarks.arrivals import Arrivals, Schedule, fitted, schedule
from benchmarks.sse import EventReader
from benchmarks.stats import percentile
from benchmarks.traces import read_tokenizer
from benchmarks.wire import HEAD_END, Arrival, Body, read_whole, turns, without_optional_space

LAG_TICK_S = 0.01
LOOK_UP_S = 0.5  # the dispatcher sees a stop in a pause of its schedule after so long
STREAM_KINDS = re.compile("event-stream|ndjson|json")
MAX_HEAD_BYTES = 2**20
LATE_S = 0.003  # of a first token: well under the 5 ms by which a median may be wrong
AFTER_END_S = 0.1  # a server that keeps the connection after its end mark is left; its stream was complete
MAX_REDIRECTS = 3
PAUSE_AFTER_ERROR_S = 0.1  # a closed loop would otherwise spin on a server that refuses


@cache
def trusting() -> Any:
    """TLS as the system has it: issuers that its administrator trusts, and those in SSL_CERT_FILE."""
    return gevent.ssl.create_default_context()


class _TookTooLongError(gevent.Timeout):  # type: ignore[misc]
    """``timeout_s`` passed."""


class _SilentCloseError(OSError):
    """The connection ended before the first byte of an answer."""


def _nowhere(_line: bytes) -> None:
    raise AssertionError("the run has not begun")


@dataclass
class Load:
    """A run under way; with several workers, the part of it that this one does.

    ``share`` is (which worker, of how many): it does requests ``which``, ``which + of``, ...
    """

    plan: Plan
    run: Run
    scenario: Scenario
    calls: Sequence[Call]
    bodies: Sequence[bytes]
    head: bytes
    """Header lines that all requests share."""
    order: Iterator[int]
    timetable: Schedule | None
    count: CountTokens | None
    share: tuple[int, int]
    write: Callable[[bytes], object] = _nowhere
    deadline: float = float("inf")
    queue: gevent.queue.Queue = field(default_factory=gevent.queue.Queue)
    started: int = 0
    ended: int = 0
    failed: int = 0
    busy: int = 0
    stopping: bool = False
    overflowed: bool = False
    lateness: list[float] = field(default_factory=list)
    token_lateness: list[float] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    """From sending to the end of each request."""

    @property
    def over(self) -> bool:
        return (
            self.stopping
            or (self.run.requests is not None and self.started >= self.run.requests)
            or time.perf_counter() >= self.deadline
        )

    def next_due(self) -> Due:
        """The next request; ends the user when there is none."""
        if self.run.users is None:
            due: Due | None = self.queue.get()
            if due is None:
                raise StopUser
            return due
        if self.over:
            raise StopUser
        return Due(time.perf_counter(), next(self.order))


class Due(NamedTuple):
    """When a request is due (perf_counter) and which call it carries; 0: max_tokens and length are the usual ones."""

    at: float
    call: int
    max_tokens: int = 0
    characters: int = 0


class Caller(FastHttpUser):  # type: ignore[misc]
    """One user: one connection, one request at a time."""

    wait_time = constant(0)
    concurrency = 1
    insecure = False  # Locust's default accepts every certificate
    ssl_context_factory = staticmethod(lambda: trusting())  # noqa: PLW0108  with ``cafile`` it would be certifi's alone

    def __init__(self, environment: Environment, load: Load, number: int) -> None:
        # The whole request has one limit, timeout_s; the socket's own must not be first.
        self.network_timeout = self.connection_timeout = 2 * load.scenario.timeout_s
        super().__init__(environment)
        which, of = load.share
        self.load, self.number = load, which + of * number
        self.api = APIS[load.scenario.dialect]
        self.path = (urlsplit(load.run.url).path.rstrip("/") + self.api.path).encode()
        self.pool = self.client.client.clientpool.get_client(URL(load.run.url))._connection_pool  # noqa: SLF001
        self.pool.after_connect = self._connected
        if addresses := _literal_addresses(load.run.url):
            self.pool._resolve = lambda: addresses  # noqa: SLF001
        self.connected_at: float | None = None
        self.arrival: Arrival | None = None

    def _connected(self, connection: socket.socket) -> None:
        self.connected_at = time.perf_counter()
        # timeout_s holds for the request as a whole; one for each read would start a timer with each event.
        self.pool.network_timeout = None
        # Nagle would hold back the end of a body longer than a segment until the server acknowledges.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamps.ask_for(connection)

    def on_stop(self) -> None:
        """A connection left open after a run would look like a leak of the server's files in a soak of many runs."""
        self.client.client.clientpool.close()

    @task  # type: ignore[untyped-decorator]
    def calls(self) -> None:
        """All of this user's requests: as a task each, Locust's own turn between two would cost a tenth of the CPU."""
        try:
            while True:
                self._call(self.load.next_due())
        finally:
            self._drop()

    def _call(self, due: Due) -> None:
        load = self.load
        call = load.calls[due.call]
        which, of = load.share
        record = Record(
            run=load.run.run,
            arm=load.run.arm,
            pair=load.run.pair,
            phase=load.run.phase,
            number=which + of * load.started,
            user=self.number,
            call=call.id,
            label=call.label,
            scheduled_s=due.at - load.plan.origin,
        )
        body = load.bodies[due.call]
        if due.max_tokens or due.characters:
            fit = replace(call, text=fitted(call.text, due.characters)) if due.characters else call
            body = request_body(load.scenario, fit, load.run.model, due.max_tokens or None)
        if load.scenario.trace:
            record.trace_id = os.urandom(16).hex()
        load.started += 1
        load.busy += 1
        try:
            self._send(body, record)
        finally:
            load.busy -= 1
        load.lateness.append(record.sent_s - record.scheduled_s)
        load.spans.append((record.sent_s, record.end_s))
        if record.first_token_late_s is not None:
            load.token_lateness.append(record.first_token_late_s)
        load.ended += 1
        load.write(record.to_json())
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
            record.error, record.error_detail = "timeout", f"longer than {load.scenario.timeout_s:g} s"
        except AnswerError as error:
            record.error, record.error_detail = error.kind, error.detail
        except TimeoutError as error:
            record.error, record.error_detail = "timeout", str(error) or "the connection timed out"
        except (OSError, HTTPParseError) as error:
            reached = self.connected_at is not None or record.first_byte_s is not None
            record.error = "reset" if reached else "connect"
            record.error_detail = str(error) or type(error).__name__
        if record.end_s == 0.0 or record.error is not None:
            record.end_s = time.perf_counter() - origin

    def _exchange(self, body: bytes, record: Record) -> None:
        """One request and its answer, wherever it is redirected to on this server."""
        path = self.path
        trace = b"" if record.trace_id is None else b"traceparent: %s\r\n" % traceparent(record.trace_id).encode()
        for _ in range(1 + MAX_REDIRECTS):
            head = b"POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n" % (path, self.load.head, trace, len(body))
            location = self._attempt(head + body, record)
            if location is None:
                return
            there = urljoin(self.load.run.url, location)
            if urlsplit(there)[:2] != urlsplit(self.load.run.url)[:2]:
                raise AnswerError("http_status", f"{record.status}: it is at {there}: give that URL")
            path = urlsplit(there)._replace(scheme="", netloc="", fragment="").geturl().encode()
        raise AnswerError("http_status", f"{record.status}: redirected more than {MAX_REDIRECTS} times")

    def _attempt(self, request: bytes, record: Record) -> str | None:
        """Send ``request``; where to send it instead, if somewhere else.

        A server may close a connection that has been idle at the moment in which it is used again: then nothing of
        the request was answered, and it goes out once more on a new one, as every browser does (RFC 9112, 9.3.1).
        """
        while True:
            arrival = self._connection()
            if self.connected_at is not None:
                record.connected_s = self.connected_at - self.load.plan.origin
            keep = False
            try:
                response, at = self._begin(arrival, request, record)
                location = self._read(Body(arrival, response, at), response, record)
                keep = not response.should_close()
                return location
            except _SilentCloseError:
                if self.connected_at is not None:
                    raise
            finally:
                if not keep:
                    self._drop()

    def _connection(self) -> Arrival:
        """The connection of the last request, or a new one; ``connected_at`` is when that was open."""
        self.connected_at = None
        if self.arrival is not None and self.arrival.closed_or_soiled():
            self._drop()
        if self.arrival is None:
            self.arrival = Arrival(self.pool.get_socket())
        return self.arrival

    def _drop(self) -> None:
        if self.arrival is not None:
            self.pool.release_socket(self.arrival.connection)
            self.arrival = None

    def _begin(self, arrival: Arrival, request: bytes, record: Record) -> tuple[HTTPResponse, float]:
        """Send, and read until the headers of the answer are there, interim answers (1xx) passed over; and when."""
        origin = self.load.plan.origin
        broken: OSError | None = None
        try:
            arrival.connection.sendall(request)
        except OSError as error:
            broken = error  # a server that has refused already answers before it closes
        response = HTTPResponse("POST")
        head = b""
        while not response.headers_complete or response.get_code() < 200:
            try:
                data, at = arrival.read()
            except ConnectionError as error:
                broken, data, at = error, b"", time.perf_counter()
            if not data and record.first_byte_s is None:
                raise _SilentCloseError(str(broken or "the server closed the connection without an answer"))
            if record.first_byte_s is None:
                record.first_byte_s = at - origin
            head += data
            if data and HEAD_END.search(head) is None and len(head) < MAX_HEAD_BYTES:
                continue
            response.feed(without_optional_space(head))
            head = b""
            if not data and not response.headers_complete:
                raise HTTPConnectionClosed("the connection was closed in the headers")
        record.status = response.get_code()
        return response, at

    def _read(self, body: Body, response: HTTPResponse, record: Record) -> str | None:
        load = self.load
        if record.status in {307, 308} and isinstance(location := response.get("location"), str):
            read_whole(body)
            return location
        if record.status != 200:
            raise AnswerError("http_status", f"{record.status}: {describe_failure(read_whole(body)[0])}")
        kind = str(response.get("content-type") or "").lower()
        if self.api.delta is None:
            data, at = read_whole(body)
            record.end_s = at - load.plan.origin
            record.bytes = len(data)
            read_body(load.scenario.dialect, data, record, keep_text=load.scenario.keep_texts)
        elif "html" in kind or ("json" in kind and self.api.reader is EventReader):
            data, _ = read_whole(body)
            is_error = "json" in kind and data.lstrip().startswith(b'{"error"')
            raise AnswerError(
                "error_event" if is_error else "malformed",
                f"expected a stream of events, got {kind!r}: {describe_failure(data)}",
            )
        else:
            self._read_stream(body, kind, record)
        return None

    def _read_stream(self, body: Body, kind: str, record: Record) -> None:
        """Read events as they arrive. Parsing JSON waits until the stream has ended: it would delay the others."""
        origin = self.load.plan.origin
        reader = self.api.reader()
        ends = self.api.ends
        broken: Exception | None = None
        seen = 0
        windows: dict[float, float] = {}

        def take(data: bytes, at: float) -> bool:
            """Whether the end mark is there."""
            nonlocal seen
            reader.feed(data, at - origin)
            record.bytes += len(data)
            new = len(reader.events) - seen
            if new == 0:
                return False
            seen += new
            if new > 1:
                windows[at - origin] = turns().window_s()
            return bool(ends(reader.events[-1].data))

        patience = gevent.Timeout(AFTER_END_S)
        try:
            body.follow(take)
            # To the last chunk: a connection closed before it is lost for the next request.
            patience.start()
            for data, at in body:
                take(data, at)
        except (OSError, HTTPParseError, zlib.error) as error:
            broken = error
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
        finally:
            patience.close()
        reader.close(time.perf_counter() - origin)
        gevent.sleep(0)  # a wave of streams that end together is read as a whole before the first of them is parsed
        if not reader.events and broken is None and not STREAM_KINDS.search(kind):
            raise AnswerError("malformed", f"expected a stream of events, got {record.bytes} bytes of {kind!r}")
        scenario = self.load.scenario
        try:
            read_stream(scenario.dialect, reader.events, record, self.load.count, keep_text=scenario.keep_texts)
            record.first_token_late_s = _lateness(record, windows)
        except AnswerError as error:
            if broken is not None and error.kind in {"truncated", "malformed"}:
                raise AnswerError("truncated", f"{error.detail}; the connection broke: {broken}") from broken
            raise


@cache
def _literal_addresses(url: str) -> list[Any]:
    """As getaddrinfo gives them; none for a name. gevent asks a thread even for 127.0.0.1: 24 ms for the first
    connection of a process and 1 ms for each of seven that open at one moment (2026-11-23), and all of it late.
    """
    parts = urlsplit(url)
    resolve = gevent.monkey.get_original("socket", "getaddrinfo")
    try:
        return list(
            resolve(
                parts.hostname,
                parts.port or {"http": 80, "https": 443}[parts.scheme],
                type=socket.SOCK_STREAM,
                flags=socket.AI_NUMERICHOST,
            )
        )
    except socket.gaierror:
        return []


def _lateness(record: Record, windows: dict[float, float]) -> float | None:
    """``first_token_late_s``: no more than the time in which the first events may have come, and no more than as many
    usual gaps as came with them (a server may send several at once).
    """
    if record.first_token_s is None or record.last_token_s is None:
        return None
    window = windows.get(record.first_token_s, 0.0)
    together = sum(at == record.event_times_s[0] for at in record.event_times_s)
    rest = record.events - together
    if together == 1 or not rest:
        return 0.0
    return min(window, (together - 1) * (record.last_token_s - record.first_token_s) / rest)


def prepare(plan: Plan, run: Run, workload: Workload, share: tuple[int, int] = (0, 1)) -> Load:
    """Everything of a run, or of one worker's share of it, that takes time and can be done before it begins."""
    scenario = workload.scenario
    which, of = share
    order = order_of_calls(len(workload.calls), seed=plan.seed, pair=run.pair, shuffled=run.phase == "measure")
    timetable = None
    if run.users is None:
        timetable = schedule(
            scenario.arrivals if run.arrivals is None else Arrivals.model_validate_json(run.arrivals),
            rate_per_s=run.rate_per_s,
            duration_s=run.duration_s,
            requests=run.requests,
            seed=f"{plan.seed}/{run.pair}",
            texts=[call.text for call in workload.calls],
            tokenizer=scenario.tokenizer,
        )
    return Load(
        plan=plan,
        run=replace(run, requests=None if run.requests is None else len(range(which, run.requests, of))),
        scenario=scenario,
        calls=workload.calls,
        bodies=workload.bodies(run.model),
        head=_head(run.url, scenario),
        order=itertools.islice(order, which, None, of),
        timetable=timetable,
        count=workload.count,
        share=share,
    )


def execute(
    load: Load,
    write: Callable[[bytes], object],
    progress: Callable[[int, int], object],
    begin: float | None = None,
) -> dict[str, Any]:
    """Do what was prepared and say how the generator itself was, for :func:`merge`.

    Args:
        write: Takes each record's line for the journal.
        progress: Called a few times a second with the requests that ended and those that failed.
        begin: perf_counter; None: at once.
    """
    run = load.run
    environment = Environment(user_classes=[Caller], host=run.url, catch_exceptions=False)
    Caller.host = run.url
    load.write = write
    gevent.get_hub().loop.update_now()
    if begin is None:
        begin = time.perf_counter()
    else:
        gevent.sleep(max(0.0, begin - time.perf_counter()))
    if run.duration_s is not None:
        load.deadline = begin + run.duration_s
    group = gevent.pool.Group()
    lags: list[float] = []
    attendants = [gevent.spawn(_measure_lag, lags), gevent.spawn(_report_progress, load, progress)]
    cpu = time.process_time()
    if run.users is not None:
        which, of = load.share
        users = len(range(which, run.users, of))
        for number in range(users):
            Caller(environment, load, number).start(group)
    else:
        with Alarm() as alarm:
            users = _dispatch(environment, load, group, begin, alarm)
    group.join(raise_error=True)
    end = time.perf_counter()
    cpu = time.process_time() - cpu
    gevent.killall(attendants)
    return {
        "run": run.run,
        "arm": run.arm,
        "pair": run.pair,
        "phase": run.phase,
        "started_s": begin - load.plan.origin,
        "ended_s": end - load.plan.origin,
        "users": users,
        "requests": load.ended,
        "failed": load.failed,
        "stopped": load.stopping,
        "overflowed": load.overflowed,
        "client_cpu_share": cpu / max(end - begin, 1e-9),
        "lags_s": lags,
        "lateness_s": load.lateness,
        "token_lateness_s": load.token_lateness,
        "spans_s": load.spans,
    }


def merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the workers of one run said, as if one generator had sent all of it.

    Counts are summed; lateness and the number in flight are of all requests together; of CPU and loop lag the worst
    worker's stands, because one that is unwell spoils its share of every percentile.
    """
    lateness = [value for part in parts for value in part["lateness_s"]]
    token_lateness = [value for part in parts for value in part["token_lateness_s"]]
    spans = [span for part in parts for span in part["spans_s"]]
    started, ended = min(part["started_s"] for part in parts), max(part["ended_s"] for part in parts)
    return {
        **{key: parts[0][key] for key in ("run", "arm", "pair", "phase")},
        "started_s": started,
        "ended_s": ended,
        "users": sum(part["users"] for part in parts),
        "peak_in_flight": _peak(spans),
        "mean_in_flight": sum(end - begin for begin, end in spans) / max(ended - started, 1e-9),
        "requests": sum(part["requests"] for part in parts),
        "failed": sum(part["failed"] for part in parts),
        "stopped": any(part["stopped"] for part in parts),
        "overflowed": any(part["overflowed"] for part in parts),
        "client_cpu_share": max(part["client_cpu_share"] for part in parts),
        "loop_lag_p50_s": max((percentile(part["lags_s"], 50) for part in parts if part["lags_s"]), default=None),
        "loop_lag_p99_s": max((percentile(part["lags_s"], 99) for part in parts if part["lags_s"]), default=None),
        "lateness_p99_s": percentile(lateness, 99) if lateness else None,
        "late_first_tokens": sum(late > LATE_S for late in token_lateness) / len(token_lateness)
        if token_lateness
        else None,
        "workers": [
            {"requests": part["requests"], "client_cpu_share": part["client_cpu_share"]}
            | {"loop_lag_p50_s": percentile(part["lags_s"], 50) if part["lags_s"] else None}
            for part in parts
        ],
    }


def _peak(spans: Sequence[tuple[float, float]]) -> int:
    """Most of ``spans`` (begin, end) that overlap; one that begins as another ends does not."""
    highest = now = 0
    for _, step in sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans]):
        now += step
        highest = max(highest, now)
    return highest


@dataclass(frozen=True)
class Workload:
    """What is sent: the same for all runs of a benchmark, and for all workers."""

    scenario: Scenario
    calls: Sequence[Call]
    count: CountTokens | None

    @classmethod
    def of(cls, scenario: Scenario, calls: Sequence[Call]) -> Workload:
        return cls(scenario, calls, None if scenario.tokenizer is None else _counter(scenario.tokenizer))

    @cache  # noqa: B019  it lives as long as the process
    def bodies(self, model: str | None) -> Sequence[bytes]:
        return [request_body(self.scenario, call, model) for call in self.calls]

    __hash__ = object.__hash__


def _counter(path: Path) -> CountTokens:
    tokenizer = read_tokenizer(path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _head(url: str, scenario: Scenario) -> bytes:
    lines = {
        "Host": urlsplit(url).netloc,
        "User-Agent": "qwen3-stack-benchmarks",
        "Content-Type": "application/json",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    if scenario.api_key_env:
        lines["Authorization"] = f"Bearer {os.environ.get(scenario.api_key_env, '')}"
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1")


def _dispatch(environment: Environment, load: Load, group: gevent.pool.Group, begin: float, alarm: Alarm) -> int:
    """Hand out requests on their schedule; a user is added when all are busy, so that none waits for another."""
    table, run = load.timetable, load.run
    assert table is not None
    users = 0
    which, of = load.share
    for at in range(which, len(table.offsets_s), of):
        due = Due(
            begin + float(table.offsets_s[at]),
            next(load.order) if table.calls is None else int(table.calls[at]),
            0 if table.max_tokens is None else int(table.max_tokens[at]),
            0 if table.characters is None else int(table.characters[at]),
        )
        while not load.stopping and (now := time.perf_counter()) < due.at:
            alarm.sleep_until(min(due.at, now + LOOK_UP_S))
        if load.stopping:
            break
        unanswered = load.busy + load.queue.qsize()
        if run.max_in_flight is not None and unanswered >= math.ceil(run.max_in_flight / of):
            load.stopping = load.overflowed = True
            break
        if users <= unanswered:
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


def _report_progress(load: Load, report: Callable[[int, int], object]) -> None:
    while True:
        gevent.sleep(0.25)
        report(load.ended, load.failed)


def emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Control:
    """Reads stdin beside the load, so that ``stop`` reaches a run under way."""

    def __init__(self) -> None:
        self.load: Load | None = None
        self.under_way = False
        """A run is."""
        self.on_stop: Callable[[], object] = self._stop_load
        self.abandon: Callable[[], object] = lambda: None
        """Leave in the middle of a run."""
        self.lines: gevent.queue.Queue = gevent.queue.Queue()

    def listen(self) -> None:
        for line in gevent.fileobject.FileObject(sys.stdin.buffer, "rb"):
            if line.strip() == b"stop":
                self.on_stop()
            else:
                self.lines.put(line)
        if self.under_way:
            self.abandon()
        self.lines.put(None)

    def _stop_load(self) -> None:
        if self.load is not None:
            self.load.stopping = True


def main() -> None:
    random.seed(0)
    control = Control()
    gevent.spawn(control.listen)
    plan = Plan(**json.loads(control.lines.get()))
    scenario = Scenario.model_validate_json(plan.scenario)
    calls = calls_of(scenario)
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Path(plan.journal).open("ab"))

        def write(line: bytes) -> None:
            journal.write(line + b"\n")

        def progress(ended: int, failed: int) -> None:
            journal.flush()
            emit({"event": "progress", "requests": ended, "failed": failed})

        def abandon() -> None:
            """Whoever asked for the run is gone. What it would still write, a benchmark that goes on in this folder
            would take for its own.
            """
            journal.flush()
            control.on_stop()
            gevent.sleep(0)  # workers are told before the connection to them ends
            os._exit(1)

        control.abandon = abandon
        perform: Callable[[Run], dict[str, Any]]
        if scenario.workers + scenario.remote_workers > 1:
            from benchmarks.workers import Crew

            crew = stack.enter_context(Crew(plan, scenario, calls, write, progress))
            control.on_stop = crew.stop
            perform = crew.run
        else:
            workload = Workload.of(scenario, calls)

            def perform(run: Run) -> dict[str, Any]:
                control.load = prepare(plan, run, workload)
                try:
                    return merge([execute(control.load, write, progress)])
                finally:
                    control.load = None

        emit({"event": "ready", "pid": os.getpid()})
        while (line := control.lines.get()) is not None:
            control.under_way = True
            found = perform(Run(**json.loads(line)))
            control.under_way = False
            journal.flush()
            emit({"event": "done", **found})


if __name__ == "__main__":
    main()
