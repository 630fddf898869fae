"""Tiers: tests that need a real component run where it is, and are skipped with one line each where it is not.

``REQUIRE_TIERS="ollama lmdeploy"`` turns the skip of these tiers into a failure: CI sets it, so that a tier that
should run cannot go missing silently.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from model_server.cache import cache_dir

for shared in ("infra", "monitoring", "telemetry"):  # with import mode importlib tests are no package
    sys.path.insert(0, str(Path(__file__).parent / shared))
pytest_plugins = ["cluster_fixture", "otlp_collector"]

CACHE = cache_dir()


def _environment(name):
    python = CACHE / "venvs" / name / "bin" / "python"
    return None if python.exists() else f"no {name} environment: make {name}-env"


def _binary(name, advice):
    built = CACHE / "bin" / name
    return None if shutil.which(name) or built.exists() else f"no {name} on PATH: {advice}"


def _training():
    return _environment("training") or _environment("export")


def _docker():
    if shutil.which("docker") is None:
        return "no docker on PATH"
    answer = subprocess.run(["docker", "version"], capture_output=True, check=False)
    return None if answer.returncode == 0 else "no Docker Engine answers"


def _cluster():
    from cluster_fixture import why_no_cluster

    return why_no_cluster()


def _cgroup():
    group = Path("/sys/fs/cgroup")
    hierarchy = group / "memory" if (group / "memory").is_dir() else group
    return None if os.geteuid() == 0 and os.access(hierarchy, os.W_OK) else "control groups are not writable here"


def _browser():
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if Path("/usr/bin/chromium").exists() else "no /usr/bin/chromium: apt-get install chromium"


TIERS = {
    "training": _training,
    "lmdeploy": lambda: _environment("lmdeploy"),
    "ollama": lambda: _binary("ollama", "tests/tools/build.sh ollama"),
    "docker": _docker,
    "systemd": _docker,
    "cluster": _cluster,
    "helm": lambda: _binary("helm", "tests/tools/build.sh helm"),
    "cgroup": _cgroup,
    "browser": _browser,
    "policy": lambda: _environment("policy"),
    "promtool": lambda: _binary("promtool", "apt-get install prometheus"),
    "slow": lambda: None if os.environ.get("SLOW") else "minutes each: SLOW=1 make test",
    "computing": lambda: None if os.environ.get("SLOW") else "minutes each: SLOW=1 make test",
}

_absent = {}
"""Tier -> why it cannot run here, asked once."""
_skipped = Counter()


def pytest_collection_modifyitems(items):
    required = set(os.environ.get("REQUIRE_TIERS", "").split())
    unknown = required - TIERS.keys()
    if unknown:
        raise pytest.UsageError(f"REQUIRE_TIERS names unknown tiers {sorted(unknown)}; there are {sorted(TIERS)}")
    for item in items:
        for tier in (mark.name for mark in item.iter_markers() if mark.name in TIERS):
            if tier not in _absent:
                _absent[tier] = TIERS[tier]()
            if _absent[tier] is None:
                continue
            if tier in required:
                item.add_marker(pytest.mark.usefixtures("_missing_tier"))
                item.user_properties.append(("missing_tier", f"{tier}: {_absent[tier]}"))
            else:
                _skipped[tier] += 1
                item.add_marker(pytest.mark.skip(reason=f"{tier}: {_absent[tier]}"))


@pytest.fixture
def _missing_tier(request):
    reasons = [value for name, value in request.node.user_properties if name == "missing_tier"]
    pytest.fail(f"REQUIRE_TIERS asks for this tier, but {'; '.join(reasons)}", pytrace=False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def pytest_terminal_summary(terminalreporter):
    for tier, number in sorted(_skipped.items()):
        terminalreporter.write_line(f"skipped tier {tier} ({number} tests): {_absent[tier]}")
