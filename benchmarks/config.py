"""One scenario: what is sent, how it arrives, and what decides.

The same file serves ``run`` (one ``url``) and ``compare`` (``a`` and ``b``). Everything can be overridden on
the command line: ``users=16``, ``verdict.primary=latency_p50``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from benchmarks.arrivals import Arrivals
from benchmarks.texts import Language
from runconfig import RunConfig

Dialect = Literal[
    "classify",
    "inference",
    "chat",
    "chat_stream",
    "completions_stream",
    "lmdeploy_stream",
    "llamacpp_stream",
    "ollama_stream",
    "ollama_chat_stream",
]
Metric = Literal[
    "qps",
    "tokens_per_s",
    "latency_avg",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "ttft_p50",
    "ttft_p95",
    "tpot_p50",
]
WATCHED = ("pid", "cgroup", "metrics_url")
"""Keys that say where a server's use is read; with a_ and b_ in front for the sides of a comparison."""
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(gt=0)]


class Limits(RunConfig):
    """What a request must keep to be a good one, milliseconds; null is not checked."""

    latency_ms: Milliseconds | None = None
    """From the moment it was due to the end of the answer."""
    ttft_ms: Milliseconds | None = None
    """From the moment it was due to its first token; streams only."""
    tpot_ms: Milliseconds | None = None
    """Per token after the first; streams only."""


class VerdictRules(RunConfig):
    """When a candidate passes. Every rule has three answers: kept, broken, or not enough evidence."""

    primary: Metric = "qps"
    """The one metric that is tested; named before the run, because the best of several is always better."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """How much worse than A the candidate may be and still pass (non-inferiority), as a share."""
    guards: dict[Metric | Literal["error_rate", "goodput"], Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict
    )
    """Metrics that must not get worse either, each with its margin: of A's value, or for error_rate and goodput (shares
    of the requests that are sent; goodput needs ``limits``) the difference. ``primary`` keeps its own."""
    limits: Limits = Limits()
    """Of ``guards.goodput``."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """1 - confidence of every interval; where pairs are added until it is decided, of all looks together."""
    spending: Literal["pocock", "obrien_fleming"] = "pocock"
    """``gate`` with max_pairs: how alpha is shared among the looks. pocock decides early, obrien_fleming keeps more of
    it for the last look."""
    max_accuracy_drop: Share = 0.03
    """Largest loss of accuracy on labelled calls, as a share of the calls."""
    max_macro_f1_drop: Share = 0.05
    """Largest loss of macro-F1 on labelled calls: where rare categories get lost, accuracy hardly moves."""
    min_agreement: Share = 0.9
    """Smallest share of calls that both must answer alike; decides where there are no labels."""
    max_similarity_drop: Share = 0.05
    """Texts: how much less like A's answers B's may be than A's own are when A is asked again (edit similarity)."""
    max_length_difference: Annotated[float, Field(gt=0)] = 0.05
    """Texts: past this difference between the lengths of B's and A's answers no speed is judged, because the work was
    not the same; as a share."""
    max_error_rate: Share = 0.01
    """Largest share of failed requests, for either side."""


class Objective(RunConfig):
    """What ``run`` must reach to end with 0; null is not checked."""

    min_qps: float | None = None
    max_avg_latency_ms: float | None = None
    max_p95_latency_ms: float | None = None
    max_error_rate: Share | None = None


class ClientLimits(RunConfig):
    """Past these the load generator measured itself, and the run is INVALID."""

    cpu_share: Share = 0.9
    """CPU seconds per second of the generator, which is one thread."""
    loop_lag_p50_ms: Annotated[float, Field(gt=0)] = 5.0
    """Median delay of a timer in its event loop, milliseconds."""
    late_first_tokens: Share = 0.4
    """Largest share of the streams whose first token was read too late to tell when it came, because the generator was
    busy with others; with a half of them the median time to first token would be wrong."""
    dispatch_lateness_p99_ms: Annotated[float, Field(gt=0)] = 50.0
    """Between the scheduled and the real moment of sending, at a constant rate, milliseconds."""
    unseen_concurrency: Share = 0.5
    """Largest share of the requests that this side believed under way and the server's own gauges did not show, on
    average: these were held up in the generator or on the way. Checked where the server has such gauges."""


class Cost(RunConfig):
    """What the machine that serves costs."""

    per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one hour of the server's machine; null: no price is stated."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    """Of ``per_hour``, three letters (ISO 4217)."""


