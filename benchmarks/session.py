"""One benchmark under way: a results folder, the generator, the sampler, and the runs so far."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.error import HTTPError

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import ci, fetch, manifest, ollama
from benchmarks.arrivals import check_trace
from benchmarks.calls import Call, calls_of
from benchmarks.config import Limits, Scenario
from benchmarks.errors import EndpointError, InterruptedRunError, InvalidRunError, ResultsError, UsageError
from benchmarks.generator import Generator, ill_health
from benchmarks.goodput import good_requests, share_interval
from benchmarks.performance import test_result
from benchmarks.plan import Run
from benchmarks.progress import Display
from benchmarks.records import Arm, Phase
from benchmarks.report import write_report
from benchmarks.results import (
    JOURNAL,
    RESULTS_VERSION,
    Journal,
    derive,
    measured_records,
    read_manifest,
    to_frame,
    write_parquet,
)
from benchmarks.sampler import Sampler, source_of
from benchmarks.summary import event_gaps
from benchmarks.traces import read_tokenizer

FULL_BYTES = 65_536
"""A disk with less than this left is full: no journal goes on with it."""
LEAVING_S = 2.0
"""The load generator of a benchmark that was killed is gone by then."""
_resumed: ContextVar[Path | None] = ContextVar("_resumed", default=None)


FEWEST_READINGS = 5
"""Of the server's gauges, for a mean of them."""


