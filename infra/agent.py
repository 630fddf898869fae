"""``python -m infra.agent``: model servers on this machine, deployed and removed over REST on loopback.

``serve`` is the agent; the other verbs are its clients and start one where none answers. The API is described at
``/docs``; every request needs the token that the agent keeps in ``ROOT/token``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import uvicorn
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import runconfig
from infra.local_deployment import STEPS, LocalDeployment, Mode, Order, Report, now
from model_server import capacity, deployment
from model_server.auth import Keys, read_keys
from model_server.deployment import DeploymentConfig
from model_server.errors import AuthenticationError, ConfigurationError, DeploymentError

PROJECT = Path(__file__).resolve().parents[1]
ROOT = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "qwen3-stack"
HOST, PORT = "127.0.0.1", 8700
AGENT_START_S = 30
OK, FAILED, USAGE = 0, 1, 2
NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
EXAMPLES = """\
examples:
  python -m infra.agent deploy local                       environments/local.yml, in a virtual environment of its own
  python -m infra.agent deploy local --dev serving.port=0  debug log, begun again when a file changes, any free port
  python -m infra.agent status [--json]
  python -m infra.agent cleanup local                      stop it and remove all that was made for it
  python -m infra.agent shutdown                           the agent only; what it deployed runs on
  python -m infra.agent serve                              the agent in the foreground

  curl -H "Authorization: Bearer $(cat {root}/token)" -d '{{"environment": "local"}}' \\
      http://{host}:{port}/api/v1/local/deploy
  curl -H "Authorization: Bearer $(cat {root}/token)" http://{host}:{port}/api/v1/local/status
  curl -H "Authorization: Bearer $(cat {root}/token)" -X DELETE \\
      'http://{host}:{port}/api/v1/local/cleanup?name=local'

exit codes: 0 done; 1 a step failed, or no agent answers; 2 the request cannot be used
"""


class DeploymentBusyError(DeploymentError):
    """Somebody else is at work on this deployment; nothing was changed."""


class UnknownDeploymentError(DeploymentError):
    """There is no deployment, or no job, of that name."""


class NoAgentError(DeploymentError):
    """Nobody answers for this folder."""


STATUSES: Mapping[type[DeploymentError], int] = {DeploymentBusyError: 409, UnknownDeploymentError: 404}
"""HTTP status of an error; 422 for the others."""


@dataclass
class Job:
    """Work under way, or done since the agent began."""

    id: str
    name: str
    kind: Literal["deploy", "cleanup"]
    steps: Sequence[str]
    state: Literal["running", "succeeded", "failed"] = "running"
    step: str = ""
    taken_s: dict[str, float] = field(default_factory=dict)
    """Seconds of each step that was taken."""
    error: str | None = None
    began_at: str = field(default_factory=now)

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "progress": 1.0 if self.state == "succeeded" else len(self.taken_s) / len(self.steps)}


class Jobs:
    """One at a time for each deployment; the last hundred are remembered."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, kind: Literal["deploy", "cleanup"], work: Callable[[Report], None]) -> Job:
        """
        Raises:
            DeploymentBusyError: One is under way for ``name``.
        """
        steps = STEPS if kind == "deploy" else ("stop", "remove")
        with self._lock:
            for other in self._jobs.values():
                if other.name == name and other.state == "running":
                    raise DeploymentBusyError(f"a {other.kind} of {name!r} is under way (job {other.id}, {other.step})")
            job = Job(secrets.token_hex(6), name, kind, steps)
            self._jobs[job.id] = job
            for old in [each.id for each in self._jobs.values() if each.state != "running"][:-100]:
                del self._jobs[old]
        threading.Thread(target=self._work, args=(job, work), daemon=True, name=f"{kind} {name}").start()
        return job

    def of(self, id: str) -> Job:  # noqa: A002  its name on the wire
        try:
            return self._jobs[id]
        except KeyError:
            raise UnknownDeploymentError(f"there is no job {id!r}: jobs are known until the agent ends") from None

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def running(self) -> list[Job]:
        return [job for job in self.all() if job.state == "running"]

    @staticmethod
    def _work(job: Job, work: Callable[[Report], None]) -> None:
        began = time.monotonic()

        def report(step: str) -> None:
            nonlocal began
            if job.step:
                job.taken_s[job.step] = round(time.monotonic() - began, 3)
            job.step, began = step, time.monotonic()

        try:
            work(report)
            report("")
            job.state = "succeeded"
        except Exception as error:  # a thread has nobody else to tell
            job.error = str(error) if isinstance(error, DeploymentError) else f"{type(error).__name__}: {error}"
            job.state = "failed"


