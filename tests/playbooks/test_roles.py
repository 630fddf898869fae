"""What all roles have in common."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import ansible_collections
import pytest
import yaml

from model_server.cache import environment_python

REPOSITORY = Path(__file__).parents[2]
PLAYBOOKS = REPOSITORY / "playbooks"
ROLES = sorted((PLAYBOOKS / "roles").iterdir())


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_every_variable_is_documented_and_has_one_default(role):
    defaults = read(role / "defaults/main.yml")
    options = read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]

    assert options.keys() == defaults.keys()
    assert [name for name, option in options.items() if "default" in option] == []
    assert [name for name in defaults if not name.startswith(f"{role.name}_")] == []
    assert all(option["description"].endswith(".") for option in options.values())


def ansible_lint(folder, *words):
    """In its strictest profile, with the collections of the default environment."""
    scanners = environment_python("policy").parent
    env = {
        **os.environ,
        "PATH": f"{scanners}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(Path(ansible_collections.__path__[0]).parent),
    }
    command = [scanners / "ansible-lint", "--offline", "--nocolor", "--profile", "production", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.policy
def test_ansible_lint_has_nothing_to_say_in_its_strictest_profile():
    done = ansible_lint(PLAYBOOKS.parent, PLAYBOOKS)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Profile 'production' was required, and it passed" in done.stdout + done.stderr


@pytest.mark.policy
def test_ansible_lint_would_notice_a_careless_task(tmp_path):
    play = [{"hosts": "all", "tasks": [{"shell": "service qwen3 restart", "ignore_errors": True}]}]
    (tmp_path / "careless.yml").write_text(yaml.safe_dump(play))
    done = ansible_lint(tmp_path, "careless.yml")

    assert done.returncode == 2
    assert "fqcn" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on PATH: apt-get install shellcheck")
def test_shellcheck_has_nothing_to_say_about_any_script():
    tracked = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines()
    scripts = [name for name in tracked if re.match(rb"#!.*\b(ba)?sh\b", first_line(REPOSITORY / name))]
    assert {".ci/run", "playbooks/inventory"} < set(scripts)
    done = subprocess.run(["shellcheck", *scripts], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def first_line(path):
    if not path.is_file():  # deleted, and not committed yet
        return b""
    with path.open("rb") as file:
        return file.readline()


def test_ports_that_several_roles_name_are_the_same():
    haproxy, firewall = (read(PLAYBOOKS / f"roles/{role}/defaults/main.yml") for role in ("haproxy", "firewall"))
    balancer, node = firewall["firewall_monitored_ports"]
    assert balancer == haproxy["haproxy_metrics_port"]
    for name in ("rollout/tasks/preflight.yml", "validation/tasks/main.yml"):
        assert f"}}}}:{balancer}/metrics" in (PLAYBOOKS / "roles" / name).read_text()
    scraped = (PLAYBOOKS / "roles/prometheus/templates/prometheus.yml.j2").read_text()
    assert f"qwen3_address, {balancer})" in scraped
    assert f"qwen3_address, {node})" in scraped
    assert f":{node}" in (PLAYBOOKS / "roles/node_exporter/vars/main.yml").read_text()


@pytest.mark.policy
def test_every_yaml_file_keeps_yamllints_rules():
    rules = (
        "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: {max-spaces-inside: 1}, "
        "comments: {min-spaces-from-content: 1}, octal-values: {forbid-implicit-octal: true}}}"
    )
    scanners = environment_python("policy").parent
    done = subprocess.run([scanners / "yamllint", "-d", rules, PLAYBOOKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
