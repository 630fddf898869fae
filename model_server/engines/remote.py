"""What engines outside this process share: HTTP with back-off, line streams, a count of the work under way."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx2
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from model_server import tracing
from model_server.engine import EngineHealth, EngineState, Message, Prompt
from model_server.errors import EngineError, EngineUnavailableError

ATTEMPTS = 5
"""Tries of one network call (requirements R10: exponential back-off, at most 5)."""

BACKOFF_LIMIT_S = 5.0

# 429: Ollama's queue is full in newer versions; 502-504: something in front of the engine.
_TRANSIENT_STATUS = frozenset({429, 502, 503, 504})

Event = TypeVar("Event")


class TransientError(Exception):
    """Not reached, or refused for the moment: the same call may succeed a little later.

    ``status``: None where no answer came.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return self.message


class RefusedError(Exception):
    """The engine answered with an error that a second try will not change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message

    def __str__(self) -> str:
        return f"{self.message} (HTTP {self.status})"


class Remote:
    """One engine behind HTTP.

    Args:
        backoff_s: First wait between tries; it doubles each time, and up to ``backoff_s`` is added at random.
        read_timeout_s: Longest silence inside an answer; a long prefill is silent.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 300.0,
        backoff_s: float = 0.2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self._backoff_s = backoff_s
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(read_timeout_s, connect=connect_timeout_s),
            # Admission happens in front of the engine; a second limit here would queue unseen.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            transport=transport,
            # The engine is named by URL: a proxy variable meant for downloads must not catch it.
            trust_env=False,
        )

    async def call(self, method: str, path: str, body: object = None, *, timeout_s: float | None = None) -> Any:
        """JSON of one answer, retried while the engine cannot be reached.

        Raises:
            EngineUnavailableError: Not reached in :data:`ATTEMPTS` tries.
            RefusedError: It answered with an error.
        """
        return await self._retried(self._call_once, method, path, body, timeout_s)

    async def call_once(self, method: str, path: str, body: object = None, *, timeout_s: float) -> Any:
        """As :meth:`call` without a second try, for probes. Raises TransientError, RefusedError."""
        return await self._call_once(method, path, body, timeout_s)

    async def get_any_status(self, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """Status and body, whatever the status. Raises TransientError."""
        try:
            response = await self._client.get(path, timeout=timeout_s)
        except httpx2.TransportError as error:
            raise TransientError(_reason(error)) from error
        return response.status_code, response.content

    @contextlib.asynccontextmanager
    async def events(
        self, path: str, body: object, parse: Callable[[bytes], Event | None]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Post ``body``, stream the answer's lines through ``parse``; leaving the block closes the connection.

        The request is repeated while nothing has arrived: no token was sent, so nothing is computed twice
        for the client. After the first event an error is final.

        ``parse`` turns a line into an event, None skips it; it raises TransientError or a RequestError where the
        line carries an error.

        Raises:
            EngineUnavailableError: Nothing arrived in :data:`ATTEMPTS` tries.
            RefusedError: It answered with an error status.
            EngineError: While iterating: the stream broke off.
        """
        response, first, rest = await self._retried(self._open, path, body, parse)

        async def chain() -> AsyncGenerator[Event, None]:
            if first is not None:
                yield first
            try:
                async for event in rest:
                    yield event
            except (httpx2.TransportError, TransientError) as error:
                raise EngineError(f"the answer broke off: {_reason(error)}") from error

        events = chain()
        try:
            async with contextlib.aclosing(events):
                yield events
        finally:
            await rest.aclose()
            await response.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _open(
        self, path: str, body: object, parse: Callable[[bytes], Event | None]
    ) -> tuple[httpx2.Response, Event | None, AsyncGenerator[Event, None]]:
        try:
            request = self._client.build_request("POST", path, json=body, headers=tracing.to_headers(tracing.carried()))
            response = await self._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise _transport_error(error) from error
        events: AsyncGenerator[Event, None] | None = None
        try:
            if response.status_code >= 400:
                await response.aread()
                _raise_for_status(response)
            events = _parsed(response, parse)
            return response, await anext(events, None), events
        except BaseException as error:  # also a cancelled request: the engine must not go on computing it
            if events is not None:
                await events.aclose()
            await response.aclose()
            if isinstance(error, httpx2.TransportError):
                raise _transport_error(error) from error
            raise

    async def _call_once(self, method: str, path: str, body: object, timeout_s: float | None) -> Any:
        try:
            response = await self._client.request(
                method,
                path,
                json=body,
                timeout=httpx2.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        except httpx2.TransportError as error:
            raise _transport_error(error) from error
        _raise_for_status(response)
        try:
            return response.json()
        except ValueError as error:
            raise RefusedError(response.status_code, f"{self.url}{path} did not answer with JSON") from error

    async def _retried(self, call: Callable[..., Any], *args: object) -> Any:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(multiplier=self._backoff_s, max=BACKOFF_LIMIT_S, jitter=self._backoff_s),
            retry=retry_if_exception_type(TransientError),
            reraise=True,
        )
        try:
            return await retrying(call, *args)
        except TransientError as error:
            raise EngineUnavailableError(f"{self.url}: {error}, {ATTEMPTS} tries", retry_after_s=5) from error


class Activity:
    """How much work is under way, and when it last moved."""

    def __init__(self) -> None:
        self.running = 0
        self.progress = 0
        self._moved_at = time.monotonic()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        if self.running == 0:
            self._moved_at = time.monotonic()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def step(self) -> None:
        self.progress += 1
        self._moved_at = time.monotonic()

    @property
    def since_progress_s(self) -> float:
        return time.monotonic() - self._moved_at if self.running else 0.0

    def health(
        self, state: EngineState, reason: str, slots: int, *, pid: int | None = None, out_of_memory: bool = False
    ) -> EngineHealth:
        """Of an engine that computes ``slots`` requests at once; what is above that waits."""
        return EngineHealth(
            state=state,
            reason=reason,
            progress=self.progress,
            since_progress_s=self.since_progress_s,
            running=min(self.running, slots),
            waiting=max(0, self.running - slots),
            pid=pid,
            slots=slots,
            out_of_memory=out_of_memory,
        )


def outline(content: str | Sequence[Message]) -> Prompt:
    """A prompt for an engine that tokenises itself; its length is an estimate of one token per character."""
    if isinstance(content, str):
        return Prompt(text=content, tokens=len(content))
    text = chatml(content)
    # The markers are special tokens of many characters: counting characters stays above the truth.
    return Prompt(text=text, messages=tuple(content), tokens=len(text))


def chatml(messages: Sequence[Message]) -> str:
    """Qwen3's chat template with thinking off (tokenizer_config.json of Qwen/Qwen3-0.6B)."""
    turns = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in messages)
    return f"{turns}<|im_start|>assistant\n<think>\n\n</think>\n\n"


async def lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Lines of the body as they arrive, split at LF alone.

    ``aiter_lines`` splits where ``str.splitlines`` does, which includes U+0085 and U+2028: legal, unescaped
    characters inside a JSON string, so it would cut an answer in two.
    """
    rest = b""
    async with contextlib.aclosing(response.aiter_bytes()) as blocks:
        async for block in blocks:
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                if line := line.strip(b"\r"):
                    yield line
    if rest := rest.strip(b"\r"):
        yield rest


async def _parsed(response: httpx2.Response, parse: Callable[[bytes], Event | None]) -> AsyncGenerator[Event, None]:
    async with contextlib.aclosing(lines(response)) as stream:
        async for line in stream:
            if (event := parse(line)) is not None:
                yield event


def _transport_error(error: httpx2.TransportError) -> TransientError | RefusedError:
    """What went wrong on the way. Minutes of silence are not repeated five times: that is a hung engine."""
    if isinstance(error, httpx2.ReadTimeout):
        return RefusedError(504, "no answer within the read timeout")
    return TransientError(_reason(error))


def _raise_for_status(response: httpx2.Response) -> None:
    if response.status_code < 400:
        return
    message = _message(response.content)
    if response.status_code in _TRANSIENT_STATUS:
        raise TransientError(f"HTTP {response.status_code}: {message}", response.status_code)
    raise RefusedError(response.status_code, message)


def _message(body: bytes) -> str:
    """The text of an error body: Ollama's ``{"error": text}``, OpenAI's nested form, LMDeploy's flat one."""
    try:
        document = json.loads(body)
    except ValueError:
        return body[:300].decode("utf-8", "replace") or "no text"
    while isinstance(document, dict):
        document = document.get("error", document.get("message", document.get("detail", "no text")))
    return str(document)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
