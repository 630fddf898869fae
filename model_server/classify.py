"""Classify a file of calls over a running server; after any interruption the same command goes on.

    python -m model_server.classify in.jsonl out.jsonl [url=http://127.0.0.1:8000]
                                    [concurrency=8] [field=input_text] [api_key_file=...] [patience_s=300]

Each line of the input is a JSON object whose ``field`` holds a call. Each line of the output answers one line
of the input, named by ``line``, in the order in which answers came. The output is its own journal: answers
are appended and synced to disk, so kill -9 loses none that was written and repeats none; a last line that was
cut short is removed on resume. Lines of the input that cannot be read, and calls that the server refuses,
become lines with an ``error`` and exit code 1. Progress goes to stderr, the last line of stdout is one JSON
object.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx2
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import runconfig

PATH = "/api/v1/classify"
FIELDS = ("category", "confidence", "probabilities", "needs_review")
CONNECT_TRIES = 5
ANSWER_TIMEOUT_S = 120.0


class Words(runconfig.RunConfig):
    """The command line."""

    calls: Path
    """JSON lines to read."""
    out: Path
    """JSON lines to write, or to go on with."""
    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://[^/]+")
    """Address of the model server."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Calls under way at once."""
    field: str = Field(default="input_text", min_length=1)
    """Key of the text in each line."""
    api_key_file: Path | None = None
    """Its first line is sent as the bearer key."""
    patience_s: float = Field(default=300, gt=0)
    """How long one call may wait for a server that says it is busy."""


class StopError(Exception):
    """The run ends here; what was answered is kept, and the same command goes on later."""


class JournalError(Exception):
    """The output file is not one of ours, belongs to another input, or is in use."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: a call, or why it is none."""

    number: int
    sha256: str
    """First 16 hex digits of the line's own hash: a journal must not answer another file's lines."""
    text: str | None
    error: str = ""
    conversation_id: str | None = None


# --- input -----------------------------------------------------------------------------------------------


