"""A model server on this machine that the agent made, and everything that belongs to it, in one folder::

    ROOT/deployments/NAME/environment.yml   what runs: every setting, resolved
                          venv/             its packages and no others
                          app/              the project's sources as they were, in prod mode
                          state.json        its process, and how far it came
                          server.log, logs/ what it said

The server is no child in any sense that matters: it lives on when the agent ends, and the next agent finds it by its
process id and the moment that process began.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx2
import psutil

import runconfig
from infra.sources import CODE, REQUIREMENTS, files
from model_server.deployment import DeploymentConfig, timings
from model_server.errors import ConfigurationError, DeploymentError
from model_server.server import bind

Mode = Literal["prod", "dev"]
Phase = Literal["deploying", "running", "failed"]
Report = Callable[[str], None]
"""Takes what is being done, in a sentence."""

STEPS = ("system", "packages", "stop", "start", "validate")
INSTALL_LIMIT_S = 1800
WATCHER_START_S = 5.0
LONGEST_STOP_S = 120
LAST_LINES = 5
QUESTION = "你好,请介绍一下你自己。"


class StepError(DeploymentError):
    """A step of a deployment could not be taken."""


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library that the packages need from the system, and the package it is in."""

    name: str
    packages: Mapping[str, str]
    """Installer such as apt-get -> package."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be loaded; None where it can."""
        try:
            ctypes.CDLL(self.name)
        except OSError as error:
            return str(error)
        return None


LIBRARIES = (
    Library("libstdc++.so.6", {"apt-get": "libstdc++6", "dnf": "libstdc++"}),
    Library("libgcc_s.so.1", {"apt-get": "libgcc-s1", "dnf": "libgcc"}),
)
"""What OpenVINO's wheels link to and do not bring (``ldd``); threads and all else are in them."""
INSTALLERS = {"apt-get": ("install", "-y", "--no-install-recommends"), "dnf": ("install", "-y")}


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants deployed; ``config`` has passed the plan-time check."""

    name: str
    config: DeploymentConfig
    mode: Mode = "prod"
    install_system_packages: bool = False
    """Packages of the distribution that are missing may be installed; needs root."""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a deployment across restarts of the agent."""

    mode: Mode
    phase: Phase
    url: str
    pid: int | None = None
    process_began: float | None = None
    """Unix time; tells the process from a later one with the same id."""
    deployed_at: str | None = None
    answered_in_s: float | None = None
    """The request that validated it."""
    installed: tuple[str, ...] = ()
    """Packages of the distribution that were installed for it; cleanup leaves them, others may use them by now."""