class Scenario(RunConfig):
    """What is sent to which URL, how fast, for how long."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "benchmark"
    """Names the results folder."""
    dialect: Dialect = "classify"
    """classify: POST /api/v1/classify; inference: /api/v1/inference; chat and chat_stream: /v1/chat/completions;
    completions_stream: /v1/completions; lmdeploy_stream: /generate; llamacpp_stream: /completion; ollama_stream:
    /api/generate; ollama_chat_stream: /api/chat."""
    url: str | None = None
    """``run``: where the server is, for example http://127.0.0.1:8000."""
    ollama: str | None = None
    """A plain Ollama, for example http://127.0.0.1:11434: short for url=... dialect=ollama_stream."""
    a: str | None = None
    """``compare``: what runs now."""
    b: str | None = None
    """``compare``: the candidate."""
    pid: int | None = None
    """Process id of the server at ``url``: its CPU and memory are sampled, with its children's."""
    a_pid: int | None = None
    b_pid: int | None = None
    cgroup: str | None = None
    """Control group of the server at ``url``, such as /system.slice/qwen3.service; null takes the group that ``pid``
    has for itself, else the process and its children."""
    a_cgroup: str | None = None
    b_cgroup: str | None = None
    metrics_url: str | None = None
    """Prometheus metrics of the server at ``url``, which must be there; null tries /metrics beside the API, and does
    without."""
    a_metrics_url: str | None = None
    b_metrics_url: str | None = None
    cost: Cost = Cost()
    model: str | None = None
    """Name of the model in OpenAI requests; null asks GET /v1/models for the first."""
    calls: Path | None = None
    """JSONL with one {"input_text": ..., "complaint_category": optional} per line."""
    max_calls: Annotated[int, Field(gt=0)] | None = None
    """At most so many calls of the file, a sample drawn by ``seed``; null sends all."""
    texts: tuple[str, ...] = ()
    """Prompts written here instead of in a file."""
    max_tokens: Annotated[int, Field(gt=0)] = 128
    temperature: Annotated[float, Field(ge=0)] = 0.0
    tokenizer: Path | None = None
    """tokenizer.json that counts tokens where the server does not tell."""
    keep_texts: bool = False
    """Write the answers down, which is needed to say how far they differ. They may hold personal data."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; the key itself is never written down."""
    trace: bool = False
    """Send a W3C traceparent with each request, which asks everyone on its way to record it; the report tells the trace
    of the slowest requests."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """OTLP/HTTP collector, for example http://localhost:4318: after the last run the generator's own spans go there,
    made from the records. With ``trace`` only."""
    trace_url: Annotated[str, Field(pattern=r"^https?://[^\s]*\{trace_id\}")] | None = None
    """Where a trace can be seen, for example http://localhost:16686/trace/{trace_id}: the report links there."""
    users: Annotated[int, Field(gt=0)] | None = None
    """Closed loop: so many users, each sending its next request when the last one ended."""
    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    """Open loop: requests per second on a schedule, however slow the server is."""
    arrivals: Arrivals = Arrivals()
    """Open loop: how the requests are spread over time."""
    workers: Annotated[int, Field(gt=0, le=64)] = 1
    """Load generator processes on this machine; each is one thread."""
    remote_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """So many more are waited for on other hosts: ``python -m benchmarks worker master=HOST:PORT`` there."""
    workers_listen: Annotated[str, Field(pattern=r"^[^ ]*:\d{1,5}$")] = "127.0.0.1:0"
    """Where workers find the master: HOST:PORT, port 0 takes any. It asks for no key: open it only to networks that you
    trust."""
    duration_s: Annotated[float, Field(gt=0)] | None = None
    """A run ends after so many seconds ..."""
    requests: Annotated[int, Field(gt=0)] | None = None
    """... or so many requests, whichever is first."""
    warmup_s: Annotated[float, Field(ge=0)] = 0.0
    """Load before the first measured run, of at most so many seconds; recorded as warm-up."""
    cover_calls: bool = False
    """The warm-up is every call once, however long that takes, so that quality is judged on all of them."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A request that takes longer is an error."""
    pairs: Annotated[int, Field(ge=2, le=200)] = 8
    """``compare``: runs on each side, in the order A B, B A, A B, ..."""
    spare_pairs: Annotated[int, Field(ge=0, le=200)] = 2
    """Pairs in which the load generator was not well are set aside and done again, at most so many; with more the
    comparison is invalid. What the servers did plays no part in that."""
    pause_s: Annotated[float, Field(ge=0)] = 0.2
    """Idle time between two runs."""
    seed: int = 0
    """Decides the order of the calls; the two runs of a pair send the same calls in the same order."""
    sample_interval_s: Annotated[float, Field(ge=0.05)] = 0.5
    """How often CPU and memory are read."""
    verdict: VerdictRules = VerdictRules()
    objective: Objective = Objective()
    client_limits: ClientLimits = ClientLimits()
    out: Path | None = None
    """Results folder; null makes runs/NAME-TIME."""
    lang: Language = "en"
    """Language of the report."""

    @model_validator(mode="before")
    @classmethod
    def _a_plain_ollama(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("ollama") is None:
            return raw
        if raw.get("url") is not None:
            raise ValueError("set url or ollama, not both: they name the same server")
        dialect = raw.get("dialect")
        own = dialect if isinstance(dialect, str) and dialect.startswith("ollama") else "ollama_stream"
        return raw | {"ollama": None, "url": raw["ollama"], "dialect": own}

    @model_validator(mode="after")
    def _one_arrival_and_an_end(self) -> Scenario:
        self.arrivals.check(
            users=self.users, rate_per_s=self.rate_per_s, duration_s=self.duration_s, requests=self.requests
        )
        if (self.calls is None) == (not self.texts):
            raise ValueError("set exactly one of calls (a JSONL file) and texts (a list of prompts)")
        return self

    @model_validator(mode="after")
    def _traces_are_asked_for(self) -> Scenario:
        for name in ("otlp_endpoint", "trace_url"):
            if getattr(self, name) is not None and not self.trace:
                raise ValueError(f"{name} is set, but no request has a trace: set trace=true, or {name}=null")
        return self

    @model_validator(mode="after")
    def _watched_servers_are_measured(self) -> Scenario:
        for prefix, server in (("", "url"), ("a_", "a"), ("b_", "b")):
            named = [key for key in WATCHED if getattr(self, prefix + key) is not None]
            if named and getattr(self, server) is None:
                raise ValueError(
                    f"{prefix}{named[0]} belongs to the server at {server}, which is not set: a run has url, pid, "
                    "cgroup and metrics_url, a comparison a, a_pid, b, b_pid and so on"
                )
        return self
