"""What is true."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from runconfig import RunConfig

Share = Annotated[float, Field(ge=0, le=1)]


class Truth(RunConfig):
    """The settings of the server; ``python -m benchmarks.truth_server KEY=VALUE ...``."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 0
    mode: str = "plain"
    """Modes of the answers to requests that name none, joined by ``+``."""
    ttft_ms: Annotated[float, Field(ge=0)] = 50.0
    """From a request's arrival (its last byte was read) to its first token."""
    tpot_ms: Annotated[float, Field(ge=0)] = 10.0
    """Between two tokens."""
    tokens: Annotated[int, Field(gt=0)] = 64
    prompt_tokens: Annotated[int, Field(ge=0)] = 7
    service_ms: Annotated[float, Field(ge=0)] = 20.0
    """Time to classify one call or to answer one inference."""
    slots: Annotated[int, Field(gt=0)] = 1_000_000
    """Requests served at once; the others wait in the order of their arrival. A slot is taken for the time up to the
    last token, so that the capacity is slots / (ttft + (tokens - 1) * tpot)."""
    speed_factor: Annotated[float, Field(gt=0)] = 1.0
    """Every time is divided by it: 1.1 is a server that is 10 % faster."""
    jitter: Annotated[float, Field(ge=0, lt=2)] = 0.0
    """Sigma of log-normal noise (median 1) that multiplies all times of a request; drawn for each request."""
    seed: int = 0
    """Of the noise."""
    wrong_share: Share = 0.0
    """Share of calls, chosen by their text, that are put into the wrong category."""
    error_share: Share = 0.0
    """Share of requests, chosen by their text, that are answered with status 500."""
    wrong_text_share: Share = 0.0
    """Share of prompts, chosen by their text, with another answer of the same length."""
    shorter_share: Share = 0.0
    """Share of prompts, chosen by their text, with an answer of half the length."""
    freeze_at_s: Annotated[float, Field(ge=0)] | None = None
    """Everything stands still, so many seconds after the first request ..."""
    freeze_s: Annotated[float, Field(ge=0)] = 0.0
    """... for so long."""
    slowdown_per_min: Annotated[float, Field(ge=0)] = 0.0
    """Planted fault: by how much of themselves all times grow in a minute, from the first request on."""
    leak_mb_per_min: Annotated[float, Field(ge=0)] = 0.0
    """Planted fault: resident memory that is never given back, MB (1e6 bytes), from the first request on."""
    log_requests: Annotated[int, Field(gt=0)] = 20_000
    """So many requests are remembered for GET /_truth; older ones are forgotten. Until then memory grows by about
    1 kB and 24 bytes for each event of a request: a soak that looks for leaks needs a small number."""
