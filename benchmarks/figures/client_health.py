"""At how many streams a run is called INVALID, and at how many the median time to first token is wrong.

One process of the load generator against the truth server, each on a core of its own, with more and more streams of 50
tokens a second. The server knows when each first token was written; what connects is left out, since the server does
not see that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.config import ClientLimits
from benchmarks.figures.load import Clients, clients
from benchmarks.figures.table import Figure
from benchmarks.generator import ill_health
from benchmarks.truth_server.running import TruthServer, running

TOKENS = 100
TTFT_MS, TPOT_MS = 100, 20
WAVES = 6
"""Answers of each user; the first opens the connection."""
FIRST, STEP, LAST = 256, 1.1, 2000
"""Streams: of the first run, how many times as many the next one has, and where it ends in any case."""
WRONG_S = 0.005


def measure(_model: Path, folder: Path, pairs: int) -> list[Figure]:
    """Sweeps up to where the median has been wrong twice; the thresholds are the first of a sweep."""
    rounds = max(1, pairs // 3)
    ratios, errors, lines = [], [0.0], []
    words = [f"tokens={TOKENS}", f"ttft_ms={TTFT_MS}", f"tpot_ms={TPOT_MS}", f"log_requests={WAVES * LAST}"]
    with (
        running(*words) as server,
        clients("chat_stream", ["a"], folder, model="plain", max_tokens=TOKENS, timeout_s=60) as load,
    ):
        for _ in range(rounds):
            rows = list(_sweep(server, load))
            wrong = next((streams for streams, error, _ in rows if error > WRONG_S), None)
            invalid = next((streams for streams, _, reasons in rows if reasons), None)
            lines.append(f"INVALID from {invalid}, wrong from {wrong} streams")
            if wrong is None or invalid is None:
                raise RuntimeError(f"nothing went wrong up to {LAST} streams: {lines[-1]}")
            ratios.append(invalid / wrong)
            errors += [error for _, error, reasons in rows if not reasons]
    return [
        Figure.of(
            "load generator: largest error of the median TTFT in a run called valid, ms",
            1e3 * max(errors),
            at_most=1e3 * WRONG_S,
            detail="; ".join(lines),
        ),
        Figure.of(
            "load generator: streams at which a run is INVALID / at which that error passes 5 ms",
            float(np.exp(np.mean(np.log(ratios)))),
            at_least=0.8,
            detail=f"{rounds} sweep{'s' if rounds > 1 else ''}, {STEP:g}x from {FIRST}",
        ),
    ]


def _sweep(server: TruthServer, load: Clients) -> Iterator[tuple[int, float, list[str]]]:
    """Streams, error of the median in seconds, why the run is INVALID."""
    streams, wrong = float(FIRST), 0
    while wrong < 2 and streams <= LAST:
        users = round(streams)
        seen = server.ask("/_truth/health")["requests"]
        records = load.send(server.url, users=users, requests=WAVES * users).sort_values("sent_s").iloc[users:]
        entries = sorted(server.log(seen), key=lambda entry: float(entry["arrived"]))[users:]
        true = np.median([entry["written"][0] - entry["arrived"] for entry in entries if entry["written"]])
        error = abs(float(np.median(records["first_token_s"] - records["sent_s"]) - true))
        reasons = ill_health(load.last, ClientLimits())
        print(f"{users} streams: {1e3 * error:.2f} ms wrong; {'; '.join(reasons) or 'valid'}", file=sys.stderr)
        yield users, error, reasons
        wrong += error > WRONG_S
        streams *= STEP
