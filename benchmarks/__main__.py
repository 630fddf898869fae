"""``python -m benchmarks run | compare | report``: measure a server, compare two, show what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from benchmarks.config import Language, Scenario
from benchmarks.errors import INVALID, USAGE, BenchmarkError, UsageError
from runconfig import ConfigError, load

EXAMPLES = """\
examples:
  python -m benchmarks run benchmarks/configs/baseline.yml url=http://127.0.0.1:8000
  python -m benchmarks run benchmarks/configs/constant_rate.yml url=http://127.0.0.1:8000 rate_per_s=20
  python -m benchmarks compare benchmarks/configs/classify.yml a=http://127.0.0.1:8001 b=http://127.0.0.1:8002 pairs=8
  python -m benchmarks report runs/baseline-20261101-120000 lang=zh

exit codes: 0 pass, 1 fail, 2 usage, 3 no verdict (or interrupted), 4 invalid run
"""
RUN = """\
Send load to one server and write runs/NAME-TIME/ with every request (requests.parquet, requests.jsonl), samples of
CPU and memory (samples.parquet), summary.json, manifest.json and report.html. Ends with 1 when the scenario's
objective was missed.

common keys: url, users=8 (closed loop) or rate_per_s=20 users=null (constant rate), duration_s, requests, warmup_s,
dialect=classify|inference|chat|chat_stream, calls=FILE.jsonl, pid (of the server, to sample its CPU), out, lang=en|zh
"""
COMPARE = """\
Run two servers in turns (A B, B A, A B, ...) and decide whether B may replace A: one metric that is named before
(verdict.primary), tested over pairs of runs, and the answers compared beside it. A candidate that is faster and
worse fails.

common keys: a, b, pairs=8, users, duration_s (of one run), calls=FILE.jsonl, verdict.primary=qps|latency_p50|...,
verdict.margin=0.05, verdict.max_accuracy_drop=0.03, a_pid, b_pid, out, lang=en|zh
"""
REPORT = "Write report.html into a results folder again, for example in the other language."


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "report":
            return _report(options)
        return _measure(options)
    except (BenchmarkError, ConfigError, OSError) as error:
        return complain(error, as_json=options.json)
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return 3


def complain(error: Exception, *, as_json: bool) -> int:
    """One line for a person on stderr, one object on stdout; the exit code."""
    # An OSError that comes this far is a full disk or the like: the results are not to be used.
    code = error.exit_code if isinstance(error, BenchmarkError) else INVALID if isinstance(error, OSError) else USAGE
    print(f"error: {error}", file=sys.stderr)
    if as_json or code != USAGE:
        print(json.dumps({"error": str(error), "exit_code": code}, ensure_ascii=False))
    return code


def print_result(summary: dict[str, Any], lang: Language, *, as_json: bool) -> None:
    """What a person wants to know, then one line of JSON."""
    from benchmarks.texts import say, say_finding, say_meaning

    if not as_json:
        print(f"\n{say(summary['verdict'], lang)}  {say_meaning(summary, lang)}")
        if summary["kind"] == "compare":
            for finding in summary["findings"]:
                print(f"  {say(finding['answer'], lang)}: {say_finding(finding, lang)}")
        else:
            _print_figures(summary, lang)
        print(f"{say('report_at', lang)}: {summary['report']}")
    print(json.dumps(headline(summary), ensure_ascii=False))


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without its long tables."""
    dropped = {"runs", "findings"}
    short = {key: value for key, value in summary.items() if key not in dropped}
    if "quality" in short:
        short["quality"] = {key: value for key, value in short["quality"].items() if not isinstance(value, dict | list)}
    return short


def _print_figures(summary: dict[str, Any], lang: Language) -> None:
    from benchmarks.texts import say

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


def _measure(options: argparse.Namespace) -> int:
    scenario = load(Scenario, options.scenario, options.settings)
    from benchmarks.compare import compare
    from benchmarks.measure import run
    from benchmarks.progress import Display

    with Display(quiet=options.quiet) as display:
        code, summary = (run if options.verb == "run" else compare)(scenario, display)
    print_result(summary, scenario.lang, as_json=options.json)
    return code


def _report(options: argparse.Namespace) -> int:
    from benchmarks.report import write_report

    lang = "en"
    for word in options.settings:
        key, _, value = word.partition("=")
        if key != "lang" or value not in get_args(Language):
            raise UsageError(f"report takes lang=en or lang=zh, got {word!r}")
        lang = value
    path = write_report(options.folder, cast("Language", lang))
    if not options.json:
        print(path)
    print(json.dumps({"report": str(path), "exit_code": 0}))
    return 0


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog=EXAMPLES, formatter_class=style
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run | compare | report")
    for name, text, short in (
        ("run", RUN, "measure one server"),
        ("compare", COMPARE, "compare two servers, interleaved"),
    ):
        verb = verbs.add_parser(name, help=short, description=text, epilog=EXAMPLES, formatter_class=style)
        verb.add_argument("scenario", type=Path, help="a file of benchmarks/configs/, or your own")
        verb.add_argument("settings", nargs="*", metavar="key=value", help="override any key of the scenario")
        verb.add_argument("--json", action="store_true", help="print the JSON line only")
        verb.add_argument("--quiet", action="store_true", help="show no progress")
    verb = verbs.add_parser("report", help="write the HTML again", description=REPORT, formatter_class=style)
    verb.add_argument("folder", type=Path, help="a results folder")
    verb.add_argument("settings", nargs="*", metavar="lang=en|zh")
    verb.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
