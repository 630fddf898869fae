from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server import cgroup
from model_server.cgroup import available_threads, locate

UNLIMITED_V1 = 9_223_372_036_854_771_712  # what the kernel writes where no limit was set
GIB = 2**30


@pytest.fixture
def tree(tmp_path):
    """Write files of a made-up /sys/fs/cgroup and a /proc/self/cgroup; returns the groups found there."""

    def tree(membership, files):
        root = tmp_path / "cgroup"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        (tmp_path / "membership").write_text(membership)
        return locate(root, tmp_path / "membership")

    return tree


def v2(path, files):
    return f"0::{path}\n", {"cgroup.controllers": "cpu memory", **files}


def test_a_container_of_version_2_sees_its_limits_at_the_root(tree):
    """As Docker and Kubernetes with a cgroup namespace show them."""
    group = tree(
        *v2(
            "/",
            {
                "cpu.max": "150000 100000",
                "memory.max": 2 * GIB,
                "memory.current": 700,
                "memory.peak": 900,
                "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2",
                "cpu.stat": "usage_usec 5\nnr_periods 40\nnr_throttled 7\nthrottled_usec 9",
            },
        )
    )
    assert group.version == 2
    assert group.cpu_quota_cores() == 1.5
    assert group.memory_limit_bytes() == 2 * GIB
    assert (group.memory_usage_bytes(), group.memory_peak_bytes(), group.oom_kills()) == (700, 900, 2)
    assert group.throttling() == cgroup.CpuThrottling(nr_periods=40, nr_throttled=7)


def test_a_container_of_version_1_sees_its_limits_at_the_root_of_each_hierarchy(tree):
    """Docker without a cgroup namespace: /proc names the host's path, which does not exist in the container."""
    name = "/docker/0123456789ab"
    group = tree(
        f"4:memory:{name}\n3:cpu,cpuacct:{name}\n1:name=systemd:{name}\n0::/\n",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": 50_000,
            "cpu,cpuacct/cpu.cfs_period_us": 100_000,
            "cpu,cpuacct/cpu.stat": "nr_periods 11\nnr_throttled 4\nthrottled_time 99",
            "memory/memory.limit_in_bytes": 3 * GIB,
            "memory/memory.usage_in_bytes": 123,
            "memory/memory.max_usage_in_bytes": 456,
            "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
        },
    )
    assert group.version == 1
    assert group.cpu_quota_cores() == 0.5
    assert group.memory_limit_bytes() == 3 * GIB
    assert (group.memory_usage_bytes(), group.memory_peak_bytes(), group.oom_kills()) == (123, 456, 1)
    assert group.throttling() == cgroup.CpuThrottling(nr_periods=11, nr_throttled=4)


def test_the_smallest_limit_up_the_tree_wins(tree):
    """A systemd slice may allow less than the unit in it."""
    group = tree(
        *v2(
            "/qwen3.slice/qwen3@1.service",
            {
                "qwen3.slice/cpu.max": "100000 100000",
                "qwen3.slice/memory.max": "max",
                "qwen3.slice/qwen3@1.service/cpu.max": "400000 100000",
                "qwen3.slice/qwen3@1.service/memory.max": 4 * GIB,
                "qwen3.slice/qwen3@1.service/memory.current": 5,
                "qwen3.slice/memory.current": 50,
            },
        )
    )
    assert group.cpu_quota_cores() == 1.0
    assert group.memory_limit_bytes() == 4 * GIB
    assert group.memory_usage_bytes() == 5


def test_a_parents_memory_limit_counts_in_version_1_too(tree):
    group = tree(
        "4:memory:/pods/one\n",
        {
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/pods/memory.limit_in_bytes": GIB,
            "memory/pods/one/memory.limit_in_bytes": UNLIMITED_V1,
        },
    )
    assert group.memory_limit_bytes() == GIB


def test_a_container_inside_a_container_is_found_by_the_end_of_its_path(tree):
    group = tree(
        *v2("/docker/abc/inner", {"inner/cpu.max": "200000 100000", "cpu.max": "300000 100000"}),
    )
    assert group.cpu_quota_cores() == 2.0


def test_a_group_outside_the_namespace_is_not_looked_for(tree):
    assert tree(*v2("/../outside", {"cpu.max": "100000 100000"})).cpu_quota_cores() == 1.0


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"cgroup.controllers": "cpu", "cpu.max": "max 100000", "memory.max": "max"}),
        ("0::/\n", {"cgroup.controllers": ""}),
        ("4:cpu:/\n5:memory:/\n", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100_000}),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED_V1}),
        ("", {}),
    ],
    ids=["v2 max", "v2 without files", "v1 -1", "v1 unlimited", "no cgroups"],
)
def test_where_there_is_no_limit_there_is_none(tree, membership, files):
    group = tree(membership, files)
    assert group.cpu_quota_cores() is None
    assert group.memory_limit_bytes() is None


