"""Start the server; see the package."""

from __future__ import annotations

import gc
import json
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from benchmarks.truth_server import modes
from benchmarks.truth_server.server import Server
from benchmarks.truth_server.settings import Truth
from runconfig import ConfigError, load


def main(words: Sequence[str]) -> int:
    try:
        truth = load(Truth, None, words)
        modes.split(truth.mode)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"error: there is no mode {error.args[0]!r}: use {', '.join(modes.MODES)}", file=sys.stderr)
        return 2
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        listener = socket.create_server((truth.host, truth.port), backlog=4096)
    except OSError as error:
        print(f"error: cannot listen on {truth.host}:{truth.port}: {error.strerror or error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    print(json.dumps({"url": f"http://{truth.host}:{listener.getsockname()[1]}"}), flush=True)
    # A full collection walks over the log of all requests: milliseconds in which nothing is written.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    Server(truth, listener).run()
    return 0


def _leave(_number: int, _frame: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
