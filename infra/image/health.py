"""HEALTHCHECK of the image: GET /health of the server in this container, where its own settings say it listens.

The settings are read as the server reads them (file < MODEL_SERVER_* < key=value words), from the command line
of the running server. Exit 0: it answered 200; 1: it did not, and why.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path

from model_server import deployment

TIMEOUT_S = 4
SERVER = ["-m", "model_server"]


def words(proc: Path = Path("/proc")) -> list[str]:
    """What follows ``-m model_server`` in the oldest process that has it; PID 1 unless started with ``--init``.

    Raises:
        LookupError: No server runs.
    """
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        try:
            argv = (proc / str(pid) / "cmdline").read_bytes().decode().split("\0")[:-1]
        except OSError:  # ended meanwhile
            continue
        if argv[1:3] == SERVER:
            return argv[3:]
    raise LookupError("no process runs `python -m model_server`")


def url(environment: str, *overrides: str) -> str:
    serving = deployment.load(environment, overrides, os.environ).serving
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)  # noqa: S104  every address: ask the nearest
    return f"http://[{host}]:{serving.port}/health" if ":" in host else f"http://{host}:{serving.port}/health"


def main() -> int:
    try:
        with urllib.request.urlopen(url(*words()), timeout=TIMEOUT_S) as answer:  # noqa: S310  http, see url()
            return 0 if answer.status == 200 else 1
    except (OSError, LookupError, ValueError, TypeError) as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
