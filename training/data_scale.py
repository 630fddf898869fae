"""What a million calls cost to prepare beside a hundred thousand: time a call and peak memory.

    python -m training.data_scale [small=100000] [large=1000000] [folder=runs/data_scale]

makes both sets with the generator (one call in fifty is said again with another word, one in a hundred is an exact
copy), prepares each in a process of its own, and compares. CPU time is compared, since wall time on a shared
machine says who else was there; both are printed. Exit code 1 where the larger set takes over 1.3 times as long a
call, or over 1.25 times the memory and 1 KB for each further call.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import Field

import runconfig
from training.calls import CallSettings, make_call

MOST_TIME = 1.3
MOST_MEMORY = 1.25
MORE_BYTES_PER_CALL = 1024


class ScaleSettings(runconfig.RunConfig):
    """Words of the command line."""

    small: int = Field(default=100_000, ge=1_000)
    large: int = Field(default=1_000_000, ge=2_000)
    folder: Path = Path("runs/data_scale")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one preparation."""

    calls: int
    cpu_s: float
    wall_s: float
    peak_bytes: int


def write_calls(path: Path, count: int, seed: int) -> None:
    """Raw calls as JSON lines, planted near-duplicates and copies among them."""
    settings = CallSettings(seed=seed)
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        last = ""
        for index in range(count):
            call = make_call(index, settings)[0].model_dump()
            draw = rng.random()
            if last and draw < 0.03:
                again = json.loads(last)
                call |= {name: again[name] for name in ("input_text", "complaint_category", "metadata")}
                if draw < 0.02:
                    call["input_text"] += "\n客户:麻烦您了"
            last = json.dumps(call, ensure_ascii=False)
            file.write(last + "\n")


def cost_of(path: Path, calls: int) -> Cost:
    """Prepare the calls in a process of its own.

    Raises:
        RuntimeError: The preparation failed.
    """
    command = [sys.executable, "-m", "training.data", str(path.with_suffix(".yml"))]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    wall_s = time.monotonic() - started
    # Linux counts ru_maxrss in KiB.
    return Cost(calls, usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss * 1024)


def main(arguments: Sequence[str]) -> int:
    try:
        words = runconfig.load(ScaleSettings, None, arguments)
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    words.folder.mkdir(parents=True, exist_ok=True)
    costs = []
    for calls in (words.small, words.large):
        path = words.folder / f"{calls}.jsonl"
        print(f"making {calls} calls", file=sys.stderr)
        write_calls(path, calls, words.seed)
        settings = {
            "sources": [{"path": str(path)}],
            "out": str(words.folder / str(calls)),
            "replace": True,
            "conflicts": "drop",
        }
        path.with_suffix(".yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        cost = cost_of(path, calls)
        costs.append(cost)
        path.unlink()
        print(
            f"{calls:>9} calls: {cost.cpu_s:.1f} s of CPU ({cost.cpu_s / calls * 1e6:.0f} us a call), "
            f"{cost.wall_s:.1f} s, peak {cost.peak_bytes / 1e6:.0f} MB"
        )
    small, large = costs
    time_ratio = large.cpu_s / large.calls / (small.cpu_s / small.calls)
    allowed_bytes = MOST_MEMORY * small.peak_bytes + MORE_BYTES_PER_CALL * (large.calls - small.calls)
    print(
        f"time a call x{time_ratio:.2f} (allowed {MOST_TIME}); memory {large.peak_bytes / allowed_bytes:.2f} of allowed"
    )
    figures = {
        "small": asdict(small),
        "large": asdict(large),
        "time_ratio": time_ratio,
        "peak_bytes_allowed": allowed_bytes,
    }
    print(json.dumps(figures))
    return 0 if time_ratio <= MOST_TIME and large.peak_bytes <= allowed_bytes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
