"""Are the decisions as reliable as they say? ``python -m benchmarks.simulate [trials=400] [--json]``, about a minute.

Draws whole comparisons with a known truth and lets the project's own decision functions judge them: runs that differ
by 3 % whatever is measured, requests that differ by 20 %, 200 requests in a run, the mean latency as the one primary
metric, and a machine that drifts by 5 % over a comparison, in the shapes that hurt. Prints how often each method is
wrong and how often it finds what is there, in three blocks of trials with fixed seeds; ends with 1 when a bar is
missed, with any of the drifts or in any of the blocks.

Bars: a false alarm ("different" for two equal servers, or FAIL) has a Wilson upper bound of at most 8 % of each
block, pairs added until it is decided included; +10 % is found in at least 85 % at five pairs; the gate passes a
candidate that is worse by exactly its margin in at most alpha.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.command_line import complain, words_of
from benchmarks.compare import order
from benchmarks.config import VerdictRules
from benchmarks.errors import FAIL, PASS, UsageError
from benchmarks.gate import levels_of_looks
from benchmarks.stats import compare_pairs, resampled_mean, wilson
from benchmarks.verdict import Answer, judge_speed
from runconfig import ConfigError, RunConfig, validate

RUN_EFFECT, REQUEST_NOISE, REQUESTS, DRIFT = 0.03, 0.20, 200, 0.05
SEEDS = (11, 12, 13)
MOST_ALARMS, LEAST_POWER = 0.08, 0.85
GATE_PAIRS, GATE_MOST_PAIRS = 5, 16
RULES = VerdictRules(primary="latency_avg")

Runs = NDArray[np.float64]
"""Mean latency of each run (trials, runs), in the order they were done."""
Drift = Callable[[np.random.Generator, int, int], NDArray[np.float64]]
"""(chance, trials, runs) -> factor on the latency of each run, (trials, runs)."""


def _linear(chance: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    """Ever slower, or ever faster."""
    slope = chance.choice([-DRIFT, DRIFT], (trials, 1))
    return np.asarray(1 + slope * np.arange(runs) / (runs - 1))


def _step(chance: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    """A neighbour comes or goes, once, at any moment between two runs."""
    at = chance.integers(1, runs, (trials, 1))
    return np.asarray(1 + chance.choice([-DRIFT, DRIFT], (trials, 1)) * (np.arange(runs) >= at))


def _sinusoid(chance: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    """One wave of 5 % from crest to trough, begun anywhere."""
    phase = chance.uniform(0, 2 * math.pi, (trials, 1))
    return np.asarray(1 + DRIFT / 2 * np.sin(2 * math.pi * np.arange(runs) / runs + phase))


def _resonance(chance: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    """A wave of exactly four runs, the period of A B B A: no order that repeats itself is safe from its own period."""
    phase = chance.uniform(0, 2 * math.pi, (trials, 1))
    return np.asarray(1 + DRIFT / 2 * np.sin(2 * math.pi * np.arange(runs) / 4 + phase))


def _pairs(chance: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    """Both runs of a pair go up and down together, by 5 %: what a busy machine looked like (see LOG.md)."""
    return np.asarray(np.exp(np.repeat(chance.normal(0, DRIFT, (trials, runs // 2)), 2, axis=1)))


def _none(_: np.random.Generator, trials: int, runs: int) -> NDArray[np.float64]:
    return np.ones((trials, runs))


DRIFTS: dict[str, Drift] = {"linear": _linear, "step": _step, "sinusoid": _sinusoid}
SHOWN: dict[str, Drift] = {"none": _none, **DRIFTS, "by pairs": _pairs, "resonance": _resonance}


class Settings(RunConfig):
    trials: Annotated[int, Field(ge=10, le=100_000)] = 400
    """Of each block."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happened, and whether that is within its bar."""

    name: str
    drift: str
    counts: tuple[int, ...]
    """Of the trials of each block."""
    trials: int
    """Of one block."""
    most: float | None = None
    """Bar of the upper bound."""
    least: float | None = None
    """Bar of the share."""

    @property
    def share(self) -> float:
        return sum(self.counts) / (len(self.counts) * self.trials)

    @property
    def upper(self) -> float:
        return wilson(sum(self.counts), len(self.counts) * self.trials).high

    @property
    def kept(self) -> bool | None:
        if self.most is not None:
            return self.upper <= self.most
        return None if self.least is None else self.share >= self.least

    def row(self) -> str:
        blocks = " ".join(f"{count / self.trials:.3f}" for count in self.counts)
        text = f"{self.name:<60} {self.drift:<10} {self.share:.3f} (blocks {blocks}; upper bound {self.upper:.3f})"
        if self.kept is None:
            return text
        bar = f"upper bound <= {self.most:.0%}" if self.most is not None else f">= {self.least:.0%}"
        return f"{text}  {bar}: {'kept' if self.kept else 'MISSED'}"


