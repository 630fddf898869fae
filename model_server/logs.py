"""JSON lines: one pipeline for our own events and for the standard library's loggers (uvicorn and others).

Each line has ``timestamp`` (UTC), ``monotonic`` (seconds; orders lines when the clock steps back),
``level``, ``logger``, ``event``, and what :func:`structlog.contextvars.bind_contextvars` was given for the
request (``request_id``, ``trace_id``). Texts of clients are not written: :func:`text_fields` gives lengths.

Logging must not harm the service: a line that cannot be written is counted and dropped, and the next one is
tried again.
"""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import structlog

from model_server.shared_file import SharedFile, compress, remove_stale_parts, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MAX_BYTES = 16 * 2**20
"""A file is archived at this size; compressing it takes about 0.5 s of one core at level 6 (0.9 s at 9, as small)."""
KEEP_ARCHIVES = 30
"""Archives kept. A count and not an age: a clock that jumps ahead must not delete what is young."""

# Keys under which a client's text could be logged by mistake: their values become lengths.
TEXT_KEYS = frozenset(
    {"prompt", "text", "texts", "messages", "content", "answer", "response", "result", "body", "input"}
)

_encoder = msgspec.json.Encoder(enc_hook=repr)


def configure(
    level: str,
    log_dir: Path | None = None,
    *,
    stream: TextIO | None = None,
    on_drop: Callable[[], object] = lambda: None,
    handlers: Sequence[logging.Handler] = (),
    max_bytes: int = MAX_BYTES,
    keep: int = KEEP_ARCHIVES,
) -> None:
    """Send every log line of this process to files in ``log_dir``, or to stdout without one.

    Called again it replaces what it set up before.

    Args:
        stream: Written as well as the files, or instead of stdout.
        on_drop: Called for each line that could not be written, for example a counter's ``inc``.
        handlers: More places, such as OTLP; ``handler.format(record)`` gives them the JSON line.

    Raises:
        ValueError: ``level`` is none of LEVELS.
    """
    fields: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_monotonic,
        structlog.processors.format_exc_info,
        _lengths_for_texts,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *fields,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *fields],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _to_json],
    )
    places: list[logging.Handler] = []
    if log_dir is not None:
        places.append(_FileLines(log_dir, on_drop, max_bytes=max_bytes, keep=keep))
    if stream is not None or log_dir is None:
        places.append(_StreamLines(stream or sys.stdout, on_drop))
    places += handlers

    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, _Lines) or old in _extra:
            root.removeHandler(old)
            old.close()
    _extra[:] = handlers
    for place in places:
        place.setFormatter(formatter)
        root.addHandler(place)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # its own configuration prints plain text
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # One INFO line per call to Ollama or LMDeploy: what it says, the request's own line says.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    set_level(level)


_extra: list[logging.Handler] = []


