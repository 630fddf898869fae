"""What each instance was doing when it was taken out of service, as HAProxy says."""

from __future__ import annotations

import http.client
import re
import threading
import time
from dataclasses import dataclass

LEFT_S = 2.0
PERIOD_S = 0.1
_STATE = re.compile(r'haproxy_server_status\{proxy="model_servers",server="([^"]+)",state="(\w+)"\} 1')
_SESSIONS = re.compile(r'haproxy_server_current_sessions\{proxy="model_servers",server="([^"]+)"\} (\d+)')


@dataclass
class Drain:
    """One instance that was sent no more requests."""

    instance: str
    began: float
    sessions: int
    left: int | None = None
    """Sessions that went on for 2 s or more. None can have begun meanwhile."""


class Drains:
    """Looks at a balancer ten times a second within its context."""

    def __init__(self, balancer):
        self._address = balancer.address
        self.found: list[Drain] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _look(self):
        open_now: dict[str, Drain] = {}
        while not self._stop.wait(PERIOD_S):
            now, text = time.monotonic(), self._metrics()
            sessions = {name: int(number) for name, number in _SESSIONS.findall(text)}
            for name, state in _STATE.findall(text):
                if state == "DRAIN":
                    drain = open_now.setdefault(name, Drain(name, now, sessions[name]))
                    if drain.left is None and now - drain.began >= LEFT_S:
                        drain.left = sessions[name]
                elif state == "UP" and name in open_now:  # and not DOWN, which it is while it starts again
                    self.found.append(open_now.pop(name))
        self.found += open_now.values()

    def _metrics(self):
        connection = http.client.HTTPConnection(self._address, 8405, timeout=5)
        try:
            connection.request("GET", "/metrics?scope=server")
            return connection.getresponse().read().decode()
        except OSError:
            return ""
        finally:
            connection.close()