def draw(seed: int, trials: int, pairs: int, drift: Drift, slower: float = 1.0) -> tuple[Runs, Runs]:
    """Latencies of every request: of A and B, (trials, pairs, requests); B's are ``slower`` times as long.

    The runs are done in the order of :func:`benchmarks.compare.order`.
    """
    chance = np.random.default_rng(seed)
    runs = 2 * pairs
    place = drift(chance, trials, runs) * np.exp(chance.normal(0, RUN_EFFECT, (trials, runs)))
    requests = place[:, :, None] * np.exp(chance.normal(0, REQUEST_NOISE, (trials, runs, REQUESTS)))
    arms = np.array([arm for pair in range(pairs) for arm in order(pair)])
    return requests[:, arms == "a"], requests[:, arms == "b"] * slower


def judge(a: Sequence[float], b: Sequence[float], level: float) -> tuple[Answer, str]:
    """The verdict on speed, and whether B is called faster, slower or the same, as ``compare`` and ``gate`` do it."""
    finding = judge_speed(compare_pairs(a, b, level, resamples=0), RULES)
    return finding.answer, finding.key.removeprefix("speed_")


def judge_in_looks(a: Sequence[float], b: Sequence[float], levels: dict[int, float]) -> tuple[Answer, str, int]:
    """:func:`judge` after each number of pairs until it decides; the pairs that took, too."""
    for pairs, level in levels.items():
        answer, direction = judge(a[:pairs], b[:pairs], level)
        if answer != "NO VERDICT":
            break
    return answer, direction, pairs


def count(trials: int, seed: int, pairs: int, drift: Drift, slower: float = 1.0) -> dict[str, int]:
    """How often ``compare`` with so many pairs says what."""
    a, b = (side.mean(axis=2).tolist() for side in draw(seed, trials, pairs, drift, slower))
    said = [judge(x, y, RULES.alpha) for x, y in zip(a, b, strict=True)]
    found = {word: sum(direction == word for _, direction in said) for word in ("faster", "slower", "same")}
    return found | {word: sum(answer == word for answer, _ in said) for word in ("PASS", "FAIL", "NO VERDICT")}


def count_gate(trials: int, seed: int, drift: Drift, slower: float = 1.0) -> dict[str, int]:
    """How often ``gate`` ends how, its pairs in all, and how often any of its looks would have seen a difference."""
    a, b = (side.mean(axis=2).tolist() for side in draw(seed, trials, GATE_MOST_PAIRS, drift, slower))
    levels = levels_of_looks(GATE_PAIRS, GATE_MOST_PAIRS, RULES)
    said = [judge_in_looks(x, y, levels) for x, y in zip(a, b, strict=True)]
    found = {word: sum(answer == word for answer, _, _ in said) for word in ("PASS", "FAIL", "NO VERDICT")}
    found["different"] = sum(direction != "same" for _, direction, _ in said)
    found["at any look"] = sum(
        any(judge(x[:pairs], y[:pairs], level)[1] != "same" for pairs, level in levels.items())
        for x, y in zip(a, b, strict=True)
    )
    return found | {"pairs": sum(pairs for _, _, pairs in said)}


def bootstrap_misses(trials: int, seed: int, pairs: int) -> int:
    """How often the nested bootstrap interval does not hold the true ratio: why it is shown, and does not decide."""
    a, b = draw(seed, trials, pairs, _none)
    chance = np.random.default_rng(seed)
    missed = 0
    for x, y in zip(a, b, strict=True):
        within = tuple(np.stack([resampled_mean(run, 200, chance) for run in side]) for side in (x, y))
        found = compare_pairs(
            x.mean(axis=1).tolist(), y.mean(axis=1).tolist(), RULES.alpha, seed, within=(within[0], within[1])
        ).bootstrap
        assert found is not None
        missed += not found.low <= 1 <= found.high
    return missed


def naive(trials: int, seed: int, pairs: int, drift: Drift, slower: float = 1.0) -> dict[str, int]:
    """The contrast: how often methods that are in use call the two different."""
    from scipy.stats import mannwhitneyu, ttest_ind, ttest_rel

    a, b = draw(seed, trials, pairs, drift, slower)
    # The same runs, done as AAAA BBBB.
    chance = np.random.default_rng(seed)
    place = drift(chance, trials, 2 * pairs) * np.exp(chance.normal(0, RUN_EFFECT, (trials, 2 * pairs)))
    means = place * np.exp(chance.normal(0, REQUEST_NOISE / math.sqrt(REQUESTS), place.shape))
    blocked = np.log(means[:, :pairs]), np.log(means[:, pairs:] * slower)
    pooled = mannwhitneyu(a.reshape(trials, -1), b.reshape(trials, -1), axis=1).pvalue
    means_a, means_b = np.log(a.mean(axis=2)), np.log(b.mean(axis=2))
    return {
        "pooled Mann-Whitney, ABBA": int((pooled < RULES.alpha).sum()),
        "Welch on runs, AAAA BBBB": int((ttest_ind(*blocked, axis=1, equal_var=False).pvalue < RULES.alpha).sum()),
        "paired t alone, ABBA": int((ttest_rel(means_a, means_b, axis=1).pvalue < RULES.alpha).sum()),
        "one run each, 5 % threshold": int((abs(means_b[:, 0] - means_a[:, 0]) > math.log(1.05)).sum()),
    }


