"""Sockets and time: one thread, one heap of moments, everything that is due written when it is due.

An own loop and not asyncio: modes need every byte and segment on the wire, a reset, a half-sent header; and asyncio
(as uvloop) rounds waits to whole milliseconds, which would be the server's error in a measurement to the
millisecond. ``select()`` takes microseconds and can wait for an epoll descriptor.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import math
import random
import resource
import select
import selectors
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks import stamps
from benchmarks.truth_server import answers, modes, wire
from benchmarks.truth_server.answers import Answer, answer_tokens, chance, dialect_of, prompt_of
from benchmarks.truth_server.log import Entry, Log
from benchmarks.truth_server.settings import Truth

READ_BYTES = 1 << 18
UNLIMITED = 1_000_000
LEAK_TICK_S = 0.5
STALE_S = 0.001
RESET = struct.pack("ii", 1, 0)

Action = Callable[["Connection | None", float], None]


class Connection:
    """One client's connection, and its request under way."""

    __slots__ = (
        "buffer",
        "due",
        "entry",
        "head",
        "number",
        "out",
        "served",
        "slot",
        "socket",
        "stamp",
        "start",
        "step",
        "steps",
        "turn",
    )

    def __init__(self, wire_socket: socket.socket, number: int) -> None:
        self.socket, self.number = wire_socket, number
        self.buffer, self.out = bytearray(), bytearray()
        self.stamp = self.start = self.due = 0.0
        self.entry: Entry | None = None
        self.steps: Iterator[wire.Step] = iter(())
        self.step: wire.Step | None = None
        self.head: Head | None = None
        self.served = 0
        self.turn = 0  # moments of another turn are over
        self.slot: float | None = None  # when the work is planned to end, where it holds a slot


class Head:
    """The head of a request that has been read."""

    __slots__ = ("body_at", "closing", "length", "method", "modes", "path", "query", "unknown")

    def __init__(self, data: bytes, body_at: int) -> None:
        """
        Raises:
            ValueError: This is not HTTP.
        """
        first, *rest = data.decode("latin-1").split("\r\n")
        self.method, target, _version = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        parts = urlsplit(target)
        self.path, self.query = parts.path, parse_qs(parts.query)
        self.length = int(headers.get("content-length", "0"))
        self.closing = headers.get("connection", "").lower() == "close"
        self.body_at = body_at
        named = headers.get("x-truth-mode") or self.query.get("mode", [""])[0]
        if self.path.startswith("/mode/"):
            named, _, path = self.path.removeprefix("/mode/").partition("/")
            self.path = f"/{path}"
        self.unknown = False
        self.modes: frozenset[str] | None = None
        if named:
            try:
                self.modes = modes.split(named.replace("%2B", "+").replace(" ", "+"))
            except KeyError:
                self.unknown = True


