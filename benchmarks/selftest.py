"""``selftest``: the real client against a server that knows the truth, in every mode and dialect."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, get_args

import pandas as pd
from pydantic import Field

from benchmarks.command_line import parser
from benchmarks.config import Dialect, Scenario
from benchmarks.errors import FAIL, INVALID, PASS, InvalidRunError, UsageError
from benchmarks.generator import Generator
from benchmarks.plan import Run
from benchmarks.progress import Display
from benchmarks.results import derive, read_journal
from benchmarks.truth_server.answers import SPLIT_TAGS, VOCABULARY
from benchmarks.truth_server.modes import COMBINATIONS, MODES, OLLAMA, OPENAI, declared, split
from benchmarks.truth_server.running import TruthServer, running
from runconfig import RunConfig, load

DESCRIPTION = """\
Start a server whose every token time is known, drive the real client through it in every way to answer that HTTP, the
stream formats and the APIs allow, and say how far the client's figures are from what the server really wrote. Ends
with 1 when a bar is missed, with 4 when this machine was too busy to tell.

bars: time to first token and end of the answer within 3 ms (median of the requests), time per token within 1 %
(median), tokens, events, reason of the end, text and class of error exact

keys: dialect=chat_stream,... mode=several,role_first+comments,... requests=4 (of each mode) concurrency=2 (at once)
tokens, ttft_ms, tpot_ms (of the server), out=FILE.json (every figure)
"""
TIME_BAR_S = 0.003
TPOT_BAR = 0.01
SHORTEST_SPAN_S = 0.02  # below this, 1 % is less than the clock of a shared machine can tell
TIMEOUT_S = 1.0
LATE_S = 0.003
BUSY_S = 0.0002  # 32 to 85 us in the quietest tenth of a run on two cores, 180 to 13,000 at a load average of 14
TRIES = 4
MOST_AGAIN = 150  # more cells than these are not a matter of chance
CLIENTS = 3  # at once, each with a dialect of its own: they wait most of the time
WITH_TOKENIZER = "with tokenizer: "
UNCOUNTED = {"no_usage": OPENAI | OLLAMA, "no_usage+several": OPENAI | OLLAMA, "no_usage+uneven": OPENAI}
FINISHES = {"stop": {"stop", "eos"}, "length": {"length", "limit"}}


class Settings(RunConfig):
    """Words of the command line."""

    dialect: str | None = None
    mode: str | None = None
    requests: Annotated[int, Field(gt=0, le=100)] = 4
    concurrency: Annotated[int, Field(gt=0, le=64)] = 2
    tokens: Annotated[int, Field(ge=8)] = 24
    ttft_ms: Annotated[float, Field(gt=0)] = 20.0
    tpot_ms: Annotated[float, Field(gt=0)] = 4.0
    out: Path | None = None


@dataclass(slots=True)
class Cell:
    """One mode in one dialect, and what was found. Errors in seconds; a share for ``tpot_error``; None: no such figure.

    ``ttft_error_s`` and so on are medians over the requests of |client - server|, ``..._max_s`` the largest.
    """

    mode: str
    dialect: str
    tokenizer: bool = False
    requests: int = 0
    tries: int = 0
    ttft_error_s: float | None = None
    ttft_error_max_s: float | None = None
    content_error_s: float | None = None
    end_error_s: float | None = None
    tpot_error: float | None = None
    tpot_error_max: float | None = None
    tokens_wrong: int = 0
    classes: list[str] = field(default_factory=list)
    lateness_s: float | None = None
    """The server's own, median over the events."""
    cpu_wait_s: float | None = None
    """How long the client or the server could run and got no CPU, mean of each time; the worse of the two."""
    wrong: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    """Bars of time that were missed: another process may have had the CPU."""

    @property
    def name(self) -> str:
        return f"{WITH_TOKENIZER if self.tokenizer else ''}{self.mode}"

    @property
    def verdict(self) -> str:
        if self.wrong or (self.slow and not self.busy):
            return "FAIL"
        return "INVALID" if self.slow else "PASS"

    @property
    def busy(self) -> bool:
        """The machine was, so that times say nothing: the server itself was late, or there was no CPU to be had."""
        return (self.lateness_s or 0.0) > LATE_S or (self.cpu_wait_s or 0.0) > BUSY_S


