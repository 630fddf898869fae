"""What is sampled, against processes that know what they used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import cgroup
from benchmarks.config import Cost, Scenario
from benchmarks.sampler import COLUMNS, Sampler, Source, increase, server_use, source_of

# A parent that only waits, with a child that burns CPU and holds 80 MiB.
BURNER = """
import subprocess, sys
child = "import time; held = bytearray(80 << 20)\\nwhile time.process_time() < 60: pass"
subprocess.Popen([sys.executable, "-c", child]).wait()
"""
# Half the time at work; says when, and what the kernel has counted for it by then.
HALF_BUSY = """
import os, sys, time
def say():
    used = os.times()
    print(time.perf_counter(), used.user + used.system + used.children_user + used.children_system, flush=True)
time.sleep(0.5)
say()
end = time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < end:
    stop = time.process_time() + 0.05
    while time.process_time() < stop: pass
    time.sleep(0.05)
say()
time.sleep(30)
"""
# A parent whose work is done by short-lived children, 60 ms of CPU each.
SPAWNER = """
import os, subprocess, sys, time
time.sleep(0.3)
for _ in range(12):
    subprocess.run([sys.executable, "-S", "-c", "import time\\nwhile time.process_time() < 0.06: pass"])
used = os.times()
print(time.perf_counter(), used.user + used.system + used.children_user + used.children_system, flush=True)
time.sleep(30)
"""
# Takes more of everything each time it is told to.
TAKER = """
import sys, threading, time
held, files = [], []
for line in sys.stdin:
    held.append(b"x" * (64 << 20))
    files += [open("/dev/null") for _ in range(20)]
    for _ in range(5): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("taken", flush=True)
