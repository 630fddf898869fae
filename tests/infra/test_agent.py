"""The local agent: a real process, real virtual environments, real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from cluster_fixture import TINY
from traffic import TEXT, wait_until

from infra import local_deployment
from infra.agent import Agent
from infra.local_deployment import Library, StepError, provide_libraries

REPOSITORY = Path(__file__).parents[2]
DEPLOY, STATUS, CLEANUP = "/api/v1/local/deploy", "/api/v1/local/status", "/api/v1/local/cleanup"
SMALL = TINY | {
    "deployment_type": "local",
    "resource_limits": {"cpu_cores": 1, "memory_gb": 1, "disk_gb": 1},
    "serving": {"port": 0, "log_dir": "logs"},
}


@contextmanager
def agent_of(root):
    """An agent process, and a client that has its token."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.agent", "--root", str(root), "serve", "--port", "0"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stderr.readline().split()[2].rstrip(",")
        token = (root / "token").read_text().strip().rpartition(":")[2]
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            wait_until(lambda: _reachable(client), "the agent answers")
            client.process = process
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        process.stderr.close()


def _reachable(client):
    try:
        return client.get(STATUS).status_code == 200
    except httpx.TransportError:
        return False


def finished(client, job):
    def now():
        return client.get(STATUS, params={"job": job["id"]}).json()

    wait_until(lambda: now()["state"] != "running", f"{job['kind']} of {job['name']} is over", limit_s=240)
    return now()


def deployed(client, **body):
    answer = client.post(DEPLOY, json=body)
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json())
    assert job["state"] == "succeeded", job
    return job, row_of(client, job["name"])


def removed(client, name):
    answer = client.delete(CLEANUP, params={"name": name})
    assert answer.status_code == 202, answer.text
    [job] = answer.json()["jobs"]
    assert finished(client, job)["state"] == "succeeded"


def row_of(client, name):
    rows = client.get(STATUS, params={"name": name}).json()["deployments"]
    return rows[0] if rows else None


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("agent")


@pytest.fixture(scope="module")
def client(root):
    with agent_of(root) as client:
        yield client
        for row in client.get(STATUS).json()["deployments"]:
            removed(client, row["name"])


def test_what_is_deployed_answers_outlives_its_agent_and_leaves_nothing_behind(root):
    project_before = sorted(REPOSITORY.glob("*"))
    with agent_of(root / "own") as client:
        job, row = deployed(client, config=SMALL, name="mine")
        assert list(job["taken_s"]) == list(local_deployment.STEPS)
        assert job["progress"] == 1.0
        assert (row["state"], row["mode"]) == ("ready", "prod")
        answer = httpx.post(f"{row['url']}/api/v1/classify", json={"text": TEXT})
        assert answer.json()["category"]
        own = psutil.Process(row["pid"])
        python = Path(own.cmdline()[0])
        assert python.parents[1] == root / "own/deployments/mine/venv"
        folder = root / "own/deployments/mine"
        assert own.environ()["PYTHONPATH"] == str(folder / "app")
        finds = "import importlib.util as u, sys; print(*(u.find_spec(name) is not None for name in sys.argv[1:]))"
        found = subprocess.check_output([python, "-P", "-c", finds, "openvino", "locust"], text=True)
        assert found.split() == ["True", "False"], "the server's packages and no others"
        client.process.kill()
        client.process.wait()

    with agent_of(root / "own") as client:
        found = row_of(client, "mine")
        assert (found["state"], found["pid"]) == ("ready", row["pid"])
        neighbour = root / "own/deployments/neighbour"
        neighbour.mkdir()
        removed(client, "mine")
        assert not folder.exists()
        assert neighbour.is_dir()
        assert not own.is_running()
        assert client.get(STATUS, params={"name": "mine"}).json()["deployments"] == []
    assert sorted(REPOSITORY.glob("*")) == project_before