def simulate(trials: int, seeds: Sequence[int] = SEEDS) -> list[Rate]:
    """Every rate; those with a bar say whether it is kept."""
    rates: list[Rate] = []

    def add(name: str, drift: str, found: list[int], most: float | None = None, least: float | None = None) -> None:
        rates.append(Rate(name, drift, tuple(found), trials, most, least))

    for name, drift in SHOWN.items():
        barred = name in DRIFTS
        alarms = MOST_ALARMS if barred else None
        for pairs in (3, 5, 8):
            equal = [count(trials, seed, pairs, drift) for seed in seeds]
            add(f"A/A, {pairs} pairs: different", name, [c["faster"] + c["slower"] for c in equal], most=alarms)
            slow = [count(trials, seed + 100, pairs, drift, 1.1) for seed in seeds]
            power = LEAST_POWER if barred and pairs >= 5 else None
            add(f"+10 %, {pairs} pairs: found", name, [c["slower"] for c in slow], least=power)
        equal_gate = [count_gate(trials, seed + 200, drift) for seed in seeds]
        gate = f"gate, {GATE_PAIRS} to {GATE_MOST_PAIRS} pairs"
        add(f"{gate}, equal: different when it stopped", name, [c["different"] for c in equal_gate], most=alarms)
        add(f"{gate}, equal: different at any look", name, [c["at any look"] for c in equal_gate], most=alarms)
        add(f"{gate}, equal: FAIL", name, [c["FAIL"] for c in equal_gate], most=alarms)
        add(f"{gate}, equal: PASS", name, [c["PASS"] for c in equal_gate])
        mean_pairs = sum(c["pairs"] for c in equal_gate) / (len(seeds) * trials)
        slow_gate = [count_gate(trials, seed + 300, drift, 1.1) for seed in seeds]
        add(f"{gate}, 10 % slower: FAIL", name, [c["FAIL"] for c in slow_gate])
        add(f"{gate}, 10 % slower: PASS", name, [c["PASS"] for c in slow_gate])
        edge = [count_gate(trials, seed + 400, drift, 1 / (1 - RULES.margin)) for seed in seeds]
        add(f"{gate}, worse by the margin: PASS", name, [c["PASS"] for c in edge], most=RULES.alpha if barred else None)
        add(f"{gate}, worse by the margin: FAIL", name, [c["FAIL"] for c in edge])
        print(f"{name}: the gate took {mean_pairs:.1f} pairs on average for equal servers", file=sys.stderr)
    for name in ("none", *DRIFTS):
        found = [naive(trials, seed + 500, 5, SHOWN[name]) for seed in seeds]
        for method in found[0]:
            add(f"A/A, 5 pairs: {method}", name, [each[method] for each in found])
        found = [naive(trials, seed + 500, 5, SHOWN[name], 1.1) for seed in seeds]
        add("+10 %, 5 pairs: paired t alone, ABBA", name, [each["paired t alone, ABBA"] for each in found])
    for pairs in (5, 8):
        missed = [bootstrap_misses(trials, seed + 600, pairs) for seed in seeds]
        add(f"A/A, {pairs} pairs: nested bootstrap misses the truth", "none", missed)
    return rates


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="trials=400", help="of each block")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args(words)
    try:
        trials = validate(Settings, words_of(options.settings, tuple(Settings.model_fields)), "the command line").trials
    except (UsageError, ConfigError) as error:
        return complain(error, as_json=options.json)
    rates = simulate(trials)
    missed = [rate for rate in rates if rate.kept is False]
    if not options.json:
        print("\n".join(rate.row() for rate in rates))
        print(f"\n{'all bars are kept' if not missed else f'{len(missed)} bars are missed'}")
    code = FAIL if missed else PASS
    print(json.dumps({"exit_code": code, "trials": trials, "rates": [_as_json(rate) for rate in rates]}))
    return code


def _as_json(rate: Rate) -> dict[str, Any]:
    found = {"name": rate.name, "drift": rate.drift, "share": rate.share, "upper": rate.upper, "counts": rate.counts}
    return found | {"most": rate.most, "least": rate.least, "kept": rate.kept}


if __name__ == "__main__":
    sys.exit(main())
