"""A day in one line of figures: requests, errors, latencies, the machine.

    python -m monitoring.daily_summary logs=logs [day=2026-11-26] [--json]

What was read is remembered beside the files (``summary_YYYYMMDD.json``), so that the next call reads only what is new.
Delete it to have the day read again.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from pydantic import Field, ValidationError

import runconfig
from model_server.daily_files import REQUESTS, DayFile, files, local_now
from model_server.shared_file import remove_stale_parts
from monitoring.request_files import CORRUPT, REQUEST_DECODER, SYSTEM, SYSTEM_DECODER
from runconfig import ConfigError, RunConfig

BLOCK_BYTES = 4 << 20
"""Read at once; what bounds the memory."""

ACCURACY = 0.005
"""Relative error of a percentile. Latencies are counted in buckets whose bounds grow by 1 %, as in DDSketch (Masson et
al., 2019, https://arxiv.org/abs/1908.10693): 2,300 of them at most, however many requests there were."""

LEAST_MS = 0.001
"""Latencies are recorded in steps of this."""

EXAMPLES = """\
examples:
  python -m monitoring.daily_summary logs=logs                 today
  python -m monitoring.daily_summary logs=logs day=yesterday
  python -m monitoring.daily_summary logs=logs day=2026-11-26 --json

exit codes: 0 told; 1 there is nothing of that day; 2 usage
"""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)


class DailySummary(RunConfig):
    """One day. Latencies are milliseconds and of successful requests, so that failing fast is not being fast; None:
    there is nothing to tell it from.
    """

    day: date
    """Local."""
    total_requests: int
    """Corrupt lines are none."""
    successful_requests: int
    """With a whole answer."""
    error_requests: int
    """The others."""
    avg_latency_ms: float | None
    """Exact."""
    max_latency_ms: float | None
    """Exact."""
    p50_latency_ms: float | None
    """Within ACCURACY, as the following."""
    p95_latency_ms: float | None
    """95 % were not slower."""
    p99_latency_ms: float | None
    """99 % were not slower."""
    avg_cpu_percent: float | None
    """Of all cores of the machine."""
    max_memory_percent: float | None
    """Of the machine's memory."""
    max_memory_used_gb: float | None
    """GiB."""
    corrupt_lines: int
    """Lines of both files that could not be read."""


class _Part(RunConfig):
    """What was read of one file of requests."""

    inode: int = 0
    read_bytes: int = 0
    """Uncompressed."""
    complete: bool = False
    """It is an archive, and was read to its end."""
    successful: int = 0
    errors: int = 0
    corrupt: int = 0
    latency_sum_ms: float = 0.0
    latency_max_ms: float = 0.0
    buckets: dict[int, int] = Field(default_factory=dict)
    """Index i: latencies up to gamma^i ms and above gamma^(i-1)."""


class _Read(RunConfig):
    """What was read of a day: its parts by number. The file being written will be the next one."""

    parts: dict[int, _Part] = Field(default_factory=dict)


def summarise(folder: Path, day: date) -> DailySummary:
    """The summary of ``day``; of a day without files, one without requests.

    Raises:
        OSError: The files cannot be read. Where the folder cannot be written, nothing is remembered.
    """
    remembered = folder / f"summary_{day:%Y%m%d}.json"
    before = _remembered(remembered)
    read = _Read(parts=before.parts | dict(_read_on(folder, day, before)))
    parts = list(read.parts.values())
    successful, errors = sum(part.successful for part in parts), sum(part.errors for part in parts)
    slowest = max((part.latency_max_ms for part in parts), default=0.0)
    p50, p95, p99 = (round(_percentile(parts, q, slowest), 3) if successful else None for q in (0.50, 0.95, 0.99))
    cpu, memory, memory_gb, corrupt = _machine(folder, day)
    summary = DailySummary(
        day=day,
        total_requests=successful + errors,
        successful_requests=successful,
        error_requests=errors,
        avg_latency_ms=round(sum(part.latency_sum_ms for part in parts) / successful, 3) if successful else None,
        max_latency_ms=round(slowest, 3) if successful else None,
        p50_latency_ms=p50,
        p95_latency_ms=p95,
        p99_latency_ms=p99,
        avg_cpu_percent=round(sum(cpu) / len(cpu), 1) if cpu else None,
        max_memory_percent=max(memory, default=None),
        max_memory_used_gb=max(memory_gb, default=None),
        corrupt_lines=sum(part.corrupt for part in parts) + corrupt,
    )
    if read != before:
        _remember(remembered, summary, read)
    return summary


def days(folder: Path) -> list[date]:
    """Days of which there is something, newest first."""
    return sorted({file.day for name in (REQUESTS, SYSTEM) for file in files(folder, name)}, reverse=True)