class DeployRequest(BaseModel):
    """What to deploy: ``environment`` or ``config``."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    environment: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Name of a file in environments/, without its end."""
    config: dict[str, Any] | None = None
    """A whole DeploymentConfig instead."""
    name: str | None = Field(default=None, pattern=NAME)
    """Of the deployment; by default that of the environment, or the model's."""
    mode: Mode = "prod"
    """prod: a copy of the project; dev: the project itself, begun again when a file changes, with a debug log."""
    overrides: list[str] = []
    """Words such as serving.port=9000."""
    install_system_packages: bool = False
    """Packages of the distribution that are missing may be installed; needs root."""


class Agent:
    """What the API does, without HTTP."""

    def __init__(self, root: Path, project: Path = PROJECT) -> None:
        self.root, self.project = root, project
        self.jobs = Jobs()

    def deployment(self, name: str) -> LocalDeployment:
        return LocalDeployment(self.root / "deployments" / name, self.project)

    def deployments(self) -> list[LocalDeployment]:
        folder = self.root / "deployments"
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [self.deployment(name) for name in names]

    def order(self, request: DeployRequest) -> Order:
        """
        Raises:
            ConfigurationError: It cannot be used as it is.
            ResourceInsufficientError: It does not fit.
        """
        if (request.environment is None) == (request.config is None):
            raise ConfigurationError("give either environment, the name of a file in environments/, or config")
        if request.environment is not None:
            path = self.project / "environments" / f"{request.environment}.yml"
            if not path.exists():
                there = ", ".join(sorted(each.stem for each in path.parent.glob("*.yml")))
                raise ConfigurationError(f"there is no environment {request.environment!r}; there are {there}")
            config = deployment.load(path, request.overrides, {})
        elif request.overrides:
            raise ConfigurationError("overrides change an environment; write them into config")
        else:
            config = _validated(request.config or {})
        if config.deployment_type != "local":
            raise ConfigurationError(
                f"deployment_type is {config.deployment_type!r}, and this agent deploys on the machine it runs on: "
                "give deployment_type=local in overrides to try that environment here"
            )
        capacity.check(config)
        name = request.name or request.environment or config.model_name
        return Order(name, config, request.mode, request.install_system_packages)

    def deploy(self, request: DeployRequest) -> Job:
        order = self.order(request)
        found = self.deployment(order.name)
        return self.jobs.begin(order.name, "deploy", lambda report: found.deploy(order, report))

    def clean_up(self, name: str | None) -> list[Job]:
        """Of one deployment, or of all."""
        found = self.deployments() if name is None else [self.deployment(name)]
        for each in found:
            if not each.folder.is_dir():
                there = ", ".join(other.name for other in self.deployments()) or "none"
                raise UnknownDeploymentError(f"there is no deployment {each.name!r}; there are {there}")
        return [self.jobs.begin(each.name, "cleanup", each.remove) for each in found]

    def status(self, name: str | None = None) -> dict[str, Any]:
        busy = {job.name: job for job in self.jobs.running()}
        rows = []
        for each in self.deployments():
            row = each.describe()
            if each.name in busy:
                row["state"] = "deploying" if busy[each.name].kind == "deploy" else "removing"
            elif row["state"] == "deploying":
                row["state"] = "interrupted"
            rows.append(row)
        jobs = [job.describe() for job in self.jobs.all()]
        if name is not None:
            rows, jobs = [[each for each in some if each["name"] == name] for some in (rows, jobs)]
        return {"deployments": rows, "jobs": jobs}


def _validated(raw: Mapping[str, Any]) -> DeploymentConfig:
    try:
        return runconfig.validate(DeploymentConfig, raw, "config")
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error


# -- HTTP ---------------------------------------------------------------------------------------------------


