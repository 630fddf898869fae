"""Everything a client can do wrong, over real sockets; after each, the service answers as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import fake_engine
import pytest

from model_server import listener

GENERATE = ["/api/v1/inference", "/v1/chat/completions", "/v1/completions"]
BODIES = {
    "/api/v1/inference": {"text": "你好", "max_tokens": 2},
    "/api/v1/classify": {"text": "宽带断了"},
    "/v1/chat/completions": {
        "model": "qwen3-test",
        "messages": [{"role": "user", "content": "你好"}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": "qwen3-test", "prompt": "你好", "max_tokens": 2},
}


@pytest.fixture
async def served(serve):
    """Unharmed at the end: it answers, nothing runs, nothing waits, nobody is counted as connected."""
    served = await serve(max_body_bytes=65536, request_timeout_s=2)
    yield served
    for path, body in BODIES.items():
        assert (await served.ask(path, body)).status_code == 200, path
    health = (await served.ask("/health")).json()
    assert (health["status"], health["running"], health["waiting"]) == ("ready", 0, 0)
    assert served.engine.generating == 0
    assert served.metric("qwen3_active_connections") == 0
    assert served.service.live == set()


async def post(served, path, data, **headers):
    return await served.client.post(path, content=data, headers=headers)


def refused(answer, status=400, code="invalid_request"):
    """The error object, which says no more than it should."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == code
    assert len(error["message"]) < 600
    return error


NOT_JSON = [
    b"",
    b"{",
    b"hello",
    b"null",
    b"[]",
    b'"text"',
    b"123",
    b'{"text": "\xff\xfe"}',
    b"\x80",
    '{"text": "你好"}'.encode("utf-16"),
    b'{"text": "\\ud800"}',
    b'{"text": "\\udc00\\ud800"}',
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b'{"text": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b"\x00" * 1000,
]


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_the_json_that_is_wanted(served, path):
    for data in NOT_JSON:
        error = refused(await post(served, path, data))
        assert error["type"] == "invalid_request_error", data[:16]


@pytest.mark.parametrize("path", GENERATE)
async def test_max_tokens_that_are_no_number_of_tokens(served, path):
    for value in ["-1", "0", "1.5", '"5"', "true", "[]", "NaN", "Infinity", "1e400"]:
        data = json.dumps(BODIES[path] | {"max_tokens": "X"}).replace('"X"', value)
        assert "max_tokens" in refused(await post(served, path, data.encode()))["message"]
    data = json.dumps(BODIES[path] | {"max_tokens": 10**23})
    refused(await post(served, path, data.encode()), code="context_length_exceeded")


@pytest.mark.parametrize("path", GENERATE)
async def test_temperatures_that_are_none(served, path):
    for value in ["NaN", "-Infinity", "-0.1", "2.1", '"hot"', "1e999"]:
        data = json.dumps(BODIES[path] | {"temperature": "X"}).replace('"X"', value)
        assert "temperature" in refused(await post(served, path, data.encode()))["message"]


CHAT = {"model": "qwen3-test", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("/api/v1/inference", [{"text": ""}, {"text": None}, {}, {"text": "a", "unknown": 1}]),
        (
            "/api/v1/classify",
            [
                {},
                {"text": ""},
                {"texts": []},
                {"texts": ["a", ""]},
                {"texts": ["a"] * 257},
                {"text": "a", "texts": ["a"]},
            ],
        ),
        (
            "/v1/chat/completions",
            [
                CHAT | {"messages": []},
                CHAT | {"messages": [{"role": "king", "content": "a"}]},
                CHAT | {"messages": [{"role": "user", "content": ""}]},
                CHAT | {"stop": ["a", "b", "c", "d", "e"]},
                CHAT | {"seed": 2**63},
            ],
        ),
        (
            "/v1/completions",
            [{"model": "qwen3-test", "prompt": prompt} for prompt in ("", [], ["a", "b"], [1, 2, 3], None)],
        ),
    ],
)
async def test_fields_that_are_missing_empty_or_wrong(served, path, bodies):
    for body in bodies:
        refused(await served.ask(path, body))
    assert served.engine.prompts == []


async def test_errors_do_not_repeat_what_the_client_wrote(served):
    body = b'{"text": ["my secret"], "max_tokens": "my secret"}'

    assert "secret" not in refused(await post(served, "/api/v1/inference", body))["message"]


@pytest.mark.parametrize("path", GENERATE)
async def test_a_text_beyond_the_context(served, path):
    long = "长" * 5000
    body = BODIES[path] | (
        {"messages": [{"role": "user", "content": long}]}
        if "chat" in path
        else {"text" if path == "/api/v1/inference" else "prompt": long}
    )

    error = refused(await served.ask(path, body), code="context_length_exceeded")

    assert "5000" in error["message"]
    assert "4096" in error["message"]


async def test_a_call_beyond_the_context_is_cut_and_classified(served):
    assert (await served.ask("/api/v1/classify", {"text": "断了" * 9000})).status_code == 200


