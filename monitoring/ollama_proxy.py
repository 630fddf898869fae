"""A recording proxy in front of a plain Ollama: what passes is left as it is, and is told about when it has ended.

Bytes go through as they come, both ways. A copy is read for what R1 and R13 ask: model, lengths, latencies, and the
figures that Ollama itself gives at the end of an answer. The client's ``Host`` and ``Origin`` go through too: Ollama
refuses those of strange web pages, and a proxy that put its own in their place would let them in.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
from pydantic_core import to_json

from monitoring.request_files import CORRUPT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

GENERATING = frozenset({"/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions"})
"""Paths whose calls are requests (R13); the others only have a line in ollama_metrics.jsonl."""

FIGURES = (
    "done_reason",
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)
"""What Ollama tells of an answer, in its own names; durations are nanoseconds."""

COPIED_BYTES = 8 << 20
"""Of a body that is read for its figures; a larger one passes unread."""

ERROR_CHARACTERS = 500
"""Of Ollama's own words, and of a model's name, that are kept."""

CLIENT_GONE = 499

_CONNECT_S = 5.0
# They concern one connection, and there are two (RFC 9110, 7.6.1).
_OF_ONE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Exchange:
    """One call and its answer."""

    path: str
    latency_s: float = 0.0
    status_code: int = 0
    """502: no Ollama answered; 499: the client left."""
    error: str | None = None
    model: str = ""
    prompt_length: int = 0
    """Characters."""
    response_length: int = 0
    first_token_s: float | None = None
    """Only of a stream."""
    figures: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    """What was generated, in pieces."""
    request_id: str | None = None
    trace_id: str | None = None

    def client_left(self) -> None:
        self.status_code, self.error = CLIENT_GONE, "client_gone"

    def metrics_row(self, mask: Callable[[str], str] | None) -> dict[str, Any]:
        """Its line in ``ollama_metrics.jsonl``, less the timestamp.

        Args:
            mask: Makes the text fit to be kept; None: it is not kept.
        """
        return {
            "response": None if mask is None or not self.text else mask("".join(self.text)),
            "latency_ms": round(1000 * self.latency_s, 3),
            "status_code": self.status_code,
            "endpoint": self.path,
            "model": self.model,
            "error": self.error,
            "prompt_length": self.prompt_length,
            "response_length": self.response_length,
            **self.figures,
        }

    def request_row(self) -> dict[str, Any] | None:
        """Its line in the requests of the day, less the timestamp; None where nothing was to be generated."""
        if self.path not in GENERATING or self.figures.get("done_reason") in {"load", "unload"}:
            return None
        asked, generated = (self.figures.get(name) for name in ("prompt_eval_count", "eval_count"))
        return {
            "model": self.model,
            "prompt_length": self.prompt_length,
            "response_length": self.response_length,
            "latency_ms": round(1000 * self.latency_s, 3),
            "status": "success" if self.error is None else "error",
            "error": self.error,
            "status_code": self.status_code,
            "endpoint": self.path,
            "first_token_ms": None if self.first_token_s is None else round(1000 * self.first_token_s, 3),
            # Ollama leaves out the prompt's count where all of it was in its cache.
            "tokens_used": None if generated is None else (asked or 0) + generated,
            "generated_tokens": generated,
            "request_id": self.request_id,
            "trace_id": self.trace_id,
        }


def recording_proxy(
    url: str, on_exchange: Callable[[Exchange], object], transport: httpx2.AsyncBaseTransport | None = None
) -> ASGIApp:
    """An ASGI application that passes everything on to the Ollama at ``url``.

    Args:
        on_exchange: Called when an answer has ended, however it did.
        transport: In place of the network.
    """
    upstream = httpx2.URL(url)
    client = httpx2.AsyncClient(
        # A model may compute for long before it says a word, and Ollama queues by itself.
        timeout=httpx2.Timeout(None, connect=_CONNECT_S),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
        transport=transport,
        trust_env=False,
    )

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            await client.aclose()
            return
        began = time.monotonic()
        exchange = _exchange(scope)
        call = _Call(exchange, began, receive, send)
        relay = asyncio.create_task(call.relay(client, _request(scope, upstream, call)))
        left = asyncio.create_task(call.client_left())
        try:
            await asyncio.wait({relay, left}, return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                await relay
            else:
                exchange.client_left()
        except _ClientLeftError:
            exchange.client_left()
        except asyncio.CancelledError:
            exchange.error = "the proxy was stopped"
            raise
        finally:
            relay.cancel()
            left.cancel()
            await asyncio.gather(relay, left, return_exceptions=True)
            call.read()
            exchange.latency_s = time.monotonic() - began
            on_exchange(exchange)

    return proxy


async def _live(receive: Receive, send: Send) -> None:
    """The life of an ASGI application that has nothing to prepare; returns when it ends."""
    for moment in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


class _ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def _exchange(scope: Scope) -> Exchange:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    given, traced = headers.get(b"x-request-id", ""), _TRACEPARENT.fullmatch(headers.get(b"traceparent", ""))
    return Exchange(
        path=scope["path"],
        request_id=given if _REQUEST_ID.fullmatch(given) else None,
        trace_id=traced[1] if traced else None,
    )


def _request(scope: Scope, upstream: httpx2.URL, call: _Call) -> httpx2.Request:
    path = upstream.raw_path.rstrip(b"/") + scope.get("raw_path", scope["path"].encode())
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    headers = [(name, value) for name, value in scope["headers"] if name not in _OF_ONE_CONNECTION]
    has_body = {b"content-length", b"transfer-encoding"} & {name for name, _ in scope["headers"]}
    return httpx2.Request(
        scope["method"],
        upstream.copy_with(raw_path=path + query),
        headers=headers,
        content=call.body() if has_body else None,
    )


class _Call:
    """One call under way, and the copies that are made of it."""

    def __init__(self, exchange: Exchange, began: float, receive: Receive, send: Send) -> None:
        self._exchange, self._began, self._receive, self._send = exchange, began, receive, send
        self._asked: bytearray | None = bytearray() if exchange.path in GENERATING else None
        self._answer = _Answer(exchange, began) if exchange.path in GENERATING else None
        self._sent = asyncio.Event()

    async def body(self) -> AsyncIterator[bytes]:
        """The client's body; None of the copy stays where it is too large."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if self._asked is not None:
                self._asked += chunk
                if len(self._asked) > COPIED_BYTES:
                    self._asked = None
            if chunk:
                yield chunk
        self._sent.set()

    async def client_left(self) -> None:
        """Return when the client has closed its connection."""
        await self._sent.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def relay(self, client: httpx2.AsyncClient, request: httpx2.Request) -> None:
        if request.headers.get("content-length") is None and "transfer-encoding" not in request.headers:
            self._sent.set()
        exchange = self._exchange
        try:
            response = await client.send(request, stream=True)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            if self._asked is not None and not self._sent.is_set():
                async for _ in self.body():  # what was asked is told all the same
                    pass
            await self._refuse(f"no Ollama answers at {request.url.copy_with(raw_path=b'/')} ({_reason(error)})")
            return
        exchange.status_code = response.status_code
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_ONE_CONNECTION]
        try:
            await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in response.aiter_raw():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
                if self._answer is not None:
                    self._answer.feed(chunk)
        except httpx2.TransportError as error:
            # Not ended in order: the client must not take it for whole.
            exchange.error = f"the answer broke off ({_reason(error)})"
            return
        finally:
            await response.aclose()
        await self._send({"type": "http.response.body", "body": b""})

    def read(self) -> None:
        """Take from the copies what is to be told."""
        if self._asked:
            _read_request(self._exchange, _document(bytes(self._asked)))
        if self._answer is not None:
            self._answer.end()
        if self._exchange.status_code >= 400 and self._exchange.error is None:
            self._exchange.error = f"HTTP {self._exchange.status_code}"

    async def _refuse(self, reason: str) -> None:
        self._exchange.status_code, self._exchange.error = 502, reason[:ERROR_CHARACTERS]
        body = to_json({"error": reason})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": 502, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _Answer:
    """Reads a copy of an answer: one JSON document, lines of JSON, or server-sent events with JSON."""

    def __init__(self, exchange: Exchange, began: float) -> None:
        self._exchange, self._began = exchange, began
        self._rest = b""
        self._read = 0

    def feed(self, chunk: bytes) -> None:
        self._read += len(chunk)
        if self._read > COPIED_BYTES:
            self._rest = b""
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line, streamed=True)

    def end(self) -> None:
        self._take(self._rest, streamed=False)

    def _take(self, line: bytes, *, streamed: bool) -> None:
        document = _document(line.removeprefix(b"data:"))
        if not document:
            return
        exchange = self._exchange
        error = document.get("error")
        if error:
            said = error.get("message", error) if isinstance(error, dict) else error
            exchange.error = str(said)[:ERROR_CHARACTERS]
        text = _generated(document)
        if text:
            if streamed and exchange.first_token_s is None:
                exchange.first_token_s = time.monotonic() - self._began
            exchange.response_length += len(text)
            exchange.text.append(text)
        exchange.figures |= {name: document[name] for name in FIGURES if _is_figure(document.get(name))}
        usage = document.get("usage")
        if isinstance(usage, dict):  # OpenAI's names for the same counts
            counts = {"prompt_eval_count": usage.get("prompt_tokens"), "eval_count": usage.get("completion_tokens")}
            exchange.figures |= {name: count for name, count in counts.items() if _is_figure(count)}


def _is_figure(value: object) -> bool:
    return isinstance(value, str) or (type(value) is int and value >= 0)


def _read_request(exchange: Exchange, asked: Mapping[str, Any]) -> None:
    exchange.model = str(asked.get("model") or "")[:ERROR_CHARACTERS]
    parts = [asked.get(name) for name in ("prompt", "system", "suffix")]
    messages = asked.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts += (
            [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
        )
    exchange.prompt_length = sum(len(part) for part in parts if isinstance(part, str))


def _generated(document: Mapping[str, Any]) -> str:
    """The text in one document of an answer, whichever of the four paths it is of; thoughts are text too."""
    choices = document.get("choices")
    piece: Any = choices[0] if isinstance(choices, list) and choices else document
    if not isinstance(piece, dict):
        return ""
    turn = piece.get("message") or piece.get("delta")
    found = [piece.get("response"), piece.get("thinking"), piece.get("text")]
    if isinstance(turn, dict):
        found += [turn.get("thinking"), turn.get("reasoning"), turn.get("content")]
    return "".join(part for part in found if isinstance(part, str))


def _document(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``; {} where there is none."""
    try:
        found = msgspec.json.decode(text)
    except (*CORRUPT, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
