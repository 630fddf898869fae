"""OpenAI's chat completions, completions and models, for client libraries that know nothing else."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from model_server import schemas
from model_server.engine import Chunk, Message, Prompt, Sampling
from model_server.errors import ModelNotFoundError
from model_server.service import Record, Service
from model_server.wire import DONE, EventStream, answers, event_of, json_answer, read_body

LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI writes this number."""


def router(service: Service) -> APIRouter:
    api = APIRouter(prefix="/v1", tags=["openai"])
    serving = service.config.serving
    born = int(time.time())

    def card() -> dict[str, Any]:
        name = service.config.model_name
        return {"id": name, "object": "model", "created": born, "owned_by": "qwen3-stack"}

    @api.get("/models", **answers(None, schemas.ModelCards))
    async def models() -> Response:
        """The one model."""
        return json_answer({"object": "list", "data": [card()]})

    named = answers(None, schemas.ModelCard, may_miss=True)
    named["openapi_extra"]["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    ]

    # As an argument of the function, FastAPI would document its own 422 beside our 404.
    @api.get("/models/{model:path}", **named)  # noqa: FAST003
    async def model(request: Request) -> Response:
        """One model by name."""
        _check_model(service, request.path_params["model"])
        return json_answer(card())

    @api.post(
        "/chat/completions",
        **answers(
            schemas.ChatRequest,
            schemas.ChatCompletion,
            stream="With stream: chat.completion.chunk events, then [DONE].",
        ),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation, at once or as a stream."""
        service.ready()
        service.admission.refuse_if_full()
        body = schemas.parse(schemas.ChatRequest, await read_body(request, serving))
        _check_model(service, body.model)
        turns = [_turn(turn) for turn in body.messages]
        prompt = await service.prompt(turns)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        sampling = _sampling(body, service.fit(prompt, asked), logprobs=bool(body.logprobs))
        return await _answer(service, request, body, Form(body.model, chat=True), turns, prompt, sampling)

    @api.post(
        "/completions",
        **answers(
            schemas.CompletionRequest,
            schemas.Completion,
            stream="With stream: text_completion events, then [DONE].",
        ),
    )
    async def completions(request: Request) -> Response:
        """Continue a text, at once or as a stream."""
        service.ready()
        service.admission.refuse_if_full()
        body = schemas.parse(schemas.CompletionRequest, await read_body(request, serving))
        _check_model(service, body.model)
        text = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
        prompt = await service.prompt(text)
        logprobs = body.logprobs is not None
        sampling = _sampling(body, service.fit(prompt, body.max_tokens), logprobs=logprobs)
        turns = [Message("user", text)]
        return await _answer(service, request, body, Form(body.model, chat=False), turns, prompt, sampling)

    return api


def _check_model(service: Service, name: str) -> None:
    if name != service.config.model_name:
        raise ModelNotFoundError(name, [service.config.model_name])


def _turn(turn: schemas.ChatTurn) -> Message:
    content = turn.content if isinstance(turn.content, str) else "".join(part.text for part in turn.content)
    return Message("system" if turn.role == "developer" else turn.role, content)


def _sampling(body: schemas.CompletionSettings, max_tokens: int, *, logprobs: bool) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        stop=body.stops(),
        seed=body.seed,
        logprobs=logprobs,
        ignore_eos=body.ignore_eos,
    )


async def _answer(
    service: Service,
    request: Request,
    body: schemas.CompletionSettings,
    form: Form,
    turns: Sequence[Message],
    prompt: Prompt,
    sampling: Sampling,
) -> Response:
    record: Record = request.scope["record"]
    record.prompt_length = sum(len(turn.content) for turn in turns)
    deadline = service.deadline(request.receive)
    groups = service.tokens(record, prompt, sampling)
    asked = "\n".join(turn.content for turn in turns)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        service.note_texts(record, prompt=asked)
        events = _events(service, record, form, groups, with_usage=with_usage)
        return EventStream(events, deadline, record)
    async with deadline, aclosing(groups):
        async for group in groups:
            for chunk in group:
                form.add(chunk)
    service.note_texts(record, prompt=asked, response=form.text)
    return json_answer(form.whole(_usage(record)))


async def _events(
    service: Service,
    record: Record,
    form: Form,
    groups: AsyncGenerator[list[Chunk], None],
    *,
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    opening = form.opening()
    async with aclosing(groups):
        async for group in groups:
            for chunk in group:
                form.add(chunk)
            # A token that does not end a character says nothing yet; the first event still marks the first token.
            if opening or any(chunk.text or chunk.logprobs for chunk in group):
                yield opening + form.part(group)
                opening = b""
    service.note_texts(record, response=form.text)
    yield opening + form.end() + (form.usage_alone(_usage(record)) if with_usage else b"") + DONE


def _usage(record: Record) -> dict[str, int]:
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.tokens,
        "total_tokens": record.prompt_tokens + record.tokens,
    }


@dataclass(slots=True)
class Form:
    """Collects an answer and writes it in OpenAI's shape: of a chat, or of a plain completion."""

    model: str
    chat: bool
    text: str = ""
    finish_reason: str = "stop"
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _tokens: list[tuple[str, float]] = field(default_factory=list)
    """Text and log-probability of each token, where they were asked for."""

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self._tokens += _token_logprobs(chunk)
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason

    def whole(self, usage: dict[str, int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": self.text, "refusal": None}
        else:
            choice["text"] = self.text
        choice["logprobs"] = self._logprobs(self._tokens, 0)
        choice["finish_reason"] = self.finish_reason
        return self._frame("chat.completion", [choice]) | {"usage": usage}

    def opening(self) -> bytes:
        """What a stream says before its first token; nothing in a plain completion."""
        return event_of(self._part({"role": "assistant", "content": ""}, [], 0)) if self.chat else b""

    def part(self, group: Sequence[Chunk]) -> bytes:
        """What a stream says of tokens that were ready together and have been added."""
        text = "".join(chunk.text for chunk in group)
        tokens = [token for chunk in group for token in _token_logprobs(chunk)]
        return event_of(self._part({"content": text}, tokens, len(self.text) - len(text)))

    def end(self) -> bytes:
        part = self._part({}, [], len(self.text))
        part["choices"][0]["finish_reason"] = self.finish_reason
        return event_of(part)

    def usage_alone(self, usage: dict[str, int]) -> bytes:
        return event_of(self._frame("chat.completion.chunk", []) | {"usage": usage})

    def _part(self, delta: dict[str, str], tokens: list[tuple[str, float]], offset: int) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        choice |= {"logprobs": self._logprobs(tokens, offset), "finish_reason": None}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.id}" if self.chat else f"cmpl-{self.id}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, tokens: list[tuple[str, float]], offset: int) -> dict[str, Any] | None:
        """``offset``: characters of the answer before these tokens."""
        if not tokens:
            return None
        if self.chat:
            return {
                "content": [
                    {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
                    for text, value in tokens
                ]
            }
        offsets = []
        for text, _ in tokens:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [text for text, _ in tokens],
            "token_logprobs": [value for _, value in tokens],
            "top_logprobs": None,
            "text_offset": offsets,
        }


def _token_logprobs(chunk: Chunk) -> list[tuple[str, float]]:
    """Text and log-probability of each token. Tokens that only together make characters share their text: the
    last one carries it.
    """
    before = [""] * (len(chunk.logprobs) - 1)
    return [
        (text, max(value, LEAST_LOGPROB)) for text, value in zip([*before, chunk.text], chunk.logprobs, strict=False)
    ]