@dataclass(frozen=True, slots=True)
class Side:
    """One server that is measured. ``settings`` are shown beside the other side's, where they differ."""

    url: str
    name: str
    pid: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """Use as a context; :meth:`send` does one run. Leaving it stops the generator and keeps what there is.

    Within :func:`resuming`, a folder that was broken off is continued: its verb does everything again from the
    beginning, and :meth:`send` answers from the manifest for as long as the runs it is asked for are there. A run that
    was not finished is done again; what the journal has of it stays there and counts nowhere.

    Raises:
        UsageError: The calls cannot be read, what is to be watched is not there, or the results folder exists and
            holds results.
        EndpointError: A server does not answer its dialect, or has no metrics where they were said to be.
    """

    def __init__(self, scenario: Scenario, kind: str, sides: Mapping[Arm, Side], display: Display) -> None:
        self.scenario, self.kind, self.display = scenario, kind, display
        if scenario.api_key_env is not None:
            key = os.environ.get(scenario.api_key_env)
            if not key:
                raise UsageError(f"api_key_env names {scenario.api_key_env}, which is not set in the environment")
            if not key.isascii() or not key.isprintable():
                raise UsageError(f"{scenario.api_key_env} holds what no header may: line ends, or letters beyond ASCII")
        self.calls: list[Call] = calls_of(scenario)
        if scenario.tokenizer is not None:
            read_tokenizer(scenario.tokenizer)
        check_trace(scenario.arrivals, [call.text for call in self.calls], scenario.tokenizer)
        self.sides = {arm: replace(side, url=fetch.base_url(side.url)) for arm, side in sides.items()}
        sources = {
            f"server_{arm}": source_of(scenario, arm, side.url, side.pid, compared=len(sides) > 1)
            for arm, side in self.sides.items()
        }
        self.folder = results_folder(scenario)
        self._lock = _locked(self.folder)
        if self.folder.resolve() != _resumed.get():
            for name in ("manifest.json", "requests.jsonl", "samples.jsonl"):
                (self.folder / name).unlink(missing_ok=True)  # of a start that came to nothing
        self.runs: list[dict[str, Any]] = []
        self.complete = False
        self._models: dict[Arm, str | None] = {}
        self._descriptions: dict[Arm, dict[str, Any] | None] = {}
        self._journal = Journal(self.folder / "requests.jsonl")
        self._tables: list[pa.Table] = []
        self._journal_whole = True
        self._next_run = 0
        self._broken_off: set[int] = set()
        self._to_come: list[dict[str, Any]] = []
        self.earlier_s = 0.0
        """What the runs took that are answered for by an earlier attempt."""
        self._machine, self._software = manifest.machine(), manifest.software()
        self._workload = manifest.workload(scenario, self.calls)
        self.created_at = datetime.now(UTC)
        self._resumed_at: list[str] = []
        if (self.folder / "manifest.json").exists():
            try:
                self._take_up(read_manifest(self.folder))
            except BaseException:
                self._lock.close()
                raise
        # Zero is the beginning of the first attempt, so that all attempts lie on one axis.
        self.origin = time.perf_counter() - (datetime.now(UTC) - self.created_at).total_seconds()
        self._sampler = Sampler(self.origin, scenario.sample_interval_s, sources, journal=self.folder / "samples.jsonl")
        self._generator = Generator(
            scenario,
            origin=self.origin,
            journal=self._journal.path,
            log=self.folder / "generator.log",
            lock=self._lock,
        )

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            stack.enter_context(disk_is_not_full(self.folder))
            self.write_manifest()
            self.display.begin("starting the load generator")
            generator = stack.enter_context(self._generator)
            self._sampler.watch("generator", generator.pid)
            stack.enter_context(self._sampler)
            self.display.watch(self._journal.path)
            for arm, side in self.sides.items():
                self._probe(arm, side)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def send(self, arm: Arm, pair: int, phase: Phase, **limits: Any) -> dict[str, Any]:
        """One run on one side; ``limits`` replace the scenario's ``users``, ``duration_s`` and so on.

        Raises:
            InvalidRunError: The generator died, or the disk is full.
            ResultsError: The runs of the folder that is continued are not those that are asked for now.
        """
        asked = json.loads(json.dumps({"arm": arm, "pair": pair, "phase": phase, **limits}, default=str))
        if self._to_come:
            found = self._to_come.pop(0)
            if found["asked"] != asked:
                raise ResultsError(
                    f"{self.folder} cannot be continued: its run {found['run']} was {found['asked']}, "
                    f"and would now be {asked}: start again in another folder"
                )
            found["set_aside"] = False
            self.runs.append(found)
            self.earlier_s += found["ended_s"] - found["started_s"]
            self.display.tick(found["requests"], found["failed"])
            if not self._to_come:
                self._warm_up_again()
            return found
        found = self._send(arm, pair, phase, limits)
        found["asked"] = asked
        self.write_manifest()
        return found

    def warm_up(self) -> None:
        """Load that is recorded as warm-up, on each side."""
        limits: dict[str, Any]
        if self.scenario.cover_calls:
            limits = {"duration_s": None, "requests": len(self.calls)}
        elif self.scenario.warmup_s:
            limits = {"duration_s": self.scenario.warmup_s, "requests": None}
        else:
            return
        for arm in self.sides:
            name = f"warm-up {arm.upper()}" if len(self.sides) > 1 else "warm-up"
            self.display.begin(name)
            self.send(arm, -1, "warmup", **limits)
            self.display.end()

    def records(self) -> pd.DataFrame:
        """What the journal holds of this attempt's runs and of finished earlier ones, with derived columns; without
        the times of events, which are most of its bytes.
        """
        self._tables += [table.drop_columns(["event_times_s"]) for table in self._journal.tables()]
        table = pa.concat_tables([JOURNAL.empty_table().drop_columns(["event_times_s"]), *self._tables])
        out = pa.array(sorted(self._not_counted()), pa.int64())
        return derive(to_frame(table.filter(pc.invert(pc.is_in(table["run"], out)))))

    def samples(self) -> pd.DataFrame:
        """What the sampler has read so far."""
        return self._sampler.frame()

    def keep(self, summary: dict[str, Any]) -> None:
        """Write the results folder, the journal apart, which is there; adds to ``summary`` what it takes all events to
        know.

        Raises:
            InvalidRunError: The disk is full.
        """
        with disk_is_not_full(self.folder):
            parquet, samples, records = self.folder / "requests.parquet", self.samples(), self.records()
            self._journal_whole = write_parquet(self._journal.path, parquet, self._not_counted())
            samples.to_parquet(self.folder / "samples.parquet", index=False)
            self.write_manifest()
            document = read_manifest(self.folder)
            measured = measured_records(records, [run for run in self.runs if run["set_aside"]])
            for arm in self.sides:
                own = measured[measured["arm"] == arm]
                figures = summary[arm] if isinstance(summary.get(arm), dict) else summary
                figures |= event_gaps(parquet, own["run"].unique().tolist()).summarise()
                figures |= _goodput(own, self.scenario)
                result = test_result(document, summary, own, samples, arm, self.folder)
                name = "test_result_baseline.json" if len(self.sides) > 1 and arm == "a" else "test_result.json"
                write_json(self.folder / name, result.model_dump(mode="json"))
            summary["complete"], summary["journal_whole"] = self.complete, self._journal_whole
            write_json(self.folder / "summary.json", summary)
            ci.write_junit(summary, self.folder / "junit.xml")
            ci.write_markdown(summary, self.folder / "report.md", self.scenario.lang)
        if self.scenario.out is None:
            point_to_latest(self.folder)

    def conclude(self, summary: dict[str, Any], *, stopped: bool) -> tuple[int, dict[str, Any]]:
        """Keep ``summary`` and write the report; the exit code and the summary, which is the end of every verb.

        Raises:
            InvalidRunError: The disk is full.
            InterruptedRunError: It was ``stopped``; what was measured is kept.
        """
        if self.scenario.otlp_endpoint is not None:
            from benchmarks.client_spans import send_spans  # the SDK takes 0.3 s to import

            summary["spans_sent"] = send_spans(self.records(), self.scenario)
        summary["name"] = self.scenario.name
        summary |= {"folder": str(self.folder), "report": str(self.folder / "report.html")}
        self.keep(summary)
        with disk_is_not_full(self.folder):
            write_report(self.folder, self.scenario.lang)
        if stopped:
            raise InterruptedRunError(
                f"interrupted: what was measured until then is in {self.folder}, marked as incomplete"
            )
        return int(summary["exit_code"]), summary

    def write_manifest(self) -> None:
        """After every run, so that what ends the benchmark finds it up to date."""
        document = {
            "results_version": RESULTS_VERSION,
            "kind": self.kind,
            "name": self.scenario.name,
            "created_at": self.created_at.isoformat(timespec="seconds"),
            "created_unix": self.created_at.timestamp(),
            "resumed_at": self._resumed_at,
            "complete": self.complete,
            "journal_whole": self._journal_whole,
            "command": manifest.command_line(),
            "scenario": self.scenario.model_dump(mode="json"),
            "sides": {
                arm: {"name": side.name, "url": side.url, "pid": side.pid, "model": self._models.get(arm)}
                | {"description": self._descriptions.get(arm), "image": side.settings.get("image")}
                | {"settings": dict(side.settings)}
                for arm, side in self.sides.items()
            },
            "workload": self._workload,
            "seeds": {"scenario": self.scenario.seed},
            "runs": self.runs + self._to_come,
            "broken_off_runs": sorted(self._broken_off),
            "machine": self._machine,
            "software": self._software,
        }
        write_json(self.folder / "manifest.json", document)

    def _send(self, arm: Arm, pair: int, phase: Phase, limits: Mapping[str, Any]) -> dict[str, Any]:
        """Really send."""
        scenario = self.scenario
        run = Run(
            run=self._next_run,
            arm=arm,
            pair=pair,
            phase=phase,
            url=self.sides[arm].url,
            model=self._models.get(arm),
            **{
                "users": scenario.users,
                "rate_per_s": scenario.rate_per_s,
                "duration_s": scenario.duration_s,
                "requests": scenario.requests,
                **limits,
            },
        )
        self._next_run += 1
        self.display.load(run.users, run.rate_per_s, run.duration_s, run.requests)
        self._sampler.mark()
        found = self._generator.run(run, self.display.tick)
        self._sampler.mark()
        self.display.tick(found["requests"], found["failed"])
        found["set_aside"] = False
        found["server_in_flight"] = self._seen_in_flight(arm, found)
        found["ill_health"] = (
            ill_health(found, scenario.client_limits, found["server_in_flight"]) if phase == "measure" else []
        )
        self.runs.append(found)
        return found

    def _seen_in_flight(self, arm: Arm, run: Mapping[str, Any]) -> float | None:
        """Requests running and queued, as the server's gauges said during ``run``, on average."""
        samples = self._sampler.frame()
        metrics = samples[
            (samples["source"] == f"metrics_{arm}") & samples["at_s"].between(run["started_s"], run["ended_s"])
        ]
        if len(metrics) < FEWEST_READINGS or metrics["running"].isna().all():
            return None
        return float(metrics["running"].mean() + metrics["queue_depth"].fillna(0).mean())

    def _probe(self, arm: Arm, side: Side) -> None:
        """One request, so that what cannot be measured is said in one line and at once."""
        model = self.scenario.model
        if self.scenario.dialect.startswith("chat"):
            model = model or _first_model(side.url, self.scenario.api_key_env)
            self._models[arm] = model
        elif self.scenario.dialect.startswith("ollama"):
            self._models[arm] = model = ollama.choose(side.url, model)
        self.display.begin(f"asking {side.url}")
        self._send(arm, -1, "probe", {"users": 1, "rate_per_s": None, "requests": 1, "duration_s": None})
        self.display.end()
        last = self.records().iloc[-1]
        if isinstance(last["error"], str):
            raise EndpointError(side.url, _advice(last["error"], str(last["error_detail"])))
        self._descriptions[arm] = manifest.description_of(side.url, self.scenario.api_key_env, model)

    def _take_up(self, earlier: dict[str, Any]) -> None:
        """Continue what the folder holds: runs that are finished count, records of others do not.

        Raises:
            ResultsError: The folder holds something else than what is asked for now.
        """
        if earlier["kind"] != self.kind:
            raise ResultsError(f"{self.folder} holds a {earlier['kind']}, not a {self.kind}")
        now = json.loads(json.dumps(self._workload, default=str))
        different = [key for key in now if key != "sha256" and now[key] != earlier["workload"].get(key)]
        if different:
            raise ResultsError(
                f"{self.folder} cannot be continued: {', '.join(different)} changed since it was begun: start again in "
                "another folder"
            )
        self.created_at = datetime.fromtimestamp(earlier["created_unix"], UTC)
        self._resumed_at = [*earlier["resumed_at"], datetime.now(UTC).isoformat(timespec="seconds")]
        self.runs = [run for run in earlier["runs"] if "asked" not in run]
        self._to_come = [run for run in earlier["runs"] if "asked" in run]
        self._tables = [table.drop_columns(["event_times_s"]) for table in self._journal.tables()]
        if not self._journal.whole:
            # What would be written next must not continue half a line.
            os.truncate(self._journal.path, self._journal.offset)
            self._journal.broken = False
        counts = {run["run"]: 0 for run in earlier["runs"]}
        for table in self._tables:
            for entry in pc.value_counts(table["run"]).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        # A run is finished when the journal holds all of it: what comes after a break has to be done again.
        for at, run in enumerate(self._to_come):
            if counts[run["run"]] < run["requests"]:
                del self._to_come[at:]
                break
        if len(self.sides) > 1:
            self._forget_half_a_pair()
        seen = {number for number, count in counts.items() if count}
        finished = {run["run"] for run in (*self.runs, *self._to_come)}
        self._broken_off = (seen - finished) | set(earlier["broken_off_runs"])
        self._next_run = max([*seen, *finished, *self._broken_off], default=-1) + 1

    def _forget_half_a_pair(self) -> None:
        """A pair is two runs right after each other; one whose second half would come after a break is done again."""
        last = self._to_come[-1] if self._to_come else None
        if last is not None and last["phase"] == "measure":
            pair = [run for run in self._to_come if run["phase"] == "measure" and run["pair"] == last["pair"]]
            if len(pair) < len(self.sides):
                self._to_come.pop()

    def _warm_up_again(self) -> None:
        """The servers were idle, or are new, since the run before: what they did once to be warm they do again."""
        for run in [run for run in self.runs if run["phase"] == "warmup" and "asked" in run]:
            limits = {key: value for key, value in run["asked"].items() if key not in {"arm", "pair", "phase"}}
            self.display.begin(f"warm-up {run['arm'].upper()} after the break")
            self._send(run["arm"], -1, "warmup", limits)

    def _not_counted(self) -> set[int]:
        """Runs that are broken off, and finished ones that the verb has not asked for again yet."""
        return self._broken_off | {run["run"] for run in self._to_come}


