"""A server that knows the truth, and the real client in its own process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.config import Scenario
from benchmarks.generator import Generator
from benchmarks.plan import Run
from benchmarks.results import derive, read_journal
from benchmarks.truth_server.running import TruthServer, running


@pytest.fixture(scope="module")
def truth_server() -> Iterator[Callable[..., TruthServer]]:
    """Start servers with settings such as ``ttft_ms=50``; they end with the module."""
    with ExitStack() as stack:
        yield lambda *words: stack.enter_context(running(*words))


class Client:
    """The real client, started once; each :meth:`run` gives the records of that run and what the client said."""

    def __init__(self, generator: Generator, journal: Path, origin: float, scenario: Scenario) -> None:
        self.origin = origin
        self._generator, self._journal, self._scenario = generator, journal, scenario
        self._runs = 0
        self.pid = generator.pid

    def run(self, url: str, *, model: str | None = None, **load: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
        self._runs += 1
        run = Run(run=self._runs, arm="a", pair=0, phase="measure", url=url, model=model, **load)
        said = self._generator.run(run)
        records, whole = read_journal(self._journal)
        assert whole
        return derive(records[records["run"] == self._runs]).reset_index(drop=True), said


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Client]]:
    """One client process for each dialect; a request may take 1.5 s."""
    clients: dict[str, Client] = {}
    with ExitStack() as stack:

        def for_dialect(dialect: str) -> Client:
            if dialect not in clients:
                folder = tmp_path_factory.mktemp(dialect)
                scenario = Scenario.model_validate(
                    {"texts": ["坏了 #网络故障"], "dialect": dialect, "users": 1, "requests": 1, "timeout_s": 1.5}
                )
                origin = time.perf_counter()
                journal = folder / "requests.jsonl"
                generator = Generator(scenario, origin=origin, journal=journal, log=folder / "generator.log")
                clients[dialect] = Client(stack.enter_context(generator), journal, origin, scenario)
            return clients[dialect]

        yield for_dialect


@pytest.fixture
def calls_file(tmp_path: Path) -> Path:
    """240 calls of four categories; the truth server knows each from what stands after ``#``."""
    names = ("网络故障", "账单争议", "服务态度", "物流")
    path = tmp_path / "calls.jsonl"
    rows = [
        {"conversation_id": f"c{n}", "input_text": f"第 {n} 通 #{names[n % 4]}", "complaint_category": names[n % 4]}
        for n in range(240)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
