"""A server whose every token time is known: ``python -m benchmarks.truth_server [port=0] [ttft_ms=50] ...``.

The client is checked against it. It speaks /v1/chat/completions, /api/v1/classify, /api/v1/inference, GET
/v1/models and GET /ready; the first line of its output is {"url": ...}. The ``model`` of a chat request names the
modes of its answer, joined by ``+``, for example ``role_first+nospace``. GET /_truth tells when each request
arrived and when each event was really written (perf_counter seconds: the clock of the client on the same machine),
so that a late timer of this server is not mistaken for an error of the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any

import yaml
from pydantic import Field

from runconfig import ConfigError, RunConfig, validate

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MODES = {
    "plain": "nothing special",
    "role_first": "the first event names the role and has empty content",
    "comments": "a comment line before the first event and between events",
    "nospace": "data: without a space",
    "crlf": "lines end with CR LF",
    "several": "four tokens per event",
    "reasoning": "the first half is reasoning_content",
    "no_usage": "no usage at the end",
    "usage_each": "usage in every event, so that the first event's tokens are known",
    "truncated": "the stream ends in order, without [DONE]",
    "abrupt": "the connection is closed in the middle",
    "error_event": "an error object after the first tokens",
    "stall": "nothing after the first tokens",
    "http500": "status 500",
    "http429": "status 429",
    "html": "a web page with status 200",
}


class Truth(RunConfig):
    """What is true."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 0
    ttft_ms: Annotated[float, Field(ge=0)] = 50.0
    """From a request's arrival to its first token."""
    tpot_ms: Annotated[float, Field(ge=0)] = 10.0
    """Between two tokens."""
    tokens: Annotated[int, Field(gt=0)] = 64
    service_ms: Annotated[float, Field(ge=0)] = 20.0
    """Time to classify one call or to answer one inference."""
    slots: Annotated[int, Field(gt=0)] = 1_000_000
    """Requests served at once; others wait."""
    wrong_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of calls, chosen by their text, that are put into the wrong category."""
    error_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of calls, chosen by their text, that are answered with status 500."""
    freeze_at_s: float | None = None
    """Everything stands still, so many seconds after the first request ..."""
    freeze_s: Annotated[float, Field(ge=0)] = 0.0
    """... for so long."""


