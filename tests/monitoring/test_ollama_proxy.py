"""The recording proxy: what passes is untouched, what is told is right. Against a fake, which is checked against a real
Ollama, and against that itself.
"""

from __future__ import annotations

import asyncio
import json

import httpx2
import openai
import pytest

from monitoring import ollama_proxy
from monitoring.ollama_proxy import FIGURES, GENERATING, recording_proxy
from monitoring.request_files import RequestLine, request_line

LAST = {
    "model": "tiny",
    "created_at": "2026-11-26T09:57:06Z",
    "done": True,
    "done_reason": "length",
    "total_duration": 628211518,
    "load_duration": 259389571,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 46092718,
    "eval_count": 2,
    "eval_duration": 322226285,
}
PIECE = {"model": "tiny", "created_at": "2026-11-26T09:57:06Z", "done": False}
MISSING = {"error": "model 'missing' not found"}


def ndjson(*documents):
    return [json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents]


class FakeOllama:
    """An ASGI application that answers as Ollama 0.11.4 does, a piece each ``pause_s``.

    Attributes:
        seen: Method, path, query, headers and body of each call.
        cut: Breaks streams off after the first piece.
        left: Calls whose client left.
    """

    def __init__(self, pause_s=0.0):
        self.pause_s, self.cut = pause_s, False
        self.seen, self.left = [], 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for moment in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{moment}.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        self.seen.append((scope["method"], scope["path"], scope["query_string"], dict(scope["headers"]), body))
        status, kind, pieces = self._answer(scope["path"], json.loads(body) if body else {})
        headers = [(b"content-type", kind), (b"x-of-ollama", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        gone = asyncio.create_task(receive())
        for number, piece in enumerate(pieces):
            if self.cut and number:
                gone.cancel()
                return
            if gone.done():
                self.left += 1
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(self.pause_s)
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    def _answer(self, path, asked):
        plain, lines, events = b"application/json; charset=utf-8", b"application/x-ndjson", b"text/event-stream"
        if asked.get("model") == "missing":
            return 404, plain, [json.dumps(MISSING).encode()]
        if asked.get("model") == "broken":
            return 200, lines, ndjson(PIECE | {"response": "你"}, {"error": "llama runner process has terminated"})
        match path:
            case "/api/generate" if "prompt" not in asked:
                return 200, plain, [json.dumps(PIECE | {"response": "", "done": True, "done_reason": "load"}).encode()]
            case "/api/generate" if asked.get("stream") is False:
                return 200, plain, [json.dumps(LAST | {"response": "你好"}, ensure_ascii=False).encode()]
            case "/api/generate":
                pieces = (PIECE | {"response": text} for text in "你好")
                return 200, lines, ndjson(*pieces, LAST | {"response": ""})
            case "/api/chat":
                pieces = (PIECE | {"message": {"role": "assistant", "content": text}} for text in "你好")
                return 200, lines, ndjson(*pieces, LAST | {"message": {"role": "assistant", "content": ""}})
            case "/v1/chat/completions":
                deltas = [{"choices": [{"delta": {"role": "assistant", "content": text}}]} for text in "你好"]
                usage = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}}
                documents = [*deltas, usage]
                sent = [b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in documents]
                return 200, events, [*sent, b"data: [DONE]\n\n"]
            case "/api/tags":
                return 200, plain, [json.dumps({"models": [{"name": "tiny:latest", "model": "tiny:latest"}]}).encode()]
        return 200, plain, [b"Ollama is running"]


@pytest.fixture
def told():
    """The exchanges of the proxy."""
    return []


@pytest.fixture
async def passing(listen, told):
    """Starts a fake behind a proxy: the fake, and a client of the proxy."""
    clients = []

    async def start(fake=None):
        fake = fake or FakeOllama()
        client = httpx2.AsyncClient(base_url=await listen(recording_proxy(await listen(fake), told.append)), timeout=30)
        clients.append(client)
        return fake, client

    yield start
    for client in clients:
        await client.aclose()


def line_of(exchange):
    """Its line, as it will be read."""
    row = exchange.request_row()
    assert row.keys() < RequestLine.model_fields.keys(), "nothing is written that nobody reads"
    return request_line(json.dumps({"timestamp": "2026-11-26T12:00:00+08:00"} | row).encode())


async def settled(told, count=1):
    """An answer has ended for its client a moment before it has for the proxy."""
    for _ in range(500):
        if len(told) == count:
            return told[-1]
        await asyncio.sleep(0.01)
    raise TimeoutError(told)


