"""Load for the figures: the project's one generator, told what to send for how long."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.config import Dialect, Scenario
from benchmarks.generator import Generator
from benchmarks.plan import Run


class Clients:
    """The generator under way; each :meth:`send` is one run, answered by its records."""

    def __init__(self, generator: Generator, journal: Path, model: str) -> None:
        self._generator, self._journal, self._model = generator, journal, model
        self._runs = 0
        self._read = 0
        self.last: dict[str, Any] = {}
        """What the generator said about the last run."""

    def send(
        self,
        url: str,
        *,
        users: int | None = None,
        requests: int | None = None,
        rate_per_s: float | None = None,
        duration_s: float | None = None,
    ) -> pd.DataFrame:
        run = Run(
            run=self._runs,
            arm="a",
            pair=self._runs,
            phase="measure",
            url=url,
            model=self._model,
            users=users,
            requests=requests,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
        )
        self._runs += 1
        self.last = self._generator.run(run)
        lines = self._journal.read_text(encoding="utf-8").splitlines()
        records = pd.DataFrame([json.loads(line) for line in lines[self._read :]])
        self._read = len(lines)
        return records


@contextmanager
def clients(
    dialect: Dialect,
    texts: Sequence[str],
    folder: Path,
    *,
    model: str,
    max_tokens: int = 1,
    timeout_s: float = 120,
    trace: bool = False,
) -> Iterator[Clients]:
    folder.mkdir(parents=True, exist_ok=True)
    # One of users and rate_per_s has to stand in a scenario; each run says its own.
    scenario = Scenario(
        dialect=dialect,
        texts=tuple(texts),
        max_tokens=max_tokens,
        users=1,
        requests=1,
        timeout_s=timeout_s,
        trace=trace,
    )
    journal = folder / "requests.jsonl"
    with Generator(scenario, origin=time.perf_counter(), journal=journal, log=folder / "client.log") as generator:
        yield Clients(generator, journal, model)


def span_s(records: pd.DataFrame) -> float:
    """From the first byte sent to the end of the last answer, seconds."""
    return float(records["end_s"].max() - records["sent_s"].min())


def require_success(records: pd.DataFrame) -> pd.DataFrame:
    """Raises RuntimeError when a request failed: a figure over some of the requests is none."""
    failed = records[records["error"].notna()]
    if len(failed):
        first = failed.iloc[0]
        raise RuntimeError(f"{len(failed)} of {len(records)} requests failed: {first['error']} {first['error_detail']}")
    return records
