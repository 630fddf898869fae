"""The live page: what a laptop's daily files, its model server and its alerts say, in a browser, as it happens."""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx2
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from model_server import deployment
from model_server.errors import ConfigurationError
from monitoring import alerts
from monitoring.daily_summary import DailySummary, summarise
from monitoring.live import Live
from monitoring.served import Ollama, Server, ServerError, read_key
from monitoring.watch import Rules, Watch
from runconfig import ConfigError, RunConfig, load

PAGE = Path(__file__).with_name("page")
OK, USAGE = 0, 2
ASK_TIMEOUT_S = 2.0
CLASSIFY_TIMEOUT_S = 60.0
MAX_TEXT = 20_000
MAX_BODY = 8 * MAX_TEXT
"""Bytes of a question: a character may take twelve as JSON, but few do."""

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
HEADERS = {
    # Whatever stands in a prompt, an error or a model's name is text: no script runs but page/*.js, and even
    # those cannot hand text to the parser (Trusted Types).
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
EXAMPLES = """\
examples:
  python -m monitoring.dashboard                        logs/ of this folder, the server on 127.0.0.1:8000
  python -m monitoring.dashboard server=http://127.0.0.1:8123 logs=/var/log/qwen3 port=5001
  python -m monitoring.dashboard server=null            the files alone
  python -m monitoring.dashboard ollama=http://127.0.0.1:11434
  python -m monitoring.dashboard prometheus=http://127.0.0.1:9090 api_key_file=key.txt

  curl http://127.0.0.1:5000/api/summary                             today
  curl 'http://127.0.0.1:5000/api/summary?date=2026-11-26'
  curl 'http://127.0.0.1:5000/api/recent_requests?limit=10&status=error&latency_above_ms=500'

settings (key=value):
{settings}

exit codes: 0 ended by Ctrl-C or SIGTERM, 2 the settings cannot be used or the port is taken
"""


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not text.isascii() or not text.isprintable():
        raise ValueError(f"must look like http://127.0.0.1:8000, got {text!r}")
    if "@" in parts.netloc:
        raise ValueError("must not hold a password: the page shows it; see api_key_file")
    return text


Url = Annotated[str, AfterValidator(_address)]


class Settings(RunConfig):
    """What the command line takes."""

    server: Url | None = "http://127.0.0.1:8000"
    """The model server, for its deployment, queue and tokens, and for trying a classification; null: none"""
    ollama: Url | None = None
    """A plain Ollama in the place of a model server; python -m monitoring.files records it"""
    logs: Path = Path("logs")
    """Folder of the daily files; waited for while it is not there"""
    port: int = Field(default=5000, ge=0, le=65535)
    """Where the page is; 0: any free port"""
    host: str = "127.0.0.1"
    """Others reach the page under another address than this machine's own"""
    metrics: Url | None = None
    """The server's metrics, where they are not at /metrics of the server"""
    prometheus: Url | None = None
    """Whom to ask for the alerts that fire"""
    environment: Path | None = None
    """Whose thresholds the alerts have where there is no Prometheus; null: those of alerts.yml"""
    api_key_file: Path | None = None
    """File with the key that the server asks for; it stays on this side"""
    forward: bool | None = None
    """Whether the page may ask the server to classify; by default only where nobody else reaches the page"""


class ClassifyText(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


# -- HTTP ---------------------------------------------------------------------------------------------------


def create_app(settings: Settings) -> FastAPI:
    """The page and its API; ``app.state.live`` is what the pages are told."""
    client = httpx2.AsyncClient(timeout=ASK_TIMEOUT_S, trust_env=False)
    server: Server | Ollama | None = None
    if settings.ollama is not None:
        server = Ollama(settings.ollama, client)
    elif settings.server is not None:
        server = Server(settings.server, settings.metrics, settings.api_key_file, client)
    watch = None
    if settings.prometheus is None and isinstance(server, Server):
        # Without a key: where /metrics asks for one, the alerts say that the server is away.
        quiet = httpx2.Client(timeout=ASK_TIMEOUT_S, trust_env=False)
        watch = Watch([server.metrics_url.removesuffix("/metrics")], Rules(alerts.load(thresholds(settings))), quiet)
    try_off = why_not_classify(settings)
    live = Live(settings.logs, server, settings.prometheus, client, try_off=try_off, watch=watch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        running = asyncio.create_task(live.run())
        running.add_done_callback(lambda task: None if task.cancelled() else sys.exit(f"bug: {task.exception()!r}"))
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await client.aclose()

    app = FastAPI(title="Live page", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.live = live
    if is_loopback(settings.host):
        # A page elsewhere can be made to ask 127.0.0.1 under a name of its own.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, settings.host])
    app.add_middleware(_bounded)
    app.add_middleware(_with_headers)
    app.mount("/page", StaticFiles(directory=PAGE))

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        told = [f"{'.'.join(map(str, each['loc'][1:])) or 'the body'}: {each['msg']}" for each in error.errors()]
        return _error(400, "invalid_request", "; ".join(told))

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    summarising = asyncio.Lock()

    @app.get("/api/summary")
    async def summary(date: str = "today") -> Response:  # its name on the wire
        """Of one day: date=2026-11-26, or today."""
        try:
            day = read_day(date)
        except ValueError as error:
            return _error(400, "wrong_date", str(error))
        try:
            if not settings.logs.is_dir():
                return _error(503, "folder_missing", f"there is no folder {settings.logs}")
            async with summarising:  # one day's first summary may take seconds, and every page asks for it
                found: DailySummary = await asyncio.to_thread(summarise, settings.logs, day)
        except OSError as error:
            return _error(503, "unreadable", f"{error.filename or settings.logs}: {error.strerror or error}")
        return JSONResponse(found.model_dump(mode="json"))

    @app.get("/api/recent_requests")
    async def recent_requests(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        status: Literal["success", "error"] | None = None,
        model: str = "",
        error: str = "",
        latency_above_ms: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0,
    ) -> Response:
        """The last requests, newest first; with a filter those that fit, of the last KEPT_LINES."""
        lines = live.recent.newest(limit, status=status, model=model, error=error, latency_above_ms=latency_above_ms)
        return Response(b"[" + b",".join(line.model_dump_json().encode() for line in lines) + b"]", media_type=JSON)

    @app.get("/api/live")
    async def events() -> StreamingResponse:
        return StreamingResponse(live.stream(), media_type="text/event-stream")

    @app.post("/api/classify")
    async def classify(body: ClassifyText, request: Request) -> Response:
        """Ask the model server, with its key. JSON only: a form of another site cannot send it unasked."""
        if not isinstance(server, Server) or try_off is not None:
            return _error(403, "not_forwarded", f"this page does not ask a model server ({try_off}); see --help")
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return _error(403, "other_site", "only this page may ask")
        try:
            status, answer = await server.classify(body.text, CLASSIFY_TIMEOUT_S)
        except ServerError as error:
            return _error(502, error.standing, error.reason)
        return Response(answer, status, media_type=JSON)

    return app


JSON = "application/json"


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _bounded(app: ASGIApp) -> ASGIApp:
    """Refuse a body that is too long, or does not say how long it is, before it is read into memory."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        if scope["type"] == "http" and scope["method"] == "POST" and not 0 < int(length or 0) <= MAX_BODY:
            refusal = _error(413, "too_long", f"a question has a content-length and at most {MAX_BODY} bytes")
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return bounded


def _with_headers(app: ASGIApp) -> ASGIApp:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def headed(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_headed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await app(scope, receive, send_headed if scope["type"] == "http" else send)

    return headed


def read_day(text: str) -> date:
    """
    Raises:
        ValueError: Neither a day nor ``today``, or one that has not come.
    """
    today = datetime.now().astimezone().date()
    if text == "today":
        return today
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"date must look like {today} or today, got {text!r:.40}") from None
    if day > today + timedelta(days=1):  # elsewhere it may be tomorrow already
        raise ValueError(f"{day} has not come yet; today is {today}")
    return day


def thresholds(settings: Settings) -> dict[str, float]:
    """
    Raises:
        ConfigurationError: The environment cannot be used.
    """
    return {} if settings.environment is None else dict(deployment.load(settings.environment).alerts)


def why_not_classify(settings: Settings) -> Literal["ollama", "no_server", "reachable"] | None:
    """Why the page may not ask for a classification; None: it may."""
    if settings.ollama is not None:
        return "ollama"
    if settings.server is None:
        return "no_server"
    allowed = is_loopback(settings.host) if settings.forward is None else settings.forward
    return None if allowed else "reachable"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- the process --------------------------------------------------------------------------------------------


class PageServer(uvicorn.Server):
    """Ends its streams before it waits for its connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        live: Live = self.config.app.state.live  # type: ignore[union-attr]
        live.close()
        await super().shutdown(sockets)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.dashboard",
        description=__doc__,
        epilog=EXAMPLES.format(settings=_described()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    try:
        settings = load(Settings, None, parser.parse_args(words).settings)
        _check(settings)
        alerts.load(thresholds(settings))
        listener = bind(settings.host, settings.port)
    except (ConfigError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    print(
        f"{url}  shows {settings.logs} and {settings.ollama or settings.server or 'no server'}; Ctrl-C ends it",
        file=sys.stderr,
    )
    if not settings.logs.is_dir():
        advice = f"python -m monitoring.files logs={settings.logs} makes it"
        print(f"there is no folder {settings.logs} yet: {advice}; waiting for it", file=sys.stderr)
    if not is_loopback(settings.host):
        print(f"others can reach {url}: they see models, errors and figures of every request", file=sys.stderr)
    app = create_app(settings)
    server = PageServer(uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2))
    # uvicorn raises a signal again once it has ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    print(json.dumps({"url": url, "requests": app.state.live.recent.read}))
    return OK


def _check(settings: Settings) -> None:
    """
    Raises:
        ConfigError: What it names is something else.
    """
    if settings.logs.exists() and not settings.logs.is_dir():
        raise ConfigError(f"logs: {settings.logs} is no folder: name the one that holds requests_YYYYMMDD.jsonl")
    if settings.ollama is not None and "server" in settings.model_fields_set:
        raise ConfigError("the page shows one of them: give server= or ollama=")
    if settings.api_key_file is not None:
        read_key(settings.api_key_file)


def bind(host: str, port: int) -> socket.socket:
    """
    Raises:
        ConfigError: The address is taken, or not ours to take.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # now, and not in uvicorn: SO_REUSEADDR lets two bind, but only one listen
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use: stop what listens there (on a Mac, AirPlay takes 5000), "
                f"or choose another, for example port={port + 1 if port < 65535 else 5001}"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _described() -> str:
    rows = ((f"  {name + '=':<14}", field) for name, field in Settings.model_fields.items())
    return "\n".join(
        fill(f"{field.description} ({_shown(field.default)})", 110, initial_indent=name, subsequent_indent=" " * 16)
        for name, field in rows
    )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
