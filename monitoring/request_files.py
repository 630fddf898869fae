"""R13's daily files: ``requests_YYYYMMDD.jsonl``, a line a request, and ``system_YYYYMMDD.jsonl``, a line a minute.

The model server writes the first by itself where it has a ``serving.log_dir``; beside a plain Ollama the recording
proxy does (:mod:`monitoring.ollama_proxy`). ``python -m monitoring.files`` writes the second.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import itertools
import os
import time
import typing
import zlib
from collections.abc import Generator, Iterable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from pydantic import AwareDatetime, ConfigDict, Field

from model_server.daily_files import REQUESTS, files, path_of
from runconfig import RunConfig

SYSTEM = "system"
"""Name of the files that hold a line for each minute."""

LOOK_S = 0.2
"""Between two looks for new lines."""

MAX_LINE_BYTES = 1 << 16
"""A request takes about 500. What is longer is no line of ours and is never held as a whole."""

_BLOCK_BYTES = 1 << 16
_MOST_AT_ONCE = 1 << 20

Count = Annotated[int, Field(ge=0), msgspec.Meta(ge=0)]
Number = Annotated[float, Field(ge=0), msgspec.Meta(ge=0)]


class RequestLine(RunConfig):
    """One request. Unlike a setting it may have keys that we do not know: they come from a newer writer.

    Latencies are milliseconds.
    """

    model_config = ConfigDict(extra="ignore")

    timestamp: AwareDatetime
    """When it ended, with the offset of local time; it began ``latency_ms`` before."""
    model: str
    """Name that was served or, of a request to Ollama, asked for; empty where none was."""
    prompt_length: Count
    """Characters of all that was asked; 0 where it was refused unread."""
    response_length: Count
    """Characters of generated text; 0 for a classification."""
    latency_ms: Number
    """From the request's arrival to its last byte."""
    status: Literal["success", "error"]
    """error: without a whole answer, whoever's fault it was."""
    error: str | None
    """What went wrong: the server's error code, or Ollama's own words."""
    status_code: int | None = None
    """HTTP status; 499: the client left. A stream that broke off has what a plain answer would have had."""
    endpoint: str | None = None
    """For example classify, or Ollama's path."""
    first_token_ms: Number | None = None
    """From the request's arrival; None where nothing was generated, or not as a stream."""
    tokens_used: Count | None = None
    """Of prompt and answer."""
    generated_tokens: Count | None = None
    """Of the answer."""
    category: str | None = None
    """Of a request that classified one text."""
    confidence: Annotated[float, Field(ge=0, le=1), msgspec.Meta(ge=0, le=1)] | None = None
    """Calibrated; None where the engine gives none."""
    request_id: str | None = None
    """The same as in the server's log and in the answer's header."""
    trace_id: str | None = None
    """Of its OpenTelemetry trace, if it has one."""


class SystemLine(RunConfig):
    """The machine over one minute."""

    model_config = ConfigDict(extra="ignore")

    timestamp: AwareDatetime
    """When it was read, with the offset of local time."""
    cpu_percent: Number
    """Of all cores, since the line before."""
    memory_percent: Number
    """Of the machine's memory: what is not available to a new process."""
    memory_used_gb: Number
    """GiB in use, without caches."""
    disk_usage_percent: Number
    """Of the file system that holds the files."""


def _struct(model: type[RunConfig]) -> type[msgspec.Struct]:
    """The same fields and ranges as ``model``, read in 0.5 us a line instead of 47: a day may have a million."""
    kinds = typing.get_type_hints(model, include_extras=True) | {
        "timestamp": Annotated[datetime, msgspec.Meta(tz=True)]
    }
    fields: list[tuple[str, object] | tuple[str, object, object]] = [
        (name, kinds[name]) if field.is_required() else (name, kinds[name], field.default)
        for name, field in model.model_fields.items()
    ]
    return msgspec.defstruct(f"_{model.__name__}", fields, gc=False)


REQUEST_DECODER = msgspec.json.Decoder(_struct(RequestLine))
SYSTEM_DECODER = msgspec.json.Decoder(_struct(SystemLine))
"""The one judge of what a line is, for a page and for a summary."""

CORRUPT = (msgspec.MsgspecError, UnicodeDecodeError)
"""What the decoders raise."""


def request_line(raw: bytes) -> RequestLine | None:
    """The line; None where it is corrupt."""
    try:
        return RequestLine.model_construct(**msgspec.structs.asdict(REQUEST_DECODER.decode(raw)))
    except CORRUPT:
        return None


