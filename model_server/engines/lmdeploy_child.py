"""Starts LMDeploy's API server with its key kept out of the command line. Run by LMDeploy's own Python.

LMDeploy takes keys as arguments only, and arguments are for everyone to read (``ps``). The first line of
standard input is the key; it stays open after that, and its end means that the server which started this
process is gone: then this one drains and ends too, instead of keeping the GPU.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing.managers import BaseManager

ORPHAN_GRACE_S = 30.0
MANAGER_GRACE_S = 1.0


def main() -> None:
    # Never through sys.stdin: a thread that waits in it holds its lock, and the process that multiprocessing
    # forks for the PyTorch engine would wait for that lock for ever.
    key = b""
    while not key.endswith(b"\n"):
        key += os.read(0, 1) or b"\n"
    threading.Thread(target=_follow_parent, daemon=True).start()
    # With "=": a key that begins with "-" would be taken for an option, refused, and printed.
    sys.argv = ["lmdeploy", *sys.argv[1:], f"--api-keys={key.decode().strip()}"]
    _let_managers_finish()
    from lmdeploy.cli import run

    run()


def _let_managers_finish() -> None:
    """Mend a race of the PyTorch backend that ended 4 of 18 starts with EOFError.

    LMDeploy 0.18 learns the port of its engine process through a ``multiprocessing`` manager and shuts that
    down at once, while the engine process may still wait for the manager to take back a lock
    (pytorch/engine/mp_engine/zmq_engine.py, ``_start_mp_proc`` and ``_mp_proc``).
    """
    leave = BaseManager.__exit__

    def leave_late(manager: BaseManager, *error: object) -> None:
        time.sleep(MANAGER_GRACE_S)
        leave(manager, *error)  # type: ignore[arg-type]

    BaseManager.__exit__ = leave_late  # type: ignore[method-assign]


def _follow_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # A SIGTERM may hang in ZeroMQ; the parent made this process the leader of its group.
    time.sleep(ORPHAN_GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":  # its engine is a spawned process, which imports this file again
    main()
