"""What each API is asked and how its answer is read. Pure: no sockets, no clocks.

A stream of any dialect becomes :class:`Delta`s, and :func:`read_stream` makes the record from these: one meaning of
"first token" for all of them.

Sources: OpenAI's API reference; LMDeploy 0.18 (serve/openai/endpoints/generate.py, chat_completions/serving.py);
llama.cpp (tools/server/README.md, /completion); Ollama 0.11.4 (api/types.go).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from benchmarks.calls import Call
from benchmarks.config import Dialect, Scenario
from benchmarks.records import ErrorClass, Record
from benchmarks.sse import Event, EventReader, LineReader, Reader

Json = dict[str, Any]
CountTokens = Callable[[str], int]


class AnswerError(Exception):
    """The answer does not count; ``kind`` becomes the record's error class."""

    def __init__(self, kind: ErrorClass, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Delta(NamedTuple):
    """What one event adds. ``output_tokens`` counts from the beginning of the answer."""

    content: str = ""
    reasoning: str = ""
    """Text that is not the answer itself: thinking, the arguments of a tool call."""
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    last: bool = False
    """The end mark of dialects that have it inside an event."""


def says_done(data: bytes) -> bool:
    """The end mark of OpenAI's API, which is no JSON."""
    return data.strip() == b"[DONE]"


@dataclass(frozen=True, slots=True)
class Api:
    """One way to ask. ``delta`` reads an event of a stream; None: the answer comes in one piece."""

    path: str
    body: Callable[[Scenario, Call, str | None, int], Json]
    delta: Callable[[Json], Delta] | None = None
    reader: Callable[[], Reader] = EventReader
    ends: Callable[[bytes], object] = says_done
    """Whether an event is the one that ends the stream."""


def request_body(scenario: Scenario, call: Call, model: str | None, max_tokens: int | None = None) -> bytes:
    """The JSON that asks for ``call``; ``max_tokens`` instead of the scenario's."""
    body = APIS[scenario.dialect].body(scenario, call, model, max_tokens or scenario.max_tokens)
    return json.dumps(body, ensure_ascii=False).encode()


def read_body(dialect: Dialect, body: bytes, record: Record, *, keep_text: bool = False) -> None:
    """Fill ``record`` from an answer that came in one piece.

    Raises:
        AnswerError: It is not what the dialect promises.
    """
    answer = _object(body, "the answer")
    if answer.get("error"):
        raise AnswerError("error_event", _message(answer))
    try:
        if dialect == "classify":
            record.category = _text(answer["category"])
            record.confidence = None if answer.get("confidence") is None else float(answer["confidence"])
            record.needs_review = answer.get("needs_review")
        elif dialect == "inference":
            # tokens_used counts the prompt too: the answer's own length is not told here.
            int(answer["tokens_used"])
            _keep_text(record, _text(answer["result"]), keep=keep_text)
        else:
            choice = answer["choices"][0]
            record.finish_reason = choice.get("finish_reason")
            _keep_text(record, _joined(choice["message"].get("content")), keep=keep_text)
            usage = answer.get("usage")
            if usage:
                record.prompt_tokens, record.output_tokens = _usage(usage)
                record.token_source = "server"  # noqa: S105  no password
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise AnswerError("malformed", f"a field is missing or has the wrong type: {error!r}") from error


def read_stream(
    dialect: Dialect,
    events: Sequence[Event],
    record: Record,
    count: CountTokens | None = None,
    *,
    keep_text: bool = False,
) -> None:
    """Fill ``record`` from the events of a stream.

    Args:
        count: Counts tokens of a text where the server does not tell; its counts leave out what has no text, such as
            the token that ends the answer.

    Raises:
        AnswerError: The stream has an error in it, is not what the dialect promises, or lacks its end mark.
    """
    api = APIS[dialect]
    assert api.delta is not None
    texts: list[tuple[float, str, bool]] = []
    counted_first: int | None = None
    done = False
    for at, data, kind in events:
        if api.ends is says_done and says_done(data):
            record.end_s, done = at, True
            break
        if not data.strip():
            continue
        chunk = _object(data, "an event")
        if kind == b"error" or chunk.get("error") or chunk.get("object") == "error":
            raise AnswerError("error_event", _message(chunk))
        try:
            content, reasoning, output_tokens, prompt_tokens, finish_reason, last = api.delta(chunk)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if kind != b"message":
                continue  # a ping, or what else a server may say beside the answer
            raise AnswerError("malformed", f"an event lacks a field or has a wrong type: {error!r}") from error
        if finish_reason is not None:
            record.finish_reason = finish_reason
            if finish_reason in {"error", "abort"}:
                raise AnswerError("error_event", f"finish_reason is {finish_reason}")
        if prompt_tokens is not None:
            record.prompt_tokens = prompt_tokens
        if output_tokens is not None:
            record.output_tokens, record.token_source = output_tokens, "server"
        if reasoning or content:
            if record.first_token_s is None:
                record.first_token_s = at
            if at == record.first_token_s:
                counted_first = output_tokens
            record.last_token_s = at
            record.events += 1
            record.event_times_s.append(round(at, 6))
            if reasoning:
                texts.append((at, reasoning, False))
            if content:
                texts.append((at, content, True))
        if last:
            record.end_s, done = at, True
            break
    if not done:
        raise AnswerError("truncated", f"the stream ended without its end mark after {record.events} events with text")
    if not texts and not record.output_tokens:
        raise AnswerError("malformed", "the stream ended without any text")
    answer = [(at, text) for at, text, is_content in texts if is_content]
    record.first_content_s = _first_content(answer)
    _keep_text(record, "".join(text for _, text in answer), keep=keep_text)
    if record.output_tokens is None and count is not None and texts:
        record.output_tokens, record.token_source = count("".join(text for _, text, _ in texts)), "tokenizer"
    if texts:
        record.tokens_first_event = _tokens_first_event(record, texts, counted_first, count)


def _tokens_first_event(
    record: Record, texts: Sequence[tuple[float, str, bool]], counted: int | None, count: CountTokens | None
) -> float | None:
    """Tokens that came in the first moment, be it in one event or in several that were sent together.

    The server's count, else the tokenizer's, else their share of the characters. Servers that send each token by itself
    sometimes count the one that ended the answer and sent no text: as many events as tokens, or one fewer, means one
    token each. A share of events would be wrong where the first event has fewer tokens than the others, as with
    speculative decoding.
    """
    if counted:
        return float(counted)
    first = "".join(text for at, text, _ in texts if at == texts[0][0])
    if count is not None:
        return float(count(first))
    if record.output_tokens is None:
        return None
    if record.events >= record.output_tokens - 1:
        return float(sum(at == texts[0][0] for at, _, _ in texts))
    total = sum(len(text) for _, text, _ in texts)
    return max(1.0, record.output_tokens * len(first) / total)


THINKING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def _first_content(answer: Sequence[tuple[float, str]]) -> float | None:
    """When the first text of the answer itself came, which begins behind the thinking where that stands in tags."""
    text = "".join(part for _, part in answer)
    begin = 0
    if text.lstrip().startswith("<think>"):
        thought = THINKING.match(text)
        if thought is None or thought.end() == len(text):
            return None
        begin = thought.end()
    seen = 0
    for at, part in answer:
        seen += len(part)
        if seen > begin:
            return at
    return None


def describe_failure(body: bytes) -> str:
    """What an error answer says, in one line of at most 200 characters."""
    try:
        return _message(json.loads(body))[:200]
    except ValueError:
        text = " ".join(body[:400].decode("utf-8", "replace").split())
        return text[:200] or "no body"


# -- what is asked ------------------------------------------------------------------------------------------


def _classify(_scenario: Scenario, call: Call, _model: str | None, _max_tokens: int) -> Json:
    return {"text": call.text}


def _inference(scenario: Scenario, call: Call, _model: str | None, max_tokens: int) -> Json:
    return {"text": call.text, "max_tokens": max_tokens, "temperature": scenario.temperature}


def _chat(scenario: Scenario, call: Call, model: str | None, max_tokens: int) -> Json:
    return {
        "model": model,
        "messages": [{"role": "user", "content": call.text}],
        "max_tokens": max_tokens,
        "temperature": scenario.temperature,
    }


_STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}