def read_lines(path: Path, field: str) -> Iterator[Line]:
    """The lines that are not blank, numbered from 1."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield _line(number, raw.strip(), field)


def _line(number: int, raw: bytes, field: str) -> Line:
    sha256 = hashlib.sha256(raw).hexdigest()[:16]

    def broken(why: str) -> Line:
        return Line(number, sha256, None, why)

    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return broken(f"not UTF-8 at byte {error.start}: save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return broken(f"not JSON ({error}): each line must be one JSON object")
    if not isinstance(row, dict):
        return broken(f"a {type(row).__name__}: each line must be one JSON object")
    if field not in row:
        return broken(f"no key {field!r}, only {', '.join(map(str, list(row)[:6])) or 'none'}: name it with field=...")
    text = row[field]
    if not isinstance(text, str) or not text.strip():
        return broken(f"{field!r} must hold a text that is not empty, got {json.dumps(text)[:40]}")
    named = row.get("conversation_id")
    return Line(number, sha256, text, conversation_id=named if isinstance(named, str) else None)


# --- journal ---------------------------------------------------------------------------------------------


class Journal:
    """The output file: what is done already, and a way to add to it that survives kill -9."""

    def __init__(self, path: Path) -> None:
        """Open or make ``path``, cut a torn last line off, and read what is done.

        Raises:
            JournalError: Another run writes it, or it is not such a file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise JournalError(f"{path} is being written by another run: wait for it, or name another file") from None
        self.done: dict[int, str] = {}
        self.failed = self.reviews = 0
        self._file.seek(0)
        whole = 0
        for at, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                self._file.truncate(whole)  # torn by the kill: its call is asked again
                break
            try:
                row = json.loads(raw)
                self._count(row)
                self.done[int(row["line"])] = str(row["sha256"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                self._file.close()
                raise JournalError(
                    f"{path}, line {at} was not written by this command ({error!r}): name another output file"
                ) from error
            whole += len(raw)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows and wait until the disk has them."""
        self._file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        for row in rows:
            self.done[row["line"]] = row["sha256"]
            self._count(row)

    def close(self) -> None:
        self._file.close()

    def _count(self, row: dict[str, Any]) -> None:
        self.failed += "error" in row
        self.reviews += bool(row.get("needs_review"))


# --- asking ----------------------------------------------------------------------------------------------


async def ask(client: httpx2.AsyncClient, line: Line, patience_s: float) -> dict[str, Any]:
    """The output row of one call. A busy server is asked again when it says, a silent one with growing pauses.

    Raises:
        StopError: The server is gone, refuses the key, or does not classify.
    """
    row = {"line": line.number, "conversation_id": line.conversation_id, "sha256": line.sha256}
    if line.text is None:
        return row | {"error": line.error}
    give_up_at = time.monotonic() + patience_s
    tries = 0
    while True:
        try:
            answer = await client.post(PATH, json={"text": line.text})
        except UnicodeEncodeError:
            return row | {"error": "the text has lone surrogates (half of a character): repair the file"}
        except httpx2.TransportError as error:
            tries += 1
            if tries == CONNECT_TRIES:
                raise StopError(
                    f"line {line.number}: no answer from {client.base_url} after {tries} tries ({_reason(error)}): "
                    "is the server running? start it with `python -m model_server environments/local.yml`"
                ) from error
            # Exponential with full jitter, so that clients do not come back together.
            await asyncio.sleep(random.uniform(0.5, 1) * 0.5 * 2**tries)
            continue
        status = answer.status_code
        if status in {429, 503}:
            wait = _retry_after_s(answer)
            if time.monotonic() + wait > give_up_at:
                raise StopError(
                    f"line {line.number}: the server was busy for {patience_s:g} s (status {status}, "
                    f"{_message(answer)}): run the same command later, or lower concurrency"
                )
            await asyncio.sleep(wait)
            continue
        if status in {401, 403, 404, 405}:
            raise StopError(f"the server refuses {PATH} with status {status}: {_message(answer)}")
        if status in {500, 502, 504}:
            tries += 1
            if tries < CONNECT_TRIES:
                await asyncio.sleep(random.uniform(0.5, 1) * 0.5 * 2**tries)
                continue
            raise StopError(
                f"line {line.number}: the server failed {tries} times (status {status}): {_message(answer)}"
            )
        if status != 200:
            return row | {"error": f"status {status}: {_message(answer)}"}
        return row | _decision(answer)


def _decision(answer: httpx2.Response) -> dict[str, Any]:
    try:
        body = answer.json()
        return {name: body[name] for name in FIELDS}
    except (ValueError, KeyError, TypeError) as error:
        raise StopError(f"what answers at {answer.url} is not a model server: {answer.text[:100]!r}") from error


def _retry_after_s(answer: httpx2.Response) -> float:
    """What the server asks for, spread by up to a quarter; one second where it says nothing readable."""
    try:
        wait = float(answer.headers.get("retry-after", "1"))
    except ValueError:  # a date: none of our servers sends one
        wait = 1.0
    return max(0.05, wait) * random.uniform(1, 1.25)


def _message(answer: httpx2.Response) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(answer.json()["error"]["message"])[:300]
    return answer.text[:200]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


async def classify(words: Words, journal: Journal, progress: Progress) -> int:
    """Ask for every line that the journal has not; return how many lines there are.

    Raises:
        StopError: See :func:`ask`. Answers that came before are in the journal.
        JournalError: The journal answers lines that this input does not have.
    """
    headers = {}
    if words.api_key_file is not None:
        key = words.api_key_file.read_text(encoding="utf-8").partition("\n")[0].strip()
        headers["Authorization"] = f"Bearer {key}"
    total = 0
    for line in read_lines(words.calls, words.field):
        total += 1
        if journal.done.get(line.number, line.sha256) != line.sha256:
            raise JournalError(
                f"{journal.path} answers another file: its line for line {line.number} belongs to another text than "
                f"{words.calls} has; name another output file"
            )
    bar = progress.add_task("calls", total=total, completed=len(journal.done))
    limits = httpx2.Limits(max_connections=words.concurrency, max_keepalive_connections=words.concurrency)
    timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=10)
    async with httpx2.AsyncClient(base_url=words.url, headers=headers, limits=limits, timeout=timeout) as client:
        todo = (line for line in read_lines(words.calls, words.field) if line.number not in journal.done)
        running: set[asyncio.Task[dict[str, Any]]] = set()
        stop: StopError | None = None
        while True:
            while stop is None and len(running) < words.concurrency and (coming := next(todo, None)) is not None:
                running.add(asyncio.create_task(ask(client, coming, words.patience_s)))
            if not running:
                break
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            rows = []
            for task in ended:
                try:
                    rows.append(task.result())
                except StopError as error:
                    stop = stop or error
                    for other in running:
                        other.cancel()
                except asyncio.CancelledError:
                    pass
            if rows:
                journal.append(rows)
                progress.advance(bar, len(rows))
    if stop is not None:
        raise stop
    return total


# --- command line ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    places = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(places) != 2 or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    started = time.monotonic()
    console = Console(stderr=True)
    try:
        words = runconfig.validate(
            Words, {"calls": places[0], "out": places[1], **options}, "python -m model_server.classify"
        )
        if not words.calls.is_file():
            raise runconfig.ConfigError(f"no file {words.calls}")  # noqa: TRY301
        journal = Journal(words.out)
    except (runconfig.ConfigError, JournalError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    before = len(journal.done)
    ended: Literal["done", "stopped"] = "done"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        if before:
            console.print(f"{words.out} has {before} calls already: going on", markup=False, soft_wrap=True)
        try:
            asyncio.run(classify(words, journal, progress))
        except StopError as error:
            ended = "stopped"
            console.print(str(error), style="red", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            ended = "stopped"
            console.print("interrupted: the same command goes on where this one stopped")
        except (JournalError, OSError) as error:
            journal.close()
            console.print(str(error), style="red", markup=False, soft_wrap=True)
            return 2
        finally:
            journal.close()
    _name_failures(words.out, console)
    seconds = time.monotonic() - started
    result = {
        "state": ended,
        "out": str(words.out),
        "calls": len(journal.done),
        "classified_now": len(journal.done) - before,
        "failed": journal.failed,
        "needs_review": journal.reviews,
        "seconds": round(seconds, 2),
        "calls_per_s": round((len(journal.done) - before) / seconds, 2),
    }
    print(json.dumps(result, ensure_ascii=False))
    return 0 if ended == "done" and not journal.failed else 1


def _name_failures(out: Path, console: Console, most: int = 20) -> None:
    """Show which lines have no category, the first ones in full."""
    failed = [row for row in map(json.loads, out.read_bytes().splitlines()) if "error" in row]
    for row in sorted(failed, key=lambda row: int(row["line"]))[:most]:
        console.print(f"line {row['line']}: {row['error']}", style="yellow", markup=False, soft_wrap=True)
    if len(failed) > most:
        console.print(f"... and {len(failed) - most} more, see 'error' in {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