@contextlib.contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Within it, a session whose results go to ``folder`` continues what is there."""
    token = _resumed.set(folder.resolve())
    try:
        yield
    finally:
        _resumed.reset(token)


def results_folder(scenario: Scenario) -> Path:
    """A new folder for results: ``out``, or ``runs/NAME-TIME``.

    Raises:
        UsageError: It holds results already, or cannot be made.
    """
    folder = scenario.out
    if folder is None:
        stamp = datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / f"{scenario.name}-{stamp}"
    if (folder / "manifest.json").exists() and folder.resolve() != _resumed.get() and not _came_to_nothing(folder):
        raise UsageError(
            f"{folder} holds results already: name another folder with out=, or go on with unfinished ones by "
            f"python -m benchmarks resume {folder}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the results folder {folder}: {error.strerror or error}") from error
    return folder


def _came_to_nothing(folder: Path) -> bool:
    """No run was finished there, as where the server was not: the next attempt may use its name."""
    try:
        manifest = read_manifest(folder)
    except ResultsError:
        return False
    return not manifest["complete"] and manifest.get("runs") == []


def point_to_latest(folder: Path) -> None:
    """``runs/latest`` is the newest folder that was named by its time, where links can be made."""
    link = folder.parent / "latest"
    with contextlib.suppress(OSError):
        if link.is_symlink():
            link.unlink()
        link.symlink_to(folder.name, target_is_directory=True)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` in whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    text = json.dumps(_finite(document), ensure_ascii=False, indent=1, allow_nan=False, default=str)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: what has no finite value is null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def disk_is_not_full(folder: Path) -> Iterator[None]:
    """Whatever fails for want of space is said in one line.

    Raises:
        InvalidRunError: The disk is full.
    """
    try:
        yield
    except (OSError, InvalidRunError) as error:
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if not full and shutil.disk_usage(folder).free >= FULL_BYTES:
            raise
        raise InvalidRunError(
            f"the disk that holds {folder} is full: what was written until then is kept; make room, then go on "
            f"with python -m benchmarks resume {folder}"
        ) from error


def _locked(folder: Path) -> IO[bytes]:
    """Held as long as the file is open, and by no process that is gone.

    Raises:
        UsageError: Another benchmark writes there now.
    """
    import fcntl

    file = (folder / ".lock").open("wb")
    end = time.monotonic() + LEAVING_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            file.close()
            raise UsageError(
                f"{folder} is being written by a benchmark that still runs: wait for it, or end it"
            ) from None
        return file


def _goodput(measured: pd.DataFrame, scenario: Scenario) -> dict[str, Any]:
    """Where the scenario says what a good request is: their share, its interval, and good requests per second."""
    limits = getattr(scenario, "limits", scenario.verdict.limits)
    if not isinstance(limits, Limits) or limits == Limits() or not len(measured):
        return {}
    kept = good_requests(measured.sort_values("scheduled_s"), limits)
    interval = share_interval(kept.tolist(), scenario.verdict.alpha)
    return {"goodput": float(kept.mean()), "goodput_interval": [interval.low, interval.high]}


def _first_model(url: str, api_key_env: str | None) -> str:
    try:
        return str(json.loads(fetch.get(url + "/v1/models", api_key_env=api_key_env))["data"][0]["id"])
    except OSError as error:
        status = error.code if isinstance(error, HTTPError) else None
        if status is None or status in {401, 403}:
            advice = _advice("connect" if status is None else "http_status", str(error).removeprefix("HTTP Error "))
            raise EndpointError(url, advice) from error
        raise EndpointError(url, f"GET /v1/models names no model ({error}): set model=NAME") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(url, f"GET /v1/models names no model ({error}): set model=NAME") from error


def _advice(kind: str, detail: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        return (
            f"its certificate is not trusted ({detail}): use the host name that it is for, and put its issuer into the "
            "system's store or into the file that SSL_CERT_FILE names"
        )
    if kind == "timeout":
        return f"no answer to the first request ({detail}): raise timeout_s, or check url (https or http?)"
    if kind == "connect":
        return f"cannot connect ({detail}): is the server running, and is this its port?"
    if kind == "http_status" and detail.startswith(("401", "403")):
        return f"the key was refused ({detail}): set api_key_env to the environment variable that holds it"
    if kind == "http_status" and detail.startswith("404"):
        return f"nothing there ({detail}): check dialect and model"
    if kind == "malformed":
        return f"this is not the dialect that was asked for ({detail}): check dialect and url"
    return f"the first request failed with {kind}: {detail}"
