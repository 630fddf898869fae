"""When data arrived, as the kernel stamped it, on perf_counter.

Source: SO_TIMESTAMPNS, https://www.kernel.org/doc/html/latest/networking/timestamping.html. 10 us from a write to its
stamp on loopback, 1.4 us of CPU for a read more than without (2026-11-23).
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterable

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it
_TIMESPEC = struct.Struct("qq")
SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
"""Bytes of ancillary data that ``recvmsg`` needs for a stamp."""
TRUST_S = 60.0  # data that would have waited longer were stamped by a clock that was set since
LOOK_S = 0.25  # the wall clock is steered, by up to 500 us a second


def ask_for(connection: socket.socket) -> None:
    """Have the kernel stamp what ``connection`` receives; on other systems than Linux nothing is stamped."""
    if sys.platform == "linux":
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


# Linux begins to stamp some time after the first socket asked, in a work queue (net_enable_timestamp), and ends with
# the last one. One that asks as long as this process lives keeps first events from going without.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as _asking:
    ask_for(_asking)
    _asking.detach()


def moment(notes: Iterable[tuple[int, int, bytes]], now: float) -> float:
    """When the last segment came of what ``recvmsg`` read with ``notes``; ``now`` where there is no stamp.

    Args:
        now: perf_counter, right after reading.
    """
    for level, kind, stamp in notes:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(stamp)
            return _clocks.at(seconds + nanoseconds * 1e-9, now)
    return now


class _Clocks:
    """Relates the kernel's wall clock to perf_counter."""

    def __init__(self) -> None:
        self._look(time.perf_counter())

    def at(self, wall: float, now: float) -> float:
        """``wall`` on perf_counter; ``now`` where the wall clock was set in between."""
        if now - self._looked_at > LOOK_S:
            self._look(now)
        found = wall - self._offset
        return min(found, now) if now - found < TRUST_S else now

    def _look(self, now: float) -> None:
        self._looked_at = now
        # The shortest of a few looks: a pause between the two reads would be taken for an offset.
        looks = []
        for _ in range(5):
            before = time.perf_counter()
            wall = time.time()
            after = time.perf_counter()
            looks.append((after - before, wall - (before + after) / 2))
        self._offset = min(looks)[1]


_clocks = _Clocks()
