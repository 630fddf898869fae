"""Traces: who came when, with how long a prompt, for how long an answer; no text and no name.

JSONL; each line has ``offset_s`` (seconds from the first request) and may have ``prompt_characters``, ``prompt_tokens``
and ``max_tokens``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import CallsFileError, UsageError

LENGTHS = ("prompt_characters", "prompt_tokens", "max_tokens")
MOST = 2.0**53
"""Beyond it floats leave out whole numbers; no time and no length is as large."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Each array is (requests,), in the order of ``offsets_s``, seconds; None where the file gives no such length.

    ``max_tokens`` of a line that gives none is the median of the others.
    """

    offsets_s: NDArray[np.float64]
    prompt_characters: NDArray[np.int64] | None = None
    prompt_tokens: NDArray[np.int64] | None = None
    max_tokens: NDArray[np.int64] | None = None

    @property
    def has_lengths(self) -> bool:
        return self.prompt_characters is not None or self.prompt_tokens is not None


def read_trace(path: Path) -> Trace:
    """The requests in ``path``, by their time.

    Raises:
        UsageError: The file cannot be read or holds no request.
        CallsFileError: A line is wrong; names the field.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the trace {path}: {error.strerror or error}") from error
    rows = [(number, _trace_line(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UsageError(f'{path} holds no request: write one {{"offset_s": 0.0, ...}} per line')
    rows.sort(key=lambda row: row[1]["offset_s"])
    found: dict[str, NDArray[np.int64] | None] = {}
    for name in LENGTHS:
        given = [name in row for _, row in rows]
        if name != "max_tokens" and any(given) and not all(given):
            number = min(number for number, row in rows if name not in row)
            raise CallsFileError(str(path), number, name, "is missing here and given on other lines: give all or none")
        usual = int(np.median([row[name] for _, row in rows if name in row])) if any(given) else 0
        found[name] = np.array([row.get(name, usual) for _, row in rows], dtype=np.int64) if any(given) else None
    return Trace(np.array([row["offset_s"] for _, row in rows], dtype=np.float64), **found)


def _trace_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    def wrong(field: str, problem: str) -> CallsFileError:
        return CallsFileError(str(path), number, field, problem)

    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong("(line)", f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise wrong("(line)", f"must be an object, got {type(row).__name__}")
    allowed = ("offset_s", *LENGTHS)
    for name, value in row.items():
        if name not in allowed:
            raise wrong(str(name), f"unknown; allowed here: {', '.join(allowed)}")
        if name == "offset_s":
            if not is_number(value) or value < 0:
                raise wrong(name, f"must be seconds, 0 or more, got {value!r:.60}")
        elif not is_number(value) or value != int(value) or value < 1:
            raise wrong(name, f"must be a whole number above 0, got {value!r:.60}")
    if "offset_s" not in row:
        raise wrong("offset_s", "is missing")
    return row


def is_number(value: object) -> TypeGuard[float]:
    """A JSON number that a float holds to the last digit before the point."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST <= value <= MOST


def read_tokenizer(path: Path) -> Any:
    """A ``tokenizers.Tokenizer``.

    Raises:
        UsageError: ``path`` holds none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises Exception itself
        raise UsageError(f"cannot read the tokenizer {path}: {error}") from error


def wanted_lengths(
    trace: Trace, texts: Sequence[str], tokenizer: Path | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the trace asks for, (requests,), and what the texts have, (texts,): in characters, else in tokens.

    Characters come first: our log's token counts include what the server's template adds.

    Raises:
        UsageError: The trace gives tokens alone, and there is no tokenizer to count those of the texts.
    """
    if trace.prompt_characters is not None:
        return trace.prompt_characters, np.array([len(text) for text in texts], dtype=np.int64)
    assert trace.prompt_tokens is not None
    if tokenizer is None:
        raise UsageError("the trace gives prompt_tokens alone: set tokenizer=tokenizer.json, which counts the calls'")
    counts = [len(found.ids) for found in read_tokenizer(tokenizer).encode_batch(list(texts), add_special_tokens=False)]
    return trace.prompt_tokens, np.array(counts, dtype=np.int64)


def nearest_calls(
    wanted: NDArray[np.int64], lengths: NDArray[np.int64], chance: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Position of the text whose length is nearest to each of ``wanted``; ``chance`` in [0, 1) chooses among equals."""
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    right = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    left = np.maximum(right - 1, 0)
    distance = np.minimum(np.abs(ascending[left] - wanted), np.abs(ascending[right] - wanted))
    # Shorter and longer by the same distance are equals too, and they are neighbours in this order.
    low = np.searchsorted(ascending, wanted - distance)
    high = np.searchsorted(ascending, wanted + distance, side="right")
    nearest: NDArray[np.int64] = order[low + np.floor(chance * (high - low)).astype(np.int64)]
    return nearest
