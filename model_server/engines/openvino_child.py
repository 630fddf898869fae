"""The OpenVINO process: continuous batching, and label scoring over a shared prefix.

Started by :mod:`model_server.engines.openvino` as ``python -m model_server.engines.openvino_child FD``. It is a
process of its own because ``ContinuousBatchingPipeline.step()`` holds the GIL for the whole step (185 ms steps
left the other threads of the process standing for 185 ms), and so that a crash or an OOM kill takes the engine
and not the server. One thread, one loop: messages, one step of generation, one batch of scoring.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from model_server import mapped_weights
from model_server.engines import telemetry  # noqa: F401  before openvino
from model_server.engines.openvino_wire import (
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
    ToServer,
    frame,
    generation_kernels,
    scoring_kernels,
    to_child,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_server.engines.openvino_scorer import Scorer

HEARTBEAT_S = 1.0
GATHER_S, GATHER_SHARE = 0.005, 0.01
"""An idle engine waits so long for companions of a first request, but no longer than this share of its slowest step:
requests that miss a step wait for all of it (300 ms for 256 prompt tokens of 0.6B, so 3 ms; 0.05 ms for the embedded
model). 8 streams that start together: 0.946 of the raw pipeline's tokens per second without it."""
WARM_UP_ID = (1 << 63) - 1
"""The pipeline takes unsigned ids; the server counts its own from 0."""
OOM_SCORE_ADJ = 500
"""The kernel should take the engine, which is rebuilt in seconds, before the server, which holds the clients."""