"""


@contextmanager
def process(code, *words, **options):
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip
    try:
        yield child
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()


def said(child):
    at, used = child.stdout.readline().split()
    return float(at), float(used)


def rows_of(sampler, source):
    found = sampler.frame()
    return found[found["source"] == source]


def test_a_tree_counts_with_its_children():
    with process(BURNER) as child:
        origin = time.perf_counter()
        with Sampler(origin, 0.1, {"tree": child.pid}) as sampler:
            time.sleep(2.0)
    tree, machine = rows_of(sampler, "tree"), rows_of(sampler, "machine")
    assert tree["processes"].max() == 2
    assert tree["memory_used_mb"].max() > 80
    # Two busy neighbours on two cores may leave it a third of one.
    assert tree["cpu_s"].iloc[-1] > 0.3
    assert tree["cpu_s"].is_monotonic_increasing
    assert machine["memory_percent"].between(0.1, 100).all()
    assert tree["at_s"].between(0, 10).all()


def test_a_process_that_is_busy_half_the_time_is_seen_within_five_percent():
    """Expected: what the process itself asks the kernel for, at the same moments."""
    with process(HALF_BUSY, "4") as child:
        with Sampler(0.0, 0.2, {"server_a": child.pid}) as sampler:
            (begin, before), (end, after) = said(child), said(child)
            time.sleep(0.3)
        rows = rows_of(sampler, "server_a")

    run = {"started_s": begin, "ended_s": end, "requests": 10}
    assert increase(rows, "cpu_s", [run]) == pytest.approx(after - before, rel=0.05)
    within = rows[rows["at_s"].between(begin + 0.3, end)]
    assert within["cpu_percent"].mean() == pytest.approx(100 * (after - before) / (end - begin), rel=0.1)
    used = server_use(sampler.frame(), "server_a", [run])
    assert used["machine_cpu_s"] > 0.9 * (after - before), "the machine did at least that"


def test_children_that_came_and_went_between_two_readings_count():
    with process(SPAWNER) as child:
        with Sampler(0.0, 0.5, {"tree": child.pid}) as sampler:
            _, used = said(child)
            time.sleep(0.6)
        rows = rows_of(sampler, "tree")

    assert used > 0.6
    assert rows["cpu_s"].iloc[-1] == pytest.approx(used, rel=0.05)
    assert rows["cpu_s"].is_monotonic_increasing


def test_memory_files_and_threads_that_are_taken_are_seen():
    with process(TAKER) as child, Sampler(0.0, 30, {"server_a": child.pid}) as sampler:
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        sampler.mark()
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        sampler.mark()
        before, after = rows_of(sampler, "server_a").to_dict("records")
    assert after["memory_used_mb"] - before["memory_used_mb"] == pytest.approx(64, abs=2)
    assert after["open_files"] - before["open_files"] == 20
    assert after["threads"] - before["threads"] == 5


def test_a_process_that_is_gone_has_rows_without_values_rather_than_zeros():
    with Sampler(0.0, 30, {}) as sampler:
        with process("import time; time.sleep(60)") as child:
            sampler.watch("server_a", child.pid)
            sampler.mark()
        sampler.mark()
    there, gone, _ = rows_of(sampler, "server_a").drop(columns=["at_s", "source"]).to_dict("records")
    assert there["memory_used_mb"] > 1
    assert pd.isna(pd.Series(gone)).all()


@pytest.mark.parametrize(
    "source",
    [Source(pid=2**22 + 1), Source(cgroup="/no/such.slice"), Source(metrics_urls=("http://127.0.0.1:9/metrics",))],
)
def test_a_source_that_was_never_there_is_unknown_and_nothing_is_computed_from_it(source):
    with Sampler(0.0, 30, {"server_a": source}) as sampler:
        begin = time.perf_counter()
        sampler.mark()
        time.sleep(0.1)
        sampler.mark()
    found = sampler.frame()
    rows = found[found["source"] != "machine"]
    assert len(rows) >= 2
    assert rows.drop(columns=["at_s", "source"]).isna().all(axis=None)
    run = {"started_s": begin, "ended_s": begin + 0.1, "requests": 5}
    used = server_use(found, "server_a", [run], tokens=50, cost=Cost())
    assert {name for name, value in used.items() if value is not None} <= {
        name for name in used if name.startswith("machine")
    }


@pytest.mark.cgroup
def test_a_control_group_is_found_from_a_process_and_counts_what_it_used():
    """Expected: the process's own times; the memory it says it takes, which is new pages of its group."""
    folders = _new_group("qwen3-stack-sampler-test")
    try:
        with process(HALF_BUSY, "3") as child:
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(child.pid))
            with Sampler(
                0.0, 0.2, {"server_a": child.pid, "named": Source(cgroup="/qwen3-stack-sampler-test")}
            ) as sampler:
                (begin, before), (end, after) = said(child), said(child)
                time.sleep(0.3)
        with process(TAKER) as taker:
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(taker.pid))
            with Sampler(0.0, 30, {"server_a": taker.pid}) as second:
                for _ in range(2):
                    second.mark()
                    taker.stdin.write("\n")
                    taker.stdin.flush()
                    taker.stdout.readline()
                second.mark()
    finally:
        for folder in folders:
            _remove(folder)

    assert cgroup.of_process(os.getpid()) is None, "its own group is shared with itself"
    run = {"started_s": begin, "ended_s": end, "requests": 1}
    for name in ("server_a", "named"):
        assert increase(rows_of(sampler, name), "cpu_s", [run]) == pytest.approx(after - before, rel=0.05)
        assert rows_of(sampler, name)["processes"].max() == 1
    memory = rows_of(second, "server_a")["memory_used_mb"].tolist()
    assert memory[2] - memory[1] == pytest.approx(64, abs=3)


def _new_group(name):
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        folders = [root / name]
    else:
        mounts = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
        folders = [path / name for path in mounts if {"cpuacct", "memory"} & set(path.name.split(","))]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return folders