def set_level(level: str) -> None:
    """Apply at once, to loggers that exist already too.

    Raises:
        ValueError: ``level`` is none of LEVELS.
    """
    if level.upper() not in LEVELS:
        raise ValueError(f"log level {level!r} is unknown: use one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def text_fields(prompt: str, response: str, mask: Callable[[str], str] | None = None) -> dict[str, str | int]:
    """What may be logged about a client's text: its lengths in characters.

    Args:
        mask: Given when ``record_text`` is on: the masked texts are added.
    """
    fields: dict[str, str | int] = {"prompt_length": len(prompt), "response_length": len(response)}
    if mask is not None:
        fields |= {"prompt_masked": mask(prompt), "response_masked": mask(response)}
    return fields


def _add_monotonic(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event["monotonic"] = round(time.monotonic(), 6)
    return event


def _lengths_for_texts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    scrubbed: EventDict = _scrub(event)
    return scrubbed


def _scrub(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _scrub(inner) for key, inner in value.items() if key not in TEXT_KEYS}
        kept |= {f"{key}_length": _length(inner) for key, inner in value.items() if key in TEXT_KEYS}
        return kept
    if isinstance(value, (list, tuple)):
        return [_scrub(inner) for inner in value]
    return value


def _length(text: Any) -> int | None:
    return len(text) if hasattr(text, "__len__") else None


def _to_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}  # for those who read with eyes
    event = {**first, **event}
    try:
        return _encoder.encode(event).decode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry escaped
        return json.dumps(event, default=repr)


class _Lines(logging.Handler, abc.ABC):
    """Writes lines; a failure is counted, and told in the log itself once it can be written again."""

    def __init__(self, on_drop: Callable[[], object]) -> None:
        super().__init__()
        self._on_drop = on_drop
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:  # whatever fails here, the request that logs must go on
            self._dropped += 1
            self._on_drop()
            return
        if self._dropped:
            # Not through a logger, which would take other handlers' locks while this one's is held.
            note = {
                "name": __name__,
                "levelname": "WARNING",
                "levelno": logging.WARNING,
                "dropped": self._dropped,
            }
            self._dropped = 0
            self.emit(logging.makeLogRecord(note | {"msg": "log lines were dropped"}))

    @abc.abstractmethod
    def _write(self, line: bytes) -> None: ...


class _StreamLines(_Lines):
    """Lines on stdout.

    Written past Python's buffer where there is a file descriptor: a buffer that cannot be flushed at exit
    (full disk behind ``> file``) would turn exit code 0 into 120.
    """

    def __init__(self, stream: TextIO, on_drop: Callable[[], object]) -> None:
        super().__init__(on_drop)
        self._stream = stream
        self._torn = False
        try:
            self._fd: int | None = stream.fileno()
        except (OSError, AttributeError):  # StringIO and its like
            self._fd = None

    def _write(self, line: bytes) -> None:
        if self._fd is None:
            self._stream.write(line.decode())
            self._stream.flush()
            return
        self._stream.flush()  # what was printed before stays before
        rest = memoryview(b"\n" + line if self._torn else line)
        self._torn = False
        while rest:
            written = os.write(self._fd, rest)
            self._torn = written < len(rest)
            rest = rest[written:]


class _FileLines(_Lines):
    """``server.jsonl``, archived as ``server-YYYYMMDD-NNNNNN.jsonl.gz`` when the UTC day ends or at a size.

    NNNNNN grows over all archives, so neither a clock that steps back nor a second server in the same
    directory overwrites one, and the oldest is known without asking a clock.
    """

    def __init__(
        self,
        directory: Path,
        on_drop: Callable[[], object],
        *,
        max_bytes: int,
        keep: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(on_drop)
        self._directory, self._max_bytes, self._keep, self._now = directory, max_bytes, keep, now
        self._file = SharedFile(directory / "server.jsonl")
        self._known_opening = 0
        self._day = ""
        self._compressing = threading.Lock()
        self._compressor: threading.Thread | None = None

    def _write(self, line: bytes) -> None:
        for archived in (False, True):
            with self._file.locked() as fd:
                over = self._is_over(os.fstat(fd), len(line))
                if archived or not over:
                    write(fd, line)
                    return
                self._archive()

    def _is_over(self, status: os.stat_result, more: int) -> bool:
        """Its day has ended, or it would become too large."""
        if self._file.openings != self._known_opening:
            self._known_opening = self._file.openings
            self._day = _day(status.st_mtime) if status.st_size else self._today()
        return status.st_size > 0 and (self._today() > self._day or status.st_size + more > self._max_bytes)

    def _archive(self) -> None:
        archive = self._directory / f"server-{self._day}-{_number(self._archives()[-1:]) + 1:06d}.jsonl"
        try:
            os.link(self._file.path, archive)  # unlike rename, it refuses to overwrite
            self._file.path.unlink()
        except (
            FileExistsError,
            FileNotFoundError,
        ):  # somebody else moves files here; the next line sees what came of it
            return
        except OSError:  # a file system without hard links, or a full one
            self._file.path.rename(archive)
        self._file.close()
        self._compressor = threading.Thread(target=self._compress, name="log-archive", daemon=True)
        self._compressor.start()

    def _compress(self) -> None:
        """Compress also what an earlier process or a full disk left; then delete the oldest."""
        with self._compressing, contextlib.suppress(OSError):
            remove_stale_parts(self._directory, "server-")
            for old in self._archives()[: -self._keep]:
                old.unlink(missing_ok=True)
            for plain in self._archives():
                if plain.suffix == ".jsonl":
                    compress(plain)

    def _archives(self) -> list[Path]:
        """Oldest first."""
        return sorted(
            (path for path in self._directory.iterdir() if _ARCHIVE.fullmatch(path.name)),
            key=lambda path: (_number([path]), path.name),
        )

    def _today(self) -> str:
        return _day(self._now())

    def close(self) -> None:
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            self._file.close()
        if self._compressor is not None:
            self._compressor.join(timeout=5)
        super().close()


_ARCHIVE = re.compile(r"server-\d{8}-(\d{6,})\.jsonl(\.gz)?")


def _number(archives: Sequence[Path]) -> int:
    """The number of the only archive given; 0 without one."""
    for path in archives:
        match = _ARCHIVE.fullmatch(path.name)
        assert match is not None
        return int(match[1])
    return 0


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d")
