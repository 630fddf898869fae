"""Events of a stream, read as bytes arrive: server-sent events and newline-delimited JSON."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Event(NamedTuple):
    """``at`` is when its last ``data`` line was complete: seconds, the caller's clock."""

    at: float
    data: bytes
    type: bytes = b"message"


class Reader(Protocol):
    """Bytes in, events out."""

    events: list[Event]

    def feed(self, data: bytes, at: float) -> None:
        """Read what arrived ``at`` this moment."""

    def close(self, at: float) -> None:
        """The body ended."""


class EventReader:
    r"""Turns bytes into events, as the HTML standard's parser does.

    Lines end with \n, \r\n or \r, also where a network read cuts \r\n in two; a space after the colon is
    optional; lines that start with a colon are comments; several ``data`` lines make one event; an event
    ends at an empty line. Two deviations: what stands unterminated at the end of the body counts, because
    servers omit the last empty line after ``[DONE]``; and a line ``error: ...`` is an event of type error, because
    llama.cpp reports errors so.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    """

    __slots__ = ("_after_cr", "_at", "_data", "_start", "_tail", "_type", "comments", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.comments = 0
        self._tail = b""
        self._data: list[bytes] = []
        self._type = b""
        self._at = 0.0
        self._after_cr = False
        self._start = True

    def feed(self, data: bytes, at: float) -> None:
        # What nearly every read of a stream is, one whole event of one line, at half the cost.
        if (
            data.startswith(b"data: ")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n")
            and b"\r" not in data
            and not (self._tail or self._data or self._type)
        ):
            self._start = self._after_cr = False
            self.events.append(Event(at, data[6:-2]))
            return
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
        if not data:
            return
        self._after_cr = data[-1:] == b"\r"
        text = self._tail + data if self._tail else data
        if self._start and len(text) >= 3:
            text, self._start = text.removeprefix(b"\xef\xbb\xbf"), False
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._tail = text.split(b"\n")
        for line in lines:
            self._line(line, at)

    def close(self, at: float) -> None:
        if self._tail:
            self._line(self._tail, at)
            self._tail = b""
        self._dispatch()

    def _line(self, line: bytes, at: float) -> None:
        if not line:
            self._dispatch()
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._at = at
        elif field == b"event":
            self._type = value
        elif field == b"error":
            self.events.append(Event(at, value, b"error"))
        elif not field:
            self.comments += 1

    def _dispatch(self) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            self.events.append(Event(self._at, data, self._type or b"message"))
            self._data = []
        self._type = b""


class LineReader:
    """Newline-delimited JSON: an event per line that is not blank."""

    __slots__ = ("_tail", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._tail = b""

    def feed(self, data: bytes, at: float) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        self.events += [Event(at, line) for line in lines if line.strip()]

    def close(self, at: float) -> None:
        if self._tail.strip():
            self.events.append(Event(at, self._tail))
        self._tail = b""