def test_a_second_deployment_of_a_name_waits_for_the_first_and_then_takes_its_place(client):
    first = client.post(DEPLOY, json={"config": SMALL, "name": "twice"})
    second = client.post(DEPLOY, json={"config": SMALL, "name": "twice"})

    assert second.status_code == 409
    assert "a deploy of 'twice' is under way" in second.json()["reason"]
    assert finished(client, first.json())["state"] == "succeeded"
    before = row_of(client, "twice")
    _, after = deployed(client, config=SMALL | {"model_version": "2"}, name="twice")
    assert after["pid"] != before["pid"]
    assert not psutil.pid_exists(before["pid"])
    assert httpx.get(f"{after['url']}/api/v1/model").json()["version"] == "2"


def test_what_cannot_start_says_why_and_what_ran_before_runs_on_until_it_is_checked(client):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serving = {"port": taken.getsockname()[1]}
        job = finished(
            client, client.post(DEPLOY, json={"config": SMALL | {"serving": serving}, "name": "taken"}).json()
        )
    assert (job["state"], job["step"]) == ("failed", "start")
    assert f"port {serving['port']} on 127.0.0.1 is in use: stop what listens there" in job["error"]
    assert row_of(client, "taken")["state"] == "failed"

    _, row = deployed(client, config=SMALL, name="steady")
    big = SMALL | {"optimization_settings": SMALL["optimization_settings"] | {"max_sequence_length": 1_000_000}}
    refused = client.post(DEPLOY, json={"config": big, "name": "steady"})
    assert refused.status_code == 422
    assert row_of(client, "steady")["pid"] == row["pid"]


def test_a_server_that_ends_while_it_starts_is_told_by_its_own_words(client, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "openvino_model.xml").write_text("<net/>")
    answer = client.post(DEPLOY, json={"config": SMALL | {"model_source": str(broken)}, "name": "broken"})
    reason = answer.json()["reason"] if answer.status_code == 422 else finished(client, answer.json())["error"]
    assert str(broken) in reason


