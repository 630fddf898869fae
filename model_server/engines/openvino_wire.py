"""Messages between the server and the OpenVINO process, and how they are framed.

MessagePack by msgspec, each message behind its length (4 bytes, big-endian), over a socket pair.
"""

from __future__ import annotations

import struct

import msgspec

HEADER = struct.Struct(">I")


class Load(msgspec.Struct, tag="load", frozen=True):
    """First message to the child."""

    model_path: str
    threads: int
    slots: int
    kv_blocks: int
    """Blocks of :data:`BLOCK_TOKENS` tokens."""
    kv_precision: str
    """OpenVINO's name: u8 or f16."""
    prefix_caching: bool
    batch_tokens: int
    """Tokens in one step; bounds how long others wait for a long prompt."""
    scoring: bool
    """Compile the second form, which scores labels."""


class Generate(msgspec.Struct, tag="generate", frozen=True):
    id: int
    token_ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    ignore_eos: bool
    logprobs: bool


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    id: int


class Score(msgspec.Struct, tag="score", frozen=True):
    id: int
    prompts: list[list[int]]
    label_ids: list[int]


class Loaded(msgspec.Struct, tag="loaded", frozen=True):
    version: str
    device: str
    kv_pool_bytes: int
    phases_s: dict[str, float]


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The model did not load (``id`` None), or one request could not be computed."""

    reason: str
    out_of_memory: bool = False
    id: int | None = None


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """New tokens of one request."""

    id: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None
    computed: tuple[float, float, float] | None = None
    """With ``finish_reason``: when it was taken, had its first token and its last, ``time.monotonic()`` seconds."""


class Step(msgspec.Struct, tag="step", frozen=True):
    """Sent after each step, and each second while idle: the heartbeat."""

    progress: int
    running: int
    cache_use: float
    pieces: list[Piece]


class Scores(msgspec.Struct, tag="scores", frozen=True):
    id: int
    logprobs: list[list[float]]
    began: float
    """Of the pass, ``time.monotonic()`` seconds."""
    ended: float
    batch: int
    """Prompts of the pass."""


ToChild = Load | Generate | Cancel | Score
ToServer = Loaded | Failed | Step | Scores

BLOCK_TOKENS = 32
"""Tokens in a KV block of OpenVINO's CPU plugin (asserted at load against the compiled model)."""
PADDED_TO = 8
"""A pass that scores labels computes a multiple of so many tokens: of 256 lengths remain 32."""
KERNELS_PER_LENGTH = 6
"""Compiled by the plugin for each number of tokens in a step that it has not met, and kept: 1.6 MiB and 4 ms, whatever
the model (a step of the embedded model with 150 tokens takes 2.5 ms, of 0.6B 330). All lengths up to 256 took 390 MiB
for generation and 440 for scoring."""


def generation_kernels(slots: int) -> int:
    """Kernels to keep: of steps that only decode, and of a few lengths of prompts."""
    return KERNELS_PER_LENGTH * (slots + 12)


def scoring_kernels(slots: int, batch_tokens: int) -> int:
    """Kernels to keep: of each padded length; the last layer's also depend on the number of prompts."""
    return KERNELS_PER_LENGTH * batch_tokens // PADDED_TO + slots


_encoder = msgspec.msgpack.Encoder()
to_child = msgspec.msgpack.Decoder(ToChild)
to_server = msgspec.msgpack.Decoder(ToServer)


def frame(message: ToChild | ToServer) -> bytes:
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
