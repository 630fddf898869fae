"""Where and with what a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "locust",
    "gevent",
    "geventhttpclient",
    "pandas",
    "pyarrow",
    "scipy",
    "openvino",
    "openvino-genai",
)


def machine() -> dict[str, Any]:
    """Facts that decide speed; None where the system does not say."""
    memory = psutil.virtual_memory()
    return {
        "cpu_model": _cpu_model(),
        "cpu_features": _cpu_features(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def software() -> dict[str, Any]:
    """Versions of what measures and, where it runs from the same environment, of what is measured."""
    found: dict[str, Any] = {"python": platform.python_version(), "git_revision": _git_revision()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def command_line() -> list[str]:
    """What was typed; the interpreter's own path says nothing."""
    return ["python", *sys.orig_argv[1:]]


def _cpu_model() -> str | None:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _cpu_features() -> list[str]:
    """Instruction sets that change the speed of quantised models several-fold."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    flags = next((line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("flags")), "").split()
    return [name for name in wanted if name in flags]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str | None:
    return next(iter(_lines(path)), None)


def _git_revision() -> str | None:
    """Revision of the working tree, with ``+`` when it has changes."""
    root = Path(__file__).parent.parent
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()
