"""Starts LMDeploy under systemd, and says that it is alive for as long as its engine is. Run by LMDeploy's own Python.

    python -m model_server.engines.lmdeploy_watchdog LAUNCHER serve api_server MODEL --server-port PORT ...

LMDeploy's API process outlives its engine and restarts nothing, so ``Restart=`` alone would never fire;
``WatchdogSec=`` does, and what this process says decides. It forks: one half becomes the launcher (lmdeploy_child.py),
since LMDeploy has to be the unit's main process, which alone gets SIGTERM under KillMode=mixed and then finishes its
streams. The other half asks ``/health`` and reads the body: the code is 200 for an engine that sleeps, too.

The key is systemd's credential ``key``, a file with the line ``LMDEPLOY_API_KEY=...``. It goes through the pipe that is
the launcher's standard input and that only this half holds open: if this half is gone, LMDeploy drains and ends, and
systemd starts both anew.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model_server.engines import LMDEPLOY_KEY
from model_server.systemd import Notifier

WITHOUT_WATCHDOG_S = 10.0
"""Between two looks where the unit has no WatchdogSec."""


def main(words: Sequence[str]) -> None:
    port = int(words[words.index("--server-port") + 1])
    line = (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "key").read_text().strip()
    key = line.removeprefix(f"{LMDEPLOY_KEY}=")
    notifier = Notifier()  # before the fork: systemd expects the heartbeat of the main process's id
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.write(writing, f"{key}\n".encode())
        watch(notifier, port)
    os.dup2(reading, sys.stdin.fileno())
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606  no shell is meant; the pipe's other ends close


def watch(notifier: Notifier, port: int) -> None:
    """For ever: systemd kills it with the rest of the unit."""
    period_s = WITHOUT_WATCHDOG_S if notifier.heartbeat_s is None else notifier.heartbeat_s / 2
    said = ""
    while True:
        status, message = health(port, timeout_s=period_s * 2)
        if status == "healthy":
            notifier.alive()
        if status != said:
            print(f"lmdeploy is {status}: {message}", file=sys.stderr, flush=True)
            if status == "healthy":
                notifier.ready(status)
            else:
                notifier.status(f"{status}: {message}")
            said = status
        time.sleep(period_s)


def health(port: int, *, timeout_s: float) -> tuple[str, str]:
    """The status that LMDeploy gives itself and why, or "silent"."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        document = json.loads(connection.getresponse().read())
        return str(document["status"]), str(document.get("message", ""))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return "silent", f"{type(error).__name__}: {error}"
    finally:
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
