"""The HTTP application: R5's endpoints, health, metrics, and the edge that every request passes.

``create_app`` wires one engine to HTTP. OpenAI's endpoints are in :mod:`model_server.openai_api`.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Span
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from model_server import openai_api, schemas, tracing
from model_server.auth import Keys, RateLimit
from model_server.classification import ClassificationSettings
from model_server.daily_files import local_now
from model_server.deployment import DeploymentConfig
from model_server.engine import Engine, EngineInfo, Message, Sampling
from model_server.errors import (
    ClientGoneError,
    EngineError,
    EngineTimeoutError,
    EngineUnavailableError,
    OverloadedError,
    RateLimitError,
    RequestError,
)
from model_server.metrics import Metrics
from model_server.service import Record, Service
from model_server.wire import answers, error_response, json_answer, read_body

ENDPOINTS = {
    "/api/v1/inference": "inference",
    "/api/v1/classify": "classify",
    "/v1/chat/completions": "chat_completions",
    "/v1/completions": "completions",
}
"""Paths that are counted, limited and drained, and their names in the metrics."""

DOCS_ASSETS = "/docs-assets"

OPEN = frozenset({"/health", "/ready", "/openapi.json", "/docs", "/docs/oauth2-redirect"})
"""Paths that need no key. /metrics is among them only on a port of its own."""

BODIES = (
    schemas.InferenceRequest,
    schemas.ClassifyRequest,
    schemas.ChatRequest,
    schemas.CompletionRequest,
)

W3C_HEADERS = ("traceparent", "tracestate")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

log = structlog.get_logger("model_server")


def create_app(
    engine: Engine,
    config: DeploymentConfig,
    *,
    classifier: ClassificationSettings | None = None,
    metrics: Metrics | None = None,
    keys: Keys | None = None,
    load: Awaitable[EngineInfo] | None = None,
    on_request: Callable[[datetime, Mapping[str, Any]], object] | None = None,
) -> FastAPI:
    """The application around one engine; ``app.state.service`` and ``app.state.edge`` hold its moving parts.

    Args:
        classifier: How the model classifies; None: /api/v1/classify answers that it cannot.
        keys: Who may ask; None: everyone.
        load: The engine's load when it is under way already; otherwise it begins with the application.
        on_request: Given each request's end (local time) and its line in the daily file
            (:class:`monitoring.request_files.RequestLine`).
    """
    metrics = Metrics() if metrics is None else metrics
    service = Service(engine, config, classifier, metrics)
    edge = Edge(service, keys, RateLimit(config.serving.rate_limit_per_minute), on_request)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        coming_up = asyncio.create_task(service.come_up(engine.load() if load is None else load))
        following = asyncio.create_task(_follow(service))
        try:
            yield
        finally:
            for task in (coming_up, following):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):  # a failed load was told by whoever began it
                    await task
            await engine.close()

    # Swagger UI's scripts from this server: an intranet reaches no CDN.
    app = FastAPIOffline(
        title="qwen3-stack model server",
        summary="One Qwen3 model: text generation, OpenAI-compatible, and classification of complaint calls.",
        version=config.model_version,
        lifespan=lifespan,
        openapi_url="/openapi.json",
        redoc_url=None,
        static_url=DOCS_ASSETS,
    )
    app.state.service, app.state.edge = service, edge
    edge.classify = _add_endpoints(app, service)
    app.include_router(openai_api.router(service))
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(edge.around)
    app.openapi = lambda: _openapi(app, with_keys=keys is not None)  # type: ignore[method-assign]
    return app


async def _follow(service: Service) -> None:
    while True:
        await asyncio.sleep(0.5)
        service.follow_engine()


def _add_endpoints(app: FastAPI, service: Service) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint that the edge calls itself."""
    serving = service.config.serving

    @app.post(
        "/api/v1/inference",
        tags=["inference"],
        **answers(schemas.InferenceRequest, schemas.InferenceAnswer),
    )
    async def inference(request: Request) -> Response:
        """Answer a text."""
        record: Record = request.scope["record"]
        service.ready()
        service.admission.refuse_if_full()
        body = schemas.parse(schemas.InferenceRequest, await read_body(request, serving))
        record.prompt_length = len(body.text)
        prompt = await service.prompt([Message("user", body.text)])
        max_tokens = service.fit(prompt, body.max_tokens)
        result = ""
        async with service.deadline(request.receive):
            sampling = Sampling(max_tokens, body.temperature)
            async with aclosing(service.tokens(record, prompt, sampling)) as groups:
                async for group in groups:
                    result += "".join(chunk.text for chunk in group)
        service.note_texts(record, prompt=body.text, response=result)
        seconds = time.monotonic() - record.arrived_at
        used = record.prompt_tokens + record.tokens
        return json_answer({"result": result, "tokens_used": used, "response_time": round(seconds, 6)})

    @app.post(
        "/api/v1/classify",
        tags=["inference"],
        **answers(schemas.ClassifyRequest, schemas.Classification, schemas.Classifications),
    )
    async def classify(request: Request) -> Response:
        """Put calls into complaint categories, with calibrated probabilities."""
        record: Record = request.scope["record"]
        service.ready()
        body = schemas.parse(schemas.ClassifyRequest, await read_body(request, serving))
        texts = [body.text] if body.text is not None else body.texts or []
        record.prompt_length = sum(map(len, texts))
        async with service.deadline(request.receive):
            decisions = await service.classify(record, texts)
        service.note_texts(record, prompt="\n".join(texts))
        return json_answer(decisions[0] if body.text is not None else {"results": decisions})

    @app.get("/api/v1/model", tags=["inference"], **answers(None, schemas.ModelDescription))
    async def model() -> Response:
        """What answers here, how it was started and what it can take."""
        return json_answer(_describe(service))

    @app.get("/health", tags=["operation"], **answers(None, schemas.Health, unhealthy=True, open_to_all=True))
    async def health() -> Response:
        """Liveness: 503 when the engine is stalled, dead, being replaced or failed to load; loading is healthy."""
        return health_answer(service)

    @app.get("/ready", tags=["operation"], **answers(None, schemas.Health, unhealthy=True, open_to_all=True))
    async def ready() -> Response:
        """Readiness: 503 while the model loads, the engine is being replaced, or the server drains."""
        return ready_answer(service)

    if serving.metrics_port is None:

        @app.get("/metrics", tags=["operation"], include_in_schema=False)
        async def metrics() -> Response:
            body, kind = service.metrics.render()
            return Response(body, headers={"content-type": kind})

    return classify