def _remove(folder):
    for _ in range(50):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_is_read_as_the_kernel_writes_it(version, tmp_path):
    """The files are those of Linux 6.12; expected values are theirs by the kernel's documentation."""
    if version == 2:
        group = tmp_path / "system.slice" / "qwen3.service"
        group.mkdir(parents=True)
        (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
        (group / "cpu.stat").write_text("usage_usec 12345678\nuser_usec 10000000\nsystem_usec 2345678\n")
        (group / "memory.current").write_text(f"{300 << 20}\n")
        (group / "memory.stat").write_text(f"anon {200 << 20}\nfile {100 << 20}\ninactive_file {40 << 20}\n")
        (group / "io.stat").write_text("8:0 rbytes=1048576 wbytes=2097152 rios=1 wios=2\n254:0 rbytes=10 wbytes=20\n")
        (group / "cgroup.procs").write_text("11\n12\n")
    else:
        for controller in ("cpu,cpuacct", "memory", "blkio"):
            (tmp_path / controller / "system.slice" / "qwen3.service").mkdir(parents=True)
        own = {name: tmp_path / name / "system.slice" / "qwen3.service" for name in ("cpu,cpuacct", "memory", "blkio")}
        (own["cpu,cpuacct"] / "cpuacct.usage").write_text("12345678000\n")
        (own["cpu,cpuacct"] / "cgroup.procs").write_text("11\n12\n")
        (own["memory"] / "memory.usage_in_bytes").write_text(f"{300 << 20}\n")
        (own["memory"] / "memory.stat").write_text(f"cache 5\ninactive_file 7\ntotal_inactive_file {40 << 20}\n")
        (own["blkio"] / "blkio.throttle.io_service_bytes").write_text(
            "8:0 Read 1048576\n8:0 Write 2097152\n8:0 Total 3145728\n254:0 Read 10\n254:0 Write 20\nTotal 3145758\n"
        )
    (tmp_path / "child").mkdir()

    for path in ("/system.slice/qwen3.service", "system.slice/qwen3.service"):
        found = cgroup.find(path, tmp_path)
        assert found.version == version
        assert found.cpu_s() == pytest.approx(12.345678)
        assert found.memory_bytes() == 260 << 20
        assert found.disk_bytes() == (1048586, 2097172)
        assert found.pids() == [11, 12]
    if version == 2:
        assert cgroup.find(str(group), tmp_path) == found
    absent = cgroup.find("/other.slice", tmp_path)
    assert (absent.exists(), absent.cpu_s(), absent.memory_bytes(), absent.disk_bytes()) == (False, None, None, None)


def test_a_group_that_is_shared_with_the_load_generator_is_not_the_servers(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "a.scope").mkdir()
    proc = tmp_path / "proc"
    for name, line in (("self", "0::/b.scope"), ("1", "0::/b.scope"), ("2", "0::/a.scope"), ("3", "0::/")):
        (proc / name).mkdir(parents=True)
        (proc / name / "cgroup").write_text(line + "\n")

    found = [cgroup.of_process(pid, tmp_path, proc) for pid in (1, 2, 3, 4)]

    assert [group is not None for group in found] == [False, True, False, False]
    assert found[1].folders == {"": tmp_path / "a.scope"}


def test_energy_is_counted_over_the_wrap_of_its_counter_and_is_unknown_where_it_cannot_be_read(tmp_path):
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package is not added to it
    (package / "max_energy_range_uj").write_text("999999\n")
    (package / "energy_uj").write_text("900000\n")
    with Sampler(0.0, 30, {}, powercap=tmp_path) as sampler:
        sampler.mark()
        (package / "energy_uj").write_text("400000\n")
        sampler.mark()
        (package / "energy_uj").unlink()
        sampler.mark()
    assert sampler.frame()["energy_j"].tolist()[:2] == pytest.approx([0.0, 0.5])
    assert sampler.frame()["energy_j"].isna().tolist()[2]


def test_the_rows_of_a_benchmark_that_was_killed_are_kept_up_to_the_broken_line(tmp_path):
    journal = tmp_path / "samples.jsonl"
    with Sampler(0.0, 30, {"server_a": os.getpid()}, journal=journal) as first:
        first.mark()
    before = first.frame()
    with journal.open("a") as file:
        file.write('{"at_s": 12.5, "sour')

    with Sampler(0.0, 30, {}, journal=journal) as second:
        second.mark()

    pd.testing.assert_frame_equal(second.frame().iloc[: len(before)], before)
    assert len(second.frame()) == len(before) + 2
    assert [json.loads(line)["source"] for line in journal.read_text().splitlines()][-1] == "machine"


def test_the_sampler_costs_less_than_a_hundredth_of_a_core():
    """Twice a second, with a server and a generator of two processes each; measured 0.4 to 0.5 % (2 cores, shared)."""
    with process(BURNER) as server, process(BURNER) as generator:
        for child in (server, generator):  # held still, so that the machine is not what is measured
            time.sleep(0.5)
            os.killpg(child.pid, signal.SIGSTOP)
        with Sampler(0.0, 0.5, {"server_a": server.pid, "generator": generator.pid}) as sampler:
            time.sleep(6)
    assert rows_of(sampler, "server_a")["processes"].max() == 2
    assert sampler.cpu_s / 6 < 0.01


def test_cpu_is_counted_within_runs_only():
    """Half a CPU second per second for ten seconds; the runs are 2 to 4 s and 6 to 7 s with 50 requests each."""
    samples = _samples(
        {"at_s": float(at), "source": "server_a", "cpu_s": 0.5 * at, "memory_used_mb": 100.0 + (500 if at == 5 else at)}
        for at in range(11)
    )
    runs = [
        {"started_s": 2.0, "ended_s": 4.0, "requests": 50},
        {"started_s": 6.0, "ended_s": 7.0, "requests": 50},
    ]

    found = server_use(samples, "server_a", runs, tokens=750, cost=Cost(per_hour=3.6, currency="CNY"))

    assert found["server_cpu_s_per_1000_requests"] == pytest.approx(1.5 / 100 * 1000)
    assert found["server_peak_memory_mb"] == 107.0, "the peak at 5 s lies between the runs"
    assert found["server_cpu_s_per_token"] == pytest.approx(0.002)
    # Three seconds at 0.001 a second for 750 tokens: 4 for a million.
    assert found["price_per_million_tokens"] == pytest.approx(4.0)
    assert found["price_per_1000_requests"] == pytest.approx(0.03)
    assert found["currency"] == "CNY"
    assert found["joules_per_token"] is None


def test_energy_and_tokens_of_the_servers_own_metrics_where_the_client_cannot_count():
    """50 W for three seconds; 230 tokens by a counter that starts again in between."""
    counters = [1000, 1100, 30, 130]
    samples = _samples(
        [{"at_s": float(at), "source": "machine", "energy_j": 50.0 * at} for at in range(4)]
        + [
            {"at_s": float(at), "source": "metrics_a", "output_tokens_total": value, "requests_total": at,
             "metrics": json.dumps({"counters": {"x_total": 2 * at}, "gauges": {"depth": at}})}
            for at, value in enumerate(counters)
        ]
    )  # fmt: skip
    run = {"started_s": 0.0, "ended_s": 3.0, "requests": 3}

    found = server_use(samples, "server_a", [run])

    assert found["server_metrics"]["output_tokens"] == 100 + 30 + 100
    assert found["server_metrics"]["requests"] == found["server_metrics"]["client_requests"] == 3
    assert found["server_metrics"]["counters"] == {"x_total": {"total": 6.0, "per_s": 2.0}}
    assert found["server_metrics"]["gauges"] == {"depth": {"mean": 1.5, "peak": 3.0}}
    assert found["joules_per_token"] == pytest.approx(150 / 230)
    assert found["price_per_million_tokens"] is None


def test_a_source_that_was_not_sampled_is_unknown():
    samples = _samples([])

    assert set(server_use(samples, "server_a", [{"started_s": 0, "ended_s": 1, "requests": 5}]).values()) == {None}


def test_what_is_read_of_each_side_follows_from_the_scenario(truth_server):
    """A file that serves ``run`` and ``compare`` has url, a and b: each verb reads what is its own."""
    page, pid = f"{truth_server().url}/metrics", os.getpid()
    both = Scenario.model_validate(
        {"url": "http://h:1/x", "a": "http://a", "b": "http://b", "texts": ["t"], "users": 1, "requests": 1}
        | {"b_metrics_url": page, "api_key_env": "KEY"}
    )

    urls = ("http://h:1/x/metrics", "http://h:1/metrics")
    assert source_of(both, "a", "http://h:1/x", pid, compared=False) == Source(pid, None, urls, "KEY")
    assert source_of(both, "a", "http://a", None, compared=True) == Source(None, None, ("http://a/metrics",), "KEY")
    assert source_of(both, "b", "http://b", pid, compared=True) == Source(pid, None, (page,), None)


def _samples(rows):
    found = pd.DataFrame(list(rows), columns=list(COLUMNS))
    return found.astype({name: "string" if name in {"source", "metrics"} else "float64" for name in COLUMNS})