class Channel:
    """The socket to the server. Reading returns whole messages; a closed socket ends the process."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._pending = bytearray()

    def receive(self, timeout_s: float) -> list[Load | Generate | Cancel | Score]:
        """Messages that are there, waiting at most ``timeout_s`` for the first."""
        messages: list[Load | Generate | Cancel | Score] = []
        while self._selector.select(0 if messages else timeout_s):
            data = self._socket.recv(1 << 20)
            if not data:
                # The server is gone; what is being computed has no reader.
                os._exit(0)
            self._pending += data
            while len(self._pending) >= HEADER.size:
                (length,) = HEADER.unpack_from(self._pending)
                end = HEADER.size + length
                if len(self._pending) < end:
                    break
                messages.append(to_child.decode(self._pending[HEADER.size : end]))
                del self._pending[:end]
        return messages

    def send(self, message: ToServer) -> None:
        try:
            self._socket.sendall(frame(message))
        except OSError:
            os._exit(0)


class Generation:
    """The pipeline and the handles of what it computes."""

    def __init__(self, load: Load) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = load.kv_blocks
        scheduler.max_num_seqs = load.slots
        scheduler.max_num_batched_tokens = load.batch_tokens
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = load.prefix_caching
        self.pipeline = genai.ContinuousBatchingPipeline(
            load.model_path, scheduler, "CPU", properties(load, generation_kernels(load.slots))
        )
        # A dropped handle cancels its request silently, so each is kept until its end was read.
        self._handles: dict[int, Any] = {}
        self._taken: dict[int, float] = {}
        self._first_token: dict[int, float] = {}
        self._finish = {
            genai.GenerationFinishReason.STOP: "stop",
            genai.GenerationFinishReason.LENGTH: "length",
        }

    def add(self, request: Generate) -> None:
        import numpy
        import openvino

        config = self.pipeline.get_config()
        config.max_new_tokens = request.max_tokens
        config.ignore_eos = request.ignore_eos
        # Only where asked: a log-softmax over 152k entries for each token of each stream costs 5 % of all tokens
        # per second at 8 streams.
        config.logprobs = int(request.logprobs)
        config.do_sample = request.temperature > 0
        if config.do_sample:
            config.temperature = request.temperature
            config.top_p = request.top_p
            config.top_k = request.top_k or (1 << 31)
            if request.seed is not None:
                config.rng_seed = request.seed
        ids = openvino.Tensor(numpy.array([request.token_ids], dtype=numpy.int64))
        self._handles[request.id] = self.pipeline.add_request(request.id, ids, config)
        self._taken[request.id] = time.monotonic()

    def cancel(self, request_id: int) -> None:
        handle = self._handles.pop(request_id, None)
        if handle is not None:
            handle.cancel()
            self._forget(request_id)

    def _forget(self, request_id: int) -> tuple[float, float | None]:
        """When it was taken and had its first token."""
        return self._taken.pop(request_id), self._first_token.pop(request_id, None)

    @property
    def busy(self) -> bool:
        return bool(self.pipeline.has_non_finished_requests())

    @property
    def running(self) -> int:
        return len(self._handles)

    def step(self) -> list[Piece]:
        self.pipeline.step()
        now = time.monotonic()
        pieces = []
        for request_id, handle in list(self._handles.items()):
            tokens: list[int] = []
            logprobs: list[float] = []
            reason = None
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    logprobs += output.generated_log_probs
                    reason = self._finish.get(output.finish_reason, reason)
            if tokens:
                self._first_token.setdefault(request_id, now)
            if reason:
                del self._handles[request_id]
                taken, first = self._forget(request_id)
                pieces.append(Piece(request_id, tokens, logprobs, reason, (taken, first or now, now)))
            elif tokens:
                pieces.append(Piece(request_id, tokens, logprobs, None))
        return pieces

    def cache_use(self) -> float:
        return float(self.pipeline.get_metrics().cache_usage) / 100

    def kv_pool_bytes(self) -> int:
        return int(self.pipeline.get_metrics().kv_cache_size_in_bytes)

    def warm_up(self) -> None:
        """Answer once: the plugin builds its kernels at the first step (1.7 s of 2.4 s for 0.6B INT4)."""
        self.add(Generate(WARM_UP_ID, [0, 1, 2, 3], 2, 0.0, 1.0, 0, None, ignore_eos=True, logprobs=False))
        while self.busy:
            self.step()


def properties(load: Load, kernels: int) -> dict[str, Any]:
    """The plugin's. ``kernels``: as many compiled ones as it keeps at the most; the least recently used go first."""
    return {
        "CPU_RUNTIME_CACHE_CAPACITY": kernels,
        "INFERENCE_NUM_THREADS": load.threads,
        "KV_CACHE_PRECISION": load.kv_precision,
        # Pinned threads of two instances on one host would all sit on the same first cores.
        "ENABLE_CPU_PINNING": False,
    }


class Scoring:
    """Scores requests, one forward pass at each call of :meth:`step`.

    What waits when a pass is over is scored together, as many prompts as there are slots: a pass over 16 calls costs
    0.75 as much a call as one over 4 (tiny model, 2 threads, 2026-11-23), and only here is known when it is over.
    """

    def __init__(self, channel: Channel, scorer: Scorer | None, slots: int) -> None:
        self._channel, self._scorer, self._slots = channel, scorer, slots
        self._waiting: deque[Score] = deque()
        self._current: deque[Score] = deque()
        """Of the pass under way, in the order of their prompts."""
        self._batches: Iterator[list[list[float]]] = iter(())
        self._rows: list[list[float]] = []
        self._began, self._size = 0.0, 0

    @property
    def busy(self) -> bool:
        return bool(self._current or self._waiting)

    @property
    def running(self) -> int:
        return len(self._waiting) + len(self._current)

    def add(self, request: Score) -> None:
        if self._scorer is None:
            self._channel.send(Failed("the scoring form was not compiled", id=request.id))
        else:
            self._waiting.append(request)

    def step(self) -> None:
        if not self._current:
            if not self._waiting:
                return
            self._begin()
        self._rows += next(self._batches)
        while self._current and len(self._rows) >= (count := len(self._current[0].prompts)):
            scored = self._current.popleft().id
            self._channel.send(Scores(scored, self._rows[:count], self._began, time.monotonic(), self._size))
            del self._rows[:count]

    def _begin(self) -> None:
        assert self._scorer is not None
        first = self._waiting.popleft()
        self._current.append(first)
        labels, prompts = first.label_ids, list(first.prompts)
        while (
            self._waiting
            and self._waiting[0].label_ids == labels
            and len(prompts) + len(self._waiting[0].prompts) <= self._slots
        ):
            request = self._waiting.popleft()
            self._current.append(request)
            prompts += request.prompts
        self._began, self._size = time.monotonic(), len(prompts)
        self._batches = self._scorer.batches(prompts, labels)


