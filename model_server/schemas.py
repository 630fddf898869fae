"""What goes over the wire, and how bytes become it.

Bodies are read by pydantic's own JSON reader, strictly: a number in quotes is not a number, NaN is none either,
a key nobody knows is an error, and half of a surrogate pair is not text. The same models make the OpenAPI page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from model_server.errors import InvalidRequestError, RequestError

MAX_TOKENS = 512
"""Tokens of an answer whose request names no limit. Not the rest of the context, as OpenAI has it: admission
reserves cache for what is asked, and few requests that ask for everything would fit at once."""

MAX_TEXTS = 256
"""Texts in one classification request."""


class Body(BaseModel):
    """A request."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Answer(BaseModel):
    """What the server says."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


Text = Annotated[str, StringConstraints(min_length=1)]
Stop = Annotated[list[Text], Field(max_length=4)]


class InferenceRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "你好,请介绍一下你自己。", "max_tokens": 64, "temperature": 0.7}]}
    )

    text: Text
    """What the model answers, as the user's turn of a chat."""
    max_tokens: int = Field(default=MAX_TOKENS, gt=0)
    """Longest answer, tokens; with the prompt at most the context."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """0 always takes the likeliest token."""


class InferenceAnswer(Answer):
    result: str
    tokens_used: int
    """Tokens of prompt and answer."""
    response_time: float
    """Seconds from the whole request to the last token, waiting included."""


class ClassifyRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "我上周买的冰箱一直没送到,客服电话也打不通。"},
                {"texts": ["手机用了三天就黑屏了。", "你们多扣了我两百块钱。"]},
            ],
            "oneOf": [
                {"required": ["text"], "properties": {"text": {"type": "string"}, "texts": {"type": "null"}}},
                {"required": ["texts"], "properties": {"texts": {"type": "array"}, "text": {"type": "null"}}},
            ],
        }
    )

    text: Text | None = None
    """One call transcript."""
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    """Several, answered in order."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ClassifyRequest:
        if (self.text is None) == (self.texts is None):
            raise ValueError("give either text or texts")
        return self


class Classification(Answer):
    category: str
    confidence: float | None
    """Calibrated probability of the category; null where the engine gives the label alone."""
    probabilities: dict[str, float] | None
    needs_review: bool
    """The confidence is below the model's threshold, or unknown: a person should look."""


class Classifications(Answer):
    results: list[Classification]
    """In the order of ``texts``."""


class ModelDescription(Answer):
    name: str
    version: str
    state: str
    reason: str
    engine: str
    source: str | None
    device: str | None
    weight_bits: int | None
    kv_cache_bits: int | None
    context_tokens: int | None
    slots: int | None
    """Requests computed at once, now."""
    kv_tokens: int | None
    """Tokens that fit the cache at once; null where the engine keeps that to itself."""
    threads: int | None
    weights_bytes: int | None
    tasks: list[str]
    categories: list[str]
    max_queue: int
    request_timeout_s: float
    loaded_since: str | None
    """RFC 3339, UTC."""
    restarts: int
    phases_s: dict[str, float]
    """Start-up phases and their seconds: process, imports, weights, compile, first_token."""
    detail: dict[str, str | int | float]


HealthStatus = Literal["starting", "ready", "stalled", "dead", "restarting", "closed", "draining", "failed"]


class Health(Answer):
    status: HealthStatus
    reason: str
    progress: int
    """Grows with each step of the engine."""
    since_progress_s: float
    running: int
    waiting: int
    restarts: int


# -- OpenAI's shapes (https://platform.openai.com/docs/api-reference), as far as one small model can fill them --


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatTurn(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    """Read and ignored."""


class StreamOptions(Body):
    include_usage: bool = False
    """One more event before [DONE] that carries the usage."""


class TextFormat(Body):
    type: Literal["text"]


class TemplateSettings(Body):
    enable_thinking: Literal[False] = False
    """Thinking is off on this server."""


class CompletionSettings(Body):
    """What chat and completions share."""

    model: Text
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest answer, tokens."""
    temperature: float | None = Field(default=1.0, ge=0, le=2)
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Not OpenAI's: sample from the k likeliest tokens only; 0 keeps all."""
    stop: Text | Stop | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """Not OpenAI's: go on to max_tokens, for measurements."""
    n: Literal[1] | None = 1
    presence_penalty: float | None = Field(default=0.0, ge=0, le=0)
    frequency_penalty: float | None = Field(default=0.0, ge=0, le=0)
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None
    """Read and ignored, as are metadata, store and service_tier."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(CompletionSettings):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "qwen3-0.6b",
                    "messages": [{"role": "user", "content": "请解释一下人工智能的基本概念。"}],
                    "max_tokens": 128,
                    "stream": True,
                }
            ]
        }
    )

    messages: Annotated[list[ChatTurn], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, gt=0)
    """OpenAI's newer name of max_tokens; wins when both are given."""
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=0)
    """Alternatives are not kept: 0 only."""
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Tools are not supported: absent or empty."""
    chat_template_kwargs: TemplateSettings | None = None


class CompletionRequest(CompletionSettings):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "qwen3-0.6b", "prompt": "北京是", "max_tokens": 16, "temperature": 0}]
        }
    )

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    """One prompt; lists of tokens or of several prompts are not taken."""
    logprobs: int | None = Field(default=None, ge=0, le=1)
    """0 or 1: the chosen tokens' log-probabilities."""
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    suffix: None = None


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Any]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelCards(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """OpenAI's error object, used by every endpoint."""

    error: ErrorDetail


ERROR_TYPES = {401: "authentication_error", 413: "invalid_request_error", 429: "rate_limit_error"}


def error_answer(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of every error."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe_error(error: RequestError) -> dict[str, Any]:
    param = error.param if isinstance(error, InvalidRequestError) else None
    return error_answer(error.status, error.code, str(error), param)


Request = TypeVar("Request", bound=Body)


def parse(model: type[Request], body: bytes) -> Request:
    """Read a JSON body.

    Raises:
        InvalidRequestError: It is not JSON, or not what ``model`` takes. Says where and what is allowed, and
            repeats numbers but never text, because texts are private.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as failure:
        problems = failure.errors(include_url=False, include_context=False)
        first = problems[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        lines = "; ".join(_problem(model, problem) for problem in problems[:3])
        raise InvalidRequestError(lines, param) from None


def _problem(model: type[Body], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "json_invalid":
        return f"the body must be a JSON object in UTF-8: {problem['msg'].removeprefix('Invalid JSON: ')}"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown; allowed are {', '.join(sorted(model.model_fields))}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    given = problem["input"]
    told = f", got {given!r}"[:60] if isinstance(given, int | float | bool) or given is None else ""
    return f"{where}: {problem['msg']}{told}" if where else f"{problem['msg']}{told}"
