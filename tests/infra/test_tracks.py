"""What a rollout asks of the cluster, step by step."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cluster import ClusterSettings
from infra.manifests import NAME, manifests
from infra.tracks import CANARY, STABLE, Rollout, candidate, read_rollout, steps, under_rollout
from model_server import deployment
from model_server.errors import ConfigurationError

ENVIRONMENTS = Path(__file__).parents[2] / "environments"
IMAGE = f"registry.example/qwen3-server@sha256:{'a' * 64}"
CLUSTER = ClusterSettings()


def config(*overrides):
    return deployment.load(ENVIRONMENTS / "production.yml", overrides, environ={})


def way(replicas, *overrides):
    return [(step.canary, step.traffic, round(step.percent)) for step in steps(config(*overrides), replicas)]


def test_a_canary_gets_nothing_before_the_gate_and_then_what_whole_instances_can_make():
    assert way(3) == [(1, "stable", 0), (1, "both", 25), (3, "both", 50)]
    assert way(9) == [(1, "stable", 0), (1, "both", 10), (9, "both", 50)]
    assert way(3, "rollout.steps=[100]") == [(1, "stable", 0)]


def test_shares_that_whole_instances_cannot_tell_apart_are_one_step():
    assert way(3, "rollout.steps=[5, 10, 25, 100]") == [(1, "stable", 0), (1, "both", 25)]


def test_blue_and_green_change_places_at_once():
    assert way(2, "rollout.strategy=blue-green", "rollout.steps=[100]") == [(2, "stable", 0), (2, "canary", 100)]


@settings(max_examples=200, deadline=None)
@given(
    replicas=st.integers(1, 40),
    shares=st.lists(st.integers(1, 99), unique=True, max_size=5),
    strategy=st.sampled_from(["canary", "blue-green"]),
)
def test_no_rollout_takes_capacity_away_or_goes_back(replicas, shares, strategy):
    found = steps(config(f"rollout.steps={[*sorted(shares), 100]}", f"rollout.strategy={strategy}"), replicas)

    assert found[0].traffic == "stable"
    assert all(step.stable == replicas and 1 <= step.canary <= replicas for step in found)
    shares = [step.percent for step in found]
    assert shares == sorted(shares)
    assert len({(step.canary, step.traffic) for step in found}) == len(found)


def state(traffic, canary=1, overrides=("model_version=v2",)):
    return Rollout(id="1", overrides=overrides, stable=3, canary=canary, traffic=traffic)


def objects(traffic):
    found = under_rollout(manifests(config(), CLUSTER, IMAGE), state(traffic))
    found += candidate(config("model_version=v2"), CLUSTER, IMAGE, 1)
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.mark.parametrize(
    ("traffic", "reached"), [("stable", {"stable"}), ("both", {"stable", "canary"}), ("canary", {"canary"})]
)
def test_the_common_service_reaches_whom_it_should(traffic, reached):
    found = objects(traffic)
    tracks = {}
    for name in (NAME, CANARY):
        labels = found["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        tracks[labels["track"]] = labels.items()

    def behind(service):
        selector = found["Service", service]["spec"]["selector"].items()
        return {track for track, labels in tracks.items() if selector <= labels}

    assert behind(NAME) == reached
    assert behind(STABLE) == {"stable"}
    assert behind(CANARY) == {"canary"}


def test_a_gate_meets_one_instance_of_each_track_and_clients_meet_all():
    found = objects("both")

    assert {found["Service", name]["spec"].get("sessionAffinity") for name in (STABLE, CANARY)} == {"ClientIP"}
    assert "sessionAffinity" not in found["Service", NAME]["spec"]


def test_tracks_share_no_pods_and_no_settings():
    found = objects("both")
    one, other = (found["Deployment", name]["spec"] for name in (NAME, CANARY))

    assert one["selector"]["matchLabels"] != other["selector"]["matchLabels"]
    for spec in (one, other):
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        volumes = spec["template"]["spec"]["volumes"]
        name = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
        assert ("ConfigMap", name) in found


def test_the_autoscaler_is_held_while_tracks_are_compared():
    spec = objects("stable")["HorizontalPodAutoscaler", NAME]["spec"]

    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 3)


def test_every_object_of_a_rollout_is_valid_for_the_api_server():
    for found in objects("both").values():
        kubernetes_validate.validate(found, "1.34", strict=True)


def test_a_state_written_by_hand_and_wrongly_is_named():
    assert read_rollout(None) is None
    with pytest.raises(ConfigurationError, match="did you mean 'canary'"):
        read_rollout({"id": "1", "overrides": [], "stable": 1, "cannary": 1, "traffic": "both"})