def health_answer(service: Service) -> Response:
    health = service.health()
    alive = health.status not in ("stalled", "dead", "restarting", "closed", "failed")
    return json_answer(health, 200 if alive else 503)


def ready_answer(service: Service) -> Response:
    health = service.health()
    return json_answer(health, 200 if health.status == "ready" else 503)


def operations_app(service: Service) -> ASGIApp:
    """Metrics and health on a port of their own, without keys; it stays open while the server drains."""

    async def operations(scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/metrics":
                body, kind = service.metrics.render()
                answer = Response(body, headers={"content-type": kind})
            case "/health":
                answer = health_answer(service)
            case "/ready":
                answer = ready_answer(service)
            case _:
                answer = json_answer(schemas.error_answer(404, "not_found", "here: /metrics, /health, /ready"), 404)
        await answer(scope, receive, send)

    return operations


def _describe(service: Service) -> dict[str, Any]:
    config, info, health = service.config, service.info, service.health()
    return {
        "name": config.model_name,
        "version": config.model_version,
        "state": health.status,
        "reason": health.reason,
        "engine": config.engine,
        "source": info.source if info else None,
        "device": info.device if info else None,
        "weight_bits": info.weight_bits if info else None,
        "kv_cache_bits": info.kv_cache_bits if info else None,
        "context_tokens": info.context_tokens if info else None,
        "slots": service.admission.slots if info else None,
        "kv_tokens": service.admission.kv_tokens,
        "threads": info.threads if info else None,
        "weights_bytes": info.weights_bytes if info else None,
        "tasks": sorted(info.tasks) if info else [],
        "categories": list(service.classifier.labels.values()) if service.classifier else [],
        "max_queue": config.serving.max_queue,
        "request_timeout_s": config.serving.request_timeout_s,
        "loaded_since": service.loaded_since,
        "restarts": health.restarts,
        "phases_s": info.phases_s if info else {},
        "detail": info.detail if info else {},
    }


# -- the edge ---------------------------------------------------------------------------------------------


class Edge:
    """What every request meets before its endpoint: an id, a key, a rate; and after it: counters and one line.

    Pure ASGI: Starlette's BaseHTTPMiddleware adds two tasks and a queue per request.

    Attributes:
        keys: Replaced as a whole by hot reload.
        rate_limit: The same; its counts start anew.
        classify: The endpoint of /api/v1/classify, called past the router. It answers in about the time that the
            router needs to find it: 45 of 220 us of a request without uvicorn and tokenizer (2026-11-23).
    """

    classify: Callable[[Request], Awaitable[Response]]

    def __init__(
        self,
        service: Service,
        keys: Keys | None,
        rate_limit: RateLimit,
        on_request: Callable[[datetime, Mapping[str, Any]], object] | None = None,
    ) -> None:
        self.service, self.keys, self.rate_limit, self._on_request = service, keys, rate_limit, on_request

    def around(self, app: ASGIApp) -> ASGIApp:
        async def edged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._pass(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return edged

    async def _pass(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        endpoint = ENDPOINTS.get(scope["path"]) if scope["method"] == "POST" else None
        record = Record(request_id, endpoint or "", time.monotonic())
        scope["record"] = record

        async def tagged_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        if endpoint is not None:
            caller = None
            if b"traceparent" in headers:
                caller = tracing.from_headers(
                    {name: headers.get(name.encode(), b"").decode("latin-1") for name in W3C_HEADERS}
                )
            record.span = tracing.start(tracing.REQUEST, caller, endpoint=endpoint, request_id=request_id)
            tracing.carry(record.span)
        structlog.contextvars.bind_contextvars(request_id=request_id, **tracing.ids(record.span))
        active = self.service.metrics.active_connections
        if endpoint is not None:
            active.inc()
        try:
            self._admit(scope, headers, record)
            if endpoint == "classify":
                response = await self.classify(Request(scope, receive))
                await response(scope, receive, tagged_send)
            else:
                await app(scope, receive, tagged_send)
        except RequestError as error:
            record.failure = error
            await error_response(error)(scope, receive, tagged_send)
        except Exception:
            # Ours to answer for: Starlette's own handler would answer in another shape.
            log.exception("bug", path=scope["path"])
            record.failure = EngineError("an error inside the server")
            if not record.status:
                await error_response(record.failure)(scope, receive, tagged_send)
        finally:
            if endpoint is not None:
                active.dec()
                self._conclude(record)
                if record.span is not None:
                    self._end_span(record, record.span)

    def _end_span(self, record: Record, span: Span) -> None:
        config = self.service.config
        tracing.describe(
            span,
            {
                "gen_ai.request.model": config.model_name,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.tokens,
                "http.response.status_code": record.status,
                "queue_s": record.queue_s,
            },
        )
        error = None if record.failure is None else record.failure.code
        if record.stage is not None:
            stage, since = record.stage
            tracing.record(stage, span, since, time.monotonic(), error=error)
        if error is not None:
            tracing.fail(span, error)
        span.end()

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes], record: Record) -> None:
        if scope["path"] in OPEN or scope["path"].startswith(f"{DOCS_ASSETS}/"):
            return
        if self.keys is not None:
            record.key = self.keys.name_of(headers.get(b"authorization"))
        if record.endpoint:
            client = scope.get("client")
            self.rate_limit.hit(record.key or (client[0] if client else ""))

    def _conclude(self, record: Record) -> None:
        metrics = self.service.metrics
        seconds = time.monotonic() - record.arrived_at
        failure = record.failure
        if failure is not None:
            record.status = failure.status  # a stream that broke has sent 200 before
            _count_failure(metrics, failure, record)
        metrics.requests_total.labels(endpoint=record.endpoint, status=record.status).inc()
        if failure is None and record.status == 200:
            metrics.inference_duration_seconds.labels(endpoint=record.endpoint).observe(seconds)
        log.info(
            "request",
            endpoint=record.endpoint,
            model=self.service.config.model_name,
            status=record.status,
            error=None if failure is None else failure.code,
            latency_ms=_ms(seconds),
            prompt_length=record.prompt_length,
            response_length=record.response_length,
            prompt_tokens=record.prompt_tokens,
            tokens=record.tokens,
            queue_ms=_ms(record.queue_s),
            first_token_ms=_ms(record.first_token_s),
            key=record.key,
            **record.texts,
        )
        if self._on_request is not None:
            self._on_request(local_now(), self._request_line(record, seconds))

    def _request_line(self, record: Record, seconds: float) -> dict[str, Any]:
        return {
            "model": self.service.config.model_name,
            "prompt_length": record.prompt_length,
            "response_length": record.response_length,
            "latency_ms": _ms(seconds),
            "status": "success" if record.failure is None else "error",
            "error": None if record.failure is None else record.failure.code,
            "status_code": record.status,
            "endpoint": record.endpoint,
            "first_token_ms": _ms(record.first_token_s),
            "tokens_used": record.prompt_tokens + record.tokens,
            "generated_tokens": record.tokens,
            "category": record.category,
            "confidence": record.confidence,
            "request_id": record.request_id,
            "trace_id": tracing.ids(record.span).get("trace_id"),
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _count_failure(metrics: Metrics, error: RequestError, record: Record) -> None:
    """File an error under rejected (before any work) or cancelled (work thrown away)."""
    match error:
        case RateLimitError():
            metrics.rejected_total.labels(reason="rate_limit").inc()
        case OverloadedError():
            metrics.rejected_total.labels(reason="queue_full").inc()
        case EngineUnavailableError() if record.queue_s is not None:
            metrics.cancelled_total.labels(reason="shutdown").inc()
        case EngineUnavailableError():
            metrics.rejected_total.labels(reason="unavailable").inc()
        case ClientGoneError():
            metrics.cancelled_total.labels(reason="client_gone").inc()
        case EngineTimeoutError():
            metrics.cancelled_total.labels(reason="timeout").inc()


async def _on_http_exception(_: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = schemas.error_answer(error.status_code, code, f"{error.detail}: see /docs for what there is")
    return json_answer(body, error.status_code, error.headers)


def _openapi(app: FastAPI, *, with_keys: bool) -> dict[str, Any]:
    """FastAPI's page and the bodies, which are read by hand and so unknown to it."""
    if app.openapi_schema is None:
        page = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
        )
        _, definitions = models_json_schema(
            [(body, "validation") for body in BODIES], ref_template="#/components/schemas/{model}"
        )
        components = page.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        if with_keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        else:
            for operation in (operation for path in page["paths"].values() for operation in path.values()):
                operation.pop("security", None)
        app.openapi_schema = page
    return app.openapi_schema
