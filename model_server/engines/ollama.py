"""A running Ollama: status, models, pull, generation. Read against the source of Ollama 0.11.4.

What Ollama does that a caller does not expect, and what is done about it here:

* A prompt longer than ``num_ctx`` is cut in the middle without a word, and generation past it shifts the
  window: prompts are admitted by an estimate that is never below the truth (:func:`remote.outline`).
* More than 30 equal pieces in a row end the answer without ``done`` (llm/server.go): reported as "length".
* ``num_ctx`` that differs from the loaded one reloads the model: each request carries the same.
* A model is unloaded after 5 idle minutes: kept while this engine is open, handed back on close.
* ``repeat_penalty`` (1.1), ``top_k`` (40) and ``top_p`` (0.9) are on by default: every value is sent.
* There are no log-probabilities: :meth:`OllamaEngine.score` refuses, classification has the label alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_server.engine import (
    Chunk,
    EngineHealth,
    EngineInfo,
    EngineState,
    FinishReason,
    Message,
    Prompt,
    Sampling,
)
from model_server.engines.remote import Activity, RefusedError, Remote, TransientError, chatml, outline
from model_server.errors import (
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    OverloadedError,
    ResourceInsufficientError,
    TaskNotSupportedError,
)

if TYPE_CHECKING:
    import httpx2

DEFAULT_URL = "http://localhost:11434"

LOOK_TIMEOUT_S = 10.0
"""A machine that computes with all cores may let even this wait."""

_KEEP_LOADED = -1
_HAND_BACK = "5m"
"""Ollama's own default (envconfig.KeepAlive)."""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One line of ``/api/tags``."""

    name: str
    size_bytes: int
    family: str
    quantization: str


@dataclass(frozen=True, slots=True)
class PullProgress:
    """One line of a pull; bytes are 0 where the step has none (manifest, checks)."""

    status: str
    completed_bytes: int = 0
    total_bytes: int = 0


