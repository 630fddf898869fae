r"""Try several settings of a fine-tuning run, and choose by the validation calls.

    python -m training.sweep training/configs/finetune_tiny.yml \
        over='{learning_rate: [1e-3, 3e-3], mass_weight: [0, 0.1, 1]}' out=runs/sweep [seeds='[0, 1, 2]'] \
        [dry_run=true] [key=value of the fine-tuning settings, for every run ...]

in the training environment. A point is one combination of the values, the last key varying fastest; it is trained once
for each seed, in ``out/POINT/seed-N``. ``dry_run=true`` prints the points with the memory and time that
:mod:`training.plan` predicts, and trains nothing. A sweep that does not fit is refused before its first run.

The chosen point has the highest mean of the best validation macro-F1 over its seeds. The test calls are never read:
a choice among many is flattered by the calls it was made on, so measure the chosen run once afterwards, by
``python -m training.evaluate``. Points with a run that failed cannot be chosen.

``out/results.json`` holds every figure and ``out/results.md`` the table, both written anew after each run. Started
again the same command goes on: finished runs are not made again, one that was killed goes on from its last checkpoint;
with more values or seeds, only what is new is trained.

Exit status: 0 done, 1 a run failed (the others were made), 2 settings, data or base do not do or a run would not fit,
4 a checkpoint could not be written, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import json
import operator
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

import runconfig
from model_server import cgroup
from model_server.errors import ConfigurationError, DeploymentError, ResourceInsufficientError
from training import checkpoints, finetune, inputs, plan
from training.errors import CheckpointError, InterruptedRunError, RunMismatchError, TrainingError
from training.settings import FREE_TO_CHANGE, FineTuningSettings

NOT_SWEPT = {
    **dict.fromkeys(FREE_TO_CHANGE, "it does not change what is learned"),
    "seed": "name seeds=",
    "data": "the points would be compared on different validation calls",
}
COSTS_NOTHING = {
    *("run_dir", "seed", "learning_rate", "learning_rate_floor", "warmup_steps", "weight_decay", "clip_norm"),
    *("mass_weight", "class_weights", "focal_gamma", "corruption"),
}
"""Settings that change neither memory nor time: points that differ in these alone are predicted once."""
LONGEST_NAME = 100


class SweepSettings(runconfig.RunConfig):
    """What to try."""

    over: dict[str, tuple[Any, ...]] = Field(min_length=1)
    """Key of the fine-tuning settings, such as learning_rate or lora.rank, to the values to try."""
    out: Path
    """Folder of the runs and of the results."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of the runs of each point; three or more tell a difference from chance."""
    dry_run: bool = False
    """Print points and predictions, train nothing."""

    @field_validator("over")
    @classmethod
    def _can_be_swept(cls, over: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in over.items():
            if key in NOT_SWEPT:
                raise ValueError(f"{key} cannot be swept: {NOT_SWEPT[key]}")
            if not values:
                raise ValueError(f"{key} has no values: give a list")
        return over

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        return seeds


@dataclass
class Run:
    """One seed of a point.

    Attributes:
        seconds: That its last part took.
        failure: Why there is no result.
    """

    seed: int
    run_dir: str
    validation_macro_f1: float | None = None
    best_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Point:
    """One combination, with a run and its settings for each seed."""

    name: str
    settings: Mapping[str, Any]
    runs: tuple[tuple[FineTuningSettings, Run], ...]

    @property
    def scores(self) -> list[float]:
        """Validation macro-F1 of the runs that are finished."""
        return [run.validation_macro_f1 for _, run in self.runs if run.validation_macro_f1 is not None]

    @property
    def complete(self) -> bool:
        return len(self.scores) == len(self.runs)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None where there are not two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def points_of(sweep: SweepSettings, config: Path, words: Sequence[str]) -> list[Point]:
    """Every combination, its settings checked.

    Raises:
        ConfigError: A key is unknown, a value is not allowed, or two points are the same; names the point.
    """
    points: list[Point] = []
    for values in itertools.product(*sweep.over.values()):
        own = [f"{key}={_text(value)}" for key, value in zip(sweep.over, values, strict=True)]

        def read(seed: int, run_dir: Path, own: Sequence[str] = own) -> FineTuningSettings:
            place = [f"seed={seed}", f"run_dir={json.dumps(str(run_dir))}"]
            try:
                return runconfig.load(FineTuningSettings, config, [*words, *own, *place])
            except runconfig.ConfigError as error:
                raise runconfig.ConfigError(f"the point {', '.join(own)}: {error}") from error

        # As they were understood: 1e-3 and 0.001 are one value and make one folder.
        whole = read(sweep.seeds[0], sweep.out).model_dump(mode="json")
        settings = {key: functools.reduce(operator.getitem, key.split("."), whole) for key in sweep.over}
        name = _name(settings)
        if name in {point.name for point in points}:
            raise runconfig.ConfigError(f"the point {name} is there twice: leave one of its values out")
        places = [(seed, sweep.out / name / f"seed-{seed}") for seed in sweep.seeds]
        runs = tuple((read(seed, run_dir), Run(seed, str(run_dir))) for seed, run_dir in places)
        points.append(Point(name, settings, runs))
    return points


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _name(settings: Mapping[str, Any]) -> str:
    """A folder's name that says what the point is, the same whatever other points there are."""
    plain = ",".join(f"{key}={_text(value)}" for key, value in settings.items())
    name = re.sub(r"[^\w.=,+-]+", "_", plain)[:LONGEST_NAME]
    return name if name == plain else f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


# --- does it fit, and how long will it take ----------------------------------------------------------------


def predicted(points: Sequence[Point], *, time_too: bool) -> dict[str, dict[str, float]]:
    """Name of a point to its peak memory (bytes), its disk (bytes) and, if asked for, the seconds of one run.

    Raises:
        ResourceInsufficientError: A run does not fit, or the disk cannot take them all.
    """
    known: dict[str, dict[str, float]] = {}
    found = {}
    for point in points:
        config = point.runs[0][0]
        cost = config.model_dump_json(exclude=COSTS_NOTHING)
        if cost not in known:
            print(f"predicting {point.name} ...", file=sys.stderr, flush=True)
            given = inputs.read(config)
            device, dtype = finetune.device_and_dtype(config)
            torch.set_num_threads(config.threads or cgroup.available_threads(os.cpu_count() or 1))
            memory = plan.memory(config, given, dtype)
            try:
                plan.check(memory, config, device, 1)
            except ResourceInsufficientError as error:
                raise ResourceInsufficientError(f"the point {point.name}: {error}") from error
            known[cost] = {"peak_memory_bytes": memory.peak_bytes, "disk_bytes": memory.disk_bytes}
            if time_too:
                spent = plan.seconds(config, given, dtype, device)
                known[cost]["seconds"] = spent["loading_s"] + spent["training_s"] + spent["evaluating_s"]
                gc.collect()
        found[point.name] = known[cost]
    new = [(point, run) for point in points for _, run in point.runs if not Path(run.run_dir).exists()]
    needed = sum(found[point.name]["disk_bytes"] for point, _ in new)
    if new:
        home = next(path for path in Path(new[0][1].run_dir).absolute().parents if path.exists())
        if needed > (room := shutil.disk_usage(home).free):
            raise ResourceInsufficientError(
                f"{len(new)} runs take up to {needed / 2**20:.0f} MiB of disk, {home} has {room / 2**20:.0f} free: "
                "make room, lower keep_checkpoints, or try fewer points"
            )
    return found


def show_plan(points: Sequence[Point], predictions: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    seeds = len(points[0].runs)
    width = max(len(point.name) for point in points)
    print(f"{'point':<{width}}  {'memory GiB':>10}  {'minutes a run':>13}  runs")
    for point in points:
        of = predictions[point.name]
        print(
            f"{point.name:<{width}}  {of['peak_memory_bytes'] / 2**30:>10.2f}  {of['seconds'] / 60:>13.1f}  {seeds:>4}"
        )
    seconds = seeds * sum(predictions[point.name]["seconds"] for point in points)
    print(f"{len(points)} points, {len(points) * seeds} runs, {seconds / 60:.0f} minutes one after the other")
    return {
        "points": [{"point": point.name, "runs": seeds, **predictions[point.name]} for point in points],
        "seconds": round(seconds, 1),
    }


# --- the runs ----------------------------------------------------------------------------------------------


def train(points: Sequence[Point], sweep: SweepSettings) -> None:
    """Make or finish every run; what fails is noted, and the others go on.

    Raises:
        InterruptedRunError: A signal came.
        CheckpointError, RunMismatchError: What holds for the next run too: the disk is full, the folder is another
            sweep's.
    """
    runs = [(point, config, run) for point in points for config, run in point.runs]
    before = _seconds_before(sweep.out)
    spent: list[float] = []
    for number, (point, config, run) in enumerate(runs, 1):
        left = f", {statistics.fmean(spent) * (len(runs) - number + 1) / 60:.0f} min left" if spent else ""
        print(f"run {number} of {len(runs)}: {point.name}, seed {run.seed}{left}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            report = finetune.main(config)
        except (InterruptedRunError, CheckpointError, RunMismatchError):
            raise
        except (TrainingError, DeploymentError) as error:
            run.failure = str(error)
            print(f"{point.name}, seed {run.seed} failed: {error}", file=sys.stderr, flush=True)
        else:
            run.validation_macro_f1, run.best_step = report["best_validation_macro_f1"], report["best_step"]
            run.steps = report["steps"]
            made_now = "seconds" in report  # else it was finished already
            run.seconds = round(time.monotonic() - started, 1) if made_now else before.get(run.run_dir)
            spent += [run.seconds] if made_now and run.seconds is not None else []
        gc.collect()  # the network of this run, before the next one's is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write_results(points, sweep)


def _seconds_before(out: Path) -> dict[str, float]:
    """By run_dir, of an earlier start of this sweep."""
    try:
        written = json.loads((out / "results.json").read_bytes())
        return {run["run_dir"]: run["seconds"] for point in written["points"] for run in point["runs"]}
    except (OSError, ValueError, KeyError):
        return {}


def chosen(points: Sequence[Point]) -> Point | None:
    """The complete point with the highest mean; the earlier one of equals."""
    complete = [point for point in points if point.complete]
    return max(complete, key=lambda point: point.mean or 0.0, default=None)


def results(points: Sequence[Point], sweep: SweepSettings) -> dict[str, Any]:
    best = chosen(points)
    return {
        "over": {key: list(values) for key, values in sweep.over.items()},
        "seeds": list(sweep.seeds),
        "points": [
            {
                "point": point.name,
                "settings": dict(point.settings),
                "validation_macro_f1_mean": point.mean,
                "validation_macro_f1_spread": point.spread,
                "runs": [asdict(run) for _, run in point.runs],
            }
            for point in points
        ],
        "chosen": None if best is None else {"point": best.name, "settings": dict(best.settings)},
        "chosen_run": None if best is None else _best_run(best).run_dir,
    }


def _best_run(point: Point) -> Run:
    return max((run for _, run in point.runs), key=lambda run: run.validation_macro_f1 or 0.0)


def markdown(points: Sequence[Point], sweep: SweepSettings) -> str:
    """A line for each point, in their order."""
    keys, best = list(sweep.over), chosen(points)
    head = [*keys, "validation macro-F1", "standard deviation", "lowest to highest", "runs", ""]
    lines = ["# Sweep", "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for point in points:
        failed = sum(run.failure is not None for _, run in point.runs)
        cells = [_text(point.settings[key]).replace("|", "\\|") for key in keys]
        cells += [_figure(point.mean), _figure(point.spread)]
        cells += [f"{min(point.scores):.4f} to {max(point.scores):.4f}" if point.scores else "-"]
        cells += [f"{len(point.scores)} of {len(point.runs)}" + (f", {failed} failed" if failed else "")]
        cells += ["**chosen**" if point is best else ""]
        lines.append("| " + " | ".join(cells) + " |")
    if best is not None:
        lines.append(
            f"\nChosen by the validation calls alone, as the best of {len(points)}: the figure flatters it. What it is "
            f"worth say the test calls: `python -m training.evaluate run_dir={_best_run(best).run_dir}`"
        )
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def write_results(points: Sequence[Point], sweep: SweepSettings) -> None:
    text = json.dumps(results(points, sweep), ensure_ascii=False, indent=2) + "\n"
    checkpoints.write_text(sweep.out / "results.json", text)
    checkpoints.write_text(sweep.out / "results.md", markdown(points, sweep))


# --- the command -------------------------------------------------------------------------------------------


def main(sweep: SweepSettings, config: Path, words: Sequence[str]) -> dict[str, Any]:
    """
    Raises:
        ConfigError: A point cannot be read.
        DeploymentError: A run would not fit, or the sweep was started in several processes.
        TrainingError: The data will not do, a signal came, or nothing can be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError("a sweep is one process, and torchrun or accelerate started several: start it alone")
    points = points_of(sweep, config, words)
    predictions = predicted(points, time_too=sweep.dry_run)
    if sweep.dry_run:
        return show_plan(points, predictions)
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"out {sweep.out} cannot be written: {error.strerror}") from error
    train(points, sweep)
    print(markdown(points, sweep))
    found = results(points, sweep)
    failed = sum(run.failure is not None for point in points for _, run in point.runs)
    return {name: found[name] for name in ("chosen", "chosen_run")} | {
        "results": str(sweep.out / "results.json"),
        "runs": sum(len(point.runs) for point in points),
        "failed": failed,
    }


def run(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    config, *words = arguments
    own = [word for word in words if word.partition("=")[0] in SweepSettings.model_fields]
    try:
        sweep = runconfig.load(SweepSettings, None, own)
        report = main(sweep, Path(config), [word for word in words if word not in own])
    except (runconfig.ConfigError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 2
    except InterruptedRunError as error:
        print(
            f"stopped after step {error.step} of a run, checkpoint written; the same command goes on", file=sys.stderr
        )
        return error.exit_status
    except TrainingError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(json.dumps(report, ensure_ascii=False))
    return 1 if report.get("failed") else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
