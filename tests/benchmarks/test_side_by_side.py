"""Folders that were measured one after the other: figures beside each other, and no verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.results import MANIFEST, RESULTS_VERSION

SCENARIO = "name: t\ntexts: ['a #x', 'b #y']\nusers: 2\nrequests: 40\npause_s: 0\npairs: 2\n"


@pytest.fixture(scope="module")
def measured(truth_server, tmp_path_factory) -> Path:
    """``fast`` and ``slow``, which takes 3 times as long; ``pair`` compares the two; ``other`` sends less.

    Both long enough that what a busy machine adds is small beside them.
    """
    folder = tmp_path_factory.mktemp("measured")
    scenario = folder / "s.yml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    fast, slow = truth_server("service_ms=60"), truth_server("service_ms=180")
    words = [str(scenario), "--quiet"]
    assert main(["run", *words, f"url={fast.url}", f"out={folder / 'fast'}"]) == 0
    assert main(["run", *words, f"url={slow.url}", f"out={folder / 'slow'}"]) == 0
    assert main(["run", *words, f"url={fast.url}", f"out={folder / 'other'}", "requests=20"]) == 0
    assert main(["compare", *words, f"a={fast.url}", f"b={slow.url}", f"out={folder / 'pair'}"]) in {1, 3}
    return folder


@pytest.fixture
def report(measured, monkeypatch, capsys):
    """``report`` where the folders are: exit code, text, the document at its end, stderr."""
    monkeypatch.chdir(measured)

    def run(*words):
        capsys.readouterr()
        code = main(["report", *words])
        out, err = capsys.readouterr()
        return code, out, json.loads(out.splitlines()[-1]) if out else None, err

    return run


def changed(measured, name, change):
    """A copy of ``slow`` whose manifest went through ``change``."""
    shutil.copytree(measured / "slow", measured / name)
    path = measured / name / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_figures_stand_side_by_side_with_their_ratios_and_without_a_verdict(report, measured):
    code, text, document, _ = report("fast", "slow")

    assert code == document["exit_code"] == 0
    assert document["verdict"] is None
    fast, slow = (json.loads((measured / name / "summary.json").read_bytes()) for name in ("fast", "slow"))
    for figure in ("p50_latency_ms", "qps"):
        assert document["ratios"][figure] == [1.0, pytest.approx(slow[figure] / fast[figure])]
    assert document["ratios"]["p50_latency_ms"] == [1.0, pytest.approx(3, rel=0.15)]
    assert document["ratios"]["qps"] == [1.0, pytest.approx(1 / 3, rel=0.15)]
    assert document["figures"]["total_requests"] == [40, 40]
    [row] = [line for line in text.splitlines() if line.startswith("median latency")]
    assert row.split()[-1] == f"{document['ratios']['p50_latency_ms'][1]:.3f}"
    assert "p99 latency" in text
    assert "too few requests" in text
    assert "not measured in turns" in text
    assert {"server.url"} <= set(document["different"]) <= {"server.url", "machine.load_average"}


def test_what_else_differs_is_named(report, measured):
    def move(manifest):
        manifest["machine"]["cpu_model"] = "Another CPU"
        manifest["software"]["git_revision"] = "0123abc"
        manifest["sides"]["a"]["description"] = {"weight_bits": 4}
        manifest["scenario"]["warmup_s"] = 9.0

    changed(measured, "moved", move)
    _, text, document, _ = report("slow", "moved", "slow")

    assert {"machine.cpu_model", "software.git_revision", "server.says.weight_bits", "scenario.warmup_s"} == set(
        document["different"]
    )
    own = json.loads((measured / "slow" / "manifest.json").read_bytes())
    assert f"  machine.cpu_model: {own['machine']['cpu_model']} (1, 3); Another CPU (2)" in text
    assert "  scenario.warmup_s: 0.0 (1, 3); 9.0 (2)" in text


def test_a_comparison_has_a_column_for_each_side(report):
    _, text, document, _ = report("slow", "pair", "lang=zh")

    assert [column["column"] for column in document["columns"]] == ["1", "2a", "2b"]
    assert document["ratios"]["p50_latency_ms"] == [1.0, pytest.approx(1 / 3, rel=0.15), pytest.approx(1, rel=0.15)]
    assert "延迟中位数" in text
    assert "不作判定" in text
    assert "not measured" not in text


def test_loads_that_a_search_chose_are_compared_one_by_one(report, measured, truth_server):
    for name, milliseconds in (("up", 60), ("down", 180)):
        url = truth_server(f"service_ms={milliseconds}").url
        words = ["requests=null", "duration_s=2", "users=1", "maximum=2", f"out={measured / name}", "--quiet"]
        assert main(["stress", str(measured / "s.yml"), f"url={url}", *words]) == 0

    _, text, document, _ = report("up", "down")

    assert document["ratios"]["2.qps"] == [1.0, pytest.approx(1 / 3, rel=0.25)]
    assert "2 users: requests per second" in text
    assert "knee, users" in text
    assert "total_requests" not in document["figures"]


def test_json_is_all_that_is_printed_where_it_is_asked_for(report):
    _, text, document, _ = report("fast", "slow", "--json")

    assert text == json.dumps(document, ensure_ascii=False) + "\n"


def test_a_folder_that_was_interrupted_says_so(report, measured):
    changed(measured, "part", lambda manifest: manifest.update(complete=False))

    assert "slow  run" in report("slow", "part")[1]
    assert "PASS  (interrupted)" in report("slow", "part")[1]


def test_a_reader_that_leaves_early_changes_nothing(report, measured):
    """As ``report ... | head -1`` does."""
    command = [sys.executable, "-m", "benchmarks", "report", "fast", "slow"]
    process = subprocess.Popen(command, cwd=measured, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()

    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 0
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fast", "other"), "did different work: requests is 40 in fast and 20 in other: run one of them again"),
        (("fast", "fast", "other"), "did different work"),
        (("fast", "nowhere"), "nowhere is not a results folder"),
        (("fast", "old"), "has results of version 1; this program reads"),
        (("fast", "candidates"), "candidates holds comparisons of its own"),
        (("fast", "killed"), "go on with python -m benchmarks resume killed"),
        (("fast", "slow", "lnag=zh"), "expected lang=..., got 'lnag=zh'"),
        (("lang=zh",), "report needs a results folder"),
    ],
)
def test_what_cannot_stand_side_by_side_is_said_in_one_line(report, measured, words, said):
    for name, version in (("old", 1), ("candidates", RESULTS_VERSION)):
        (measured / name).mkdir(exist_ok=True)
        document = {key: kind() for key, kind in MANIFEST.items()} | {"results_version": version, "kind": "tune"}
        (measured / name / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    if not (measured / "killed").exists():
        shutil.copytree(measured / "slow", measured / "killed")
        (measured / "killed" / "summary.json").unlink()

    code, text, _, err = report(*words)

    assert (code, text) == (2, "")
    assert said in err
    assert "Traceback" not in err
