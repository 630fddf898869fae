"""LMDeploy on a GPU host: a child ``lmdeploy serve api_server``, or one that runs elsewhere. Pinned to 0.18.0.

LMDeploy is never imported here: its dependencies contradict ours, and its Python API changes with each minor
version. What its server does that a caller does not expect, and what is done about it:

* Its engine may die or hang while the API process answers ``/health`` with 200: the body's ``status`` is read,
  not the code, and twice in a row "unhealthy" makes this engine "stalled", so that recovery replaces it.
* It falls back to the PyTorch backend without a word where TurboMind cannot load: the backend is asked for
  after the start, and another one than configured is a load error.
* Without ``--max-batch-size`` it guesses from the GPU's name: always given. ``--max-concurrent-requests`` would
  hold up ``/health`` behind long answers: never given; admission happens in front.
* SIGTERM to the process group cuts streams and may hang: the main process alone gets it, the group gets
  SIGKILL after ``drain_s``.
* Errors after the first byte come inside a 200: every line is looked at.
* Stop strings end at any token that contains them: stopped here instead (:class:`StopText`).
* ``generation_config.json`` adds sampling values to each request: ``--generation-config lmdeploy`` does not.
* ``/v1/completions`` has lost its log-probabilities: token ids go to ``/v1/chat/completions``, which takes them
  when there are no messages, and labels are scored through ``/generate``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx2
import structlog

from model_server import cgroup, tokenizer
from model_server.cache import environment_python
from model_server.engine import Chunk, EngineHealth, EngineInfo, EngineState, FinishReason, Message, Prompt, Sampling
from model_server.engines.remote import Activity, RefusedError, Remote, TransientError
from model_server.errors import (
    ConfigurationError,
    ContextTooLongError,
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    ResourceInsufficientError,
)
from model_server.tokenizer import StopText

Backend: TypeAlias = Literal["turbomind", "pytorch"]

LAUNCHER = Path(__file__).with_name("lmdeploy_child.py")
UNHEALTHY_IN_A_ROW = 2
"""One "unhealthy" may be a probe that a long step delayed; asking again makes LMDeploy probe again."""

log = structlog.get_logger()


class LMDeployEngine:
    """An :class:`~model_server.engine.Engine` on LMDeploy's HTTP server.

    Args:
        model: The name it serves and answers to.
        path: The model directory; its tokenizer is read here too, so that prompts are measured exactly.
        url: An LMDeploy that runs elsewhere; None starts a child.
        api_key: For ``url``; a child gets a random one.
        backend: What must come up.
        gpu_share: Of the GPU memory left after the weights, for the KV cache.
        top_logprobs: Tokens whose log-probability is asked for when labels are scored.
        stall_s: Longest stand-still of LMDeploy's scheduler, and longest silence of its API process.
        drain_s: For running answers when it is closed.
        python, launcher: How a child is started; None: the project's own environment and script.
    """

    def __init__(
        self,
        *,
        model: str,
        path: Path,
        url: str | None = None,
        api_key: str | None = None,
        backend: Backend = "turbomind",
        slots: int = 32,
        context_tokens: int = 4096,
        kv_cache_bits: int = 16,
        prefix_caching: bool = True,
        gpu_share: float = 0.8,
        weight_bits: int | None = None,
        weights_bytes: int | None = None,
        top_logprobs: int = 256,
        load_timeout_s: float = 900.0,
        read_timeout_s: float = 300.0,
        stall_s: float = 30.0,
        drain_s: float = 30.0,
        poll_s: float = 2.0,
        backoff_s: float = 0.2,
        python: Path | None = None,
        launcher: Path = LAUNCHER,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if kv_cache_bits not in (4, 8, 16):
            raise ConfigurationError(f"kv_cache_bits is {kv_cache_bits}; LMDeploy has 4, 8 and 16")
        self._model, self._path, self._url, self._backend = model, path, url, backend
        self._slots, self._context_tokens, self._kv_cache_bits = slots, context_tokens, kv_cache_bits
        self._prefix_caching, self._gpu_share = prefix_caching, gpu_share
        self._weight_bits, self._weights_bytes, self._top_logprobs = weight_bits, weights_bytes, top_logprobs
        self._load_timeout_s, self._read_timeout_s = load_timeout_s, read_timeout_s
        self._stall_s, self._drain_s, self._poll_s, self._backoff_s = stall_s, drain_s, poll_s, backoff_s
        self._python, self._launcher, self._transport = python, launcher, transport
        self._key = secrets.token_hex(32) if url is None else api_key
        self._tokenizer: tokenizer.Tokenizer | None = None
        self._remote: Remote | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said: collections.deque[str] = collections.deque(maxlen=400)
        self._activity = Activity()
        self._state: EngineState = "starting"
        self._reason = "not loaded yet"
        self._out_of_memory = False
        self.floored_labels = 0
        """Label scores that were not among ``top_logprobs`` and stand at the smallest of them instead."""

    async def load(self) -> EngineInfo:
        started = time.monotonic()
        self._tokenizer = await asyncio.to_thread(tokenizer.load, self._path)
        try:
            url = await self._start() if self._url is None else self._url
            headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
            self._remote = Remote(
                url,
                headers=headers,
                read_timeout_s=self._read_timeout_s,
                backoff_s=self._backoff_s,
                transport=self._transport,
            )
            await self._until_healthy(started + self._load_timeout_s)
            up = time.monotonic()
            await self._check_what_came_up()
            self._state, self._reason = "ready", ""
            first = await self.score([self.prompt("a")], [0])  # the first computation compiles kernels
            assert math.isfinite(first[0][0])
            self.floored_labels = 0
        except EngineUnavailableError as error:
            await self.close()
            raise ModelLoadError(str(self._path), error.reason) from error
        except BaseException:
            await self.close()
            raise
        self._tasks.append(asyncio.create_task(self._look(), name="lmdeploy-watch"))
        return EngineInfo(
            engine="lmdeploy",
            model=self._model,
            source=str(self._path),
            device=url if self._url is not None else "cuda",
            context_tokens=self._context_tokens,
            slots=self._slots,
            weight_bits=self._weight_bits,
            kv_cache_bits=self._kv_cache_bits,
            weights_bytes=self._weights_bytes,
            tasks=frozenset({"generate", "classify", "logprobs"}),
            phases_s={"process": up - started, "first_token": time.monotonic() - up},
            detail={"backend": self._backend},
        )

    def prompt(self, content: str | Sequence[Message]) -> Prompt:
        if self._tokenizer is None:
            raise EngineUnavailableError(self._reason)
        return self._tokenizer.prompt(content)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Chunk]:
        remote = self._require_ready()
        stops = StopText(sampling.stop)
        last: dict[str, Any] | None = None
        with self._activity.request(), self._noticing(prompt, sampling.max_tokens):
            async with remote.events("/v1/chat/completions", self._chat(prompt, sampling), _parse) as events:
                async for event in events:
                    self._activity.step()
                    if not event["choices"]:  # the usage, after the last choice
                        usage = event["usage"]
                        if last is not None:
                            yield _chunk(last, stops, prompt_tokens=usage["prompt_tokens"])
                            return
                        continue
                    [choice] = event["choices"]
                    if choice.get("finish_reason") is not None:
                        last = choice
                        continue
                    chunk = _chunk(choice, stops)
                    yield chunk
                    if chunk.finish_reason is not None:  # a stop string; leaving the block cancels the rest
                        return
        raise EngineError("LMDeploy ended the answer without its last part")

    async def score(self, prompts: Sequence[Prompt], label_ids: Sequence[int]) -> list[list[float]]:
        remote = self._require_ready()

        async def one(prompt: Prompt) -> list[float]:
            body = {
                "input_ids": list(prompt.token_ids),
                "max_tokens": 1,
                "return_logprob": True,
                "top_logprobs_num": self._top_logprobs,
                # TurboMind's log-probabilities come after these; none may change the distribution.
                "temperature": 1.0,
                "top_k": 0,
                "top_p": 1.0,
                "ignore_eos": True,  # else the row of an end-of-text token is dropped with it
            }
            with self._activity.request(), self._noticing(prompt, 1):
                answer = await remote.call("POST", "/generate", body)
                self._activity.step()
            rows = answer["meta_info"]["output_top_logprobs"]
            if not rows:
                raise EngineError("LMDeploy answered without log-probabilities")
            found = {token: logprob for logprob, token in rows[0]}
            floor = min(found.values())
            self.floored_labels += sum(label not in found for label in label_ids)
            return [found.get(label, floor) for label in label_ids]

        async with asyncio.TaskGroup() as group:
            rows = [group.create_task(_unwrapped(one(prompt))) for prompt in prompts]
        scores = [row.result() for row in rows]
        for score in scores:
            if isinstance(score, Exception):
                raise score
        return [score for score in scores if not isinstance(score, Exception)]

    def health(self) -> EngineHealth:
        pid = None if self._child is None else self._child.pid
        return self._activity.health(self._state, self._reason, self._slots, pid=pid, out_of_memory=self._out_of_memory)

    async def close(self) -> None:
        if self._state == "closed":
            return
        # A dead or hung engine has nothing to finish.
        grace_s = self._drain_s if self._state == "ready" else 0.0
        self._state, self._reason = "closed", "closed"
        if self._child is not None:
            if self._child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._child.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._child.wait(), grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            await self._child.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._remote is not None:
            await self._remote.aclose()

    async def _start(self) -> str:
        """Start the child and say where it will answer. Its port opens when the model is loaded."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        python = environment_python("lmdeploy") if self._python is None else self._python
        probe_s = self._stall_s / 4
        environ = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # else the launcher's folder comes first, and this file hides the library
            "UVICORN_LOG_LEVEL": "warning",  # requests are logged by this server
            "HF_HUB_OFFLINE": "1",  # the model is here; no look-ups of newer files
            "LMDEPLOY_HEALTH_PROBE_TIMEOUT": f"{probe_s}",
            "LMDEPLOY_HEALTH_POLL_INTERVAL": f"{probe_s * 1.25}",
            "LMDEPLOY_HEALTH_UNHEALTHY_AFTER": f"{self._stall_s}",
        }
        self._oom_kills = cgroup.locate().oom_kills() or 0
        self._child = await asyncio.create_subprocess_exec(
            str(python),
            str(self._launcher),
            *self._arguments(port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
            start_new_session=True,
            limit=1 << 20,
        )
        assert self._child.stdin is not None
        assert self._key is not None
        self._child.stdin.write(f"{self._key}\n".encode())
        self._tasks += [
            asyncio.create_task(self._listen(self._child), name="lmdeploy-output"),
            asyncio.create_task(self._wait(self._child), name="lmdeploy-exit"),
        ]
        return f"http://127.0.0.1:{port}"

    def _arguments(self, port: int) -> list[str]:
        settings = {
            "--server-name": "127.0.0.1",
            "--server-port": port,
            "--model-name": self._model,
            "--backend": self._backend,
            "--max-batch-size": self._slots,
            "--session-len": self._context_tokens,
            "--cache-max-entry-count": self._gpu_share,
            "--quant-policy": 0 if self._kv_cache_bits == 16 else self._kv_cache_bits,
            "--generation-config": "lmdeploy",
            "--log-level": "WARNING",  # INFO writes prompts into the log
        }
        words = [word for name, value in settings.items() for word in (name, str(value))]
        if self._backend == "pytorch":
            words += ["--logprobs-mode", "raw_logprobs"]
        if self._prefix_caching:
            words.append("--enable-prefix-caching")
        return ["serve", "api_server", str(self._path), *words, "--disable-fastapi-docs"]

    async def _until_healthy(self, deadline: float) -> None:
        assert self._remote is not None
        said = "nothing"
        while time.monotonic() < deadline:
            if self._state == "dead":
                if self._out_of_memory:
                    raise ResourceInsufficientError(f"LMDeploy cannot load {self._path}: {self._reason}")
                raise ModelLoadError(str(self._path), self._reason)
            try:
                status, reason = await self._health(timeout_s=5)
            except TransientError as error:
                said = str(error)
            else:
                if status == "healthy":
                    return
                said = f"{status}: {reason}"
            await asyncio.sleep(0.2)
        raise ModelLoadError(str(self._path), f"LMDeploy was not healthy after {self._load_timeout_s:g} s ({said})")

    async def _check_what_came_up(self) -> None:
        assert self._remote is not None
        try:
            served = await self._remote.call("GET", "/v1/models", timeout_s=10)
            names = [model["id"] for model in served["data"]]
            if self._model not in names:
                raise ModelLoadError(
                    str(self._path),
                    f"the LMDeploy at {self._remote.url} serves {', '.join(names)}, not {self._model!r}",
                )
        except RefusedError as error:
            raise ModelLoadError(
                str(self._path), f"the LMDeploy at {self._remote.url} refused to name its models: {error}"
            ) from error
        backend = await self._ask_backend()
        if backend != self._backend:
            tail = "".join(f"\n  {line}" for line in list(self._said)[-10:])
            raise ModelLoadError(
                str(self._path),
                f"the backend must be {self._backend}, but LMDeploy came up with {backend}; where TurboMind cannot "
                f"load (no libcuda, or a model it does not know) LMDeploy falls back to PyTorch by itself{tail}",
            )

    async def _ask_backend(self) -> str:
        """Which backend computes. LMDeploy says so nowhere (the label ``engine`` of its metrics is a number).

        The question is a request that both refuse before computing anything, for different reasons
        (serve/openai/endpoints/generate.py, ``check_request``): only PyTorch has a mode of log-probabilities
        to complain about, only it would score a prompt.
        """
        assert self._remote is not None
        body = {"input_ids": [0], "return_logprob": True, "logprob_start_len": 0, "max_tokens": 1}
        try:
            await self._remote.call("POST", "/generate", body, timeout_s=30)
        except RefusedError as error:
            if "only by the PyTorch" in error.message:
                return "turbomind"
            if "logprobs_mode" in error.message or "requires max_tokens=0" in error.message:
                return "pytorch"
            return f"one that answers {error.message!r} (this engine is written for LMDeploy 0.18.0)"
        return "one that this engine does not know (it is written for LMDeploy 0.18.0)"

    def _chat(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        greedy = sampling.temperature == 0
        body = {
            "model": self._model,
            "messages": [],
            "input_ids": list(prompt.token_ids),
            "max_completion_tokens": sampling.max_tokens,
            # Over HTTP it always samples; this is how it decodes greedily itself (async_engine.py).
            "temperature": 1.0 if greedy else sampling.temperature,
            "top_k": 1 if greedy else sampling.top_k,
            "top_p": 1.0 if greedy else sampling.top_p,
            "ignore_eos": sampling.ignore_eos,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.logprobs:
            body["return_logprob"] = True
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    @contextlib.contextmanager
    def _noticing(self, prompt: Prompt, max_tokens: int) -> collections.abc.Iterator[None]:
        """Turn refusals into request errors, and an engine that is gone into "dead"."""
        try:
            yield
        except EngineUnavailableError as error:
            self._lost("dead", error.reason)
            raise
        except RefusedError as error:
            if "context length" in error.message:
                raise ContextTooLongError(prompt.tokens, max_tokens, self._context_tokens) from error
            if error.status < 500:
                raise InvalidRequestError(f"LMDeploy: {error.message}") from error
            raise EngineError(error.message) from error

    def _require_ready(self) -> Remote:
        if self._state != "ready" or self._remote is None:
            raise EngineUnavailableError(self._reason or self._state)
        return self._remote

    def _lost(self, state: Literal["dead", "stalled"], reason: str) -> None:
        if self._state in ("starting", "ready"):
            self._state, self._reason = state, reason

    async def _health(self, *, timeout_s: float) -> tuple[str, str]:
        assert self._remote is not None
        _, body = await self._remote.get_any_status("/health", timeout_s=timeout_s)
        try:
            document = json.loads(body)
            return document["status"], document.get("message", "")
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError("/health did not answer with a status") from error

    async def _look(self) -> None:
        """The watchdog: LMDeploy restarts nothing by itself, and its API process outlives its engine."""
        unhealthy = 0
        answered_at = time.monotonic()
        while self._state == "ready":
            await asyncio.sleep(self._poll_s)
            try:
                # "unhealthy" is probed anew while it is asked for.
                status, reason = await self._health(timeout_s=self._stall_s)
            except TransientError as error:
                if time.monotonic() - answered_at > self._stall_s:
                    self._lost("stalled", f"/health: {error}")
                continue
            answered_at = time.monotonic()
            unhealthy = 0 if status == "healthy" else unhealthy + 1
            if unhealthy >= UNHEALTHY_IN_A_ROW:
                self._lost("stalled", f"LMDeploy is {status}: {reason}")

    async def _listen(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        async for line in child.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            self._said.append(text)
            log.debug("lmdeploy_said", line=text)

    async def _wait(self, child: asyncio.subprocess.Process) -> None:
        code = await child.wait()
        await asyncio.sleep(0.1)  # its last words
        killed = code == -signal.SIGKILL and (cgroup.locate().oom_kills() or 0) > self._oom_kills
        self._out_of_memory = killed or any("out of memory" in line.lower() for line in self._said)
        self._lost("dead", f"LMDeploy ended with code {code}: {self._last_words()}")

    def _last_words(self) -> str:
        """The errors it named. The last one alone is mostly "engine process is not alive"; the cause came before."""
        named = [line for line in self._said if re.search(r"\bERROR\b|^\S*(Error|Exception): |Fallback to", line)]
        return "; ".join(dict.fromkeys(named[-5:])) or next(reversed(self._said), "it said nothing")


def _parse(line: bytes) -> dict[str, Any] | None:
    """One line of server-sent events. Errors come in lines too, after HTTP 200."""
    data = line.removeprefix(b"data: ")
    if data in (line, b"[DONE]"):
        return None
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise TransientError(f"LMDeploy: {event['error'].get('message', event['error'])}")
    if any(choice.get("finish_reason") in ("abort", "error") for choice in event["choices"]):
        raise TransientError("LMDeploy aborted the request")
    return event


def _chunk(choice: dict[str, Any], stops: StopText, prompt_tokens: int | None = None) -> Chunk:
    ids = tuple(choice.get("output_ids") or ())
    reason: FinishReason | None = None
    if choice.get("finish_reason") is not None:
        reason = "length" if choice["finish_reason"] == "length" else "stop"
    text, stopped = stops.push(choice["delta"].get("content") or "", last=reason is not None)
    return Chunk(
        text=text,
        token_ids=ids,
        tokens=len(ids),
        logprobs=tuple(logprob for logprob, _ in choice.get("output_token_logprobs") or ()),
        finish_reason="stop" if stopped else reason,
        prompt_tokens=prompt_tokens,
    )


async def _unwrapped(scores: collections.abc.Awaitable[list[float]]) -> list[float] | Exception:
    """Errors as values: a task group would wrap them in an ExceptionGroup, and RequestErrors must stay themselves."""
    try:
        return await scores
    except Exception as error:
        return error
