"""Does each alert fire, and in time? Real servers are hurt while the real Prometheus and Alertmanager watch them.

    python -m monitoring.faults [time_scale=30] [only=NAME,NAME] [out=monitoring/faults.md]

For each fault it measures the seconds until the receiver is told of each alert that belongs to it, and compares them
with what the configuration allows: `for` + scrape + evaluation + rate window + group wait, plus 10 seconds. With the
shipped times this takes hours (`time_scale=1`); `time_scale=30` divides all times of the watching by 30, windows,
`for`, intervals and waits alike, and leaves the servers as they are. A burn rate is held to its short window: over a
young site the long one has no more to look back on.

Needs Debian's prometheus and prometheus-alertmanager; the disk fault needs root, for a file system of its own. Exit:
0 each fired in time, 1 one did not, 2 usage, 4 the site did not come up.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

import runconfig
from monitoring import alerts, render
from monitoring.watched_site import ROOT, Load, Site, SiteError, chat, missing_programs, watched_site

GRACE_S = 10.0
CHAT_RATE = 15.0
"""Requests per second: more than the 10 that low_qps wants."""
CALM_S = 180.0
"""How long the alerts of a fault may still fire when the next one that needs them silent begins."""


class FaultSettings(runconfig.RunConfig):
    """Words of the command line."""

    time_scale: float = Field(default=30, ge=1, le=60)
    """By what all times of the watching are divided; beyond 60 a scrape would come every 0.25 s."""
    only: str | None = None
    """Names of faults, separated by commas; None: all."""
    out: Path | None = None
    """Where the table goes, Markdown; None: it is only printed."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and who has to say so."""

    name: str
    what: str
    alerts: tuple[str, ...]
    inject: Callable[[Site], AbstractContextManager[None]]
    load: bool = True
    """Whether requests arrive meanwhile."""
    words: tuple[str, ...] = ()
    """Settings of the server that is hurt."""
    young: bool = False
    """On a site of its own, without a past: a burn rate is a share of all that its long window knows of."""


@dataclass(frozen=True)
class Measured:
    """One alert of one fault."""

    fault: Fault
    alert: str
    severity: str
    seconds: float | None
    """Until somebody was told, or until it was seen where it is inhibited; None: never."""
    allowed_s: float
    arithmetic: str
    inhibited: bool

    @property
    def in_time(self) -> bool:
        return self.seconds is not None and self.seconds <= self.allowed_s


# The faults ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stop_one(site: Site) -> Iterator[None]:
    site.servers[1].stop()
    yield
    site.servers[1].start()
    site.servers[1].wait()


@contextlib.contextmanager
def stop_all(site: Site) -> Iterator[None]:
    for server in site.servers:
        server.stop()
    yield
    for server in site.servers:
        server.start()
    for server in site.servers:
        server.wait()


@contextlib.contextmanager
def nothing(site: Site) -> Iterator[None]:
    del site
    yield


@contextlib.contextmanager
def fill_memory(site: Site) -> Iterator[None]:
    server = site.servers[1]
    assert server.process is not None
    server.process.send_signal(signal.SIGUSR2)
    yield
    server.stop()
    server.start()
    server.wait()


@contextlib.contextmanager
def fill_disk(site: Site) -> Iterator[None]:
    path = site.folder / "disk" / "ballast"
    with contextlib.suppress(OSError), path.open("wb") as file:
        while True:
            file.write(b"x" * (1 << 20))
            file.flush()
    yield
    path.unlink()


@contextlib.contextmanager
def other_calls(site: Site) -> Iterator[None]:
    chance = random.Random(0)

    def call(_: int) -> tuple[str, dict[str, Any]]:
        texts = ["".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(40)) for _ in range(8)]
        return "/api/v1/classify", {"texts": texts}

    with Load(site.servers[0].url, 5, call):
        yield


@contextlib.contextmanager
def restart(site: Site) -> Iterator[None]:
    """Four times, each until it serves and was scraped: what kills faster is systemd's to count, or the kubelet's."""
    for _ in range(4):
        site.servers[1].kill()
        site.servers[1].start()
        site.servers[1].wait()
        time.sleep(3 * site.times.scrape)
    yield


@contextlib.contextmanager
def slow_engine(site: Site) -> Iterator[None]:
    """Slower than requests arrive, in pauses that are too short to be called a stall (5 s)."""
    with _repeatedly(lambda: _turn(site, running_s=0.05, stopped_s=3.5)):
        yield
    for process in site.servers[0].engines():
        process.resume()


@contextlib.contextmanager
def hang_engine(site: Site) -> Iterator[None]:
    """SIGSTOP, also to each that replaces it."""
    with _repeatedly(lambda: _stop(site)):
        yield
    for process in site.servers[0].engines():
        process.resume()


def _stop(site: Site) -> None:
    for process in site.servers[0].engines():
        process.suspend()
    time.sleep(0.1)