class LocalDeployment:
    """One folder of the above; every method may be called at any time, also when nothing is there."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project = folder, project

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def state(self) -> State | None:
        """None: nothing was deployed here."""
        try:
            raw = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return State(**{**raw, "installed": tuple(raw["installed"])})

    def process(self) -> psutil.Process | None:
        """The server's, if it is alive."""
        state = self.state()
        if state is None or state.pid is None or state.process_began is None:
            return None
        try:
            process = psutil.Process(state.pid)
            same = abs(process.create_time() - state.process_began) < 0.1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def ready(self) -> bool:
        state = self.state()
        return state is not None and self.process() is not None and _answers(f"{state.url}/ready")

    def describe(self) -> dict[str, object]:
        """For people and programs; ``state`` is ready, starting, stopped, deploying, failed or interrupted."""
        state = self.state()
        if state is None:
            return {"name": self.name, "state": "interrupted", "log": str(self.log)}
        process = self.process()
        word: str = state.phase
        if state.phase == "running":
            word = "stopped" if process is None else "ready" if self.ready() else "starting"
        return {
            "name": self.name,
            "state": word,
            "mode": state.mode,
            "url": state.url,
            "pid": None if process is None else process.pid,
            "deployed_at": state.deployed_at,
            "answered_in_s": state.answered_in_s,
            "system_packages": list(state.installed),
            "log": str(self.log),
        }

    def deploy(self, order: Order, report: Report) -> None:
        """From whatever is there to a server that has answered; ``report`` gets the name of each of :data:`STEPS`.

        What ran under this name runs on until everything for the new one is there.

        Raises:
            DeploymentError: And what the step found; a server that was running before is still there up to ``stop``.
        """
        report("system")
        config = self._own(order)
        installed = provide_libraries(LIBRARIES, may_install=order.install_system_packages)
        self.folder.mkdir(parents=True, exist_ok=True)
        report("packages")
        self._install()
        report("stop")
        self.stop()
        report("start")
        host = config.serving.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{config.serving.port}"
        before = self.state()
        kept = () if before is None else before.installed
        state = State(order.mode, "deploying", url, installed=tuple(sorted({*kept, *installed})))
        self._write(state)
        try:
            state = self._start(config, state)
            self._wait_until_ready(config)
            report("validate")
            state = replace(state, answered_in_s=self._ask(config), deployed_at=now(), phase="running")
        except BaseException:
            self.stop()
            self._write(replace(state, phase="failed", pid=None, process_began=None))
            raise
        self._write(state)

    def remove(self, report: Report) -> None:
        """Stop the server and delete the folder: what ``deploy`` made, and nothing else."""
        report("stop")
        self.stop()
        report("remove")
        shutil.rmtree(self.folder)

    def stop(self) -> None:
        """Let accepted requests finish, as long as the settings of what runs allow; then kill."""
        process = self.process()
        if process is None:
            return
        limit_s = LONGEST_STOP_S
        with contextlib.suppress(runconfig.ConfigError):  # written by another version
            limit_s = timings(runconfig.load(DeploymentConfig, self.folder / "environment.yml")).timeout_stop_s
        engines = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([process], timeout=limit_s)
        # An engine ends with its server, unless that was killed.
        _, orphans = psutil.wait_procs(engines, timeout=5)
        for each in [*alive, *orphans]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs([*alive, *orphans], timeout=10)

    def _own(self, order: Order) -> DeploymentConfig:
        """The order's settings with what belongs to one folder: its log files, and in dev mode what is logged."""
        serving = order.config.serving
        changed: dict[str, object] = {}
        if serving.log_dir is not None:
            changed["log_dir"] = self.folder / "logs"
        if order.mode == "dev":
            changed["log_level"] = "DEBUG"
        if serving.port == 0:
            with bind(serving.host, 0) as free:
                changed["port"] = free.getsockname()[1]
        return order.config.model_copy(update={"serving": serving.model_copy(update=changed)})

    def _install(self) -> None:
        python, uv = self.folder / "venv" / "bin" / "python", Path(sys.executable).with_name("uv")
        if not uv.exists():
            raise ConfigurationError(f"there is no {uv}: make the project's environment with `make setup`")
        if not python.exists():
            _run([str(uv), "venv", "-q", "--no-project", "-p", sys.executable, str(python.parents[1])], self.project)
        requirements = self.project / REQUIREMENTS
        _run([str(uv), "pip", "sync", "-q", "-p", str(python), "--require-hashes", str(requirements)], self.project)

    def _start(self, config: DeploymentConfig, state: State) -> State:
        # Somebody else there would be taken for ours when it says that it is ready.
        bind(config.serving.host, config.serving.port).close()
        environment = self.folder / "environment.yml"
        environment.write_text(runconfig.dump(config), encoding="utf-8")
        command = [str(self.folder / "venv/bin/python"), "-m", "model_server", str(environment)]
        if state.mode == "dev":
            command = _restarted_on_changes(command, config, self.project)
        variables = {name: value for name, value in os.environ.items() if not name.startswith("MODEL_SERVER_")}
        # Two names on a path, as in the image: no build backend to download and trust. A safe path, or the project in
        # the working directory would win over the copy; bytecode beside the sources would be outside the folder.
        sources = self.project if state.mode == "dev" else self._copied_sources()
        variables |= {"PYTHONPATH": str(sources), "PYTHONPYCACHEPREFIX": str(self.folder / "pycache")}
        variables |= {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.project,  # models/... of an environment begins there
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # Whoever waits for it takes it out of the table of processes when it ends.
        threading.Thread(target=process.wait, daemon=True, name=f"waits for {self.name}").start()
        state = replace(state, pid=process.pid, process_began=psutil.Process(process.pid).create_time())
        self._write(state)
        return state

    def _copied_sources(self) -> Path:
        app = self.folder / "app"
        shutil.rmtree(app, ignore_errors=True)
        for path in files(self.project, CODE):
            there = app / path.relative_to(self.project)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)
        return app

    def _wait_until_ready(self, config: DeploymentConfig) -> None:
        limit_s = timings(config).timeout_start_s
        end = time.monotonic() + limit_s
        while not self.ready():
            if not self._lives():
                raise StepError(f"the server ended before it was ready: {self._last_words()}")
            if time.monotonic() > end:
                raise StepError(f"the server was not ready within {limit_s} s: {self._last_words()}")
            time.sleep(0.1)

    def _lives(self) -> bool:
        """In dev mode a watcher lives on when the server ends, and waits for its repair."""
        process = self.process()
        if process is None:
            return False
        state = self.state()
        watcher = state is not None and state.mode == "dev"
        return not watcher or time.time() - process.create_time() < WATCHER_START_S or bool(process.children())

    def _ask(self, config: DeploymentConfig) -> float:
        """Seconds that one answer took."""
        state = self.state()
        assert state is not None
        headers = {}
        if config.serving.api_keys_file is not None:
            headers["Authorization"] = f"Bearer {_first_key(config.serving.api_keys_file)}"
        body = {"text": QUESTION, "max_tokens": 8, "temperature": 0}
        began = time.perf_counter()
        try:
            answer = httpx2.post(
                f"{state.url}/api/v1/inference", json=body, headers=headers, timeout=config.serving.request_timeout_s
            )
        except httpx2.HTTPError as error:
            raise StepError(f"the server is ready and does not answer: {error}") from error
        if answer.status_code != 200:
            raise StepError(f"the server is ready and answers {answer.status_code}: {answer.text[:300]}")
        return round(time.perf_counter() - began, 4)

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        said = [line for line in lines if line and not line.startswith("{")][-LAST_LINES:]
        return " / ".join(said or lines[-1:]) or f"it said nothing, see {self.log}"

    def _write(self, state: State) -> None:
        part = self.folder / "state.json.part"
        part.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        part.replace(self.folder / "state.json")


