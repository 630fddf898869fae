"""The bars of the tiny model: both difficulties of the generator, three seeds each, beside the two baselines.

    python -m training.tiny_figures [out=runs/tiny-figures] [key=value of training.tiny ...]

in the default environment; about four minutes of two cores for each of the six. What is there already with the same
settings is not made again. Prints a table; exit code 1 where a bar is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import runconfig
from model_server.errors import ConfigurationError
from training import tiny
from training.calls import Difficulty

SEEDS = (0, 1, 2)
DIFFICULTIES: tuple[Difficulty, ...] = ("standard", "hard")


def missed(figures: Mapping[str, Any], difficulty: Difficulty) -> list[str]:
    """Bars that a run misses."""
    bars = {
        "macro-F1 >= 0.93": figures["macro_f1"] >= 0.93,
        "calibration error <= 0.03": figures["ece_15"] <= 0.03,
        "keywords <= 0.68": figures["keywords_macro_f1"] <= 0.68,
    }
    if difficulty == "hard":
        bars["0.05 above n-grams"] = figures["macro_f1"] - figures["tfidf_logistic_regression_macro_f1"] >= 0.05
        bars["ordinal >= 0.85"] = figures["ordinal_accuracy"] >= 0.85
    return [name for name, met in bars.items() if not met]


def main(config: tiny.TinySettings) -> int:
    """
    Raises:
        ConfigurationError: An environment is missing, or ``out`` holds something else.
        StepFailedError: A command failed.
    """
    print("difficulty seed  macro-F1  ordinal    ECE  natural  keywords  n-grams  missed")
    worst = 0
    for difficulty in DIFFICULTIES:
        for seed in SEEDS:
            out = config.out / f"{difficulty}-{seed}"
            changes = {"seed": seed, "difficulty": difficulty, "out": out, "serve": False, "publish": None}
            found = tiny.main(config.model_copy(update=changes))
            bars = missed(found, difficulty)
            worst = max(worst, len(bars))
            ordinal = "-" if found["ordinal_accuracy"] is None else f"{found['ordinal_accuracy']:.3f}"
            print(
                f"{difficulty:10} {seed:4}  {found['macro_f1']:8.3f}  {ordinal:>7}  {found['ece_15']:5.3f}"
                f"  {found['natural_accuracy']:7.3f}  {found['keywords_macro_f1']:8.3f}"
                f"  {found['tfidf_logistic_regression_macro_f1']:7.3f}  {', '.join(bars) or '-'}",
                flush=True,
            )
    print(json.dumps({"runs": len(SEEDS) * len(DIFFICULTIES), "bars_missed_at_most": worst}))
    return 1 if worst else 0


def run(words: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    if {"-h", "--help"} & set(words):
        print(__doc__, file=sys.stderr)
        return 0
    try:
        return main(runconfig.load(tiny.TinySettings, None, [f"out={Path('runs/tiny-figures')}", *words]))
    except (runconfig.ConfigError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        return 2
    except tiny.StepFailedError as error:
        print(f"{error.told}\n{error.title} failed with exit code {error.status}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