def create_app(agent: Agent, keys: Keys) -> FastAPI:
    def authorized(authorization: Annotated[str | None, Header()] = None) -> None:
        keys.name_of(None if authorization is None else authorization.encode("latin-1", "replace"))

    app = FastAPI(title="Model servers on this machine", version="1", dependencies=[Depends(authorized)])
    # A page in a browser can be made to ask 127.0.0.1 under another name; it has no token either.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.exception_handler(DeploymentError)
    def refuse(_: Request, error: DeploymentError) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__, "reason": str(error)}, STATUSES.get(type(error), 422))

    @app.exception_handler(AuthenticationError)
    def unknown_caller(_: Request, __: AuthenticationError) -> JSONResponse:
        reason = f"send Authorization: Bearer and the token in {agent.root / 'token'}"
        return JSONResponse({"error": "AuthenticationError", "reason": reason}, 401, {"WWW-Authenticate": "Bearer"})

    @app.post("/api/v1/local/deploy", status_code=202)
    def deploy(request: DeployRequest) -> dict[str, Any]:
        """Check it, then deploy it in the background; the job's progress is in ``status``."""
        return agent.deploy(request).describe()

    @app.get("/api/v1/local/status")
    def status(name: Annotated[str | None, Query(pattern=NAME)] = None, job: str | None = None) -> dict[str, Any]:
        """Deployments and jobs; those of one name, or one job."""
        if job is not None:
            return agent.jobs.of(job).describe()
        return agent.status(name)

    @app.delete("/api/v1/local/cleanup", status_code=202)
    def clean_up(name: Annotated[str | None, Query(pattern=NAME)] = None) -> dict[str, Any]:
        """Stop and remove one deployment, or all of them."""
        return {"jobs": [job.describe() for job in agent.clean_up(name)]}

    return app


def serve(root: Path, port: int) -> int:
    os.chdir(PROJECT)  # models/... of an environment begins there
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: an agent is at work in {root}: {_address(root) or 'it is starting'}", file=sys.stderr)
            return USAGE
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError as error:
                print(f"error: cannot listen on {HOST}:{port}: {error.strerror}; use --port", file=sys.stderr)
                return USAGE
            token = _token(root)
            url = f"http://{HOST}:{listener.getsockname()[1]}"
            (root / "agent.json").write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
            print(f"agent on {url}, token in {token}; Ctrl-C ends it, what it deployed runs on", file=sys.stderr)
            app = create_app(Agent(root), read_keys(token))
            # uvicorn raises a signal again once it has ended in order.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
            except KeyboardInterrupt:
                pass
            finally:
                (root / "agent.json").unlink(missing_ok=True)
    return OK


def _token(root: Path) -> Path:
    """The file with it, which only its owner reads."""
    path = root / "token"
    if not path.exists():
        with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"agent:{secrets.token_urlsafe(32)}\n")
    return path


def _address(root: Path) -> str | None:
    try:
        url: str = json.loads((root / "agent.json").read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError):
        return None
    return url


# -- its clients --------------------------------------------------------------------------------------------


