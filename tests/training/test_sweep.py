"""Sweeps: what is tried and in which order, what is chosen, and that nothing is made twice or lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.training
OVER = "over={learning_rate: [1e-3, 3e-3], mass_weight: [0, 0.1]}"
NAMES = [f"learning_rate={rate},mass_weight={weight}" for rate in ("0.001", "0.003") for weight in ("0.0", "0.1")]


def sweep(training, config, out, *words, **task):
    return training.task(run=["training.sweep", str(config), f"out={out}", "steps=4", *words], **task)


def results(out):
    return json.loads((out / "results.json").read_bytes())


def adapters(out):
    """sha256 of every best adapter below a sweep's folder, by the folder of its run."""
    return {
        str(path.relative_to(out).parents[1]): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.glob("*/*/best/adapter_model.safetensors")
    }


@pytest.fixture(scope="module")
def swept(training, small, tmp_path_factory):
    """Four points of two seeds, on data whose test part cannot be read."""
    home = tmp_path_factory.mktemp("sweep")
    data = home / "data"
    shutil.copytree(small.data, data)
    (data / "test.parquet").write_bytes(b"not for a sweep")
    done = sweep(training, small.config, home / "out", OVER, "seeds=[0, 1]", f"data={data}")
    assert done.status == 0, done.stderr
    return SimpleNamespace(out=home / "out", data=data, done=done, report=json.loads(done.stdout.splitlines()[-1]))


def test_points_are_all_combinations_in_the_order_of_their_values(swept):
    found = results(swept.out)
    assert [point["point"] for point in found["points"]] == NAMES
    assert found["points"][1]["settings"] == {"learning_rate": 0.001, "mass_weight": 0.1}
    assert sorted(adapters(swept.out)) == sorted(f"{name}/seed-{seed}" for name in NAMES for seed in (0, 1))
    told = re.findall(r"run (\d) of 8: (\S+), seed (\d)", swept.done.stderr)
    assert told == [(str(2 * at + seed + 1), name, str(seed)) for at, name in enumerate(NAMES) for seed in (0, 1)]
    assert "min left" in swept.done.stderr


def test_the_point_with_the_highest_mean_over_its_seeds_is_chosen(swept):
    """Worked out anew from what each run wrote of its validation calls."""
    means = {}
    for point in results(swept.out)["points"]:
        scores = []
        for run in point["runs"]:
            lines = (swept.out / point["point"] / f"seed-{run['seed']}" / "metrics.jsonl").read_text().splitlines()
            scores.append(max(json.loads(line).get("validation_macro_f1", 0) for line in lines))
            assert run["validation_macro_f1"] == scores[-1]
        assert point["validation_macro_f1_mean"] == pytest.approx(sum(scores) / 2)
        assert point["validation_macro_f1_spread"] == pytest.approx(statistics.stdev(scores))
        means[point["point"]] = sum(scores) / 2
    best = max(means, key=means.get)
    assert swept.report["chosen"]["point"] == best
    assert swept.report["chosen_run"].startswith(str(swept.out / best / "seed-"))
    table = (swept.out / "results.md").read_text("utf-8").splitlines()
    rows = [line for line in table if line.startswith("| 0.00")]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {rate}", weight] for rate in ("0.001", "0.003") for weight in ("0.0", "0.1")
    ]
    assert [NAMES[at] for at, row in enumerate(rows) if "**chosen**" in row] == [best]


def test_the_test_part_is_never_opened(training, small, swept, tmp_path):
    """The fixture's could not be read; here nothing may so much as try, in a sweep that is made from the start."""
    words = [str(small.config), f"out={tmp_path / 'out'}", "over={mass_weight: [0.1]}", "steps=2", f"data={swept.data}"]
    code = f"""
import os, sys
from training import sweep
opened = []
sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
status = sweep.run({words!r})
print(status)
print(__import__("json").dumps([status, [path for path in opened if path.startswith({str(swept.data)!r})]]))
"""
    status, opened = training.code(code)
    assert status == 0
    assert {path.rsplit("/", 1)[-1] for path in opened} == {"manifest.json", "train.parquet", "validation.parquet"}


def test_a_killed_sweep_goes_on_where_it_was_and_ends_as_if_nothing_had_been(training, small, swept, tmp_path):
    """SIGKILL in the third run: two are left as they are, it goes on from its checkpoint, the rest is made."""
    out = tmp_path / "out"
    words = [OVER, "seeds=[0, 1]", f"data={swept.data}", "checkpoint_every=1"]
    third = out / NAMES[1] / "seed-0"
    killed = sweep(training, small.config, out, *words, kill_after_lines=[str(third / "metrics.jsonl"), 3], signal=9)
    assert killed.status == -9
    finished = {run: (out / run / "best" / "adapter_model.safetensors").stat().st_mtime_ns for run in adapters(out)}
    assert set(finished) >= {f"{NAMES[0]}/seed-0", f"{NAMES[0]}/seed-1"}
    before = results(out)["points"][0]["runs"]
    done = sweep(training, small.config, out, *words)
    assert done.status == 0, done.stderr
    assert done.stderr.count("holds this run already, finished") == 2
    assert f"going on from {third}/checkpoints/" in done.stderr
    for run in (f"{NAMES[0]}/seed-0", f"{NAMES[0]}/seed-1"):
        assert (out / run / "best" / "adapter_model.safetensors").stat().st_mtime_ns == finished[run]
    assert results(out)["points"][0]["runs"] == before, "also how long they took"
    assert adapters(out) == adapters(swept.out)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["chosen"] == swept.report["chosen"]


