"""``python -m benchmarks.figures [model=DIR] [only=generation,cold_start] [pairs=10] [out=runs/figures]``

Measures every figure that the README claims, one JSON file a group, and writes what has been measured so far as
``figures.md``, beside a calibration of the machine. The model is a
random-weight Qwen3-0.6B at INT4, made when it is not there; another prepared directory without classification.json
does too. Exit code 0 when every bar is reached, 1 when one is missed, 2 for a wrong word.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import analysis, behaviour, classification, client_health, generation, quota, tracing
from benchmarks.figures.calibration import calibrate
from benchmarks.figures.table import Figure
from benchmarks.figures.workload import random_model

FIGURES: dict[str, Callable[[Path, Path, int], list[Figure]]] = {
    "generation": generation.measure,
    "cold_start": generation.cold_start,
    "classify_tiny": classification.tiny,
    "classify_scoring": classification.scoring,
    "responsiveness": behaviour.responsiveness,
    "overload": behaviour.overload,
    "drain": behaviour.drain,
    "quota": quota.measure,
    "analysis": analysis.measure,
    "client_health": client_health.measure,
    "tracing": tracing.measure,
}

WITHOUT_MODEL = {"analysis", "client_health", "tracing"}

HEAD = "| figure | measured | bar | | medians |\n|---|---|---|---|---|"


def _write_table(out: Path, machine: dict[str, str | float | list[str]]) -> None:
    """``figures.md`` of every group measured so far, in the order of FIGURES."""
    lines = [f"Machine: {json.dumps(machine)}", "", HEAD]
    for name in FIGURES:
        if (out / f"{name}.json").exists():
            rows = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
            lines += [Figure(**row).row() for row in rows]
    (out / "figures.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        print(__doc__)
        print(f"figures: {', '.join(FIGURES)}")
        return 0
    settings = {
        "model": "",
        "only": ",".join(FIGURES),
        "pairs": "10",
        "out": "runs/figures",
    }
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in settings:
            print(f"unknown word {word!r}; allowed: {', '.join(f'{name}=' for name in settings)}", file=sys.stderr)
            return 2
        settings[key] = value
    unknown = [name for name in settings["only"].split(",") if name not in FIGURES]
    if unknown:
        print(f"unknown figures {', '.join(unknown)}; there are {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    needed = not set(settings["only"].split(",")) <= WITHOUT_MODEL
    model = Path(settings["model"]) if settings["model"] else random_model() if needed else Path()
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    machine = calibrate()
    print(json.dumps(machine))
    print(HEAD)
    for name in settings["only"].split(","):
        begin = time.monotonic()
        print(f"{name} ...", file=sys.stderr)
        rows = FIGURES[name](model, out / name, int(settings["pairs"]))
        for figure in rows:
            print(figure.row(), flush=True)
        found += rows
        (out / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    _write_table(out, machine)
    missed = [figure.name for figure in found if not figure.reached]
    print(json.dumps({"figures": len(found), "missed": missed, "folder": str(out)}, ensure_ascii=False))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
