"""Environments that differ in a few optimisation settings: refused, or served and compared with what runs now.

``tune`` and ``optimisations`` are made of this. Each comparison has a results folder of its own, so that what is
finished is not measured again when the whole is resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks import manifest
from benchmarks.calls import calls_of
from benchmarks.command_line import parser
from benchmarks.compare import compare
from benchmarks.config import Scenario
from benchmarks.deployments import SERVER_VARIABLES, Command, deployed, model_server, wait_until_ready
from benchmarks.errors import DeploymentFailedError, InterruptedRunError, UsageError
from benchmarks.progress import Display
from benchmarks.records import Arm
from benchmarks.report import write_report
from benchmarks.results import RESULTS_VERSION
from benchmarks.session import Side, disk_is_not_full, point_to_latest, results_folder, resuming, write_json
from benchmarks.summary import HIGHER_IS_BETTER, shown_candidates
from benchmarks.texts import Language, say, say_finding
from benchmarks.verdict import EXIT_CODES, Answer
from runconfig import read_yaml

CHECK_S = 120.0
SETTINGS = "optimization_settings"


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings that differ from an environment's ``optimization_settings``."""

    name: str
    settings: Mapping[str, Any]
    model_source: str | None = None
    """Prepared weights, where the width changes; null: the environment's."""


@dataclass(frozen=True, slots=True)
class Result:
    """One variant against the reference. ``gain`` is how many times as good, whichever way the metric points; None
    where there is no comparison.
    """

    name: str
    settings: dict[str, Any]
    answer: Answer
    key: str
    """Names the sentence; ``values`` fill it."""
    values: dict[str, Any]
    folder: str | None = None
    metric: str | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    qps: tuple[float | None, float | None] = (None, None)
    """Of the reference and of the variant; so are the next two."""
    memory_mb: tuple[float | None, float | None] = (None, None)
    accuracy: tuple[float | None, float | None] = (None, None)
    agreement: float | None = None

    def finding(self) -> dict[str, Any]:
        return {"rule": "candidate", "answer": self.answer, "key": self.key, "values": self.values}


def environment_parser(verb: str, description: str, scenario: Path, *examples: str) -> argparse.ArgumentParser:
    """Words: ENVIRONMENT.yml [key=value ...]; ``--scenario`` names another file than ``scenario``."""
    found = parser(verb, description, *examples)
    found.add_argument("environment", type=Path, help="for example environments/local.yml")
    found.add_argument("settings", nargs="*", metavar="key=value", help="override any key of the scenario")
    found.add_argument("--scenario", type=Path, default=scenario, metavar="FILE", help=f"instead of {scenario.name}")
    return found