def requests_path(folder: Path, day: date) -> Path:
    """The file to which the requests of ``day`` are written."""
    return path_of(folder, REQUESTS, day)


def system_path(folder: Path, day: date) -> Path:
    """The file to which the machine's minutes of ``day`` are written."""
    return path_of(folder, SYSTEM, day)


def read_recent(folder: Path, limit: int) -> list[RequestLine]:
    """The last ``limit`` requests, newest first, whatever day they are of; corrupt lines are passed over.

    Files are read from their ends, archives only where the others hold too few.

    Raises:
        OSError: The folder cannot be read; one that is missing has no requests.
    """
    found: list[RequestLine] = []
    try:
        for file in files(folder, REQUESTS):
            lines = _last_lines(file.path, limit) if file.path.suffix == ".gz" else _lines_backwards(file.path)
            of_file = (line for line in map(request_line, lines) if line is not None)
            found += itertools.islice(of_file, limit - len(found))
            if len(found) >= limit:
                break
    except FileNotFoundError:  # archived at this moment: it has another name now
        return read_recent(folder, limit)
    # Two writers, or a clock that was set: lines are not quite in order.
    return sorted(found, key=lambda line: line.timestamp, reverse=True)


def follow(folder: Path) -> Generator[RequestLine]:
    """Requests as they are written, from this call on, for ever; see :class:`Tail` to look without waiting."""
    tail = Tail(folder)

    def wait() -> Generator[RequestLine]:
        with contextlib.closing(tail):
            while True:
                yield from tail.new_lines()
                time.sleep(LOOK_S)

    return wait()


class Tail:
    """The ends of the files that are being written: over midnight, and when they are archived meanwhile.

    Attributes:
        corrupt: Lines that were passed over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[_Growing] = [_Growing(path, from_end=True) for path in self._written()]
        self.corrupt = 0

    def new_lines(self) -> list[RequestLine]:
        """Those that were completed since the last call, at most about 1 MiB of each file."""
        known = {growing.path for growing in self._open if not growing.was_moved()}
        for path in self._written():
            if path not in known:
                self._open.append(_Growing(path, from_end=False))
        found: list[RequestLine] = []
        for growing in [*self._open]:
            gone = growing.was_moved()  # asked first: what was written until then is in what is read now
            lines = growing.lines()
            if gone and not lines:
                growing.close()
                self._open.remove(growing)
            for raw in lines:
                line = request_line(raw)
                if line is None:
                    self.corrupt += 1
                else:
                    found.append(line)
        return found

    def close(self) -> None:
        for growing in self._open:
            growing.close()

    def _written(self) -> Iterable[Path]:
        return [file.path for file in files(self._folder, REQUESTS) if file.part is None]


class _Growing:
    """A file that is being written, and how far it was read."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._inode, self._offset = 0, 0
        try:
            self._file = path.open("rb")
        except FileNotFoundError:  # archived since it was listed
            return
        status = os.fstat(self._file.fileno())
        self._inode = status.st_ino
        if from_end:
            self._offset = status.st_size - _unfinished(self._file, status.st_size)

    def was_moved(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def lines(self) -> list[bytes]:
        if self._file is None:
            return []
        # A file that was cut goes on from its end.
        self._offset = min(self._offset, os.fstat(self._file.fileno()).st_size)
        block = os.pread(self._file.fileno(), _MOST_AT_ONCE, self._offset)
        end = block.rfind(b"\n") + 1
        if not end and len(block) == _MOST_AT_ONCE:  # no line of ours
            end = len(block)
        self._offset += end
        return block[:end].splitlines()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _unfinished(file: BinaryIO, size: int) -> int:
    """Bytes of a last line that is still being written."""
    block = os.pread(file.fileno(), MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    return len(block) - (block.rfind(b"\n") + 1)


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The complete lines of ``path`` from the last; of one that is too long, something that is no JSON."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        end -= _unfinished(file, end)
        rest = b""
        while end:
            start = max(0, end - _BLOCK_BYTES)
            first, *others = (os.pread(file.fileno(), end - start, start) + rest).split(b"\n")
            yield from (line for line in reversed(others) if line)
            rest = first if len(first) <= MAX_LINE_BYTES else b"\0"
            end = start
        if rest:
            yield rest


def _last_lines(path: Path, limit: int) -> Iterator[bytes]:
    """The last lines of an archive, the last first; those before a tear where it is torn."""
    last: collections.deque[bytes] = collections.deque(maxlen=limit)
    with gzip.open(path) as lines:
        try:
            while line := lines.readline(MAX_LINE_BYTES):
                last.append(line)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            pass
    return reversed(last)