def main(words: Sequence[str]) -> int:
    found = parser(
        "selftest",
        DESCRIPTION,
        "selftest",
        "selftest dialect=chat_stream mode=several,role_first",
        "selftest requests=8 out=selftest.json",
    )
    found.add_argument("settings", nargs="*", metavar="key=value")
    options = found.parse_intermixed_args(words)
    settings = load(Settings, None, options.settings)
    cells = cells_of(settings)
    begin = time.monotonic()
    with Display(quiet=options.quiet or options.json) as display:
        health = measure(cells, settings, display)
    summary = _summary(cells, health, time.monotonic() - begin)
    if settings.out is not None:
        rows = [asdict(cell) | {"verdict": cell.verdict} for cell in cells]
        settings.out.write_text(json.dumps(summary | {"cells": rows}, ensure_ascii=False, indent=1) + "\n")
    if not options.json:
        _print_table(cells, every=settings.dialect is not None or settings.mode is not None)
        print(_sentence(summary))
    print(json.dumps(summary, ensure_ascii=False))
    return int(summary["exit_code"])


def cells_of(settings: Settings) -> list[Cell]:
    """Every mode in every dialect it makes sense in, or those that were asked for.

    Raises:
        UsageError: There is no such dialect or mode, or not in this dialect.
    """
    dialects = settings.dialect.split(",") if settings.dialect else list(get_args(Dialect))
    for dialect in dialects:
        if dialect not in get_args(Dialect):
            raise UsageError(f"there is no dialect {dialect!r}: use {', '.join(get_args(Dialect))}")
    wanted = settings.mode.split(",") if settings.mode else None
    for name in wanted or ():
        try:
            split(name)
        except KeyError as error:
            raise UsageError(f"there is no mode {error.args[0]!r}: use {', '.join(MODES)}") from error
    found = []
    for dialect in dialects:
        for name in wanted or [*(name for name, mode in MODES.items() if mode.in_selftest), *COMBINATIONS]:
            on = COMBINATIONS.get(name) or frozenset.intersection(*(MODES[part].on for part in name.split("+")))
            if dialect in on:
                found.append(Cell(name, dialect))
        if importlib.util.find_spec("tokenizers") is not None and wanted is None:
            found += [Cell(name, dialect, tokenizer=True) for name, on in UNCOUNTED.items() if dialect in on]
    if not found:
        raise UsageError(f"mode {settings.mode} is for {', '.join(_dialects_of(wanted or []))}, not {settings.dialect}")
    return found


def _dialects_of(names: Sequence[str]) -> list[str]:
    return sorted({dialect for name in names for part in name.split("+") for dialect in MODES[part].on})


# Measuring.


def measure(cells: Sequence[Cell], settings: Settings, display: Display) -> dict[str, Any]:
    """Fill ``cells``; what the server says about itself.

    A cell that missed a bar of time is measured again, by one client alone: what another process caused passes, what
    the client does stays.

    Raises:
        InvalidRunError: The server or a client did not work.
    """
    display.begin("starting")
    display.expect(len(cells))
    ticks = _Ticks(display)
    words = [f"{name}={getattr(settings, name)}" for name in ("tokens", "ttft_ms", "tpot_ms")]
    words += [f"service_ms={settings.ttft_ms}", "log_requests=50000"]
    with tempfile.TemporaryDirectory() as name, running(*words) as server:
        left = list(cells)
        for attempt in range(TRIES):
            groups: dict[tuple[str, bool], list[Cell]] = defaultdict(list)
            for cell in left:
                groups[cell.dialect, cell.tokenizer].append(cell)
            with ThreadPoolExecutor(max_workers=1 if attempt else CLIENTS) as pool:
                jobs = [
                    pool.submit(_measure_dialect, group, settings, server, Path(name) / f"{number}-{attempt}", ticks)
                    for number, group in enumerate(sorted(groups.values(), key=len, reverse=True))
                ]
                for job in jobs:
                    job.result()
            left = [cell for cell in left if cell.slow and not cell.wrong]
            if not left or len(left) > MOST_AGAIN:
                break
            display.expect(display.steps + len(left))
        return server.ask("/_truth/health")  # type: ignore[no-any-return]


class _Ticks:
    """The display, from several threads."""

    def __init__(self, display: Display) -> None:
        self._display, self._lock = display, threading.Lock()

    def step(self, cell: Cell) -> None:
        with self._lock:
            self._display.begin(f"{cell.dialect}: {cell.name}")
            self._display.end()


