"""All of a laptop's monitoring with one command: server (or Ollama's recording), file monitor, page; Ctrl-C ends all.

python -m monitoring.laptop [environment=environments/local.yml | ollama=http://127.0.0.1:11434] [logs=logs]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import runconfig
from model_server import deployment
from model_server.deployment import DeploymentConfig, Serving
from model_server.errors import ConfigurationError
from monitoring.files import OK, USAGE, Settings, Url, say
from runconfig import ConfigError, RunConfig

DESCRIPTION = """\
Start, in this order, and end together:

  1. our model server, as the environment describes it (not with ollama=: that one runs already)
  2. python -m monitoring.files: the machine's minutes; with ollama= the recording proxy too
  3. python -m monitoring.dashboard: the page

keys:
  environment=environments/local.yml   what the server serves
  ollama=URL                           record a plain Ollama instead
  listen=127.0.0.1:11435               where Ollama's recording proxy listens
  logs=logs                            the folder of the daily files
  wait=false                           wait for an Ollama that does not answer yet
"""
EXAMPLES = """\
examples:
  python -m monitoring.laptop
  python -m monitoring.laptop ollama=http://127.0.0.1:11434 logs=/tmp/logs

Ctrl-C, SIGTERM or closing the terminal ends all, the server after what it has accepted; a second Ctrl-C does at once.
exit codes: 0 ended when told; 1 one of them ended by itself (it says why), and with it the others; 2 usage; otherwise
the code of the one that ended (4: Ollama does not answer)
"""
FAILED = 1

CLOSING_S = 15.0
"""To end in, after a server's drain_s for what it has accepted."""

_LOOK_S = 0.1


class _Asked(RunConfig):
    environment: Path = Path("environments/local.yml")
    ollama: Url | None = None
    listen: str = Settings().listen
    logs: Path = Path("logs")
    wait: bool = False


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.laptop",
        usage="python -m monitoring.laptop [environment=FILE | ollama=URL] [logs=FOLDER] [key=value ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see above")
    try:
        asked = runconfig.load(_Asked, None, parser.parse_intermixed_args(words).settings)
        config = deployment.load(asked.environment) if asked.ollama is None else None
    except (ConfigError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    code, first = run(_commands(asked, config), CLOSING_S + (config.serving.drain_s if config else 0))
    print(json.dumps({"logs": str(asked.logs), "ended_first": first, "exit_code": code}))
    return code


def _commands(asked: _Asked, config: DeploymentConfig | None) -> dict[str, list[str]]:
    """What is started, in order: module -> its words."""
    logs = f"logs={asked.logs}"
    if config is None:
        beside, server = f"ollama={asked.ollama}", {}
        page = [logs, beside]
        monitor = [beside, f"listen={asked.listen}", f"wait={str(asked.wait).lower()}"]
    else:
        port = config.serving.port or Serving().port
        beside = f"server=http://127.0.0.1:{port}"
        server = {"model_server": [str(asked.environment), f"serving.port={port}", f"serving.log_dir={asked.logs}"]}
        monitor = [beside, "wait=true"]
        page = [logs, beside, f"environment={asked.environment}"]
    return server | {"monitoring.files": [logs, *monitor], "monitoring.dashboard": page}


def run(commands: dict[str, list[str]], stop_s: float) -> tuple[int, str | None]:
    """Start all, wait for a signal or for one of them to end, end the others within ``stop_s``.

    Returns:
        The exit code, and which one ended by itself.
    """
    told = threading.Event()
    setpriv = shutil.which("setpriv")
    orphaned = [] if setpriv is None else [setpriv, "--pdeathsig", "TERM"]
    running: dict[str, subprocess.Popen[bytes]] = {}
    with _signals(told.set):
        first: str | None = None
        for module, words in commands.items():
            # A session of its own: Ctrl-C is for us, who then end them in order. If we are killed they end too.
            line = [*orphaned, sys.executable, "-m", module, *words]
            running[module] = subprocess.Popen(line, stdout=sys.stderr, start_new_session=True)
        while not told.is_set() and first is None:
            time.sleep(_LOOK_S)
            first = next((module for module, process in running.items() if process.poll() is not None), None)
        told.clear()
        _end(running, stop_s, told.is_set)
    if first is None:
        return OK, None
    code = running[first].returncode
    say(f"python -m {first} ended by itself (exit code {code}), and with it the rest")
    return code if code > 0 else FAILED, first


@contextlib.contextmanager
def _signals(then: Callable[[], object]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal was closed
    before = {number: signal.signal(number, lambda *_: then()) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _end(running: dict[str, subprocess.Popen[bytes]], stop_s: float, at_once: Callable[[], bool]) -> None:
    """SIGTERM to all, from the last that was started; SIGKILL to whoever is left when time is up, or told again."""
    for process in reversed(running.values()):
        process.terminate()
    end = time.monotonic() + stop_s
    while any(process.poll() is None for process in running.values()):
        if at_once() or time.monotonic() > end:
            for process in running.values():
                process.kill()
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
