"""Where and with what a benchmark ran, and what work it did: what ``manifest.json`` says beside the runs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from benchmarks import fetch
from benchmarks.calls import Call, digest
from benchmarks.config import Scenario
from benchmarks.errors import ResultsError, UsageError
from benchmarks.results import OF_COMPARISONS, read_manifest

PACKAGES = (
    "locust",
    "gevent",
    "geventhttpclient",
    "numpy",
    "pandas",
    "psutil",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "openvino",
    "openvino-genai",
)
# Of Scenario, what decides the work; the rest is where it goes, how it is watched and what is concluded. A verb's own
# settings count too.
WORK = (
    *("dialect", "max_tokens", "temperature", "users", "rate_per_s", "arrivals", "duration_s", "requests"),
    *("cover_calls", "timeout_s", "seed"),
)
DESCRIPTION_TIMEOUT_S = 5.0


def workload(scenario: Scenario, calls: Sequence[Call]) -> dict[str, Any]:
    """What makes two benchmarks do the same work, and its SHA-256.

    Files that the scenario names count by what is in them.
    """
    own = type(scenario).model_fields.keys() - Scenario.model_fields.keys()
    chosen = {key: getattr(scenario, key) for key in (*WORK, *sorted(own))}
    work = {
        "calls": len(calls),
        "labelled": sum(call.label is not None for call in calls),
        "texts_sha256": digest(calls),
        **_by_content(chosen),
    }
    packed = json.dumps(work, ensure_ascii=False, sort_keys=True, default=str)
    return {"sha256": hashlib.sha256(packed.encode()).hexdigest(), **work}


def require_same_workload(a: Path, b: Path) -> None:
    """Figures of two results folders may be compared when they did the same work.

    Raises:
        UsageError: They did not; the message names what differs.
        ResultsError: One is not a results folder, or of another version.
    """
    left, right = (_workload_of(folder) for folder in (a, b))
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    different = [
        f"{key} is {left.get(key)!r} in {names[0]} and {right.get(key)!r} in {names[1]}"
        for key in dict.fromkeys((*left, *right))
        if key != "sha256" and left.get(key) != right.get(key)
    ]
    if different:
        raise UsageError(
            f"{a} and {b} cannot be compared, they did different work: {'; '.join(different)}: run one of them again "
            "with the settings of the other"
        )


def _workload_of(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest["kind"] in OF_COMPARISONS:
        raise ResultsError(f"{folder} holds comparisons of its own: name one of the folders in it")
    found: dict[str, Any] = manifest["workload"]
    return found


def description_of(url: str, api_key_env: str | None, model: str | None = None) -> dict[str, Any] | None:
    """What the server at ``url`` says it runs: our ``GET /api/v1/model``, or the model's entry in Ollama's
    ``/api/tags``, whose digest tells one file from another; None where it says nothing.
    """
    ours = _get(url + "/api/v1/model", api_key_env)
    if isinstance(ours, dict) and "name" in ours:
        return ours
    tags = _get(url + "/api/tags", api_key_env)
    models = tags.get("models") if isinstance(tags, dict) else None
    for found in models if isinstance(models, list) else ():
        if isinstance(found, dict) and model is not None and found.get("name") in {model, f"{model}:latest"}:
            return {"engine": "ollama", **found}
    return None


def machine() -> dict[str, Any]:
    """Facts that decide speed; None where the system does not say."""
    memory = psutil.virtual_memory()
    return {
        "cpu_model": _cpu_model(),
        "cpu_features": _cpu_features(),
        "cpu_flags": _cpu_flags(),
        "cpu_quota": _least(_cpu_quotas()),
        "memory_limit_gib": _gib(_least(_memory_limits())),
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
    flags = _cpu_flags()
    return [name for name in wanted if name in flags]


def _cpu_flags() -> list[str]:
    line = next((line for line in _lines(Path("/proc/cpuinfo")) if line.startswith(("flags", "Features"))), "")
    return line.partition(":")[2].split()


def _cpu_quotas() -> Iterator[float]:
    """Cores' worth of CPU time that each control group above this process may use (cgroups(7), versions 1 and 2)."""
    for group in _groups("cpu"):
        limit, _, period = (_first_line(group / "cpu.max") or "max").partition(" ")
        limit = _first_line(group / "cpu.cfs_quota_us") or limit
        period = _first_line(group / "cpu.cfs_period_us") or period
        if limit.isdigit() and period.isdigit():
            yield int(limit) / int(period)


def _memory_limits() -> Iterator[float]:
    for group in _groups("memory"):
        limit = _first_line(group / "memory.max") or _first_line(group / "memory.limit_in_bytes") or "max"
        # A group of version 1 without a limit reads 2^63 less a page.
        if limit.isdigit() and int(limit) < 1 << 60:
            yield int(limit)


def _groups(controller: str) -> Iterator[Path]:
    """The own control group and those above it, as far as they are mounted here."""
    root = Path("/sys/fs/cgroup")
    for line in _lines(Path("/proc/self/cgroup")):
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or not names:
            mount = root / names if names and (root / names).is_dir() else root / controller if names else root
            group = mount / path.strip("/")
            yield from (each for each in (group, *group.parents) if each.is_dir() and each.is_relative_to(mount))


def _least(values: Iterator[float]) -> float | None:
    return min(values, default=None)


def _gib(value: float | None) -> float | None:
    return None if value is None else round(value / 2**30, 2)


def _by_content(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _by_content(value.model_dump())
    if isinstance(value, Mapping):
        return {key: _by_content(each) for key, each in value.items()}
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)
    return value


def _get(url: str, api_key_env: str | None) -> Any:
    """The JSON at ``url``; None where there is none."""
    try:
        return json.loads(fetch.get(url, api_key_env=api_key_env, timeout_s=DESCRIPTION_TIMEOUT_S))
    except (OSError, ValueError):
        return None


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