def _measure_dialect(
    cells: Sequence[Cell], settings: Settings, server: TruthServer, place: Path, ticks: _Ticks
) -> None:
    """Measure and judge cells of one dialect."""
    dialect, tokenizer = cells[0].dialect, cells[0].tokenizer
    place.mkdir()
    texts = [f"selftest {number} #{number}" for number in range(settings.requests)]
    raw: dict[str, Any] = {"texts": texts, "dialect": dialect, "users": 1, "requests": 1, "timeout_s": TIMEOUT_S}
    if tokenizer:
        raw["tokenizer"] = str(_tokenizer(place))
    scenario = Scenario.model_validate(raw)
    origin, journal = time.perf_counter(), place / "requests.jsonl"
    seen = server.ask("/_truth/health")["requests"]
    with Generator(scenario, origin=origin, journal=journal, log=place / "generator.log") as generator:
        for number, cell in enumerate(cells):
            before = _waited([generator.pid, server.pid])
            generator.run(_run(number, cell, settings, server.url, len(texts)))
            cell.cpu_wait_s = _wait_s(before, _waited([generator.pid, server.pid]))
            ticks.step(cell)
    records, whole = read_journal(journal)
    if not whole:
        raise InvalidRunError(f"the journal {journal} is broken")
    records = derive(records)
    entries = _entries(server.log(seen), dialect)
    for number, cell in enumerate(cells):
        judge(cell, records[records["run"] == number], entries, texts, origin)


def _run(number: int, cell: Cell, settings: Settings, url: str, texts: int) -> Run:
    modes = split(cell.mode)
    slow = bool(modes & {"hold_after_done"}) or "timeout" in declared(modes).errors
    requests = min(2, texts) if slow or None not in declared(modes).errors else texts
    if modes & {"bytewise", "stale", "stale_reset"}:
        users = 1  # a segment per byte is work; a stale connection needs a request before
    else:
        users = requests if slow else min(settings.concurrency, requests)
    return Run(
        run=number,
        arm="a",
        pair=0,
        phase="probe",  # the texts in their order
        url=f"{url}/mode/{cell.mode}",
        model="selftest",
        users=users,
        requests=requests,
    )


def _entries(log: Sequence[dict[str, Any]], dialect: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What the server knows, by mode and prompt."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in log:
        if entry["dialect"] == dialect:
            found[entry["mode"], entry["prompt"]].append(entry)
    return found


def _tokenizer(folder: Path) -> Path:
    """A tokenizer.json that makes each character a token, as the server does."""
    tags = ["<think>", "</think>", *(tag for tags in SPLIT_TAGS for tag in tags)]
    words = ["?", *dict.fromkeys([*VOCABULARY, *tags])]
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: at for at, word in enumerate(words)}, "unk_token": "?"},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def _waited(pids: Sequence[int]) -> list[tuple[int, int]]:
    """For each process: nanoseconds its main thread was ready to run and had no CPU, and how often it ran.

    Source: https://docs.kernel.org/scheduler/sched-stats.html; zeros where there is no such file.
    """
    found = []
    for pid in pids:
        try:
            _, waited, times = Path(f"/proc/{pid}/schedstat").read_text().split()
        except OSError:
            waited = times = "0"
        found.append((int(waited), int(times)))
    return found