class TruthApp:
    """The ASGI application."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.log: list[dict[str, Any]] = []
        self._slots = asyncio.Semaphore(truth.slots)
        self._first: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        arrived = time.perf_counter()
        body = await _body(receive)
        path, method = scope["path"], scope["method"]
        if method == "GET":
            answers: dict[str, Any] = {
                "/ready": {"status": "ready"},
                "/_truth": self.log,
                "/v1/models": {"object": "list", "data": [{"id": "plain", "object": "model"}]},
            }
            found = answers.get(path)
            await _answer(send, 404 if found is None else 200, {"error": "not found"} if found is None else found)
            return
        self._first = arrived if self._first is None else self._first
        request = json.loads(body)
        entry = {"path": path, "mode": request.get("model", "plain"), "arrived": arrived, "written": []}
        self.log.append(entry)
        if path == "/v1/chat/completions":
            await self._chat(request, entry, send)
        elif path in {"/api/v1/classify", "/api/v1/inference"}:
            await self._one_answer(path, str(request["text"]), entry, send)
        else:
            await _answer(send, 404, {"error": "not found"})

    async def _one_answer(self, path: str, text: str, entry: dict[str, Any], send: Send) -> None:
        async with self._slots:
            await self._until(max(entry["arrived"], time.perf_counter()) + self.truth.service_ms / 1000)
        if _chance(text, "error") < self.truth.error_share:
            await _answer(send, 500, {"error": {"message": "made to fail"}})
            return
        category = category_of(text)
        if _chance(text, "wrong") < self.truth.wrong_share:
            category = f"not {category}"
        answer: dict[str, Any] = {"category": category, "confidence": 0.9, "probabilities": {category: 0.9}}
        answer["needs_review"] = False
        if path == "/api/v1/inference":
            answer = {"result": text[::-1], "tokens_used": len(text), "response_time": self.truth.service_ms / 1000}
        entry["written"].append(time.perf_counter())
        await _answer(send, 200, answer)

    async def _chat(self, request: dict[str, Any], entry: dict[str, Any], send: Send) -> None:
        modes = set(request["model"].split("+"))
        unknown = modes - MODES.keys()
        if unknown:
            await _answer(send, 404, {"error": {"message": f"no model {request['model']!r}"}})
        elif "http500" in modes:
            await _answer(send, 500, {"error": {"message": "made to fail"}})
        elif "http429" in modes:
            await _answer(send, 429, {"error": {"message": "too many"}}, [(b"retry-after", b"1")])
        elif "html" in modes:
            await _answer(send, 200, "<html><body>Welcome</body></html>", [(b"content-type", b"text/html")])
        elif request.get("stream"):
            await self._stream(modes, entry, send)
        else:
            count = self.truth.tokens
            await self._until(entry["arrived"] + (self.truth.ttft_ms + (count - 1) * self.truth.tpot_ms) / 1000)
            choice = {"index": 0, "message": {"role": "assistant", "content": "字" * count}, "finish_reason": "stop"}
            entry["written"].append(time.perf_counter())
            await _answer(send, 200, {"choices": [choice], "usage": _usage(count)})

    async def _stream(self, modes: set[str], entry: dict[str, Any], send: Send) -> None:
        truth = self.truth
        count, per_event = truth.tokens, 4 if "several" in modes else 1
        end = b"\r\n" if "crlf" in modes else b"\n"
        start = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})

        async def write(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def event(content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
            await write((b"data:" if "nospace" in modes else b"data: ") + data + end + end)

        if "role_first" in modes:
            await event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        if "comments" in modes:
            await write(b": keep-alive" + end + end)
        for number in range(0, count, per_event):
            last = min(number + per_event, count)
            # An event can be written when its last token is there.
            await self._until(entry["arrived"] + (truth.ttft_ms + (last - 1) * truth.tpot_ms) / 1000)
            field = "reasoning_content" if "reasoning" in modes and number < count // 2 else "content"
            chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": {field: "字" * (last - number)}}]}
            if "usage_each" in modes:
                chunk["usage"] = _usage(last)
            entry["written"].append(time.perf_counter())
            await event(chunk)
            if "comments" in modes:
                await write(b":" + end)
            if number >= count // 4:
                if "abrupt" in modes:
                    raise ConnectionAbortedError("the mode says so")
                if "stall" in modes:
                    await asyncio.sleep(3600)
                if "error_event" in modes:
                    await event({"error": {"message": "made to fail", "code": "engine_error"}})
                    break
        await event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if not modes & {"no_usage", "usage_each"}:
            await event({"choices": [], "usage": _usage(count)})
        if "truncated" not in modes:
            await event(b"[DONE]")
        await write(b"", more=False)

    async def _until(self, moment: float) -> None:
        """Sleep to an absolute moment, moved behind a freeze that lies before it."""
        truth = self.truth
        if truth.freeze_at_s is not None and self._first is not None:
            begin = self._first + truth.freeze_at_s
            if begin <= moment:
                thaw = begin + truth.freeze_s
                moment = max(moment, thaw)
        while (left := moment - time.perf_counter()) > 0:
            await asyncio.sleep(left)


def category_of(text: str) -> str:
    """The true category of a made-up call: what stands after its last ``#``."""
    return text.rpartition("#")[2] or "none"


def _chance(text: str, what: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(f"{what}/{text}".encode()).digest()[:4]) / 2**32


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, status: int, content: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    data = content.encode() if isinstance(content, str) else json.dumps(content, ensure_ascii=False).encode()
    own = list(headers) if any(name == b"content-type" for name, _ in headers) else [
        (b"content-type", b"application/json"),
        *headers,
    ]  # fmt: skip
    own.append((b"content-length", str(len(data)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": data})


def main(words: Sequence[str]) -> int:
    import uvicorn

    raw: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        raw[key] = yaml.safe_load(value)
    try:
        truth = validate(Truth, raw, "the command line")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    listener = socket.create_server((truth.host, truth.port), backlog=1024)
    print(json.dumps({"url": f"http://{truth.host}:{listener.getsockname()[1]}"}), flush=True)
    config = uvicorn.Config(
        TruthApp(truth), log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
