"""A run that is killed anywhere goes on as if nothing had been: the same metrics and weights, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest

pytestmark = pytest.mark.training


def files_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(training, small):
    """The run that nothing disturbs, and how often it changes its directory."""
    run_dir = small.folder / "whole"
    done = training.finetune(small.config, f"run_dir={run_dir}", watched=str(run_dir))
    assert done.status == 0, done.stderr
    done.run_dir = run_dir
    return done


def same(run_dir, whole):
    """Metrics and the best model, byte for byte."""
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole.run_dir / "metrics.jsonl").read_bytes()
    assert files_of(run_dir / "best") == files_of(whole.run_dir / "best")
    return True


def kill_and_go_on(training, small, whole, run_dir, **how):
    shutil.rmtree(run_dir, ignore_errors=True)
    killed = training.finetune(small.config, f"run_dir={run_dir}", watched=str(run_dir), **how)
    again = training.finetune(small.config, f"run_dir={run_dir}")
    assert again.status == 0, again.stderr
    assert "damaged" not in again.stderr
    assert same(run_dir, whole)
    return killed


def test_killed_at_write_points_it_goes_on_bit_for_bit(training, small, whole, tmp_path):
    """A few of its changes of the run directory; the slow test takes more of them."""
    assert whole.events > 60
    for event in range(7, whole.events, whole.events // 4):
        assert kill_and_go_on(training, small, whole, tmp_path / "run", kill_at_event=event).status == -9


@pytest.mark.computing
@pytest.mark.timeout(3600)
def test_killed_at_every_write_point_and_at_random_moments_it_goes_on_bit_for_bit(
    training, small, whole, tmp_path, capsys
):
    """CRASH_POINTS=all takes every write point, ten minutes; without, every tenth."""
    apart, moments = (1, 60) if os.environ.get("CRASH_POINTS") == "all" else (10, 5)
    events = range(1, whole.events + 1, apart)
    run_dir = tmp_path / "run"
    for event in events:
        assert kill_and_go_on(training, small, whole, run_dir, kill_at_event=event).status == -9
    rng = random.Random(0)
    killed = []
    for _ in range(moments):
        moment = {"kill_after_lines": [str(run_dir / "metrics.jsonl"), rng.randrange(1, 10)], "signal": 9}
        how = kill_and_go_on(training, small, whole, run_dir, **moment, kill_after_s=rng.uniform(0, 0.05))
        killed.append(how.status)
    assert killed.count(-9) >= moments / 2
    with capsys.disabled():
        print(
            f"\nkilled at {len(events)} of {whole.events} write points and at {killed.count(-9)} random moments: "
            "metrics and best model equal the undisturbed run's byte for byte"
        )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_after_a_checkpoint_and_says_how_to_go_on(training, small, whole, tmp_path, number, status):
    run_dir = tmp_path / "run"
    stopped = training.finetune(
        small.config, f"run_dir={run_dir}", kill_after_lines=[str(run_dir / "metrics.jsonl"), 3], signal=int(number)
    )
    assert stopped.status == status, stopped.stderr
    command = f"python -m training.finetune {run_dir}/config.yml"
    assert command in stopped.stderr
    again = training.finetune(run_dir / "config.yml")
    assert again.status == 0, again.stderr
    assert same(run_dir, whole)


def test_a_damaged_checkpoint_is_named_and_skipped(training, small, whole, tmp_path):
    run_dir = tmp_path / "run"
    killed = training.finetune(
        small.config, f"run_dir={run_dir}", kill_after_lines=[str(run_dir / "metrics.jsonl"), 8], signal=9
    )
    assert killed.status == -9
    newest = max((run_dir / "checkpoints").glob("step-*"))
    weights = newest / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    again = training.finetune(small.config, f"run_dir={run_dir}")
    assert again.status == 0, again.stderr
    told = f"skipping the damaged checkpoint {newest}: model/adapter_model.safetensors was truncated or altered"
    assert told in again.stderr
    assert "going on from" in again.stderr
    assert same(run_dir, whole)


def test_any_damage_to_any_file_of_the_newest_is_noticed(training, whole):
    """Each file truncated, emptied, deleted, with one bit turned; the checkpoint before is taken instead."""
    code = f"""