def vary(raw: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """The environment ``raw`` with the variant's settings."""
    found = copy.deepcopy(dict(raw))
    settings = dict(variant.settings)
    if "quantization_bits" in settings:
        # The two say the same thing, and the environment refuses a contradiction.
        settings.setdefault("enable_quantization", settings["quantization_bits"] < 16)
    found[SETTINGS] = {**(found.get(SETTINGS) or {}), **settings}
    if variant.model_source is not None:
        found["model_source"] = variant.model_source
    return found


def write_environment(path: Path, raw: Mapping[str, Any], comment: str = "") -> Path:
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump(dict(raw), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def refusal(environment: Path) -> str | None:
    """Why ``python -m model_server check`` refuses an environment, in one line; None when it fits.

    A process, as everywhere: this package and the server meet at files and exit codes.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(SERVER_VARIABLES)}
    command = [sys.executable, "-m", "model_server", "check", "--json", str(environment)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            env=variables,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"model_server check did not answer within {CHECK_S:.0f} s"
    if done.returncode == 0:
        return None
    try:
        reason = str(json.loads(done.stdout.strip().splitlines()[-1])["reason"])
    except (ValueError, LookupError, TypeError):
        reason = done.stderr.strip() or f"model_server check ended with {done.returncode}"
    return " ".join(reason.split())


def measure_variant(
    scenario: Scenario,
    folder: Path,
    reference: Path,
    candidate: Path,
    variant: Variant,
    display: Display,
    command: Command = model_server,
    min_gain: float = 0.0,
) -> Result:
    """Serve both environments and compare them in turns, unless ``folder`` holds the finished comparison.

    Raises:
        DeploymentFailedError: The reference does not start; a candidate that does not is a result.
        InterruptedRunError: Ctrl-C.
    """
    summary = finished(folder)
    if summary is None:
        try:
            summary = _serve_and_compare(scenario, folder, reference, candidate, variant.name, display, command)
        except _CandidateFailedError as error:
            return refused(variant, str(error))
    # As it is named now: a folder that is resumed may have been begun by a relative path.
    return replace(result_of(variant, summary, min_gain, scenario.lang), folder=str(folder))


def refused(variant: Variant, reason: str) -> Result:
    values = {"name": variant.name, "reason": reason}
    return Result(variant.name, dict(variant.settings), "INVALID", "candidate_refused", values)


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a comparison that was carried through."""
    try:
        if json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["complete"]:
            summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            return summary
    except (OSError, ValueError, LookupError):
        pass
    return None


def result_of(variant: Variant, summary: Mapping[str, Any], min_gain: float, lang: Language) -> Result:
    """What a comparison says about a variant: faster by more than ``min_gain`` and as good is PASS, slower or worse
    is FAIL, no difference beyond the noise is NO VERDICT.
    """
    comparison, quality = summary["comparison"], summary["quality"]
    gain = low = high = None
    if comparison is not None:
        gain, low, high = comparison["ratio"], comparison["t"]["low"], comparison["t"]["high"]
        if summary["primary"] not in HIGHER_IS_BETTER:
            gain, low, high = 1 / gain, 1 / high, 1 / low
    others = [finding for finding in summary["findings"] if finding["rule"] != "speed"]
    bad = {
        answer: "; ".join(say_finding(finding, lang).rstrip(".。") for finding in others if finding["answer"] == answer)
        for answer in ("INVALID", "FAIL", "NO VERDICT")
    }
    answer: Answer = "NO VERDICT"
    key, what = "candidate_same", ""
    if bad["INVALID"] or low is None:
        answer, key, what = "INVALID", "candidate_invalid", bad["INVALID"] or say("too_few", lang)
    elif bad["FAIL"]:
        answer, key, what = "FAIL", "candidate_worse", bad["FAIL"]
    elif high is not None and high < 1:
        answer, key = "FAIL", "candidate_slower"
    elif low > 1 + min_gain and bad["NO VERDICT"]:
        key, what = "candidate_unsure", bad["NO VERDICT"]
    elif low > 1 + min_gain:
        answer, key = "PASS", "candidate_faster"
    pairs = 0 if comparison is None else int(comparison["pairs"])
    values = {"name": variant.name, "metric": summary["primary"], "gain": gain, "low": low, "high": high}
    return Result(
        name=variant.name,
        settings=dict(variant.settings),
        answer=answer,
        key=key,
        values=values | {"pairs": pairs, "reason": what},
        folder=str(summary["folder"]),
        metric=summary["primary"],
        gain=gain,
        low=low,
        high=high,
        pairs=pairs,
        qps=(summary["a"]["qps"], summary["b"]["qps"]),
        memory_mb=(summary["a"]["server_peak_memory_mb"], summary["b"]["server_peak_memory_mb"]),
        accuracy=(quality.get("accuracy_a"), quality.get("accuracy_b")),
        agreement=quality.get("agreement"),
    )


@contextlib.contextmanager
def results(scenario: Scenario, environment: Path | None, kind: str, display: Display) -> Iterator[Keeper]:
    """A results folder whose contents are comparisons; an interruption leaves it marked and can be resumed.

    Raises:
        UsageError: No environment, or the folder holds other results.
        InterruptedRunError: Ctrl-C, after what there is was written.
    """
    if environment is None:
        raise UsageError(f"{kind} needs an environment: python -m benchmarks {kind} environments/local.yml")
    raw = read_yaml(environment)
    calls_of(scenario)
    keeper = Keeper(scenario, environment, raw, kind, results_folder(scenario))
    with disk_is_not_full(keeper.folder):
        keeper.write(complete=False)
        write_environment(keeper.reference, raw)
        display.begin(kind)
        try:
            yield keeper
        except (KeyboardInterrupt, InterruptedRunError) as stop:
            keeper.write(complete=False)
            raise InterruptedRunError(
                f"interrupted: what was measured until then is in {keeper.folder}, marked as incomplete; go on with "
                f"python -m benchmarks resume {keeper.folder}"
            ) from stop
        keeper.write(complete=True)
    if scenario.out is None:
        point_to_latest(keeper.folder)


class Keeper:
    """Writes ``manifest.json``, ``summary.json``, ``report.md`` and ``report.html`` of a folder of comparisons."""

    def __init__(self, scenario: Scenario, environment: Path, raw: dict[str, Any], kind: str, folder: Path) -> None:
        self.scenario, self.environment, self.raw, self.kind, self.folder = scenario, environment, raw, kind, folder
        self.reference = folder / "reference.yml"
        self.settings: Mapping[str, Any] = raw.get(SETTINGS) or {}
        """The reference's."""
        self.results: list[Result] = []
        self.conclusion: list[dict[str, Any]] = []
        """Findings that come before the single results."""
        self.more: dict[str, Any] = {}
        self.verdict: Answer = "NO VERDICT"
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine, self._software = manifest.machine(), manifest.software()

    def keep(self, result: Result) -> Result:
        self.results.append(result)
        self.write(complete=False)
        return result

    def summary(self, *, complete: bool) -> dict[str, Any]:
        verdict = self.verdict if complete else "NO VERDICT"
        return {
            "kind": self.kind,
            "name": self.scenario.name,
            "verdict": verdict,
            "exit_code": EXIT_CODES[verdict],
            "complete": complete,
            "environment": str(self.environment),
            "findings": [*self.conclusion, *(result.finding() for result in self.results)],
            "reference": dict(self.settings),
            "results": [asdict(result) for result in self.results],
            **self.more,
            "folder": str(self.folder),
            "report": str(self.folder / "report.html"),
        }

    def write(self, *, complete: bool) -> None:
        summary = self.summary(complete=complete)
        write_json(
            self.folder / "manifest.json",
            {
                "results_version": RESULTS_VERSION,
                "kind": self.kind,
                "name": self.scenario.name,
                "created_at": self._created,
                "complete": complete,
                "command": manifest.command_line(),
                "scenario": self.scenario.model_dump(mode="json"),
                "machine": self._machine,
                "software": self._software,
            },
        )
        write_json(self.folder / "summary.json", summary)
        text = table(summary, self.results, self.scenario.lang)
        (self.folder / "report.md").write_text(text, encoding="utf-8")
        write_report(self.folder, self.scenario.lang)


def table(summary: Mapping[str, Any], results: Sequence[Result], lang: Language) -> str:
    """The results in Markdown."""
    heads, rows = shown_candidates([asdict(result) for result in results], lang)
    lines = [f"# {say('title_' + summary['kind'], lang)}", "", f"`{summary['environment']}`", ""]
    if not summary["complete"]:
        lines += [say("unfinished", lang), ""]
    lines += [f"- {say(found['answer'], lang)}: {say_finding(found, lang)}" for found in summary["findings"]]
    lines += ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    lines += [f"| {' | '.join([f'`{name}`', *cells])} |" for name, *cells in rows]
    return "\n".join(lines) + "\n"


class _CandidateFailedError(DeploymentFailedError):
    """The candidate's server did not become ready."""


def _serve_and_compare(
    scenario: Scenario,
    folder: Path,
    reference: Path,
    candidate: Path,
    name: str,
    display: Display,
    command: Command,
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    environments: dict[Arm, Path] = {"a": reference, "b": candidate}
    with contextlib.ExitStack() as servers:
        sides: dict[Arm, Side] = {}
        for arm, path in environments.items():
            display.begin(f"starting {path.stem}")
            server = servers.enter_context(deployed(path, folder / f"server-{arm}.log", command))
            try:
                wait_until_ready(server)
            except DeploymentFailedError as error:
                if arm == "a":
                    raise
                raise _CandidateFailedError(" ".join(str(error).split())) from error
            sides[arm] = Side(server.url, "reference" if arm == "a" else name, server.process.pid, read_yaml(path))
        with resuming(folder):
            _, summary = compare(scenario.model_copy(update={"out": folder}), display, sides)
        display.begin("stopping the servers")
    return summary
