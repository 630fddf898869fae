"""Does a rollout keep what is good and take back what is bad? ``python -m benchmarks.simulate_rollouts``.

Draws the records of whole rollouts with a known truth, in the noise of :mod:`benchmarks.simulate`, and lets the gate's
own code judge them with the rules of the scenario that environments name. A rollout asks as ``python -m infra.rollout``
does: before any traffic the gate must say PASS; at each later share only FAIL takes the candidate back.

Bars: at least 95 % of the candidates of each bad kind are taken back, at most 5 % of the good ones. Ends with 1 when
one is missed. ``rollouts`` are of each kind, their machines drift in turns in every shape.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.calls import calls_of
from benchmarks.command_line import complain, words_of
from benchmarks.compare import evaluate, order
from benchmarks.errors import FAIL, PASS, UsageError
from benchmarks.gate import GateScenario, levels_of_looks
from benchmarks.records import COLUMNS
from benchmarks.results import derive, frame
from benchmarks.simulate import DRIFTS, SHOWN, draw
from benchmarks.stats import wilson
from benchmarks.verdict import Answer
from runconfig import ConfigError, RunConfig, load, validate

SEED = 21
LEAST_CAUGHT, MOST_ABORTED = 0.95, 0.05
SHAPES = ("none", *DRIFTS)
BASE_S = 0.05
ACCURACY = 0.94
"""Of what runs; the embedded classifier's is about that."""
UNSTEADY = 0.005
"""Share of the calls that each side answers by chance, so that equal ones differ in 1 %: near ties, which quantised
sums decide by who else is in the batch."""
Kind = Literal["good", "slower", "errors", "wrong weights"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """The truth about one."""

    slower: float = 1.0
    """Factor on each latency."""
    errors: float = 0.0
    """Share of the requests that fail."""
    other: float = 0.0
    """Share of the calls that get any category, whatever they are about."""


KINDS: dict[Kind, Candidate] = {
    "good": Candidate(),
    "slower": Candidate(slower=1.1),
    "errors": Candidate(errors=0.02),
    "wrong weights": Candidate(other=0.1),
}


class Settings(RunConfig):
    rollouts: Annotated[int, Field(ge=4, le=100_000)] = 100
    """Of each kind."""
    shares: Annotated[int, Field(ge=0, le=20)] = 2
    """Later shares at which the gate is asked again: production.yml has two."""
    gate: Path = Path("benchmarks/configs/rollout_gate.yml")
    """Its rules; the runs are the simulation's."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One gate."""

    verdict: Answer
    pairs: int


def records(scenario: GateScenario, candidate: Candidate, seed: int, shape: str) -> pd.DataFrame:
    """Every request of a gate that does all its pairs, each call once before the first of them."""
    chance = np.random.default_rng([SEED, seed])
    pairs = scenario.max_pairs or scenario.pairs
    latencies = dict(zip("ab", draw(seed, 1, pairs, SHOWN[shape], candidate.slower), strict=True))
    said = answers(scenario, candidate, chance)
    users = scenario.users or 1
    parts = [_run(-1, arm, "warmup", np.full(len(said["label"]), BASE_S), users, said) for arm in "ab"]
    for pair in range(pairs):
        parts += [_run(pair, arm, "measure", BASE_S * latencies[arm][0, pair], users, said) for arm in order(pair)]
    whole = pd.concat([part.assign(run=at) for at, part in enumerate(parts)], ignore_index=True)
    failed = (whole["arm"] == "b") & (chance.random(len(whole)) < candidate.errors)
    whole.loc[failed, "error"] = "http_status"
    return derive(frame(whole))  # type: ignore[arg-type]


def answers(
    scenario: GateScenario, candidate: Candidate, chance: np.random.Generator
) -> dict[str, NDArray[np.object_]]:
    """``label`` of each call, and what ``a`` and ``b`` say."""
    labels = np.array([call.label for call in calls_of(scenario)], dtype=object)
    kinds = sorted(set(labels))

    def by_chance(given: NDArray[np.object_], share: float) -> NDArray[np.object_]:
        return np.where(chance.random(len(given)) < share, chance.choice(kinds, len(given)), given)

    learnt = by_chance(labels, 1 - ACCURACY)
    return {"label": labels, "a": by_chance(learnt, UNSTEADY), "b": by_chance(learnt, UNSTEADY + candidate.other)}


def _run(
    pair: int,
    arm: str,
    phase: str,
    latencies: NDArray[np.float64],
    users: int,
    said: Mapping[str, NDArray[np.object_]],
) -> pd.DataFrame:
    """Of ``users`` that each send their next request when the last one ended."""
    number = np.arange(len(latencies))
    call = number % len(said["label"])
    ends = pd.Series(latencies).groupby(number % users).cumsum().to_numpy()
    columns = dict.fromkeys(COLUMNS, None) | {
        "arm": arm,
        "pair": pair,
        "phase": phase,
        "number": number,
        "user": number % users,
        "call": np.char.add("c", call.astype(str)),
        "scheduled_s": ends - latencies,
        "sent_s": ends - latencies,
        "end_s": ends,
        "wall_start": 0.0,
        "events": 0,
        "bytes": 0,
        "category": said[arm][call],
        "label": said["label"][call],
    }
    return pd.DataFrame(columns)


def ask(scenario: GateScenario, candidate: Candidate, seed: int, shape: str) -> Asked:
    """As ``gate`` does: look after so many pairs, until it is decided or all are done."""
    drawn = records(scenario, candidate, seed, shape)
    for pairs, level in levels_of_looks(scenario.pairs, scenario.max_pairs, scenario.verdict).items():
        so_far = drawn[(drawn["pair"] < pairs).to_numpy(bool)]
        found = evaluate(scenario, so_far, None, list(_runs_of(so_far)), complete=True, level=level)
        if found["verdict"] != "NO VERDICT":
            break
    return Asked(found["verdict"], pairs)


def _runs_of(drawn: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What a healthy generator says about each run."""
    well = {"set_aside": False, "ill_health": [], "client_cpu_share": 0.1, "loop_lag_p50_s": 0.0, "peak_in_flight": 8}
    for run, rows in drawn.groupby("run"):
        who: dict[str, Any] = {name: rows[name].iloc[0] for name in ("arm", "pair", "phase")}
        counts = {"requests": len(rows), "failed": int((~rows["ok"]).sum())}
        yield {"run": run, "started_s": 0.0, "ended_s": rows["end_s"].max(), **who, **counts, **well}


def roll_out(scenario: GateScenario, kind: Kind, shares: int, number: int) -> tuple[bool, list[Asked]]:
    """Whether it was taken back, and each gate that it met."""
    shape = SHAPES[number % len(SHAPES)]
    # Seeds of their own for every gate of every rollout of every kind.
    seeds = range((list(KINDS).index(kind) * 1_000_000 + number) * 100, sys.maxsize)
    asked = [ask(scenario, KINDS[kind], seeds[0], shape)]
    if asked[0].verdict != "PASS":
        return True, asked
    for share in range(shares):
        asked.append(ask(scenario, KINDS[kind], seeds[share + 1], shape))
        if asked[-1].verdict == "FAIL":
            return True, asked
    return False, asked


def simulate(settings: Settings) -> list[dict[str, Any]]:
    """Of each kind: how many were taken back, and after how many pairs; whether its bar is kept."""
    scenario = load(GateScenario, settings.gate, [])
    rows = []
    with ProcessPoolExecutor() as pool:
        for kind in KINDS:
            one = partial(roll_out, scenario, kind, settings.shares)
            done = list(pool.map(one, range(settings.rollouts), chunksize=4))
            rows.append(_row(kind, done))
            print(f"{kind}: done", file=sys.stderr)
    return rows


def _row(kind: Kind, done: Sequence[tuple[bool, list[Asked]]]) -> dict[str, Any]:
    taken_back = sum(back for back, _ in done)
    share = taken_back / len(done)
    interval = wilson(taken_back, len(done))
    first = [asked[0] for _, asked in done]
    return {
        "kind": kind,
        "rollouts": len(done),
        "taken_back": taken_back,
        "share": share,
        "interval": [interval.low, interval.high],
        "first_gate": dict(Counter(each.verdict for each in first)),
        "later": dict(Counter(each.verdict for _, asked in done for each in asked[1:])),
        "pairs_of_first_gate": float(np.mean([each.pairs for each in first])),
        "pairs": float(np.mean([sum(each.pairs for each in asked) for _, asked in done])),
        "kept": share <= MOST_ABORTED if kind == "good" else share >= LEAST_CAUGHT,
    }


def text_of(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    bar = f"<= {MOST_ABORTED:.0%}" if row["kind"] == "good" else f">= {LEAST_CAUGHT:.0%}"
    return (
        f"{row['kind']:<14} taken back {row['taken_back']:>4} of {row['rollouts']} ({low:.3f} to {high:.3f}), "
        f"bar {bar}: {'kept' if row['kept'] else 'MISSED'}; first gate {row['first_gate']} after "
        f"{row['pairs_of_first_gate']:.1f} pairs, later ones {row['later']}; {row['pairs']:.1f} pairs a rollout"
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate_rollouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="rollouts=100", help="of each kind; shares=2, gate=FILE.yml")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(words)
    try:
        settings = validate(Settings, words_of(options.settings, tuple(Settings.model_fields)), "the command line")
        rows = simulate(settings)
    except (UsageError, ConfigError) as error:
        return complain(error, as_json=options.json)
    missed = [row["kind"] for row in rows if not row["kept"]]
    if not options.json:
        print("\n".join(map(text_of, rows)))
    code = FAIL if missed else PASS
    print(json.dumps({"exit_code": code, "missed": missed, "kinds": rows}))
    return code


if __name__ == "__main__":
    sys.exit(main())
