"""The objects of every environment: valid, restricted, derived from one description."""

from __future__ import annotations

import itertools
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cluster import ClusterSettings
from infra.manifests import CONTAINER, KEEPER, NAME, checksum, manifests, pinned, read_cluster
from model_server import deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, ResourceInsufficientError

ENVIRONMENTS = Path(__file__).parents[2] / "environments"
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"
CLUSTER = ClusterSettings()
KUBERNETES = "1.34"


def config(*overrides, name="production"):
    return deployment.load(ENVIRONMENTS / f"{name}.yml", overrides, environ={})


def by_kind(config, cluster=CLUSTER, image=IMAGE):
    return {(found["kind"], found["metadata"]["name"]): found for found in manifests(config, cluster, image)}


def server(config, cluster=CLUSTER):
    return by_kind(config, cluster)["Deployment", NAME]


def container(config, cluster=CLUSTER):
    (found,) = server(config, cluster)["spec"]["template"]["spec"]["containers"]
    return found


CLUSTERS = [
    CLUSTER,
    ClusterSettings(weights="image", autoscaling="cpu", create_namespace=False),
    ClusterSettings(env={"MODEL_SERVER_SERVING__LOG_LEVEL": "DEBUG"}, deletion_cost=False),
    ClusterSettings(weights_claim_gb=2.5, weights_storage_class="fast.ssd", weights_access="ReadWriteOnce"),
]


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("name", ["production", "staging"])
def test_every_object_is_valid_for_the_api_server(name, cluster):
    for found in manifests(config(name=name), cluster, IMAGE):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_a_wrong_object_is_not_valid():
    """The validation above can fail."""
    found = server(config())
    found["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_production_is_what_the_original_design_states():
    found = server(config())
    pod = found["spec"]["template"]

    assert found["metadata"]["name"] == "qwen3-inference"
    assert found["spec"]["replicas"] == 3
    assert pod["metadata"]["labels"]["app"] == "qwen3-inference"
    assert pod["spec"]["containers"][0]["name"] == "qwen3-server"
    assert container(config())["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi"},
        "limits": {"cpu": "4", "memory": "8Gi"},
    }
    assert container(config())["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert container(config())["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert {"name": "http", "containerPort": 8000} in container(config())["ports"]


@pytest.mark.parametrize(("name", "cluster"), list(itertools.product(["production", "staging"], CLUSTERS)))
def test_every_pod_keeps_the_restricted_standard(name, cluster):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and more: a read-only root,
    limits, probes, and a token for none but the keeper of costs.
    """
    deployments = [found for found in manifests(config(name=name), cluster, IMAGE) if found["kind"] == "Deployment"]
    assert len(deployments) == (2 if cluster.deletion_cost else 1)
    for each in deployments:
        _is_restricted(each["spec"]["template"]["spec"], whose=each["metadata"]["name"])


def _is_restricted(pod, whose):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["serviceAccountName"] == whose
    assert pod["automountServiceAccountToken"] is (whose == KEEPER)
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "configMap",
        "secret",
        "emptyDir",
        "persistentVolumeClaim",
    }
    for each in pod["containers"]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(each["resources"]["limits"]) >= {"cpu", "memory"}
        assert {"readinessProbe", "livenessProbe"} <= each.keys()
        assert "@sha256:" in each["image"]


def test_selectors_meet_the_pods():
    found = by_kind(config(), ClusterSettings())
    labels = {
        whose: found["Deployment", whose]["spec"]["template"]["metadata"]["labels"].items() for whose in (NAME, KEEPER)
    }

    for (kind, name), each in found.items():
        spec = each.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is not None:
            mine, other = (KEEPER, NAME) if name == KEEPER else (NAME, KEEPER)
            selected = selector.get("matchLabels", selector).items()
            assert selected <= labels[mine], (kind, name)
            assert not selected <= labels[other], (kind, name)
    assert found["HorizontalPodAutoscaler", NAME]["spec"]["scaleTargetRef"]["name"] == NAME


def test_named_ports_are_the_containers():
    found = by_kind(config())
    ports = {port["name"]: port["containerPort"] for port in container(config())["ports"]}

    assert ports == {"http": 8000, "metrics": 9000}
    assert found["Service", NAME]["spec"]["ports"][0]["targetPort"] == "http"
    assert found["Service", f"{NAME}-metrics"]["spec"]["clusterIP"] == "None"
    assert found["Service", f"{NAME}-metrics"]["spec"]["ports"][0]["targetPort"] == 9000


HOT = ["serving.rate_limit_per_minute=7", "serving.log_level=DEBUG", "replicas.max=12", "alerts.low_qps=0"]
COLD = [
    "optimization_settings.max_batch_size=8",
    "serving.max_queue=3",
    "model_version=v2",
    "serving.otlp_endpoint=http://x:1",
]


@pytest.mark.parametrize("word", HOT)
def test_a_hot_change_leaves_the_pods_and_alters_what_they_read(word):
    before, after = by_kind(config()), by_kind(config(word))

    assert before["Deployment", NAME]["spec"]["template"] == after["Deployment", NAME]["spec"]["template"]
    (old,) = [found for (kind, _), found in before.items() if kind == "ConfigMap"]
    (new,) = [found for (kind, _), found in after.items() if kind == "ConfigMap"]
    assert old["metadata"]["name"] == new["metadata"]["name"]
    assert old["data"] != new["data"]


@pytest.mark.parametrize("word", COLD)
def test_any_other_change_rolls_the_pods_and_leaves_the_old_ones_what_they_read(word):
    before, after = by_kind(config()), by_kind(config(word))

    assert before["Deployment", NAME]["spec"]["template"] != after["Deployment", NAME]["spec"]["template"]
    maps = [{name for kind, name in found if kind == "ConfigMap"} for found in (before, after)]
    assert maps[0] != maps[1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_checksum_changes_exactly_with_what_is_not_hot(data):
    values = {
        "serving.max_queue": st.integers(0, 9),
        "serving.rate_limit_per_minute": st.integers(1, 9),
        "replicas.max": st.integers(3, 9),
        "optimization_settings.max_batch_size": st.integers(1, 32),
    }
    one, other = (config(*(f"{path}={data.draw(value)}" for path, value in values.items())) for _ in range(2))

    cold = any(takes != "hot" for _, takes in deployment.changes(one, other))
    assert (checksum(one) != checksum(other)) == cold


def test_the_file_in_the_config_map_is_the_environment():
    found = next(found for found in manifests(config(), CLUSTER, IMAGE) if found["kind"] == "ConfigMap")

    assert DeploymentConfig.model_validate(yaml.safe_load(found["data"]["environment.yml"])) == config()


def test_keys_are_mounted_as_a_folder_and_stand_nowhere_else():
    """A file mounted by subPath is never written anew."""
    found = container(config())
    mount = next(mount for mount in found["volumeMounts"] if mount["name"] == "keys")

    assert mount == {"name": "keys", "mountPath": "/run/secrets", "readOnly": True}
    assert not any("subPath" in mount for mount in found["volumeMounts"])
    assert found["env"] == []


# The keeper of deletion costs.


def test_the_keeper_may_list_and_patch_pods_of_its_namespace_and_nothing_else():
    found = by_kind(config())

    assert {kind for kind, _ in found} & {"ClusterRole", "ClusterRoleBinding"} == set()
    assert found["Role", KEEPER]["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]}]
    binding = found["RoleBinding", KEEPER]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": KEEPER}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": KEEPER, "namespace": "qwen3"}]
    assert found["ServiceAccount", KEEPER]["automountServiceAccountToken"] is False  # its pod asks for the token


def test_the_keeper_reaches_the_metrics_and_nobody_reaches_the_keeper():
    found = by_kind(config())
    rules = found["NetworkPolicy", NAME]["spec"]["ingress"]
    (metrics,) = (rule for rule in rules if rule["ports"][0]["port"] == 9000)
    (keeper,) = found["Deployment", KEEPER]["spec"]["template"]["spec"]["containers"]

    assert {"podSelector": {"matchLabels": {"app": KEEPER}}} in metrics["from"]
    assert keeper["args"] == [f"app={NAME}", "9000"]
    assert found["NetworkPolicy", KEEPER]["spec"]["policyTypes"] == ["Ingress"]
    assert "ingress" not in found["NetworkPolicy", KEEPER]["spec"]


@pytest.mark.parametrize(
    ("words", "cluster", "there"),
    [
        ([], {}, True),
        (["replicas.max=3"], {}, False),  # the number never changes
        ([], {"deletion_cost": False}, False),
        (["serving.metrics_port=null"], {}, False),  # asks for a key there
    ],
)
def test_there_is_a_keeper_where_pods_come_and_go_and_say_what_they_do(words, cluster, there):
    found = by_kind(config(*words), ClusterSettings.model_validate(cluster))

    assert (("Deployment", KEEPER) in found) == there
    assert (KEEPER in str(found)) == there


# Disk.


@pytest.mark.parametrize(
    ("disk_gb", "quantity"),
    [
        ("1e-6", "1Mi"),
        ("0.5", "512Mi"),
        ("0.3", "308Mi"),
        ("20", "20Gi"),
        ("1e6", "1000000Gi"),
        ("1048576", "1048576Gi"),
    ],
)
def test_any_disk_is_a_valid_quantity(disk_gb, quantity):
    """Kubernetes takes an exponent or a suffix, not both; 0 would be no limit."""
    volumes = server(config(f"resource_limits.disk_gb={disk_gb}"))["spec"]["template"]["spec"]["volumes"]
    (tmp,) = (volume["emptyDir"]["sizeLimit"] for volume in volumes if volume["name"] == "tmp")

    assert tmp == quantity


def test_a_claim_is_made_only_where_its_size_is_given():
    asked = ClusterSettings(weights_claim="w", weights_claim_gb=1.5, weights_storage_class="fast")
    claim = by_kind(config(), asked)["PersistentVolumeClaim", "w"]
    volumes = server(config(), asked)["spec"]["template"]["spec"]["volumes"]

    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1536Mi"}},
        "storageClassName": "fast",
    }
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if volume["name"] == "models"] == ["w"]
    assert {kind for kind, _ in by_kind(config(), CLUSTER)} & {"PersistentVolumeClaim"} == set()


@pytest.mark.parametrize("drain", [75, 200])
def test_nothing_is_killed_that_was_accepted(drain):
    pod = server(config(f"serving.drain_s={drain}"))["spec"]["template"]["spec"]
    pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pre_stop > 0
    assert pod["terminationGracePeriodSeconds"] > pre_stop + drain


def test_what_hangs_is_not_waited_for_as_if_it_drained():
    """The pod's own grace period would keep a hung server for 90 s after its probe gave it up."""
    probe = container(config())["livenessProbe"]

    assert probe["terminationGracePeriodSeconds"] == 15
    assert "terminationGracePeriodSeconds" not in container(config())["readinessProbe"]


# What cannot be meant.


@pytest.mark.parametrize(
    ("words", "cluster", "said"),
    [
        (["deployment_type=server"], {}, "deployment_type is 'server'"),
        (["serving.host=127.0.0.1"], {}, "set 0.0.0.0"),
        (["serving.log_dir=/var/log/x"], {}, "collected from stdout"),
        (["serving.api_keys_file=/etc/api_keys"], {}, "would hide what"),
        (["serving.api_keys_file=/etc/qwen3/api_keys"], {}, "would hide what"),
        (["serving.api_keys_file=/opt/qwen3/keys/api_keys"], {}, "would hide what"),
        (["serving.api_keys_file=api_keys"], {}, "would hide what"),
        (["serving.api_keys_file=null"], {}, "refuses to start without keys"),
        (["serving.port=0"], {}, "Services and probes have to know it"),
        (["serving.otlp_endpoint=http://c:99999"], {}, "otlp_endpoint is 'http://c:99999'"),
        ([], {"weights": "download"}, "hub id with its commit"),
        ([], {"capacity": {"cpu_cores": 8, "memory_gb": 99}}, "replicas.max = 3 fits"),
        ([], {"capacity": {"cpu_cores": 99, "memory_gb": 16}}, "11 x 4 = 44 GiB of memory"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_changes(words, cluster, said):
    with pytest.raises((ConfigurationError, ResourceInsufficientError)) as caught:
        manifests(config(*words), ClusterSettings.model_validate(cluster), IMAGE)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("qwen3", "must be a mapping"),
        ({"namspace": "x"}, "did you mean 'namespace'"),
        ({"namespace": "Qwen3"}, "namespace"),
        ({"env": {"API_KEY": "x"}}, "only MODEL_SERVER_SECTION__KEY"),
        ({"env": {"MODEL_SERVER_SERVING__PORT": "9"}}, "follow from the environment"),
        ({"monitoring_namespace": "qwen3"}, "a namespace of its own"),
        ({"autoscaling": "latency"}, "'requests' or 'cpu'"),
        ({"weights": "image", "weights_claim_gb": 1}, "nothing would mount the claim"),
        ({"weights_claim_gb": 0}, "weights_claim_gb"),
        ({"weights_access": "ReadOnlyMany"}, "weights_access"),
    ],
)
def test_wrong_settings_of_a_cluster_are_named(raw, said):
    with pytest.raises(ConfigurationError) as caught:
        read_cluster(raw, "cluster")

    assert said in str(caught.value)


@pytest.mark.parametrize("image", ["qwen3-server", "qwen3-server:latest", "x/y:v1.2", "x@sha256:abc"])
def test_an_image_that_may_become_another_is_refused(image):
    with pytest.raises(ConfigurationError, match="is not pinned"):
        pinned(image)


def test_a_local_image_is_pinned_by_the_hash_of_its_content():
    assert pinned("qwen3-server:0123456789ab") == "qwen3-server:0123456789ab"


def test_the_container_is_named_for_what_it_is():
    assert container(config())["name"] == CONTAINER == "qwen3-server"
