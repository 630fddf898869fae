"""What systemd is told, as sd_notify(3) has it: ready, reloading, stopping, alive.

The heartbeat is tied to the engine's progress by its caller: a server that still answers /health while its
engine hangs must be restarted, so it must not say that it is alive.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Says nothing when the process was not started by systemd with Type=notify."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        own = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        usec = environ.get("WATCHDOG_USEC", "")
        self.heartbeat_s = int(usec) / 2e6 if own and usec.isdigit() and int(usec) > 0 else None
        """Half of WatchdogSec, as sd_watchdog_enabled(3) advises; None without a watchdog."""

    def ready(self, status: str = "") -> None:
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """Before a reload; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A manager that does not read fills its queue after 10 messages; this loop must not wait for it.
            sock.settimeout(0.1)
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return  # the manager went away; serving goes on
