"""Who is computed when: slots, cache tokens and a bounded queue; and how long a request may take.

The engine is never given more than it can hold. Every request reserves a slot and prompt + max_tokens of the KV
pool before it starts, in order of arrival, and gives them back when it ends, however it ends. What cannot wait
its turn within the time limit is refused at once, because an early 429 costs the client less than a late 504.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from model_server.errors import ClientGoneError, EngineTimeoutError, OverloadedError, RequestError

SMOOTHING = 0.2
"""Weight of the newest request in the running mean of service times."""


class Admission:
    """Slots and KV tokens, first come first served.

    Attributes:
        slots: Requests computed at once; lowered when the engine ran out of memory.
        kv_tokens: Tokens that fit the cache; None where the engine keeps its own pool.
        max_queue: Requests that may wait.
        limit_s: Longest time a request may take in all.
        waiting: Requests in the queue.
        running: Requests that hold a slot.
    """

    def __init__(self, *, slots: int, kv_tokens: int | None, max_queue: int, limit_s: float) -> None:
        self.slots, self.kv_tokens = slots, kv_tokens
        self.max_queue, self.limit_s = max_queue, limit_s
        self.waiting = 0
        self.running = 0
        self.reserved_tokens = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._service_s: float | None = None

    def refuse_if_full(self) -> None:
        """Cheap enough to ask before the prompt is read.

        Raises:
            OverloadedError: Every place in the queue is taken, or the last one would not be answered in time.
        """
        if not self._must_wait(0):
            return
        if self.waiting >= self.max_queue:
            raise OverloadedError(f"{self.waiting} requests are waiting already", self.retry_after_s())
        expected_s = self.expected_wait_s() + (self._service_s or 0.0)
        if expected_s > self.limit_s:
            reason = f"an answer would take about {expected_s:.0f} s, more than request_timeout_s"
            raise OverloadedError(reason, self.retry_after_s())

    def expected_wait_s(self) -> float:
        """Until a request that comes now would start: those before it, at the rate of late; 0 while unknown."""
        if self._service_s is None or not self.running:
            return 0.0
        return (self.waiting + 1) * self._service_s / self.running

    def retry_after_s(self) -> int:
        """Until what waits now has been worked off, at least 1 and at most 60 s."""
        return min(60, max(1, math.ceil(self.expected_wait_s())))

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncIterator[float]:
        """Hold a slot and ``tokens`` of the cache; yields the seconds waited for them.

        Raises:
            OverloadedError: As in :meth:`refuse_if_full`.
        """
        # A prompt that is only estimated may be counted above the pool; alone it still runs.
        tokens = tokens if self.kv_tokens is None else min(tokens, self.kv_tokens)
        asked_at = time.monotonic()
        if self._must_wait(tokens):
            self.refuse_if_full()
            await self._wait(tokens)
        else:
            self._take(tokens)
        started_at = time.monotonic()
        completed = False
        try:
            yield started_at - asked_at
            completed = True
        finally:
            if completed:  # requests that were cut short would make the engine look faster than it is
                self._learn(time.monotonic() - started_at)
            self._give_back(tokens)

    def resize(self, slots: int, kv_tokens: int | None) -> None:
        """Take over what the engine holds now; those who run keep what they have."""
        if (slots, kv_tokens) != (self.slots, self.kv_tokens):
            self.slots, self.kv_tokens = slots, kv_tokens
            self._wake()

    def _must_wait(self, tokens: int) -> bool:
        return self.waiting > 0 or not self._fits(tokens)

    def _fits(self, tokens: int) -> bool:
        if self.running >= self.slots:
            return False
        # The reservation may exceed a pool that shrank meanwhile; whoever is alone always fits.
        return self.kv_tokens is None or not self.running or self.reserved_tokens + tokens <= self.kv_tokens

    async def _wait(self, tokens: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((tokens, turn))
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(tokens)  # its turn came in the same moment as it left
            else:
                self.waiting -= 1
                turn.cancel()
                self._wake()  # whoever stood behind a large one may fit now
            raise

    def _wake(self) -> None:
        while self._queue:
            tokens, turn = self._queue[0]
            if turn.done():
                self._queue.popleft()
                continue
            if not self._fits(tokens):
                return
            self._queue.popleft()
            self.waiting -= 1
            self._take(tokens)
            turn.set_result(None)

    def _take(self, tokens: int) -> None:
        self.running += 1
        self.reserved_tokens += tokens

    def _give_back(self, tokens: int) -> None:
        self.running -= 1
        self.reserved_tokens -= tokens
        self._wake()

    def _learn(self, seconds: float) -> None:
        known = self._service_s
        self._service_s = seconds if known is None else known + SMOOTHING * (seconds - known)


Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Deadline:
    """The life of one request: ends with its work, its time limit, its client, or by :meth:`end`.

    Used as ``async with``; the work inside is cancelled, and the reason comes out as an error. Once the body
    was read, ``receive`` returns only when the client has left, so a task waits there.

    Raises:
        EngineTimeoutError: ``limit_s`` is over.
        ClientGoneError: The client closed the connection.
        RequestError: What :meth:`end` was given.
    """

    def __init__(self, limit_s: float, receive: Receive, live: set[Deadline]) -> None:
        self._limit_s, self._receive, self._live = limit_s, receive, live
        self._reason: RequestError | None = None
        self._timeout = asyncio.timeout(limit_s)
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._live.add(self)
        self._watch = asyncio.create_task(self._until_gone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.discard(self)
        if self._watch is not None:
            self._watch.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise (self._reason or EngineTimeoutError(self._limit_s)) from None

    def end(self, reason: RequestError) -> None:
        """Cancel the work; ``reason`` is what comes out."""
        if self._reason is None and not self._timeout.expired():
            self._reason = reason
            self._timeout.reschedule(0)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGoneError())
