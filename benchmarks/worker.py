"""``worker``: send load for a benchmark that runs on another host."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from benchmarks.command_line import parser, words_of
from benchmarks.errors import UsageError

DESCRIPTION = """\
Send load for a benchmark that runs elsewhere. Start the benchmark there with remote_workers=1 and
workers_listen=0.0.0.0:5557, then this here, with the same version of the project. An API key is not sent over: set the
variable that api_key_env names here too.
"""


def main(words: Sequence[str]) -> int:
    options = parser("worker", DESCRIPTION, "worker master=10.0.0.5:5557")
    options.add_argument("settings", nargs="+", metavar="master=HOST:PORT")
    address = words_of(options.parse_args(words).settings, ["master"])["master"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"master must be HOST:PORT, got {address!r}")
    # A program of its own: Locust has to patch the interpreter before anything else is imported.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.workers", host, port])  # noqa: S606  no shell wanted