def serve(channel: Channel, generation: Generation, scorer: Scorer | None, slots: int) -> None:
    """Run until the server closes the socket."""
    scoring = Scoring(channel, scorer, slots)
    progress = 0
    slowest_step_s = 0.0
    while True:
        busy = generation.busy or scoring.busy
        messages = channel.receive(0 if busy else HEARTBEAT_S)
        if messages and not busy:
            while more := channel.receive(min(GATHER_S, GATHER_SHARE * slowest_step_s)):
                messages += more
        for message in messages:
            match message:
                case Generate():
                    try:
                        generation.add(message)
                    except RuntimeError as error:  # what the pipeline refuses is this request's fault alone
                        channel.send(Failed(str(error), id=message.id))
                case Cancel():
                    generation.cancel(message.id)
                case Score():
                    scoring.add(message)
                case Load():
                    raise AssertionError("the model is loaded once")
        began = time.perf_counter()
        pieces = generation.step() if generation.busy else []
        scoring.step()
        slowest_step_s = max(slowest_step_s, time.perf_counter() - began)
        progress += 1
        channel.send(Step(progress, generation.running + scoring.running, generation.cache_use(), pieces))


def load(channel: Channel, request: Load, started: float) -> tuple[Generation, Scorer | None]:
    """Compile what ``request`` asks for and report, or report why not and exit."""
    try:
        phases = {"process": time.time() - started}
        mark = time.perf_counter()

        def phase(name: str) -> None:
            nonlocal mark
            now = time.perf_counter()
            phases[name], mark = now - mark, now

        import openvino
        import openvino_genai  # noqa: F401  the import is the phase

        phase("imports")
        generation = Generation(request)
        # Reading the weights and compiling are one call of the library.
        phase("weights_and_compile")
        scorer = None
        if request.scoring:
            from model_server.engines.openvino_scorer import Scorer

            kernels = scoring_kernels(request.slots, request.batch_tokens)
            scorer = Scorer(request.model_path, properties(request, kernels), request.batch_tokens)
            phase("compile_scoring")
        generation.warm_up()
        phase("first_token")
        if scorer is not None:
            list(scorer.batches([[0, 1, 2, 3]], [0]))
            phase("first_score")
        mapped_weights.release(request.model_path)
    except Exception as error:  # anything the library raises while loading is reported, once, to the server
        channel.send(failure(error))
        raise SystemExit(1) from error
    device = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    channel.send(Loaded(openvino.__version__, str(device), generation.kv_pool_bytes(), phases))
    return generation, scorer


def failure(error: Exception) -> Failed:
    """``error`` as the server is told. OpenVINO wraps std::bad_alloc in a RuntimeError that only its text tells."""
    text = str(error) or type(error).__name__
    return Failed(text, out_of_memory=isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text)


def main() -> None:
    # Orders come over the socket: a SIGTERM or Ctrl-C for the whole group must not cut streams that the
    # server is still draining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123  procfs
        file.write(str(OOM_SCORE_ADJ))
    channel = Channel(int(sys.argv[1]))
    first = channel.receive(60)[0]
    if not isinstance(first, Load):
        raise SystemExit(f"expected a load message, got {first}")
    generation, scorer = load(channel, first, float(sys.argv[2]))
    try:
        serve(channel, generation, scorer, first.slots)
    except Exception as error:  # a step that fails leaves the pipeline in no known state: say why and go
        channel.send(failure(error))
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