def _wait_s(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> float | None:
    """Mean wait for a CPU each time one of the processes could run, seconds: the worst process's."""
    waits = [
        (late[0] - early[0]) / (late[1] - early[1]) / 1e9
        for early, late in zip(before, after, strict=True)
        if late[1] > early[1]
    ]
    return max(waits, default=None)


# Judging.


def judge(
    cell: Cell,
    records: pd.DataFrame,
    entries: Mapping[tuple[str, str], Sequence[dict[str, Any]]],
    texts: Sequence[str],
    origin: float,
) -> None:
    """Compare a run's records with what the server wrote and declared; ``origin``: zero of the records' clock."""
    cell.tries += 1
    cell.requests = len(records)
    cell.wrong, cell.slow, cell.tokens_wrong = [], [], 0
    mode = "+".join(sorted(split(cell.mode)))
    figures: dict[str, list[float]] = defaultdict(list)
    known = declared(split(cell.mode))
    cell.classes = sorted({"none" if pd.isna(kind) else str(kind) for kind in records["error"]})
    for row in records.to_dict("records"):
        record = {str(name): value for name, value in row.items()}
        text = texts[int(str(record["call"]).removeprefix("text-")) - 1]
        prompt = sha256(text.encode()).hexdigest()[:16]
        error = None if pd.isna(record["error"]) else str(record["error"])
        if error not in known.errors:
            allowed = " or ".join(str(kind).lower() for kind in known.errors)
            _note(cell.wrong, f"error {error or 'none'}, true is {allowed}: {record['error_detail']}")
            continue
        if known.status is not None and error in {None, "http_status"} and record["status"] != known.status:
            _note(cell.wrong, f"status {record['status']}, true is {known.status}")
        if error is not None:
            continue
        seen = entries.get((mode, prompt), [])
        if not seen:
            _note(cell.wrong, "a request that the server never saw was reported as answered")
            continue
        entry = seen[-1]
        if "redirect" in split(mode):
            entry = entries["redirected", prompt][-1] | {"arrived": entry["arrived"]}
        _compare(cell, record, entry, figures, origin)
    _conclude(cell, figures)


def _compare(
    cell: Cell,
    record: Mapping[str, Any],
    entry: Mapping[str, Any],
    figures: dict[str, list[float]],
    origin: float,
) -> None:
    truth, written = entry["truth"], entry["written"]
    figures["lateness"] += [at - due for at, due in zip(entry["written"], entry["due"], strict=True)]
    if entry["ended"] is not None:
        end = record["end_s"] - record["sent_s"] - (entry["ended"] - entry["arrived"])
        figures["end"].append(end)
    if truth["n_first"] is not None and written:
        figures["ttft"].append(record["first_token_s"] - record["sent_s"] - (written[0] - entry["arrived"]))
        if truth["first_content"] is not None:
            figures["content"].append(record["first_content_s"] + origin - written[truth["first_content"]])
        # Tokens written in one moment arrive in one: nothing was waited for between them.
        first = sum(count for at, count in zip(written, entry["tokens"], strict=True) if at == written[0])
        span, after = written[-1] - written[0], sum(entry["tokens"]) - first
        counted = truth["usage"] or cell.tokenizer
        if after and span > SHORTEST_SPAN_S and counted:
            figures["tpot"].append(record["tpot_s"] / (span / after) - 1)
        elif not after and not _missing(record["tpot_s"]):
            _note(cell.wrong, f"time per token {record['tpot_s']:.4g} s of an answer in one event")
        _same(cell, "events", record["events"], truth["events"])
    tokens = truth["output_tokens"] if truth["usage"] or cell.tokenizer else None
    if not _equal(record["output_tokens"], tokens):
        cell.tokens_wrong += 1
        _note(cell.wrong, f"{record['output_tokens']} tokens, true are {tokens}")
    if truth["prompt_tokens"] is not None and truth["usage"] and entry["dialect"] != "inference":
        _same(cell, "prompt tokens", record["prompt_tokens"], truth["prompt_tokens"])
    if truth["finish_reason"] is not None:
        allowed = FINISHES.get(truth["finish_reason"], {truth["finish_reason"]})
        if record["finish_reason"] not in allowed and entry["dialect"] != "inference":
            _note(cell.wrong, f"finish reason {record['finish_reason']}, true is {truth['finish_reason']}")
    if truth["text_sha256"] is not None and record["output_sha256"] not in truth["text_sha256"]:
        _note(cell.wrong, f"another text, of {record['output_characters']} characters")
    if truth["category"] is not None:
        _same(cell, "category", record["category"], truth["category"])


def _conclude(cell: Cell, figures: Mapping[str, Sequence[float]]) -> None:
    def median(name: str) -> float | None:
        values = [abs(value) for value in figures.get(name, ())]
        if any(math.isnan(value) for value in values):
            # A client without CPU reads all events in one moment, and knows no time between them.
            _note(cell.slow if name == "tpot" else cell.wrong, f"no figure for {name}")
        values = [value for value in values if not math.isnan(value)]
        return statistics.median(values) if values else None

    def largest(name: str) -> float | None:
        values = [abs(value) for value in figures.get(name, ()) if not math.isnan(value)]
        return max(values) if values else None

    cell.ttft_error_s, cell.ttft_error_max_s = median("ttft"), largest("ttft")
    cell.content_error_s, cell.end_error_s = median("content"), median("end")
    cell.tpot_error, cell.tpot_error_max = median("tpot"), largest("tpot")
    cell.lateness_s = median("lateness")
    bars = (
        ("first token", cell.ttft_error_s, TIME_BAR_S),
        ("first content", cell.content_error_s, TIME_BAR_S),
        ("end", cell.end_error_s, TIME_BAR_S),
    )
    for name, value, bar in bars:
        if value is not None and value > bar:
            cell.slow.append(f"{name} off by {value * 1000:.1f} ms")
    if cell.tpot_error is not None and cell.tpot_error > TPOT_BAR:
        cell.slow.append(f"time per token off by {cell.tpot_error:.1%}")


def _same(cell: Cell, what: str, got: Any, true: Any) -> None:
    if not _equal(got, true):
        _note(cell.wrong, f"{what}: {got}, true: {true}")


def _equal(got: Any, true: Any) -> bool:
    return (true is None and _missing(got)) or (not _missing(got) and got == true)


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _note(notes: list[str], note: str) -> None:
    if note not in notes and len(notes) < 3:
        notes.append(note)


# Telling.


def _summary(cells: Sequence[Cell], health: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    verdicts = [cell.verdict for cell in cells]
    verdict = "FAIL" if "FAIL" in verdicts else "INVALID" if "INVALID" in verdicts else "PASS"
    return {
        "verdict": verdict,
        "exit_code": {"PASS": PASS, "FAIL": FAIL, "INVALID": INVALID}[verdict],
        "cells": len(cells),
        "modes": len({cell.mode for cell in cells}),
        "dialects": len({cell.dialect for cell in cells}),
        "requests": sum(cell.requests for cell in cells),
        "failed": [f"{cell.dialect}: {cell.name}" for cell in cells if cell.verdict == "FAIL"],
        "undecided": [f"{cell.dialect}: {cell.name}" for cell in cells if cell.verdict == "INVALID"],
        "measured_again": sum(cell.tries > 1 for cell in cells),
        "ttft_error_p50_ms": _ms(_largest(cells, "ttft_error_s")),
        "ttft_error_max_ms": _ms(_largest(cells, "ttft_error_max_s")),
        "end_error_p50_ms": _ms(_largest(cells, "end_error_s")),
        "tpot_error_p50": _largest(cells, "tpot_error"),
        "tokens_wrong": sum(cell.tokens_wrong for cell in cells),
        "server_lateness_p50_ms": _ms(health["lateness_p50_s"]),
        "server_lateness_p99_ms": _ms(health["lateness_p99_s"]),
        "cpu_wait_ms": _ms(_middle(cells, "cpu_wait_s")),
        "server_peak_in_flight": health["peak_in_flight"],
        "seconds": round(seconds, 1),
    }


def _largest(cells: Sequence[Cell], name: str) -> float | None:
    values = [getattr(cell, name) for cell in cells if getattr(cell, name) is not None]
    return max(values) if values else None


def _middle(cells: Sequence[Cell], name: str) -> float | None:
    values = [getattr(cell, name) for cell in cells if getattr(cell, name) is not None]
    return statistics.median(values) if values else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _sentence(summary: Mapping[str, Any]) -> str:
    bars = f"{summary['cells']} cells ({summary['modes']} modes, {summary['dialects']} dialects)"
    late = summary["server_lateness_p99_ms"]
    if summary["verdict"] == "PASS":
        return f"PASS  the client is right in all of {bars}; the server was at most {late} ms late (p99)."
    if summary["verdict"] == "INVALID":
        return (
            f"INVALID  this machine is too busy: {len(summary['undecided'])} of {bars} missed a bar of time while the "
            f"server itself was late or there was no CPU to be had; the rest is right. Try again when it is idle."
        )
    return f"FAIL  the client is wrong in {len(summary['failed'])} of {bars}."


def _print_table(cells: Sequence[Cell], *, every: bool) -> None:
    """One line per cell, or per mode with its worst figures and a line for each cell that is not right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="|client - server|: median (largest)")
    for name in (
        "mode",
        "dialect",
        "TTFT, ms",
        "end, ms",
        "TPOT, %",
        "tokens wrong",
        "error",
        "server late, ms",
        "CPU wait, ms",
        "",
    ):
        table.add_column(name, justify="left" if name in {"mode", "dialect", "error", ""} else "right")
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[f"{cell.name}/{cell.dialect}" if every else cell.name].append(cell)
    for group in groups.values():
        right = [cell for cell in group if cell.verdict == "PASS"]
        if right:
            table.add_row(*_row(right))
        for cell in group:
            if cell.verdict != "PASS":
                table.add_row(*_row([cell]), style="red" if cell.verdict == "FAIL" else "yellow")
                for note in cell.wrong + cell.slow:
                    table.add_row("", "", "", "", "", "", note, "", "", "", style="red")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _row(cells: Sequence[Cell]) -> list[str]:
    def figure(name: str, scale: float, largest: str | None = None) -> str:
        value = _largest(cells, name)
        if value is None:
            return ""
        most = _largest(cells, largest) if largest else None
        return f"{value * scale:.2f}" + ("" if most is None else f" ({most * scale:.2f})")

    return [
        cells[0].name,
        cells[0].dialect if len(cells) == 1 else f"{len(cells)} dialects",
        figure("ttft_error_s", 1000, "ttft_error_max_s"),
        figure("end_error_s", 1000),
        figure("tpot_error", 100, "tpot_error_max"),
        str(sum(cell.tokens_wrong for cell in cells)),
        ", ".join(sorted({kind for cell in cells for kind in cell.classes})),
        figure("lateness_s", 1000),
        figure("cpu_wait_s", 1000),
        cells[0].verdict,
    ]