def test_a_sweep_asked_to_stop_says_how_to_go_on(training, small, tmp_path):
    metrics = tmp_path / "out" / "mass_weight=0.1" / "seed-0" / "metrics.jsonl"
    words = ["over={mass_weight: [0.1, 1]}", "steps=200"]
    done = sweep(training, small.config, tmp_path / "out", *words, kill_after_lines=[str(metrics), 2], signal=15)
    assert done.status == 143
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_values_train_only_what_is_new(training, small, swept):
    words = ["over={learning_rate: [0.001, 5e-4], mass_weight: [0]}", "seeds=[0]", f"data={swept.data}"]
    done = sweep(training, small.config, swept.out, *words)
    assert done.status == 0, done.stderr
    assert done.stderr.count("holds this run already, finished") == 1
    assert (swept.out / "learning_rate=0.0005,mass_weight=0.0" / "seed-0" / "best").is_dir()


def test_a_run_that_diverges_is_reported_and_its_point_is_not_chosen(training, small, tmp_path):
    """A learning rate at which float32 overflows in the second step."""
    out = tmp_path / "out"
    done = sweep(training, small.config, out, "over={learning_rate: [1e38, 1e-3]}", "method=full", "warmup_steps=0")
    assert done.status == 1, done.stderr
    bad, good = results(out)["points"]
    assert "is not a finite number" in bad["runs"][0]["failure"]
    assert good["runs"][0]["validation_macro_f1"] is not None
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["chosen"]["settings"], report["failed"]) == ({"learning_rate": 0.001}, 1)
    assert "0 of 1, 1 failed" in (out / "results.md").read_text("utf-8")


def test_a_dry_run_predicts_and_trains_nothing(training, small, tmp_path):
    out = tmp_path / "out"
    words = ["over={lora.rank: [4, 16], mass_weight: [0, 1]}", "seeds=[0, 1, 2]", "dry_run=true"]
    done = sweep(training, small.config, out, *words)
    assert done.status == 0, done.stderr
    assert not out.exists()
    assert "4 points, 12 runs" in done.stdout
    report = json.loads(done.stdout.splitlines()[-1])
    few, same, many, _ = report["points"]
    assert few["point"] == "lora.rank=4,mass_weight=0.0"
    assert few["seconds"] == same["seconds"] > 0, "what costs the same is predicted once"
    assert few["disk_bytes"] < many["disk_bytes"]
    assert report["seconds"] == pytest.approx(3 * sum(point["seconds"] for point in report["points"]), abs=0.1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "over: missing"),
        (["over={learning_rat: [1]}"], "the point learning_rat=1: "),
        (["over={learning_rat: [1]}"], "did you mean 'learning_rate'"),
        (["over={learning_rate: [1e-3, -1]}"], "the point learning_rate=-1: "),
        (["over={learning_rate: [1e-3, 0.001]}"], "the point learning_rate=0.001 is there twice"),
        (["over={learning_rate: []}"], "learning_rate has no values"),
        (["over={learning_rate: 1e-3}"], "over.learning_rate"),
        (["over={seed: [0, 1]}"], "seed cannot be swept: name seeds="),
        (["over={threads: [1, 2]}"], "it does not change what is learned"),
        (["over={data: [a, b]}"], "compared on different validation calls"),
        ([OVER, "seeds=[1, 1]"], "seeds must differ"),
        ([OVER, "stepss=3"], "did you mean 'steps'"),
        ([OVER, "base_model=nowhere"], "no such file or directory"),
        (["over={micro_batch: [4, 65536]}", "batch=65536"], "the point micro_batch=65536: this run does not fit"),
        (["over={lora.rank: [8]}", "out=/dev/null/sweep"], "out /dev/null/sweep cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misuse_is_explained_before_anything_is_trained(training, small, tmp_path, words, told):
    done = sweep(training, small.config, tmp_path / "out", *words)
    assert done.status == 2, done.stderr
    assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_sweep_is_refused(training, small, swept):
    done = sweep(training, small.config, swept.out, OVER, "steps=6", f"data={swept.data}")
    assert done.status == 2, done.stderr
    assert "config.steps: was 4, is 6" in done.stderr
