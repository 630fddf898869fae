"""A process of the training environment that forks for each task, and small data and bases to train on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_server.cache import cache_dir

ROOT = Path(__file__).resolve().parents[2]
TRAINING = cache_dir() / "venvs/training/bin/python"

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/nonexistent"}

WRITE_PARQUET = """
from pathlib import Path
from training import prepared
from training.calls import CallSettings, make_splits

def write(folder, seed, counts, keep):
    parts = make_splits(CallSettings(seed=seed), counts)
    prepared.write(Path(folder), {part: [call for call in calls if keep(call)] for part, calls in parts.items()})
"""


class ForkServer:
    """Tasks for tests/training/fork_server.py."""

    def __init__(self):
        self._process = subprocess.Popen(
            [TRAINING, Path(__file__).parent / "fork_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **OFFLINE},
        )

    def task(self, **task):
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return SimpleNamespace(**json.loads(self._process.stdout.readline()))

    def code(self, code):
        """Run code and return what the last line it printed says in JSON."""
        done = self.task(code=code)
        assert done.status == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def write_data(self, folder, keep="True", before="", seed=5, **counts):
        """Prepare generated calls; ``keep`` says of a ``call`` whether it is taken, after what ``before`` does."""
        self.code(
            f"{WRITE_PARQUET}\n{before}\nwrite({str(folder)!r}, {seed}, {counts!r}, lambda call: {keep})\nprint(1)"
        )

    def finetune(self, config, *words, **task):
        return self.task(run=["training.finetune", str(config), *words], **task)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def training():
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def small(training, tmp_path_factory):
    """A folder with prepared data, two bases of 2 layers, and a configuration of 8 steps that takes a second."""
    folder = tmp_path_factory.mktemp("finetune")
    training.write_data(folder / "data", train=120, validation=24, test=24)
    shape = ["vocabulary=640", "hidden=64", "layers=2", "heads=4", "kv_heads=2", "head_dim=16", "intermediate=128"]
    for name, seed in (("base", 0), ("other", 1)):
        words = [f"out={folder / name}", f"data={folder / 'data'}", f"seed={seed}", "replay=null", *shape]
        done = training.task(run=["training.new_base", "training/configs/new_base_tiny.yml", *words])
        assert done.status == 0, done.stderr
    config = folder / "config.yml"
    config.write_text(
        f"base_model: {folder / 'base'}\ndata: {folder / 'data'}\nrun_dir: {folder / 'run'}\nmethod: lora\n"
        "dtype: float32\nsteps: 8\nbatch: 8\nmicro_batch: 4\nlearning_rate: 1.0e-3\nwarmup_steps: 2\n"
        "evaluate_every: 4\ncheckpoint_every: 2\nthreads: 1\n"
    )
    return SimpleNamespace(folder=folder, config=config, data=folder / "data", base=folder / "base")