# What passes -----------------------------------------------------------------------------------------------------


async def test_a_stream_passes_byte_by_byte_and_piece_by_piece(passing, told):
    fake, client = await passing(FakeOllama(pause_s=0.2))
    body = {"model": "tiny", "prompt": "请问", "system": "简短"}
    pieces = []
    async with client.stream("POST", "/api/generate?x=%20y", json=body, headers={"x-request-id": "r-1"}) as answer:
        async for piece in answer.aiter_raw():
            pieces.append((asyncio.get_running_loop().time(), piece))

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-of-ollama"] == "1"
    assert [piece for _, piece in pieces] == ndjson(
        PIECE | {"response": "你"}, PIECE | {"response": "好"}, LAST | {"response": ""}
    )
    assert pieces[-1][0] - pieces[0][0] > 0.3, "they came as they were made"
    [(method, path, query, headers, sent)] = fake.seen
    assert (method, path, query) == ("POST", "/api/generate", b"x=%20y")
    assert json.loads(sent) == body
    assert headers[b"content-length"] == str(len(sent)).encode()

    line = line_of(await settled(told))
    assert (line.model, line.prompt_length, line.response_length) == ("tiny", 4, 2)
    assert (line.status, line.error, line.status_code, line.endpoint) == ("success", None, 200, "/api/generate")
    assert (line.tokens_used, line.generated_tokens, line.request_id) == (14, 2, "r-1")
    assert line.first_token_ms + 300 < line.latency_ms


