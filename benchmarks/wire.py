"""Bytes of an HTTP answer, and the moment at which each came.

For the load generator's process only: it needs gevent, and what Locust has patched.
"""

from __future__ import annotations

import re
import select
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import gevent
import gevent.ssl
from gevent.hub import Waiter
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPResponse

from benchmarks import stamps
from benchmarks.dialects import AnswerError

READ_BYTES = 65536
WAITED_S = 0.0002  # a poll that took longer had nothing to give at first
CROWD = 100  # a poll tells the kernel of so many sockets in less than that
HEAD_END = re.compile(rb"\r?\n\r?\n")


class Turns:
    """How long data may have lain ready when a greenlet reads them.

    The loop polls, then lets every greenlet with work have its turn, then polls again. What came while others had
    their turns is found by the next poll, at once; what a poll had to wait for came at its end.
    """

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        # perf_counter when the last turn's poll had ended, when this turn's began, and when it ended; what thread_time
        # the poll took.
        self._last = self._begun = self._ended = time.perf_counter()
        self._cpu_s = 0.0
        self._crowded = False
        # Not loop.now(): whoever starts a timer sets that. Last before the poll, after gevent's own callbacks; and
        # first after it, before any greenlet. Priorities of libev are -2 to 2.
        self._watchers = [self._loop.prepare(ref=False, priority=-2), self._loop.check(ref=False, priority=2)]
        for watcher, note in zip(self._watchers, (self._about_to_poll, self._polled), strict=True):
            watcher.start(note)

    # These two run in every turn, so they only note the times; asking for CPU time is a call of the kernel.

    def _about_to_poll(self) -> None:
        self._last = self._ended
        self._crowded = self._loop.activecnt > CROWD
        if self._crowded:
            self._cpu_s = -time.thread_time()
        self._begun = time.perf_counter()

    def _polled(self) -> None:
        self._ended = time.perf_counter()
        if self._crowded:
            self._cpu_s += time.thread_time()

    def window_s(self) -> float:
        """Seconds before now in which what is read now may have come."""
        since = time.perf_counter() - self._ended
        polled = self._ended - self._begun
        # On the clock less of CPU: a poll that only tells the kernel of a thousand sockets takes 1 ms, but of CPU.
        if polled - (self._cpu_s if self._crowded else 0.0) > WAITED_S:
            return since
        return since + polled + (self._begun - self._last)


