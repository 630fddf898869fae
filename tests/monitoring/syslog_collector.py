"""The far end of log shipping: RFC 5424 over TCP, a message a line, as monitoring/log_shipping.conf.j2 writes it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

MESSAGE = re.compile(
    r'<(?P<priority>\d+)>1 (?P<time>\S+) (?P<node>\S+) (?P<app>\S+) - - \[qwen3@32473 namespace="(?P<namespace>[^"]*)" '
    r'pod="(?P<pod>[^"]*)" container="(?P<container>[^"]*)" stream="(?P<stream>[^"]*)"\] (?P<line>.*)'
)


class Collector:
    """Takes connections on ``host`` and keeps their lines, until it is closed."""

    def __init__(self, port=0, host="127.0.0.1"):
        self.listener = socket.create_server((host, port))
        self.port = self.listener.getsockname()[1]
        self.received = []
        self.connections = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def data(self):
        return b"".join(self.received)

    def _accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection):
        """Whole lines: rsyslog may have a connection for each of its workers."""
        rest = b""
        try:
            while data := connection.recv(65536):
                whole, end, rest = (rest + data).rpartition(b"\n")
                self.received.append(whole + end)
        except OSError:
            return

    def close(self):
        with contextlib.suppress(OSError):  # closed before
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            connection.close()

    def messages(self):
        return [MESSAGE.fullmatch(line) for line in self.data.decode().splitlines()]
