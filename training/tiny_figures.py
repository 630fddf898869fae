"""The bars of the tiny model: both difficulties of the generator, three seeds each, beside the two baselines.

    python -m training.tiny_figures training/configs/complaints_tiny.yml [key=value ...]

in the training environment, with the words of ``training.tiny``: ``steps=500 train_calls=8000`` tells what a quick
run reaches. A run whose evaluation lies under ``run_dir`` with the same settings is not made again. Prints a table;
exit 1 where a bar is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runconfig
from training import tiny
from training.calls import CallSettings, Difficulty

SEEDS = (0, 1, 2)
DIFFICULTIES: tuple[Difficulty, ...] = ("standard", "hard")


def measured(config: tiny.TinySettings) -> dict[str, Any]:
    """The evaluation of a run, made where it is not there."""
    path = config.run_dir / "evaluation.json"
    if path.is_file():
        before: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if before["config"] == config.model_dump(mode="json"):
            return before
    return tiny.main(config)


def missed(evaluation: Mapping[str, Any], difficulty: Difficulty) -> list[str]:
    """Bars of issue 7 that a run misses."""
    test, baselines = evaluation["test"], evaluation["baselines"]
    bars = {
        "macro-F1 >= 0.93": test["macro_f1"] >= 0.93,
        "calibration error <= 0.03": test["ece_15"] <= 0.03,
        "keywords <= 0.68": baselines["keywords"]["macro_f1"] <= 0.68,
    }
    if difficulty == "hard":
        lead = test["macro_f1"] - baselines["tfidf_logistic_regression"]["macro_f1"]
        bars["0.05 above n-grams"] = lead >= 0.05
        bars["ordinal >= 0.85"] = test["slices"]["ordinal"]["accuracy"] >= 0.85
    return [name for name, met in bars.items() if not met]


def main(config: tiny.TinySettings) -> int:
    print("difficulty seed  macro-F1  ordinal  unseen    ECE  keywords  n-grams  CPU s  missed")
    worst = 0
    for difficulty in DIFFICULTIES:
        for seed in SEEDS:
            run = config.model_copy(
                update={
                    "seed": seed,
                    "calls": CallSettings(seed=seed, difficulty=difficulty),
                    "run_dir": config.run_dir / "figures" / f"{difficulty}-{seed}",
                    "export": False,
                }
            )
            evaluation = measured(run)
            test, baselines = evaluation["test"], evaluation["baselines"]
            ordinal = test["slices"].get("ordinal", {}).get("accuracy", float("nan"))
            bars = missed(evaluation, difficulty)
            worst = max(worst, len(bars))
            print(
                f"{difficulty:10} {seed:4}  {test['macro_f1']:8.3f}  {ordinal:7.3f}"
                f"  {test['slices']['unseen_wording']['accuracy']:6.3f}  {test['ece_15']:5.3f}"
                f"  {baselines['keywords']['macro_f1']:8.3f}"
                f"  {baselines['tfidf_logistic_regression']['macro_f1']:7.3f}  {evaluation['cpu_seconds']:5}"
                f"  {', '.join(bars) or '-'}",
                flush=True,
            )
    print(json.dumps({"runs": len(SEEDS) * len(DIFFICULTIES), "bars_missed_at_most": worst}))
    return 1 if worst else 0


if __name__ == "__main__":
    try:
        settings_read = runconfig.load(tiny.TinySettings, Path(sys.argv[1]), sys.argv[2:])
    except (IndexError, runconfig.ConfigError) as error:
        print(error if isinstance(error, runconfig.ConfigError) else __doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(settings_read))
