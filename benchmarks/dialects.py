"""What each API is asked and how its answer is read. Pure: no sockets, no clocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.calls import Call
from benchmarks.config import Dialect, Scenario
from benchmarks.records import ErrorClass, Record
from benchmarks.sse import Event

PATHS: dict[Dialect, str] = {
    "classify": "/api/v1/classify",
    "inference": "/api/v1/inference",
    "chat": "/v1/chat/completions",
    "chat_stream": "/v1/chat/completions",
}


class AnswerError(Exception):
    """The answer does not count; ``kind`` becomes the record's error class."""

    def __init__(self, kind: ErrorClass, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def request_body(scenario: Scenario, call: Call, model: str | None) -> bytes:
    """The JSON that asks for ``call``."""
    body: dict[str, Any]
    if scenario.dialect == "classify":
        body = {"text": call.text}
    elif scenario.dialect == "inference":
        body = {"text": call.text, "max_tokens": scenario.max_tokens, "temperature": scenario.temperature}
    else:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": call.text}],
            "max_tokens": scenario.max_tokens,
            "temperature": scenario.temperature,
        }
        if scenario.dialect == "chat_stream":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body, ensure_ascii=False).encode()


def read_body(dialect: Dialect, body: bytes, record: Record) -> None:
    """Fill ``record`` from an answer that came in one piece.

    Raises:
        AnswerError: It is not what the dialect promises.
    """
    answer = _object(body, "the answer")
    try:
        if dialect == "classify":
            record.category = _text(answer["category"])
            record.confidence = None if answer.get("confidence") is None else float(answer["confidence"])
            record.needs_review = answer.get("needs_review")
        elif dialect == "inference":
            # tokens_used counts the prompt too: the answer's own length is not told here.
            int(answer["tokens_used"])
            _keep_text(record, _text(answer["result"]))
        else:
            choice = answer["choices"][0]
            record.finish_reason = choice.get("finish_reason")
            _keep_text(record, _text(choice["message"].get("content") or ""))
            _keep_usage(record, answer.get("usage"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AnswerError("malformed", f"a field is missing or has the wrong type: {error!r}") from error


def read_stream(events: Sequence[Event], record: Record) -> None:
    """Fill ``record`` from a chat stream.

    Usage may come with the last text, in an event of its own without choices, or with each event (then the
    first event's token count is known).

    Raises:
        AnswerError: The stream has an error in it, or ends without ``[DONE]``.
    """
    texts: list[str] = []
    done = False
    for event in events:
        if event.data == b"[DONE]":
            record.end_s = event.at
            done = True
            break
        chunk = _object(event.data, "an event")
        if event.type == b"error" or chunk.get("error"):
            raise AnswerError("error_event", _message(chunk))
        try:
            _read_chunk(chunk, event.at, texts, record)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise AnswerError("malformed", f"an event lacks a field or has a wrong type: {error!r}") from error
    if not done:
        raise AnswerError("truncated", f"the stream ended without [DONE] after {record.events} events with text")
    if not texts and not record.output_tokens:
        raise AnswerError("malformed", "the stream ended without any text")
    _keep_text(record, "".join(texts))


def _read_chunk(chunk: dict[str, Any], at: float, texts: list[str], record: Record) -> None:
    choices = chunk.get("choices") or []
    content = reasoning = ""
    if choices:
        delta = choices[0].get("delta") or {}
        content = delta.get("content") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        record.finish_reason = choices[0].get("finish_reason") or record.finish_reason
    if content or reasoning:
        if record.first_token_s is None:
            record.first_token_s = at
            counted = (chunk.get("usage") or {}).get("completion_tokens")
            record.tokens_first_event = None if counted is None else int(counted)
        if content:
            record.first_content_s = at if record.first_content_s is None else record.first_content_s
            texts.append(content)
        record.last_token_s = at
        record.events += 1
        record.event_times_s.append(round(at, 6))
    _keep_usage(record, chunk.get("usage"))


def describe_failure(body: bytes) -> str:
    """What an error answer says, in one line of at most 200 characters."""
    try:
        return _message(json.loads(body))[:200]
    except ValueError:
        text = " ".join(body[:400].decode("utf-8", "replace").split())
        return text[:200] or "no body"


def _message(answer: Any) -> str:
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message", error)
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise AnswerError("malformed", f"{what} is not JSON but {data[:60]!r}") from error
    if not isinstance(found, dict):
        raise AnswerError("malformed", f"{what} is not an object but {data[:60]!r}")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _keep_text(record: Record, text: str) -> None:
    record.output_characters = len(text)
    record.output_sha256 = hashlib.sha256(text.encode()).hexdigest()


def _keep_usage(record: Record, usage: dict[str, Any] | None) -> None:
    if usage:
        record.prompt_tokens = int(usage["prompt_tokens"])
        record.output_tokens = int(usage["completion_tokens"])
