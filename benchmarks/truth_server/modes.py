"""Ways to answer: what HTTP, server-sent events, JSON lines and the APIs on top of them allow, and how they fail.

Each has a description and what is true of its answers: the classes of error that a client may report (None: it
must report none), the status, the reason of the end. Times and tokens of a request are in its entry of GET /_truth.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

CHAT = frozenset({"chat_stream"})
OPENAI = CHAT | {"completions_stream"}
SSE = OPENAI | {"lmdeploy_stream", "llamacpp_stream"}
OLLAMA = frozenset({"ollama_stream", "ollama_chat_stream"})
STREAMS = SSE | OLLAMA
WHOLE = frozenset({"chat", "classify", "inference"})
ALL = STREAMS | WHOLE
TEXT = ALL - {"classify"}


@dataclass(frozen=True, slots=True)
class Mode:
    """``errors``: classes of :data:`benchmarks.records.ErrorClass`, where the wire leaves more than one open."""

    about: str
    on: frozenset[str] = ALL
    errors: tuple[str | None, ...] = (None,)
    status: int | None = 200
    finish: str = "stop"
    in_selftest: bool = True


def _failing(about: str, *errors: str, on: frozenset[str] = ALL, status: int | None = 200) -> Mode:
    return Mode(about, on, errors, status)


MODES: dict[str, Mode] = {
    "plain": Mode("nothing special"),
    # What a chunk says: chat deltas, native chunks.
    "role_first": Mode("the first event names the role and has empty content", CHAT),
    "content_null": Mode("the first event names the role and has content null; the last delta too", CHAT),
    "azure_first": Mode("the first event has no choices but the result of a prompt filter", OPENAI),
    "several": Mode("four tokens per event", STREAMS),
    "uneven": Mode("one token in the first event, then four per event", STREAMS),
    "first_four": Mode("four tokens in the first event, then one per event", STREAMS),
    "one_event": Mode("all tokens in one event", STREAMS),
    "held_back": Mode("a proxy holds all events back until the last token", STREAMS),
    "empty_deltas": Mode("an event without text before each event with text", STREAMS),
    "whitespace_first": Mode("the first token is white space", STREAMS),
    "no_usage": Mode("the server counts no tokens", OPENAI | OLLAMA | {"chat"}),
    "usage_each": Mode("usage so far in every event, so that the first event's tokens are known", OPENAI),
    "usage_null": Mode("usage is null in every event but the last", OPENAI),
    "usage_in_finish": Mode("usage comes with the finish reason", OPENAI),
    "usage_details": Mode("usage has cached and reasoning tokens in objects of their own", OPENAI | {"chat"}),
    "choices_null": Mode("choices is null in the event with the usage", OPENAI),
    "finish_with_content": Mode("the last text and the finish reason come in one event", STREAMS),
    "finish_empty": Mode("finish_reason is an empty text until the end", OPENAI),
    "finish_length": Mode("the answer was cut at max_tokens", STREAMS | {"chat"}, finish="length"),
    "timings_each": Mode("timings in every event", frozenset({"llamacpp_stream"})),
    "no_counts": Mode("token counts only in the last event", frozenset({"llamacpp_stream"})),
    "native_done": Mode("[DONE] behind the last event", frozenset({"llamacpp_stream"})),
    "reasoning": Mode("the first half is reasoning_content (Ollama: thinking)", CHAT | OLLAMA | {"chat"}),
    "reasoning_short": Mode("the first half is in the field reasoning", CHAT),
    "reasoning_both": Mode("reasoning and content are both there in each event, one of them null", CHAT),
    "think_tags": Mode("the first half stands between <think> tags in the content", CHAT),
    "think_split": Mode("as think_tags, with the tags split over two events", CHAT),
    "tool_calls": Mode("the tokens are the arguments of a tool call", CHAT, finish="tool_calls"),
    "refusal": Mode("the tokens are a refusal", CHAT),
    "logprobs": Mode("log-probabilities of each token", OPENAI),
    "content_parts": Mode("content is a list of parts", CHAT | {"chat"}),
    # Server-sent events.
    "comments": Mode("a comment line before the first event and between events", SSE),
    "pings": Mode("comments with the time, alone, while the first token is computed", SSE),
    "empty_data": Mode("events with empty data to keep the connection", SSE),
    "event_ping": Mode("events named ping, with an empty object", SSE),
    "event_no_data": Mode("an event line without data, which is no event", SSE),
    "event_lines": Mode("event: message before each data line", SSE),
    "id_lines": Mode("an id with each event", SSE),
    "retry": Mode("a retry line first", SSE),
    "odd_fields": Mode("unknown fields, and a data field without a colon, beside the events", SSE),
    "data_first": Mode("event and id lines behind the data line", SSE),
    "nospace": Mode("data: without a space", SSE),
    "two_spaces": Mode("data: with two spaces", SSE),
    "crlf": Mode("lines end with CR LF", STREAMS),
    "cr": Mode("lines end with CR", SSE),
    "mixed_ends": Mode("LF, CR LF and CR by turns", SSE),
    "bom": Mode("a byte order mark first", SSE),
    "data_lines": Mode("several data lines in one event", SSE),
    "json_spaces": Mode("white space in and around the JSON", STREAMS),
    "json_escapes": Mode("every character of the text as \\u escape", STREAMS | WHOLE),
    "late_blank": Mode("the empty line behind an event comes with the next event", SSE),
    "no_final_blank": Mode("no line end behind the end mark", STREAMS),
    "done_spaces": Mode("[DONE] followed by spaces", OPENAI | {"lmdeploy_stream"}),
    "after_done": Mode("more events behind the end mark", STREAMS),
    "done_twice": Mode("[DONE] twice", OPENAI | {"lmdeploy_stream"}),
    "hold_after_done": Mode("the connection stays, and the body does not end, behind the end mark", STREAMS),
    "close_after_done": Mode("the connection is closed behind the end mark, the body not ended", STREAMS),
    "reset_after_done": Mode("the connection is reset 5 ms after the end mark, the body not ended", STREAMS),
    "blank_lines": Mode("empty lines between the lines", STREAMS),
    # Segments.
    "bytewise": Mode("one byte per TCP segment, at a third of the speed: a segment costs both sides 5 to 15 us"),
    "utf8_split": Mode("each character of the text cut over two chunks and segments", STREAMS),
    "cut": Mode("each event in two chunks, the first 1 ms before its token's time", STREAMS),
    "cut_line_end": Mode("CR and LF in two chunks", STREAMS),
    "merged": Mode("two events in one chunk and segment", STREAMS),
    "two_chunks": Mode("each event in two HTTP chunks, in one segment", STREAMS),
    # HTTP.
    "chunked": Mode("a body in chunks, where it would have a length", WHOLE),
    "chunk_extensions": Mode("chunk sizes with extensions, leading zeros and capital digits"),
    "trailers": Mode("trailers behind the last chunk"),
    "close": Mode("Connection: close, in chunks"),
    "close_delimited": Mode("Connection: close, the body ends with the connection"),
    "http10": Mode("HTTP/1.0, the body ends with the connection"),
    "content_length": Mode("a stream whose length is announced", STREAMS),
    "gzip": Mode("Content-Encoding: gzip although identity was asked for"),
    "lower_headers": Mode("header names in lower case"),
    "upper_headers": Mode("header names in upper case"),
    "no_header_space": Mode("no space behind the colon of a header"),
    "header_spaces": Mode("spaces and tabs around the value of a header"),
    "no_reason": Mode("a status line without a reason phrase"),
    "odd_content_type": Mode("a content type in other letters, with parameters"),
    "huge_headers": Mode("16 kB of headers"),
    "cookies": Mode("the same header several times"),
    "early_hints": Mode("103 Early Hints before the answer"),
    "processing": Mode("102 Processing, twice, before the answer"),
    "continue": Mode("100 Continue before the answer"),
    "slow_headers": Mode("the headers arrive line by line until half of the time to the first token"),
    "late_headers": Mode("the headers come with the first token"),
    "early_response": Mode("the headers are sent before the body of the request is read", ALL - {"chat"}),
    "stale": Mode("the connection is closed 1 ms after the answer, without notice"),
    "stale_reset": Mode("the second request on a connection is answered with a reset"),
    "redirected": Mode("plain; where redirect leads to", in_selftest=False),
    "redirect": Mode("307 to the same path in mode redirected", errors=(None, "http_status"), status=None),
    # Failures.
    "error_event": _failing("an error object after the first tokens", "error_event", on=STREAMS),
    "error_first": _failing("an error object before the first token", "error_event", on=STREAMS),
    "error_object": _failing('{"object": "error"} after the first tokens', "error_event", on=SSE),
    "error_named": _failing("event: error after the first tokens", "error_event", on=SSE),
    "error_text": _failing("error is a text, after the first tokens", "error_event", on=STREAMS),
    "error_done": _failing("an error object, then the end mark", "error_event", on=STREAMS),
    "error_field": _failing("a line error: {...} and the end of the body", "error_event", "truncated", on=SSE),
    "finish_error": Mode("finish_reason error", OPENAI | {"lmdeploy_stream"}, ("error_event",), finish="error"),
    "finish_abort": Mode("finish_reason abort", OPENAI | {"lmdeploy_stream"}, ("error_event",), finish="abort"),
    "truncated": _failing("the body ends in order, without the end mark", "truncated", on=STREAMS),
    "cut_event": _failing("the body ends in order in the middle of an event", "truncated", "malformed", on=STREAMS),
    "abrupt": _failing("the connection is closed in the middle", "truncated", "reset"),
    "reset_middle": _failing("the connection is reset in the middle", "truncated", "reset"),
    "reset_before_done": _failing("the connection is reset before the end mark", "truncated", "reset", on=STREAMS),
    "reset_head": _failing("the connection is reset in the headers", "reset", status=None),
    "close_first": _failing("the connection is closed without an answer", "reset", status=None),
    "reset_first": _failing("the connection is reset without an answer", "reset", status=None),
    "stall": _failing("nothing after the first tokens", "timeout"),
    "stall_first": _failing("headers and nothing else", "timeout"),
    "stall_pings": _failing("headers, then comments for ever", "timeout", on=SSE),
    "stall_all": _failing("no answer", "timeout", status=None),
    "short_body": _failing("a body that is shorter than its announced length", "truncated", "reset"),
    "bad_chunk": _failing("a chunk size that is no number", "malformed", "truncated", "reset"),
    "bad_status": _failing("a status line that is none", "malformed", "reset", status=None),
    "invalid_json": _failing("an event that is not JSON", "malformed"),
    "not_an_object": _failing("an event that is a JSON list", "malformed"),
    "invalid_utf8": _failing("bytes that are not UTF-8 in a text", "malformed"),
    "no_answer": _failing("an end mark and no text", "malformed", on=STREAMS),
    "empty_body": _failing("status 200 and nothing", "malformed", "truncated"),
    "html": _failing("a web page with status 200", "malformed"),
    "text": _failing("plain text with status 200", "malformed"),
    "json_instead": _failing("a JSON object of another kind with status 200", "malformed", "truncated"),
    "http204": _failing("status 204", "http_status", status=204),
    "http400": _failing("status 400", "http_status", status=400),
    "http401": _failing("status 401", "http_status", status=401),
    "http403": _failing("status 403", "http_status", status=403),
    "http404": _failing("status 404", "http_status", status=404),
    "http429": _failing("status 429 with Retry-After", "http_status", status=429),
    "http500": _failing("status 500", "http_status", status=500),
    "http502": _failing("status 502 with a web page", "http_status", status=502),
    "http503": _failing("status 503 with Retry-After, connection closed", "http_status", status=503),
    "false_truth": Mode(
        "what GET /_truth says is wrong by 10 ms, one token and the reason of the end: a check must fail on it",
        STREAMS,
        in_selftest=False,
    ),
}

# Beside each mode alone, the self-test sends these.
COMBINATIONS = {
    "role_first+comments+nospace+crlf+several+reasoning": CHAT,
    "role_first+usage_each+several": CHAT,
    "role_first+usage_each+first_four": CHAT,
    "usage_each+uneven": OPENAI,
    "content_null+reasoning_both+finish_with_content+usage_in_finish": CHAT,
    "azure_first+usage_null+event_lines+id_lines+bom": OPENAI,
    "cr+nospace+data_lines+cut": SSE,
    "crlf+cut_line_end+comments": SSE,
    "bytewise+crlf+chunk_extensions+trailers": STREAMS,
    "merged+several": STREAMS,
    "late_headers+close_delimited+no_final_blank": STREAMS,
    "gzip+close_delimited": STREAMS,
    "http10+lower_headers": ALL,
    "early_hints+slow_headers+close": ALL,
    "several+finish_with_content+no_usage": OPENAI | OLLAMA,
    "truncated+no_usage+several": OPENAI,
}


def split(text: str) -> frozenset[str]:
    """The modes in ``a+b+c``.

    Raises:
        KeyError: One is unknown; it is the argument.
    """
    names = frozenset(text.split("+"))
    for name in sorted(names):
        if name not in MODES:
            raise KeyError(name)
    return names


def failing(modes: Collection[str]) -> list[Mode]:
    return [MODES[name] for name in sorted(modes) if None not in MODES[name].errors]


def declared(modes: Collection[str]) -> Mode:
    """What is true of an answer in all of ``modes``: a failure, where there is one, decides."""
    failures = failing(modes) + [MODES[name] for name in sorted(modes) if len(MODES[name].errors) > 1]
    finish = next((MODES[name].finish for name in sorted(modes) if MODES[name].finish != "stop"), "stop")
    first = failures[0] if failures else MODES["plain"]
    return Mode("+".join(sorted(modes)), errors=first.errors, status=first.status, finish=finish)