def _chat_stream(scenario: Scenario, call: Call, model: str | None, max_tokens: int) -> Json:
    return _chat(scenario, call, model, max_tokens) | _STREAM


def _completions(scenario: Scenario, call: Call, model: str | None, max_tokens: int) -> Json:
    asked = {"model": model, "prompt": call.text, "max_tokens": max_tokens, "temperature": scenario.temperature}
    return asked | _STREAM


def _lmdeploy(scenario: Scenario, call: Call, _model: str | None, max_tokens: int) -> Json:
    return {"prompt": call.text, "max_tokens": max_tokens, "temperature": scenario.temperature, "stream": True}


def _llamacpp(scenario: Scenario, call: Call, _model: str | None, max_tokens: int) -> Json:
    return {"prompt": call.text, "n_predict": max_tokens, "temperature": scenario.temperature, "stream": True}


def _ollama(scenario: Scenario, call: Call, model: str | None, max_tokens: int) -> Json:
    options = {"num_predict": max_tokens, "temperature": scenario.temperature, "seed": scenario.seed}
    return {"model": model, "prompt": call.text, "stream": True, "options": options}


def _ollama_chat(scenario: Scenario, call: Call, model: str | None, max_tokens: int) -> Json:
    asked = _ollama(scenario, call, model, max_tokens)
    asked["messages"] = [{"role": "user", "content": asked.pop("prompt")}]
    return asked


