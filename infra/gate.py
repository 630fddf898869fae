"""The gate between a candidate and its traffic: ``python -m benchmarks gate``, asked with one of the site's keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PASS, FAIL, USAGE, NO_VERDICT, INVALID = 0, 1, 2, 3, 4
WORDS = {PASS: "PASS", FAIL: "FAIL", NO_VERDICT: "NO VERDICT", INVALID: "INVALID"}
KEY = "QWEN3_GATE_API_KEY"
"""Variable in which the gate finds its key."""


def first_key(text: str) -> str | None:
    """Of a file of keys, ``key`` or ``name:key`` a line (model_server/auth.py)."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line.rpartition(":")[2].strip() for line in lines if line and not line.startswith("#")]
    return keys[0] if keys else None


def ask(scenario: Path, a: str, b: str, out: Path, *, key: str | None, words: Sequence[str] = (), cwd: Path) -> int:
    """Measure ``b`` against ``a``; the gate's exit code.

    Args:
        a, b: URLs of what runs and of the candidate.
        out: New folder of the results.
        key: Of the site; None where none is asked for.
        words: ``key=value`` that change the scenario.
    """
    command = [sys.executable, "-m", "benchmarks", "gate", str(scenario), f"a={a}", f"b={b}", f"out={out}", *words]
    environ = dict(os.environ)
    if key is not None:
        environ[KEY] = key
        command.append(f"api_key_env={KEY}")
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", *command]  # a gate without its rollout only makes load
    return subprocess.run(command, cwd=cwd, env=environ, check=False, stdout=subprocess.DEVNULL).returncode


def judge(asked: Callable[[], int], *, first: bool) -> int:
    """What the gate's answer means: PASS goes on, anything else takes the candidate back with that code.

    A gate that an equal candidate passes in 99 of 100 times, and that must be passed at each of three shares, aborts
    one of 33. So what has passed before any traffic goes on until there is evidence against it.

    Args:
        asked: Runs the gate.
        first: Nothing has passed yet.
    """
    code = asked()
    if code not in {PASS, FAIL, NO_VERDICT}:  # an endpoint that was away for a moment
        code = asked()
    return PASS if code == NO_VERDICT and not first else code