def _turn(site: Site, *, running_s: float, stopped_s: float) -> None:
    engines = site.servers[0].engines()
    for process in engines:
        process.suspend()
    time.sleep(stopped_s)
    for process in engines:
        process.resume()
    time.sleep(running_s)


@contextlib.contextmanager
def _repeatedly(act: Callable[[], None]) -> Iterator[None]:
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with contextlib.suppress(Exception):  # the process went away meanwhile
                act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


FAULTS = (
    Fault("stop_one", "SIGTERM to one of two servers", ("instance_down",), stop_one),
    Fault("stop_all", "SIGTERM to all servers", ("high_error_rate_absent", "pod_restart_absent"), stop_all, load=False),
    Fault("no_load", "no requests arrive", ("low_qps",), nothing, load=False),
    Fault("fill_memory", "700 MB more in a server whose limit is 1 GiB", ("memory_usage",), fill_memory),
    Fault("fill_disk", "the file system of models and logs is written full", ("disk_usage",), fill_disk),
    Fault("other_calls", "random characters are classified", ("category_drift", "confidence_drift"), other_calls),
    Fault("restart", "SIGKILL to a server, and started again, four times", ("pod_restart",), restart),
    Fault(
        "slow_engine",
        "SIGSTOP and SIGCONT to the engine: it gets a seventieth of its time",
        (
            "high_latency",
            "time_to_first_token",
            "queue_saturation",
            "latency_budget_fast",
            "latency_budget_medium",
            "latency_budget_slow",
        ),
        slow_engine,
        words=("serving.request_timeout_s=30", "serving.drain_s=35"),
        young=True,
    ),
    Fault(
        "hang_engine",
        "SIGSTOP to the engine and to each that replaces it: requests fail",
        (
            "engine_stalled",
            "engine_down",
            "high_error_rate",
            "error_budget_fast",
            "error_budget_medium",
            "error_budget_slow",
        ),
        hang_engine,
        words=("serving.request_timeout_s=3", "serving.drain_s=8"),
        young=True,
    ),
)


# Measuring -------------------------------------------------------------------------------------------------


def allowed(site: Site, name: str) -> tuple[float, str]:
    """Seconds until somebody has to be told, and how they come about."""
    row = alerts.load().get(name)
    scale, times = site.times.scale, site.times
    if row is None:
        hold, window = alerts.seconds(render.ABSENT_FOR), 0
    else:
        # Of several signals the one that looks back least; within it, what looks back farthest.
        windows = [[alerts.seconds(text) for text in alerts.WINDOW.findall(expr)] for expr in row.signals.values()]
        hold, window = alerts.seconds(row.hold), min(max(found, default=0) for found in windows)
    parts = (hold / scale, window / scale, times.scrape, times.evaluation, times.group_wait)
    return sum(parts) + GRACE_S, " + ".join(f"{part:.3g}" for part in (*parts, GRACE_S))


def measure(site: Site, fault: Fault) -> list[Measured]:
    """Hurt, and wait until each alert was told of or is too late.

    Raises:
        SiteError: An alert of the fault fires already.
    """
    rows = alerts.load()
    _wait_for_calm(site, fault)
    heard, began = len(site.told), time.monotonic()
    limits = {name: allowed(site, name) for name in fault.alerts}
    found: list[Measured] = []

    def note(name: str, seconds: float | None, *, inhibited: bool = False) -> None:
        severity = "critical" if name not in rows else rows[name].severity
        found.append(Measured(fault, name, severity, seconds, *limits.pop(name), inhibited))
        print(f"  {_said(found[-1])}", file=sys.stderr, flush=True)

    with _load(site, fault), fault.inject(site):
        while limits:
            for at, alert in site.told[heard:]:
                if alert["status"] == "firing" and alert["labels"]["alertname"] in limits:
                    note(alert["labels"]["alertname"], at - began)
            passed = time.monotonic() - began
            for name in site.suppressed() & set(limits):
                note(name, passed, inhibited=True)
            for name in [name for name, (limit, _) in limits.items() if passed > limit]:
                note(name, None)
            time.sleep(0.1)
    return found


def _load(site: Site, fault: Fault) -> AbstractContextManager[object]:
    return Load(site.servers[0].url, CHAT_RATE, chat) if fault.load else contextlib.nullcontext()


def _wait_for_calm(site: Site, fault: Fault) -> None:
    """Under the load of every day, until none of the fault's alerts fires and the receiver heard the end of them."""
    quiet_since = None
    # Alertmanager keeps a group until the end of it was told.
    kept_s = 0 if fault.young else site.times.group_interval + 2 * site.times.evaluation
    with contextlib.nullcontext() if fault.young else Load(site.servers[0].url, CHAT_RATE, chat):
        deadline = time.monotonic() + CALM_S + kept_s
        while time.monotonic() < deadline:
            if set(fault.alerts) & set(site.firing()):
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > kept_s:
                return
            time.sleep(0.2)
    raise SiteError(f"{fault.name}: {', '.join(fault.alerts)} fire before it begins: {sorted(site.firing())}")


