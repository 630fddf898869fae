"""Bytes of an HTTP answer, and the moment at which each came.

For the load generator's process only: it needs gevent, and what Locust has patched.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.ssl
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPResponse

from benchmarks.dialects import AnswerError

READ_BYTES = 65536
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it
STAMP = struct.Struct("qq")  # struct timespec
STAMP_SPACE = socket.CMSG_SPACE(STAMP.size)
STAMP_TRUST_S = 60.0  # data that would have waited longer were stamped by a clock that was set since
HEAD_END = re.compile(rb"\r?\n\r?\n")


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
        """What the next read gives, b"" at the end; and when it came, perf_counter seconds."""
        if not self._plain:
            return bytes(self.connection.recv(READ_BYTES)), time.perf_counter()
        # gevent's own recv tries to read before it waits, which between two tokens of a stream fails each time.
        while True:
            self._hub.wait(self.connection._read_event)  # noqa: SLF001
            try:
                data, notes, _, _ = self.connection._sock.recvmsg(READ_BYTES, STAMP_SPACE)  # noqa: SLF001
            except BlockingIOError:
                continue
            now = time.perf_counter()
            for level, kind, stamp in notes:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = STAMP.unpack(stamp)
                    return data, CLOCKS.at(seconds + nanoseconds * 1e-9, now)
            return data, now


class _Clocks:
    """Relates the kernel's wall clock to perf_counter; :meth:`look` again, since the wall clock is steered."""

    def __init__(self) -> None:
        self.look()

    def look(self) -> None:
        # The shortest of a few looks: a pause between the two reads would be taken for an offset.
        looks = []
        for _ in range(5):
            before = time.perf_counter()
            wall = time.time()
            after = time.perf_counter()
            looks.append((after - before, wall - (before + after) / 2))
        self._offset = min(looks)[1]

    def at(self, wall: float, now: float) -> float:
        """``wall`` on perf_counter; ``now`` where the wall clock was set in between."""
        moment = wall - self._offset
        return min(moment, now) if now - moment < STAMP_TRUST_S else now


CLOCKS = _Clocks()


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
