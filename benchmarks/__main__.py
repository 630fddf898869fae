"""Measure a server, compare two, decide, and show what was measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from benchmarks.errors import NO_VERDICT, USAGE, BenchmarkError

# Verb -> the module whose main() takes the words after it, and what it is for.
VERBS = {
    "run": ("benchmarks.measure", "measure one server under one load"),
    "soak": ("benchmarks.soak", "load one server for long: does anything drift?"),
    "smoke": ("benchmarks.smoke", "seconds: does it answer, and how fast? Ollama too"),
    "compare": ("benchmarks.compare", "compare two servers by interleaved pairs of runs"),
    "gate": ("benchmarks.gate", "PASS, FAIL or NO VERDICT for a candidate, as exit code"),
    "worker": ("benchmarks.worker", "send load for a benchmark that runs on another host"),
    "trace": ("benchmarks.request_log", "make a trace, to be replayed, from the model server's log"),
    "resume": ("benchmarks.resume", "go on with a results folder that was broken off"),
    "stress": ("benchmarks.stress", "more and more load, until an objective breaks"),
    "capacity": ("benchmarks.capacity", "the highest rate that keeps an objective"),
    "tune": ("benchmarks.tune", "search the optimisation settings of an environment"),
    "optimisations": ("benchmarks.optimisations", "what each optimisation of an environment brings"),
    "selftest": ("benchmarks.selftest", "the client against a server that knows the truth"),
    "report": ("benchmarks.report", "write the HTML of a results folder again"),
}


def usage() -> str:
    from benchmarks.command_line import EXIT_CODES

    lines = "".join(f"  {verb:<10} {what}\n" for verb, (_, what) in VERBS.items())
    return (
        f"usage: python -m benchmarks VERB ...\n\n{__doc__}\n\n{lines}\n"
        f"python -m benchmarks VERB --help says more. Scenarios are in benchmarks/configs/.\n\n{EXIT_CODES}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    verb, *words = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if verb in {"-h", "--help"}:
        print(usage(), end="")
        return 0
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}: use one of {', '.join(VERBS)}", file=sys.stderr)
        return USAGE
    try:
        # Within, so that Ctrl-C is answered in one line in the second that the imports take, too.
        from benchmarks.command_line import complain
        from runconfig import ConfigError

        try:
            code: int = importlib.import_module(VERBS[verb][0]).main(words)
        except (BenchmarkError, ConfigError, OSError) as error:
            return complain(error, as_json="--json" in words)
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return NO_VERDICT
    return code


if __name__ == "__main__":
    sys.exit(main())