class OllamaEngine:
    """An :class:`~model_server.engine.Engine` on a running Ollama.

    Args:
        model: The name it is served under here.
        source: The name Ollama knows, for example ``qwen3:0.6b``.
        slots: Requests that Ollama computes at once; its OLLAMA_NUM_PARALLEL, which it tells nobody.
        raw_chat: Apply Qwen3's chat template here and send raw text, for models created without a template.
        poll_s: Seconds between two looks whether Ollama still answers.
    """

    def __init__(
        self,
        *,
        model: str,
        source: str,
        url: str = DEFAULT_URL,
        slots: int = 1,
        context_tokens: int = 4096,
        raw_chat: bool = False,
        load_timeout_s: float = 600.0,
        read_timeout_s: float = 300.0,
        connect_timeout_s: float = 5.0,
        poll_s: float = 2.0,
        backoff_s: float = 0.2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._model, self._source, self._slots = model, source, slots
        self._context_tokens, self._raw_chat = context_tokens, raw_chat
        self._load_timeout_s, self._poll_s = load_timeout_s, poll_s
        self._remote = Remote(
            url,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            backoff_s=backoff_s,
            transport=transport,
        )
        self._activity = Activity()
        self._state: EngineState = "starting"
        self._reason = ""
        self._watch: asyncio.Task[None] | None = None

    async def models(self) -> list[OllamaModel]:
        """What ``/api/tags`` lists. Raises EngineUnavailableError where no Ollama answers."""
        tags = await self._remote.call("GET", "/api/tags", timeout_s=10)
        return [
            OllamaModel(
                name=model["name"],
                size_bytes=model.get("size", 0),
                family=model.get("details", {}).get("family", ""),
                quantization=model.get("details", {}).get("quantization_level", ""),
            )
            for model in tags.get("models") or []
        ]

    async def pull(self, name: str) -> AsyncIterator[PullProgress]:
        """Fetch a model from Ollama's registry. Raises ModelLoadError where it says no."""
        try:
            async with self._remote.events("/api/pull", {"model": name}, json.loads) as events:
                async for event in events:
                    if "error" in event:
                        raise ModelLoadError(name, f"Ollama cannot pull it: {event['error']}")
                    yield PullProgress(event.get("status", ""), event.get("completed", 0), event.get("total", 0))
        except (RefusedError, EngineError) as error:
            raise ModelLoadError(name, f"Ollama cannot pull it: {error}") from error

    async def load(self) -> EngineInfo:
        started = time.monotonic()
        try:
            model = await self._find()
            shown = await self._remote.call("POST", "/api/show", {"model": self._source}, timeout_s=30)
            trained = next(
                (value for key, value in shown.get("model_info", {}).items() if key.endswith(".context_length")),
                self._context_tokens,
            )
            self._context_tokens = min(self._context_tokens, trained)
            version = await self._remote.call("GET", "/api/version", timeout_s=10)
            # An empty prompt loads the model and answers when it is in memory.
            await self._remote.call(
                "POST",
                "/api/generate",
                self._body({"prompt": "", "stream": False}),
                timeout_s=self._load_timeout_s,
            )
            loaded = time.monotonic()
            warm = self._body({"prompt": "a", "raw": True, "stream": False}, num_predict=1)
            await self._remote.call("POST", "/api/generate", warm, timeout_s=self._load_timeout_s)
        except EngineUnavailableError as error:
            raise ModelLoadError(
                self._source,
                f"no Ollama answers at {self._remote.url} ({error.reason}); start it with 'ollama serve'",
            ) from error
        except RefusedError as error:
            if "system memory" in error.message:  # "model requires more system memory (x) than is available (y)"
                raise ResourceInsufficientError(f"Ollama cannot load {self._source}: {error.message}") from error
            raise ModelLoadError(self._source, f"Ollama refused it: {error}") from error
        self._state, self._reason = "ready", ""
        if self._watch is None:
            self._watch = asyncio.create_task(self._look(), name="ollama-watch")
        return EngineInfo(
            engine="ollama",
            model=self._model,
            source=self._source,
            device=self._remote.url,
            context_tokens=self._context_tokens,
            slots=self._slots,
            weight_bits=_bits(model.quantization),
            weights_bytes=model.size_bytes,
            tasks=frozenset({"generate"}),
            phases_s={"weights": loaded - started, "first_token": time.monotonic() - loaded},
            detail={"ollama_version": str(version.get("version", "")), "quantization": model.quantization},
        )

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        return outline(content)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        path, body = self._request(prompt, sampling)
        self._require_ready()
        sent = 0
        with self._activity.request():
            try:
                async with self._remote.events(path, body, _parse) as events:
                    async for event in events:
                        self._activity.step()
                        piece = event["message"]["content"] if path == "/api/chat" else event["response"]
                        if event["done"]:
                            yield Chunk(
                                text=piece,
                                # Pieces may hold several tokens; only the last line has the true count.
                                tokens=max(0, event.get("eval_count", sent) - sent),
                                finish_reason=_finish(event.get("done_reason")),
                                # Absent in older versions when the whole prompt was in the cache.
                                prompt_tokens=event.get("prompt_eval_count"),
                            )
                            return
                        sent += 1
                        yield Chunk(text=piece)
            except EngineUnavailableError as error:
                if isinstance(error.__cause__, TransientError) and error.__cause__.status == 503:
                    # Its queue (OLLAMA_MAX_QUEUE, 512) is full: the engine lives, others are being answered.
                    raise OverloadedError("Ollama's queue is full", retry_after_s=5) from error
                self._lost(error.reason)
                raise
            except RefusedError as error:
                if error.status < 500 and error.status != 404:
                    raise InvalidRequestError(f"Ollama: {error.message}") from error
                self._lost(error.message)  # 404: the model was removed while we ran
                raise EngineUnavailableError(f"Ollama: {error.message}") from error
        # A whole HTTP answer without "done": the repeat limit, the only such path in 0.11.4.
        yield Chunk(text="", tokens=0, finish_reason="length")

    async def score(
        self,
        prompts: Sequence[Prompt],  # noqa: ARG002
        label_ids: Sequence[int],  # noqa: ARG002
    ) -> list[list[float]]:
        raise TaskNotSupportedError(
            "label probabilities",
            "Ollama's API gives no log-probabilities; use engine openvino for calibrated ones",
        )

    def health(self) -> EngineHealth:
        return self._activity.health(self._state, self._reason, self._slots)

    async def close(self) -> None:
        if self._state == "closed":
            return
        self._state = "closed"
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            with contextlib.suppress(TransientError, RefusedError):
                loaded = await self._remote.call_once("GET", "/api/ps", timeout_s=2)
                if any(model["name"] == _tagged(self._source) for model in loaded.get("models") or []):
                    back = {**self._body({"prompt": "", "stream": False}), "keep_alive": _HAND_BACK}
                    await self._remote.call_once("POST", "/api/generate", back, timeout_s=5)
        await self._remote.aclose()

    async def _find(self) -> OllamaModel:
        models = await self.models()
        for model in models:
            if model.name == _tagged(self._source):
                return model
        there = ", ".join(model.name for model in models) or "none"
        raise ModelLoadError(
            self._source,
            f"Ollama at {self._remote.url} has no such model; there: {there}; run 'ollama pull {self._source}'",
        )

    def _request(self, prompt: Prompt, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        if sampling.logprobs:
            raise TaskNotSupportedError("logprobs", "Ollama's API gives no log-probabilities")
        if sampling.ignore_eos:
            raise InvalidRequestError("engine ollama always ends at the end-of-text token", "ignore_eos")
        options: dict[str, Any] = {
            "num_predict": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": list(sampling.stop),
        }
        if sampling.seed is not None:
            options["seed"] = sampling.seed
        if prompt.messages and not self._raw_chat:
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
            # think false: Qwen3's template in Ollama's library adds its empty thinking block.
            return "/api/chat", self._body({"messages": turns, "think": False}, **options)
        text = chatml(prompt.messages) if prompt.messages else prompt.text
        return "/api/generate", self._body({"prompt": text, "raw": True}, **options)

    def _body(self, fields: dict[str, Any], **options: object) -> dict[str, Any]:
        return {
            "model": self._source,
            "keep_alive": _KEEP_LOADED,
            **fields,
            "options": {"num_ctx": self._context_tokens, "repeat_penalty": 1.0, "min_p": 0.0, **options},
        }

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise EngineUnavailableError(self._reason or self._state)

    def _lost(self, reason: str) -> None:
        """Dead for good: recovery builds a new engine, whose load waits for Ollama to answer again."""
        if self._state == "ready":
            self._state, self._reason = "dead", reason

    async def _look(self) -> None:
        """Notice an Ollama that went away while nobody asks it anything."""
        misses = 0
        while misses < 2:
            await asyncio.sleep(self._poll_s)
            try:
                await self._remote.call_once("GET", "/api/version", timeout_s=LOOK_TIMEOUT_S)
                misses = 0
            except (TransientError, RefusedError) as error:
                misses, reason = misses + 1, str(error)
        self._lost(f"no Ollama answers at {self._remote.url}: {reason}")


def _parse(line: bytes) -> dict[str, Any]:
    """One NDJSON line. An error may come in a line after HTTP 200 was sent."""
    event: dict[str, Any] = json.loads(line)
    if "error" in event:
        raise TransientError(event["error"])  # for example a runner that died: Ollama starts a new one
    return event


def _finish(reason: str | None) -> FinishReason:
    return "length" if reason == "length" else "stop"


def _tagged(name: str) -> str:
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _bits(quantization: str) -> int | None:
    """Weight bits of a GGUF file type: Q4_0, Q4_K_M, IQ3_XS, F16, BF16, F32."""
    found = re.match(r"(?:I?Q|BF|F)(\d+)", quantization)
    return int(found[1]) if found else None