# -- requests -----------------------------------------------------------------------------------------------------


def _read_on(folder: Path, day: date, before: _Read) -> Iterator[tuple[int, _Part]]:
    """The day's parts with what is new in them."""
    with contextlib.ExitStack() as stack:
        opened = _open_all(folder, day, stack)
        last = max((file.part or 0 for file, _ in opened), default=0)
        for file, stream in opened:
            number = last + 1 if file.part is None else file.part
            part = before.parts.get(number, _Part())
            inode = os.fstat(stream.fileno()).st_ino
            packed = file.path.suffix == ".gz"
            if not packed and (part.inode != inode or os.fstat(stream.fileno()).st_size < part.read_bytes):
                part = _Part(inode=inode)  # another file than it was
            if not part.complete:
                yield number, _read_part(part, stream, packed=packed, archived=file.part is not None)


def _open_all(folder: Path, day: date, stack: contextlib.ExitStack) -> list[tuple[DayFile, IO[bytes]]]:
    """Opened at one moment: a file that is archived meanwhile is not read twice, and none is missed."""
    while True:
        found = files(folder, REQUESTS, day)
        with contextlib.ExitStack() as attempt, contextlib.suppress(FileNotFoundError):
            opened: list[tuple[DayFile, IO[bytes]]] = [
                (file, attempt.enter_context(file.path.open("rb"))) for file in found
            ]
            if found == files(folder, REQUESTS, day):
                stack.push(attempt.pop_all())
                return opened


def _read_part(part: _Part, stream: IO[bytes], *, packed: bool, archived: bool) -> _Part:
    lines: IO[bytes] = gzip.open(stream) if packed else stream  # type: ignore[assignment]  # noqa: SIM115
    successful, errors, corrupt, read = part.successful, part.errors, part.corrupt, part.read_bytes
    total, slowest = part.latency_sum_ms, part.latency_max_ms
    buckets = dict(part.buckets)
    rest = b""
    torn = False
    try:
        lines.seek(read)
        blocks: Iterator[bytes] = iter(lambda: lines.read(BLOCK_BYTES), b"")
        for block in blocks:
            *whole, rest = (rest + block).split(b"\n")
            read += sum(map(len, whole)) + len(whole)
            if len(rest) > BLOCK_BYTES:  # no line of ours, and no end to it in sight
                read, rest, corrupt = read + len(rest), b"", corrupt + 1
            latencies, failed, bad = _count(whole)
            successful, errors, corrupt = successful + len(latencies), errors + failed, corrupt + bad
            if latencies:
                total += math.fsum(latencies)
                slowest = max(slowest, *latencies) if len(latencies) > 1 else max(slowest, latencies[0])
                for index, count in _indexes(latencies).items():
                    buckets[index] = buckets.get(index, 0) + count
    except (EOFError, gzip.BadGzipFile, zlib.error):  # what follows the tear of an archive is lost
        torn = True
    return _Part(
        inode=part.inode,
        read_bytes=read,
        complete=archived,
        successful=successful,
        errors=errors,
        corrupt=corrupt + (archived and (torn or bool(rest))),
        latency_sum_ms=total,
        latency_max_ms=slowest,
        buckets=buckets,
    )


def _count(lines: Sequence[bytes]) -> tuple[list[float], int, int]:
    """Latencies of the successful, and how many failed and how many lines were corrupt."""
    rows: list[Any] = []
    bad = 0
    for line in lines:
        if line:
            try:
                rows.append(REQUEST_DECODER.decode(line))
            except CORRUPT:
                bad += 1
    latencies = [row.latency_ms for row in rows if row.status == "success"]
    return latencies, len(rows) - len(latencies), bad