async def test_every_method_path_and_header_passes(passing, told):
    fake, client = await passing()
    fake_url_header = {"host": "evil.example", "origin": "https://evil.example", "connection": "x"}
    answers = [
        await client.head("/"),
        await client.delete("/api/delete", headers=fake_url_header),
        await client.post("/api/blobs/sha256:1", content=None),
        await client.get("/a/%2e%2e/b%2Fc"),
    ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert [call[0] for call in fake.seen] == ["HEAD", "DELETE", "POST", "GET"]
    assert fake.seen[1][3][b"host"] == b"evil.example", "whose page it is is for Ollama to judge"
    assert fake.seen[1][3][b"origin"] == b"https://evil.example"
    assert fake.seen[3][1] == "/a/../b/c"
    assert b"user-agent" in fake.seen[0][3]
    await settled(told, 4)
    assert {exchange.request_row() is None for exchange in told} == {True}


async def test_a_large_upload_passes_and_is_not_kept(passing, told, monkeypatch):
    monkeypatch.setattr(ollama_proxy, "COPIED_BYTES", 1000)
    fake, client = await passing()
    body = json.dumps({"model": "tiny", "prompt": "x" * 5000, "stream": False}).encode()

    async def parts():
        for start in range(0, len(body), 700):
            yield body[start : start + 700]

    answer = await client.post("/api/generate", content=parts())

    assert answer.json()["response"] == "你好"
    assert fake.seen[0][4] == body
    assert (await settled(told)).prompt_length == 0, "too large to be read"


# What is told ----------------------------------------------------------------------------------------------------

TALK = [{"role": "system", "content": "简短"}, {"role": "user", "content": [{"type": "text", "text": "你好吗"}]}]


@pytest.mark.parametrize(
    ("path", "asked", "lengths"),
    [
        ("/api/generate", {"prompt": "请问", "stream": False}, (2, 2)),
        ("/api/chat", {"messages": TALK[:1]}, (2, 2)),
        ("/v1/chat/completions", {"messages": TALK, "stream": True}, (5, 2)),
    ],
)
async def test_all_ways_to_ask_are_understood(passing, told, path, asked, lengths):
    _, client = await passing()
    await client.post(path, json={"model": "tiny", **asked})
    line = line_of(await settled(told))

    assert (line.prompt_length, line.response_length) == lengths
    assert (line.tokens_used, line.generated_tokens, line.model) == (14, 2, "tiny")
    assert (line.first_token_ms is None) == (asked.get("stream") is False)


@pytest.mark.parametrize(
    ("model", "status", "error"),
    [("missing", 404, MISSING["error"]), ("broken", 200, "llama runner process has terminated")],
)
async def test_what_ollama_says_went_wrong_is_an_error_in_its_words(passing, told, model, status, error):
    _, client = await passing()
    answer = await client.post("/api/generate", json={"model": model, "prompt": "你"})
    line = line_of(await settled(told))

    assert answer.status_code == status
    assert error in answer.text
    assert (line.status, line.error, line.status_code) == ("error", error, status)


async def test_the_metrics_line_is_r1s_with_ollamas_figures_and_without_text(passing, told):
    _, client = await passing()
    await client.post("/api/generate", json={"model": "tiny", "prompt": "请问"})
    row = (await settled(told)).metrics_row(None)

    assert {"response", "latency_ms", "status_code"} <= row.keys()
    assert (row["response"], row["status_code"], row["endpoint"]) == (None, 200, "/api/generate")
    assert {name: row[name] for name in FIGURES} == {name: LAST[name] for name in FIGURES}
    assert "你" not in json.dumps(row, ensure_ascii=False)
    assert told[0].metrics_row(lambda text: f"<{text}>")["response"] == "<你好>"


async def test_loading_a_model_is_no_request(passing, told):
    _, client = await passing()
    await client.post("/api/generate", json={"model": "tiny"})
    exchange = await settled(told)

    assert exchange.request_row() is None
    assert exchange.metrics_row(None)["done_reason"] == "load"


STRANGE = {"model": 5, "prompt": ["x"], "messages": [5, {"content": [5, {"text": 5}]}]}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", json.dumps(STRANGE).encode(), b"[" * 100_000])
async def test_what_is_no_request_passes_and_is_told_as_what_it_is(listen, told, body):
    async def echo(scope, receive, send):
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send(
            {"type": "http.response.body", "body": b'{"choices": [5], "message": 5, "usage": 5, "error": {"a": 1}}'}
        )

    url = await listen(recording_proxy(await listen(echo, lifespan=False), told.append))
    async with httpx2.AsyncClient() as client:
        assert (await client.post(f"{url}/api/chat", content=body)).status_code == 400

    line = line_of(await settled(told))
    assert (line.status, line.status_code, line.prompt_length) == ("error", 400, 0)


# Who leaves, and who is not there --------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_the_computation_and_is_told(passing, told):
    fake, client = await passing(FakeOllama(pause_s=0.3))
    async with client.stream("POST", "/api/generate", json={"model": "tiny", "prompt": "请问"}) as answer:
        await anext(answer.aiter_raw())
    line = line_of(await settled(told))

    assert (line.status, line.status_code, line.error, line.response_length) == ("error", 499, "client_gone", 1)
    for _ in range(100):
        if fake.left:
            break
        await asyncio.sleep(0.01)
    assert fake.left == 1, "Ollama computes on for nobody"


async def test_a_client_that_leaves_before_its_request_is_whole_is_told(passing, told):
    _, client = await passing()
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()

    assert (await settled(told)).status_code == 499
    assert reader is not None


async def test_a_stream_that_breaks_off_breaks_off_for_the_client_too(passing, told):
    fake, client = await passing()
    fake.cut = True
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.post("/api/generate", json={"model": "tiny", "prompt": "请问"})
    line = line_of(await settled(told))

    assert line.status == "error"
    assert line.error.startswith("the answer broke off")
    assert line.response_length == 1


async def test_an_ollama_that_is_not_there_is_said_in_its_own_shape(listen, told, free_port):
    url = await listen(recording_proxy(f"http://127.0.0.1:{free_port}", told.append))
    async with httpx2.AsyncClient() as client:
        answer = await client.post(f"{url}/api/generate", json={"model": "m", "prompt": "p"})
    line = line_of(await settled(told))

    assert answer.status_code == 502
    assert f"no Ollama answers at http://127.0.0.1:{free_port}/" in answer.json()["error"]
    assert (line.status, line.status_code, line.model, line.prompt_length) == ("error", 502, "m", 1)


async def test_twenty_clients_at_once_are_told_apart(passing, told):
    _, client = await passing(FakeOllama(pause_s=0.01))
    bodies = [{"model": f"m{number}", "prompt": "x" * number} for number in range(20)]
    await asyncio.gather(*(client.post("/api/generate", json=body) for body in bodies))
    await settled(told, 20)

    assert {(exchange.model, exchange.prompt_length) for exchange in told} == {(f"m{n}", n) for n in range(20)}


# A real Ollama ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def recorded(ollama, listen, told):
    """A client of a proxy in front of the real one."""
    async with httpx2.AsyncClient(
        base_url=await listen(recording_proxy(ollama.url, told.append)), timeout=120
    ) as client:
        yield client


@pytest.mark.ollama
async def test_the_fake_speaks_like_the_real_one(ollama, listen):
    """The same calls to both: status, kind of content, keys and their types."""
    fake = await listen(FakeOllama())
    options = {"options": {"num_predict": 2, "temperature": 0}}
    calls = [
        ("/api/generate", {"prompt": "hello", **options}),
        ("/api/generate", {"prompt": "hello", "stream": False, **options}),
        ("/api/generate", {}),
        ("/api/chat", {"messages": [{"role": "user", "content": "hello"}], **options}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 2}
            | {"stream_options": {"include_usage": True}},
        ),
    ]
    async with httpx2.AsyncClient(timeout=120) as client:
        for path, body in [*calls, ("/api/generate", {"model": "missing", "prompt": "x"})]:
            asked = {"model": "tiny"} | body
            real, made = [await client.post(url + path, json=asked) for url in (ollama.url, fake)]
            assert (real.status_code, real.headers["content-type"]) == (made.status_code, made.headers["content-type"])
            ends = [_documents(answer.text) for answer in (real, made)]
            for theirs, ours in ((ends[0][0], ends[1][0]), (ends[0][-1], ends[1][-1])):
                types = {key: type(value) for key, value in theirs.items()}
                assert {key: types.get(key) for key in ours} == {key: type(value) for key, value in ours.items()}
        tags = (await client.get(f"{ollama.url}/api/tags")).json()
        assert tags["models"][0]["name"] == "tiny:latest"
    assert {path for path, _ in calls} < GENERATING


def _documents(text):
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.strip() and "[DONE]" not in line]
    return [json.loads(line) for line in lines]