# -- how an event is read -----------------------------------------------------------------------------------


def _openai_delta(chunk: Json) -> Delta:
    """A chunk of /v1/chat/completions or /v1/completions.

    Usage may come with the last text, in an event of its own without choices, or with each event. With several
    choices (n > 1) all of them count.
    """
    prompt_tokens = output_tokens = finish = None
    usage = chunk.get("usage")
    if usage:
        prompt_tokens, output_tokens = _usage(usage)
    content = reasoning = ""
    for choice in chunk.get("choices") or ():
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta")
        if delta is None:
            content += choice.get("text") or ""
            continue
        content += _joined(delta.get("content")) + (delta.get("refusal") or "")
        reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            reasoning += (function.get("name") or "") + (function.get("arguments") or "")
    return Delta(content, reasoning, output_tokens, prompt_tokens, finish)


def _lmdeploy_delta(chunk: Json) -> Delta:
    meta = chunk.get("meta_info") or {}
    finish = meta.get("finish_reason")
    if isinstance(finish, dict):
        finish = finish.get("type")
    return Delta(_text(chunk["text"]), "", meta.get("completion_tokens"), meta.get("prompt_tokens"), finish)


def _llamacpp_delta(chunk: Json) -> Delta:
    """The last event has the counts; ``stop_type`` is eos, limit or word."""
    last = bool(chunk.get("stop"))
    return Delta(
        content=chunk.get("content") or "",
        output_tokens=chunk.get("tokens_predicted") or None,
        prompt_tokens=chunk.get("tokens_evaluated") or None,
        finish_reason=chunk.get("stop_type") if last else None,
        last=last,
    )


def _ollama_delta(chunk: Json) -> Delta:
    message = chunk.get("message") or {}
    return Delta(
        content=chunk.get("response") or message.get("content") or "",
        reasoning=chunk.get("thinking") or message.get("thinking") or "",
        output_tokens=chunk.get("eval_count"),
        prompt_tokens=chunk.get("prompt_eval_count"),
        finish_reason=chunk.get("done_reason"),
        last=bool(chunk.get("done")),
    )


# A quote inside a JSON text is escaped, so that no text can look like these.
_STOP = re.compile(rb'(?<!\\)"stop"\s*:\s*true')
_OLLAMA_DONE = re.compile(rb'(?<!\\)"done"\s*:\s*true')
APIS: dict[Dialect, Api] = {
    "classify": Api("/api/v1/classify", _classify),
    "inference": Api("/api/v1/inference", _inference),
    "chat": Api("/v1/chat/completions", _chat),
    "chat_stream": Api("/v1/chat/completions", _chat_stream, _openai_delta),
    "completions_stream": Api("/v1/completions", _completions, _openai_delta),
    "lmdeploy_stream": Api("/generate", _lmdeploy, _lmdeploy_delta),
    "llamacpp_stream": Api("/completion", _llamacpp, _llamacpp_delta, ends=_STOP.search),
    "ollama_stream": Api("/api/generate", _ollama, _ollama_delta, LineReader, _OLLAMA_DONE.search),
    "ollama_chat_stream": Api("/api/chat", _ollama_chat, _ollama_delta, LineReader, _OLLAMA_DONE.search),
}


def _message(answer: Any) -> str:
    error = answer
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("detail", answer.get("message", answer)))
    if isinstance(error, dict):
        error = error.get("message", error)
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)


def _object(data: bytes, what: str) -> Json:
    try:
        try:
            found = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = json.loads(data)  # NaN among the log-probabilities, which Python's servers write
    except ValueError as error:
        raise AnswerError("malformed", f"{what} is not JSON but {data[:60]!r}") from error
    if not isinstance(found, dict):
        raise AnswerError("malformed", f"{what} is not an object but {data[:60]!r}")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _joined(content: Any) -> str:
    """Text, null, or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return _text(content) if content else ""


def _keep_text(record: Record, text: str, *, keep: bool) -> None:
    record.output_characters = len(text)
    record.output_sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    if keep:
        record.output_text = text


def _usage(usage: Json) -> tuple[int | None, int | None]:
    """Prompt and output tokens; servers send null for what they have not counted."""
    found = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, output = (None if value is None else int(value) for value in found)
    return prompt, output