def _indexes(latencies: Sequence[float]) -> Mapping[int, int]:
    bounds = np.ceil(np.log(np.maximum(latencies, LEAST_MS)) / math.log(_GAMMA)).astype(int)
    found, counts = np.unique(bounds, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _percentile(parts: Sequence[_Part], q: float, slowest: float) -> float:
    """Linear between closest ranks, as numpy.percentile does by default."""
    counts: dict[int, int] = {}
    for part in parts:
        for index, count in part.buckets.items():
            counts[index] = counts.get(index, 0) + count
    indexes = sorted(counts)
    up_to = list(itertools.accumulate(counts[index] for index in indexes))
    rank = q * (up_to[-1] - 1)

    def at(place: int) -> float:
        index = indexes[next(number for number, total in enumerate(up_to) if total > place)]
        return min(2 * _GAMMA**index / (_GAMMA + 1), slowest)

    below, above = at(math.floor(rank)), at(math.ceil(rank))
    return below + (above - below) * (rank - math.floor(rank))


# -- the machine --------------------------------------------------------------------------------------------------


def _machine(folder: Path, day: date) -> tuple[list[float], list[float], list[float], int]:
    """CPU and memory per cent and GiB of each minute, and the corrupt lines; read anew, as a day has 1,440 lines."""
    cpu, memory, memory_gb = [], [], []
    corrupt = 0
    for file in files(folder, SYSTEM, day):
        lines: list[bytes] = []
        with contextlib.suppress(FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error):
            read = file.path.read_bytes()
            lines = (gzip.decompress(read) if file.path.suffix == ".gz" else read).split(b"\n")[:-1]
        for line in filter(None, lines):
            try:
                row: Any = SYSTEM_DECODER.decode(line)
            except CORRUPT:
                corrupt += 1
                continue
            cpu.append(row.cpu_percent)
            memory.append(row.memory_percent)
            memory_gb.append(row.memory_used_gb)
    return cpu, memory, memory_gb, corrupt


# -- what is remembered -------------------------------------------------------------------------------------------


def _remembered(path: Path) -> _Read:
    """Nothing where the file is missing, torn or of another version: the day is read again."""
    try:
        return _Read.model_validate(msgspec.json.decode(path.read_bytes())["read"])
    except (OSError, *CORRUPT, ValidationError, KeyError, TypeError):
        return _Read()


def forget_deleted_days(folder: Path) -> None:
    """Delete what is remembered of days that have no files any more."""
    remove_stale_parts(folder, "summary_")
    there = {f"summary_{day:%Y%m%d}.json" for day in days(folder)}
    for path in folder.glob("summary_????????.json"):
        if path.name not in there:
            path.unlink(missing_ok=True)


def _remember(path: Path, summary: DailySummary, read: _Read) -> None:
    text = json.dumps({"summary": summary.model_dump(mode="json"), "read": read.model_dump(mode="json")})
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.touch(mode=0o640)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


# -- the command --------------------------------------------------------------------------------------------------


class _Asked(RunConfig):
    logs: Path = Path("logs")
    day: str = "today"


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.daily_summary",
        description="What a day was like, from its requests_YYYYMMDD.jsonl and system_YYYYMMDD.jsonl.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="logs=FOLDER (logs), day=YYYY-MM-DD (today)")
    parser.add_argument("--json", action="store_true", help="print one JSON object only (piped, it is the last line)")
    options = parser.parse_intermixed_args(words)
    try:
        # In quotes a day stays the text that was typed: YAML takes 20261126 for a number.
        words = [f'day="{word[4:]}"' if word.startswith("day=") else word for word in options.settings]
        asked = runconfig.load(_Asked, None, words)
        day = day_of(asked.day, local_now().date())
        there = days(asked.logs)
        if day not in there:
            known = ", ".join(map(str, there[:7])) or "no day at all"
            print(f"nothing was recorded on {day}; in {asked.logs} there is {known}", file=sys.stderr)
            return 1
        summary = summarise(asked.logs, day)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.json:
        _print_for_people(summary)
    if options.json or not sys.stdout.isatty():
        print(json.dumps(summary.model_dump(mode="json")))
    return 0


def day_of(text: str, today: date) -> date:
    """A day as people write it.

    Raises:
        ConfigError: It is none.
    """
    if text in {"today", "yesterday"}:
        return today - timedelta(days=text == "yesterday")
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"day={text} is no date ({error}): write year-month-day, for example day={today}, or today or yesterday"
        ) from error
    if day > today:
        raise ConfigError(f"day={text} is yet to come: today is {today}")
    return day


def _print_for_people(summary: DailySummary) -> None:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:,.1f} ms"

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} %"

    failed = summary.error_requests / summary.total_requests if summary.total_requests else 0
    rows = {
        "requests": f"{summary.total_requests:,}",
        "successful": f"{summary.successful_requests:,}",
        "errors": f"{summary.error_requests:,} ({failed:.2%})",
        "average latency": ms(summary.avg_latency_ms),
        "p50 / p95 / p99": " / ".join(
            map(ms, (summary.p50_latency_ms, summary.p95_latency_ms, summary.p99_latency_ms))
        ),
        "maximum latency": ms(summary.max_latency_ms),
        "average CPU": percent(summary.avg_cpu_percent),
        "maximum memory": percent(summary.max_memory_percent),
    }
    if summary.corrupt_lines:
        rows["corrupt lines"] = f"{summary.corrupt_lines:,} (passed over)"
    print(summary.day)
    for name, value in rows.items():
        print(f"  {name:<16} {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
