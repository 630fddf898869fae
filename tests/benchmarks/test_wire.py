"""How long data may have lain before a greenlet read it; in a process of its own, since Locust patches all of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

READER = """
from locust import FastHttpUser  # patches
import json, socket, sys, time
import gevent, gevent.monkey
from benchmarks import stamps
from benchmarks.wire import Arrival, turns

listener = socket.create_server(("127.0.0.1", 0))
there = socket.create_connection(listener.getsockname())
here, _ = listener.accept()
stamps.ask_for(here)
turns()
arrival, found = Arrival(here), []
pauses = json.loads(sys.argv[1])

def write():
    for pause in pauses:
        time_sleep(pause)
        there._sock.send(b"x")

def read():
    while sum(len(data) for data, _ in found) < len(pauses):
        data, _ = arrival.read()
        found.append((data, turns().window_s()))

def work():
    gevent.sleep(0.04)
    end = time.perf_counter() + float(sys.argv[2])
    while time.perf_counter() < end:
        with gevent.Timeout(1):  # sets the loop's clock, as each request does
            pass

time_sleep = gevent.monkey.get_original("time", "sleep")
start = gevent.monkey.get_original("_thread", "start_new_thread")
reader, worker = gevent.spawn(read), gevent.spawn(work)
gevent.sleep(0)
start(write, ())
gevent.joinall([reader, worker])
print(json.dumps([[len(data), window] for data, window in found]))
"""


def read(pauses, busy_s):
    words = [json.dumps(pauses), str(busy_s)]
    done = subprocess.run(
        [sys.executable, "-c", READER, *words], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_what_came_while_the_process_was_busy_may_be_as_old_as_its_work():
    """Written at 60 and 80 ms, read when the work from 40 to 240 ms is done."""
    (count, window), *rest = read([0.06, 0.02], busy_s=0.2)

    assert (count, rest) == (2, [])
    assert window == pytest.approx(0.2, rel=0.25)


def test_what_an_idle_process_waited_for_is_fresh():
    for attempt in range(3):  # another process may have had the CPU
        found = read([0.12, 0.05, 0], busy_s=0.01)
        if max(window for _, window in found) < 0.005:
            break
        assert attempt < 2, found
