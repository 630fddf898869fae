"""A site on loopback: two real servers, a load, and the real Prometheus and Alertmanager that watch them.

The rules are the rendered ones, Alertmanager's configuration is the role's own template, the intervals are the roles'
defaults; all of their times divided by one number, so that what takes hours on a site is seen in minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import httpx2
import jinja2
import psutil
import yaml

from monitoring import alerts, render
from monitoring.watch import JOB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
ROLES = ROOT / "playbooks" / "roles"
ENVIRONMENT = ROOT / "environments" / "local.yml"
PROGRAMS = ("prometheus", "prometheus-alertmanager")
READY_S = 90.0
MOST_AT_ONCE = 64

# Python imports this module in every process that finds it: the server, to whose memory a signal then adds.
_BALLAST = """
import os, signal
held = []
signal.signal(signal.SIGUSR2, lambda *_: held.append(b"x" * int(os.environ["BALLAST_BYTES"])))
"""
BALLAST_BYTES = 700_000_000
"""With what a server has (0.2 to 0.3 GiB), above 80 % of the 1 GiB of environments/local.yml, and below all of it."""


class SiteError(RuntimeError):
    """The site cannot be set up; nothing was measured."""


@dataclass(frozen=True)
class Times:
    """Seconds of the roles' defaults, divided."""

    scale: float
    scrape: float
    evaluation: float
    group_wait: float
    group_interval: float

    @classmethod
    def of_the_roles(cls, scale: float) -> Times:
        prometheus, alertmanager = (
            yaml.safe_load((ROLES / role / "defaults/main.yml").read_text(encoding="utf-8"))
            for role in ("prometheus", "alertmanager")
        )
        return cls(
            scale,
            alerts.seconds(prometheus["prometheus_scrape_interval"]) / scale,
            alerts.seconds(prometheus["prometheus_evaluation_interval"]) / scale,
            alerts.seconds(alertmanager["alertmanager_group_wait"]) / scale,
            alerts.seconds(alertmanager["alertmanager_group_interval"]) / scale,
        )

    def scaled(self, rules: dict[str, Any]) -> dict[str, Any]:
        """The content of a rule file with every window and every ``for`` divided."""
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["expr"] = self.shortened(rule["expr"])
                if "for" in rule:
                    rule["for"] = self._divided(rule["for"])
        return rules

    def shortened(self, expr: str) -> str:
        """``expr`` with its windows divided."""
        return alerts.WINDOW.sub(lambda match: f"[{self._divided(match[1])}]", expr)

    def _divided(self, duration: str) -> str:
        return _milliseconds(alerts.seconds(duration) / self.scale)


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


@dataclass
class Server:
    """A model server of the site; ``name`` is its host."""

    name: str
    port: int
    words: tuple[str, ...]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environ = os.environ | {"PYTHONPATH": str(self.folder), "BALLAST_BYTES": str(BALLAST_BYTES)}
        command = [sys.executable, "-m", "model_server", str(ENVIRONMENT), f"serving.port={self.port}", *self.words]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it may be sent traffic."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/ready", trust_env=False, timeout=2).is_success:
                    return
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.2)
        said = (self.folder / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SiteError(f"the server {self.name} did not get ready:\n{said}")

    def stop(self) -> None:
        """SIGTERM, as systemd and the kubelet do."""
        if self.process is not None:
            children = [] if self.process.poll() is not None else psutil.Process(self.process.pid).children()
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is out; its engine notices and leaves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def engines(self) -> list[psutil.Process]:
        """The engine's processes."""
        if self.process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


@dataclass
class Load:
    """Requests at a steady rate, whatever becomes of them, from a thread of its own."""

    url: str
    rate: float
    body: Callable[[int], tuple[str, Mapping[str, Any]]]
    """Number of the request -> path and body."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Status, or the name of what went wrong -> how often."""
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(45)

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=MOST_AT_ONCE)
        async with httpx2.AsyncClient(trust_env=False, timeout=40, limits=limits) as client:
            asked: set[asyncio.Task[None]] = set()
            began, number = time.monotonic(), 0
            while not self._ended.is_set():
                number += 1
                if len(asked) < MOST_AT_ONCE:
                    task = asyncio.create_task(self._ask(client, number))
                    asked.add(task)
                    task.add_done_callback(asked.discard)
                await asyncio.sleep(max(0, began + number / self.rate - time.monotonic()))
            await asyncio.gather(*asked)

    async def _ask(self, client: httpx2.AsyncClient, number: int) -> None:
        path, body = self.body(number)
        try:
            said = str((await client.post(f"{self.url}{path}", json=body)).status_code)
        except httpx2.HTTPError as error:
            said = type(error).__name__
        self.statuses[said] = self.statuses.get(said, 0) + 1


def chat(number: int) -> tuple[str, dict[str, Any]]:
    """A short answer."""
    messages = [{"role": "user", "content": f"你好,请介绍一下你自己。第{number}次"}]
    return "/v1/chat/completions", {"model": "complaints-tiny", "messages": messages, "max_tokens": 8}


