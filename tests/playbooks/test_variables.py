from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
spec = importlib.util.spec_from_file_location("variables", PLAYBOOKS / "filter_plugins/variables.py")
variables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(variables)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("model_server_wheel_house", "model_server_wheel_house (did you mean model_server_wheelhouse?)"),
        ("modelserver_wheelhouse", "modelserver_wheelhouse (did you mean model_server_wheelhouse?)"),
        ("logs_qqqqqq", "logs_qqqqqq"),
    ],
)
def test_a_slip_of_the_pen_is_found(name, phrase):
    assert variables.unknown_variables([name, "haproxy_port"]) == [phrase]


def test_what_ansible_and_a_site_have_beside_the_roles_is_let_pass():
    names = ["ansible_become_password", "inventory_hostname", "groups", "qwen3_address", "decommission", "ntp_servers"]
    assert variables.unknown_variables(names) == []


def test_every_play_looks_at_the_names_first():
    plays = [path for path in PLAYBOOKS.glob("*.yml") if path.name != "variables.yml"]
    assert len(plays) == 8
    for path in plays:
        first = yaml.safe_load(path.read_text(encoding="utf-8"))[0]
        assert first.get("ansible.builtin.import_playbook") == "variables.yml", path
