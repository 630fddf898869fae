"""The Pulumi component against the objects it is given: nothing lost, nothing added."""

from __future__ import annotations

from pathlib import Path

from infra.cluster import ClusterSettings
from infra.component import ModelServer, ModelServerArgs
from infra.manifests import KEYS, NAME, manifests
from infra.plan import differences
from model_server import deployment

ENVIRONMENTS = Path(__file__).parents[2] / "environments"
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"


def config(*overrides):
    return deployment.load(ENVIRONMENTS / "production.yml", overrides, environ={})


def test_the_component_makes_the_manifests_and_the_secret(render):
    cluster = ClusterSettings(prometheus_operator=True, weights_claim_gb=10)
    args = ModelServerArgs(config=config(), cluster=cluster, image=IMAGE, api_keys="one\ntwo\n")

    made = render(lambda: ModelServer("qwen3", args))

    objects = {each.typ.rsplit(":", 1)[1]: [] for each in made}
    for each in made:
        objects[each.typ.rsplit(":", 1)[1]].append(each.inputs)
    (secret,) = objects.pop("Secret")
    assert secret["metadata"]["name"] == KEYS
    assert objects.pop("ModelServer") == [{}]
    wanted = manifests(config(), cluster, IMAGE)
    assert sum(len(found) for found in objects.values()) == len(wanted)
    for manifest in wanted:
        found = next(
            each for each in objects[manifest["kind"]] if each["metadata"]["name"] == manifest["metadata"]["name"]
        )
        metadata = dict(found["metadata"])
        if manifest["kind"] == "PersistentVolumeClaim":
            assert metadata.pop("annotations") == {"pulumi.com/skipAwait": "true"}
        if manifest["kind"] == "Deployment":
            assert set(metadata.pop("annotations")) == {"pulumi.com/timeoutSeconds"}
        assert metadata == manifest["metadata"]
        rest = {key: value for key, value in manifest.items() if key not in {"apiVersion", "kind", "metadata"}}
        assert {key: found[key] for key in rest} == rest


def test_names_in_the_plan_do_not_follow_the_settings(render):
    """A new name of a resource would be another one: the old would be deleted when it should be replaced."""

    def names(*overrides):
        args = ModelServerArgs(config=config(*overrides), cluster=ClusterSettings(), image=IMAGE)
        return [each.name for each in render(lambda: ModelServer("qwen3", args))]

    assert names() == names("optimization_settings.max_batch_size=8", "model_version=v2")
    assert len(names()) == len(set(names()))
    assert f"{NAME}-deployment" in names()


def test_a_plan_says_what_each_changed_field_takes():
    old = config().model_dump(mode="json")

    assert differences(None, config()) == []
    assert differences(old, config()) == []
    assert differences(old, config("serving.log_level=DEBUG", "optimization_settings.max_batch_size=8")) == [
        "optimization_settings.max_batch_size: 32 -> 8 (restart: instances are replaced one by one)",
        "serving.log_level: 'INFO' -> 'DEBUG' (hot: the running servers take it over)",
    ]
    assert "another version" in differences(old | {"gone": 1}, config())[0]
