"""CPU of a process and all its descendants while a load lasts, from what the kernel counts of each thread."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_S = 0.025


class TreeCpu:
    """Samples the tree of ``pid`` while the context lasts; :meth:`between` asks how much CPU it had.

    /proc/PID/task/TID/schedstat counts nanoseconds on a CPU, user and system; of a thread that ended, what it had
    when it was last seen stays.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[tuple[int, int], int] = {}
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> float | None:
        """CPU seconds from ``begin`` to ``end``, perf_counter seconds; None where that was not sampled."""
        at_begin, at_end = self._at(begin), self._at(end)
        return None if at_begin is None or at_end is None else at_end - at_begin

    def _at(self, moment: float) -> float | None:
        for (before, low), (after, high) in zip(self._samples, self._samples[1:], strict=False):
            if before <= moment <= after:
                return low + (high - low) * (moment - before) / (after - before)
        return None

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            for pid in _tree(self._pid):
                for task in _listed(Path(f"/proc/{pid}/task")):
                    # A thread may end between the listing and the reading.
                    with suppress(OSError, ValueError, IndexError):
                        spent = Path(f"/proc/{pid}/task/{task}/schedstat").read_text(encoding="ascii").split()[0]
                        self._seen[pid, int(task)] = int(spent)
            self._samples.append((time.perf_counter(), sum(self._seen.values()) / 1e9))


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in _listed(Path(f"/proc/{parent}/task")):
            with suppress(OSError):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text(encoding="ascii")
                found += [int(child) for child in children.split()]
    return found


def _listed(folder: Path) -> list[str]:
    with suppress(OSError):
        return [each.name for each in folder.iterdir()]
    return []
