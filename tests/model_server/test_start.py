"""The first second of a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_ends_when_told_before_anything_is_loaded():
    """The first process of a container gets no signal for which it has no handler: a pod would wait its whole grace."""
    command = [sys.executable, "-m", "model_server", "environments/local.yml", "serving.port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        process = Path(f"/proc/{server.pid}")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = dict(
                line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
            )
            if int(lines["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
                break
        loaded = "uvloop" in (process / "maps").read_text()
        server.terminate()
        said, _ = server.communicate(timeout=60)

    assert not loaded, "the handler came with the event loop, seconds after the start"
    assert server.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("module", ["model_server.engines.openvino_scorer", "model_server.engines.openvino_child"])
def test_openvino_reports_nothing_to_anybody(module, tmp_path):
    """Its reporter writes ~/intel before it sends, also without a network."""
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    program = f"import {module}, openvino, openvino_genai, time; time.sleep(0.5)"

    subprocess.run([sys.executable, "-c", program], env=environ, cwd=ROOT, check=True, timeout=120)

    assert not (tmp_path / "intel").exists()
