"""``playbooks/site.yml`` on a bare server, over SSH."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys

import pytest
from cluster_fixture import TINY
from hosts import REPOSITORY, Site, changed, host, ssh_key
from traffic import KEY, TEXT, wait_until

from model_server.cache import cache_dir

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

ENVIRONMENT = TINY | {
    "model_source": "/opt/qwen3/models/complaints-tiny",
    "deployment_type": "server",
    "resource_limits": {"cpu_cores": 1, "memory_gb": 0.75, "disk_gb": 1},
    "replicas": {"min": 2, "max": 2},
    "serving": {"metrics_port": 9000, "api_keys_file": "/etc/qwen3/api_keys"},
}


@pytest.fixture(scope="module")
def wheelhouse():
    """The server's packages, as a site without the internet would bring them."""
    folder = cache_dir() / "wheelhouse"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
        REPOSITORY / "requirements/server.txt",
        "-d",
        folder,
    ]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, wheelhouse):
    folder = tmp_path_factory.mktemp("site")
    key = ssh_key(folder)
    (folder / "keys").write_text(f"tests:{KEY}\n")
    with host(f"qwen3-host-{secrets.token_hex(3)}", key) as server:
        site = Site(folder, [server], ENVIRONMENT, key)
        site.words = (
            *("-e", f"model_server_api_keys_file={folder / 'keys'}", "-e", f"model_server_wheelhouse={wheelhouse}"),
            *("-e", f"model_server_model={REPOSITORY / 'models/complaints-tiny'}"),
        )
        code, said = site.play("site", "--check")
        assert code == 0, said
        code, said = site.play("site")
        print(said, server.run("journalctl", "--no-pager", "-n", "40", "-u", "qwen3@1"))
        assert code == 0
        yield site


def ask(server, port):
    words = ("-H", f"Authorization: Bearer {KEY}", "-d", json.dumps({"text": TEXT}))
    return server.run("curl", "-sSf", *words, f"http://127.0.0.1:{port}/api/v1/classify")


def test_a_bare_server_answers_after_one_command_and_a_second_changes_nothing(site):
    [server] = site.servers
    assert "category" in ask(server, 8000)
    assert "category" in ask(server, 8001)

    code, said = site.play("site")
    assert (code, changed(said)) == (0, 0), said
    code, said = site.play("site", "--check", "--diff")
    assert (code, changed(said)) == (0, 0), said


def test_an_instance_that_is_killed_is_back_and_the_other_answers_meanwhile(site):
    [server] = site.servers
    before = server.property("qwen3@1", "MainPID")
    server.run("kill", "-9", before)

    assert ask(server, 8001)
    wait_until(lambda: server.property("qwen3@1", "ActiveState") == "active", "systemd started it again")
    assert server.property("qwen3@1", "MainPID") != before
    assert server.property("qwen3@1", "NRestarts") == "1"
    assert ask(server, 8000)


def test_the_limits_and_waiting_times_are_the_environments(site):
    [server] = site.servers
    assert server.property("qwen3@1", "CPUQuotaPerSecUSec") == "1s"
    assert server.property("qwen3@1", "MemoryMax") == str(768 * 2**20)
    assert server.property("qwen3@1", "TimeoutStopUSec") == "1min 25s"


def test_the_key_is_in_no_command_line_and_only_root_and_the_server_read_it(site):
    [server] = site.servers
    lines = server.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert KEY not in lines
    assert server.run("stat", "-c", "%a %U", "/etc/qwen3/api_keys").strip() == "600 root"
    assert KEY not in server.run("journalctl", "--no-pager")
    readable = server.run(
        "sh", "-c", f"grep -rlF {KEY} /etc /opt /var 2>/dev/null | xargs -r stat -c '%a %n'", check=False
    )
    assert [line for line in readable.splitlines() if int(line.split()[0][-1]) & 4] == []


def test_the_unit_is_shut_in(site):
    [server] = site.servers
    said = server.run("systemd-analyze", "security", "--no-pager", "qwen3@1.service")
    print(said.splitlines()[-1])
    exposure = float(said.rsplit("exposure level for", 1)[1].split(":")[1].split()[0])
    assert exposure <= 1.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-e", '{"model_server_instances": 1000}'], "lower model_server_instances or resource_limits.memory_gb"),
        (["-e", "model_server_api_keys_file="], "give the file with the keys"),
        (["-e", "model_server_api_keys_file=keys"], "keys: give the whole path"),
        (["-e", "model_server_model=/nowhere"], "/nowhere: give the whole path"),
        (["-e", '{"model_server_instances": "many"}'], "model_server_instances"),
        (["-e", f"model_server_wheelhouse={os.devnull}"], "there are no wheels in /dev/null"),
    ],
)
def test_what_cannot_work_stops_before_the_host_is_changed(site, words, said):
    [server] = site.servers
    before = server.run("sh", "-c", "find /etc /opt -newermt @0 -printf '%p %T@\\n' | sort | sha256sum")

    code, told = site.play("site", *words)

    assert code != 0
    assert said in told
    assert server.run("sh", "-c", "find /etc /opt -newermt @0 -printf '%p %T@\\n' | sort | sha256sum") == before


def test_an_environment_that_does_not_fit_is_refused_with_the_arithmetic(site):
    site.write(ENVIRONMENT | {"resource_limits": {"cpu_cores": 1, "memory_gb": 0.1, "disk_gb": 1}})
    try:
        code, told = site.play("site")
    finally:
        site.write(ENVIRONMENT)
    assert code != 0
    assert "ResourceInsufficientError" in told


def test_the_playbook_of_an_environment_for_kubernetes_is_refused(site):
    site.write(ENVIRONMENT | {"deployment_type": "kubernetes"})
    try:
        code, told = site.play("site")
    finally:
        site.write(ENVIRONMENT)
    assert "playbooks are for environments of type 'server'" in told
    assert code != 0
