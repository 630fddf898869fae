"""The header of a GGUF file: metadata, and where each tensor lies.

Not the `gguf` package's reader: it makes an array of every string, 6.5 s for the vocabulary of 152k tokens where this
takes 0.2 (0.19.0, 2026-11-23), and a server would wait for it at each start. The package writes the files that the
tests read.

Source: the GGUF specification, versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Tensor type -> (weights in a block, bytes of a block). Source: ggml's ggml-common.h.
BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    30: (1, 2),  # BF16
}


class Header(NamedTuple):
    """``tensors``: name -> (type, offset from ``data_start``, bytes)."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, int, int]]
    data_start: int


def read(path: Path, arrays: Collection[str] = ()) -> Header:
    """The header of ``path``; of ``arrays`` the values, of other arrays their lengths.

    Raises:
        OSError: It cannot be read.
        ValueError: It is none, or is truncated or altered.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("is not a GGUF file: expected it to begin with 'GGUF'")
        try:
            return _read(file, arrays)
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
            raise ValueError(f"has a header that is truncated or altered ({error!r})") from error


def _read(file: BinaryIO, arrays: Collection[str]) -> Header:
    def scalar(code: str) -> Any:
        return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]

    def string() -> str:
        return str(file.read(scalar("Q")), "utf-8")

    def value(kind: int, *, keep: bool) -> Any:
        if kind == _STRING:
            return string()
        if kind != _ARRAY:
            return scalar(_SCALARS[kind])
        inner, length = scalar("I"), scalar("Q")
        if inner in _SCALARS:
            form = f"<{length}{_SCALARS[inner]}"
            if keep:
                return list(struct.unpack(form, file.read(struct.calcsize(form))))
            file.seek(struct.calcsize(form), os.SEEK_CUR)
            return length
        if keep:
            return [value(inner, keep=True) for _ in range(length)]
        for _ in range(length):
            value(inner, keep=False)
        return length

    version, tensor_count, entries = scalar("I"), scalar("Q"), scalar("Q")
    if version not in {2, 3}:
        raise KeyError(f"version {version}")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = string()
        metadata[key] = value(scalar("I"), keep=key in arrays)
    tensors: dict[str, tuple[int, int, int]] = {}
    for _ in range(tensor_count):
        name = string()
        sizes: Sequence[int] = [scalar("Q") for _ in range(scalar("I"))]
        kind, offset = scalar("I"), scalar("Q")
        weights, block = BLOCKS[kind]
        tensors[name] = (kind, offset, math.prod(sizes) // weights * block)
    alignment = int(metadata.get("general.alignment", 32))
    return Header(metadata, tensors, -(-file.tell() // alignment) * alignment)