def test_counters_that_the_kernel_does_not_keep_are_none(tree):
    group = tree("0::/\n", {"cgroup.controllers": "cpu memory", "cpu.stat": "usage_usec 5"})
    assert (group.throttling(), group.memory_peak_bytes(), group.oom_kills()) == (None, None, None)


def test_hybrid_hierarchies_count_as_version_1(tree):
    """The hybrid mode of systemd mounts an empty version 2 beside the controllers of version 1."""
    group = tree(
        "4:cpu:/\n0::/\n",
        {"unified/cgroup.procs": "1", "cpu/cpu.cfs_quota_us": 100_000, "cpu/cpu.cfs_period_us": 50_000},
    )
    assert (group.version, group.cpu_quota_cores()) == (1, 2.0)


@pytest.mark.parametrize(
    ("limit", "quota", "cores", "threads"),
    [
        (4, None, 8, 4),
        (4, None, 2, 2),
        (8, "765000 100000", 16, 7),  # a quota of 7.65 cores was run with 8 threads and throttled (lilbee 660)
        (4, "50000 100000", 8, 1),
        (1.9, None, 8, 1),
        (0.5, None, 8, 1),
        (2.0, "200000 100000", 2, 2),
    ],
)
def test_threads_are_the_floor_of_the_smallest_of_limit_quota_and_cores(tree, limit, quota, cores, threads):
    group = tree(*v2("/", {} if quota is None else {"cpu.max": quota}))
    assert available_threads(limit, group, cores) == threads


@given(
    limit=st.floats(0.1, 1024),
    quota_us=st.none() | st.integers(1_000, 10**9),
    period_us=st.integers(1_000, 1_000_000),
    cores=st.integers(1, 512),
)
def test_threads_never_exceed_quota_limit_or_cores_and_there_is_always_one(
    tmp_path_factory, limit, quota_us, period_us, cores
):
    root = tmp_path_factory.getbasetemp() / "threads"
    root.mkdir(exist_ok=True)
    (root / "cgroup.controllers").write_text("cpu")
    (root / "cpu.max").write_text(f"{'max' if quota_us is None else quota_us} {period_us}\n")
    membership = root / "membership"
    membership.write_text("0::/\n")

    threads = available_threads(limit, locate(root, membership), cores)

    assert threads >= 1
    if threads > 1:
        assert threads <= min(limit, cores)
        assert quota_us is None or threads * period_us <= quota_us


def test_the_machines_own_groups_can_be_read():
    group = locate()
    assert group.cpu_quota_cores() is None or group.cpu_quota_cores() > 0
    assert 1 <= available_threads(10_000) <= (os.cpu_count() or 1)


@pytest.mark.cgroup
@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpu").is_dir(), reason="these groups are of version 1")
def test_a_real_group_shows_its_quota_its_limit_and_its_throttling():
    """The kernel itself is the oracle: a spinning child under half a core is stopped in nearly every period."""
    roots = [Path("/sys/fs/cgroup") / name for name in ("cpu", "memory")]
    groups = [root / f"qwen3-test-{os.getpid()}" for root in roots]
    try:
        for group in groups:
            group.mkdir()
        (groups[0] / "cpu.cfs_quota_us").write_text("50000")
        (groups[1] / "memory.limit_in_bytes").write_text(str(GIB))
        program = (
            "import sys, time\nfrom model_server import cgroup\n"
            "for group in sys.argv[1:]: open(f'{group}/cgroup.procs', 'w').write('0')\n"
            "group = cgroup.locate()\n"
            # A second; longer where others leave it less than its quota.
            "begin = time.monotonic()\n"
            "while time.monotonic() < begin + (1 if group.throttling().nr_throttled else 20): pass\n"
            "print(group.cpu_quota_cores(), group.memory_limit_bytes(), cgroup.available_threads(8),"
            " group.throttling().nr_throttled)"
        )
        command = [sys.executable, "-c", program, *map(str, groups)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        quota, limit, threads, throttled = answer.stdout.split()
        assert (float(quota), int(limit), int(threads)) == (0.5, GIB, 1)
        assert int(throttled) >= 1
    finally:
        for group in groups:
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
