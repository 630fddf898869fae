"""The Helm chart against the objects of infra.manifests: the same, for every environment and for made-up ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cluster_fixture import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra import chart_schema
from infra.cluster import ClusterSettings
from infra.manifests import KEEPER, KEYS, NAME, checksum, manifests
from model_server.cache import cache_dir
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, ResourceInsufficientError
from runconfig import ConfigError, read_yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra" / "chart"
ENVIRONMENTS = {path.stem: read_yaml(path) for path in sorted((ROOT / "environments").glob("*.yml"))}
ON_KUBERNETES = [name for name, raw in ENVIRONMENTS.items() if raw["deployment_type"] == "kubernetes"]
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"
SPACE = "site"
KUBERNETES = "1.34"
CLUSTERS = [
    {},
    {"weights": "image", "autoscaling": "cpu", "monitoring_namespace": "prometheus"},
    {"env": {"MODEL_SERVER_SERVING__LOG_LEVEL": "DEBUG", "MODEL_SERVER_SERVING__MAX_QUEUE": "3"}},
    {"weights_claim": "other", "prometheus_operator": True, "capacity": {"cpu_cores": 99, "memory_gb": 99}},
    {"grafana_dashboards": True},
    {"weights_claim_gb": 2.5, "weights_storage_class": "fast.ssd", "weights_access": "ReadWriteOnce"},
    {"deletion_cost": False, "weights_claim_gb": 10},
]


def helm(verb, values, *words, chart=CHART):
    """``helm VERB`` of the chart with ``values`` as its file."""
    program = shutil.which("helm") or str(cache_dir() / "bin" / "helm")
    release = ["release"] if verb == "template" else []
    # A Helm that was built without its release's flags takes the cluster for one of version 1.20.
    return subprocess.run(
        [program, verb, *release, str(chart), "-n", SPACE, "--kube-version", KUBERNETES, "-f", "-", *words],
        input=json.dumps(values, ensure_ascii=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def template(values, *words):
    done = helm("template", values, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(values):
    done = helm("template", values)
    assert done.returncode != 0, "these values were taken"
    return done.stderr


def values_of(name="production", *, cluster=None, **changes):
    """The environment as an installation gives it; ``serving__port=9`` changes one key."""
    found = deepcopy(ENVIRONMENTS[name]) | {"image": IMAGE, "cluster": cluster or {}}
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = found
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    if found.get("serving", {}).get("api_keys_file") is not None and "existing_secret" not in found:
        found.setdefault("api_keys", "# whose\nfirst:one\ntwo\n")
    return found


def described(values):
    """The same values as Python reads them."""
    environment = {key: value for key, value in values.items() if key in DeploymentConfig.model_fields}
    cluster = ClusterSettings.model_validate(values["cluster"] | {"namespace": SPACE, "create_namespace": False})
    return DeploymentConfig.model_validate(environment), cluster


def _objects(values, kind):
    return [each for each in yaml.safe_load_all(template(values)) if each is not None and each["kind"] == kind]


# The normalisation. Of Python's objects: spec.replicas, which Helm leaves to the autoscaler. Of the chart's: the
# labels app.kubernetes.io/managed-by and helm.sh/chart; the annotations that keep old ConfigMaps (Pulumi deletes them
# after the new pods are ready, Helm before) and the claim of the weights (the component retains it by an option of the
# engine); the Secret and the test's Pod, which have tests of their own. Of both: the
# checksum, which is one of other bytes (see test_the_checksum_...), and the file in the ConfigMap, which is compared as
# what it says.


def of_python(values):
    config, cluster = described(values)
    found = manifests(config, cluster, values["image"])
    server = _server_of(found)
    assert server["spec"].pop("replicas") == config.replicas.min
    return _comparable(found, checksum(config))


def of_chart(values, *words):
    found = [each for each in yaml.safe_load_all(template(values, *words)) if each is not None]
    found = [each for each in found if each["kind"] not in {"Secret", "Pod"}]
    for each in found:
        labels = each["metadata"]["labels"]
        assert labels.pop("app.kubernetes.io/managed-by") == "Helm"
        assert labels.pop("helm.sh/chart").startswith("qwen3-inference-")
        if each["kind"] == "PersistentVolumeClaim":
            assert each["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        if each["kind"] == "ConfigMap" and "grafana_dashboard" not in labels:
            hook = each["metadata"].pop("annotations")
            assert hook == {
                "helm.sh/hook": "pre-install,pre-upgrade,pre-rollback",
                "helm.sh/hook-delete-policy": "before-hook-creation",
            }
    return _comparable(found, _checksum_of(found))


def _server_of(found):
    (server,) = (each for each in found if (each["kind"], each["metadata"]["name"]) == ("Deployment", NAME))
    return server


def _checksum_of(found):
    return _server_of(found)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]


def _comparable(found, own_checksum):
    maps = [each for each in found if each["kind"] == "ConfigMap"]
    (config_map,) = (each for each in maps if "grafana_dashboard" not in each["metadata"]["labels"])
    environment = DeploymentConfig.model_validate(yaml.safe_load(config_map["data"]["environment.yml"]))
    assert set(config_map["data"]) == {"environment.yml"}
    config_map["data"] = environment.model_dump()
    found = json.loads(json.dumps(found, default=str).replace(own_checksum, "CHECKSUM"))
    by_name = {f"{each['kind']}/{each['metadata']['name']}": each for each in found}
    assert len(by_name) == len(found)
    return by_name


# One source.


def test_the_committed_files_are_what_the_records_say():
    """`python -m infra.chart_schema` writes them anew."""
    for name, text in chart_schema.files().items():
        assert (CHART / name).read_text(encoding="utf-8") == text, name


def test_the_chart_has_the_version_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = read_yaml(CHART / "Chart.yaml")

    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_defaults_are_those_of_the_records():
    """Read from values.yaml, which a Helm user reads, rather than from the program that made it."""
    defaults = read_yaml(CHART / "values.yaml")
    least = {
        "model_name": "m",
        "model_version": "1",
        "model_source": "models/m",
        "deployment_type": "kubernetes",
        "engine": "openvino",
        "resource_limits": {"cpu_cores": 1, "memory_gb": 1, "disk_gb": 1},
        "optimization_settings": {
            "enable_quantization": False,
            "quantization_bits": 16,
            "max_batch_size": 1,
            "max_sequence_length": 16,
        },
    }
    filled = least | {key: value for key, value in defaults.items() if key in DeploymentConfig.model_fields}
    for section in ("resource_limits", "optimization_settings"):
        filled[section] = defaults[section] | least[section]

    assert DeploymentConfig.model_validate(filled) == DeploymentConfig.model_validate(least)
    assert ClusterSettings.model_validate(defaults["cluster"]) == ClusterSettings()


@pytest.mark.helm
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_the_chart_makes_the_same_objects(name, cluster):
    values = values_of(name, cluster=cluster)

    assert of_chart(values) == of_python(values)


@pytest.mark.helm
@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({"replicas__max": 4}, True),
        ({"replicas__max": 3}, False),
        ({"serving__metrics_port": None}, False),
    ],
)
def test_the_keeper_of_costs_is_there_where_python_has_it(changes, there):
    found = of_chart(values_of(**changes))

    assert (f"Deployment/{KEEPER}" in found) == there
    assert found == of_python(values_of(**changes))


@pytest.mark.helm
def test_an_environments_own_file_is_the_values(tmp_path):
    """As the head of values.yaml has it: -f environments/production.yml --set image=... --set-file api_keys=..."""
    (tmp_path / "keys").write_text("one\n")
    environment = ROOT / "environments" / "production.yml"
    words = ["-f", str(environment), "--set", f"image={IMAGE}", "--set-file", f"api_keys={tmp_path / 'keys'}"]

    assert of_chart({}, *words) == of_python(values_of())


def decimals(least, most, per_one):
    """Numbers as people write them. Helm calculates in decimals and Python in binary: where a product lies within
    1e-12 of a whole number they may differ by one millicore or one second (32.2 GiB; 1.003 cores).
    """
    return st.integers(round(least * per_one), round(most * per_one)).map(lambda number: number / per_one)


words_that_yaml_reads_as_something_else = st.sampled_from(
    [
        "2026-11-01",
        "1e3",
        "1:30",
        "0o14",
        "010",
        "1_0",
        "on",
        "no",
        "~",
        "null",
        ".5",
        "0x1F",
        "- a",
        "a: b",
        "'",
        "#x",
        "=",
        "<<",
    ]
)
names = words_that_yaml_reads_as_something_else | st.text(min_size=1, max_size=80).filter(str.isprintable)
variables = st.sampled_from([f"MODEL_SERVER_X__{letter}" for letter in "ABab"])
urls = st.sampled_from(
    [
        None,
        "http://collector",
        "https://collector",
        "http://collector:4318",
        "https://user:secret@collector:8443/v1",
        "http://[::1]:9",
        "http://10.0.0.1/x",
        "http://10.0.0.1:99",
    ]
)


@st.composite
def environments(draw):
    """Values that can be meant."""
    timeout = draw(decimals(0.5, 300, 100))
    least = draw(st.integers(1, 20))
    download = draw(st.booleans())
    bits = draw(st.sampled_from([4, 8, 16]))
    metrics_port = draw(st.none() | st.integers(1, 65535))
    keys_file = draw(st.sampled_from(["/run/secrets/api_keys", "/keys/all.txt"]))
    weights = "download" if download else draw(st.sampled_from(["image", "claim"]))
    return values_of(
        model_name=draw(names),
        model_version=draw(names),
        model_source=draw(names),
        model_revision="0" * 40 if download else None,
        model_fallback=draw(st.none() | names),
        engine=draw(st.sampled_from(["openvino", "transformers", "ollama", "lmdeploy"])),
        resource_limits={
            "cpu_cores": draw(decimals(0.1, 64, 100) | decimals(0.125, 64, 8)),
            "memory_gb": draw(decimals(0.0625, 256, 16) | decimals(0.1, 32, 100)),
            "disk_gb": draw(decimals(0.01, 5000, 100) | st.sampled_from([1e-7, 5e-5, 1_048_576, 999_999.5])),
            "gpu_count": draw(st.integers(0, 8)),
        },
        optimization_settings={
            "enable_quantization": bits < 16,
            "quantization_bits": bits,
            "max_batch_size": draw(st.integers(1, 1024)),
            "max_sequence_length": draw(st.integers(16, 1_048_576)),
        },
        replicas={"min": least, "max": least + draw(st.integers(0, 20))},
        serving={
            "host": "0.0.0.0",
            "port": draw(st.integers(1, 65535) | st.just(metrics_port or 8000)),
            "metrics_port": metrics_port,
            "request_timeout_s": timeout,
            "drain_s": round(timeout + 5 + draw(decimals(0.01, 100, 100)), 2),
            "api_keys_file": keys_file,
            "rate_limit_per_minute": draw(st.none() | st.integers(1, 10**7)),
            "log_level": draw(st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR"])),
            "otlp_endpoint": draw(urls),
            "engine_url": draw(urls),
            "record_text": draw(st.booleans()),
            "max_body_bytes": draw(st.integers(1024, 10**12)),
        },
        alerts=draw(
            st.dictionaries(st.sampled_from(["low_qps", "high_latency"]), decimals(0, 3000, 100))
            | st.dictionaries(st.sampled_from(["memory_usage", "high_error_rate"]), decimals(0.01, 100, 100))
        ),
        cluster={
            "weights": weights,
            "weights_claim_gb": draw(st.none() | decimals(0.01, 5000, 100)) if weights == "claim" else None,
            "weights_storage_class": draw(st.sampled_from([None, "fast", "1e3"])),
            "weights_access": draw(st.sampled_from(["ReadWriteMany", "ReadWriteOnce"])),
            "deletion_cost": draw(st.booleans()),
            "weights_claim": draw(st.sampled_from(["qwen3-models", "other", "123", "1e3"])),
            "autoscaling": draw(st.sampled_from(["requests", "cpu"])),
            "monitoring_namespace": draw(st.sampled_from(["monitoring", "true", "8"])),
            "prometheus_operator": draw(st.booleans()),
            "grafana_dashboards": draw(st.booleans()),
            "env": draw(
                st.dictionaries(st.sampled_from([f"MODEL_SERVER_X__{x}" for x in "ABab"]), names | st.just(""))
            ),
        },
    )


@pytest.mark.helm
@settings(max_examples=int(os.environ.get("CHART_EXAMPLES", "40")), deadline=None)
@given(values=environments())
def test_the_chart_makes_the_same_objects_of_made_up_values(values):
    assert of_chart(values) == of_python(values)


CHANGES = {
    "serving__rate_limit_per_minute": st.sampled_from([None, 7]),
    "serving__log_level": st.sampled_from(["INFO", "DEBUG"]),
    "replicas__max": st.integers(3, 4),
    "alerts": st.sampled_from([{}, {"low_qps": 0}]),
    "rollout__steps": st.sampled_from([[100], [10, 100]]),
    "model_version": st.sampled_from(["1", "2"]),
    "model_fallback": st.sampled_from([None, "models/x"]),
    "serving__metrics_port": st.sampled_from([None, 9000]),
    "serving__drain_s": st.sampled_from([75, 75.0, 76]),
    "resource_limits__memory_gb": st.sampled_from([8, 8.5]),
}


@pytest.mark.helm
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_checksum_changes_exactly_when_the_other_one_does(data):
    """Two values that differ in a few keys, so that hot, cold and no changes all come up."""
    one = values_of()
    other = deepcopy(one)
    for path in data.draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=3, unique=True)):
        *sections, key = path.split("__")
        for each in (one, other):
            node = each
            for section in sections:
                node = node[section]
            node[key] = data.draw(CHANGES[path])

    ours = [checksum(described(each)[0]) for each in (one, other)]
    charts = [_checksum_of(_objects(each, "Deployment")) for each in (one, other)]
    assert (charts[0] != charts[1]) == (ours[0] != ours[1])


OTHER = {
    "model_name": "x",
    "model_version": "x",
    "model_source": "x",
    "model_fallback": "x",
    "engine": "transformers",
    "image": f"x@sha256:{'b' * 64}",
    "optimization_settings.quantization_bits": 8,
    "optimization_settings.kv_cache_bits": 16,
    "serving.host": "::",
    "serving.api_keys_file": "/keys/api_keys",
    "serving.otlp_endpoint": "http://x",
    "serving.trace_sample_ratio": 0.5,
    "serving.engine_url": "http://x",
    "serving.log_level": "DEBUG",
    "serving.drain_s": 99,
    "rollout.strategy": "blue-green",
    "rollout.steps": [100],
    "rollout.gate": "x.yml",
    "alerts": {"low_qps": 3},
}
"""Where one more, or the opposite, is no value. Keys that are bound to another one have none here."""
BOUND = {
    "deployment_type",
    "model_revision",
    "serving.log_dir",
    "optimization_settings.enable_quantization",
    "optimization_settings.enable_kv_cache",
}


@pytest.mark.helm
@pytest.mark.parametrize("path", sorted({*chart_schema._paths(DeploymentConfig, "")} - BOUND))
def test_each_key_moves_the_checksum_or_does_not(path):
    before = values_of()
    old = described(before)[0]
    section, _, key = path.rpartition(".")
    value = getattr(getattr(old, section) if section else old, key)
    new = OTHER[path] if path in OTHER else not value if isinstance(value, bool) else (value or 0) + 1
    after = values_of(**{path.replace(".", "__"): new})

    charts = [_checksum_of(_objects(each, "Deployment")) for each in (before, after)]
    assert old != described(after)[0]
    assert (charts[0] != charts[1]) == (checksum(old) != checksum(described(after)[0]))


# Valid and restricted, as the other objects are (test_manifests.py).


@pytest.mark.helm
@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_every_object_is_valid_for_the_api_server(name):
    for found in yaml.safe_load_all(template(values_of(name))):
        if found is not None:
            kubernetes_validate.validate(found, KUBERNETES, strict=True)
            assert found["metadata"]["namespace"] == SPACE


@pytest.mark.helm
def test_lint_has_nothing_to_say():
    done = helm("lint", values_of(), "--strict")

    assert done.returncode == 0, done.stdout + done.stderr


# Keys.


@pytest.mark.helm
def test_the_keys_become_the_secret_that_the_pods_mount():
    (secret,) = _objects(values_of(api_keys="first:one\n'\"#: two\n"), "Secret")

    assert secret["metadata"]["name"] == KEYS
    assert secret["stringData"] == {"api_keys": "first:one\n'\"#: two\n"}


@pytest.mark.helm
def test_a_secret_that_is_there_is_mounted_instead():
    values = values_of(existing_secret="vault")
    text = template(values)
    volumes = _server_of(_objects(values, "Deployment"))["spec"]["template"]["spec"]["volumes"]

    assert "kind: Secret" not in text
    assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == ["vault"]
    assert of_chart(values) == json.loads(json.dumps(of_python(values)).replace(KEYS, "vault"))


# Refused: what Python refuses, the chart does too, in the words of the key.

WRONG_TOGETHER = [
    ({"deployment_type": "server"}, 'deployment_type is "server"'),
    ({"serving__host": "127.0.0.1"}, "set 0.0.0.0"),
    ({"serving__host": "localhost"}, "set 0.0.0.0"),
    ({"serving__log_dir": "/var/log/x"}, "collected from stdout"),
    ({"serving__api_keys_file": "/etc/api_keys"}, "would hide what"),
    ({"serving__api_keys_file": "/tmp/api_keys"}, "would hide what"),
    ({"serving__api_keys_file": None}, "refuses to start without keys"),
    ({"serving__drain_s": 64.9}, "drain_s (64.9) must be at least request_timeout_s + 5 (65)"),
    ({"serving__request_timeout_s": 71}, "drain_s (75) must be at least request_timeout_s + 5 (76)"),
    ({"optimization_settings__enable_kv_cache": False}, 'engine "openvino" always keeps a KV cache'),
    ({"optimization_settings__quantization_bits": 16}, "16 bits means no quantization"),
    ({"optimization_settings__enable_quantization": False}, "16 bits means no quantization"),
    ({"replicas__min": 11}, "replicas.min (11) is above replicas.max (10)"),
    ({"rollout__steps": [10, 50]}, "must ascend to 100"),
    ({"rollout__steps": [50, 10, 100]}, "must ascend to 100"),
    ({"rollout__steps": []}, "must ascend to 100"),
    ({"model_revision": "0" * 40}, "download is for a hub id with its commit"),
    ({"cluster": {"weights": "download"}}, "download is for a hub id with its commit"),
    ({"cluster": {"weights": "image", "weights_claim_gb": 1}}, "nothing would mount the claim"),
    ({"cluster": {"env": {"API_KEY": "x"}}}, "cluster.env.API_KEY: only MODEL_SERVER_SECTION__KEY"),
    ({"cluster": {"capacity": {"cpu_cores": 8, "memory_gb": 99}}}, "replicas.max = 3 fits"),
    ({"cluster": {"capacity": {"cpu_cores": 99, "memory_gb": 16}}}, "11 x 4 = 44 GiB of memory"),
    ({"image": "qwen3-server:latest"}, '"qwen3-server:latest" is not pinned'),
    ({"image": "x@sha256:abc"}, "is not pinned"),
    ({"cluster": {"prometheus_operator": True}, "alerts": {"low_qsp": 1}}, "alerts.low_qsp: no such alert"),
    ({"cluster": {"prometheus_operator": True}, "alerts": {"low_qps": -1}}, "alerts.low_qps: -1 is below 0"),
    ({"cluster": {"prometheus_operator": True}, "alerts": {"memory_usage": 101}}, "alerts.memory_usage: 101 percent"),
]


@pytest.mark.helm
@pytest.mark.parametrize(("changes", "said"), WRONG_TOGETHER)
def test_what_python_refuses_the_chart_refuses(changes, said):
    values = values_of(**changes)

    assert said in refusal(values)
    with pytest.raises((ConfigurationError, ResourceInsufficientError, ValidationError, ConfigError)):
        of_python(values)


@pytest.mark.helm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"api_keys": None}, "but there are no keys: --set-file api_keys=FILE"),
        ({"api_keys": "one", "existing_secret": "vault"}, "both set: keep one"),
        ({"image": None}, "image is missing: --set image=NAME@sha256:DIGEST"),
        ({"serving__otlp_endpoint": "http://collector:99x"}, "is no address"),
        ({"serving__engine_url": "http://"}, "is no address"),
    ],
)
def test_what_only_an_installation_can_get_wrong_is_refused(changes, said):
    assert said in refusal(values_of(**changes))


@pytest.mark.helm
def test_all_that_cannot_be_meant_is_said_at_once():
    said = refusal(values_of(image="x:latest", serving__host="localhost", serving__drain_s=1))

    assert all(part in said for part in ("not pinned", "set 0.0.0.0", "drain_s (1)"))


@pytest.mark.helm
@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"serving__prot": 8000}, "prot"),
        ({"serving__port": 65536}, "/serving/port"),
        ({"serving__port": "8000"}, "/serving/port"),
        ({"serving__port": None}, "port"),
        ({"replicas__min": 0}, "/replicas/min"),
        ({"replicas__min": True}, "/replicas/min"),
        ({"resource_limits__cpu_cores": 0}, "/resource_limits/cpu_cores"),
        ({"engine": "vllm"}, "/engine"),
        ({"model_version": 2026}, "/model_version"),
        ({"model_name": None}, "model_name"),
        ({"model_revision": "main"}, "/model_revision"),
        ({"serving__log_level": "debug"}, "/serving/log_level"),
        ({"optimization_settings__quantization_bits": 5}, "/optimization_settings/quantization_bits"),
        ({"rollout__steps": [0, 100]}, "/rollout/steps/0"),
        ({"alerts": {"low_qps": "x"}}, "/alerts/low_qps"),
        ({"cluster": {"namespace": "qwen3"}}, "namespace"),
        ({"cluster": {"autoscaling": "latency"}}, "/cluster/autoscaling"),
        ({"cluster": {"weights_claim_gb": 0}}, "/cluster/weights_claim_gb"),
        ({"cluster": {"weights_storage_class": "Fast"}}, "/cluster/weights_storage_class"),
        ({"resource_limits__disk_gb": 1_048_577}, "/resource_limits/disk_gb"),
        ({"cluster": {"env": {"MODEL_SERVER_SERVING__PORT": 9}}}, "/cluster/env/MODEL_SERVER_SERVING__PORT"),
        ({"cluster": {"capacity": {"cpu_cores": 8}}}, "memory_gb"),
        ({"replica": 3}, "replica"),
    ],
)
def test_a_key_that_cannot_be_is_named_by_the_schema(changes, path):
    """Before any template runs; in Helm's words, which name the place."""
    said = refusal(values_of(**changes))

    assert "schema" in said
    assert path in said.replace(".", "/")


