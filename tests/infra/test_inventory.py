"""Hosts and what runs on them, as Ansible is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.inventory import GROUP, inventory
from model_server import deployment
from model_server.errors import ConfigurationError

REPOSITORY = Path(__file__).parents[2]
HOSTS = [
    {"name": "one", "address": "192.0.2.1", "user": "admin", "port": 2222},
    {"name": "two", "address": "192.0.2.2"},
]


@pytest.fixture
def hosts_file(tmp_path):
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump({"hosts": HOSTS}))
    return path


def test_hosts_come_in_the_order_of_the_file_with_what_is_derived_from_the_environment(hosts_file):
    found = inventory({"QWEN3_HOSTS": str(hosts_file)})

    assert found[GROUP]["hosts"] == ["one", "two"]
    variables = found[GROUP]["vars"]
    config = deployment.load(REPOSITORY / "environments/onprem.yml", (), {})
    assert variables["qwen3_environment"] == config.model_dump(mode="json")
    assert variables["qwen3_limits"] == {"cpu_quota": "400%", "memory_max": str(6 * 2**30)}
    assert variables["qwen3_timings"]["timeout_stop_s"] > config.serving.drain_s
    one, two = (found["_meta"]["hostvars"][name] for name in ("one", "two"))
    assert (one["ansible_host"], one["ansible_user"], one["ansible_port"]) == ("192.0.2.1", "admin", 2222)
    assert (two["ansible_user"], two["ansible_port"]) == ("root", 22)


def test_ansible_reads_it(hosts_file):
    env = {"QWEN3_HOSTS": str(hosts_file), "PATH": "/usr/bin:/bin", "HOME": str(hosts_file.parent)}
    command = [REPOSITORY / ".venv/bin/ansible-inventory", "-i", REPOSITORY / "playbooks/inventory", "--list"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=hosts_file.parent)
    assert json.loads(done.stdout)[GROUP]["hosts"] == ["one", "two"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"QWEN3_ENVIRONMENT": "production"}, "playbooks are for environments of type 'server'"),
        ({"QWEN3_ENVIRONMENT": "nowhere"}, "nowhere.yml"),
        ({"QWEN3_HOSTS": "/nowhere.yml"}, "QWEN3_HOSTS: cannot read /nowhere.yml"),
    ],
)
def test_what_cannot_be_used_is_told(environ, said):
    with pytest.raises(ConfigurationError) as error:
        inventory(environ)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("hosts", "hosts"),
        ([HOSTS[0], HOSTS[0]], "stands there twice"),
        ([{"name": "one", "address": "192.0.2.1", "prot": 22}], "did you mean 'port'"),
    ],
)
def test_a_wrong_list_of_hosts_is_told_with_what_is_allowed(tmp_path, rows, said):
    path = tmp_path / "hosts.yml"
    path.write_text(yaml.safe_dump({"hosts": rows}))
    with pytest.raises(ConfigurationError) as error:
        inventory({"QWEN3_HOSTS": str(path)})
    assert said in str(error.value)


def test_a_stack_that_cannot_be_asked_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot ask stack 'onprem'"):
        inventory({})
    (tmp_path / "pulumi").write_text("#!/bin/sh\necho 'error: no stack named' >&2\nexit 255\n")
    (tmp_path / "pulumi").chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"no stack named.*name a file of hosts with QWEN3_HOSTS"):
        inventory({})
