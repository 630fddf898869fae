"""One benchmark under way: a results folder, the generator, the sampler, and the runs so far."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pandas as pd

from benchmarks import manifest
from benchmarks.calls import Call, calls_of, digest
from benchmarks.config import Scenario
from benchmarks.errors import EndpointError, InterruptedRunError, UsageError
from benchmarks.generator import Generator, ill_health
from benchmarks.plan import Run
from benchmarks.progress import Display
from benchmarks.records import Arm, Phase
from benchmarks.results import RESULTS_VERSION, derive, read_journal
from benchmarks.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Side:
    """One server that is measured. ``settings`` are shown beside the other side's, where they differ."""

    url: str
    name: str
    pid: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """Use as a context; :meth:`send` does one run. Leaving it stops the generator and keeps what there is.

    Raises:
        UsageError: The calls cannot be read, or the results folder exists and holds results.
        EndpointError: A server does not answer its dialect.
    """

    def __init__(self, scenario: Scenario, kind: str, sides: Mapping[Arm, Side], display: Display) -> None:
        self.scenario, self.kind, self.display = scenario, kind, display
        if scenario.api_key_env is not None and not os.environ.get(scenario.api_key_env):
            raise UsageError(f"api_key_env names {scenario.api_key_env}, which is not set in the environment")
        self.calls: list[Call] = calls_of(scenario)
        self.sides = {arm: replace(side, url=_base_url(side.url)) for arm, side in sides.items()}
        self.folder = results_folder(scenario)
        self.runs: list[dict[str, Any]] = []
        self.complete = False
        self._models: dict[Arm, str | None] = {}
        self.created_at = datetime.now(UTC)
        self.origin = time.perf_counter()
        self._machine = manifest.machine()
        self._journal = self.folder / "requests.jsonl"
        pids = {f"server_{arm}": side.pid for arm, side in self.sides.items() if side.pid is not None}
        self._sampler = Sampler(self.origin, scenario.sample_interval_s, pids)
        self._generator = Generator(
            scenario, origin=self.origin, journal=self._journal, log=self.folder / "generator.log"
        )

    def __enter__(self) -> Self:
        self.write_manifest()
        with contextlib.ExitStack() as stack:
            self.display.begin("starting the load generator")
            generator = stack.enter_context(self._generator)
            self._sampler.watch("generator", generator.pid)
            stack.enter_context(self._sampler)
            for arm, side in self.sides.items():
                self._probe(arm, side)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def send(self, arm: Arm, pair: int, phase: Phase, **limits: Any) -> dict[str, Any]:
        """One run on one side; ``limits`` replace the scenario's ``users``, ``duration_s`` and so on."""
        scenario = self.scenario
        run = Run(
            run=len(self.runs),
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
        found = self._generator.run(run, self.display.tick)
        self.display.tick(found["requests"], found["failed"])
        found["set_aside"] = False
        found["ill_health"] = ill_health(found, scenario.client_limits) if phase == "measure" else []
        self.runs.append(found)
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
        """What the journal holds, with derived columns."""
        records, _ = read_journal(self._journal)
        return derive(records)

    def samples(self) -> pd.DataFrame:
        """What the sampler has read so far."""
        return self._sampler.frame()

    def keep(self, summary: dict[str, Any]) -> None:
        """Write the results folder, the journal apart, which is there."""
        records, _ = read_journal(self._journal)
        records.to_parquet(self.folder / "requests.parquet", index=False)
        self.samples().to_parquet(self.folder / "samples.parquet", index=False)
        self.write_manifest()
        write_json(self.folder / "summary.json", summary)
        if self.scenario.out is None:
            point_to_latest(self.folder)

    def write_manifest(self) -> None:
        scenario = self.scenario.model_dump(mode="json")
        labelled = sum(call.label is not None for call in self.calls)
        document = {
            "results_version": RESULTS_VERSION,
            "kind": self.kind,
            "name": self.scenario.name,
            "created_at": self.created_at.isoformat(timespec="seconds"),
            "complete": self.complete,
            "command": manifest.command_line(),
            "scenario": scenario,
            "sides": {
                arm: {"name": side.name, "url": side.url, "pid": side.pid, "model": self._models.get(arm)}
                | {"settings": dict(side.settings)}
                for arm, side in self.sides.items()
            },
            "workload": {"calls": len(self.calls), "labelled": labelled, "sha256": digest(self.calls)},
            "runs": self.runs,
            "machine": self._machine,
            "software": manifest.software(),
        }
        write_json(self.folder / "manifest.json", document)

    def _probe(self, arm: Arm, side: Side) -> None:
        """One request, so that what cannot be measured is said in one line and at once."""
        if self.scenario.dialect.startswith("chat"):
            self._models[arm] = self.scenario.model or _first_model(side.url, self.scenario.api_key_env)
        self.display.begin(f"asking {side.url}")
        self.send(arm, -1, "probe", users=1, rate_per_s=None, requests=1, duration_s=None)
        self.display.end()
        last = read_journal(self._journal)[0].iloc[-1]
        if isinstance(last["error"], str):
            raise EndpointError(side.url, _advice(last["error"], str(last["error_detail"])))


def results_folder(scenario: Scenario) -> Path:
    """A new folder for results: ``out``, or ``runs/NAME-TIME``.

    Raises:
        UsageError: It holds results already, or cannot be made.
    """
    folder = scenario.out
    if folder is None:
        stamp = datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / f"{scenario.name}-{stamp}"
    if (folder / "manifest.json").exists():
        raise UsageError(f"{folder} holds results already: name another folder with out=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the results folder {folder}: {error.strerror or error}") from error
    return folder


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
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False, default=str)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def interrupted(folder: Path) -> InterruptedRunError:
    return InterruptedRunError(f"interrupted: what was measured until then is in {folder}, marked as incomplete")


def _base_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"a URL must begin with http:// or https://, got {url!r}")
    if "@" in urlsplit(url).netloc:
        raise UsageError("a URL must not hold a password: it is written down; set api_key_env instead")
    return url.rstrip("/")


def _first_model(url: str, api_key_env: str | None) -> str:
    request = urllib.request.Request(url + "/v1/models")  # noqa: S310 - _base_url lets http and https pass only
    if api_key_env:
        request.add_header("Authorization", f"Bearer {os.environ.get(api_key_env, '')}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        raise EndpointError(url, f"GET /v1/models names no model ({reason}): set model=NAME") from error


def _advice(kind: str, detail: str) -> str:
    if kind == "connect":
        return f"cannot connect ({detail}): is the server running, and is this its port?"
    if kind == "http_status" and detail.startswith(("401", "403")):
        return f"the key was refused ({detail}): set api_key_env to the environment variable that holds it"
    if kind == "http_status" and detail.startswith("404"):
        return f"nothing there ({detail}): check dialect and model"
    if kind == "malformed":
        return f"this is not the dialect that was asked for ({detail}): check dialect and url"
    return f"the first request failed with {kind}: {detail}"
