"""The file monitor of a laptop: the machine's minutes, and the requests to a plain Ollama.

python -m monitoring.files [server=http://127.0.0.1:8000 | ollama=http://127.0.0.1:11434] [logs=logs]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import httpx2
import psutil
from pydantic import Field, field_validator, model_validator

import runconfig
from model_server.daily_files import (
    REQUESTS,
    SERVER_KEEPS,
    DailyLines,
    Retention,
    archive_in_background,
    local_now,
)
from model_server.errors import ConfigurationError
from monitoring.daily_summary import forget_deleted_days
from monitoring.request_files import SYSTEM
from runconfig import ConfigError, RunConfig

if TYPE_CHECKING:
    from monitoring.ollama_proxy import Exchange

OLLAMA_METRICS = "ollama_metrics"
"""Name of R1's file, and of its archives."""

LOOK_S = 5.0
"""For an answer of the server or of Ollama, which a machine that computes with all cores may let wait."""

QUIET_LOOKS = 5
"""Once a second, before it is said that somebody waits: a server that is starting is no news."""

CLOSE_S = 5
"""For answers under way when the monitor is stopped."""

OK, USAGE, UNREACHABLE = 0, 2, 4
_GIB = 2**30

DESCRIPTION = """\
Record into one folder, for python -m monitoring.daily_summary and the page python -m monitoring.dashboard:

  system_YYYYMMDD.jsonl    CPU, memory and disk of this machine, a line a minute
  requests_YYYYMMDD.jsonl  a line a request: model, lengths, latency, status, error; no text
  ollama_metrics.jsonl     beside Ollama: each call with the figures that Ollama gives

Beside our own server (server=) the second is written by the server itself, into its serving.log_dir: give the same
folder here. In front of a plain Ollama (ollama=) a proxy writes it: send what is to be recorded to the proxy's address
(listen=) instead of Ollama's. Without either only the machine is recorded.

keys:
  logs=logs                   the folder
  server=URL | ollama=URL     what runs beside; must answer, or be waited for (wait=true)
  listen=127.0.0.1:11435      where the proxy listens
  interval_s=60               seconds between two lines of the machine
  gzip_after_days=2           days that stay plain text
  delete_after_days=90        days that are kept
  record_text=false           keep Ollama's answers too, in ollama_metrics.jsonl, masked
  wait=false                  wait for the server or Ollama instead of ending
"""
EXAMPLES = """\
examples:
  python -m monitoring.files server=http://127.0.0.1:8000 logs=logs
  python -m monitoring.files ollama=http://127.0.0.1:11434 wait=true
  curl http://127.0.0.1:11435/api/generate -d '{"model": "qwen3:0.6b", "prompt": "你好"}'

Ctrl-C or SIGTERM ends it; the last line of its output is one JSON object.
exit codes: 0 ended when told; 2 the settings or the folder cannot be used; 4 the server or Ollama does not answer
"""

Url = Annotated[str, Field(pattern=r"^https?://[^/]+")]


class Settings(RunConfig):
    """As ``--help`` explains them."""

    logs: Path = Path("logs")
    server: Url | None = None
    ollama: Url | None = None
    listen: str = "127.0.0.1:11435"
    interval_s: float = Field(default=60, ge=0.1, le=3600)
    gzip_after_days: int = Field(default=Retention().gzip_after_days, ge=1, le=SERVER_KEEPS.gzip_after_days)
    delete_after_days: int = Field(default=Retention().delete_after_days, ge=1, le=SERVER_KEEPS.delete_after_days)
    record_text: bool = False
    wait: bool = False

    @field_validator("server", "ollama")
    @classmethod
    def _no_slash_at_the_end(cls, url: str | None) -> str | None:
        return None if url is None else url.rstrip("/")

    @field_validator("listen")
    @classmethod
    def _an_address(cls, listen: str) -> str:
        host, port = _host_and_port(listen)
        if not host or port is None:
            raise ValueError(f"HOST:PORT is expected, for example 127.0.0.1:11435, got {listen!r}")
        return listen

    @model_validator(mode="after")
    def _one_of_both(self) -> Settings:
        if self.server is not None and self.ollama is not None:
            raise ValueError("set server or ollama, not both: a monitor stands beside one of them")
        return self

    @property
    def beside(self) -> str | None:
        """What must answer."""
        return f"{self.server}/health" if self.server else f"{self.ollama}/api/tags" if self.ollama else None