@pytest.mark.helm
def test_a_chart_of_charts_may_hold_it():
    """Helm hands `global` to everything that another chart depends on."""
    assert of_chart(values_of() | {"global": {"x": 1}}) == of_python(values_of())


# What people run after an installation.


class Server(BaseHTTPRequestHandler):
    """Answers as the server's API: 401 without the key, 404 elsewhere, 200 with ``answer``."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/api/v1/classify" or not body["text"]:
            self._say(404, {})
        elif self.server.key is not None and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._say(401, {"error": "no such key"})
        else:
            self._say(200, self.server.answer)

    def _say(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer, key=None):
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.answer, server.key = answer, key
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


CATEGORY = {"category": "网络故障", "confidence": 0.9, "probabilities": None, "needs_review": False}


def classify(port, keys=None):
    script = CHART / "files" / "classify_one_call.py"
    words = [f"http://127.0.0.1:{port}", "10", *([] if keys is None else [str(keys)])]
    return subprocess.run(
        [sys.executable, "-c", script.read_text(encoding="utf-8"), *words], capture_output=True, text=True, check=False
    )


def test_the_helm_test_passes_when_a_category_comes_back(tmp_path):
    (tmp_path / "keys").write_text("# whose\n\nfirst:one\ntwo\n")

    with serving(CATEGORY) as port:
        assert classify(port).stdout == "网络故障 (0.9)\n"
    with serving(CATEGORY, key="one") as port:
        assert classify(port, tmp_path / "keys").returncode == 0


@pytest.mark.parametrize(
    ("answer", "key", "said"),
    [
        (CATEGORY, "one", "answered 401"),
        ({}, None, "without a category"),
        ({"category": ""}, None, "without a category"),
        ([], None, "without a category"),
    ],
)
def test_the_helm_test_fails_otherwise_and_says_why(answer, key, said):
    with serving(answer, key) as port:
        done = classify(port)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_helm_test_fails_where_nobody_answers():
    with serving(CATEGORY) as port:
        pass
    done = classify(port)

    assert done.returncode == 1
    assert "does not answer" in done.stderr


@pytest.mark.helm
def test_the_tests_pod_is_restricted_and_gets_no_requests_of_callers():
    values = values_of()
    (pod,) = _objects(values, "Pod")
    (service, _) = _objects(values, "Service")
    (container,) = pod["spec"]["containers"]
    (server,) = _server_of(_objects(values, "Deployment"))["spec"]["template"]["spec"]["containers"]

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == server["securityContext"]
    assert container["image"] == server["image"] == IMAGE
    assert pod["spec"]["restartPolicy"] == "Never"
    program, flag, script, url, timeout_s, keys = container["command"]
    assert (program, flag, url, timeout_s, keys) == (
        "python",
        "-c",
        f"http://{NAME}",
        "60",
        "/run/secrets/api_keys",
    )
    assert script.strip() == (CHART / "files" / "classify_one_call.py").read_text(encoding="utf-8").strip()


@pytest.mark.helm
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_the_notes_curl_works(tmp_path):
    """Their lines as they stand, against a server behind the address that the port-forward would give; kubectl is one
    that knows the Secret. Only an installation prints the notes, so here an object holds them.
    """
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "templates" / "shown.yaml").write_text(
        'notes: {{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    )
    done = helm("template", values_of(), "--show-only", "templates/shown.yaml", chart=chart)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in yaml.safe_load(done.stdout)["notes"].splitlines()]
    (curl,) = (line for line in lines if line.startswith("curl "))
    (forward,) = (line for line in lines if "port-forward" in line)
    assert forward == f"kubectl -n {SPACE} port-forward service/{NAME} 8000:80 &"
    (asks,) = (line for line in lines if line.startswith("KEY="))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\n[ "$*" = "-n {SPACE} get secret {KEYS} -o jsonpath={{.data.api_keys}}" ] || exit 1\n'
        "printf '# whose\\n\\nfirst:one\\ntwo\\n' | base64\n"
    )
    kubectl.chmod(0o755)

    with serving(CATEGORY, "one") as port:
        script = "\n".join([asks, curl.replace("127.0.0.1:8000", f"127.0.0.1:{port}")])
        answer = subprocess.run(
            ["sh", "-c", script],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert json.loads(answer.stdout) == CATEGORY


# On a real cluster.

INSTALLED = TINY | {"cluster": {"weights": "image", "autoscaling": "cpu"}, "api_keys": "tests:one\n"}


@pytest.mark.helm
@pytest.mark.cluster
@pytest.mark.docker
@pytest.mark.timeout(900)
def test_an_installation_classifies_keeps_its_pods_where_it_may_and_rolls_back(cluster, server_image, tmp_path):
    """In a namespace that enforces the restricted standard. The test's Pod is started by hand, with the Service's
    address in its hosts file: a test cluster has no DNS.
    """
    program = shutil.which("helm") or str(cache_dir() / "bin" / "helm")
    environ = os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "HELM_CACHE_HOME": str(tmp_path)}
    cluster.load_image(server_image)

    with cluster.namespace() as namespace:

        def run(*words, **serving):
            values = INSTALLED | {"image": server_image, "serving": INSTALLED["serving"] | serving}
            command = [program, *words, "-n", namespace]
            command += [str(CHART), "-f", "-"] if words[0] in {"install", "upgrade", "template"} else []
            done = subprocess.run(
                command, input=json.dumps(values), env=environ, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        def started():
            cluster.kubectl("rollout", "status", f"deployment/{NAME}", "-n", namespace, "--timeout=300s")
            (pod,) = (
                pod
                for pod in cluster.get("pods", "-n", namespace, "-l", f"app={NAME}")["items"]
                if "deletionTimestamp" not in pod["metadata"]
            )
            return pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]

        run("install", "release")
        first = started()

        hooks = [each for each in yaml.safe_load_all(run("get", "hooks", "release")) if each is not None]
        (pod,) = (each for each in hooks if each["kind"] == "Pod")
        address = cluster.get("service", NAME, "-n", namespace)["spec"]["clusterIP"]
        pod["spec"]["hostAliases"] = [{"ip": address, "hostnames": [NAME]}]
        cluster.apply(pod)
        name = pod["metadata"]["name"]
        cluster.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "-n", namespace, "--timeout=120s"
        )
        assert cluster.kubectl("logs", name, "-n", namespace).strip()

        run("upgrade", "release", rate_limit_per_minute=7)
        assert started() == first

        run("upgrade", "release", max_queue=3)
        second = started()
        assert second != first

        run("rollback", "release", "1")
        assert started() not in {first, second}
        assert cluster.get("deployment", NAME, "-n", namespace)["metadata"]["generation"] == 3
