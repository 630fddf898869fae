"""``python -m benchmarks.figures [model=DIR] [only=generation,cold_start] [pairs=10] [out=runs/figures]``

Measures every figure that the README claims and writes them as ``figures.md`` and ``figures.json``. The model is a
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

from benchmarks.figures import behaviour, classification, generation, quota
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
}


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
    model = Path(settings["model"]) if settings["model"] else random_model()
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    print("| figure | measured | bar | | medians |\n|---|---|---|---|---|")
    for name in settings["only"].split(","):
        begin = time.monotonic()
        print(f"{name} ...", file=sys.stderr)
        rows = FIGURES[name](model, out / name, int(settings["pairs"]))
        for figure in rows:
            print(figure.row(), flush=True)
        found += rows
        (out / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    missed = [figure.name for figure in found if not figure.reached]
    print(json.dumps({"figures": len(found), "missed": missed, "folder": str(out)}, ensure_ascii=False))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