class NotAnsweringError(Exception):
    """Neither the server nor Ollama can be reached, or it answers as something else would."""


def _host_and_port(listen: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(f"//{listen}")
        return parts.hostname, parts.port
    except ValueError:
        return None, None


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.files",
        usage="python -m monitoring.files [server=URL | ollama=URL] [logs=FOLDER] [key=value ...] [--wait]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see above")
    parser.add_argument("--wait", action="store_true", help="the same as wait=true")
    options = parser.parse_intermixed_args(words)
    try:
        settings = runconfig.load(Settings, None, [*options.settings, *(["wait=true"] if options.wait else [])])
        with _alone_in(settings.logs):
            found = asyncio.run(record(settings))
    except (ConfigError, ConfigurationError, NotAnsweringError) as error:
        code = UNREACHABLE if isinstance(error, NotAnsweringError) else USAGE
        print(f"error: {error}", file=sys.stderr)
        if code != USAGE:
            print(json.dumps({"error": str(error), "exit_code": code}, ensure_ascii=False))
        return code
    except KeyboardInterrupt:  # before a handler was there for it
        found = {"logs": str(settings.logs), "system_lines": 0}
    print(json.dumps(found, ensure_ascii=False))
    return OK


async def record(settings: Settings) -> dict[str, Any]:
    """Record until SIGINT or SIGTERM; what was recorded.

    Raises:
        NotAnsweringError: What it should stand beside does not answer.
        ConfigurationError: The proxy's port is taken.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    keep = Retention(gzip_after_days=settings.gzip_after_days, delete_after_days=settings.delete_after_days)

    def on_new_day() -> None:
        with contextlib.suppress(OSError):
            forget_deleted_days(settings.logs)
        archive_in_background(settings.logs, [SYSTEM, REQUESTS, OLLAMA_METRICS], keep, say)

    system = DailyLines(settings.logs, SYSTEM, say=say, on_new_day=on_new_day)
    exchanges = _Exchanges(settings) if settings.ollama else None
    async with contextlib.AsyncExitStack() as stack:
        if exchanges is not None:
            await stack.enter_async_context(_proxy(settings, exchanges))
        if await _beside(settings, stopping):
            say(f"recording into {settings.logs}; Ctrl-C ends it")
            await _every_interval(settings, system, stopping)
    written = {"system_lines": system}
    if exchanges is not None:
        written |= {"requests": exchanges.requests, "calls": exchanges.calls}
    return {
        "logs": str(settings.logs),
        **{name: lines.written for name, lines in written.items()},
        "lost_lines": sum(lines.lost for lines in written.values()),
    }


def say(text: str) -> None:
    """For who watches."""
    print(text, file=sys.stderr, flush=True)


# -- the machine --------------------------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, float]:
    """One reading, as R13 names it; the CPU's share is since the reading before."""
    memory = psutil.virtual_memory()
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return {
        "cpu_percent": psutil.cpu_percent(),
        "memory_percent": memory.percent,
        "memory_used_gb": round(memory.used / _GIB, 3),
        "disk_usage_percent": psutil.disk_usage(str(there)).percent,
    }


async def _every_interval(settings: Settings, system: DailyLines, stopping: asyncio.Event) -> None:
    psutil.cpu_percent()  # the first reading has none before it
    answers, wait_s = True, min(1, settings.interval_s)
    while not await _over(stopping, wait_s):
        wait_s = settings.interval_s
        system.append(local_now(), machine(settings.logs))
        problem = await _problem(settings)
        if answers and problem is not None:
            say(problem)
        elif not answers and problem is None:
            say(f"{settings.beside} answers again")
        answers = problem is None


