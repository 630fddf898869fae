"""``optimisations``: what each optimisation brings by itself, and all of them together.

An optimisation is a setting and a scenario that would show what it is for: batching needs many users, a prefix cache
needs prompts that begin alike, a smaller KV cache needs long ones. The reference is the environment with all of them
taken back; each comparison is paired and interleaved, with the answers and the memory beside the speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from benchmarks.calls import calls_of
from benchmarks.candidates import (
    SETTINGS,
    Keeper,
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
from runconfig import RunConfig, validate

CONFIG = Path(__file__).parent / "configs" / "optimisations.yml"
ALL = "all_together"
DESCRIPTION = """\
Measure what each optimisation of an environment brings: a server with none of them (reference) against one with each
alone, in turns, each under the scenario that would show it, and against all together. Writes RESULTS/report.html and
summary.json with ratio, interval, memory and quality of each, and a full report of every comparison. Ends with 0 when
all could be measured, whatever they bring; a setting without gain is a result.

common keys: reference.max_batch_size=1, optimisations.NAME.settings.KEY=VALUE, all_together=false, pairs, users,
duration_s, verdict.primary, out, lang=en|zh
"""


class Optimisation(RunConfig):
    """A setting, and the scenario that proves it."""

    settings: Annotated[dict[str, bool | int | float | str], Field(min_length=1)]
    """Of optimization_settings."""
    model_source: str | None = None
    """Prepared weights, for quantization_bits; null: the environment's."""
    scenario: dict[str, Any] = Field(default={})
    """Keys of the scenario that differ from the file's, sections merged."""


class OptimisationsScenario(Scenario):
    """What all comparisons share."""

    environment: Path | None = None
    """Whose optimisations are measured."""
    reference: dict[str, bool | int | float | str] = Field(default={})
    """optimization_settings that take the optimisations back."""
    optimisations: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], Optimisation], Field(min_length=1, max_length=100)
    ]
    all_together: bool = True
    """Also compare with all settings at once, under the file's own scenario."""

    @model_validator(mode="after")
    def _a_name_of_its_own(self) -> OptimisationsScenario:
        if ALL in self.optimisations:
            raise ValueError(f"optimisations.{ALL} is the name of all of them at once: choose another")
        return self


def main(words: Sequence[str]) -> int:
    options = environment_parser(
        "optimisations",
        DESCRIPTION,
        CONFIG,
        "optimisations environments/local.yml",
        "optimisations environments/local.yml pairs=12 all_together=false",
    ).parse_args(words)
    options.settings = [f"environment={options.environment}", *options.settings]
    return measure(OptimisationsScenario, options, optimisations)


def optimisations(
    scenario: OptimisationsScenario, display: Display, command: Command = model_server
) -> tuple[int, dict[str, Any]]:
    """Compare each; write the results folder; return the exit code and the summary.

    Raises:
        BenchmarkError: Nothing could be measured.
    """
    proofs = {name: proof(scenario, name) for name in (*scenario.optimisations, *([ALL] * scenario.all_together))}
    with results(scenario, scenario.environment, "optimisations", display) as keeper:
        plain = vary(keeper.raw, Variant("reference", scenario.reference))
        write_environment(keeper.reference, plain)
        keeper.settings = plain[SETTINGS]
        reason = refusal(keeper.reference)
        if reason is not None:
            raise UsageError(f"the reference, {scenario.environment} with the settings of `reference`: {reason}")
        for name, how in proofs.items():
            _measure(keeper, variant(scenario, name), how, plain, display, command)
        if all(result.answer != "INVALID" for result in keeper.results):
            keeper.verdict = "PASS"
        else:
            keeper.verdict = "INVALID" if all(result.folder is None for result in keeper.results) else "NO VERDICT"
    summary = keeper.summary(complete=True)
    return int(summary["exit_code"]), summary


def variant(scenario: OptimisationsScenario, name: str) -> Variant:
    """The settings of one optimisation, or of all."""
    chosen = scenario.optimisations.values() if name == ALL else [scenario.optimisations[name]]
    settings: dict[str, Any] = {}
    source = None
    for one in chosen:
        settings |= one.settings
        source = one.model_source if one.model_source is not None else source
    return Variant(name, settings, source)


def proof(scenario: OptimisationsScenario, name: str) -> Scenario:
    """The scenario of one optimisation: the file's, with what it says itself.

    Raises:
        ConfigError: It cannot be used.
        UsageError: Its calls cannot be read.
    """
    shared = scenario.model_dump(mode="json", include=set(Scenario.model_fields))
    own = {} if name == ALL else scenario.optimisations[name].scenario
    merged = shared | {
        key: {**shared[key], **value} if isinstance(value, dict) and isinstance(shared.get(key), dict) else value
        for key, value in own.items()
    }
    found = validate(Scenario, merged | {"name": name}, f"optimisations.{name}.scenario")
    calls_of(found)
    return found


def _measure(
    keeper: Keeper, found: Variant, how: Scenario, plain: dict[str, Any], display: Display, command: Command
) -> None:
    path = write_environment(keeper.folder / "candidates" / f"{found.name}.yml", vary(plain, found))
    reason = refusal(path)
    if reason is not None:
        keeper.keep(refused(found, reason))
        return
    folder = keeper.folder / found.name
    keeper.keep(measure_variant(how, folder, keeper.reference, path, found, display, command))
