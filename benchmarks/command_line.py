"""What all verbs share: options, progress, one line for what went wrong, one JSON document at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.config import Scenario
from benchmarks.deployments import asked_to_stop
from benchmarks.errors import INVALID, USAGE, BenchmarkError, UsageError
from benchmarks.progress import Display
from benchmarks.texts import Language, say, say_finding, say_meaning
from runconfig import load

S = TypeVar("S", bound=Scenario)
EXIT_CODES = "exit codes: 0 pass, 1 fail, 2 usage, 3 no verdict (or interrupted), 4 invalid run\n"


class _Parser(argparse.ArgumentParser):
    """Takes flags between ``key=value`` words too, which plain argparse refuses."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)


def parser(verb: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser with ``--json`` and ``--quiet``; ``examples`` are what follows ``python -m benchmarks``."""
    lines = "".join(f"  python -m benchmarks {example}\n" for example in examples)
    found = _Parser(
        prog=f"python -m benchmarks {verb}",
        description=description,
        epilog=f"examples:\n{lines}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--json", action="store_true", help="print one JSON object only (piped, it is the last line)")
    found.add_argument("--quiet", action="store_true", help="show no progress")
    return found


def scenario_parser(
    verb: str, description: str, *examples: str, scenario: Path | None = None
) -> argparse.ArgumentParser:
    """:func:`parser` with a scenario file (unless ``scenario`` is the one used) and ``key=value`` words."""
    found = parser(verb, description, *examples)
    if scenario is None:
        found.add_argument("scenario", type=Path, help="a file of benchmarks/configs/, or your own")
    else:
        found.set_defaults(scenario=scenario)
    found.add_argument("settings", nargs="*", metavar="key=value", help="override any key of the scenario")
    return found


def measure(
    model: type[S],
    options: argparse.Namespace,
    work: Callable[[S, Display], tuple[int, dict[str, Any]]],
) -> int:
    """Load the scenario, do ``work``, print its summary; the exit code."""
    scenario = load(model, options.scenario, options.settings)
    with asked_to_stop(), Display(quiet=options.quiet) as display:
        code, summary = work(scenario, display)
    print_result(summary, scenario.lang, as_json=options.json)
    return code


def complain(error: Exception, *, as_json: bool) -> int:
    """One line for a person on stderr, one object on stdout; the exit code."""
    # An OSError that comes this far is a full disk or the like: the results are not to be used.
    code = error.exit_code if isinstance(error, BenchmarkError) else INVALID if isinstance(error, OSError) else USAGE
    print(f"error: {error}", file=sys.stderr)
    if as_json or code != USAGE:
        with while_read():
            print(json.dumps({"error": str(error), "exit_code": code}, ensure_ascii=False))
    return code


@contextlib.contextmanager
def while_read() -> Iterator[None]:
    """Print within it: where the reader has left, as ``head`` does, the exit code stays what was found."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_result(summary: dict[str, Any], lang: Language, *, as_json: bool) -> None:
    """What a person wants to know; then, for a program that reads it, one line of JSON."""
    with while_read():
        if not as_json:
            _print_for_people(summary, lang)
        if as_json or not sys.stdout.isatty():
            print(json.dumps(headline(summary), ensure_ascii=False))


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without its long tables."""
    dropped = {"runs", "findings", "cells", "series", "server_metrics", "results", "reference", "pair_intervals"}
    short = {key: value for key, value in summary.items() if key not in dropped}
    for side in short.keys() & {"a", "b"}:
        short[side] = {key: value for key, value in short[side].items() if key != "server_metrics"}
    if "quality" in short:
        short["quality"] = {key: value for key, value in short["quality"].items() if not isinstance(value, dict | list)}
    return short


def words_of(words: Sequence[str], allowed: Sequence[str]) -> dict[str, str]:
    """``key=value`` words of verbs without a scenario.

    Raises:
        UsageError: Another key, or no ``=``.
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in allowed:
            raise UsageError(f"expected {' or '.join(f'{name}=...' for name in allowed)}, got {word!r}")
        found[key] = value
    return found


def _print_for_people(summary: dict[str, Any], lang: Language) -> None:
    print(f"\n{say(summary['verdict'], lang)}  {say_meaning(summary, lang)}")
    if "findings" in summary:
        for finding in summary["findings"]:
            print(f"  {say(finding['answer'], lang)}: {say_finding(finding, lang)}")
    else:
        _print_figures(summary, lang)
    print(f"{say('report_at', lang)}: {summary['report']}")


def _print_figures(summary: dict[str, Any], lang: Language) -> None:
    for reason in summary["reasons"]:
        print(f"  {reason}")
    rows = (
        ("requests", summary["total_requests"], "{:,}"),
        ("error_rate", summary["error_rate"], "{:.2%}"),
        ("rate", summary["qps"], "{:,.1f}"),
        ("avg_latency", summary["avg_latency_ms"], "{:,.1f} ms"),
        ("p50", summary["p50_latency_ms"], "{:,.1f} ms"),
        ("p95", summary["p95_latency_ms"], "{:,.1f} ms"),
        ("p99", summary["p99_latency_ms"], "{:,.1f} ms"),
        ("ttft", summary["ttft_p50_ms"], "{:,.1f} ms"),
        ("tpot", summary["tpot_p50_ms"], "{:,.2f} ms"),
    )
    for name, value, pattern in rows:
        if value is not None:
            print(f"  {say(name, lang)}: {pattern.format(value)}")
