"""The kernel says when data came, whenever they are read."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from benchmarks import stamps


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        writer = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
    stamps.ask_for(reader)
    with writer, reader:
        yield writer, reader


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps")
def test_data_that_were_read_late_have_the_time_at_which_they_came(pair):
    writer, reader = pair
    for _ in range(3):
        before = time.perf_counter()
        writer.sendall(b"x")
        after = time.perf_counter()
        time.sleep(0.1)
        data, notes, _, _ = reader.recvmsg(10, stamps.SPACE)

        found = stamps.moment(notes, time.perf_counter())

        assert data == b"x"
        assert before - 0.001 <= found <= after + 0.005


def test_without_a_stamp_the_time_of_reading_stands():
    assert stamps.moment([], 12.5) == 12.5
    assert stamps.moment([(socket.SOL_SOCKET, 9999, b"12345678" * 2)], 12.5) == 12.5


def test_a_wall_clock_that_was_set_is_not_believed(monkeypatch):
    """An hour forward between the last look and a stamp would put the data an hour into the past or future."""
    clocks = stamps._Clocks()
    now = time.perf_counter()
    wall = time.time()

    assert abs(clocks.at(wall, now + 0.01) - now) < 0.005
    assert clocks.at(wall - 3600, now) == now
    assert clocks.at(wall + 3600, now) == now
