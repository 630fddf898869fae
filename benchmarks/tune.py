"""``tune``: search the optimisation settings of an environment, measured on servers that are really started.

Screening is successive halving (Jamieson and Talwalkar, 2016, https://arxiv.org/abs/1502.07943): all candidates get a
few pairs of runs, the better half twice as many, and so on; what is surely no gain, or answers worse, leaves at once.
Every candidate is measured against the reference in turns, never against what ran an hour earlier, and two servers
run at a time, so that memory and CPU are what the environment says. Screening only ranks. Its winner is the best of
several noisy figures and so looks better than it is; therefore fresh pairs, which had no part in the choice, decide
whether it replaces the reference. However many candidates there are, an equal one is taken in alpha / 2 of searches.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from benchmarks import manifest
from benchmarks.candidates import (
    SETTINGS,
    Keeper,
    Result,
    Variant,
    environment_parser,
    measure_variant,
    refusal,
    refused,
    results,
    vary,
    write_environment,
)
from benchmarks.command_line import measure
from benchmarks.config import Scenario
from benchmarks.deployments import Command, model_server
from benchmarks.errors import UsageError
from benchmarks.progress import Display
from benchmarks.texts import say, say_finding

CONFIG = Path(__file__).parent / "configs" / "tune.yml"
DESCRIPTION = """\
Search the optimisation_settings of an environment: start a server for each candidate and one for the reference,
measure them in turns, drop losers early, and let fresh pairs decide whether the best replaces the reference. What
`model_server check` refuses is skipped with its reason. Writes RESULTS/environment.yml, the environment to use, with
the evidence above it, RESULTS/report.html and summary.json. Ends with 0 when the search was carried through, whatever
it found.

common keys: space.max_batch_size=[1,16], prepared.4=DIRECTORY, verdict.primary=qps|latency_p50|..., users, calls,
pairs, screen_pairs, min_gain=0.02, max_candidates=16, out, lang=en|zh
"""
Setting = bool | int | float | str


class TuneScenario(Scenario):
    """A scenario that is sent to servers of many settings."""

    environment: Path | None = None
    """What runs now: the reference."""
    space: dict[str, tuple[Setting, ...]] = Field(default={}, max_length=20)
    """Key of optimization_settings -> values to try; all combinations."""
    prepared: dict[int, Path] = Field(default={})
    """Bits of a weight -> directory of the model prepared with them, for quantization_bits in ``space``."""
    max_candidates: Annotated[int, Field(gt=0, le=1000)] = 16
    """Of more combinations a sample is drawn by ``seed`` (random search: Bergstra and Bengio, 2012)."""
    screen_pairs: Annotated[int, Field(ge=2, le=200)] = 3
    """Pairs of runs of each candidate in the first round."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """How much better than the reference, as a share, is worth a change."""

    @model_validator(mode="after")
    def _values_to_try(self) -> TuneScenario:
        empty = [key for key, values in self.space.items() if not values]
        if not self.space or empty:
            raise ValueError(
                f"space.{empty[0]} has no values" if empty else "space is empty: name settings and the values to try"
            )
        return self


def main(words: Sequence[str]) -> int:
    options = environment_parser(
        "tune",
        DESCRIPTION,
        CONFIG,
        "tune environments/local.yml",
        "tune environments/local.yml space.max_batch_size=[1,2,4,8,16,32] verdict.primary=latency_p50 users=4",
        "tune environments/production.yml space='{quantization_bits: [4, 8]}' prepared.8=models/qwen3-0.6b-int8",
    ).parse_args(words)
    options.settings = [f"environment={options.environment}", *options.settings]
    return measure(TuneScenario, options, tune)


def tune(scenario: TuneScenario, display: Display, command: Command = model_server) -> tuple[int, dict[str, Any]]:
    """Search around ``scenario.environment``; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    reason = None if scenario.environment is None else refusal(scenario.environment)
    if reason is not None:
        raise UsageError(f"the reference, {scenario.environment}: {reason}")
    with results(scenario, scenario.environment, "tune", display) as keeper:
        candidates = _candidates(scenario, keeper)
        best = _screen(scenario, keeper, candidates, display, command)
        winner = None
        if best is not None:
            found = _against(scenario, keeper, best, "decision", scenario.pairs, display, command)
            winner = found if found.answer == "PASS" else None
        _conclude(scenario, keeper, best, winner)
    summary = keeper.summary(complete=True)
    return int(summary["exit_code"]), summary


