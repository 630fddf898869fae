"""One deployed model and everything a request needs of it, without HTTP.

Endpoints read and write JSON; what happens between is here: is the engine up, does the prompt fit, wait for a
place, stream tokens, classify in batches, and count all of it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog

from model_server import classification, masking, tracing
from model_server.admission import Admission, Deadline, Receive
from model_server.engine import Chunk, Engine, EngineInfo, Message, Prompt, Sampling, Scored
from model_server.errors import (
    ContextTooLongError,
    EngineError,
    EngineUnavailableError,
    ModelLoadError,
    OverloadedError,
    RequestError,
    TaskNotSupportedError,
)
from model_server.recovery import RecoveringEngine
from model_server.schemas import MAX_TOKENS, Health, HealthStatus

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from model_server.classification import ClassificationSettings, Decision
    from model_server.deployment import DeploymentConfig
    from model_server.metrics import Metrics

log = structlog.get_logger("model_server")

LONG_TEXT = 2048
"""Characters; tokenising more takes over 2 ms, so it is done in a thread while others are answered."""

PROBE = "客户:A1 你好\n客服:。"
"""Stands for a call where it is checked that tokens do not reach over the prompt's seams."""

LETTER_TOKENS = 4
"""Enough for a letter after a space or a quotation mark."""


@dataclass(slots=True)
class Record:
    """What is known of one request: filled on its way, written as one line when it has ended."""

    request_id: str
    endpoint: str
    arrived_at: float
    """time.monotonic()."""
    key: str = ""
    status: int = 0
    failure: RequestError | None = None
    prompt_length: int = 0
    """Characters."""
    response_length: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    queue_s: float | None = None
    first_token_s: float | None = None
    category: str | None = None
    """Of the one text that was classified; None for several."""
    confidence: float | None = None
    span: Span | None = None
    stage: tuple[str, float] | None = None
    """Of tracing.STAGES: the one under way and since when, so that an error is recorded where it arises."""
    texts: dict[str, str] = field(default_factory=dict)
    """Masked prompt and answer, with ``record_text`` only."""


