"""OpenVINO GenAI, in a process of its own (:mod:`model_server.engines.openvino_child`).

This side tokenises, sends token ids over a socket pair, turns what comes back into text, and watches the
process: it knows at once when the process has died, and after :meth:`OpenVINOEngine.stall_after_s` that it hangs.
What to do about either is the business of :mod:`model_server.recovery`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from model_server import cgroup
from model_server.engine import (
    Chunk,
    EngineHealth,
    EngineInfo,
    EngineState,
    FinishReason,
    Message,
    Prompt,
    Sampling,
    Scored,
)
from model_server.engines.openvino_wire import (
    BLOCK_TOKENS,
    HEADER,
    Cancel,
    Failed,
    Generate,
    Load,
    Loaded,
    Piece,
    Score,
    Scores,
    Step,
    ToChild,
    frame,
    to_server,
)
from model_server.errors import (
    EngineError,
    EngineUnavailableError,
    ModelLoadError,
    ResourceInsufficientError,
    TaskNotSupportedError,
)

if TYPE_CHECKING:
    from model_server.tokenizer import Tokenizer

STALL_FLOOR_S = 5.0
"""Silence that is never called a stall: five heartbeats."""
STALL_STEPS = 10
"""Or this many times the slowest step seen, since a step over a long prompt on a slow CPU takes seconds."""
LOAD_TIMEOUT_S = 600.0


class OpenVINOEngine:
    """One model in one child process."""

    def __init__(
        self,
        *,
        model: str,
        path: Path,
        threads: int,
        slots: int,
        kv_blocks: int,
        kv_cache_bits: int,
        context_tokens: int,
        batch_tokens: int,
        prefix_caching: bool,
        scoring: bool,
        weight_bits: int | None = None,
        weights_bytes: int | None = None,
    ) -> None:
        """``path``: a prepared directory or a GGUF file. ``scoring``: compile the form that scores labels too."""
        self._model, self._path = model, path
        self._load = Load(
            model_path=str(path),
            threads=threads,
            slots=slots,
            kv_blocks=kv_blocks,
            kv_precision={8: "u8", 16: "f16"}[kv_cache_bits],
            prefix_caching=prefix_caching,
            batch_tokens=batch_tokens,
            scoring=scoring,
        )
        self._context_tokens, self._kv_cache_bits = context_tokens, kv_cache_bits
        self._weight_bits, self._weights_bytes = weight_bits, weights_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tokenizer: Tokenizer | None = None
        self._ids = itertools.count()
        self._streams: dict[int, asyncio.Queue[Piece | EngineError]] = {}
        self._scores: dict[int, asyncio.Future[Scored]] = {}
        self._loaded: asyncio.Future[Loaded] | None = None
        self._state: EngineState = "starting"
        self._reason = "not loaded yet"
        self._out_of_memory = False
        self._step = Step(0, 0, 0.0, [])
        self._last_progress = self._last_idle = time.monotonic()
        self._slowest_step_s = 0.0
        self._oom_kills = 0

    async def load(self) -> EngineInfo:
        from model_server import tokenizer

        started = time.time()
        ours, theirs = socket.socketpair()
        self._oom_kills = cgroup.locate().oom_kills() or 0
        with theirs:
            command = [sys.executable, "-m", "model_server.engines.openvino_child", str(theirs.fileno()), str(started)]
            # Not asyncio's: a fork of a few milliseconds, once, and waiting for the end needs no loop.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # The plugin keeps what it compiled, and so does oneDNN below it: kept once, it takes half.
                env=os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"},
            )
        # Before the loop gets the socket: while the server imports its HTTP side, the loop's next turn may be late,
        # and the child should be reading weights by then.
        ours.sendall(frame(self._load))
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._loaded = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                # The tokenizer is read while the child compiles.
                self._tokenizer = await asyncio.to_thread(tokenizer.load, self._path)
                loaded = await self._loaded
        except TimeoutError as error:
            await self.close()
            raise ModelLoadError(str(self._path), f"not loaded after {LOAD_TIMEOUT_S:g} s") from error
        except BaseException:
            await self.close()
            raise
        self._state, self._reason = "ready", ""
        return EngineInfo(
            engine="openvino",
            model=self._model,
            source=str(self._path),
            device=loaded.device,
            context_tokens=self._context_tokens,
            slots=self._load.slots,
            kv_tokens=self._load.kv_blocks * BLOCK_TOKENS,
            weight_bits=self._weight_bits,
            kv_cache_bits=self._kv_cache_bits,
            threads=self._load.threads,
            weights_bytes=self._weights_bytes,
            tasks=frozenset({"generate", "logprobs", "classify"} if self._load.scoring else {"generate", "logprobs"}),
            phases_s=loaded.phases_s,
            detail={"openvino": loaded.version, "kv_pool_bytes": loaded.kv_pool_bytes},
        )

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        if self._tokenizer is None:
            raise EngineUnavailableError(self._reason)
        return self._tokenizer.prompt(content)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        from model_server.tokenizer import StopText, TextStream

        self._require_ready()
        assert self._tokenizer is not None
        request_id = next(self._ids)
        pieces: asyncio.Queue[Piece | EngineError] = asyncio.Queue()
        self._streams[request_id] = pieces
        self._send(
            Generate(
                id=request_id,
                token_ids=list(prompt.token_ids),
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                ignore_eos=sampling.ignore_eos,
                logprobs=sampling.logprobs,
            )
        )
        text = TextStream(self._tokenizer)
        stops = StopText(sampling.stop)
        begun = finished = False
        try:
            while not finished:
                piece = await pieces.get()
                # Tokens that arrived while the last chunk was being sent go out together.
                waiting = [piece, *_drain(pieces)]
                ids: list[int] = []
                logprobs: list[float] = []
                reason: FinishReason | None = None
                computed: tuple[float, float, float] | None = None
                for item in waiting:
                    if isinstance(item, EngineError):
                        finished = True
                        if begun:
                            raise item
                        raise EngineUnavailableError(item.reason) from item
                    ids += item.token_ids
                    logprobs += item.logprobs
                    if item.finish_reason is not None:
                        reason = "stop" if item.finish_reason == "stop" else "length"
                        computed = item.computed
                finished = reason is not None
                new, stopped = stops.push(text.push(ids, last=finished), last=finished)
                if stopped:
                    reason = "stop"
                begun = True
                yield Chunk(
                    text=new,
                    token_ids=tuple(ids),
                    tokens=len(ids),
                    logprobs=tuple(logprobs) if sampling.logprobs else (),
                    finish_reason=reason,
                    prompt_tokens=prompt.tokens if reason else None,
                    computed=computed,
                )
                if stopped:
                    return
        finally:
            del self._streams[request_id]
            if not finished and self._state == "ready":
                self._send(Cancel(request_id))

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> Scored:
        self._require_ready()
        if not self._load.scoring:
            raise TaskNotSupportedError("classify", "this model has no classification.json")
        request_id = next(self._ids)
        answer: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._scores[request_id] = answer
        try:
            self._send(Score(request_id, [list(prompt.token_ids) for prompt in prompts], list(label_ids)))
            return await answer
        finally:
            del self._scores[request_id]

    def health(self) -> EngineHealth:
        state, reason = self._state, self._reason
        idle_s = time.monotonic() - self._last_progress
        if state == "ready" and idle_s > self.stall_after_s():
            state, reason = "stalled", f"no step for {idle_s:.1f} s"
        return EngineHealth(
            state=state,
            reason=reason,
            progress=self._step.progress,
            since_progress_s=idle_s,
            running=self._step.running,
            waiting=max(0, len(self._streams) + len(self._scores) - self._step.running),
            cache_use=self._step.cache_use,
            pid=None if self._process is None else self._process.pid,
            slots=self._load.slots,
            out_of_memory=self._out_of_memory,
        )

    def stall_after_s(self) -> float:
        """Silence after which the process counts as hung: it sends a heartbeat each second even when idle."""
        return max(STALL_FLOOR_S, STALL_STEPS * self._slowest_step_s)

    async def close(self) -> None:
        if self._state == "closed":
            return
        self._state, self._reason = "closed", "closed"
        if self._writer is not None:
            self._writer.close()  # the child leaves when its socket closes
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, 2)
            except subprocess.TimeoutExpired:
                self._process.kill()  # in the middle of a long step, or stopped
                await asyncio.to_thread(self._process.wait)
        if self._reading is not None:
            self._reading.cancel()
        self._fail_all("the engine was closed")

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise EngineUnavailableError(self._reason or self._state)

    def _send(self, message: ToChild) -> None:
        assert self._writer is not None
        self._writer.write(frame(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take what the child sends until it is gone."""
        try:
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._take(to_server.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            if self._state != "closed":
                await self._died()

    def _take(self, message: Loaded | Failed | Step | Scores) -> None:
        match message:
            case Step():
                self._take_step(message)
            case Scores():
                answer = self._scores.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(Scored(message.logprobs, (message.began, message.ended), message.batch))
            case Loaded():
                self._last_progress = time.monotonic()
                assert self._loaded is not None
                self._loaded.set_result(message)
            case Failed(id=None):
                # The process ends right after; _died tells everyone.
                self._reason, self._out_of_memory = message.reason, message.out_of_memory
            case Failed():
                assert message.id is not None
                error = EngineError(message.reason)
                if message.id in self._streams:
                    self._streams[message.id].put_nowait(error)
                answer = self._scores.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_exception(error)

    def _take_step(self, step: Step) -> None:
        now = time.monotonic()
        if self._step.running:
            self._slowest_step_s = max(self._slowest_step_s, now - self._last_progress)
        self._step, self._last_progress = step, now
        for piece in step.pieces:
            stream = self._streams.get(piece.id)
            if stream is not None:
                stream.put_nowait(piece)

    async def _died(self) -> None:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        if code == -signal.SIGKILL and (cgroup.locate().oom_kills() or 0) > self._oom_kills:
            self._out_of_memory = True
            self._reason = "the kernel killed the engine process: the memory limit was reached"
        elif not self._out_of_memory and self._loaded is not None and self._loaded.done():
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._reason = f"the engine process ended ({how})"
        self._state = "dead"
        if self._loaded is not None and not self._loaded.done():
            refusal = ResourceInsufficientError if self._out_of_memory else None
            reason = self._reason if self._reason != "not loaded yet" else f"the engine process ended with {code}"
            self._loaded.set_exception(
                refusal(f"loading {self._path}: {reason}") if refusal else ModelLoadError(str(self._path), reason)
            )
        self._fail_all(self._reason)

    def _fail_all(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.put_nowait(EngineError(reason))
        for answer in self._scores.values():
            if not answer.done():
                answer.set_exception(EngineUnavailableError(reason))


def _drain(queue: asyncio.Queue[Piece | EngineError]) -> list[Piece | EngineError]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