def combinations(scenario: TuneScenario, raw: Mapping[str, Any]) -> list[Variant]:
    """The combinations of ``space`` that differ from what the environment ``raw`` has, or a sample of them."""
    now = raw.get(SETTINGS) or {}
    found = []
    for values in itertools.product(*scenario.space.values()):
        settings = {key: value for key, value in zip(scenario.space, values, strict=True) if now.get(key) != value}
        if settings:
            name = ",".join(f"{key}={_plain(value)}" for key, value in settings.items())
            found.append(Variant(name, settings, _weights(scenario, settings)))
    if len(found) > scenario.max_candidates:
        chosen = random.Random(scenario.seed).sample(range(len(found)), scenario.max_candidates)
        found = [found[at] for at in sorted(chosen)]
    return found


def _weights(scenario: TuneScenario, settings: Mapping[str, Any]) -> str | None:
    prepared = scenario.prepared.get(settings["quantization_bits"]) if "quantization_bits" in settings else None
    return None if prepared is None else str(prepared)


def _candidates(scenario: TuneScenario, keeper: Keeper) -> list[Variant]:
    """Those that ``model_server check`` lets pass; the others are kept with its reason."""
    found = []
    for variant in combinations(scenario, keeper.raw):
        if "quantization_bits" in variant.settings and variant.model_source is None:
            bits = variant.settings["quantization_bits"]
            keeper.keep(refused(variant, say("candidate_not_prepared", scenario.lang, bits=bits)))
            continue
        reason = refusal(write_environment(_file(keeper, variant), vary(keeper.raw, variant)))
        if reason is None:
            found.append(variant)
        else:
            keeper.keep(refused(variant, reason))
    return found


def _screen(
    scenario: TuneScenario, keeper: Keeper, candidates: Sequence[Variant], display: Display, command: Command
) -> Variant | None:
    """The candidate that looks best after successive halving; None when all are refused, worse or no gain."""
    left = list(candidates)
    pairs, round_ = scenario.screen_pairs, 1
    while len(left) > 1:
        ranked = []
        for variant in left:
            found = _against(scenario, keeper, variant, f"round-{round_}", pairs, display, command)
            hopeless = found.high is None or found.high < 1 + scenario.min_gain
            if found.answer not in {"INVALID", "FAIL"} and not hopeless:
                ranked.append((found.gain or 0.0, variant))
        ranked.sort(key=lambda one: -one[0])
        left = [variant for _, variant in ranked[: math.ceil(len(ranked) / 2)]]
        pairs, round_ = 2 * pairs, round_ + 1
    return left[0] if left else None


def _against(
    scenario: TuneScenario,
    keeper: Keeper,
    variant: Variant,
    stage: str,
    pairs: int,
    display: Display,
    command: Command,
) -> Result:
    """A variant against the reference, in a folder of its own."""
    # Another seed for each stage: the pairs that decide send other calls than those that chose.
    seed = scenario.seed + (1000 if stage == "decision" else int(stage.rpartition("-")[2]))
    return keeper.keep(
        measure_variant(
            scenario.model_copy(update={"pairs": pairs, "seed": seed, "name": f"{scenario.name}-{stage}"}),
            keeper.folder / stage / variant.name,
            keeper.reference,
            _file(keeper, variant),
            variant,
            display,
            command,
            scenario.min_gain,
        )
    )


def _conclude(scenario: TuneScenario, keeper: Keeper, best: Variant | None, winner: Result | None) -> None:
    """Write the environment to use, and say why it is this one."""
    raw = keeper.raw
    measured = [result for result in keeper.results if result.folder is not None]
    refused_ = len({result.name for result in keeper.results if result.key == "candidate_refused"})
    tried = len({result.name for result in measured})
    counts = {"tried": tried, "refused": refused_}
    if winner is not None:
        assert best is not None
        raw = vary(raw, best)
        conclusion = {"answer": "PASS", "key": "tune_won", "values": counts | winner.values}
    else:
        conclusion = {"answer": "PASS" if tried else "INVALID", "key": "tune_kept" if tried else "tune_nothing"}
        conclusion["values"] = counts
    keeper.verdict = "PASS" if tried else "INVALID"
    keeper.conclusion = [{"rule": "conclusion", **conclusion}]
    keeper.more = {
        "changed": {} if winner is None else winner.settings,
        "winner": None if winner is None else asdict(winner),
        "environment_file": str(keeper.folder / "environment.yml"),
    }
    said = [say_finding(found, "en") for found in keeper.summary(complete=True)["findings"]]
    when, revision = datetime.now(UTC), manifest.software()["git_revision"]
    origin = f"Tuned from {keeper.environment} on {when:%Y-%m-%d}, revision {revision}, seed {scenario.seed}."
    comment = "\n".join([origin, *said, f"Evidence: {keeper.folder}/report.md"])
    write_environment(keeper.folder / "environment.yml", raw, comment)


def _file(keeper: Keeper, variant: Variant) -> Path:
    return keeper.folder / "candidates" / f"{variant.name}.yml"


def _plain(value: Setting) -> str:
    """As YAML writes it, without what a file name cannot hold."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)
