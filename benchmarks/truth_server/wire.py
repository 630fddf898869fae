"""How it is said: events, chunks and headers as bytes, and the moment of each.

An answer is a sequence of :class:`Step`, made one by one while it is sent: what an event costs to make must not
delay the other streams.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.truth_server.answers import END_MARKED, PATHS, Answer, dumps
from benchmarks.truth_server.modes import MODES, OLLAMA, WHOLE, failing

Then = Literal["go", "close", "reset", "hold"]
Frame = Callable[[Any], bytes]

CUT_S = 0.001
AFTER_DONE_S = 0.005
NEVER_S = 3600.0
PINGS = 3
BOM = b"\xef\xbb\xbf"
REASONS = {
    200: "OK",
    204: "No Content",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
# See _common().
COMMON = {"plain", "several", "uneven", "first_four", "no_usage", "reasoning"}
VARYING = {"lmdeploy_stream", "llamacpp_stream"}


@dataclass(slots=True)
class Step:
    """What is written at a moment, and what follows.

    ``at``: seconds after the start of the work. ``parts``: each is a segment of its own; the first ``complete`` of
    them (0: all) complete the event. ``tokens``: of each event with text that is complete with this step. ``end``:
    the answer is complete with this step. ``raw``: not to be put into a chunk.
    """

    at: float
    parts: list[bytes]
    tokens: tuple[int, ...] = ()
    end: bool = False
    then: Then = "go"
    raw: bool = False
    complete: int = 0


def steps_of(answer: Answer, ttft_s: float, tpot_s: float) -> Iterator[Step]:
    """The answer, its times in seconds after the start of the work (which the caller makes absolute)."""
    modes = answer.modes
    early = _without_an_answer(modes, ttft_s)
    if early is not None:
        return early
    status = next((int(name[4:]) for name in sorted(modes) if name.startswith("http") and name[4:] in _CODES), None)
    if status is not None:
        return iter([Step(0.0, [failure(status)], end=True, then="close" if status == 503 else "go")])
    if "redirect" in modes:
        return iter([Step(0.0, [redirect(answer.dialect)], end=True)])
    other = _another_kind(answer)
    if other is not None:
        kind, body = other
        return _framed(answer, iter([Step(ttft_s, [body], end=True)]), ttft_s, kind=kind, length=len(body))
    if answer.dialect in WHOLE:
        return _whole(answer, ttft_s)
    if modes <= COMMON and answer.dialect not in VARYING:
        return _common(answer, ttft_s, tpot_s)
    steps = _segments(answer, _stream(answer, ttft_s, tpot_s))
    length = None
    if "content_length" in modes:
        kept = list(steps)
        length, steps = sum(len(part) for step in kept for part in step.parts), iter(kept)
    return _framed(answer, steps, ttft_s, length=length)


_CODES = {name[4:] for name in MODES if name.startswith("http") and name != "http10"}


def _without_an_answer(modes: frozenset[str], ttft_s: float) -> Iterator[Step] | None:
    if "close_first" in modes:
        return iter([Step(0.0, [], then="close")])
    if "reset_first" in modes:
        return iter([Step(0.0, [], then="reset")])
    if "stall_all" in modes:
        return iter([Step(0.0, [], then="hold")])
    if "reset_head" in modes:
        return iter([Step(0.0, [b"HTTP/1.1 200 OK\r\nContent-Ty"]), Step(ttft_s, [], then="reset")])
    if "bad_status" in modes:
        return iter([Step(0.0, [b"HELLO WORLD\r\n\r\n"], then="close")])
    return None


def _another_kind(answer: Answer) -> tuple[str, bytes] | None:
    modes = answer.modes
    own = content_type(answer.dialect)
    if "html" in modes:
        return "text/html; charset=utf-8", b"<html><body>Welcome</body></html>"
    if "text" in modes:
        return "text/plain", b"Welcome"
    if "json_instead" in modes:
        return "application/json", b'{"object": "something.else", "value": 1}'
    if "empty_body" in modes:
        return own, b""
    return None


# Streams.


def _stream(answer: Answer, ttft_s: float, tpot_s: float) -> Iterator[Step]:
    """Every event as one step, in order of time."""
    modes, dialect = answer.modes, answer.dialect
    count = len(answer.tokens)
    frame = _frame_of(answer)
    if "bom" in modes:
        yield Step(0.0, [BOM])
    if "retry" in modes:
        yield Step(0.0, [b"retry: 3000\n\n"])
    for opening in answer.opening():
        yield Step(0.0, [frame(opening)])
    if "comments" in modes:
        yield Step(0.0, [b": keep-alive" + 2 * _end_of_line(modes, 0)])
    if "pings" in modes:
        for number in range(PINGS):
            yield Step(ttft_s * (number + 1) / (PINGS + 1), [b": ping - 2026-11-23 08:00:0%d\n\n" % number])
    if "no_answer" in modes:
        yield from _end(answer, frame, ttft_s)
        return
    if "stall_first" in modes:
        yield Step(0.0, [], then="hold")
        return
    if "stall_pings" in modes:
        yield from (Step(0.05 * number, [b": ping\n\n"]) for number in range(int(NEVER_S / 0.05)))
        return
    if "error_first" in modes:
        yield from _error(answer, frame, ttft_s)
        return
    fails = failing(modes)
    said, so_far, last_s = answer.pieces(), 0, ttft_s + (count - 1) * tpot_s
    for size in answer.groups():
        begin, so_far = so_far, so_far + size
        # An event can be written when its last token is there.
        at = last_s if "held_back" in modes else ttft_s + (so_far - 1) * tpot_s
        if "empty_deltas" in modes:
            yield Step(at, [frame(answer.empty(begin))])
        text, thinks = "".join(said[begin:so_far]), answer.thinks and begin < answer.half
        if so_far == count and "finish_with_content" in modes:
            finish = _finish(modes)
            event = frame(answer.event(text, size, so_far, thinks=thinks, finish=finish))
            at_the_end = dialect in END_MARKED
            yield Step(at, [event], (size,), end=not at_the_end)
        else:
            yield Step(at, [frame(answer.event(text, size, so_far, thinks=thinks))], (size,))
        if "comments" in modes:
            yield Step(at, [b":" + _end_of_line(modes, 0)])
        if fails and begin >= count // 4:
            stop = _break(answer, frame, at)
            if stop is not None:
                yield from stop
                return
    yield from _end(answer, frame, last_s)


def _finish(modes: frozenset[str]) -> str:
    return next((MODES[name].finish for name in sorted(modes) if MODES[name].finish != "stop"), "stop")


def _break(answer: Answer, frame: Frame, at: float) -> Iterable[Step] | None:
    """What goes wrong in the middle of the stream; None where it does not go wrong here."""
    modes = answer.modes
    if modes & {"abrupt", "short_body"}:
        return [Step(at, [], then="close")]
    if "reset_middle" in modes:
        return [Step(at, [], then="reset")]
    if "stall" in modes:
        return [Step(at, [], then="hold")]
    if "bad_chunk" in modes:
        return [Step(at, [b"zz\r\nxx\r\n"], then="close", raw=True)]
    if "invalid_json" in modes:
        return [Step(at, [frame(b'{"choices": [{"index":')]), *_end(answer, frame, at)]
    if "not_an_object" in modes:
        return [Step(at, [frame(b"[1, 2]")]), *_end(answer, frame, at)]
    if "invalid_utf8" in modes:
        event = frame(answer.event("@@", 1, len(answer.tokens), thinks=False)).replace(b"@@", b"\xff\xe5")
        return [Step(at, [event]), *_end(answer, frame, at)]
    if "cut_event" in modes:
        event = frame(answer.event("@@", 1, len(answer.tokens), thinks=False))
        return [Step(at, [event[: event.index(b"@@")]], end=True)]
    if modes & {"error_event", "error_object", "error_named", "error_text", "error_done", "error_field"}:
        return _error(answer, frame, at)
    return None


def _error(answer: Answer, frame: Frame, at: float) -> Iterator[Step]:
    data = frame(answer.error())
    if "error_named" in answer.modes:
        data = b"event: error\n" + data
    if "error_field" in answer.modes:
        data = b"error: " + json.dumps(answer.error()).encode() + b"\n\n"
    yield Step(at, [data])
    # LMDeploy sends its end mark behind an error, the others end.
    if answer.dialect == "lmdeploy_stream" or ("error_done" in answer.modes and answer.dialect in END_MARKED):
        yield Step(at, [frame(b"[DONE]")], end=True)
    elif "error_done" in answer.modes:
        yield from _end(answer, frame, at)


def _end(answer: Answer, frame: Frame, at: float) -> Iterator[Step]:
    """The reason of the end, usage, the end mark, and what a mode puts behind it."""
    modes, dialect = answer.modes, answer.dialect
    marked = dialect in END_MARKED
    late = "finish_with_content" in modes and not failing(modes)
    closing = [frame(event) for event in answer.closing(_finish(modes), with_finish=not late)]
    if not marked and (modes & {"truncated", "reset_before_done"}):
        closing = []
    if marked or not closing:
        for event in closing:
            yield Step(at, [event])
        mark = frame(b"[DONE]  " if "done_spaces" in modes else b"[DONE]") if marked else b""
    else:
        *before, mark = closing
        for event in before:
            yield Step(at, [event])
    if "truncated" in modes:
        yield Step(at, [], end=True)
        return
    if "reset_before_done" in modes:
        yield Step(at, [], then="reset")
        return
    if "no_final_blank" in modes:
        mark = mark.rstrip(b"\r\n")
    if mark:
        yield Step(at, [mark], end=True)
    if "native_done" in modes or "done_twice" in modes:
        yield Step(at, [b"data: [DONE]\n\n"])
    if "after_done" in modes:
        yield Step(at, [frame(answer.event("后", 1, len(answer.tokens) + 1, thinks=False))])
    if "hold_after_done" in modes:
        yield Step(at, [], then="hold")
    if "close_after_done" in modes:
        yield Step(at, [], then="close")
    if "reset_after_done" in modes:
        yield Step(at + AFTER_DONE_S, [], then="reset")


def _frame_of(answer: Answer) -> Frame:
    """What turns an object (or the bytes of one) into the bytes of an event."""
    modes = answer.modes
    number = 0
    debt = b""

    def line(data: Any) -> bytes:
        text = data if isinstance(data, bytes) else dumps(data, modes).encode()
        end = _end_of_line(modes, 0)
        return (end if "blank_lines" in modes else b"") + text + end

    def event(data: Any) -> bytes:
        nonlocal number, debt
        number += 1
        text = data if isinstance(data, bytes) else dumps(data, modes).encode()
        end = _end_of_line(modes, number)
        name = b"data:" if "nospace" in modes else b"data:  " if "two_spaces" in modes else b"data: "
        lines = [name + part for part in text.split(b"\n")]
        around: list[bytes] = []
        if "event_lines" in modes:
            around.append(b"event: message")
        if "id_lines" in modes:
            around.append(b"id: %d" % number)
        if "odd_fields" in modes:
            around += [b"x-trace: 00-4bf9", b"foo"]
        if "data_first" in modes:
            around = [b"id: %d" % number, b"event: message"]
            lines += around
        else:
            lines = around + lines
        before = b""
        if "event_ping" in modes:
            before += b"event: ping" + end + b"data: {}" + end + end
        if "event_no_data" in modes:
            before += b"event: nothing" + end + end
        if "empty_data" in modes:
            before += b"data:" + end + end + b"data" + end + end
        if "blank_lines" in modes:
            before += end + end
        whole = before + end.join(lines) + end + end
        if "late_blank" in modes:
            whole, debt = debt + whole.removesuffix(end), end
        return whole

    return line if answer.dialect in OLLAMA else event


def _end_of_line(modes: frozenset[str], number: int) -> bytes:
    if "mixed_ends" in modes:
        return (b"\n", b"\r\n", b"\r")[number % 3]
    return b"\r\n" if modes & {"crlf", "cut_line_end"} else b"\r" if "cr" in modes else b"\n"


def _common(answer: Answer, ttft_s: float, tpot_s: float) -> Iterator[Step]:
    """What :func:`_framed` makes of :func:`_stream` in the modes of ``COMMON``, with a fourth of their work.

    Events that differ in their text alone are not made anew, and nothing is wrapped: a load of 25,000 events a second
    must leave the clock, and the other core, to those who are measured.
    """
    modes = answer.modes
    frame = _frame_of(answer)
    mark = "@@"
    made = {}
    for thinks in {answer.thinks, False}:
        head, _, tail = frame(answer.event(mark, len(mark), 0, thinks=thinks)).partition(mark.encode())
        made[thinks] = head, tail + b"\r\n", len(head) + len(tail)
    yield Step(0.0, [_head(modes, content_type(answer.dialect), None, in_chunks=True)])
    said, so_far, half = answer.pieces(), 0, answer.half if answer.thinks else 0
    for size in answer.groups():
        begin, so_far = so_far, so_far + size
        text = "".join(said[begin:so_far]).encode()
        before, behind, length = made[begin < half]
        data = b"%x\r\n%b%b%b" % (length + len(text), before, text, behind)
        yield Step(ttft_s + (so_far - 1) * tpot_s, [data], (size,))
    last_s = ttft_s + (so_far - 1) * tpot_s
    yield from _body(modes, _end(answer, frame, last_s), in_chunks=True)


def _segments(answer: Answer, steps: Iterator[Step]) -> Iterator[Step]:
    """Events cut into pieces, or put together."""
    modes = answer.modes
    if "merged" in modes:
        return _merged(steps)
    if "cut" in modes:
        return _cut(steps)
    if modes & {"utf8_split", "two_chunks", "cut_line_end"}:
        return (_parted(step, modes) for step in steps)
    return steps


def _merged(steps: Iterator[Step]) -> Iterator[Step]:
    held: Step | None = None
    for step in steps:
        if step.then == "go" and held is None:
            held = step
        elif step.then == "go" and held is not None:
            parts = [b"".join(held.parts + step.parts)]
            yield Step(step.at, parts, held.tokens + step.tokens, end=held.end or step.end)
            held = None
        else:
            if held is not None:
                yield held
                held = None
            yield step
    if held is not None:
        yield held


def _cut(steps: Iterator[Step]) -> Iterator[Step]:
    before = 0.0
    for step in steps:
        if step.tokens and step.parts:
            data = step.parts[0]
            half = len(data) // 2
            yield Step(max(before, step.at - CUT_S), [data[:half]])
            yield replace(step, parts=[data[half:]])
        else:
            yield step
        before = step.at


def _parted(step: Step, modes: frozenset[str]) -> Step:
    if not step.parts or step.raw:
        return step
    data = step.parts[0]
    if "utf8_split" in modes:
        at = next((index for index, byte in enumerate(data) if byte >= 0x80), len(data) - 1) + 1
    elif "cut_line_end" in modes:
        at = data.find(b"\r") + 1 or len(data)
    else:
        at = len(data) // 2
    parts = [part for part in (data[:at], data[at:]) if part]
    return replace(step, parts=parts)


# Answers in one piece.


def _whole(answer: Answer, at: float) -> Iterator[Step]:
    modes = answer.modes
    body = dumps(answer.whole(), modes).encode()
    if modes & {"invalid_json", "cut_event"}:
        body = body[: len(body) // 2]
    elif "not_an_object" in modes:
        body = b"[1, 2]"
    elif "invalid_utf8" in modes:
        body = body.replace(b'"', b'"\xff\xe5', 1)
    half = len(body) // 2
    breaks: dict[str, Step] = {
        "abrupt": Step(at, [], then="close"),
        "short_body": Step(at, [], then="close"),
        "reset_middle": Step(at, [], then="reset"),
        "stall": Step(at, [], then="hold"),
        "bad_chunk": Step(at, [b"zz\r\nxx\r\n"], then="close", raw=True),
    }
    found = [breaks[name] for name in sorted(modes & breaks.keys())]
    if "stall_first" in modes:
        steps = [Step(0.0, [], then="hold")]
    elif found:
        steps = [Step(at, [body[:half]]), found[0]]
    else:
        steps = [Step(at, [body], (len(answer.tokens),), end=True)]
    return _framed(answer, iter(steps), at, length=len(body))


# HTTP.


def content_type(dialect: str) -> str:
    if dialect in WHOLE:
        return "application/json"
    return "application/x-ndjson" if dialect in OLLAMA else "text/event-stream; charset=utf-8"


def _framed(
    answer: Answer, steps: Iterator[Step], first_s: float, *, kind: str | None = None, length: int | None = None
) -> Iterator[Step]:
    """The steps of a body with headers before it, as chunks or plain, and its end."""
    modes = answer.modes
    if modes & {"gzip", "chunk_extensions", "trailers", "chunked", "bad_chunk", "early_response"}:
        length = None
    to_the_end = bool(modes & {"close_delimited", "http10"})
    closing = to_the_end or bool(modes & {"close", "short_body"})
    in_chunks = length is None and not to_the_end and "short_body" not in modes
    head = _head(modes, kind or content_type(answer.dialect), length, in_chunks=in_chunks, closing=closing)
    last_s = 0.0
    for step in _with_head(answer, head, _body(modes, steps, in_chunks=in_chunks), first_s):
        if "bytewise" in modes:
            data = b"".join(step.parts)
            # An event is complete with its first line end, not with the empty line or the chunk's end behind it.
            step.complete = len(data.rstrip(b"\r\n")) + 1
            step.parts = _bytes(data)
        last_s = step.at
        yield step
    if closing:
        yield Step(last_s, [], then="close")


def _with_head(answer: Answer, head: bytes, body: Iterator[Step], first_s: float) -> Iterator[Step]:
    modes = answer.modes
    late = answer.dialect in WHOLE and "stall_first" not in modes
    if "early_response" in modes:
        pass
    elif "slow_headers" in modes:
        lines = head.splitlines(keepends=True)
        for number, line in enumerate(lines):
            yield Step(first_s / 2 * number / len(lines), [line])
    elif not late and "late_headers" not in modes:
        yield Step(0.0, [head])
    else:
        # With the first byte of the body; both are one segment.
        first = next(body)
        while not first.parts and not first.end and first.then == "go":
            first = next(body)
        yield replace(first, parts=[head + b"".join(first.parts[:1]), *first.parts[1:]])
    yield from body


def _bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def _body(modes: frozenset[str], steps: Iterator[Step], *, in_chunks: bool) -> Iterator[Step]:
    pack = zlib.compressobj(wbits=31) if "gzip" in modes else None
    number, last_s = 0, 0.0
    for step in steps:
        last_s = step.at
        parts = [part for part in step.parts if part]
        if pack is not None and parts and not step.raw:
            parts = [pack.compress(b"".join(parts)) + pack.flush(zlib.Z_SYNC_FLUSH)]
        if in_chunks and not step.raw:
            parts = [_chunk(part, modes, number + at) for at, part in enumerate(parts)]
            number += len(parts)
            if "two_chunks" in modes:
                parts = [b"".join(parts)]
        step.parts = parts
        yield step
        if step.then != "go":
            return
    tail = b"" if pack is None else pack.flush()
    if in_chunks:
        end = b"0;last\r\n" if "chunk_extensions" in modes else b"0\r\n"
        end += b"Server-Timing: total;dur=1\r\nX-Checksum: 1\r\n" if "trailers" in modes else b""
        tail = (_chunk(tail, modes, number) if tail else b"") + end + b"\r\n"
    if tail:
        yield Step(last_s, [tail], raw=True)


def _chunk(data: bytes, modes: frozenset[str], number: int) -> bytes:
    if "chunk_extensions" in modes:
        return b'%04X;n=%d;q="a b"\r\n%b\r\n' % (len(data), number, data)
    return b"%x\r\n%b\r\n" % (len(data), data)


def early_head(dialect: str, modes: frozenset[str]) -> bytes:
    """The headers of an answer whose request has not been read yet."""
    return _head(modes, content_type("chat_stream" if dialect == "chat" else dialect), None, in_chunks=True)


def _head(modes: frozenset[str], kind: str, length: int | None, *, in_chunks: bool, closing: bool = False) -> bytes:
    if "odd_content_type" in modes:
        kind = {
            "application/json": "Application/JSON;charset=UTF-8; profile=x",
            "application/x-ndjson": "Application/X-NDJSON;charset=UTF-8",
        }.get(kind, "Text/Event-Stream;charset=UTF-8; boundary=x")
    headers = [("Date", "Mon, 23 Nov 2026 08:00:00 GMT"), ("Server", "truth"), ("Content-Type", kind)]
    if "short_body" in modes:
        headers.append(("Content-Length", str((length or 0) + 100_000)))
    elif length is not None and "http10" not in modes and "close_delimited" not in modes:
        headers.append(("Content-Length", str(length)))
    if in_chunks:
        headers.append(("Transfer-Encoding", "chunked"))
    if "gzip" in modes:
        headers.append(("Content-Encoding", "gzip"))
    if "trailers" in modes and in_chunks:
        headers.append(("Trailer", "Server-Timing, X-Checksum"))
    if closing:
        headers.append(("Connection", "close"))
    if "huge_headers" in modes:
        headers += [(f"X-Filler-{number}", "x" * 500) for number in range(32)]
    if "cookies" in modes:
        headers += [("Set-Cookie", f"a{number}=b; Path=/") for number in range(3)] + [("Vary", "a"), ("Vary", "b")]
    case = str.lower if "lower_headers" in modes else str.upper if "upper_headers" in modes else str
    colon, end = (":" if "no_header_space" in modes else ": "), ""
    if "header_spaces" in modes:
        colon, end = ":  \t", " \t"
    version = "HTTP/1.0" if "http10" in modes else "HTTP/1.1"
    status = f"{version} 200 " if "no_reason" in modes else f"{version} 200 OK"
    lines = [status, *(f"{case(name)}{colon}{value}{end}" for name, value in headers)]
    before = ""
    if "continue" in modes:
        before += "HTTP/1.1 100 Continue\r\n\r\n"
    if "processing" in modes:
        before += 2 * "HTTP/1.1 102 Processing\r\n\r\n"
    if "early_hints" in modes:
        before += "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    return (before + "\r\n".join(lines) + "\r\n\r\n").encode()


def whole(status: int, content: Any, kind: str = "application/json", *extra: tuple[str, str]) -> bytes:
    """An answer in one piece, headers and body."""
    data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(data))), *extra]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {REASONS.get(status, '')}\r\n{lines}\r\n".encode() + data


def failure(status: int) -> bytes:
    """An answer with an error status, as servers and proxies write it."""
    if status == 204:
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    extra: list[tuple[str, str]] = []
    if status in {429, 503}:
        extra.append(("Retry-After", "1"))
    if status == 401:
        extra.append(("WWW-Authenticate", "Bearer"))
    if status == 503:
        extra.append(("Connection", "close"))
    if status == 502:
        return whole(status, b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html", *extra)
    return whole(status, {"error": {"message": "made to fail", "code": status}}, "application/json", *extra)


def redirect(dialect: str) -> bytes:
    wanted = "chat" if dialect == "chat_stream" else dialect
    path = next(path for path, name in PATHS.items() if name == wanted)
    return whole(307, b"", "text/plain", ("Location", f"/mode/redirected{path}"))
