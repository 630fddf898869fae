"""Keeps an engine answering: load tries, the fallback model, replacement of a dead or hung engine, retries.

Wraps any :class:`~model_server.engine.Engine`; the server sees one engine that is sometimes not ready. What was
sent to a client is never sent twice: a request is tried again only while it has yielded nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import structlog

from model_server.engine import Chunk, Engine, EngineHealth, EngineInfo, Message, Prompt, Sampling
from model_server.errors import DeploymentError, EngineUnavailableError, ModelLoadError, ResourceInsufficientError

LOAD_TRIES = 3
"""Per model, before the fallback is tried."""
REQUEST_TRIES = 3
BACKOFF_S = 0.5
"""Before the second try; doubles, with jitter, up to :data:`BACKOFF_MAX_S`."""
BACKOFF_MAX_S = 30.0
WATCH_S = 0.1
"""How often the engine's health is looked at: the longest that a dead one goes unnoticed."""
SETTLED_S = 60.0
"""An engine that lived this long starts the back-off anew."""

Build = Callable[[str, int], Engine]

log = structlog.get_logger()


class RecoveringEngine:
    """An engine that is rebuilt when it fails."""

    def __init__(self, build: Build, sources: Sequence[str], slots: int) -> None:
        """``build(source, slots)`` makes an engine that is not loaded yet.

        Args:
            sources: The model, then the fallback if there is one.
            slots: Requests computed at once; halved each time the engine runs out of memory.
        """
        self._build, self._sources, self._slots = build, tuple(sources), slots
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._ready = asyncio.Event()
        self._why = "not loaded yet"
        self._restarts = 0
        self._failures = 0
        self._loaded_at = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """What is loaded now; changes when the fallback takes over or slots are halved."""
        if self._info is None:
            raise EngineUnavailableError(self._why)
        return self._info

    async def load(self) -> EngineInfo:
        info = await self._load()
        self._watching = asyncio.create_task(self._watch())
        return info

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        if self._engine is None:
            raise EngineUnavailableError(self._why)
        return self._engine.prompt(content)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        source = self.info.source
        for tries in range(1, REQUEST_TRIES + 1):
            engine = await self._wait_until_ready()
            fitting = self._fitting(prompt, source)
            begun = False
            async with contextlib.aclosing(_as_generator(engine.generate(fitting, sampling))) as chunks:
                try:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                    return
                except EngineUnavailableError as error:
                    if begun or tries == REQUEST_TRIES or self._closed:
                        raise
                    log.warning("request_retried", reason=error.reason, tries=tries)
            await self._wait_until_replaced(engine)

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> list[list[float]]:
        source = self.info.source
        for tries in range(1, REQUEST_TRIES + 1):
            engine = await self._wait_until_ready()
            try:
                return await engine.score([self._fitting(prompt, source) for prompt in prompts], label_ids)
            except EngineUnavailableError as error:
                if tries == REQUEST_TRIES or self._closed:
                    raise
                log.warning("request_retried", reason=error.reason, tries=tries)
            await self._wait_until_replaced(engine)
        raise AssertionError("the loop returns or raises")

    def health(self) -> EngineHealth:
        if self._engine is None or not self._ready.is_set():
            return EngineHealth(
                state="closed" if self._closed else "starting",
                reason=self._why,
                restarts=self._restarts,
                slots=self._slots,
            )
        return dataclasses.replace(self._engine.health(), restarts=self._restarts)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed, self._why = True, "closed"
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        self._ready.set()  # wakes those who wait; they see that it is closed
        if self._engine is not None:
            await self._engine.close()

    async def _load(self) -> EngineInfo:
        """Each source three times; with half the slots after running out of memory.

        Raises:
            ModelLoadError: Every source failed; the last reason.
            ResourceInsufficientError: It ran out of memory with a single slot too.
        """
        failure: DeploymentError | None = None
        for source in self._sources:
            for attempt in range(1, LOAD_TRIES + 1):
                engine: Engine | None = None
                try:
                    engine = self._build(source, self._slots)
                    info = await engine.load()
                except (ModelLoadError, ResourceInsufficientError) as error:
                    failure = error
                    log.warning("model_load_failed", source=source, attempt=attempt, of=LOAD_TRIES, reason=str(error))
                    if isinstance(error, ResourceInsufficientError):
                        self._halve_slots()
                    if attempt < LOAD_TRIES:
                        await asyncio.sleep(_backoff_s(attempt))
                else:
                    self._engine, self._info = engine, info
                    self._loaded_at = time.monotonic()
                    self._ready.set()
                    log.info("model_loaded", source=source, slots=self._slots, fallback=source != self._sources[0])
                    return info
        assert failure is not None
        raise failure

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            assert self._engine is not None
            health = self._engine.health()
            if health.state in ("dead", "stalled"):
                await self._replace(health)

    async def _replace(self, health: EngineHealth) -> None:
        assert self._engine is not None
        self._ready.clear()
        self._restarts += 1
        self._why = f"restarting, because {health.reason or health.state}"
        log.error("engine_lost", state=health.state, reason=health.reason, restarts=self._restarts)
        if health.out_of_memory:
            self._halve_slots()
        self._failures = 0 if time.monotonic() - self._loaded_at > SETTLED_S else self._failures + 1
        await self._engine.close()
        while True:
            if self._failures > 1:
                await asyncio.sleep(_backoff_s(self._failures - 1))
            try:
                await self._load()
                return
            except (ModelLoadError, ResourceInsufficientError) as error:
                self._failures += 1
                self._why = str(error)

    def _halve_slots(self) -> None:
        self._slots = max(1, self._slots // 2)
        log.warning("slots_halved", slots=self._slots)

    def _fitting(self, prompt: Prompt, source: str) -> Prompt:
        """``prompt`` as the model that is loaded now reads it: the fallback may have another tokenizer."""
        if self.info.source == source:
            return prompt
        return self.prompt(prompt.messages or prompt.text)

    async def _wait_until_ready(self) -> Engine:
        await self._ready.wait()
        if self._closed or self._engine is None:
            raise EngineUnavailableError("the server is shutting down")
        return self._engine

    async def _wait_until_replaced(self, engine: Engine) -> None:
        """The engine that failed may not have been noticed yet; do not run into it again."""
        await asyncio.sleep(WATCH_S)
        while self._engine is engine and not self._closed and engine.health().state != "ready":
            await asyncio.sleep(WATCH_S)


def _backoff_s(attempt: int) -> float:
    wait_s: float = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
    return wait_s


async def _as_generator(chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk, None]:
    """Own the iterator, so that closing this closes that."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