class Arrival:
    """Reads a socket and says when the bytes arrived: as the kernel stamped them, not when their turn came here.

    On a busy machine a greenlet wakes milliseconds after its data came; the stamp does not wait (SO_TIMESTAMPNS: 10 us
    from write to stamp on loopback, 1.4 us more CPU a read). Data of several segments that were read together have the
    last one's time. Where there are no stamps (TLS, other systems than Linux), the time of reading stands.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        # Decrypted bytes may wait inside the TLS layer, where the kernel knows nothing of them.
        self._plain = not isinstance(connection, gevent.ssl.SSLSocket)
        self._hub = gevent.get_hub()
        turns()

    def closed_or_soiled(self) -> bool:
        """Whether a connection that should be silent is not: the server closed it, or sent what nobody asked for."""
        if self.connection.fileno() < 0:
            return True
        if not self._plain:
            return bool(select.select([self.connection], [], [], 0)[0])
        try:
            self.connection._sock.recv(1, socket.MSG_PEEK)  # noqa: SLF001
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def read(self) -> tuple[bytes, float]:
        """What the next read gives, b"" at the end; and when it came, perf_counter seconds.

        Until the caller lets others have their turn, ``turns().window_s()`` bounds how much earlier the first bytes of
        it came, where they were of several segments.
        """
        if not self._plain:
            return bytes(self.connection.recv(READ_BYTES)), time.perf_counter()
        # gevent's own recv tries to read before it waits, which between two tokens of a stream fails each time.
        while True:
            self._hub.wait(self.connection._read_event)  # noqa: SLF001
            try:
                data, notes, _, _ = self.connection._sock.recvmsg(READ_BYTES, stamps.SPACE)  # noqa: SLF001
            except BlockingIOError:
                continue
            return data, stamps.moment(notes, time.perf_counter())

    def follow(self, take: Callable[[bytes, float], bool]) -> None:
        """Give ``take`` what each read would give, until it returns True.

        It runs in the loop's own turn and must not wait: two changes of greenlets less for each event of a stream.
        """
        if not self._plain:
            while not take(*self.read()):
                pass
            return
        receive = self.connection._sock.recvmsg  # noqa: SLF001
        done = Waiter(self._hub)
        watcher = self.connection._read_event  # noqa: SLF001

        def readable() -> None:
            try:
                data, notes, _, _ = receive(READ_BYTES, stamps.SPACE)
                if not take(data, stamps.moment(notes, time.perf_counter())):
                    return
            except BlockingIOError:
                return
            except Exception as error:  # whoever waits is to have it, not the loop
                watcher.stop()
                done.throw(error)
                return
            watcher.stop()
            done.switch(None)

        watcher.start(readable)
        try:
            done.get()
        finally:
            watcher.stop()


@cache
def turns() -> Turns:
    """Of this process, from the first read on."""
    return Turns()


class Body:
    """Of an answer, decompressed: iterating gives its parts as they arrive, each with that moment (perf_counter).

    ``HTTPSocketResponse.read(n)`` would wait for n bytes; this gives what is there, through the same parser.

    Args:
        at: When what came with the headers came.
    """

    def __init__(self, arrival: Arrival, response: HTTPResponse, at: float) -> None:
        coding = str(response.get("content-encoding") or "identity").lower()
        if coding not in {"identity", "gzip", "x-gzip", "deflate"}:
            raise AnswerError("malformed", f"content-encoding {coding!r} was not asked for and cannot be read")
        self._unpack = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._arrival, self._response, self._at = arrival, response, at
        self._buffer: bytearray = response._body_buffer  # noqa: SLF001

    def __iter__(self) -> Iterator[tuple[bytes, float]]:
        if data := self._unpacked():
            yield data, self._at
        while not self._response.message_complete:
            received, at = self._arrival.read()
            if data := self._decoded(received):
                yield data, at

    def follow(self, take: Callable[[bytes, float], bool]) -> None:
        """Give ``take`` each part until it returns True or there are no more; see :meth:`Arrival.follow`."""
        if (data := self._unpacked()) and take(data, self._at):
            return
        response, decoded = self._response, self._decoded

        def received(segment: bytes, at: float) -> bool:
            data = decoded(segment)
            return bool(data and take(data, at)) or response.message_complete

        if not response.message_complete:
            self._arrival.follow(received)

    def _decoded(self, received: bytes) -> bytes:
        self._response.feed(received)
        if not received and not self._response.message_complete:
            raise HTTPConnectionClosed("the connection was closed in the body")
        return self._unpacked()

    def _unpacked(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data if self._unpack is None else self._unpack.decompress(data)


def read_whole(body: Body) -> tuple[bytes, float]:
    """All of it, and when its last byte came."""
    parts, at = [], time.perf_counter()
    try:
        for data, moment in body:
            parts.append(data)
            at = moment
    except (OSError, HTTPParseError, zlib.error) as error:
        raise AnswerError("truncated", f"the body ended early: {error}") from error
    return b"".join(parts), at


def without_optional_space(head: bytes) -> bytes:
    """``head`` without the white space that may stand around a field's value (RFC 9112, 5.1), which llhttp keeps: it
    would take ``chunked`` with a tab for another coding.
    """
    if b"\t" not in head and b" \r\n" not in head:
        return head
    end = HEAD_END.search(head)
    fields = head if end is None else head[: end.end()]
    return re.sub(rb"[ \t]+(?=\r?\n)", b"", re.sub(rb"(?<=:)[ \t]+", b" ", fields)) + head[len(fields) :]