@pytest.mark.ollama
async def test_a_real_stream_is_told_with_ollamas_own_figures(recorded, told):
    body = {"model": "tiny", "prompt": "hello", "options": {"num_predict": 24, "temperature": 0}}
    lines = [json.loads(line) for line in (await recorded.post("/api/generate", json=body)).text.splitlines()]
    exchange = await settled(told)
    line, row = line_of(exchange), exchange.metrics_row(None)

    last = lines[-1]
    assert {name: row[name] for name in FIGURES} == {name: last[name] for name in FIGURES}
    assert line.response_length == len("".join(one["response"] for one in lines)) > 0
    assert (line.generated_tokens, line.prompt_length, line.status) == (last["eval_count"], 5, "success")
    assert line.latency_ms >= last["total_duration"] / 1e6 * 0.99
    assert 0 < line.first_token_ms < line.latency_ms


@pytest.mark.ollama
async def test_ollamas_own_client_and_openais_work_through_it(ollama, recorded, told):
    url = str(recorded.base_url).rstrip("/")
    listed = await asyncio.to_thread(ollama.command, "list", host=url)
    said = await asyncio.to_thread(ollama.command, "run", "tiny", "hello", host=url)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}], stream=True, max_tokens=8
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert "tiny:latest" in listed
    assert {exchange.path for exchange in told} >= {"/", "/api/tags", "/api/show", "/api/generate"}
    of_run = next(exchange for exchange in told if exchange.path == "/api/generate" and exchange.response_length)
    assert of_run.model == "tiny"
    assert said
    for _ in range(100):
        if told[-1].path == "/v1/chat/completions":
            break
        await asyncio.sleep(0.01)
    [of_openai] = [exchange for exchange in told if exchange.path == "/v1/chat/completions"]
    assert of_openai.response_length == len(text)
    assert all(line_of(exchange).status == "success" for exchange in told if exchange.request_row())


@pytest.mark.ollama
async def test_ollamas_guard_against_strange_web_pages_still_guards(recorded):
    body = {"model": "tiny", "prompt": "hello"}
    rebound = await recorded.post("/api/generate", json=body, headers={"host": "evil.example:11435"})
    foreign = await recorded.post("/api/generate", json=body, headers={"origin": "https://evil.example"})

    assert (rebound.status_code, foreign.status_code) == (403, 403)


@pytest.mark.ollama
async def test_leaving_stops_the_real_ones_computation(recorded, told):
    body = {"model": "tiny", "prompt": "hello", "options": {"num_predict": 4000, "repeat_penalty": 2.0}}
    async with recorded.stream("POST", "/api/generate", json=body) as answer:
        await anext(answer.aiter_raw())
    assert (await settled(told)).status_code == 499

    short = {"model": "tiny", "prompt": "hello", "options": {"num_predict": 1}}
    assert (await asyncio.wait_for(recorded.post("/api/generate", json=short), 20)).status_code == 200
