"""Every error of the server, and the HTTP status each one becomes.

DeploymentError                     what is asked for cannot be deployed; ends a plan or a start
├── ConfigurationError              a setting is unknown, impossible, or contradicts another
├── ResourceInsufficientError       it does not fit the limits; the message carries the arithmetic
└── ModelLoadError                  missing, truncated, altered, of another architecture, or the engine refused it
RequestError                        one request failed; the server goes on
├── InvalidRequestError        400  the request says something that cannot be done
├── ContextTooLongError        400  prompt + max_tokens exceed the context
├── AuthenticationError        401  no key, or an unknown one
├── ModelNotFoundError         404  no such model is loaded
├── TaskNotSupportedError      404  this model or engine cannot do that (classify, logprobs, ...)
├── PayloadTooLargeError       413  the body is larger than the limit
├── RateLimitError             429  this key has used its requests for the minute
├── OverloadedError            429  the queue is full, or would not fit the KV pool in time
├── ClientGoneError            499  the client left; written to the log, nobody reads it
├── EngineError                500  the engine failed while it computed this request
├── EngineUnavailableError     503  the engine is starting, restarting, or draining
└── EngineTimeoutError         504  not answered within request_timeout_s
"""

from __future__ import annotations


class DeploymentError(Exception):
    """Root of what stops a deployment."""


class ConfigurationError(DeploymentError):
    """A setting is unknown, impossible, or contradicts another."""


class ResourceInsufficientError(DeploymentError):
    """The deployment does not fit its limits. The message carries the arithmetic."""


class ModelLoadError(DeploymentError):
    """The model cannot be loaded from ``source``."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"cannot load model {self.source!r}: {self.reason}"


class RequestError(Exception):
    """Root of what one request can meet. ``status`` and ``code`` go on the wire."""

    status = 500
    code = "internal_error"
    retry_after_s: int | None = None


class InvalidRequestError(RequestError):
    status, code = 400, "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


class ContextTooLongError(RequestError):
    status, code = 400, "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
        super().__init__(prompt_tokens, max_tokens, context_tokens)
        self.prompt_tokens, self.max_tokens, self.context_tokens = prompt_tokens, max_tokens, context_tokens

    def __str__(self) -> str:
        return (
            f"the prompt has {self.prompt_tokens} tokens and max_tokens is {self.max_tokens}; together they may be "
            f"at most {self.context_tokens}: shorten the text or ask for fewer tokens"
        )


class AuthenticationError(RequestError):
    status, code = 401, "invalid_api_key"

    def __str__(self) -> str:
        return "a valid key is needed: send 'Authorization: Bearer <key>'"


class ModelNotFoundError(RequestError):
    status, code = 404, "model_not_found"

    def __init__(self, model: str, loaded: list[str]) -> None:
        super().__init__(model, loaded)
        self.model, self.loaded = model, loaded

    def __str__(self) -> str:
        return f"no model {self.model!r} here; loaded: {', '.join(self.loaded) or 'none'}"


class TaskNotSupportedError(RequestError):
    status, code = 404, "task_not_supported"

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task, self.reason = task, reason

    def __str__(self) -> str:
        return f"{self.task} is not available: {self.reason}"


class PayloadTooLargeError(RequestError):
    status, code = 413, "payload_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return f"the body is larger than {self.limit_bytes} bytes: send less, or several requests"


class RateLimitError(RequestError):
    status, code = 429, "rate_limit_exceeded"

    def __init__(self, per_minute: int, retry_after_s: int) -> None:
        super().__init__(per_minute, retry_after_s)
        self.per_minute, self.retry_after_s = per_minute, retry_after_s

    def __str__(self) -> str:
        return f"this key may send {self.per_minute} requests a minute: try again in {self.retry_after_s} s"


class OverloadedError(RequestError):
    status, code = 429, "overloaded"

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: try again in {self.retry_after_s} s"


class ClientGoneError(RequestError):
    status, code = 499, "client_gone"

    def __str__(self) -> str:
        return "the client closed the connection"


class EngineError(RequestError):
    status, code = 500, "engine_error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the engine failed: {self.reason}"


class EngineUnavailableError(RequestError):
    status, code = 503, "engine_unavailable"

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return f"the engine cannot take requests now ({self.reason}): try again in {self.retry_after_s} s"


class EngineTimeoutError(RequestError):
    status, code = 504, "timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"not answered within {self.limit_s:g} s (request_timeout_s)"