import json, shutil
from pathlib import Path
from training import checkpoints
kept = Path({str(whole.run_dir / "checkpoints")!r})
folder = kept.parent / "damaged"
damages = {{
    "truncated": lambda raw: raw[: len(raw) // 2], "emptied": lambda raw: b"", "deleted": lambda raw: None,
    "one bit": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
}}
found = []
for name in sorted(p.relative_to(kept / "step-000008") for p in (kept / "step-000008").rglob("*") if p.is_file()):
    for how, damage in damages.items():
        shutil.copytree(kept, folder)
        file = folder / "step-000008" / name
        raw = damage(file.read_bytes())
        file.unlink() if raw is None else file.write_bytes(raw)
        usable, wrong = checkpoints.newest_valid(folder)
        found.append([str(name), how, usable.name, wrong])
        shutil.rmtree(folder)
print(json.dumps(found))
"""
    found = training.code(code)
    assert len(found) >= 4 * 9
    for name, how, usable, wrong in found:
        assert usable == "step-000006", (name, how)
        assert name in wrong["step-000008"], (name, how)


def test_without_any_usable_checkpoint_it_refuses(training, small, whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole.run_dir, run_dir)
    for checkpoint in (run_dir / "checkpoints").iterdir():
        (checkpoint / "optimizer.safetensors").write_bytes(b"")
    again = training.finetune(small.config, f"run_dir={run_dir}")
    assert again.status == 4
    assert "none of the checkpoints" in again.stderr
    assert "name another run_dir" in again.stderr
    assert (run_dir / "best" / "adapter_model.safetensors").stat().st_size > 0


def test_it_keeps_the_newest_and_the_best(training, small, tmp_path):
    """Steps of nearly no size: the first evaluation stays the best, its checkpoint stays beside the newest."""
    run_dir = tmp_path / "run"
    words = ["learning_rate=1e-12", "checkpoint_every=1", "keep_checkpoints=2"]
    done = training.finetune(small.config, f"run_dir={run_dir}", *words)
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["best_step"] == 4
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000007",
        "step-000008",
    ]


def test_a_lost_best_model_is_made_again_from_its_checkpoint(training, small, whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole.run_dir, run_dir)
    shutil.rmtree(run_dir / "best")
    again = training.finetune(small.config, f"run_dir={run_dir}")
    assert again.status == 0, again.stderr
    assert same(run_dir, whole)


def test_settings_fitted_after_a_finished_run_are_left_alone(training, small, whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole.run_dir, run_dir)
    settings = run_dir / "best" / "classification.json"
    fitted = settings.read_text().replace('"temperature": 1.0', '"temperature": 1.7')
    settings.write_text(fitted)
    assert training.finetune(small.config, f"run_dir={run_dir}").status == 0
    assert settings.read_text() == fitted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill_after(checkpoint, disk):
    """Take all room but 300 kB, a part of a checkpoint, once that checkpoint is there."""
    while not checkpoint.exists():
        time.sleep(0.001)
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))


def test_on_a_full_disk_it_says_so_and_loses_nothing(training, small, whole, small_disk, tmp_path):
    run_dir = small_disk / "run"
    filler = threading.Thread(target=fill_after, args=(run_dir / "checkpoints" / "step-000002", small_disk))
    filler.start()
    done = training.finetune(small.config, f"run_dir={run_dir}", "keep_checkpoints=8")
    filler.join()
    assert done.status == 4, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept[0] == "step-000002"
    assert ", ".join(kept) in done.stderr
    (small_disk / "other").unlink()
    again = training.finetune(small.config, f"run_dir={run_dir}")
    assert again.status == 0, again.stderr
    assert f"going on from {run_dir}/checkpoints/{kept[-1]}" in again.stderr
    assert same(run_dir, whole)
