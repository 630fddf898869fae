"""Files of one day each, such as ``requests_20261126.jsonl``, and their archives.

The day is the local one of the line's own timestamp, so that a clock that is set, or a laptop that flies, puts no line
into a file of another day. What is old becomes ``requests_20261126.1.jsonl``, to which nobody writes, and then
``requests_20261126.1.jsonl.gz``; after a clock that stepped back there may be a second part.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import msgspec
from pydantic import Field

from model_server.shared_file import SharedFile, compress, remove_stale_parts
from runconfig import RunConfig

REQUESTS = "requests"
"""Name of the files that hold a line for each request."""

_encoder = msgspec.json.Encoder(enc_hook=repr)
_archiving = threading.Lock()


class Retention(RunConfig):
    """How long a day's files are kept, in days that have files: a clock that was years ahead for a moment must not
    delete what is young.
    """

    gzip_after_days: int = Field(default=2, ge=1)
    """So many days stay plain text; older ones are compressed to a tenth."""
    delete_after_days: int = Field(default=90, ge=1)
    """So many days are kept at all."""


SERVER_KEEPS = Retention(gzip_after_days=7, delete_after_days=366)
"""Of the model server, which must not fill a disk where no monitor runs; the monitor may keep less."""


@dataclass(frozen=True, slots=True)
class DayFile:
    """One file of a day.

    Attributes:
        part: Its number among the day's, from 1; None while it is written.
    """

    path: Path
    day: date
    part: int | None


class DailyLines:
    """Appends lines to the file of their day. A line that cannot be written is counted, and the next is tried again.

    Args:
        name: What the files hold; the first part of their names.
        undated: The file that is written has no day in its name, only its archives have.
        say: Given one sentence when lines begin to be lost, and one when they are written again.
        on_lost: Called for each line lost.
        on_new_day: Called before the first line, and before the first of each day.

    Attributes:
        written: Lines so far.
        lost: Lines that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        undated: bool = False,
        say: Callable[[str], object],
        on_lost: Callable[[], object] = lambda: None,
        on_new_day: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder, self._name, self._undated = folder, name, undated
        self._say, self._on_lost, self._on_new_day = say, on_lost, on_new_day
        self._file: SharedFile | None = None
        self._day: date | None = None
        self._missing = 0
        self.written = self.lost = 0

    def append(self, at: datetime, row: Mapping[str, Any]) -> None:
        """Write ``{"timestamp": at, **row}``; ``at`` is aware, in local time."""
        line = encode({"timestamp": at.isoformat(timespec="milliseconds"), **row})
        try:
            if self._file is None or at.date() != self._day:
                self._begin(at.date())
            assert self._file is not None
            self._file.append(line)
        except OSError as error:
            self.lost += 1
            self._missing += 1
            self._on_lost()
            if self._missing == 1:
                reason = error.strerror or error
                self._say(f"cannot write {self._path(at.date())} ({reason}): lines are lost until that is mended")
            return
        self.written += 1
        if self._missing:
            self._say(f"{self._path(at.date())} is written again; {self._missing} lines were lost")
            self._missing = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self, day: date) -> None:
        self.close()
        path = self._path(day)
        last = self._day or _written_on(path)
        if self._undated and last not in (None, day):
            set_aside(path, self._name, last or day)
        self._day, self._file = day, SharedFile(path)
        self._on_new_day()

    def _path(self, day: date) -> Path:
        return self._folder / f"{self._name}.jsonl" if self._undated else path_of(self._folder, self._name, day)


def _written_on(path: Path) -> date | None:
    """The local day on which ``path`` was written last; None where there is none."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).astimezone().date()
    except FileNotFoundError:
        return None


def local_now() -> datetime:
    """Aware, with the offset that holds here now."""
    return datetime.now().astimezone()


def encode(row: Mapping[str, Any]) -> bytes:
    """One line of JSON with its newline."""
    try:
        return _encoder.encode(row) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry escaped
        return json.dumps(row, default=repr).encode() + b"\n"


def path_of(folder: Path, name: str, day: date) -> Path:
    """The file that is written on ``day``."""
    return folder / f"{name}_{day:%Y%m%d}.jsonl"


def files(folder: Path, name: str, day: date | None = None) -> list[DayFile]:
    """The files there are, newest day first, and of a day the one being written before its parts from the last.

    Of a part that has just been compressed the plain form is named as long as it is there.

    Raises:
        OSError: The folder cannot be read; one that is missing has no files.
    """
    pattern = re.compile(rf"{re.escape(name)}_(\d{{8}})(?:\.(\d+))?\.jsonl(\.gz)?")
    found: dict[tuple[date, int], DayFile] = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(folder)):  # noqa: PTH208  ".gz" comes after its plain form; names are enough
            match = pattern.fullmatch(entry)
            if match is None or (match[3] and not match[2]):
                continue
            try:
                of_day = datetime.strptime(match[1], "%Y%m%d").date()  # noqa: DTZ007  a name has no zone
            except ValueError:
                continue  # 20269999 is no day
            part = None if match[2] is None else int(match[2])
            if day is None or of_day == day:
                found.setdefault((of_day, part or 0), DayFile(folder / entry, of_day, part))
    return sorted(found.values(), key=lambda file: (file.day, file.part is None, file.part or 0), reverse=True)


def set_aside(path: Path, name: str, day: date) -> None:
    """Make ``path`` the next part of ``day``: nobody writes to it from then on.

    Raises:
        OSError: It cannot be moved.
    """
    if not path.exists():
        return
    file = SharedFile(path)
    try:
        with file.locked() as fd:
            if not os.fstat(fd).st_size:  # somebody else was faster, and we have just made it anew
                path.unlink()
                return
            last = max((found.part or 0 for found in files(path.parent, name, day)), default=0)
            path.rename(path.with_name(f"{name}_{day:%Y%m%d}.{last + 1}.jsonl"))
    finally:
        file.close()


def archive(folder: Path, names: Iterable[str], keep: Retention, today: date) -> None:
    """Compress and delete what is old; what an earlier process left half done is done again.

    Today's file is left alone wherever the clock says that today is.

    Raises:
        OSError: The folder cannot be read or written, or there is no space for a compressed file.
    """
    with _archiving:
        for name in names:
            if not folder.is_dir():
                return
            remove_stale_parts(folder, f"{name}_")
            found = files(folder, name)
            days = sorted({file.day for file in found}, reverse=True)
            for file in found:
                age = days.index(file.day)
                if age >= keep.delete_after_days and file.day != today:
                    file.path.unlink(missing_ok=True)
                elif age >= keep.gzip_after_days and file.day != today and file.part is None:
                    set_aside(file.path, name, file.day)
            for file in files(folder, name):
                if file.part is not None and file.path.suffix == ".jsonl":
                    compress(file.path)


def archive_in_background(folder: Path, names: Iterable[str], keep: Retention, say: Callable[[str], object]) -> None:
    """As :func:`archive`, in a thread; what goes wrong is said."""

    def work() -> None:
        try:
            archive(folder, names, keep, local_now().date())
        except OSError as error:
            say(f"cannot archive in {folder}: {error.strerror or error}")

    threading.Thread(target=work, name="daily-archive", daemon=True).start()
