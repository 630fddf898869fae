"""What this machine can do, beside every absolute figure: they differ several times over between CPUs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROUNDS = 7
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def calibrate() -> dict[str, str | float | list[str]]:
    """Best of seven rounds each: reading 1 GiB, and a 2048 x 2048 float32 product on all cores."""
    data = np.ones(1 << 27, dtype=np.float64)
    a = np.ones((2048, 2048), dtype=np.float32)
    read_s = min(_seconds(lambda: float(data.sum())) for _ in range(ROUNDS))
    product_s = min(_seconds(lambda: a @ a) for _ in range(ROUNDS))
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in cpu.splitlines() if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": float(os.cpu_count() or 1),
        "flags": [flag for flag in FLAGS if flag in flags],
        "read_gb_per_s_one_thread": round(data.nbytes / read_s / 1e9, 1),
        "float32_gflop_per_s": round(2 * 2048**3 / product_s / 1e9),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