@pytest.mark.parametrize("path", BODIES)
async def test_ten_megabytes_with_their_length_said(served, path):
    refused(await post(served, path, b"x" * 10_000_000), 413, "payload_too_large")


async def test_a_large_body_is_refused_before_it_is_sent(served):
    reader, writer = await served.send(
        b"POST /api/v1/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\nexpect: 100-continue\r\n\r\n"
    )

    assert b" 413 " in await reader.readline()
    writer.close()


async def test_ten_megabytes_in_pieces_of_unknown_number(served):
    async def pieces():
        for _ in range(100):
            yield b"x" * 100_000

    refused(await served.client.post("/api/v1/inference", content=pieces()), 413, "payload_too_large")


async def test_what_is_not_http(served):
    inference = b"POST /api/v1/inference HTTP/1.1\r\nhost: x\r\n"
    for head in [
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        inference + b"content-length: -5\r\n\r\n",
        inference + b"content-length: many\r\n\r\n",
        inference + b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
    ]:
        reader, writer = await served.send(head)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        if answer:  # a head that is cut short is not answered
            assert b" 400 " in answer.split(b"\r\n")[0], head
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
        writer.close()


async def test_paths_that_are_not_there(served):
    for path in ("/v1/models/%ff%00", "/%2e%2e/%2e%2e/etc/passwd", "/api/v1/classify%00", "/" + "a" * 5000):
        answer = await served.client.get(path)
        assert answer.status_code == 404
        assert "error" in answer.json()


async def test_a_body_of_one_byte_at_a_time_is_given_up(served):
    """The client gets an answer when request_timeout_s (here 2 s) is over, not when it has finished."""
    reader, writer = await served.send(b"POST /api/v1/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")

    async def trickle():
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.1)

    task = asyncio.create_task(trickle())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    task.cancel()

    assert b" 400 " in answer
    writer.close()


async def test_a_head_of_one_byte_at_a_time_is_given_up(served, monkeypatch):
    monkeypatch.setattr(listener, "HEAD_S", 0.5)
    reader, writer = await served.send(b"P")

    async def trickle():
        for byte in b"OST /api/v1/inference HTTP/1.1\r\nhost: " + b"x" * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(trickle())
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    task.cancel()
    writer.close()


async def test_500_idle_connections_are_served_beside_and_then_closed(served, monkeypatch, until):
    monkeypatch.setattr(listener, "HEAD_S", 1.0)
    idle = []
    for _ in range(500):
        sock = socket.create_connection(("127.0.0.1", served.port))
        sock.setblocking(False)
        idle.append(sock)
        if len(idle) % 50 == 0:
            await asyncio.sleep(0)

    answer = await served.ask("/api/v1/inference", {"text": "你好", "max_tokens": 2})

    assert answer.status_code == 200

    def all_closed():
        for sock in list(idle):
            try:
                assert sock.recv(1) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                pass
            sock.close()
            idle.remove(sock)
        return True

    await until(all_closed, 10)


async def test_a_client_that_leaves_in_the_middle_of_its_body(served, until):
    _, writer = await served.send(
        b'POST /api/v1/inference HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"text": '
    )
    await until(lambda: served.metric("qwen3_active_connections") == 1)
    writer.close()
    await until(lambda: served.metric("qwen3_cancelled_total", reason="client_gone") == 1)


async def test_a_client_that_leaves_in_the_middle_of_a_classification(served, until):
    served.engine.score_s = 0.3
    body = json.dumps(BODIES["/api/v1/classify"]).encode()
    _, writer = await served.send(
        b"POST /api/v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    await until(lambda: served.engine.batches)
    writer.close()
    await until(lambda: served.metric("qwen3_cancelled_total", reason="client_gone") == 1)
    await until(lambda: served.service.health().running == 0)
    served.engine.score_s = 0.0


async def test_a_client_that_stops_reading_is_let_go(served, until):
    """12 MB do not fit the buffers between us, so the server's write waits, until the time limit of 2 s."""
    served.engine.context_tokens = 10**6
    served.service.info = await served.engine.load()
    body = json.dumps(BODIES["/v1/chat/completions"] | {"max_tokens": 50_000, "stream": True, "logprobs": True})
    _, writer = await served.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body.encode()
    )
    await until(lambda: served.metric("qwen3_active_connections") == 1)
    await until(lambda: served.metric("qwen3_active_connections") == 0, 15)

    assert served.metric("qwen3_cancelled_total", reason="timeout") == 1
    writer.transport.abort()


async def test_requests_in_one_packet_are_answered_in_order(served):
    body = json.dumps({"text": "你好", "max_tokens": 2}).encode()
    one = b"POST /api/v1/inference HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    reader, writer = await served.send(one * 5 + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    answer = await asyncio.wait_for(reader.read(), 10)

    assert answer.count(b" 200 OK") == 6
    assert answer.count(fake_engine.ANSWER[:2].encode()) == 5
    writer.close()