async def _over(stopping: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
    return stopping.is_set()


# -- what it stands beside ----------------------------------------------------------------------------------------


async def _beside(settings: Settings, stopping: asyncio.Event) -> bool:
    """Whether it answers; False: stopped before.

    Raises:
        NotAnsweringError: It does not, and nobody asked to wait.
    """
    looks = 0
    while (problem := await _problem(settings, tell=True)) is not None:
        if not settings.wait:
            raise NotAnsweringError(f"{problem}; wait=true waits for it")
        looks += 1
        if looks == QUIET_LOOKS:
            say(f"{problem}; waiting")
        if await _over(stopping, 1):
            return False
    return True


async def _problem(settings: Settings, *, tell: bool = False) -> str | None:
    """Why it does not answer; None: it does. ``tell`` says what answers."""
    if settings.beside is None:
        return None
    try:
        async with httpx2.AsyncClient(timeout=LOOK_S, trust_env=False) as client:
            answer = await client.get(settings.beside)
        if settings.ollama:
            names = [str(model["name"]) for model in answer.json()["models"]]
            told = f"Ollama at {settings.ollama} has {', '.join(names) or 'no model: ollama pull qwen3:0.6b'}"
        else:
            told = f"the server at {settings.server} is {answer.json()['status']}"
            told += f"; its requests are found here where its serving.log_dir is {settings.logs}"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        if settings.ollama:
            return (
                f"no Ollama answers at {settings.ollama} ({reason}): is 'ollama serve' running, and is this its port?"
            )
        return (
            f"no server answers at {settings.server} ({reason}): start it with python -m model_server ENVIRONMENT.yml"
        )
    except (ValueError, KeyError, TypeError):
        kind = "Ollama" if settings.ollama else "our model server"
        return f"{settings.beside} does not answer as {kind} does: what listens there?"
    if tell:
        say(told)
    return None


class _Exchanges:
    """Where the calls of the proxy go."""

    def __init__(self, settings: Settings) -> None:
        self.requests = DailyLines(settings.logs, REQUESTS, say=say)
        self.calls = DailyLines(settings.logs, OLLAMA_METRICS, undated=True, say=say)
        self._mask = _mask() if settings.record_text else None

    def __call__(self, exchange: Exchange) -> None:
        at = local_now()
        row = exchange.request_row()
        if row is not None:
            self.requests.append(at, row)
        self.calls.append(at, exchange.metrics_row(self._mask))


def _mask() -> Callable[[str], str]:
    from model_server import masking  # its lists of names are read when they are needed

    return masking.mask


@contextlib.asynccontextmanager
async def _proxy(settings: Settings, exchanges: _Exchanges) -> AsyncIterator[None]:
    """The proxy, listening.

    Raises:
        ConfigurationError: Its port is taken.
    """
    from model_server import listener, server
    from monitoring.ollama_proxy import recording_proxy

    host, port = _host_and_port(settings.listen)
    assert host is not None
    assert port is not None
    assert settings.ollama is not None
    try:
        sock = server.bind(host, port)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("serving.port=", f"listen={host}:")) from error
    if not server.is_loopback(host):
        say(f"listen={settings.listen}: others can reach Ollama through it, and nobody is asked for a key")
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of an answer that broke off, its line says so
    proxy = listener.listen(recording_proxy(settings.ollama, exchanges), body_s=3600)
    proxy.config.timeout_graceful_shutdown = CLOSE_S
    serving = asyncio.create_task(proxy.serve(sockets=[sock]))
    say(f"Ollama's recording proxy: http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}")
    try:
        yield
    finally:
        proxy.should_exit = True
        await serving


# -- the folder ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The folder, writable, and no second monitor in it: it would write every minute twice.

    Raises:
        ConfigError: One of both does not hold.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(folder)
        itself = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(
            f"logs: cannot write into {folder} ({error.strerror}): choose another folder, or change its owner"
        ) from error
    try:
        fcntl.flock(itself, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(itself)
        raise ConfigError(
            f"logs: another monitor records into {folder}: end it, or choose another folder with logs="
        ) from error
    try:
        yield
    finally:
        os.close(itself)


def _try_to_write(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno != errno.ENOSPC:  # there may be space again, and until then the monitor says that there is none
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
