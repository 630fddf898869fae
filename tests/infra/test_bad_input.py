"""Mistakes of who deploys: one message that says what to do, no traceback, nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pulumi
import pytest
import yaml
from cluster_fixture import TINY

ROOT = Path(__file__).parents[2]
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"
KEYS = {"api_keys": "one\ntwo\n"}
DEPLOYED = {**KEYS, "image": IMAGE}


def test_settings_that_can_be_meant_are_taken(program):
    """What the refusals below are refusals of."""
    kinds = {each.typ.rsplit(":", 1)[1] for each in program("production", **DEPLOYED)}

    assert {"Deployment", "Secret", "Service"} <= kinds


@pytest.mark.parametrize(
    ("environment", "settings", "said"),
    [
        ("production", {"api_key": "x"}, "api_key in the stack's settings: unknown key; did you mean 'api_keys'?"),
        ("production", {"replicas": "3"}, "allowed: environment, cluster, hosts"),
        ("none", {}, "environments/none.yml: No such file"),
        ("production", {"cluster": "qwen3", **DEPLOYED}, "`pulumi config set --path cluster.KEY VALUE`"),
        ("production", {"cluster": '["qwen3"]', **DEPLOYED}, "cluster must be a mapping"),
        (
            "production",
            {"cluster": '{"namspace": "x"}', **DEPLOYED},
            "namspace: unknown key; did you mean 'namespace'?",
        ),
        (
            "production",
            {"cluster": '{"autoscaling": "rps"}', **DEPLOYED},
            "autoscaling: Input should be 'requests' or 'cpu'",
        ),
        (
            "production",
            {"cluster": '{"capacity": {"cpu_cores": -1}}', **DEPLOYED},
            "capacity.cpu_cores: Input should be",
        ),
        ("production", {"overrides": '{"a": 1}', **DEPLOYED}, "a list of words such as serving.max_queue=3"),
        ("production", {"overrides": "[1]", **DEPLOYED}, "a list of words such as serving.max_queue=3"),
        ("production", {"overrides": '["serving.max_qeue=3"]', **DEPLOYED}, "serving.max_qeue"),
        ("production", {"rollout": "soon", **DEPLOYED}, "rollout is 'soon', a single value"),
        ("production", {"image": IMAGE}, "the stack has no keys: `pulumi config set --secret api_keys`"),
        ("production", {"image": IMAGE, "api_keys": " \n"}, "the stack has no keys"),
        ("production", {"image": "qwen3-server:latest", **KEYS}, "image 'qwen3-server:latest' is not pinned"),
        ("production", KEYS, "`pulumi config set --path build.base_image NAME@sha256:DIGEST`"),
        ("production", {"build": '{"base": "x"}', **KEYS}, "base: unknown key"),
        ("onprem", {"hosts": "host1"}, "hosts is 'host1', a single value"),
        ("onprem", {"hosts": '[{"name": "h", "adress": "x"}]'}, "hosts.0.adress: unknown key; did you mean 'address'?"),
        ("local", {"local": '{"prometheus": "x"}'}, "prometheus: unknown key"),
        ("local", {"image": "qwen3-server:latest"}, "image 'qwen3-server:latest' is not pinned"),
        ("local", {}, "build.base_image"),
    ],
)
def test_a_wrong_setting_of_a_stack_is_named(program, environment, settings, said):
    with pytest.raises(pulumi.RunError) as caught:  # which the engine prints as its text, without a traceback
        program(environment, **settings)

    assert said in str(caught.value)


def test_keys_in_plain_text_are_refused(program, monkeypatch):
    monkeypatch.setattr(pulumi.runtime, "is_config_secret", lambda name: False)

    with pytest.raises(pulumi.RunError, match=r"plain text in Pulumi\.production\.yaml") as caught:
        program("production", **DEPLOYED)
    assert "one" not in str(caught.value).split()


# With the real engine -------------------------------------------------------------------------------------


class Project:
    """A project folder with the repository's program, and one stack, driven as a person does it."""

    def __init__(self, folder, env, environment):
        self.folder = folder
        path = os.pathsep.join([str(ROOT / ".venv/bin"), env["PATH"]])
        self.env = os.environ | env | {"PATH": path, "PULUMI_SKIP_CONFIRMATIONS": "true"}
        (folder / "environments").mkdir(parents=True)
        (folder / "infra").mkdir()
        shutil.copy(ROOT / "infra/__main__.py", folder / "infra")
        shutil.copy(ROOT / "Pulumi.yaml", folder)
        (folder / "models").symlink_to(ROOT / "models")
        (folder / "environments/site.yml").write_text(yaml.safe_dump(environment))
        self.pulumi("stack", "init", "site", check=True)

    def pulumi(self, *words, check=False, **variables):
        command = ["pulumi", *words, "--non-interactive", "--color", "never"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env | variables,
            check=False,
            timeout=240,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    def set(self, **settings):
        for name, value in settings.items():
            words = ["--secret"] if name == "api_keys" else ["--path"]
            self.pulumi("config", "set", *words, name.replace("__", "."), value, check=True)

    def refused(self, *words, **variables):
        """The end of what ``pulumi WORDS`` says; it fails, without a traceback, and leaves no object in the stack."""
        code, output = self.pulumi(*words, **variables)
        assert code != 0, output
        assert "Traceback" not in output, output
        assert self.objects() == []
        return output.rpartition("Diagnostics:")[2]  # before it, progress repeats first lines

    def objects(self):
        _, exported = self.pulumi("stack", "export", check=True)
        deployment = json.loads(exported)["deployment"]
        begun = [each["resource"] for each in deployment.get("pending_operations", [])]
        resources = deployment.get("resources", []) + begun
        return [each["type"] for each in resources if each["type"].startswith(("kubernetes:", "docker:"))]


@pytest.fixture
def project(pulumi_env, tmp_path):
    made = Project(tmp_path / "project", pulumi_env, TINY)
    made.set(image="qwen3-server:0123456789ab", cluster__create_namespace="false", cluster__weights="image", **KEYS)
    return made


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster__namspace": "x"}, "namspace: unknown key; did you mean 'namespace'?"),
        ({"cluster__autoscaling": "rps"}, "autoscaling: Input should be 'requests' or 'cpu', got 'rps'"),
        ({"imgae": "x"}, "unknown key; did you mean 'image'?"),
        ({"image": "qwen3-server:latest"}, "is not pinned"),
        ({"environment": "environments/none.yml"}, "environments/none.yml: No such file"),
    ],
)
def test_the_engine_says_what_is_wrong_and_changes_nothing(project, settings, said):
    project.set(**settings)

    for words in (["preview"], ["up", "--yes"]):
        output = project.refused(*words)
        assert output.count(said) == 1, output


