"""``python killed_rollout.py MOMENT TRACE ARGUMENTS``: a rollout that is killed at one of its moments.

``within up#2`` is the second of that name; ``none`` kills nothing. The name of every moment goes to the file TRACE, one
a line. The whole process group dies, as at a power cut; with ``alone:`` before the name the rollout alone, which leaves
behind what it has started.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from infra import gate, rollout
from infra.lease import Lease
from infra.rollout_site import Site

WITHIN_UP = {
    "within up": r" (creat|updat|delet)(ing|ed)\b",
    "within creation": r"Deployment qwen3-inference-canary-deployment creating",
}
"""Moments, and what the engine has written by then."""
ONLY_WRITTEN = "ONLY_WRITTEN" in os.environ
"""The cluster is a folder, which cannot be read."""


class Killer:
    def __init__(self, moment: str, trace: str) -> None:
        self.at, self.alone, self.trace = moment.removeprefix("alone:"), moment.startswith("alone:"), Path(trace)
        self.seen = Counter()

    def moment(self, name: str) -> None:
        self.seen[name] += 1
        name = f"{name}#{self.seen[name]}"
        with self.trace.open("a") as file:
            file.write(f"{name}\n")
        if name == self.at:
            (os.kill if self.alone else os.killpg)(os.getpid(), signal.SIGKILL)

    def around(self, owner, name: str) -> None:
        """Before and after each call of a method."""
        method = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.moment(f"before {name}")
            found = method(*args, **kwargs)
            self.moment(f"after {name}")
            return found

        setattr(owner, name, wrapped)

    def within_up(self) -> None:
        """As soon as the engine says so."""
        method = Site._alone

        def wrapped(site, operation):
            log = site.folder / "pulumi.log"
            begin, over = log.stat().st_size if log.exists() else 0, threading.Event()

            def watch():
                left, ended = dict(WITHIN_UP), False
                while not ended:
                    ended = over.is_set()  # and then once more: what was written last counts in every run
                    text = log.read_bytes()[begin:].decode() if log.exists() else ""
                    for name in [name for name, pattern in left.items() if re.search(pattern, text)]:
                        del left[name]
                        # A second later an API server has the object, and the engine waits for its pods. In a folder
                        # it is written at once, and `up` may be over by then.
                        if name == "within up" or ONLY_WRITTEN or not over.wait(1):
                            self.moment(name)
                    time.sleep(0.02)

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                return method(site, operation)
            finally:
                over.set()
                thread.join()

        Site._alone = wrapped

    def within_gate(self) -> None:
        run = gate.subprocess.run

        def wrapped(command, **options):
            timer = threading.Timer(0.5, lambda: self.moment("within gate"))
            timer.start()
            try:
                return run(command, **options)
            finally:
                timer.join()

        gate.subprocess = SimpleNamespace(run=wrapped, DEVNULL=gate.subprocess.DEVNULL)


def main() -> int:
    killer = Killer(*sys.argv[1:3])
    if ONLY_WRITTEN:
        Site.refresh = Site.recover = lambda _: None
    for owner, name in ((Site, "write"), (Site, "up"), (Site, "forget"), (Site, "note"), (Lease, "end")):
        killer.around(owner, name)
    killer.around(rollout, "ask_gate")
    killer.within_up()
    killer.within_gate()
    return rollout.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
