"""The contract between the server and whatever computes tokens.

An engine loads one model, streams tokens, scores label tokens, and says how it is. Admission, time-outs,
keys, metrics and HTTP are the server's business; processes, sockets and weights are the engine's.
Implementations: :mod:`model_server.engines.openvino`, ``ollama``, ``lmdeploy`` and ``transformers``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
EngineState = Literal["starting", "ready", "stalled", "dead", "closed"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads.

    Attributes:
        text: The prompt as text, after the chat template where this side applies it.
        messages: The turns, for engines that apply their template themselves; empty for plain completion.
        token_ids: Ids of ``text``, where this side tokenises; empty otherwise.
        tokens: Length in tokens; an estimate (one per character, never below the truth for byte-level
            BPE on Chinese) where this side does not tokenise.
    """

    text: str
    messages: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. ``temperature`` 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together. ``text`` is empty while they do not yet end a character.

    Attributes:
        logprobs: Natural-log probability of each token; empty where the engine gives none.
        finish_reason: Set on the last chunk only.
        prompt_tokens: Length of the prompt as the engine counted it; set on the last chunk.
        computed: When the engine took the request, had its first token and its last, ``time.monotonic()`` seconds
            (one clock for all processes of a machine); on the last chunk, None where the engine does not tell.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    tokens: int = 1
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    computed: tuple[float, float, float] | None = None


class Scored(list[list[float]]):
    """Log-probabilities, (prompts, labels), and when the engine computed them.

    Attributes:
        computed: Begin and end of it, ``time.monotonic()`` seconds.
        batch: Prompts that were computed together.
    """

    def __init__(self, rows: Sequence[list[float]], computed: tuple[float, float], batch: int) -> None:
        super().__init__(rows)
        self.computed, self.batch = computed, batch


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What came up. ``kv_tokens`` None: the engine keeps its own pool and tells nobody."""

    engine: str
    model: str
    """The name it was asked to serve under."""
    source: str
    device: str
    context_tokens: int
    slots: int
    """Requests computed at once."""
    kv_tokens: int | None = None
    weight_bits: int | None = None
    kv_cache_bits: int | None = None
    threads: int | None = None
    weights_bytes: int | None = None
    tasks: frozenset[Literal["generate", "classify", "logprobs"]] = frozenset({"generate"})
    phases_s: dict[str, float] = field(default_factory=dict)
    """Start-up phases and their seconds, in order: process, imports, weights, compile, first_token."""
    detail: dict[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """A snapshot, free of I/O: the server answers ``/health`` from it while the engine computes.

    Attributes:
        progress: Grows with each step; a request that runs while it stands still is a stall.
        since_progress_s: Seconds since ``progress`` last grew, or since the engine was last idle.
        slots: Requests it computes at once now; fewer than at load after it ran out of memory. 0 before load.
        out_of_memory: The last death was the kernel's for memory.
    """

    state: EngineState
    reason: str = ""
    progress: int = 0
    since_progress_s: float = 0.0
    running: int = 0
    waiting: int = 0
    cache_use: float = 0.0
    """Share of the KV pool in use, 0 to 1."""
    restarts: int = 0
    pid: int | None = None
    slots: int = 0
    out_of_memory: bool = False


class Engine(Protocol):
    """One loaded model."""

    async def load(self) -> EngineInfo:
        """Start and be ready to answer.

        Raises:
            ModelLoadError: The model cannot be loaded; a second try may or may not help.
            ResourceInsufficientError: It was killed for memory or could not allocate.
        """

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        """Tokenise plain text or a chat (the chat template applied, thinking off)."""

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        """Stream tokens. Closing the iterator (``aclose``) stops the computation and frees its cache.

        Raises:
            EngineUnavailableError: Before the first chunk only: not ready, or died and may be retried.
            EngineError: The engine failed after tokens were sent.
        """

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> list[list[float]]:
        """Log-probabilities over the full vocabulary of each label as the next token, (prompts, labels);
        :class:`Scored` where the engine tells when.

        Raises:
            TaskNotSupportedError: The engine gives no log-probabilities.
            EngineUnavailableError: Not ready, or died before it answered.
        """

    def health(self) -> EngineHealth: ...

    async def close(self) -> None:
        """Stop; running streams end with an error. Called twice, the second call does nothing."""
