"""Daily files of a laptop: one line for each request, one for each minute of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from runconfig import RunConfig

LOOK_S = 0.2
"""Between two looks at a file for new lines."""


class RequestLine(RunConfig):
    """One request, as R13 names its fields."""

    timestamp: AwareDatetime
    """When it was answered."""
    model: str
    prompt_length: int
    """Characters."""
    response_length: int
    """Characters."""
    latency_ms: float
    status: Literal["success", "error"]
    error: str | None
    first_token_ms: float | None = None
    tokens_used: int | None = None
    """Of prompt and answer."""
    category: str | None = None
    confidence: float | None = None
    request_id: str | None = None
    trace_id: str | None = None


def requests_path(folder: Path, day: date) -> Path:
    return folder / f"requests_{day:%Y%m%d}.jsonl"


def system_path(folder: Path, day: date) -> Path:
    return folder / f"system_{day:%Y%m%d}.jsonl"


def read_recent(folder: Path, limit: int) -> list[RequestLine]:
    """The last ``limit`` requests, newest first; lines that cannot be read are left out."""
    found: list[RequestLine] = []
    for path in sorted(folder.glob("requests_*.jsonl"), reverse=True):
        for raw in reversed(path.read_bytes().splitlines()):
            line = _parsed(raw)
            if line is not None:
                found.append(line)
            if len(found) == limit:
                return found
    return found


def follow(folder: Path) -> Iterator[RequestLine]:
    """Requests as they are written, from this call on, for ever."""
    path = requests_path(folder, _today())
    return _growing(folder, path, path.stat().st_size if path.exists() else 0)


def _growing(folder: Path, path: Path, offset: int) -> Iterator[RequestLine]:
    while True:
        today = requests_path(folder, _today())
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                *lines, _ = file.read().split(b"\n")  # a line still being written is read at the next look
            for raw in lines:
                offset += len(raw) + 1
                line = _parsed(raw)
                if line is not None:
                    yield line
        if path != today:
            path, offset = today, 0
        time.sleep(LOOK_S)


def _parsed(raw: bytes) -> RequestLine | None:
    try:
        return RequestLine.model_validate_json(raw)
    except ValidationError:
        return None


def _today() -> date:
    return datetime.now().astimezone().date()