def test_dev_mode_logs_everything_and_begins_again_when_a_file_changes(client):
    _, row = deployed(client, environment="local", overrides=["serving.port=0"], name="dev", mode="dev")
    watcher = psutil.Process(row["pid"])
    [server] = [each for each in watcher.children() if "model_server" in _words(each)]
    assert httpx.get(f"{row['url']}/api/v1/model").status_code == 200
    environment = Path(row["log"]).with_name("environment.yml").read_text()
    assert "log_level: DEBUG" in environment

    (REPOSITORY / "model_server/__init__.py").touch()

    def others():
        return [each for each in watcher.children() if "model_server" in _words(each) and each.pid != server.pid]

    wait_until(others, "another server")
    wait_until(lambda: row_of(client, "dev")["state"] == "ready", "it answers")
    removed(client, "dev")
    assert not watcher.is_running()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "give either environment"),
        ({"environment": "local", "config": SMALL}, "give either environment"),
        ({"environment": "nowhere"}, "there is no environment 'nowhere'; there are demo-baseline"),
        ({"environment": "../secrets"}, "environment"),
        ({"environment": "production"}, "deployment_type is 'kubernetes'"),
        ({"environment": "local", "overrides": ["serving.prot=1"]}, "did you mean 'port'"),
        ({"environment": "local", "mode": "fast"}, "'prod' or 'dev'"),
        ({"environment": "local", "nmae": "x"}, "nmae"),
        ({"config": {**SMALL, "engin": "x"}}, "did you mean 'engine'"),
        ({"config": SMALL, "overrides": ["serving.port=1"]}, "write them into config"),
        ({"config": {**SMALL, "resource_limits": {"cpu_cores": 1, "memory_gb": 0.1, "disk_gb": 1}}}, "GiB"),
        ({"config": SMALL, "name": "Not/A/Name"}, "name"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(client, root, body, said):
    answer = client.post(DEPLOY, json={"name": "refused"} | body)

    assert answer.status_code == 422
    told = answer.json()
    assert said in told.get("reason", str(told.get("detail")))
    assert not (root / "deployments/refused").exists()


def test_only_who_has_the_token_is_answered_and_only_under_this_machine_s_name(client, root):
    assert client.get(STATUS, headers={"Authorization": "Bearer guess"}).status_code == 401
    without = httpx.get(f"{client.base_url}{STATUS}")
    assert without.status_code == 401
    assert "token" in without.json()["reason"]
    assert client.get(STATUS, headers={"Host": "evil.example"}).status_code == 400
    assert (root / "token").stat().st_mode & 0o777 == 0o600
    token = (root / "token").read_text().strip().rpartition(":")[2]
    assert token not in without.text
    assert not any(token in word for process in psutil.process_iter() for word in _words(process))


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_job_and_a_deployment_that_are_not_there_are_named(client):
    assert client.get(STATUS, params={"job": "nosuch"}).status_code == 404
    answer = client.delete(CLEANUP, params={"name": "nosuch"})
    assert answer.status_code == 404
    assert "there is no deployment 'nosuch'" in answer.json()["reason"]


def test_two_agents_in_one_folder_are_refused(client, root):
    command = [sys.executable, "-m", "infra.agent", "--root", str(root), "serve", "--port", "0"]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"an agent is at work in {root}: http://127.0.0.1" in second.stderr


def test_a_deployment_that_was_interrupted_is_shown_and_can_be_removed(root):
    with agent_of(root / "interrupted") as client:
        job = client.post(DEPLOY, json={"config": SMALL, "name": "half"}).json()
        wait_until(
            lambda: client.get(STATUS, params={"job": job["id"]}).json()["step"] == "packages", "packages are installed"
        )
        client.process.kill()
        client.process.wait()
    with agent_of(root / "interrupted") as client:
        assert row_of(client, "half")["state"] == "interrupted"
        removed(client, "half")
        assert not (root / "interrupted/deployments/half").exists()


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    lacking = Library("libnosuch.so.9", {"apt-get": "nosuch-package", "dnf": "nosuch-package"})
    monkeypatch.setattr(local_deployment.shutil, "which", lambda name: name if name == "apt-get" else None)
    with pytest.raises(StepError, match=r"libnosuch.so.9 missing: run `apt-get install .* nosuch-package` as root"):
        provide_libraries([lacking], may_install=False)
    monkeypatch.setattr(local_deployment.shutil, "which", lambda _: None)
    with pytest.raises(StepError, match="install what has it"):
        provide_libraries([lacking], may_install=True)


def test_the_libraries_that_are_looked_for_are_those_that_openvino_links_to():
    assert provide_libraries(local_deployment.LIBRARIES, may_install=False) == []


def test_a_process_with_the_number_of_an_earlier_server_is_left_alone(tmp_path):
    """After a restart of the machine somebody else may have it."""
    deployment = Agent(tmp_path, REPOSITORY).deployment("old")
    deployment.folder.mkdir(parents=True)
    state = {"mode": "prod", "phase": "running", "url": "http://127.0.0.1:1", "pid": os.getpid(), "process_began": 1.0}
    state |= {"deployed_at": None, "answered_in_s": None, "installed": []}
    (deployment.folder / "state.json").write_text(json.dumps(state))

    assert deployment.describe()["state"] == "stopped"
    deployment.remove(lambda _: None)
    assert not deployment.folder.exists()


def test_the_command_line_deploys_shows_and_removes(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "infra.agent", "--root", str(tmp_path / "state"), *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert run("status").returncode == 1
    done = run("deploy", "local", "serving.port=0", "--port", "0")
    try:
        assert done.returncode == 0, done.stderr
        assert "local answers at http://127.0.0.1:" in done.stdout
        [row] = json.loads(run("status", "--json").stdout)["deployments"]
        assert row["state"] == "ready"
        assert "there is no environment 'nowhere'" in run("deploy", "nowhere").stderr
        assert run("deploy", "nowhere").returncode == 2
        assert run("cleanup", "local").stdout == "local is stopped and removed\n"
        assert run("status").stdout == "nothing is deployed\n"
    finally:
        assert run("shutdown").returncode == 0
    wait_until(lambda: not (tmp_path / "state/agent.json").exists(), "the agent ended")
