"""Bytes of an HTTP answer, and the moment at which each came.

For the load generator's process only: it needs gevent, and what Locust has patched.
"""

from __future__ import annotations

import re
import select
import socket
import time
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import gevent
import gevent.ssl
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
        # Clock and CPU time when the last turn's poll had ended, when this turn's began, and when it ended.
        self._last = self._begun = self._ended = (time.perf_counter(), time.thread_time())
        # Not loop.now(): whoever starts a timer sets that. Last before the poll, after gevent's own callbacks; and
        # first after it, before any greenlet. Priorities of libev are -2 to 2.
        self._watchers = [self._loop.prepare(ref=False, priority=-2), self._loop.check(ref=False, priority=2)]
        for watcher, note in zip(self._watchers, (self._about_to_poll, self._polled), strict=True):
            watcher.start(note)
        self._crowded = False

    # These two run in every turn, so they only note the times; asking for CPU time is a call of the kernel.

    def _about_to_poll(self) -> None:
        self._crowded = self._loop.activecnt > CROWD
        self._last = self._ended
        self._begun = (time.perf_counter(), time.thread_time() if self._crowded else 0.0)

    def _polled(self) -> None:
        self._ended = (time.perf_counter(), time.thread_time() if self._crowded else 0.0)

    def window_s(self) -> float:
        """Seconds before now in which what is read now may have come."""
        since = time.perf_counter() - self._ended[0]
        polled = self._ended[0] - self._begun[0]
        # On the clock less of CPU: a poll that only tells the kernel of a thousand sockets takes 1 ms, but of CPU.
        if polled - (self._ended[1] - self._begun[1]) > WAITED_S:
            return since
        return since + polled + (self._begun[0] - self._last[0])


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


@cache
def turns() -> Turns:
    """Of this process, from the first read on."""
    return Turns()


Body = Iterator[tuple[bytes, float]]
"""Parts of a body, decompressed, each with the moment when it came (perf_counter)."""


def arriving(arrival: Arrival, response: HTTPResponse, at: float) -> Body:
    """The body, as each read from the socket gives it; ``at`` is when what came with the headers came.

    ``HTTPSocketResponse.read(n)`` would wait for n bytes; this reads what is there, through the same parser.
    """
    coding = str(response.get("content-encoding") or "identity").lower()
    if coding not in {"identity", "gzip", "x-gzip", "deflate"}:
        raise AnswerError("malformed", f"content-encoding {coding!r} was not asked for and cannot be read")
    unpack = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body: bytearray = response._body_buffer  # noqa: SLF001
    while True:
        if body:
            data = bytes(body)
            body.clear()
            if unpack is not None:
                data = unpack.decompress(data)
            yield data, at
        if response.message_complete:
            return
        received, at = arrival.read()
        response.feed(received)
        if not received and not response.message_complete:
            raise HTTPConnectionClosed("the connection was closed in the body")


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
