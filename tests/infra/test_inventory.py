"""Hosts and what runs on them, as Ansible is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.inventory import instances, inventory
from infra.servers import Host
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

    assert found["model_servers"]["hosts"] == ["one", "two"]
    variables = found["all"]["vars"]
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
    assert json.loads(done.stdout)["model_servers"]["hosts"] == ["one", "two"]


def test_the_first_host_is_the_balancer_where_none_is_named(hosts_file):
    assert inventory({"QWEN3_HOSTS": str(hosts_file)})["load_balancers"]["hosts"] == ["one"]
    hosts_file.write_text(yaml.safe_dump({"hosts": [HOSTS[0], HOSTS[1] | {"roles": ["load_balancer", "monitor"]}]}))
    found = inventory({"QWEN3_HOSTS": str(hosts_file)})
    assert [found[group]["hosts"] for group in ("model_servers", "load_balancers", "monitors")] == [
        ["one"],
        ["two"],
        ["two"],
    ]


def config(**serving):
    found = deployment.load(REPOSITORY / "environments/onprem.yml", (), {})
    return found.model_copy(update={"serving": found.serving.model_copy(update=serving)})


def test_instances_stay_on_loopback_on_a_site_of_one_host_and_listen_inside_the_site_otherwise():
    one, two = (Host.model_validate(host | {"instances": 1}) for host in HOSTS)
    alone = instances(config(), [one])
    assert [(each["listen"], each["address"]) for each in alone] == [("127.0.0.1", "127.0.0.1")]
    [everywhere] = instances(config(host="0.0.0.0"), [one])
    assert (everywhere["listen"], everywhere["address"]) == ("0.0.0.0", "127.0.0.1")

    two = two.model_copy(update={"internal_address": "198.51.100.2"})
    assert [(each["listen"], each["address"]) for each in instances(config(), [one, two])] == [
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.2", "198.51.100.2"),
    ]


def test_each_instance_of_a_host_has_a_name_and_ports_of_its_own():
    found = instances(config(), [Host.model_validate(HOSTS[0] | {"instances": 3})])
    assert [(each["name"], each["port"], each["metrics_port"]) for each in found] == [
        ("one-1", 8000, 9000),
        ("one-2", 8001, 9001),
        ("one-3", 8002, 9002),
    ]


@pytest.mark.parametrize(
    ("serving", "hosts", "said"),
    [
        ({"api_keys_file": None}, HOSTS, r"reached over the network, and serving\.api_keys_file is not set"),
        ({"port": 0}, HOSTS, "a balancer must know them"),
        ({"metrics_port": 8001}, HOSTS, "put them at least 2 apart"),
        ({}, [HOSTS[0], {"name": "two", "address": "two.example"}], "'two.example' is no IP address"),
        ({}, [HOSTS[0] | {"roles": ["monitor"]}], "none has the role model_server"),
    ],
)
def test_a_site_that_cannot_work_is_refused(serving, hosts, said):
    with pytest.raises(ConfigurationError, match=said):
        instances(config(**serving), [Host.model_validate(host) for host in hosts])


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
        ([HOSTS[0] | {"internal_address": "one.example"}], "internal_address"),
        ([HOSTS[0] | {"roles": ["balancer"]}], "load_balancer"),
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