class Client:
    """Asks the agent of ``root``.

    Raises:
        DeploymentError: From every method: it refused, or none answers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def ask(self, method: str, verb: str, params: Mapping[str, str] | None = None, body: Any = None) -> dict[str, Any]:
        url = _address(self.root)
        if url is None:
            raise NoAgentError(f"no agent is at work in {self.root}")
        token = (self.root / "token").read_text(encoding="utf-8").strip().rpartition(":")[2]
        headers = {"Authorization": f"Bearer {token}"}
        try:
            answer = httpx2.request(
                method, f"{url}/api/v1/local/{verb}", params=params, json=body, headers=headers, timeout=60
            )
        except httpx2.HTTPError as error:
            raise NoAgentError(f"the agent at {url} does not answer: {error}") from error
        found: dict[str, Any] = answer.json()
        if answer.status_code >= 400:
            raise ConfigurationError(found.get("reason") or json.dumps(found.get("detail", found), ensure_ascii=False))
        return found

    def start(self, port: int) -> None:
        """An agent in the background, unless one answers."""
        with contextlib.suppress(NoAgentError):
            self.ask("GET", "status")
            return
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.root / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "infra.agent", "--root", str(self.root), "serve", "--port", str(port)],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + AGENT_START_S
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(NoAgentError):
                self.ask("GET", "status")
                return
            time.sleep(0.1)
        raise ConfigurationError(f"the agent did not start: {(self.root / 'agent.log').read_text()[-500:].strip()}")

    def follow(self, job: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
        """Until ``job`` is over, with a bar for people."""
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn()
        with Progress(*columns, console=_stderr(), disable=quiet) as progress:
            bar = progress.add_task(f"{job['kind']} {job['name']}", total=1.0, step=job["step"])
            while job["state"] == "running":
                time.sleep(0.2)
                job = self.ask("GET", "status", {"job": job["id"]})
                progress.update(bar, completed=job["progress"], step=job["step"])
        return job


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    client = Client(options.root)
    try:
        match options.verb:
            case "serve":
                return serve(options.root, options.port)
            case "deploy":
                return _deploy(client, options)
            case "status":
                return _status(client, options)
            case "cleanup":
                return _clean_up(client, options)
            case _:
                return _shut_down(client)
    except DeploymentError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, NoAgentError) else USAGE


def _deploy(client: Client, options: argparse.Namespace) -> int:
    body = {
        "environment": Path(options.environment).stem,
        "mode": "dev" if options.dev else "prod",
        "overrides": options.overrides,
        "install_system_packages": options.install_system_packages,
    }
    if options.name:
        body["name"] = options.name
    client.start(options.port)
    job = client.follow(client.ask("POST", "deploy", body=body), quiet=options.json)
    row: dict[str, Any] = next((each for each in client.ask("GET", "status", {"name": job["name"]})["deployments"]), {})
    if options.json:
        print(json.dumps({"job": job, "deployment": row}, ensure_ascii=False))
    elif job["state"] == "failed":
        print(f"error: {job['step']}: {job['error']}", file=sys.stderr)
    else:
        print(f"{row['name']} answers at {row['url']} (first answer in {row['answered_in_s']} s); log: {row['log']}")
    return OK if job["state"] == "succeeded" else FAILED


def _status(client: Client, options: argparse.Namespace) -> int:
    found = client.ask("GET", "status")
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return OK
    for row in found["deployments"]:
        print(f"{row['name']:<20} {row['state']:<12} {row.get('mode', ''):<5} {row.get('url', ''):<28} {row['log']}")
    if not found["deployments"]:
        print("nothing is deployed")
    return OK


def _clean_up(client: Client, options: argparse.Namespace) -> int:
    client.start(options.port)
    params = {"name": options.name} if options.name else None
    jobs = [client.follow(job, quiet=options.json) for job in client.ask("DELETE", "cleanup", params)["jobs"]]
    if options.json:
        print(json.dumps({"jobs": jobs}, ensure_ascii=False))
    for job in jobs:
        if job["error"] is not None:
            print(f"error: {job['name']}: {job['error']}", file=sys.stderr)
        elif not options.json:
            print(f"{job['name']} is stopped and removed")
    return OK if all(job["state"] == "succeeded" for job in jobs) else FAILED


def _shut_down(client: Client) -> int:
    client.ask("GET", "status")
    pid = json.loads((client.root / "agent.json").read_text(encoding="utf-8"))["pid"]
    os.kill(pid, signal.SIGTERM)
    print("the agent ends; what it deployed runs on")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.agent",
        description="Deploy model servers on this machine, each in a virtual environment of its own.",
        epilog=EXAMPLES.format(root=ROOT, host=HOST, port=PORT),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of everything it makes (%(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = {
        name: verbs.add_parser(name, help=text)
        for name, text in {
            "serve": "the agent, in the foreground",
            "deploy": "deploy an environment, and wait until it has answered",
            "status": "what is deployed",
            "cleanup": "stop and remove a deployment, or all",
            "shutdown": "end the agent; what it deployed runs on",
        }.items()
    }
    for name in ("serve", "deploy", "cleanup"):
        verb[name].add_argument("--port", type=int, default=PORT, help="of an agent that is started (%(default)s)")
    for name in ("deploy", "status", "cleanup"):
        verb[name].add_argument("--json", action="store_true", help="one JSON object on stdout")
    verb["deploy"].add_argument("environment", help="name of a file in environments/, for example local")
    verb["deploy"].add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    verb["deploy"].add_argument("--name", help="of the deployment; by default that of the environment")
    verb["deploy"].add_argument(
        "--dev", action="store_true", help="the project itself, begun again on changes; debug log"
    )
    verb["deploy"].add_argument(
        "--install-system-packages",
        action="store_true",
        help="allow apt-get or dnf where a library is missing; as root",
    )
    verb["cleanup"].add_argument("name", nargs="?", help="all without one")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
