"""When requests are due and which calls they carry: decided before the run, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def constant_rate(rate_per_s: float, begin: float) -> Iterator[float]:
    """Absolute moments, ``1 / rate_per_s`` apart. Each counts from ``begin``, so lateness does not add up."""
    number = 0
    while True:
        yield begin + number / rate_per_s
        number += 1


def order_of_calls(count: int, *, seed: int, pair: int, shuffled: bool) -> Iterator[int]:
    """Positions of the calls to send, for ever: all of them once, then all again in another order.

    Both runs of a ``pair`` get the same order, whatever their side.
    """
    chance = random.Random(f"{seed}/{pair}")
    positions = list(range(count))
    while True:
        if shuffled:
            chance.shuffle(positions)
        yield from positions