@dataclass
class Site:
    """What runs, and what the receiver was told."""

    times: Times
    folder: Path
    servers: tuple[Server, Server]
    prometheus: str
    alertmanager: str
    told: list[tuple[float, dict[str, Any]]]
    """When (monotonic), and what Alertmanager told."""

    def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant query."""
        result: list[dict[str, Any]] = self._ask(f"{self.prometheus}/api/v1/query", query=expr)["data"]["result"]
        return result

    def query_range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Unix times; a value each scrape."""
        step = f"{self.times.scrape:.3f}"
        parameters = {"query": expr, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": step}
        result: list[dict[str, Any]] = self._ask(f"{self.prometheus}/api/v1/query_range", **parameters)["data"][
            "result"
        ]
        return result

    def firing(self) -> dict[str, set[str]]:
        """Alerts that fire, by what Prometheus says -> hosts, empty where all of them together are meant."""
        found: dict[str, set[str]] = {}
        for each in self.query('ALERTS{alertstate="firing"}'):
            found.setdefault(each["metric"]["alertname"], set()).add(each["metric"].get("host", ""))
        return found

    def suppressed(self) -> set[str]:
        """Alerts that Alertmanager knows of and does not send, for a critical one is known."""
        answer = self._ask(f"{self.alertmanager}/api/v2/alerts", active="false", inhibited="true")
        return {each["labels"]["alertname"] for each in answer}

    def _ask(self, url: str, **parameters: str) -> Any:
        answer = httpx2.get(url, params=parameters, trust_env=False, timeout=10)
        if not answer.is_success:
            raise SiteError(f"{url} {parameters} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json()


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def watched_site(
    folder: Path,
    scale: float,
    words: Mapping[str, tuple[str, ...]],
    *,
    scrapes: Sequence[Mapping[str, Any]] = (),
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Site]:
    """Everything, up and known to Prometheus; all of it ends with the context.

    Args:
        folder: Of its own, for logs and data.
        scale: By what all times of the watching are divided.
        words: Host -> settings of its server that win over environments/local.yml.
        scrapes: Further entries of Prometheus' scrape_configs.
        labels: What else every server's series carry.

    Raises:
        SiteError: Something did not come up.
    """
    times = Times.of_the_roles(scale)
    (folder / "sitecustomize.py").write_text(_BALLAST, encoding="utf-8")
    ports = free_ports(4)
    servers = tuple(Server(name, port, words[name], folder) for name, port in zip(words, ports, strict=False))
    told: list[tuple[float, dict[str, Any]]] = []
    prometheus, alertmanager = (f"127.0.0.1:{port}" for port in ports[2:])
    with contextlib.ExitStack() as ends:
        receiver = ends.enter_context(_receiver(told))
        for server in servers:
            ends.callback(server.stop)
            server.start()
        _write(folder / "rules.yml", times.scaled(render.rules(alerts.load())))
        _write(folder / "prometheus.yml", _prometheus(times, servers, alertmanager, scrapes, labels))
        (folder / "alertmanager.yml").write_text(_alertmanager(times, receiver), encoding="utf-8")
        ends.enter_context(
            _program(
                folder,
                "prometheus-alertmanager",
                f"--config.file={folder}/alertmanager.yml",
                f"--storage.path={folder}/alertmanager",
                f"--web.listen-address={alertmanager}",
                "--cluster.listen-address=",
            )
        )
        ends.enter_context(
            _program(
                folder,
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/prometheus",
                f"--web.listen-address={prometheus}",
            )
        )
        for server in servers:
            server.wait()
        one, two = servers
        site = Site(times, folder, (one, two), f"http://{prometheus}", f"http://{alertmanager}", told)
        _wait_until_known(site)
        yield site


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _prometheus(
    times: Times,
    servers: tuple[Server, ...],
    alertmanager: str,
    scrapes: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    targets = [
        {
            "targets": [f"127.0.0.1:{server.port}"],
            "labels": {"instance": f"{server.name}-1", "host": server.name, **labels},
        }
        for server in servers
    ]
    return {
        "global": {
            "scrape_interval": _milliseconds(times.scrape),
            "scrape_timeout": _milliseconds(times.scrape),
            "evaluation_interval": _milliseconds(times.evaluation),
        },
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [{"job_name": JOB, "static_configs": targets}, *scrapes],
    }


def _alertmanager(times: Times, receiver: str) -> str:
    """The role's template, filled in as Ansible would."""
    folder = ROLES / "alertmanager"
    environment = jinja2.Environment(trim_blocks=True, autoescape=False)  # noqa: S701  YAML, no page
    environment.filters["to_json"] = json.dumps
    values = yaml.safe_load((folder / "defaults/main.yml").read_text(encoding="utf-8"))
    values |= {
        "ansible_managed": "monitoring.watched_site",
        "alertmanager_group_wait": _milliseconds(times.group_wait),
        "alertmanager_group_interval": _milliseconds(times.group_interval),
        "alertmanager_critical": [{"webhook": f"{receiver}/critical"}],
        "alertmanager_warning": [{"webhook": f"{receiver}/warning"}],
    }
    template = (folder / "templates/alertmanager.yml.j2").read_text(encoding="utf-8")
    # Of credentials there are none here, and the filter that names their files is Ansible's.
    environment.filters["hash"] = str
    return environment.from_string(template).render(values)


@contextlib.contextmanager
def _receiver(told: list[tuple[float, dict[str, Any]]]) -> Iterator[str]:
    """Who is called: a webhook that keeps what it hears."""

    class Hear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            at = time.monotonic()
            told.extend((at, alert) for alert in heard["alerts"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hear) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@contextlib.contextmanager
def _program(folder: Path, *command: str) -> Iterator[None]:
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def _write(path: Path, content: object) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _wait_until_known(site: Site) -> None:
    deadline = time.monotonic() + READY_S
    seen: object = None
    while time.monotonic() < deadline:
        try:
            seen = len(site.query(f'up{{job="{JOB}"}} == 1'))
            site.suppressed()
        except (httpx2.HTTPError, SiteError) as error:
            seen = error
        if seen == len(site.servers):
            return
        time.sleep(0.2)
    raise SiteError(f"Prometheus knows {seen} servers; its log: {site.folder}/prometheus.log")
