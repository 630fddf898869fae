"""LMDeploy's watchdog with a socket in systemd's place and a launcher that answers /health as it is told.

With LMDeploy, and systemd: ``tests/playbooks/test_lmdeploy.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HEARTBEAT_S = 0.05
LAUNCHER = """\
import http.server, json, os, sys, threading
from pathlib import Path

folder = Path(sys.argv[1])
(folder / "key").write_bytes(os.read(0, 100))

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code, status = (folder / "health").read_text().split()
        self.send_response(int(code))
        self.end_headers()
        self.wfile.write(json.dumps({"status": status, "message": "as planted"}).encode())

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.read(0, 1)
(folder / "ended").touch()
"""


class Systemd:
    """What it was told."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def told(self, seconds):
        """Lines of so many seconds."""
        lines, until = [], time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                lines += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
        return lines

    def waits_for(self, line, seconds=30):
        until = time.monotonic() + seconds
        while line not in self.told(HEARTBEAT_S * 4):
            assert time.monotonic() < until, f"never told {line}"


@pytest.fixture
def systemd(tmp_path):
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.socket.close()


@pytest.fixture
def unit(tmp_path, systemd):
    """The main process of the unit."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "key").write_text("LMDEPLOY_API_KEY=-a-key\n")
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "health").write_text("503 initializing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [tmp_path / "launcher.py", tmp_path, "--server-port", str(port)]
    environ = os.environ | {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": str(round(HEARTBEAT_S * 4e6)),
        "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials"),
    }
    command = [sys.executable, "-m", "model_server.engines.lmdeploy_watchdog", *words]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        yield psutil.Process(process.pid)
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()


def test_it_is_ready_once_the_body_says_healthy_and_alive_only_while_it_does(unit, systemd, tmp_path):
    systemd.waits_for("STATUS=initializing: as planted")
    assert {"READY=1", "WATCHDOG=1"} & set(systemd.told(HEARTBEAT_S * 8)) == set()

    (tmp_path / "health").write_text("200 healthy")
    systemd.waits_for("READY=1")
    assert systemd.told(HEARTBEAT_S * 20).count("WATCHDOG=1") >= 4

    (tmp_path / "health").write_text("200 sleeping")  # the code is a healthy one's
    systemd.waits_for("STATUS=sleeping: as planted")
    assert "WATCHDOG=1" not in systemd.told(HEARTBEAT_S * 8)

    (tmp_path / "health").write_text("200 healthy")
    systemd.waits_for("WATCHDOG=1")


def test_the_main_process_is_the_launcher_and_the_key_comes_on_its_standard_input(unit, systemd, tmp_path):
    systemd.waits_for("STATUS=initializing: as planted")
    assert Path(unit.cmdline()[1]).name == "launcher.py"
    assert (tmp_path / "key").read_bytes() == b"-a-key\n"
    [watchdog] = unit.children()
    assert "-a-key" not in " ".join([*unit.cmdline(), *watchdog.cmdline()])


def test_the_launcher_learns_that_its_watchdog_is_gone(unit, systemd, tmp_path):
    systemd.waits_for("STATUS=initializing: as planted")
    [watchdog] = unit.children()
    watchdog.kill()
    unit.wait(30)
    assert (tmp_path / "ended").exists()
