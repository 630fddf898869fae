"""The truth server, read with sockets and the standard library: nothing of the client is used."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.truth_server.answers import Answer, answer_tokens
from benchmarks.truth_server.modes import COMBINATIONS, MODES
from benchmarks.truth_server.settings import Truth
from benchmarks.truth_server.wire import steps_of

PATHS = {
    "chat_stream": "/v1/chat/completions",
    "completions_stream": "/v1/completions",
    "lmdeploy_stream": "/generate",
    "llamacpp_stream": "/completion",
    "ollama_stream": "/api/generate",
    "ollama_chat_stream": "/api/chat",
    "chat": "/v1/chat/completions",
    "classify": "/api/v1/classify",
    "inference": "/api/v1/inference",
}
TOKENS = 8
QUIET_S = 0.25  # as long as this without a byte: nothing more comes


@pytest.fixture(scope="module")
def server(truth_server):
    return truth_server("ttft_ms=20", "tpot_ms=4", f"tokens={TOKENS}", "service_ms=10")


def request_to(dialect, prompt, mode="plain", **more):
    body = {"model": "plain", "stream": dialect != "chat", **more}
    if dialect in {"chat", "chat_stream", "ollama_chat_stream"}:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["text" if dialect in {"classify", "inference"} else "prompt"] = prompt
    data = json.dumps(body).encode()
    head = f"POST /mode/{mode}{PATHS[dialect]} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Wire:
    """What came over one connection: ``reads`` are (perf_counter seconds, bytes); ``end``: eof, reset or quiet;
    ``segments``: with data, as the kernel counted them, however late they were read.
    """

    def __init__(self, url, data):
        at = urlsplit(url)
        self.reads, self.end = [], "quiet"
        with socket.create_connection((at.hostname, at.port)) as connection:
            connection.settimeout(QUIET_S)
            connection.sendall(data)
            try:
                while received := connection.recv(65536):
                    self.reads.append((time.perf_counter(), received))
                    if received.endswith(b"0\r\n\r\n"):  # the last chunk: only the end of the connection can follow
                        connection.settimeout(0.03)
                self.end = "eof"
            except TimeoutError:
                pass
            except ConnectionResetError:
                self.end = "reset"
            # tcpi_data_segs_in of struct tcp_info (linux/tcp.h).
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
            self.segments = int.from_bytes(info[152:156], sys.byteorder)

    @property
    def bytes(self):
        return b"".join(data for _, data in self.reads)

    @property
    def head(self):
        return self.bytes.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def rest(self):
        return self.bytes.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self):
        found, rest = [], self.rest
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            count = int(size.split(b";")[0], 16)
            if count == 0:
                break
            found.append(rest[:count])
            assert rest[count : count + 2] == b"\r\n"
            rest = rest[count + 2 :]
        return found

    @property
    def body(self):
        return b"".join(self.chunks)


@pytest.fixture(scope="module")
def wire(server):
    return lambda mode, dialect="chat_stream", prompt="x": Wire(server.url, request_to(dialect, prompt, mode))


def objects(body):
    """The JSON of every event or line; a strict reading of one data line per event."""
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.strip()]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(chunk):
    if "response" in chunk:
        return chunk["response"]
    if "message" in chunk:
        return chunk["message"]["content"]
    if "choices" in chunk:
        return "".join(
            choice.get("delta", choice).get("content", choice.get("text", "")) for choice in chunk["choices"]
        )
    return chunk.get("text", chunk.get("content", ""))


def ask(url, timeout=5):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return json.load(answer)


@pytest.mark.parametrize("dialect", [name for name in PATHS if name.endswith("stream")])
def test_every_dialect_says_the_same_text_to_the_standard_librarys_client(server, wire, dialect):
    at = urlsplit(server.url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5)
    body = request_to(dialect, "你好").partition(b"\r\n\r\n")[2]

    texts = []
    for _ in range(2):  # on one connection
        connection.request("POST", PATHS[dialect], body)
        answer = connection.getresponse()
        texts.append("".join(text_of(chunk) for chunk in objects(answer.read())))
    connection.close()

    assert (
        texts[0] == texts[1] == "".join(text_of(chunk) for chunk in objects(wire("plain", "chat_stream", "你好").body))
    )
    assert len(texts[0]) == TOKENS
    assert texts[0] != "".join(text_of(chunk) for chunk in objects(wire("plain", "chat_stream", "再见").body))


def test_counts_are_where_each_api_has_them(wire):
    chat = objects(wire("plain").body)
    lmdeploy = objects(wire("plain", "lmdeploy_stream").body)
    llamacpp = objects(wire("plain", "llamacpp_stream").body)
    ollama = objects(wire("plain", "ollama_stream").body)

    assert chat[-1]["choices"] == []
    assert chat[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": TOKENS, "total_tokens": 7 + TOKENS}
    assert [chunk["meta_info"]["completion_tokens"] for chunk in lmdeploy] == [*range(1, TOKENS + 1), TOKENS]
    assert lmdeploy[-1]["meta_info"]["finish_reason"] == {"type": "stop"}
    assert [chunk["stop"] for chunk in llamacpp] == [False] * TOKENS + [True]
    assert llamacpp[-1]["tokens_predicted"] == TOKENS == llamacpp[-1]["timings"]["predicted_n"]
    assert [chunk["done"] for chunk in ollama] == [False] * TOKENS + [True]
    assert ollama[-1]["eval_count"] == TOKENS
    # Nanoseconds, from the settings: 20 ms to the first token, 4 ms each.
    assert ollama[-1]["prompt_eval_duration"] == 20_000_000
    assert ollama[-1]["eval_duration"] == pytest.approx((TOKENS - 1) * 4_000_000)


def test_answers_in_one_piece(wire):
    classified = json.loads(wire("plain", "classify", "坏了 #网络故障").rest)
    inferred = json.loads(wire("plain", "inference", "x").rest)
    chatted = json.loads(wire("plain", "chat", "x").rest)

    assert classified["category"] == "网络故障"
    assert len(inferred["result"]) == TOKENS
    assert inferred["tokens_used"] == TOKENS + 7
    assert chatted["choices"][0]["message"]["content"] == inferred["result"]
    assert chatted["usage"]["completion_tokens"] == TOKENS


def pretty(body):
    """The events whose data is spread over lines, put together as the standard says."""
    return [
        json.loads("\n".join(line.removeprefix("data: ") for line in block.split("\n")))
        for block in body.decode().split("\n\n")
        if block and "[DONE]" not in block
    ]


def is_cut_inside_a_character(chunks):
    def whole(data):
        try:
            data.decode()
        except UnicodeDecodeError:
            return False
        return True

    return sum(not whole(chunk) for chunk in chunks) >= TOKENS and whole(b"".join(chunks))


ON_THE_WIRE = {
    "role_first": lambda w: objects(w.body)[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""},
    "content_null": lambda w: objects(w.body)[0]["choices"][0]["delta"]["content"] is None,
    "azure_first": lambda w: objects(w.body)[0]["choices"] == [],
    "several": lambda w: [len(text_of(chunk)) for chunk in objects(w.body)[:-1]] == [4, 4, 0],
    "uneven": lambda w: [len(text_of(chunk)) for chunk in objects(w.body)[:-2]] == [1, 4, 3],
    "first_four": lambda w: [len(text_of(chunk)) for chunk in objects(w.body)[:-2]] == [4, 1, 1, 1, 1],
    "one_event": lambda w: len(text_of(objects(w.body)[0])) == TOKENS,
    "no_usage": lambda w: b"usage" not in w.body,
    "usage_each": lambda w: [chunk["usage"]["completion_tokens"] for chunk in objects(w.body)][:2] == [1, 2],
    "usage_null": lambda w: [chunk["usage"] for chunk in objects(w.body)][:-1] == [None] * (TOKENS + 1),
    "usage_in_finish": lambda w: objects(w.body)[-1]["choices"][0]["finish_reason"] == "stop" and b"usage" in w.body,
    "choices_null": lambda w: objects(w.body)[-1]["choices"] is None,
    "finish_with_content": lambda w: (
        [(bool(text_of(chunk)), chunk["choices"][0]["finish_reason"]) for chunk in objects(w.body)[:-1]][-1]
        == (True, "stop")
    ),
    "reasoning": lambda w: w.body.count(b'"reasoning_content"') == TOKENS // 2,
    "reasoning_short": lambda w: w.body.count(b'"reasoning"') == TOKENS // 2,
    "think_tags": lambda w: re.fullmatch("<think>..</think>....", "".join(map(text_of, objects(w.body)))),
    "think_split": lambda w: b'"<th"' in w.body and b'"ink>"' in w.body,
    "tool_calls": lambda w: w.body.count(b'"arguments"') == TOKENS and b'"finish_reason":"tool_calls"' in w.body,
    "logprobs": lambda w: len(objects(w.body)[0]["choices"][0]["logprobs"]["content"]) == 1,
    "content_parts": lambda w: objects(w.body)[0]["choices"][0]["delta"]["content"][0]["type"] == "text",
    "whitespace_first": lambda w: text_of(objects(w.body)[0]) == " ",
    "comments": lambda w: w.body.startswith(b": keep-alive\n\n"),
    "pings": lambda w: w.body.count(b": ping") == 3,
    "empty_data": lambda w: b"data:\n\n" in w.body and b"\ndata\n\n" in w.body,
    "event_lines": lambda w: w.body.count(b"event: message\ndata: ") == TOKENS + 3,
    "id_lines": lambda w: b"id: 1\n" in w.body,
    "retry": lambda w: w.body.startswith(b"retry: 3000\n\n"),
    "nospace": lambda w: b"data:{" in w.body and b"data: " not in w.body,
    "crlf": lambda w: w.body.count(b"\r\n\r\n") == TOKENS + 3 and b"\n\n" not in w.body,
    "cr": lambda w: w.body.count(b"\r\r") == TOKENS + 3 and b"\n" not in w.body,
    "bom": lambda w: w.body.startswith(b"\xef\xbb\xbfdata: "),
    "data_lines": lambda w: w.body.count(b"\n\n") < w.body.count(b"data: ") / 3 and len(pretty(w.body)) == TOKENS + 2,
    "json_spaces": lambda w: b'" : ' in w.body and len(objects(w.body)) == TOKENS + 2,
    "json_escapes": lambda w: w.body.isascii() and len(text_of(objects(w.body)[0])) == 1,
    "late_blank": lambda w: all(chunk.startswith(b"\n") and not chunk.endswith(b"\n\n") for chunk in w.chunks[1:]),
    "no_final_blank": lambda w: w.body.endswith(b"data: [DONE]"),
    "done_spaces": lambda w: w.body.endswith(b"data: [DONE]  \n\n"),
    "after_done": lambda w: not w.body.endswith(b"data: [DONE]\n\n"),
    "hold_after_done": lambda w: w.end == "quiet" and not w.bytes.endswith(b"0\r\n\r\n"),
    "close_after_done": lambda w: w.end == "eof" and not w.bytes.endswith(b"0\r\n\r\n"),
    "reset_after_done": lambda w: w.end == "reset",
    "utf8_split": lambda w: is_cut_inside_a_character(w.chunks),
    "merged": lambda w: w.chunks[0].count(b"data: ") == 2,
    "two_chunks": lambda w: len(w.chunks) == 2 * (TOKENS + 3),
    "cut": lambda w: len(w.chunks) == 2 * TOKENS + 3,
    # Linux joins small writes while earlier ones wait to be sent (tcp_autocorking).
    "bytewise": lambda w: w.segments > len(w.bytes) / 8,
    "chunk_extensions": lambda w: re.match(rb'0[0-9A-F]+;n=0;q="a b"\r\n', w.rest),
    "trailers": lambda w: w.bytes.endswith(b"0\r\nServer-Timing: total;dur=1\r\nX-Checksum: 1\r\n\r\n"),
    "close": lambda w: b"Connection: close\r\n" in w.head and w.end == "eof" and len(w.chunks) == TOKENS + 3,
    "close_delimited": lambda w: b"chunked" not in w.head and w.end == "eof" and len(objects(w.rest)) == TOKENS + 2,
    "http10": lambda w: w.bytes.startswith(b"HTTP/1.0 200") and w.end == "eof",
    "content_length": lambda w: b"Content-Length: %d\r\n" % len(w.rest) in w.head,
    "gzip": lambda w: b"Content-Encoding: gzip" in w.head and len(objects(gzip.decompress(w.body))) == TOKENS + 2,
    "lower_headers": lambda w: b"\r\ntransfer-encoding: chunked" in w.head,
    "upper_headers": lambda w: b"\r\nTRANSFER-ENCODING: chunked" in w.head,
    "no_header_space": lambda w: b"\r\nTransfer-Encoding:chunked\r\n" in w.head,
    "header_spaces": lambda w: b"\r\nTransfer-Encoding:  \tchunked \t\r\n" in w.head,
    "huge_headers": lambda w: len(w.head) > 16_000,
    "early_hints": lambda w: w.bytes.startswith(b"HTTP/1.1 103 ") and b"\r\n\r\nHTTP/1.1 200 OK\r\n" in w.bytes,
    "continue": lambda w: w.bytes.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
    "redirect": lambda w: w.bytes.startswith(b"HTTP/1.1 307 ") and b"Location: /mode/redirected/v1/chat" in w.head,
    "stale": lambda w: w.end == "eof" and w.bytes.endswith(b"0\r\n\r\n") and b"close" not in w.head,
    "error_event": lambda w: objects(w.body)[-1]["error"]["message"] == "made to fail",
    "error_object": lambda w: objects(w.body)[-1]["object"] == "error",
    "error_named": lambda w: b"event: error\ndata: {" in w.body,
    "finish_abort": lambda w: b'"finish_reason":"abort"' in w.body,
    "truncated": lambda w: b"[DONE]" not in w.body and w.bytes.endswith(b"0\r\n\r\n"),
    "abrupt": lambda w: w.end == "eof" and not w.bytes.endswith(b"0\r\n\r\n"),
    "reset_middle": lambda w: w.end == "reset" and w.bytes.count(b"data: ") in {2, 3},
    "reset_before_done": lambda w: w.end == "reset",
    "reset_head": lambda w: w.end == "reset" and b"\r\n\r\n" not in w.bytes,
    "close_first": lambda w: (w.end, w.bytes) == ("eof", b""),
    "reset_first": lambda w: (w.end, w.bytes) == ("reset", b""),
    "stall": lambda w: w.end == "quiet" and w.bytes.count(b"data: ") == 3,
    "stall_first": lambda w: w.end == "quiet" and w.rest == b"",
    "stall_all": lambda w: (w.end, w.bytes) == ("quiet", b""),
    "short_body": lambda w: int(re.search(rb"Content-Length: (\d+)", w.head)[1]) > len(w.rest) and w.end == "eof",
    "bad_chunk": lambda w: b"\r\nzz\r\n" in w.bytes,
    "invalid_utf8": lambda w: b"\xff" in w.body,
    "empty_body": lambda w: w.rest == b"",
    "html": lambda w: b"text/html" in w.head and b"<html>" in w.rest,
    "http429": lambda w: w.bytes.startswith(b"HTTP/1.1 429 ") and b"Retry-After: 1\r\n" in w.head,
    "http503": lambda w: w.bytes.startswith(b"HTTP/1.1 503 ") and w.end == "eof",
}


@pytest.mark.parametrize("mode", ON_THE_WIRE)
def test_the_bytes_on_the_wire_are_what_the_mode_says(wire, mode):
    assert ON_THE_WIRE[mode](wire(mode)), wire(mode).bytes


@pytest.mark.parametrize(
    ("mode", "holds"),
    {
        "crlf": lambda w: w.body.count(b"}\r\n") == TOKENS + 1,
        "reasoning": lambda w: w.body.count(b'"thinking"') == TOKENS // 2,
        "no_usage": lambda w: b"eval_count" not in w.body,
        "truncated": lambda w: b'"done":true' not in w.body,
        "error_event": lambda w: objects(w.body)[-1] == {"error": "made to fail"},
        "no_final_blank": lambda w: w.body.endswith(b"}"),
        "blank_lines": lambda w: b"\n\n" in w.body,
        "after_done": lambda w: '"后"' in w.body.decode().splitlines()[-1],
    }.items(),
)
def test_ollamas_lines_too(wire, mode, holds):
    assert holds(wire(mode, "ollama_stream"))


def test_lmdeploy_ends_an_error_with_its_end_mark_as_the_real_one_does(wire):
    assert re.search(
        rb'data: \{"error":\{"object":"error",.*\}\n\ndata: \[DONE\]\n\n$', wire("error_event", "lmdeploy_stream").body
    )


def test_a_used_connection_is_reset_where_the_mode_says_so(server):
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port)) as connection:
        connection.settimeout(2)
        connection.sendall(request_to("classify", "x", "stale_reset"))
        first = connection.recv(65536)
        connection.sendall(request_to("classify", "y", "stale_reset"))
        with pytest.raises(ConnectionResetError):
            connection.recv(65536)

    assert first.startswith(b"HTTP/1.1 200")


def test_headers_come_before_the_body_of_the_request_where_the_mode_says_so(server):
    at = urlsplit(server.url)
    head, _, body = request_to("chat_stream", "x", "early_response").partition(b"\r\n\r\n")
    with socket.create_connection((at.hostname, at.port)) as connection:
        connection.settimeout(2)
        connection.sendall(head + b"\r\n\r\n")
        early = connection.recv(65536)
        connection.sendall(body)
        later = connection.recv(65536)

    assert early.startswith(b"HTTP/1.1 200")
    assert early.endswith(b"\r\n\r\n")
    assert b"data: " in later


@pytest.mark.parametrize("dialect", ["chat_stream", "completions_stream", "ollama_stream", "ollama_chat_stream"])
@pytest.mark.parametrize("mode", ["plain", "several", "reasoning", "no_usage", "uneven"])
def test_the_short_way_to_make_a_stream_gives_the_same_bytes(dialect, mode):
    """``redirected`` changes nothing but takes the long way, which reads every mode."""
    truth = Truth(tokens=10)

    def made(modes):
        said = answer_tokens("x", truth)
        answer = Answer(dialect, frozenset(modes), "x", said, truth, 1, "m", 5, 0.05, 0.14)
        return [(step.at, b"".join(step.parts), step.tokens, step.end) for step in steps_of(answer, 0.05, 0.01)]

    assert made({mode}) == made({mode, "redirected"})


def test_modes_are_found_in_the_path_the_query_a_header_the_model_and_the_default(server, truth_server):
    plain = request_to("lmdeploy_stream", "x")
    other = truth_server("ttft_ms=1", "tpot_ms=1", "tokens=4", "mode=nospace")
    ways = {
        "query": (server, plain.replace(b"/mode/plain/generate", b"/generate?mode=nospace")),
        "header": (server, plain.replace(b"/mode/plain", b"").replace(b"Host: x", b"X-Truth-Mode: nospace")),
        "model": (server, request_to("chat_stream", "x", model="nospace").replace(b"/mode/plain", b"")),
        "default": (other, plain.replace(b"/mode/plain", b"")),
        "path": (server, request_to("lmdeploy_stream", "x", "nospace")),
    }

    assert {name: b"data:{" in Wire(to.url, data).bytes for name, (to, data) in ways.items()} == dict.fromkeys(
        ways, True
    )
    unknown = Wire(server.url, request_to("chat_stream", "x", model="gpt").replace(b"/mode/plain", b""))
    assert unknown.bytes.startswith(b"HTTP/1.1 404 ")
    named = Wire(server.url, request_to("ollama_stream", "x", model="qwen3:0.6b").replace(b"/mode/plain", b""))
    assert named.bytes.startswith(b"HTTP/1.1 200 ")


def test_every_mode_and_combination_is_for_a_dialect_and_names_modes():
    assert all(mode.on for mode in MODES.values())
    assert all(part in MODES for name in COMBINATIONS for part in name.split("+"))
    assert all(on <= MODES[part].on for name, on in COMBINATIONS.items() for part in name.split("+"))


# Times.


def test_deadlines_count_from_the_arrival_and_nothing_is_written_early(server):
    before = ask(server.url + "/_truth/health")["requests"]
    sent = time.perf_counter()
    wire = Wire(server.url, request_to("chat_stream", "deadlines"))
    (entry,) = ask(f"{server.url}/_truth?since={before}")

    due = [at - entry["arrived"] for at in entry["due"]]
    assert due == pytest.approx([0.020 + 0.004 * token for token in range(TOKENS)], abs=1e-9)
    assert sent < entry["arrived"] < sent + 1
    assert all(at >= due for at, due in zip(entry["written"], entry["due"], strict=True))
    first = next(at for at, data in wire.reads if b"content" in data)
    assert first > entry["written"][0]


def test_the_server_says_how_late_it_was(truth_server):
    server = truth_server("ttft_ms=5", "tpot_ms=1", "tokens=50")
    for number in range(4):
        Wire(server.url, request_to("chat_stream", str(number)))

    late = [at - due for entry in server.log() for at, due in zip(entry["written"], entry["due"], strict=True)]
    health = ask(server.url + "/_truth/health")

    assert health["events"] == len(late) == 200
    # Bins of 20 us, rounded up.
    assert health["lateness_p50_s"] == pytest.approx(sorted(late)[99], abs=2.1e-5)
    assert health["lateness_p99_s"] == pytest.approx(sorted(late)[197], abs=2.1e-5)
    assert health["lateness_max_s"] == pytest.approx(max(late))


def together(url, requests):
    """Send all at once, wait for all to end."""
    at = urlsplit(url)
    connections = [socket.create_connection((at.hostname, at.port)) for _ in requests]
    for connection, data in zip(connections, requests, strict=True):
        connection.sendall(data)
    for connection in connections:
        received = b""
        while b"0\r\n\r\n" not in received and b'"needs_review"' not in received:
            received += connection.recv(65536)
        connection.close()


def test_slots_make_the_capacity_that_arithmetic_says(truth_server):
    """3 slots, 10 + 5 x 4 = 30 ms each: 12 requests take 4 rounds, and each starts when one before it ends."""
    server = truth_server("slots=3", "ttft_ms=10", "tpot_ms=4", "tokens=6")
    together(server.url, [request_to("chat_stream", str(number)) for number in range(12)])

    log = sorted(server.log(), key=lambda entry: entry["started"])
    started = [entry["started"] for entry in log]
    assert [entry["arrived"] for entry in log] == sorted(entry["arrived"] for entry in log)  # first come, first served
    assert all(entry["started"] == entry["arrived"] for entry in log[:3])
    for number in range(3, 12):
        assert started[number] == pytest.approx(started[number - 3] + 0.030, abs=1e-9)
    health = ask(server.url + "/_truth/health")
    assert health["peak_in_flight"] == 12
    assert health["in_flight"] == health["waiting"] == 0


def test_a_slot_comes_free_when_the_client_leaves(truth_server):
    server = truth_server("slots=1", "service_ms=1500")
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port)) as gone:
        gone.sendall(request_to("classify", "a"))
        time.sleep(0.1)
    together(server.url, [request_to("classify", "b")])

    left, served = server.log()
    assert left["outcome"] == "left"
    assert served["started"] < left["arrived"] + 1.0


def test_a_freeze_stops_all_work_for_as_long_as_it_lasts(truth_server):
    server = truth_server("service_ms=20", "freeze_at_s=0.1", "freeze_s=0.3")
    for number in range(8):
        together(server.url, [request_to("classify", str(number))])

    log = server.log()
    first = log[0]["arrived"]
    took = [entry["due"][0] - entry["arrived"] for entry in log]
    assert took[0] == pytest.approx(0.020, abs=1e-9)
    for entry, seconds in zip(log, took, strict=True):
        # Work of 20 ms that a freeze from 0.1 s to 0.4 s interrupts, or whose begin it delays.
        at = entry["arrived"] - first
        waits = 0.0 if at + 0.02 <= 0.1 or at >= 0.4 else 0.3 if at < 0.1 else 0.4 - at
        assert seconds == pytest.approx(0.02 + waits, abs=1e-6)
    assert max(took) > 0.3


def test_all_times_are_divided_by_the_speed(truth_server):
    server = truth_server("ttft_ms=40", "tpot_ms=10", "tokens=4", "speed_factor=2", "service_ms=60")
    Wire(server.url, request_to("chat_stream", "x"))
    Wire(server.url, request_to("classify", "x"))

    stream, classified = server.log()
    assert [at - stream["arrived"] for at in stream["due"]] == pytest.approx([0.020, 0.025, 0.030, 0.035])
    assert classified["due"][0] - classified["arrived"] == pytest.approx(0.030)


def test_noise_is_log_normal_drawn_for_each_request_and_the_same_for_the_same_seed(truth_server):
    logs = []
    for seed in (1, 1, 2):
        server = truth_server("service_ms=2", "jitter=0.5", f"seed={seed}")
        for number in range(10):
            together(server.url, [request_to("classify", f"{number}/{k}") for k in range(10)])
        logs.append([math.log((entry["due"][0] - entry["arrived"]) / 0.002) for entry in server.log()])

    assert logs[0] == pytest.approx(logs[1])
    assert logs[0] != pytest.approx(logs[2])
    assert statistics.mean(logs[0]) == pytest.approx(0, abs=0.2)  # four standard errors
    assert statistics.stdev(logs[0]) == pytest.approx(0.5, abs=0.15)


def test_a_planted_slowdown_makes_requests_slower_as_time_goes_by(truth_server):
    server = truth_server("service_ms=20", "slowdown_per_min=60")
    deadline = time.perf_counter() + 1.0
    while time.perf_counter() < deadline:
        together(server.url, [request_to("classify", "x")])

    log = server.log()
    for entry in log:
        minutes = (entry["started"] - log[0]["arrived"]) / 60
        assert entry["due"][0] - entry["started"] == pytest.approx(0.020 * (1 + 60 * minutes))
    assert log[-1]["due"][0] - log[-1]["started"] > 0.035


def test_a_planted_leak_is_real_memory(truth_server):
    clean, leaking = truth_server("service_ms=1"), truth_server("service_ms=1", "leak_mb_per_min=900")

    def resident(server):
        return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096

    before = {}
    for server in (clean, leaking):
        together(server.url, [request_to("classify", "x")])
        before[server] = resident(server)
    time.sleep(2.0)

    assert resident(leaking) - before[leaking] == pytest.approx(30e6, rel=0.4)
    assert resident(clean) - before[clean] < 1e6


# Texts and what is told.


def test_shares_are_chosen_by_the_text(truth_server):
    server = truth_server("service_ms=0", "tokens=10", "shorter_share=0.3", "wrong_text_share=0.2", "wrong_share=0.25")
    honest = truth_server("service_ms=0", "tokens=10")

    def answers(of, dialect, field):
        return [json.loads(Wire(of.url, request_to(dialect, f"{n} #a", "close")).rest)[field] for n in range(120)]

    texts, again, true = (
        answers(server, "inference", "result"),
        answers(server, "inference", "result"),
        answers(honest, "inference", "result"),
    )
    categories = answers(server, "classify", "category")

    assert texts == again
    shorter = [len(text) == 5 for text in texts]
    assert sum(shorter) / 120 == pytest.approx(0.3, abs=0.15)
    wrong = [not whole.startswith(text) and len(text) == 10 for text, whole in zip(texts, true, strict=True)]
    assert sum(wrong) / 120 == pytest.approx(0.2 * 0.7, abs=0.12)
    assert categories.count("not a") / 120 == pytest.approx(0.25, abs=0.15)


def test_the_log_is_told_by_pages_and_bounded(truth_server):
    server = truth_server("service_ms=0", "log_requests=5")
    for number in range(8):
        together(server.url, [request_to("classify", str(number))])

    assert [entry["number"] for entry in server.log()] == [3, 4, 5, 6, 7]
    assert [entry["number"] for entry in ask(server.url + "/_truth?since=5&limit=2")] == [5, 6]
    assert ask(server.url + "/_truth?since=8") == []
    health = ask(server.url + "/_truth/health")
    assert health["requests"] == 8
    assert health["connections_opened"] >= 8


def test_it_is_asked_for_its_state_as_other_servers_are(server):
    assert ask(server.url + "/ready") == {"status": "ready"}
    assert ask(server.url + "/health")["status"] == "ok"
    assert ask(server.url + "/v1/models")["data"][0]["id"] == "plain"
    assert ask(server.url + "/api/tags")["models"][0]["name"] == "plain"
    assert ask(server.url + "/_truth/modes")["stall"]["errors"] == ["timeout"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(server.url + "/nothing")
    with urllib.request.urlopen(server.url + "/metrics", timeout=5) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families["qwen3_inference_requests"].samples[0].value == ask(server.url + "/_truth/health")["requests"]


def test_what_is_not_http_or_not_a_request_harms_nobody(server):
    assert Wire(server.url, b"nonsense\r\n\r\n").end == "reset"
    answer = Wire(server.url, b"POST /generate HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]")
    assert answer.bytes.startswith(b"HTTP/1.1 400 ")
    assert ask(server.url + "/ready")["status"] == "ready"


@pytest.mark.parametrize(
    ("word", "said"), [("tokens=0", "tokens"), ("mode=nosuch", "nosuch"), ("nonsense", "key=value")]
)
def test_a_wrong_setting_ends_in_one_line(word, said):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.truth_server", word], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