@contextlib.contextmanager
def _file_system(folder: Path) -> Iterator[bool]:
    """``folder`` on a file system of 32 MiB of its own, where one may be made; whether it is."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "qwen3-faults", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, check=False, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def run(settings: FaultSettings, chosen: Sequence[Fault]) -> list[Measured]:
    """
    Raises:
        SiteError: The site did not come up, or an alert fired before its fault.
    """
    aged = [fault for fault in chosen if not fault.young]
    together = [aged] if aged else []
    return [
        each
        for faults in [*together, *([fault] for fault in chosen if fault.young)]
        for each in _run_on_one_site(settings, faults)
    ]


def _run_on_one_site(settings: FaultSettings, faults: Sequence[Fault]) -> list[Measured]:
    with tempfile.TemporaryDirectory(prefix="faults-") as name, contextlib.ExitStack() as ends:
        folder = Path(name)
        disk = folder / "disk"
        may_fill = ends.enter_context(_file_system(disk))
        # Both directories that are watched, so that what else lies on this machine's disk fires nothing.
        model = shutil.copytree(ROOT / "models" / "complaints-tiny", disk / "model")
        shared = (f"model_source={model}", "serving.max_queue=8")
        words = {
            "web1": (*shared, f"serving.log_dir={disk}/logs1", *faults[0].words),
            "web2": (*shared, f"serving.log_dir={disk}/logs2"),
        }
        site = ends.enter_context(watched_site(folder, settings.time_scale, words))
        found = []
        for fault in faults:
            if fault.inject is fill_disk and not may_fill:
                print("fill_disk: left out, for only root may make a file system", file=sys.stderr)
                continue
            print(f"{fault.name}: {fault.what} ...", file=sys.stderr, flush=True)
            found += measure(site, fault)
        return found


# The table -------------------------------------------------------------------------------------------------


def _said(each: Measured) -> str:
    when = "never" if each.seconds is None else f"{each.seconds:.1f} s"
    return f"{each.alert}: {when}, allowed {each.allowed_s:.1f} s"


def table(found: Sequence[Measured], settings: FaultSettings) -> str:
    """The measurement as Markdown."""
    asked = settings.model_dump(exclude_defaults=True, exclude={"out"})
    words = [f"{name}={value:g}" if name == "time_scale" else f"{name}={value}" for name, value in asked.items()]
    times = [
        f"**All times of the watching are divided by {settings.time_scale:g}**: windows, `for`, scrape and evaluation",
        "interval, group wait. What a server needs is not divided. On a site each part of a limit but the last is",
        f"{settings.time_scale:g} times as long.",
    ]
    if settings.time_scale == 1:
        times = ["All times of the watching are as a site has them."]
    lines = [
        "# Faults, and when somebody is told",
        "",
        f"Made by `{' '.join(['python -m monitoring.faults', *words])}`; do not edit.",
        f"Real servers, Prometheus and Alertmanager on one machine, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        *times,
        "",
        "Limit, in seconds: `for` + rate window + scrape + evaluation + group wait + 10. Told: to the receiver of its",
        "severity; *inhibited*: seen in Alertmanager and not sent, for something critical of the same was known.",
        "",
        "| fault | alert | severity | seconds | limit | in time | told |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        seconds = "never" if each.seconds is None else f"{each.seconds:.1f}"
        told = "inhibited" if each.inhibited else "no" if each.seconds is None else "sent"
        limit = f"{each.allowed_s:.1f} = {each.arithmetic}"
        verdict = "yes" if each.in_time else "**no**"
        lines.append(
            f"| {each.fault.what} | {each.alert} | {each.severity} | {seconds} | {limit} | {verdict} | {told} |"
        )
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        print("Faults:", *(f"  {fault.name}: {fault.what} -> {', '.join(fault.alerts)}" for fault in FAULTS), sep="\n")
        return 0
    try:
        settings = runconfig.load(FaultSettings, None, words)
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    names = [fault.name for fault in FAULTS] if settings.only is None else settings.only.split(",")
    chosen = [fault for fault in FAULTS if fault.name in names]
    if unknown := set(names) - {fault.name for fault in FAULTS}:
        known = ", ".join(fault.name for fault in FAULTS)
        print(f"only={settings.only}: no such fault: {', '.join(sorted(unknown))}; there are: {known}", file=sys.stderr)
        return 2
    if missing := missing_programs():
        print(f"not on PATH: {', '.join(missing)}: apt-get install prometheus prometheus-alertmanager", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        found = run(settings, chosen)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 4
    text = table(found, settings)
    print(text)
    if settings.out is not None:
        settings.out.write_text(text, encoding="utf-8")
    late = [each.alert for each in found if not each.in_time]
    print(json.dumps({"alerts": len(found), "late": late, "seconds": round(time.monotonic() - began)}))
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
