"""Scanners over what is deployed: checkov, detect-secrets, pip-audit. Each exception has its reason beside it.

What hadolint and detect-secrets say of the built image stands in test_image.py.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.cluster import ClusterSettings
from infra.manifests import manifests
from model_server import deployment
from model_server.cache import cache_dir, environment_python
from runconfig import read_yaml

ROOT = Path(__file__).parents[2]
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"
ENVIRONMENTS = sorted(
    path.stem for path in (ROOT / "environments").glob("*.yml") if read_yaml(path)["deployment_type"] == "kubernetes"
)
CLUSTERS = {
    "default": {},
    "operator": {"prometheus_operator": True, "weights_claim_gb": 10},
    "small": {"weights": "image", "autoscaling": "cpu", "create_namespace": False},
}
EXCEPTIONS = {
    # It writes the pods' deletion cost, so it speaks to the API server; its role allows that and nothing else.
    ("CKV_K8S_38", "Deployment.qwen3-deletion-cost"),
}

CHART_EXCEPTIONS = EXCEPTIONS | {
    # The pod of `helm test` classifies one call and ends: there is nothing to probe, and it is nobody's backend.
    ("CKV_K8S_8", "Pod.qwen3-inference-test"),
    ("CKV_K8S_9", "Pod.qwen3-inference-test"),
    # The policy is the server's. Selecting this pod too would let it out to port 53 alone, and it asks the server.
    ("CKV2_K8S_6", "Pod.qwen3-inference-test"),
}

pytestmark = [pytest.mark.policy, pytest.mark.timeout(600)]


def scanner(name):
    return environment_python("policy").with_name(name)


def checkov(framework, where):
    """(check, resource without its namespace) that fail, and how many pass; ``where`` is a folder or a file."""
    given = ["-d" if where.is_dir() else "-f", str(where), "--framework", framework]
    command = [scanner("checkov"), *given, "--skip-download", "--quiet", "--compact", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    failed = {
        (found["check_id"], re.sub(r"^(\w+)\.[^.]+\.", r"\1.", found["resource"]))
        for found in report["results"]["failed_checks"]
    }
    return failed, report["summary"]["passed"]


def test_the_objects_of_every_environment_keep_checkovs_rules(tmp_path):
    assert ENVIRONMENTS == ["production", "staging"]
    for name in ENVIRONMENTS:
        config = deployment.load(ROOT / f"environments/{name}.yml", environ={})
        for kind, raw in CLUSTERS.items():
            found = manifests(config, ClusterSettings.model_validate(raw), IMAGE)
            (tmp_path / f"{name}-{kind}.yaml").write_text(yaml.safe_dump_all(found))

    failed, passed = checkov("kubernetes", tmp_path)

    assert failed == EXCEPTIONS
    assert passed > 500


def test_a_careless_object_is_noticed(tmp_path):
    """The scan above can fail: for an image that may become another, for rights, and for a limit that is gone."""
    config = deployment.load(ROOT / "environments/production.yml", environ={})
    found = copy.deepcopy(manifests(config, ClusterSettings(), IMAGE))  # parts of it are shared
    (server,) = [
        each for each in found if each["kind"] == "Deployment" and each["metadata"]["name"] == "qwen3-inference"
    ]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    container["image"] = "qwen3-server:latest"
    container["securityContext"]["allowPrivilegeEscalation"] = True
    del container["resources"]["limits"]["memory"]
    (tmp_path / "careless.yaml").write_text(yaml.safe_dump(server))

    failed, _ = checkov("kubernetes", tmp_path)

    assert {"CKV_K8S_14", "CKV_K8S_43", "CKV_K8S_20", "CKV_K8S_13"} <= {check for check, _ in failed}


@pytest.mark.helm
def test_the_chart_keeps_the_same_rules(tmp_path):
    program = shutil.which("helm") or str(cache_dir() / "bin" / "helm")
    for name in ENVIRONMENTS:
        values = [ROOT / f"environments/{name}.yml", "--set", f"image={IMAGE}", "--set", "api_keys=one"]
        command = [program, "template", "qwen3", ROOT / "infra/chart", "-n", "qwen3", "--kube-version", "1.34", "-f"]
        done = subprocess.run([*command, *values], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (tmp_path / f"{name}.yaml").write_text(done.stdout)

    failed, passed = checkov("kubernetes", tmp_path)

    assert failed == CHART_EXCEPTIONS
    assert passed > 150


def test_the_dockerfile_keeps_checkovs_rules(tmp_path):
    failed, passed = checkov("dockerfile", ROOT / "infra/image/Dockerfile")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nADD . /\nEXPOSE 22\n")
    careless, _ = checkov("dockerfile", tmp_path / "Dockerfile")

    assert failed == set()
    assert passed > 50
    assert {"CKV_DOCKER_1", "CKV_DOCKER_3", "CKV_DOCKER_7"} <= {check for check, _ in careless}


# Secrets in the repository ---------------------------------------------------------------------------------

NO_SECRETS = (
    r"sha256",  # digests: of packages in requirements/, of files in a model's manifest, of images
    r"automountServiceAccountToken: ",  # says whether, not what
    r"(?i)tokenizer|token_source|output_tokens|token_indices|first_token|_tokens_(while|total)",  # a language model's
    r"PLATE_LETTERS = ",  # those of number plates, in their order
)
GUESSES = ("HexHighEntropyString", "Base64HighEntropyString", "KeywordDetector", "BasicAuthDetector")
"""They go by names and by randomness; tests hold many made-up keys and identifiers, so there only known forms count."""


def secrets(folder, *words):
    command = [scanner("detect-secrets"), "-C", folder, "scan", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"]
    return {(name, hit["type"], hit["line_number"]) for name, hits in found.items() for hit in hits}


def test_no_secret_is_in_the_repository():
    lines = [word for pattern in NO_SECRETS for word in ("--exclude-lines", pattern)]
    known_forms = [word for name in GUESSES for word in ("--disable-plugin", name)]

    elsewhere = rf"^({re.escape(str(ROOT))}/)?(tests|requirements)/"
    assert secrets(ROOT, *lines, "--exclude-files", elsewhere) == set()
    assert secrets(ROOT, *known_forms) == set()


def test_a_secret_would_be_found(tmp_path):
    (tmp_path / "keys.py").write_text("password = 'hunter2hunter2'\nkey = 'AKIA" + "QWERTYUIOPASDFGH'\n")
    lines = [word for pattern in NO_SECRETS for word in ("--exclude-lines", pattern)]
    known_forms = [word for name in GUESSES for word in ("--disable-plugin", name)]

    assert {line for _, _, line in secrets(tmp_path, "--all-files", *lines)} == {1, 2}
    assert {kind for _, kind, _ in secrets(tmp_path, "--all-files", *known_forms)} == {"AWS Access Key"}


# Known vulnerabilities -------------------------------------------------------------------------------------


def vulnerable(requirements, *words):
    """``NAME VERSION: IDS`` of packages with known vulnerabilities."""
    command = [scanner("pip-audit"), "-r", requirements, *words, "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run([*command, "-f", "json", "--timeout", "10"], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit: {done.stderr.strip().splitlines()[-1]}")
    return [
        f"{each['name']} {each['version']}: {', '.join(one['id'] for one in each['vulns'])}"
        for each in found
        if each.get("vulns")
    ]


def test_no_package_of_the_server_has_a_known_vulnerability(tmp_path):
    """A version with a vulnerability known since 2020 says first whether the database can be reached."""
    (tmp_path / "old.txt").write_text("jinja2==2.11.2\n")
    if vulnerable(tmp_path / "old.txt", "--no-deps") == []:
        pytest.skip("pip-audit: its database cannot be reached (it knows nothing of jinja2 2.11.2)")

    assert vulnerable(ROOT / "requirements/server.txt", "--require-hashes") == []
