"""A server that LMDeploy's packages are on, and whose unit gets an engine for the CPU."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

import hosts
import pytest

from model_server.cache import environment_python

VENV = "/srv/lmdeploy"
SHIM = "/srv/qwen3"
FAULTS = "/srv/faults"
STEP_S = 0.1
UNIT_DIR = "/etc/systemd/system/lmdeploy@.service.d"
FRONT_UNIT_DIR = "/etc/systemd/system/qwen3@.service.d"
DROP_IN = f"""\
[Service]
Environment=LMDEPLOY_LAUNCHER={SHIM}/tests/model_server/engines/cpu_lmdeploy.py
Environment=CPU_ENGINE=zmq CPU_ENGINE_FAULTS={FAULTS} CPU_ENGINE_STEP_S={STEP_S}
"""
"""What the role itself knows nothing of: another program behind the watchdog."""
FRONT = "/srv/front"
FRONT_DROP_IN = f"""\
[Service]
Environment=PYTHONPATH=/opt/qwen3/instances/%i/release/app:{FRONT}
"""
FRONT_PROGRAM = """\
from model_server.engines.lmdeploy import LMDeployEngine

LMDeployEngine.__init__.__kwdefaults__["backend"] = "pytorch"
"""
"""The model server insists on TurboMind, which needs a GPU, and has no setting for that."""


@contextmanager
def lmdeploy_host(name, key):
    """As :func:`hosts.host`, with the packages of this machine (7.4 GB), read-only, for the Python of the server."""
    [packages] = environment_python("lmdeploy").parents[1].glob("lib/python3*/site-packages")
    version = packages.parent.name
    mounts = (
        *("-v", f"{packages}:{VENV}/lib/{version}/site-packages:ro"),
        *("-v", f"{hosts.REPOSITORY}/tests/model_server/engines:{SHIM}/tests/model_server/engines:ro"),
        *("-v", f"{hosts.REPOSITORY}/model_server/engines:{SHIM}/model_server/engines:ro"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "AS_A_SERVER", (*hosts.AS_A_SERVER, *mounts))
        with hosts.host(name, key) as server:
            server.run("mkdir", "-p", f"{VENV}/bin", FAULTS, FRONT, UNIT_DIR, FRONT_UNIT_DIR)
            server.run("ln", "-s", f"/usr/bin/{version}", f"{VENV}/bin/python")
            write(server, f"{VENV}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
            write(server, f"{UNIT_DIR}/cpu.conf", DROP_IN)
            write(server, f"{FRONT_UNIT_DIR}/pytorch.conf", FRONT_DROP_IN)
            write(server, f"{FRONT}/sitecustomize.py", FRONT_PROGRAM)
            yield server


def write(server, path, text):
    subprocess.run(
        ["docker", "exec", "-i", server.name, "tee", path], input=text.encode(), check=True, capture_output=True
    )
