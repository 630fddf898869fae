"""The reference engine: transformers and PyTorch, in a child process with the training environment's Python.

Slow and plain on purpose: the others are compared with it. It alone can do without a KV cache, so it also
measures what the cache brings. The protocol is in :mod:`model_server.engines.transformers_child`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

from model_server import cgroup, tokenizer
from model_server.cache import environment_python
from model_server.engine import Chunk, EngineHealth, EngineInfo, EngineState, FinishReason, Message, Prompt, Sampling
from model_server.engines.remote import Activity
from model_server.errors import (
    ContextTooLongError,
    EngineError,
    EngineUnavailableError,
    ModelLoadError,
    ResourceInsufficientError,
)
from model_server.tokenizer import StopText

CHILD = Path(__file__).with_name("transformers_child.py")


class TransformersEngine:
    """An :class:`~model_server.engine.Engine` on transformers.

    Args:
        path: A directory with safetensors and a tokenizer.
        kv_cache: False computes the whole sequence again for each token.
        dtype: float32 is the reference; bfloat16 is what the weights are mostly stored in.
        stall_s: Longest silence of the child while it has work; a prefill is silent.
        python: None: the project's training environment.
    """

    def __init__(
        self,
        *,
        model: str,
        path: Path,
        threads: int = 1,
        slots: int = 4,
        context_tokens: int = 4096,
        kv_cache: bool = True,
        dtype: Literal["float32", "bfloat16"] = "float32",
        load_timeout_s: float = 600.0,
        stall_s: float = 300.0,
        python: Path | None = None,
    ) -> None:
        self._model, self._path, self._threads, self._slots = model, path, threads, slots
        self._context_tokens, self._kv_cache, self._dtype = context_tokens, kv_cache, dtype
        self._load_timeout_s, self._stall_s, self._python = load_timeout_s, stall_s, python
        self._tokenizer: tokenizer.Tokenizer | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said: collections.deque[str] = collections.deque(maxlen=50)
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._activity = Activity()
        self._state: EngineState = "starting"
        self._reason = "not loaded yet"
        self._out_of_memory = False
        self._oom_kills = 0

    async def load(self) -> EngineInfo:
        started = time.monotonic()
        self._tokenizer = await asyncio.to_thread(tokenizer.load, self._path)
        python = environment_python("training") if self._python is None else self._python
        self._oom_kills = cgroup.locate().oom_kills() or 0
        self._child = await asyncio.create_subprocess_exec(
            str(python),
            str(CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Its folder is not to be searched: this package's transformers.py would hide the library.
            env=os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            limit=1 << 24,
        )
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._tasks.append(asyncio.create_task(self._listen(self._child.stderr), name="transformers-stderr"))
        settings = {
            "path": str(self._path),
            "dtype": self._dtype,
            "threads": self._threads,
            "kv_cache": self._kv_cache,
        }
        self._send(settings)
        try:
            async with asyncio.timeout(self._load_timeout_s):
                answer = await self._loaded(self._child.stdout)
            self._tasks.append(asyncio.create_task(self._read(self._child.stdout), name="transformers-read"))
            self._state, self._reason = "ready", ""
            self._context_tokens = min(self._context_tokens, answer["context_tokens"])
            loaded = time.monotonic()
            await self.score([self.prompt("a")], [0])
        except TimeoutError as error:
            await self.close()
            raise ModelLoadError(str(self._path), f"not loaded after {self._load_timeout_s:g} s") from error
        except BaseException:
            await self.close()
            raise
        return EngineInfo(
            engine="transformers",
            model=self._model,
            source=str(self._path),
            device="cpu",
            context_tokens=self._context_tokens,
            slots=self._slots,
            weight_bits=32 if self._dtype == "float32" else 16,
            kv_cache_bits=32 if self._dtype == "float32" else 16,
            threads=self._threads,
            weights_bytes=answer["weights_bytes"],
            tasks=frozenset({"generate", "classify", "logprobs"}),
            phases_s={
                "imports": loaded - started - answer["weights_s"],
                "weights": answer["weights_s"],
                "first_token": time.monotonic() - loaded,
            },
            detail={"kv_cache": str(self._kv_cache).lower(), "dtype": self._dtype},
        )

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        if self._tokenizer is None:
            raise EngineUnavailableError(self._reason)
        return self._tokenizer.prompt(content)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        if prompt.tokens + sampling.max_tokens > self._context_tokens:
            raise ContextTooLongError(prompt.tokens, sampling.max_tokens, self._context_tokens)
        self._require_ready()
        assert self._tokenizer is not None
        task = {
            "op": "generate",
            "token_ids": prompt.token_ids,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "ignore_eos": sampling.ignore_eos,
        }
        text, stops = tokenizer.TextStream(self._tokenizer), StopText(sampling.stop)
        begun = False
        with self._answering(task) as answers:
            while True:
                answer = await answers.get()
                if "error" in answer:
                    raise self._failure(answer["error"], begun=begun)
                begun = True
                reason: FinishReason | None = answer.get("finish")
                ids = () if answer["token"] is None else (answer["token"],)
                piece, stopped = stops.push(text.push(ids, last=reason is not None), last=reason is not None)
                reason = "stop" if stopped else reason
                yield Chunk(
                    text=piece,
                    token_ids=ids,
                    tokens=len(ids),
                    logprobs=(answer["logprob"],) if sampling.logprobs and ids else (),
                    finish_reason=reason,
                    prompt_tokens=prompt.tokens if reason else None,
                )
                if reason is not None:
                    return

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> list[list[float]]:
        self._require_ready()
        task = {"op": "score", "prompts": [prompt.token_ids for prompt in prompts], "labels": list(label_ids)}
        with self._answering(task) as answers:
            answer = await answers.get()
        if "error" in answer:
            raise self._failure(answer["error"], begun=False)
        scores: list[list[float]] = answer["scores"]
        return scores

    def health(self) -> EngineHealth:
        state, reason = self._state, self._reason
        if state == "ready" and self._activity.since_progress_s > self._stall_s:
            state, reason = "stalled", f"no token for {self._activity.since_progress_s:.0f} s"
        pid = None if self._child is None else self._child.pid
        return self._activity.health(state, reason, self._slots, pid=pid, out_of_memory=self._out_of_memory)

    async def close(self) -> None:
        if self._state == "closed":
            return
        self._state, self._reason = "closed", "closed"
        if self._child is not None:
            if self._child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._child.kill()  # it holds nothing that an orderly end would save
            await self._child.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all("the engine was closed")

    @contextlib.contextmanager
    def _answering(self, task: dict[str, Any]) -> collections.abc.Iterator[asyncio.Queue[dict[str, Any]]]:
        """Send ``task``; leaving the block cancels what is left of it."""
        number = next(self._ids)
        queue = self._answers[number] = asyncio.Queue()
        with self._activity.request():
            self._send({"id": number, **task})
            try:
                yield queue
            finally:
                del self._answers[number]
                if self._state == "ready":
                    self._send({"id": number, "op": "cancel"})

    def _failure(self, reason: str, *, begun: bool) -> EngineError | EngineUnavailableError:
        """A request that this process refused is not tried again; one that lost its process may be."""
        return EngineError(reason) if begun or self._state == "ready" else EngineUnavailableError(reason)

    def _require_ready(self) -> None:
        if self._state != "ready":
            raise EngineUnavailableError(self._reason or self._state)

    def _send(self, line: dict[str, Any]) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(line).encode() + b"\n")

    async def _loaded(self, answers: asyncio.StreamReader) -> dict[str, Any]:
        """The child's first line. Raises ModelLoadError, ResourceInsufficientError."""
        line = await answers.readline()
        if not line:
            raise await self._end()
        answer: dict[str, Any] = json.loads(line)
        if "error" not in answer:
            return answer
        if answer["memory"]:
            raise ResourceInsufficientError(f"transformers cannot load {self._path}: {answer['error']}")
        raise ModelLoadError(str(self._path), answer["error"])

    async def _read(self, answers: asyncio.StreamReader) -> None:
        async for line in answers:
            answer = json.loads(line)
            self._activity.step()
            if answer["id"] in self._answers:
                self._answers[answer["id"]].put_nowait(answer)
        if self._state == "ready":
            error = await self._end()
            self._state, self._reason = "dead", str(error)
            self._fail_all(self._reason)

    async def _end(self) -> ModelLoadError | ResourceInsufficientError:
        """Why the child is gone."""
        assert self._child is not None
        code = await self._child.wait()
        if code == -signal.SIGKILL and (cgroup.locate().oom_kills() or 0) > self._oom_kills:
            self._out_of_memory = True
            return ResourceInsufficientError("the kernel killed the engine process: the memory limit was reached")
        await asyncio.wait(self._tasks[:1], timeout=1)  # its last words
        words = next((line for line in reversed(self._said) if line.strip()), "it said nothing")
        return ModelLoadError(str(self._path), f"the engine process ended with code {code}: {words}")

    async def _listen(self, errors: asyncio.StreamReader) -> None:
        async for line in errors:
            self._said.append(line.decode("utf-8", "replace").rstrip())

    def _fail_all(self, reason: str) -> None:
        for queue in self._answers.values():
            queue.put_nowait({"error": reason})
