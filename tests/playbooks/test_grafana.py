"""What the Prometheus role gives a Grafana that is there; run on this machine, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitoring import dashboards

REPOSITORY = Path(__file__).parents[2]


def provision(folder, *words):
    """The role's tasks for Grafana, on localhost, with ``folder`` as Grafana's."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": True,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "prometheus_grafana_provisioning": str(folder),
            "prometheus_project": str(REPOSITORY),
        },
        "tasks": [{"ansible.builtin.include_role": {"name": "prometheus", "tasks_from": "grafana.yml"}}],
    }
    path = folder.parents[1] / "play.yml"
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    environ = os.environ | {"ANSIBLE_ROLES_PATH": str(REPOSITORY / "playbooks/roles"), "ANSIBLE_NOCOLOR": "1"}
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", path, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="the role's files are root's")
@pytest.mark.timeout(180)
def test_a_grafana_beside_prometheus_gets_data_source_and_dashboards_once(tmp_path):
    folder = tmp_path / "grafana" / "provisioning"
    folder.mkdir(parents=True)
    provision(folder)

    [source] = yaml.safe_load((folder / "datasources/qwen3.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    [provider] = yaml.safe_load((folder / "dashboards/qwen3.yml").read_text())["providers"]
    shown = Path(provider["options"]["path"])
    assert {path.name: path.read_text() for path in shown.iterdir()} == dashboards.files()
    assert "changed=0" in provision(folder)


@pytest.mark.timeout(180)
def test_where_there_is_no_grafana_nothing_is_made(tmp_path):
    (tmp_path / "grafana").mkdir()
    provision(tmp_path / "grafana" / "provisioning")

    assert list((tmp_path / "grafana").iterdir()) == []
