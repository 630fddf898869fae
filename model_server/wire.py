"""Bytes in and out: bodies, JSON answers, errors, event streams, and what OpenAPI says about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Union

import structlog
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json

from model_server import schemas, tracing
from model_server.errors import ClientGoneError, EngineError, InvalidRequestError, PayloadTooLargeError, RequestError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from model_server.admission import Deadline
    from model_server.deployment import Serving
    from model_server.service import Record


log = structlog.get_logger("model_server")


async def read_body(request: Request, serving: Serving) -> bytes:
    """The whole body, within the limits on its size and on the time it may take to arrive.

    Raises:
        PayloadTooLargeError: By Content-Length at once, otherwise as soon as too much has come.
        InvalidRequestError: It did not arrive in time.
        ClientGoneError: The client left before its end.
    """
    record: Record = request.scope["record"]
    began = time.monotonic()
    record.stage = ("receive", began)
    limit = serving.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise PayloadTooLargeError(limit)
    receive, parts, size = request.receive, [], 0
    try:
        async with asyncio.timeout(serving.request_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise PayloadTooLargeError(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    tracing.record("receive", record.span, began, time.monotonic(), bytes=size)
                    record.stage = None
                    return b"".join(parts)
    except TimeoutError:
        late = f"the body did not arrive within {serving.request_timeout_s:g} s (request_timeout_s)"
        raise InvalidRequestError(late) from None


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_answer(schemas.describe_error(error), error.status, headers)


LAST_EVENT_S = 1.0


class EventStream(Response):
    """Server-sent events of one generation.

    The first event is awaited before the status line is sent, so what fails before the first token still has
    its own status. What fails later is an event with OpenAI's error object, and no [DONE] follows: a client
    that waits for [DONE] knows that the answer is cut.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], deadline: Deadline, record: Record) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events, self._deadline, self._record = events, deadline, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        started = False
        try:
            async with self._deadline, aclosing(self._events) as events:
                async for event in events:
                    if not started:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        started = True
                    began = time.monotonic()
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            if started:
                tracing.record("send", self._record.span, began, time.monotonic())
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, RequestError):
                log.exception("bug", path=scope["path"])
                error = EngineError("an error inside the server")
            self._record.failure = error
            body = event_of(schemas.describe_error(error))
            # A client that has stopped reading would hold this up for ever.
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_EVENT_S):
                    await send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_of(content: Any) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"


DONE = b"data: [DONE]\n\n"

_ERRORS = {
    400: "The request says something that cannot be done.",
    401: "No key, or an unknown one.",
    404: "No such model, or this model or engine cannot do that.",
    413: "The body is larger than the limit.",
    429: "The key has used its requests for the minute, or the queue is full; Retry-After says when to come again.",
    500: "The engine failed while it computed this request.",
    503: "The engine is starting, being replaced, or the server drains; Retry-After says when to come again.",
    504: "Not answered within request_timeout_s.",
}


def answers(
    takes: type[schemas.Body] | None,
    *gives: type[schemas.Answer],
    stream: str | None = None,
    unhealthy: bool = False,
    may_miss: bool = False,
    open_to_all: bool = False,
) -> dict[str, Any]:
    """What a route tells OpenAPI, as keywords of FastAPI's decorators. Bodies are read by hand (schemas.parse).

    Args:
        stream: Describes the event stream that the endpoint can answer with.
        unhealthy: 503 carries the same answer as 200.
        may_miss: 404 where there is no body to be wrong.
        open_to_all: No key is asked for.
    """
    model = gives[0] if len(gives) == 1 else Union[gives]  # noqa: UP007  a tuple cannot be joined with |
    responses: dict[int, dict[str, Any]] = {200: {"model": model, "description": "The answer."}}
    if stream is not None:
        data = {"type": "string", "description": stream}
        schema = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        responses[200]["content"] = {"text/event-stream": {"schema": schema}}
    if unhealthy:
        responses[503] = {"model": model, "description": "Not now; the body says why."}
    statuses = set(_ERRORS) if takes is not None else {404} if may_miss else set()
    if not open_to_all:
        statuses.add(401)
    for status in sorted(statuses):
        example = schemas.error_answer(status, _code(status), _ERRORS[status])
        content = {"application/json": {"example": example}}
        responses[status] = {
            "model": schemas.ErrorAnswer,
            "description": _ERRORS[status],
            "content": content,
        }
    extra: dict[str, Any] = {} if open_to_all else {"security": [{"key": []}]}
    if takes is not None:
        reference = {"$ref": f"#/components/schemas/{takes.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    return {"responses": responses, "openapi_extra": extra, "response_class": JSONResponse}


def _code(status: int) -> str:
    """The first code of the error tree that has ``status``."""
    return next(error.code for error in RequestError.__subclasses__() if error.status == status)
