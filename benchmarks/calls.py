"""Calls to send, from a JSONL file or from the scenario itself."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.config import Scenario
from benchmarks.errors import CallsFileError, UsageError

MAX_TEXT_CHARACTERS = 200_000


@dataclass(frozen=True, slots=True)
class Call:
    """One text to send. ``label`` is the category a person gave it, where one did."""

    id: str
    text: str
    label: str | None = None


def read_calls(path: Path) -> list[Call]:
    """The calls in ``path``: ``input_text``, and optionally ``complaint_category`` and ``conversation_id``.

    Other fields are ignored: a file made for training has more.

    Raises:
        UsageError: The file cannot be read or holds no call.
        CallsFileError: A line is not a JSON object, or a field is missing or of the wrong type.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the calls file {path}: {error.strerror or error}") from error
    calls: dict[str, Call] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            call = _call(path, number, line)
            if call.id in calls:
                raise CallsFileError(str(path), number, "conversation_id", f"{call.id!r} was used before")
            calls[call.id] = call
    if not calls:
        raise UsageError(f'{path} holds no call: write one {{"input_text": "..."}} per line')
    return list(calls.values())


def calls_of(scenario: Scenario) -> list[Call]:
    """The calls ``scenario`` sends, in the order of the file.

    Raises:
        UsageError: As :func:`read_calls`.
    """
    if scenario.calls is None:
        return [Call(id=f"text-{number}", text=text) for number, text in enumerate(scenario.texts, 1)]
    calls = read_calls(scenario.calls)
    if scenario.max_calls is None or len(calls) <= scenario.max_calls:
        return calls
    chosen = random.Random(scenario.seed).sample(range(len(calls)), scenario.max_calls)
    return [calls[at] for at in sorted(chosen)]


def digest(calls: Sequence[Call]) -> str:
    """SHA-256 over what is sent and expected: two runs with the same digest had the same work."""
    packed = json.dumps([(call.text, call.label) for call in calls], ensure_ascii=False)
    return hashlib.sha256(packed.encode()).hexdigest()


def order_of_calls(count: int, *, seed: int, pair: int, shuffled: bool) -> Iterator[int]:
    """Positions of the calls to send, for ever: all of them once, then all again in another order.

    Both runs of a ``pair`` get the same order, whatever their side.
    """
    chance = random.Random(f"{seed}/{pair}")
    positions = list(range(count))
    while True:
        if shuffled:
            chance.shuffle(positions)
        yield from positions


def _call(path: Path, number: int, line: bytes) -> Call:
    def wrong(field: str, problem: str) -> CallsFileError:
        return CallsFileError(str(path), number, field, problem)

    try:
        row: Any = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise wrong("(line)", f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise wrong("(line)", f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        raise wrong("(line)", f"not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise wrong("(line)", f"must be an object, got {type(row).__name__}")
    text = row.get("input_text")
    if not isinstance(text, str) or not text.strip():
        got = "nothing" if text is None else f"{text!r:.60}"
        raise wrong("input_text", f"must be a text that is not empty, got {got}")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise wrong("input_text", f"has {len(text)} characters, at most {MAX_TEXT_CHARACTERS} are sent")
    label = row.get("complaint_category")
    if label is not None and (not isinstance(label, str) or not label):
        raise wrong("complaint_category", f"must be a category's name or absent, got {label!r:.60}")
    identity = row.get("conversation_id", f"line-{number}")
    if not isinstance(identity, str):
        raise wrong("conversation_id", f"must be a text, got {identity!r:.60}")
    for field, value in (("input_text", text), ("complaint_category", label or ""), ("conversation_id", identity)):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise wrong(field, "holds half of a surrogate pair, which is no character and cannot be sent")
    return Call(id=identity, text=text, label=label)
