"""kill -9 in the middle, then ``resume``: nothing that was finished is sent again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.__main__ import main
from benchmarks.results import read_journal

SCENARIO = """\
name: sweep
texts: ['a #x', 'b #y', 'c #z']
users: 2
duration_s: 0.6
warmup_s: 0.2
pause_s: 0
pairs: 4
sample_interval_s: 0.1
"""


@pytest.fixture(scope="module")
def servers(truth_server):
    return truth_server("service_ms=5"), truth_server("service_ms=5")


def killed(words, out, runs):
    """Start a benchmark and kill -9 it with its load generator, in the run after ``runs`` measured ones."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *map(str, words), f"out={out}", "--quiet"], stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 90
    manifest = {"runs": []}
    while len(measured(manifest)) < runs:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
        if (out / "manifest.json").exists():
            manifest = json.loads((out / "manifest.json").read_bytes())
    seen = {run["run"] for run in manifest["runs"]}
    while not read_journal(out / "requests.jsonl")[0]["run"].gt(max(seen)).any():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return json.loads((out / "manifest.json").read_bytes())


def measured(manifest):
    return [run for run in manifest["runs"] if run["phase"] == "measure"]


def test_a_comparison_that_was_killed_goes_on_with_the_pair_it_was_in(servers, tmp_path):
    scenario, out = tmp_path / "s.yml", tmp_path / "r"
    scenario.write_text(SCENARIO, encoding="utf-8")
    a, b = servers
    before = killed(["compare", scenario, f"a={a.url}", f"b={b.url}"], out, runs=3)
    journal = (out / "requests.jsonl").read_bytes()
    whole = journal[: journal.rfind(b"\n") + 1]
    with (out / "requests.jsonl").open("ab") as file:
        file.write(b'{"run": 9, "ar')  # as a kill in the middle of a line leaves it

    code = main(["resume", str(out), "--quiet"])

    after = json.loads((out / "manifest.json").read_bytes())
    assert code in {0, 1, 3}
    assert after["complete"]
    assert len(after["resumed_at"]) == 1
    pairs = [(run["pair"], run["arm"]) for run in measured(after)]
    assert sorted(pairs) == [(pair, arm) for pair in range(4) for arm in "ab"]
    # Whole pairs are the runs of before; one whose second half was not done is done again.
    finished = {run["run"] for run in measured(before)[: len(measured(before)) // 2 * 2]}
    assert finished <= {run["run"] for run in measured(after)}
    assert (out / "requests.jsonl").read_bytes().startswith(whole)
    left_out = set(after["broken_off_runs"])
    assert left_out
    numbers = set(pq.read_table(out / "requests.parquet")["run"].to_pylist())
    assert numbers == {run["run"] for run in after["runs"]}
    assert not numbers & left_out
    in_journal, is_whole = read_journal(out / "requests.jsonl")
    assert is_whole
    assert left_out <= set(in_journal["run"])
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["a"]["total_requests"] == sum(run["requests"] for run in measured(after) if run["arm"] == "a")
    samples = pq.read_table(out / "samples.parquet")["at_s"].to_pylist()
    assert samples == sorted(samples)
    assert samples[0] < measured(before)[0]["ended_s"] < measured(after)[-1]["started_s"] < samples[-1] + 1


def test_a_stress_test_that_was_killed_goes_on_with_the_step_it_was_in(truth_server, tmp_path):
    """4 slots of 20 ms: the limit of 45 ms breaks between 8 and 12 users, whether or not it was killed on the way."""
    url = f"url={truth_server('service_ms=20', 'slots=4').url}"
    scenario, out = tmp_path / "s.yml", tmp_path / "r"
    scenario.write_text(SCENARIO, encoding="utf-8")
    words = ["stress", scenario, url, "users=1", "growth=2", "maximum=32", "objective.max_p95_latency_ms=90"]
    before = killed(words, out, runs=2)

    code = main(["resume", str(out), "--quiet"])

    after = json.loads((out / "manifest.json").read_bytes())
    summary = json.loads((out / "summary.json").read_bytes())
    assert (code, summary["verdict"], after["complete"]) == (0, "PASS", True)
    steps = [cell["users"] for cell in summary["cells"]]
    assert steps == [1, 2, 4, 8, 16, 32][: len(steps)]
    assert summary["broke"] == {"users": steps[-1], "what": mock.ANY}
    assert steps[-1] in {16, 32}
    assert summary["knee"]["users"] == pytest.approx(4, rel=0.25)
    assert [run["run"] for run in measured(after)[:2]] == [run["run"] for run in measured(before)[:2]]
    assert [run["pair"] for run in measured(after)] == list(range(len(steps)))
    [warm_up, again] = [run for run in after["runs"] if run["phase"] == "warmup"]
    assert warm_up["run"] < measured(before)[0]["run"] < after["broken_off_runs"][0] < again["run"]
    assert again["run"] < measured(after)[2]["run"]
    counted = pq.read_table(out / "requests.parquet")["run"].to_pylist()
    assert {run["run"]: run["requests"] for run in after["runs"]} == {run: counted.count(run) for run in set(counted)}


@pytest.fixture(scope="module")
def killed_gate(truth_server, tmp_path_factory):
    """Killed in its second pair; B takes a third longer."""
    a, b = truth_server("service_ms=15"), truth_server("service_ms=20")
    folder = tmp_path_factory.mktemp("gate")
    (folder / "s.yml").write_text(SCENARIO, encoding="utf-8")
    words = ["gate", folder / "s.yml", f"a={a.url}", f"b={b.url}", "max_pairs=8", "verdict.primary=latency_p50"]
    killed([*words, "budget_s=90"], folder / "r", runs=3)
    return folder / "r"


def test_a_gate_that_was_killed_looks_as_often_as_one_that_was_not(killed_gate, tmp_path):
    """FAIL at a look, whose levels are those that were planned at the beginning."""
    out = shutil.copytree(killed_gate, tmp_path / "r")
    before = json.loads((out / "manifest.json").read_bytes())

    code = main(["resume", str(out), "--quiet"])

    after = json.loads((out / "manifest.json").read_bytes())
    summary = json.loads((out / "summary.json").read_bytes())
    assert (code, summary["verdict"], after["complete"]) == (1, "FAIL", True)
    assert summary["comparison"]["ratio"] == pytest.approx(4 / 3, rel=0.1)
    sequential = summary["sequential"]
    assert sequential["levels"].keys() == {str(pairs) for pairs in range(4, 9)}
    assert [look["pairs"] for look in sequential["looks"]] == list(range(4, sequential["pairs"] + 1))
    assert sequential["stopped"] == "decided"
    pairs = [(run["pair"], run["arm"]) for run in measured(after)]
    assert sorted(pairs) == [(pair, arm) for pair in range(sequential["pairs"]) for arm in "ab"]
    assert [run["run"] for run in measured(after)[:2]] == [run["run"] for run in measured(before)[:2]]
    assert {"findings", "comparison", "guards", "quality", "sequential", "a", "b"} <= summary.keys()
    assert sequential["seconds"] > sum(run["ended_s"] - run["started_s"] for run in after["runs"][2:])


def test_a_break_does_not_renew_the_budget(killed_gate, tmp_path):
    """Had each run of the first pair taken 40 s, a budget of 90 s would have no room for a second one."""
    out = shutil.copytree(killed_gate, tmp_path / "r")
    path = out / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for run in measured(manifest)[:2]:
        run["started_s"] = run["ended_s"] - 40
    path.write_text(json.dumps(manifest), encoding="utf-8")

    assert main(["resume", str(out), "--quiet"]) == 3

    summary = json.loads((out / "summary.json").read_bytes())
    assert (summary["sequential"]["stopped"], summary["sequential"]["pairs"]) == ("budget", 1)
    assert 80 < summary["sequential"]["seconds"] < 90
    [speed] = [finding for finding in summary["findings"] if finding["rule"] == "speed"]
    assert speed["key"] == "speed_unknown", "one pair compares nothing, however many requests it had"


def test_a_folder_that_is_complete_is_answered_from_its_summary(servers, tmp_path, capsys):
    out, scenario = tmp_path / "r", tmp_path / "s.yml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    code = main(["run", str(scenario), f"url={servers[0].url}", f"out={out}", "--quiet"])
    size = (out / "requests.jsonl").stat().st_size
    first = json.loads(capsys.readouterr().out.splitlines()[-1])

    again = main(["resume", str(out), "--quiet"])

    assert again == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["qps"] == first["qps"]
    assert (out / "requests.jsonl").stat().st_size == size

    # One that cannot be read is made again, from the records.
    (out / "summary.json").write_text('{"kind": "run", "ver', encoding="utf-8")
    with (out / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"at_s": "soon", "source": 3}\n')
    assert main(["resume", str(out), "--quiet"]) == code
    assert json.loads((out / "summary.json").read_bytes())["qps"] == pytest.approx(first["qps"])


def test_other_work_is_not_put_into_the_same_folder(servers, tmp_path, capsys):
    scenario, out, calls = tmp_path / "s.yml", tmp_path / "r", tmp_path / "calls.jsonl"
    calls.write_text('{"input_text": "a #x"}\n', encoding="utf-8")
    scenario.write_text(SCENARIO.replace("texts: ['a #x', 'b #y', 'c #z']", f"calls: {calls}"), encoding="utf-8")
    killed(["compare", scenario, f"a={servers[0].url}", f"b={servers[1].url}"], out, runs=1)
    calls.write_text('{"input_text": "other #x"}\n', encoding="utf-8")

    assert main(["resume", str(out), "--quiet"]) == 2

    said = capsys.readouterr().err
    assert "texts_sha256 changed" in said


def test_a_folder_whose_benchmark_still_runs_is_left_alone(servers, tmp_path, capsys):
    scenario, out = tmp_path / "s.yml", tmp_path / "r"
    scenario.write_text(SCENARIO, encoding="utf-8")
    words = [sys.executable, "-m", "benchmarks", "run", str(scenario), f"url={servers[0].url}", "duration_s=60"]
    process = subprocess.Popen([*words, f"out={out}", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (out / "manifest.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)

    code = main(["resume", str(out), "--quiet"])
    process.send_signal(signal.SIGINT)

    assert code == 2
    assert "still runs" in capsys.readouterr().err
    assert process.wait(timeout=60) == 3


def test_a_load_generator_that_is_left_over_writes_nothing_into_what_goes_on(truth_server, tmp_path, capsys):
    """Its requests take 20 s: records that it wrote then would be counted among those of a run that has its number.
    As long as it lives, here because it is held, the folder is not free; free to run, it leaves at once.
    """
    server, out = truth_server("service_ms=20000"), tmp_path / "r"
    (tmp_path / "s.yml").write_text(SCENARIO.replace("warmup_s: 0.2", "cover_calls: true"), encoding="utf-8")
    words = ["run", tmp_path / "s.yml", f"url={server.url}", f"out={out}", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", *map(str, words)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while server.ask("/_truth/health")["in_flight"] == 0:
        assert time.monotonic() < end
        time.sleep(0.05)
    [generator] = psutil.Process(process.pid).children()
    generator.suspend()
    process.kill()
    process.wait()

    assert main(["resume", str(out), "--quiet"]) == 2
    assert "still runs" in capsys.readouterr().err
    generator.resume()
    assert psutil.wait_procs([generator], timeout=5)[1] == []
    assert (out / "requests.jsonl").read_bytes() == b""


def test_runs_whose_records_are_behind_a_break_are_done_again(servers, tmp_path):
    scenario, out = tmp_path / "s.yml", tmp_path / "r"
    scenario.write_text(SCENARIO, encoding="utf-8")
    before = killed(["compare", scenario, f"a={servers[0].url}", f"b={servers[1].url}"], out, runs=5)
    time.sleep(1)  # the orphaned load generator leaves
    lines = (out / "requests.jsonl").read_bytes().splitlines(keepends=True)
    runs = [json.loads(line)["run"] for line in lines]
    second_pair = measured(before)[2]["run"]
    at = runs.index(second_pair) + 3
    lines[at] = lines[at][:40] + b"\n"
    (out / "requests.jsonl").write_bytes(b"".join(lines))

    main(["resume", str(out), "--quiet"])

    after = json.loads((out / "manifest.json").read_bytes())
    assert [run["run"] for run in measured(after)[:2]] == [run["run"] for run in measured(before)[:2]]
    assert all(run["run"] > max(runs) or run["run"] > before["runs"][-1]["run"] for run in measured(after)[2:])
    counted = pq.read_table(out / "requests.parquet")["run"].to_pylist()
    assert {run["run"]: run["requests"] for run in after["runs"]} == {run: counted.count(run) for run in set(counted)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "not a results folder"),
        (["old"], "has results of version 1"),
        (["strange"], "results of 'dance' cannot be continued"),
        (["strange", "users=3"], "expected url=... or a=..."),
    ],
    ids=str,
)
def test_what_cannot_be_continued_is_said_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    from benchmarks.results import MANIFEST, MANIFEST_OF_RUNS, RESULTS_VERSION

    monkeypatch.chdir(tmp_path)
    for name, version in (("old", 1), ("strange", RESULTS_VERSION)):
        (tmp_path / name).mkdir()
        document = {key: kind() for key, kind in (MANIFEST | MANIFEST_OF_RUNS).items()}
        document |= {"results_version": version, "kind": "dance"}
        (tmp_path / name / "manifest.json").write_text(json.dumps(document), encoding="utf-8")

    assert main(["resume", *words]) == 2
    assert said in capsys.readouterr().err
