"""The process: sockets, signals, and the order in which things start and stop.

Start: bind (a taken port is told before anything is loaded), start the engine, import the HTTP side while the
engine loads, answer /health at once and everything else when the model is there. Stop, on SIGTERM: close the
listener, let accepted requests finish, close the engine, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from model_server import logs, tracing
from model_server.auth import Keys, read_keys
from model_server.daily_files import REQUESTS, SERVER_KEEPS, DailyLines, archive_in_background
from model_server.deployment import DeploymentConfig, memory_limit_bytes
from model_server.engine import Engine
from model_server.errors import ConfigurationError, DeploymentError
from model_server.reload import Reload, watch
from model_server.systemd import Notifier

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from model_server.classification import ClassificationSettings
    from model_server.service import Service

LAST_EVENTS_S = 2
"""For the error events of cut requests to leave, after drain_s is over."""

log = structlog.get_logger("model_server")


def bind(host: str, port: int) -> socket.socket:
    """A listening address.

    Raises:
        ConfigurationError: It is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is in use: stop what listens there, or choose another, for example "
                f"serving.port={port + 1}"
            ) from error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}") from error
    sock.set_inheritable(False)
    return sock


def keys_of(config: DeploymentConfig) -> Keys | None:
    """The keys that may ask; None on this machine's own address, where none are asked for.

    Raises:
        ConfigurationError: The file is unusable, or others could reach the server without a key.
    """
    serving = config.serving
    if serving.api_keys_file is not None:
        return read_keys(serving.api_keys_file)
    if not is_loopback(serving.host):
        raise ConfigurationError(
            f"serving.host is {serving.host}, which others can reach, but serving.api_keys_file is not set: name a "
            "file with one key per line, or listen on 127.0.0.1"
        )
    return None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(
    config: DeploymentConfig,
    engine: Engine,
    *,
    classifier: Callable[[], ClassificationSettings | None] = lambda: None,
    models: Path | None = None,
    config_path: Path | None = None,
    read_config: Callable[[], DeploymentConfig] | None = None,
) -> int:
    """Serve until a signal ends it; returns the exit code: 0 drained, 1 could not load or had to cut a request.

    Args:
        classifier: Reads how the model classifies, while it loads; None: it does not.
        models: Where the weights lie, whose file system is watched; None: not on this machine.
        config_path: Watched for hot reload.
        read_config: Reads it; None: only the key file is reloaded.

    Raises:
        ConfigurationError: A port is taken, or keys are missing or unusable.
        ModelLoadError: ``classifier`` cannot be read.
    """
    serving = config.serving
    keys = keys_of(config)
    sock = bind(serving.host, serving.port)
    metrics_sock = None if serving.metrics_port is None else bind(serving.host, serving.metrics_port)
    _raise_file_limit()
    load = asyncio.ensure_future(engine.load())
    # In a thread, so that the engine's process is under way meanwhile: the imports take about a second.
    app_module, listener = await asyncio.to_thread(_import_http)
    try:
        settings = classifier()
    except DeploymentError:
        load.cancel()
        await engine.close()
        raise

    from model_server.metrics import Metrics

    metrics = Metrics(memory_limit_bytes=memory_limit_bytes(config))
    handlers = tracing.configure(
        serving.otlp_endpoint,
        service_version=config.model_version,
        ratio=serving.trace_sample_ratio,
        max_per_s=serving.trace_max_per_s,
    )
    directories = {"models": models, "logs": serving.log_dir}
    metrics.watch_disks({name: path for name, path in directories.items() if path is not None})
    on_drop = metrics.log_records_dropped_total.inc
    logs.configure(serving.log_level, serving.log_dir, on_drop=on_drop, handlers=handlers)
    requests = None if serving.log_dir is None else _request_lines(serving.log_dir, on_drop)
    app = app_module.create_app(
        engine,
        config,
        classifier=settings,
        metrics=metrics,
        keys=keys,
        load=load,
        on_request=None if requests is None else requests.append,
    )
    service: Service = app.state.service
    reload = Reload(config, read_config or (lambda: config), app.state.edge)
    notifier = Notifier()

    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():  # asked twice: at once
            service.cut()
        stopping.set()

    def read_again() -> None:
        notifier.reloading()
        reload()
        notifier.ready()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, read_again)

    main = listener.listen(app, body_s=serving.request_timeout_s)
    serving_main = asyncio.create_task(main.serve(sockets=[sock]))
    address = _url(serving.host, sock)
    log.info("listening", url=address, phase="loading the model")
    _say(f"listening on {address}, loading {config.model_source}")
    side = None
    if metrics_sock is not None:
        side = listener.listen(app_module.operations_app(service), body_s=5, lifespan=False)
        serving_side = asyncio.create_task(side.serve(sockets=[metrics_sock]))
        log.info("metrics", url=f"{_url(serving.host, metrics_sock)}/metrics")
    watched = [path for path in (config_path, serving.api_keys_file) if path is not None]
    background = [
        asyncio.create_task(watch(watched, read_again)),
        asyncio.create_task(_heartbeat(notifier, engine)),
    ]

    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({load, stopped, serving_main}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if load.done() and not load.cancelled() and not stopping.is_set():
        failure = load.exception()
        if failure is None:
            # What is loaded stays, and what a request makes dies with it and without cycles: the collector need
            # not look at it so often (30 of 245 us of a classification, 2026-11-23).
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 20, 100)
            await asyncio.sleep(0)  # the service takes note of the engine first
            notifier.ready(f"serving {config.model_name} on {address}")
            log.info("ready", url=address, phases_s=load.result().phases_s, slots=load.result().slots)
            _say(f"ready: {address}/docs")
            await asyncio.wait({stopped, serving_main}, return_when=asyncio.FIRST_COMPLETED)
        elif isinstance(failure, DeploymentError):
            log.error("cannot serve", reason=str(failure))
            _say(str(failure))
            code = 1
        else:
            log.error("cannot serve", exc_info=failure)
            code = 1

    service.draining = True
    notifier.stopping()
    log.info("draining", requests=len(service.live), limit_s=serving.drain_s)
    main.should_exit = True
    await asyncio.wait({serving_main}, timeout=serving.drain_s)
    if not serving_main.done():
        log.error("drain_s is over, requests are cut", requests=len(service.live))
        service.cut()
        await asyncio.wait({serving_main}, timeout=LAST_EVENTS_S)
        main.force_exit = True
    await serving_main
    if service.was_cut:
        code = 1
    for task in (*background, load, stopped):
        task.cancel()
    await asyncio.gather(*background, load, stopped, return_exceptions=True)
    await engine.close()
    if side is not None:
        side.should_exit = True
        await serving_side
    log.info("stopped", code=code)
    tracing.shutdown()
    return code


def _request_lines(folder: Path, on_lost: Callable[[], object]) -> DailyLines:
    def say(text: str) -> None:
        log.warning("request files", problem=text)
        _say(text)

    def archive() -> None:
        archive_in_background(folder, [REQUESTS], SERVER_KEEPS, say)

    return DailyLines(folder, REQUESTS, say=say, on_lost=on_lost, on_new_day=archive)


def _import_http() -> tuple[ModuleType, ModuleType]:
    from model_server import app, listener

    return app, listener


async def _heartbeat(notifier: Notifier, engine: Engine) -> None:
    """Tell systemd that we are alive, as long as the engine is: WatchdogSec after it hangs, all is restarted."""
    if notifier.heartbeat_s is None:
        return
    while True:
        if engine.health().state not in ("stalled", "dead"):
            notifier.alive()
        await asyncio.sleep(notifier.heartbeat_s)


def _raise_file_limit() -> None:
    """A connection is a file, and the usual soft limit of 1024 is for select(2), which nothing here uses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _url(host: str, sock: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}"


def _say(line: str) -> None:
    """For who watches the terminal; the log may go to files."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
