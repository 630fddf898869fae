"""The other end of NOTIFY_SOCKET is a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket

import fake_engine
import pytest

from model_server.server import _heartbeat
from model_server.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(socket that receives, value of NOTIFY_SOCKET)"""
    name = f"qwen3-stack-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"\0{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5)
        yield sock, address.replace("\0", "@")


def test_the_manager_hears_what_happens(manager):
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})

    notifier.ready("serving")
    notifier.reloading()
    notifier.stopping()
    notifier.alive()

    said = [sock.recv(4096).decode() for _ in range(4)]
    assert said[0] == "READY=1\nSTATUS=serving"
    assert said[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said[2:] == ["STOPPING=1", "WATCHDOG=1"]


def test_without_a_manager_nothing_is_said():
    notifier = Notifier({})
    notifier.ready()
    assert notifier.heartbeat_s is None


def test_a_manager_that_went_away_does_no_harm(tmp_path):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_manager_that_does_not_listen_holds_nobody_up(manager):
    """Linux queues 10 datagrams for a unix socket and then lets the sender wait."""
    _, address = manager
    for _ in range(15):
        Notifier({"NOTIFY_SOCKET": address}).alive()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_heart_beats_twice_per_watchdog_time(environ, expected):
    assert Notifier(environ).heartbeat_s == expected


async def test_the_heart_stops_while_the_engine_hangs(manager):
    sock, address = manager
    sock.setblocking(False)
    engine = fake_engine.FakeEngine()
    await engine.load()

    async def beats():
        heart = asyncio.create_task(_heartbeat(Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}), engine))
        await asyncio.sleep(0.22)
        heart.cancel()
        count = 0
        while True:
            try:
                assert sock.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return count
            count += 1

    assert await beats() >= 2
    engine.state = "stalled"
    assert await beats() == 0
    engine.state = "ready"
    assert await beats() >= 2
