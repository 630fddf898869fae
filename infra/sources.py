"""The server's sources, wherever they are shipped from: an image, an archive for bare servers, a local deployment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

CODE = ("model_server", "runconfig.py")
"""Two names on a path."""
REQUIREMENTS = "requirements/server.txt"


def files(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """Those of ``names``, and of the folders among them without bytecode, in an order that does not change."""
    for name in names:
        path = root / name
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.is_file() and each.suffix != ".pyc")
        else:
            yield path


def digest(root: Path, names: Sequence[str], more: str = "") -> str:
    """12 hex digits of names and content, and of ``more``: equal sources are the same version everywhere."""
    found = hashlib.sha256(more.encode())
    for path in files(root, names):
        found.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]