class Server:
    """Use :meth:`run`; it ends with the exception that a signal raises."""

    def __init__(self, truth: Truth, listener: socket.socket) -> None:
        self.truth = truth
        self.log = Log(truth.log_requests)
        self._default = modes.split(truth.mode)
        self._listener = listener
        listener.setblocking(False)
        # Inherited: what arrives before a connection is accepted is stamped too.
        stamps.ask_for(listener)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._moments: list[tuple[float, int, Action, Connection | None, float]] = []
        self._order = itertools.count()
        self._first: float | None = None
        self._free = truth.slots
        self._waiting: deque[Connection] = deque()
        self._leak: list[bytes] = []
        self._leaked_mb = 0.0

    def run(self) -> None:
        poll = [self._selector]
        while True:
            timeout = None if not self._moments else max(0.0, self._moments[0][0] - time.perf_counter())
            if select.select(poll, (), (), timeout)[0]:
                self._read_what_came()
            self._do_what_is_due()

    # Time.

    def _at(self, moment: float, action: Action, connection: Connection | None, turn: float = 0) -> None:
        heapq.heappush(self._moments, (moment, next(self._order), action, connection, turn))

    def _do_what_is_due(self) -> None:
        moments = self._moments
        while moments and moments[0][0] <= time.perf_counter():
            _, _, action, connection, turn = heapq.heappop(moments)
            action(connection, turn)

    def _thawed(self, start: float, offset: float) -> float:
        """The moment ``offset`` seconds of work after ``start``, where a freeze is no work."""
        truth = self.truth
        if truth.freeze_at_s is None or self._first is None:
            return start + offset
        begin = self._first + truth.freeze_at_s
        end = begin + truth.freeze_s
        if start >= end or start + offset <= begin:
            return start + offset
        return start + offset + truth.freeze_s if start < begin else end + offset

    def _factor(self, start: float, number: int) -> float:
        """What the times of a request are multiplied with."""
        truth = self.truth
        factor = 1 / truth.speed_factor
        if truth.slowdown_per_min:
            factor *= 1 + truth.slowdown_per_min * (start - (self._first or start)) / 60
        if truth.jitter:
            factor *= math.exp(truth.jitter * random.Random(f"{truth.seed}/{number}").gauss())
        return factor

    # Connections.

    def _read_what_came(self) -> None:
        """First everything is received and stamped, then worked on: work must not delay a stamp."""
        came: list[Connection] = []
        for key, mask in self._selector.select(0):
            connection: Connection | None = key.data
            if connection is None:
                self._accept()
                continue
            if mask & selectors.EVENT_WRITE:
                self._flush(connection)
            if mask & selectors.EVENT_READ and self._receive(connection):
                came.append(connection)
        for connection in came:
            self._read_requests(connection)
            self._do_what_is_due()

    def _accept(self) -> None:
        while True:
            try:
                wire_socket, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # too many open files: the others are served on
                print(f"cannot accept: {error}", file=sys.stderr)
                return
            wire_socket.setblocking(False)
            wire_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.log.connections_opened += 1
            self.log.connections_open += 1
            connection = Connection(wire_socket, self.log.connections_opened)
            self._selector.register(wire_socket, selectors.EVENT_READ, connection)

    def _receive(self, connection: Connection) -> bool:
        try:
            data, notes, _, _ = connection.socket.recvmsg(READ_BYTES, stamps.SPACE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data, notes = b"", []
        # The kernel's stamp: what this server reads late, because it was writing, has not arrived late.
        connection.stamp = stamps.moment(notes, time.perf_counter())
        if not data:
            self._drop(connection, "left")
            return False
        self.log.bytes_read += len(data)
        connection.buffer += data
        return True

    def _send(self, connection: Connection, data: bytes) -> None:
        self.log.bytes_written += len(data)
        if connection.entry is not None:
            connection.entry.bytes_written += len(data)
        if connection.out:
            connection.out += data
            return
        try:
            sent = connection.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop(connection, "left")
            return
        if sent < len(data):
            connection.out += data[sent:]
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(connection, "left")
            return
        del connection.out[:sent]
        if not connection.out:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _drop(self, connection: Connection, outcome: str, *, reset: bool = False) -> None:
        if connection.socket.fileno() < 0:
            return
        self._selector.unregister(connection.socket)
        if reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
        connection.socket.close()
        self.log.connections_open -= 1
        connection.turn += 1
        connection.step = None
        if connection.entry is not None:
            self.log.end(connection.entry, outcome)
            connection.entry = None
        self._give_slot_back(connection, time.perf_counter())

    # Requests.

    def _read_requests(self, connection: Connection) -> None:
        while connection.entry is None and connection.socket.fileno() >= 0:
            if connection.head is None and not self._read_head(connection):
                return
            head = connection.head
            assert head is not None
            if len(connection.buffer) < head.body_at + head.length:
                return
            body = bytes(connection.buffer[head.body_at : head.body_at + head.length])
            del connection.buffer[: head.body_at + head.length]
            connection.head = None
            self._take(connection, head, body)

    def _read_head(self, connection: Connection) -> bool:
        end = connection.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        try:
            head = connection.head = Head(bytes(connection.buffer[:end]), end + 4)
        except ValueError:
            self._drop(connection, "not HTTP", reset=True)
            return False
        if head.modes is not None and "early_response" in head.modes and head.path in answers.PATHS:
            self._send(connection, wire.early_head(answers.PATHS[head.path], head.modes))
        return connection.socket.fileno() >= 0

    def _take(self, connection: Connection, head: Head, body: bytes) -> None:
        if head.method == "GET":
            self._send(connection, self._tell(head))
            if head.closing:
                self._drop(connection, "done")
            return
        arrived = connection.stamp
        try:
            request = json.loads(body)
            dialect = dialect_of(head.path, request)
            prompt = "" if dialect is None else prompt_of(dialect, request)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self._send(connection, wire.whole(400, {"error": {"message": "not a request of this API"}}))
            return
        self._first = arrived if self._first is None else self._first
        if self.truth.leak_mb_per_min and not self._leak:
            self._grow(None, 0)
        chosen = self._modes_of(head, dialect, request)
        if chosen is not None and "stale_reset" in chosen and connection.served:
            self._drop(connection, "reset", reset=True)
            return
        log = self.log
        entry = Entry(
            number=log.requests,
            path=head.path,
            dialect=dialect or "",
            mode=str(request.get("model", "plain")) if chosen is None else "+".join(sorted(chosen)),
            prompt=hashlib.sha256(prompt.encode()).hexdigest()[:16],
            connection=connection.number,
            concurrency=0,
            arrived=arrived,
        )
        log.begin(entry)
        connection.entry, connection.turn = entry, connection.turn + 1
        connection.served += 1
        if dialect is None or chosen is None:
            message = "not found" if dialect is None else f"no model {request.get('model')!r}"
            self._answer_at_once(connection, wire.whole(404, {"error": {"message": message}}))
        elif chance(prompt, "error") < self.truth.error_share:
            self._answer_at_once(connection, wire.failure(500), self.truth.service_ms / 1000)
        else:
            if head.closing:
                chosen |= {"close"}
            entry.answer = self._answer(dialect, chosen, prompt, entry, str(request.get("model") or "plain"))
            if self.truth.slots >= UNLIMITED:
                self._start(connection, arrived)
            elif self._free:
                self._free -= 1
                self._start(connection, arrived)
            else:
                self._waiting.append(connection)

    def _modes_of(self, head: Head, dialect: str | None, request: dict[str, Any]) -> frozenset[str] | None:
        """From the URL, a header or the model's name; None where these name what there is not."""
        if head.unknown:
            return None
        if head.modes is not None:
            return head.modes
        named = str(request.get("model") or "plain")
        if named == "plain":
            return self._default
        try:
            return modes.split(named)
        except KeyError:
            # Ollama and the native APIs are asked for real models' names; OpenAI's knows its own only.
            return None if dialect in {"chat", "chat_stream", "completions_stream"} else self._default

    def _answer(self, dialect: str, chosen: frozenset[str], prompt: str, entry: Entry, model: str) -> Answer:
        truth = self.truth
        tokens = answer_tokens(prompt, truth)
        ttft_s, tpot_s = truth.ttft_ms / 1000, truth.tpot_ms / 1000
        whole_s = (
            truth.service_ms / 1000 if dialect in {"classify", "inference"} else ttft_s + (len(tokens) - 1) * tpot_s
        )
        return Answer(
            dialect=dialect,
            modes=chosen,
            prompt=prompt,
            tokens=tokens,
            truth=truth,
            number=entry.number,
            model=model,
            created=int(time.time()),
            first_s=min(ttft_s, whole_s),
            total_s=whole_s,
        )

    def _start(self, connection: Connection, start: float) -> None:
        """The work on the request begins at ``start``."""
        entry = connection.entry
        assert entry is not None
        assert entry.answer is not None
        answer = entry.answer
        factor = self._factor(start, entry.number) * (3 if "bytewise" in answer.modes else 1)
        entry.started = connection.start = start
        tpot_s = self.truth.tpot_ms / 1000 * factor
        first_s = (answer.total_s if answer.dialect in modes.WHOLE else answer.first_s) * factor
        if self.truth.slots < UNLIMITED:
            connection.slot = self._thawed(start, answer.total_s * factor)
            self._at(connection.slot, self._end_work, connection, connection.slot)
        connection.steps = wire.steps_of(answer, first_s, tpot_s)
        self._next(connection)

    def _answer_at_once(self, connection: Connection, data: bytes, after_s: float = 0.0) -> None:
        """Without a slot."""
        connection.start = connection.stamp
        connection.steps = iter([wire.Step(after_s, [data], end=True)])
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        step = next(connection.steps, None)
        if step is None:
            self._done(connection)
            return
        connection.step = step
        frozen = self.truth.freeze_at_s is not None
        due = self._thawed(connection.start, step.at) if frozen else connection.start + step.at
        connection.due = due
        heapq.heappush(self._moments, (due, next(self._order), self._write, connection, connection.turn))

    def _write(self, connection: Connection | None, turn: float) -> None:
        assert connection is not None
        step, entry = connection.step, connection.entry
        if turn != connection.turn or step is None or entry is None:
            return
        parts = step.parts
        last = min(step.complete or len(parts), len(parts)) - 1
        for part in parts[: max(last, 0)]:
            self._send(connection, part)
        if connection.step is None:  # the client has left meanwhile
            return
        now = time.perf_counter()
        if step.end:
            entry.ended = now
        if step.tokens:
            self.log.wrote(entry, connection.due, now, step.tokens)
        for part in parts[max(last, 0) :]:
            self._send(connection, part)
        if connection.step is None:
            return
        if step.then == "go":
            self._next(connection)
        elif step.then == "hold":
            connection.step = None
        else:
            self._drop(connection, "done" if entry.ended else step.then, reset=step.then == "reset")

    def _done(self, connection: Connection) -> None:
        entry = connection.entry
        assert entry is not None
        self.log.end(entry, "done")
        connection.entry = connection.step = None
        connection.turn += 1
        self._give_slot_back(connection, time.perf_counter())
        if entry.answer is not None and "stale" in entry.answer.modes:
            self._at(time.perf_counter() + STALE_S, self._close, connection, connection.turn)
        elif connection.buffer:
            self._read_requests(connection)

    def _close(self, connection: Connection | None, turn: float) -> None:
        assert connection is not None
        if turn == connection.turn:
            self._drop(connection, "done")

    # Slots.

    def _end_work(self, connection: Connection | None, planned: float) -> None:
        """The work has ended, the answer perhaps has not: a mode may stall."""
        assert connection is not None
        if connection.slot == planned:
            self._give_slot_back(connection, planned)

    def _give_slot_back(self, connection: Connection, now: float) -> None:
        """The next request begins at the planned end, however late that was noticed."""
        if connection.slot is None:
            return
        at = min(now, connection.slot)
        connection.slot = None
        self._free += 1
        while self._waiting and self._free:
            following = self._waiting.popleft()
            if following.entry is not None and following.socket.fileno() >= 0:
                self._free -= 1
                self._start(following, max(at, following.entry.arrived))

    # Planted faults.

    def _grow(self, _connection: Connection | None, _turn: float) -> None:
        assert self._first is not None
        wanted = (time.perf_counter() - self._first) / 60 * self.truth.leak_mb_per_min
        if not self._leak or wanted > self._leaked_mb:
            # Other than zero: pages of zeros need not be resident.
            self._leak.append(b"\x01" * int((wanted - self._leaked_mb) * 1e6))
            self._leaked_mb = wanted
        self._at(time.perf_counter() + LEAK_TICK_S, self._grow, None)

    # What is told.

    def _tell(self, head: Head) -> bytes:
        if head.path == "/_truth":
            since = int(head.query.get("since", ["0"])[0])
            limit = head.query.get("limit")
            return wire.whole(200, self.log.since(since, int(limit[0]) if limit else None))
        if head.path == "/metrics":
            return wire.whole(200, self._metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        known: dict[str, Callable[[], Any]] = {
            "/": lambda: {"status": "ok"},
            "/health": lambda: {"status": "ok"},
            "/ready": lambda: {"status": "ready"},
            "/_truth/health": self._health,
            "/_truth/modes": _modes,
            "/v1/models": lambda: {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": 0, "owned_by": "truth"} for name in modes.MODES],
            },
            "/api/tags": lambda: {"models": [{"name": "plain", "model": "plain", "size": 0, "digest": "0" * 64}]},
            "/api/version": lambda: {"version": "0.11.4"},
        }
        found = known.get(head.path)
        return wire.whole(404, {"error": "not found"}) if found is None else wire.whole(200, found())

    def _health(self) -> dict[str, Any]:
        log, use = self.log, resource.getrusage(resource.RUSAGE_SELF)
        return {
            "requests": log.requests,
            "failed": log.failed,
            "events": log.events,
            "tokens": log.tokens,
            "in_flight": log.in_flight,
            "waiting": len(self._waiting),
            "peak_in_flight": log.peak_in_flight,
            "lateness_p50_s": log.lateness.percentile(0.5),
            "lateness_p99_s": log.lateness.percentile(0.99),
            "lateness_max_s": log.lateness.longest_s if log.lateness.count else None,
            "connections_opened": log.connections_opened,
            "connections_open": log.connections_open,
            "bytes_read": log.bytes_read,
            "bytes_written": log.bytes_written,
            "cpu_s": use.ru_utime + use.ru_stime,
            "oldest": log.entries[0].number if log.entries else None,
        }

    def _metrics(self) -> str:
        log, health = self.log, self._health()
        rows = (
            ("qwen3_inference_requests_total", "counter", "Requests that ended.", log.requests - log.in_flight),
            ("qwen3_generated_tokens_total", "counter", "Tokens that were written.", log.tokens),
            ("qwen3_active_connections", "gauge", "Open connections.", log.connections_open),
            ("qwen3_running", "gauge", "Requests under way that do not wait.", log.in_flight - len(self._waiting)),
            ("qwen3_queue_depth", "gauge", "Requests waiting for a slot.", len(self._waiting)),
            ("process_cpu_seconds_total", "counter", "CPU time, user and system.", health["cpu_s"]),
        )
        return "".join(
            f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, text, value in rows
        )


def _modes() -> dict[str, Any]:
    return {
        name: {
            "about": mode.about,
            "dialects": sorted(mode.on),
            "errors": list(mode.errors),
            "status": mode.status,
            "finish_reason": mode.finish,
        }
        for name, mode in modes.MODES.items()
    }