@pytest.mark.cluster
def test_the_engine_says_that_the_keys_are_missing(project):
    project.pulumi("config", "rm", "api_keys", check=True)

    output = project.refused("up", "--yes")
    assert output.count("the stack has no keys: `pulumi config set --secret api_keys`") == 1, output


def kubeconfig(path, server, user, authority=None):
    """A kubeconfig of one context."""
    trust = {"insecure-skip-tls-verify": True} if authority is None else {"certificate-authority-data": authority}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "site", "cluster": {"server": server, **trust}}],
                "users": [{"name": "site", "user": user}],
                "contexts": [{"name": "site", "context": {"cluster": "site", "user": "site"}}],
                "current-context": "site",
            }
        )
    )
    return str(path)


@pytest.mark.cluster
def test_a_cluster_that_cannot_be_reached_is_named(project, tmp_path):
    """By ``up``; the provider plans without a cluster."""
    nowhere = kubeconfig(tmp_path / "nowhere", "https://127.0.0.1:1", {"token": "x"})

    output = project.refused("up", "--yes", KUBECONFIG=nowhere)
    assert output.count("Kubernetes cluster is unreachable") == 1, output
    assert "https://127.0.0.1:1/" in output, output


@pytest.mark.cluster
def test_a_namespace_without_rights_says_who_may_not_do_what(project, cluster, tmp_path):
    with cluster.namespace() as namespace:
        token = cluster.kubectl("create", "token", "default", "-n", namespace).strip()
        known = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
        stranger = kubeconfig(
            tmp_path / "stranger", known["server"], {"token": token}, known.get("certificate-authority-data")
        )
        project.set(cluster__namespace=namespace)

        output = project.refused("up", "--yes", KUBECONFIG=stranger)
        assert output.count("forbidden: User") == 1, output
        assert f"system:serviceaccount:{namespace}:default" in output, output
        kinds = "deployment,service,hpa,pdb,networkpolicy,secret"
        assert cluster.get(kinds, "-n", namespace)["items"] == []
