"""``make demo``: two deployments of the model server, measured against each other on real calls.

Starts one server for each of two environments that differ in their optimisation settings, sends both the same
Chinese complaint calls in turns, decides whether the candidate may replace the baseline, writes a report, and stops
what it started.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calls import calls_of
from benchmarks.command_line import complain, print_result
from benchmarks.config import Scenario
from benchmarks.deployments import Command, asked_to_stop, deployed, model_server, wait_until_ready
from benchmarks.errors import NO_VERDICT, BenchmarkError
from benchmarks.progress import Display
from benchmarks.records import Arm
from benchmarks.session import Side, point_to_latest, results_folder
from runconfig import ConfigError, RunConfig, load, read_yaml, validate

SCENARIO = Path(__file__).parent / "configs" / "demo.yml"
EXAMPLES = """\
examples:
  make demo                             the calls of data/calls.jsonl, about two minutes
  make demo CALLS=my.jsonl              your own: one {"input_text": "...", "complaint_category": "..."} per line,
                                        the category may be missing (then only agreement is judged)
  python -m benchmarks.demo lang=zh     the report in Chinese
  python -m benchmarks.demo pairs=16 verdict.primary=latency_p50
  python -m benchmarks.demo baseline=environments/local.yml candidate=my.yml

Other keys are those of benchmarks/configs/demo.yml.

exit codes: 0 pass, 1 fail, 2 usage, 3 no verdict (or interrupted), 4 invalid run or a server that did not start
"""


class Sides(RunConfig):
    """The two environments."""

    baseline: Path = Path("environments/demo-baseline.yml")
    candidate: Path = Path("environments/demo-candidate.yml")


def main(arguments: Sequence[str] | None = None, command: Command = model_server) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print one JSON object only (piped, it is the last line)")
    options = parser.parse_args(arguments)
    try:
        with asked_to_stop():
            return demo(options.settings, command, as_json=options.json)
    except (BenchmarkError, ConfigError, OSError) as error:
        return complain(error, as_json=options.json)
    except KeyboardInterrupt:
        print("interrupted; the servers were stopped", file=sys.stderr)
        return NO_VERDICT


def demo(words: Sequence[str], command: Command, *, as_json: bool) -> int:
    """Start, compare, report, stop; the exit code is the verdict's.

    Raises:
        BenchmarkError: It could not be done.
    """
    from benchmarks.compare import compare

    started = time.monotonic()
    own = Sides.model_fields
    chosen = {key: value for key, _, value in (word.partition("=") for word in words) if key in own}
    sides = validate(Sides, chosen, "the command line")
    scenario = load(Scenario, SCENARIO, [word for word in words if word.partition("=")[0] not in own])
    calls_of(scenario)  # before anything is started
    environments: dict[Arm, Path] = {"a": sides.baseline, "b": sides.candidate}
    settings = {arm: read_yaml(path) for arm, path in environments.items()}
    named_by_time = scenario.out is None
    folder = results_folder(scenario)
    scenario = scenario.model_copy(update={"out": folder})
    with Display(quiet=as_json) as display, contextlib.ExitStack() as servers:
        running = {
            arm: servers.enter_context(deployed(path, folder / f"server-{arm}.log", command))
            for arm, path in environments.items()
        }
        for arm, deployment in running.items():
            display.begin(f"starting {environments[arm]}")
            wait_until_ready(deployment)
            display.end()
        measured = {
            arm: Side(deployment.url, environments[arm].stem, deployment.process.pid, settings[arm])
            for arm, deployment in running.items()
        }
        code, summary = compare(scenario, display, measured)
        display.begin("stopping the servers")
    if named_by_time:
        point_to_latest(folder)
    print_result(summary, scenario.lang, as_json=as_json)
    print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