class Service:
    """The engine behind admission.

    Attributes:
        info: What came up; None while it loads.
        failure: Why it never will; None otherwise.
        draining: No new work; what was accepted is finished.
        was_cut: Requests had to be ended because draining took too long.
        live: Requests under way.
    """

    def __init__(
        self, engine: Engine, config: DeploymentConfig, classifier: ClassificationSettings | None, metrics: Metrics
    ) -> None:
        self.engine, self.config, self.classifier, self.metrics = engine, config, classifier, metrics
        settings, serving = config.optimization_settings, config.serving
        self.info: EngineInfo | None = None
        self.failure: str | None = None
        self.loaded_since: str | None = None
        self.draining = False
        self.was_cut = False
        self.live: set[Deadline] = set()
        self.admission = Admission(
            slots=settings.max_batch_size,
            kv_tokens=None,
            max_queue=serving.max_queue,
            limit_s=serving.request_timeout_s,
        )
        self._head: tuple[int, tuple[int, ...] | None] | None = None
        self._batches = ScoreBatches(
            engine,
            () if classifier is None else tuple(classifier.label_ids.values()),
            settings.max_batch_size,
            serving.max_queue,
        )
        metrics.watch_engine(engine)
        metrics.queue_depth.set_function(lambda: self.admission.waiting + self._batches.waiting)
        metrics.running.set_function(lambda: self.admission.running + self._batches.running)
        metrics.queue_capacity.set(serving.max_queue)
        if classifier is not None:
            metrics.expect_categories(classifier.labels.values())
            if classifier.expected is not None:
                metrics.expect_answers(classifier.expected.confidence, classifier.expected.categories)

    # -- life -----------------------------------------------------------------------------------------

    async def come_up(self, load: Awaitable[EngineInfo]) -> None:
        """Wait for the engine, then take requests.

        Raises:
            DeploymentError: It cannot be loaded.
        """
        try:
            info = await load
        except Exception as error:
            self.failure = str(error)
            raise
        self._take(info)

    def _take(self, info: EngineInfo) -> None:
        """Serve what came up: the model that was asked for, or its fallback."""
        directory = Path(info.source)
        if info.source != self.config.model_source and directory.is_dir():
            # Another model has other labels: asked in the old one's way it would answer, and wrongly.
            try:
                self.classifier = classification.load_settings(directory)
            except ModelLoadError as error:
                log.warning("this model cannot classify", reason=str(error))
                self.classifier = None
            self._batches.label_ids = () if self.classifier is None else tuple(self.classifier.label_ids.values())
            self._head = None
        self.admission.resize(info.slots, info.kv_tokens)
        self.loaded_since = datetime.now(UTC).isoformat(timespec="seconds")
        bits = info.weight_bits
        self.metrics.describe_model(name=info.model, version=self.config.model_version, engine=info.engine, bits=bits)
        self.info = info

    def follow_engine(self) -> None:
        """Take note of a replaced engine: perhaps the fallback model, perhaps with fewer slots."""
        if self.info is None:
            return
        if isinstance(self.engine, RecoveringEngine) and self.engine.info is not self.info:
            self._take(self.engine.info)
        slots = self.engine.health().slots
        if slots > 0:
            kv_tokens = self.info.kv_tokens
            # The pool shrinks with the slots (engines.create).
            kv_tokens = None if kv_tokens is None else kv_tokens * slots // self.info.slots
            self.admission.resize(slots, kv_tokens)

    def health(self) -> Health:
        """From memory alone: answered while the engine computes, hangs or is replaced."""
        health = self.engine.health()
        told: HealthStatus = health.state
        reason = health.reason
        if self.info is None and told == "ready":
            told = "starting"
        elif self.info is not None and told == "starting":
            told = "restarting"
        if self.failure is not None:
            told, reason = "failed", self.failure
        elif self.draining:
            told, reason = "draining", "the server is stopping"
        return Health(
            status=told,
            reason=reason,
            progress=health.progress,
            since_progress_s=round(health.since_progress_s, 3),
            running=self.admission.running + self._batches.running,
            waiting=self.admission.waiting + self._batches.waiting,
            restarts=health.restarts,
        )

    def ready(self) -> EngineInfo:
        """What answers now.

        Raises:
            EngineUnavailableError: Nothing does yet, or no longer.
        """
        if self.info is None:
            raise EngineUnavailableError(self.failure or "the model is being loaded", 2)
        return self.info

    def cut(self) -> None:
        """End every request under way, with an error that says so."""
        for deadline in list(self.live):
            self.was_cut = True
            deadline.end(EngineUnavailableError("the server is stopping"))

    def deadline(self, receive: Receive) -> Deadline:
        return Deadline(self.config.serving.request_timeout_s, receive, self.live)

    # -- generation -----------------------------------------------------------------------------------

    async def prompt(self, content: str | Sequence[Message]) -> Prompt:
        length = len(content) if isinstance(content, str) else sum(len(turn.content) for turn in content)
        if length > LONG_TEXT:
            return await asyncio.to_thread(self.engine.prompt, content)
        return self.engine.prompt(content)

    def fit(self, prompt: Prompt, max_tokens: int | None) -> int:
        """Tokens the answer may have; ``max_tokens`` None: MAX_TOKENS, or what the context leaves.

        Raises:
            ContextTooLongError: Prompt and answer do not fit together.
        """
        context = self.ready().context_tokens
        # Without ids the length is an estimate that is never too low: refusing by it would turn away what fits.
        length = prompt.tokens if prompt.token_ids else min(prompt.tokens, context - (max_tokens or 1))
        asked = max(1, min(MAX_TOKENS, context - length)) if max_tokens is None else max_tokens
        if length + asked > context:
            raise ContextTooLongError(prompt.tokens, asked, context)
        return asked

    async def tokens(self, record: Record, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[list[Chunk], None]:
        """Wait for a place and stream; each item holds the chunks that were ready together.

        Close it (``aclosing``) to stop the engine.
        """
        if sampling.logprobs and "logprobs" not in self.ready().tasks:
            raise TaskNotSupportedError("logprobs", f"engine {self.ready().engine!r} gives none")
        metrics = self.metrics
        record.stage = ("queue", time.monotonic())
        async with self.admission.place(prompt.tokens + sampling.max_tokens) as waited_s:
            record.queue_s = waited_s
            metrics.queue_wait_seconds.observe(waited_s)
            started_at = first_at = last_at = time.monotonic()
            tracing.record("queue", record.span, started_at - waited_s, started_at)
            record.stage = ("prefill", started_at)
            computed: tuple[float, float, float] | None = None
            prompt_tokens = prompt.tokens
            groups = ready_together(self.engine.generate(prompt, sampling))
            ended = False
            try:
                async with aclosing(groups):
                    async for group in groups:
                        last_at = time.monotonic()
                        if not record.tokens:
                            first_at = last_at
                            record.stage = ("decode", first_at)
                            record.first_token_s = first_at - record.arrived_at
                            metrics.time_to_first_token_seconds.observe(record.first_token_s)
                        for chunk in group:
                            record.tokens += chunk.tokens
                            # As they come: a long answer is no stall.
                            metrics.generated_tokens_total.inc(chunk.tokens)
                            record.response_length += len(chunk.text)
                            if chunk.prompt_tokens is not None:
                                prompt_tokens = chunk.prompt_tokens
                            computed = chunk.computed or computed
                        record.prompt_tokens = prompt_tokens
                        yield group
                ended = True
            except (asyncio.CancelledError, GeneratorExit):
                metrics.cancelled_tokens_saved_total.inc(max(0, sampling.max_tokens - record.tokens))
                raise
            finally:
                if record.tokens:
                    # As the engine saw it, where it tells: what lies between is the way there and back.
                    taken, first, last = computed or (started_at, first_at, last_at)
                    pid = None if computed is None else self.engine.health().pid
                    tracing.record("prefill", record.span, taken, first, tokens=prompt_tokens, pid=pid)
                    if ended:
                        tracing.record("decode", record.span, first, last, tokens=record.tokens, pid=pid)
                        record.stage = None
                metrics.prompt_tokens_total.inc(prompt_tokens if record.tokens or ended else 0)
                if record.tokens > 1:
                    metrics.time_per_output_token_seconds.observe((last_at - first_at) / (record.tokens - 1))

    def note_texts(self, record: Record, **texts: str) -> None:
        """Keep a masked form for the log where the operator asked for it."""
        if self.config.serving.record_text:
            record.texts |= {f"{name}_masked": masking.mask(text) for name, text in texts.items()}

    # -- classification -------------------------------------------------------------------------------

    async def classify(self, record: Record, texts: Sequence[str]) -> list[Decision]:
        """Decide about each text, in order."""
        info, settings = self.ready(), self.classifier
        if settings is None:
            raise TaskNotSupportedError("classification", f"model {info.model!r} has no classification.json")
        if "classify" in info.tasks:
            self._batches.refuse_if_full()
            prompts = []
            for number, text in enumerate(texts, 1):
                prompts.append(await self._call_prompt(text, settings))
                if number % 8 == 0:  # about 2 ms of work: others are answered in between
                    await asyncio.sleep(0)
            record.prompt_tokens = sum(prompt.tokens for prompt in prompts)
            asked_at = time.monotonic()
            record.stage = ("prefill", asked_at)
            scores = await self._batches.score(prompts)
            began, ended = scores.computed
            record.stage, record.queue_s = None, began - asked_at
            tracing.record("queue", record.span, asked_at, began)
            tracing.record(
                "prefill",
                record.span,
                began,
                ended,
                tokens=record.prompt_tokens,
                batch=scores.batch,
                pid=self.engine.health().pid,
            )
            decisions = [classification.decide(row, settings) for row in scores]
            self.metrics.prompt_tokens_total.inc(record.prompt_tokens)
        else:
            decisions = [await self._classify_by_letter(record, text, settings) for text in texts]
        for decision in decisions:
            self.metrics.classifications_total.labels(category=decision["category"]).inc()
            if decision["confidence"] is not None:
                self.metrics.classification_confidence.observe(decision["confidence"])
            if decision["needs_review"]:
                self.metrics.classification_reviews_total.inc()
        if len(decisions) == 1:
            record.category, record.confidence = decisions[0]["category"], decisions[0]["confidence"]
        return decisions

    async def _call_prompt(self, text: str, settings: ClassificationSettings) -> Prompt:
        if len(text) > LONG_TEXT:
            call = await asyncio.to_thread(self._prepare, text, settings)
        else:
            call = self._prepare(text, settings)
        head = self._prompt_head(settings)
        if head is None:
            return self.engine.prompt(classification.prompt_text(call, settings))
        rest = self.engine.prompt(call + settings.prompt_suffix)
        return Prompt(
            text=classification.prompt_text(call, settings),
            token_ids=head + rest.token_ids,
            tokens=len(head) + rest.tokens,
        )

    def _prepare(self, text: str, settings: ClassificationSettings) -> str:
        return classification.prepare_call(text, settings, lambda part: self._count(part, settings))

    def _count(self, text: str, settings: ClassificationSettings) -> int:
        """Tokens of ``text``. A text is no more tokens than bytes, which is all that most calls need to know
        (84 us saved of 335 for a call of 100 tokens, 2026-11-23).
        """
        size = len(text.encode())
        return size if size <= settings.max_call_tokens else self.engine.prompt(text).tokens

    def _prompt_head(self, settings: ClassificationSettings) -> tuple[int, ...] | None:
        """Ids of what stands before every call, tokenised once per engine (139 us saved of 335); None where the
        engine gives no ids, or where a text is not tokenised alike in one piece and in two.
        """
        restarts = self.engine.health().restarts
        if self._head is None or self._head[0] != restarts:  # the fallback may have another tokenizer
            ids = self.engine.prompt(settings.prompt_prefix).token_ids
            whole = self.engine.prompt(classification.prompt_text(PROBE, settings)).token_ids
            halves = ids + self.engine.prompt(PROBE + settings.prompt_suffix).token_ids
            self._head = (restarts, ids if ids and whole == halves else None)
        return self._head[1]

    async def _classify_by_letter(self, record: Record, text: str, settings: ClassificationSettings) -> Decision:
        """For engines that only generate: the letter the model says first, and nothing about how sure it is."""
        call = self._prepare(text, settings)
        prompt = self.engine.prompt(classification.prompt_messages(call, settings))
        said = ""
        async with aclosing(self.tokens(record, prompt, Sampling(max_tokens=LETTER_TOKENS))) as groups:
            async for group in groups:
                said += "".join(chunk.text for chunk in group)
        try:
            return classification.decide_from_text(said, settings)
        except ValueError as error:
            raise EngineError(str(error)) from error


async def ready_together(chunks: AsyncIterator[Chunk]) -> AsyncGenerator[list[Chunk], None]:
    """Group what arrived while the last group was being sent.

    A client that reads slowly thus costs no event per token, and does not keep the engine's slot either: the
    tokens wait here, at most ``max_tokens`` of them.
    """
    ready: list[Chunk] = []
    arrived = asyncio.Event()
    failures: list[Exception] = []
    ended = False

    async def read() -> None:
        nonlocal ended
        try:
            async for chunk in chunks:
                ready.append(chunk)
                arrived.set()
        except Exception as error:
            failures.append(error)
        finally:
            ended = True
            arrived.set()

    reader = asyncio.create_task(read())
    try:
        while True:
            while not ready and not ended:
                arrived.clear()
                await arrived.wait()
            if not ready:
                break
            group = ready.copy()
            ready.clear()
            yield group
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
        await cast("AsyncGenerator[Chunk, None]", chunks).aclose()
    if failures:
        raise failures[0]


@dataclass(slots=True, eq=False)
class _Scoring:
    """One request's prompts on their way through the batches."""

    scores: list[list[float]]
    missing: int
    done: asyncio.Future[None]
    began: float = math.inf
    ended: float = 0.0
    batch: int = 0


IN_FLIGHT = 8
"""Batches with the engine, which computes together what has reached it when its last pass is over. 8 against 2, and
against 2 that are computed one by one: 1.08x and 1.14x the calls/s (+- 0.08; tiny model, 2 threads on 2 cores, 16
clients, 12 interleaved rounds, 2026-11-23)."""


class ScoreBatches:
    """Gathers concurrent classifications: a batch is whatever waits when the engine can take another.

    Nothing is held back to fill a batch, so an idle server adds no wait.

    Attributes:
        label_ids: Tokens whose probabilities are asked for.
        running: Requests of which something is being computed.
    """

    def __init__(self, engine: Engine, label_ids: Sequence[int], max_batch: int, max_queue: int) -> None:
        self._engine, self.label_ids = engine, label_ids
        self._max_batch, self._max_queue = max_batch, max_queue
        self._items: deque[tuple[_Scoring, int, Prompt]] = deque()
        self._runners: set[asyncio.Task[None]] = set()
        self._batch_s = 0.0
        self._pending = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests of which nothing is being computed yet."""
        return self._pending - self.running

    def refuse_if_full(self) -> None:
        """As :meth:`Admission.refuse_if_full`; a batch's worth may always wait for the engine."""
        if self._pending >= self._max_queue + self._max_batch:
            ahead_s = self._batch_s * (len(self._items) / self._max_batch + 1)
            raise OverloadedError(f"{self.waiting} requests are waiting already", min(60, int(ahead_s) + 1))

    async def score(self, prompts: Sequence[Prompt]) -> Scored:
        """Log-probability of each label after each prompt."""
        scoring = _Scoring([[]] * len(prompts), len(prompts), asyncio.get_running_loop().create_future())
        self._items.extend((scoring, index, prompt) for index, prompt in enumerate(prompts))
        self._pending += 1
        if len(self._runners) < IN_FLIGHT:
            runner = asyncio.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        try:
            await scoring.done
        finally:
            self._pending -= 1
        return Scored(scoring.scores, (scoring.began, scoring.ended), scoring.batch)

    async def _run(self) -> None:
        # One turn of the loop, so that requests whose bytes are here already join.
        await asyncio.sleep(0)
        while self._items:
            # No turn here: the engine gets its next batch before the answers of the last are written.
            batch = self._next_batch()
            if batch:
                await self._compute(batch)

    def _next_batch(self) -> list[tuple[_Scoring, int, Prompt]]:
        batch: list[tuple[_Scoring, int, Prompt]] = []
        while self._items and len(batch) < self._max_batch:
            item = self._items.popleft()
            if not item[0].done.done():  # its client may have left, or another part of it failed
                batch.append(item)
        return batch

    async def _compute(self, batch: list[tuple[_Scoring, int, Prompt]]) -> None:
        requests = {scoring for scoring, _, _ in batch}
        self.running += len(requests)
        started_at = time.monotonic()
        try:
            scores = await self._engine.score([prompt for _, _, prompt in batch], self.label_ids)
        except Exception as error:
            for scoring in requests:
                if not scoring.done.done():
                    scoring.done.set_exception(error)
            return
        finally:
            self.running -= len(requests)
            self._batch_s = time.monotonic() - started_at
        if not isinstance(scores, Scored):
            scores = Scored(scores, (started_at, time.monotonic()), len(batch))
        for (scoring, index, _), row in zip(batch, scores, strict=True):
            scoring.scores[index] = row
            scoring.began = min(scoring.began, scores.computed[0])
            scoring.ended, scoring.batch = max(scoring.ended, scores.computed[1]), max(scoring.batch, scores.batch)
            scoring.missing -= 1
            if not scoring.missing and not scoring.done.done():
                scoring.done.set_result(None)