def provide_libraries(libraries: Sequence[Library], *, may_install: bool) -> list[str]:
    """Packages that were installed because a library was missing.

    Raises:
        StepError: One is missing and may not or cannot be installed; what to do is said.
    """
    missing = [library for library in libraries if library.problem is not None]
    if not missing:
        return []
    names = ", ".join(library.name for library in missing)
    installer = next((each for each in INSTALLERS if shutil.which(each)), None)
    if installer is None:
        raise StepError(f"{names} missing on this system: install what has it, with the system's own means")
    packages = [library.packages[installer] for library in missing]
    command = [installer, *INSTALLERS[installer], *packages]
    if not may_install:
        raise StepError(f"{names} missing: run `{' '.join(command)}` as root, or allow install_system_packages")
    if os.geteuid() != 0:
        raise StepError(f"{names} missing, and only root may install: run `sudo {' '.join(command)}`")
    _run(command, Path("/"))
    if problems := [problem for library in missing if (problem := library.problem) is not None]:
        raise StepError(f"after `{' '.join(command)}` still: {'; '.join(problems)}")
    return packages


def _restarted_on_changes(command: Sequence[str], config: DeploymentConfig, project: Path) -> list[str]:
    """``command``, begun again whenever a Python file of the server changes."""
    sources = [str(project / "model_server"), str(project / "runconfig.py")]
    limit = ["--sigint-timeout", str(timings(config).timeout_stop_s)]
    return [
        *(sys.executable, "-m", "watchfiles", "--filter", "python", *limit),
        *("--target-type", "command", shlex.join(command), *sources),
    ]


def _run(command: Sequence[str], where: Path) -> None:
    """
    Raises:
        StepError: It failed; with the end of what it said.
    """
    try:
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, check=False, timeout=INSTALL_LIMIT_S, env=_quiet()
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"`{shlex.join(command)}` took longer than {INSTALL_LIMIT_S} s") from error
    if done.returncode != 0:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise StepError(f"`{shlex.join(command)}` failed: {said}")


def _quiet() -> dict[str, str]:
    """The environment for installers: no questions, and nothing of the environment that the agent itself runs in."""
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "VIRTUAL_ENV": ""}


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


def _first_key(path: Path) -> str:
    """Of a file that :func:`model_server.auth.read_keys` reads."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next(line for line in lines if line and not line.startswith("#")).rpartition(":")[2]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
