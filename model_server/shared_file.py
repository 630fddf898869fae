"""A file to which several processes append whole lines, and which may be moved away under them."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

_PART = re.compile(r".*\.(\d+)\.part")


class SharedFile:
    """Opened at the first line, opened anew when it was moved or deleted behind our back.

    Attributes:
        path: Made with its folder when it is missing; readable by owner and group.
        openings: How often it was opened: another number, another file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.openings = 0
        self._fd: int | None = None
        self._inode = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """The file that is at ``path`` now, for this process alone.

        Without the lock a second process could write into a file that is being compressed, or give its archive a number
        that has just been used (one of ten thousand lines was lost so, and on a busy machine an archive).

        Raises:
            OSError: It cannot be opened.
        """
        fd = self._lock()
        try:
            yield fd
        finally:
            if self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def append(self, line: bytes) -> None:
        """Write ``line``, which ends with a newline, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        with self.locked() as fd:
            write(fd, line)

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _lock(self) -> int:
        while True:
            if self._fd is None:
                self._open()
            assert self._fd is not None
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:
                    return self._fd
            self.close()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._inode = os.fstat(self._fd).st_ino
        self.openings += 1


def write(fd: int, line: bytes) -> None:
    """Append ``line`` to the locked file ``fd``, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":  # somebody died in the middle of a line: it must not cost ours
        line = b"\n" + line
    written = os.write(fd, line)
    if written < len(line):  # the disk became full in the middle: no torn line stays behind
        os.ftruncate(fd, os.fstat(fd).st_size - written)
        raise OSError("the line did not fit on the disk")


def compress(plain: Path) -> None:
    """Replace ``plain``, to which nobody writes any more, by ``plain.gz``; killed at any moment it can be done again.

    Raises:
        OSError: There is no space for both, or the folder cannot be written.
    """
    part = plain.with_name(f"{plain.name}.{os.getpid()}.part")
    try:
        with plain.open("rb") as source, part.open("wb") as raw:
            os.fchmod(raw.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
            with gzip.open(raw, "wb", 6) as packed:
                shutil.copyfileobj(source, packed, 2**18)
        part.replace(plain.with_name(plain.name + ".gz"))
        plain.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: Path, prefix: str) -> None:
    """Delete what a killed :func:`compress` left of files whose names begin with ``prefix``."""
    for path in folder.iterdir():
        part = _PART.fullmatch(path.name)
        if part is not None and path.name.startswith(prefix) and not psutil.pid_exists(int(part[1])):
            path.unlink(missing_ok=True)
