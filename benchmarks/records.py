"""One record per request, from the moment it was due to its last token; every table comes from these.

Times end in ``_s``: seconds since the start of the benchmark on one monotonic clock (``time.perf_counter``, which
all processes of a machine share), so that records, system samples and runs lie on one axis.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field, fields
from typing import Literal

import msgspec

Arm = Literal["a", "b"]
Phase = Literal["probe", "warmup", "measure"]
TokenSource = Literal["server", "tokenizer"]
ErrorClass = Literal[
    "connect",  # no connection
    "reset",  # the connection broke before or in the answer
    "timeout",  # longer than timeout_s
    "http_status",  # an answer that is not 200; see status
    "error_event",  # an error inside a stream that began with 200
    "truncated",  # a stream that ended without its end mark, or a body shorter than announced
    "malformed",  # not what the dialect promises: HTML, broken JSON, a missing field
]


@dataclass(slots=True)
class Record:
    """What one request met. None means unknown or not applicable, never 0."""

    run: int
    """Number of the run within the benchmark, from 0."""
    arm: Arm
    pair: int
    phase: Phase
    number: int
    """Position within the run, from 0."""
    user: int
    """Counted over all workers."""
    call: str
    scheduled_s: float
    """When it was due; in a closed loop, when its user was free."""
    sent_s: float = 0.0
    """Before the first byte was written; a connection that had to be opened counts as waiting."""
    connected_s: float | None = None
    """A connection was open; None where one of an earlier request was used again."""
    first_byte_s: float | None = None
    """The first byte of the response arrived."""
    first_token_s: float | None = None
    """First text of any kind, reasoning included; an empty delta that only names the role is none."""
    first_token_late_s: float | None = None
    """By how much ``first_token_s`` may be too late because this generator was: where several events were read at once,
    the first have the stamp of the last. None: not a stream."""
    first_content_s: float | None = None
    """First text of the answer itself."""
    last_token_s: float | None = None
    end_s: float = 0.0
    """The answer was complete: ``[DONE]`` or the end of the body."""
    wall_start: float = 0.0
    """Unix time when it was sent."""
    status: int | None = None
    error: ErrorClass | None = None
    error_detail: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    token_source: TokenSource | None = None
    """Who counted ``output_tokens``."""
    tokens_first_event: float | None = None
    """n_first of TPOT: as the server or the tokenizer counts it, else by its share of the characters."""
    events: int = 0
    """Events that carried text."""
    bytes: int = 0
    finish_reason: str | None = None
    category: str | None = None
    confidence: float | None = None
    needs_review: bool | None = None
    label: str | None = None
    """The category a person gave the call."""
    output_sha256: str | None = None
    """Of the text, so that answers can be compared and are not kept."""
    output_characters: int | None = None
    output_text: str | None = None
    """Kept only with ``keep_texts``."""
    trace_id: str | None = None
    """32 hex digits, with ``trace``: the last 16 of them are the id of the generator's own span."""
    event_times_s: list[float] = field(default_factory=list)
    """When each event with text arrived."""

    def to_json(self) -> builtins.bytes:
        """One line of the journal, without its end."""
        return _encoder.encode(self)


def traceparent(trace_id: str) -> str:
    """The header of a request that is to be recorded by all, https://www.w3.org/TR/trace-context/."""
    return f"00-{trace_id}-{span_id(trace_id)}-01"


def span_id(trace_id: str) -> str:
    """Of the generator's own span in that trace, 16 hex digits."""
    return trace_id[16:]


_encoder = msgspec.json.Encoder()
COLUMNS = tuple(item.name for item in fields(Record))
