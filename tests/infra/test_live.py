"""``pulumi up`` and ``python -m infra.rollout`` on a real engine, a real cluster and the real image."""

from __future__ import annotations

import time

import pytest
from pulumi import automation
from stack_site import KEY, Streams, classify

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(cluster, new_site):
    with cluster.namespace() as namespace:
        yield new_site(namespace)


def test_from_nothing_to_ready_and_then_nothing_to_do(site):
    changes, said = site.up()

    assert changes["create"] >= 10
    assert "fits:" in said
    assert len(site.pods()) == 2
    answer = classify(site.url)
    assert (answer.status_code, "category" in answer.json()) == (200, True)
    assert classify(site.url, "another").status_code == 401
    again, _ = site.up()
    assert set(again) == {"same"}


def test_what_the_autoscaler_did_is_no_difference_and_what_somebody_did_is(site):
    site.cluster.kubectl("scale", "deployment/qwen3-inference", "--replicas=3", "-n", site.namespace)
    site.stack.preview(expect_no_changes=True)
    site.cluster.kubectl("scale", "deployment/qwen3-inference", "--replicas=2", "-n", site.namespace)

    patch = '{"spec": {"minReplicas": 1}}'
    site.cluster.kubectl("patch", "hpa/qwen3-inference", "-n", site.namespace, "--type=merge", "-p", patch)
    site.stack.refresh(on_output=lambda _: None)
    changes, _ = site.up()
    assert changes.get("update") == 1
    hpa = site.cluster.get("hpa/qwen3-inference", "-n", site.namespace)
    assert hpa["spec"]["minReplicas"] == 2


def test_a_hot_change_reaches_the_pods_that_run(site):
    before = site.pods()
    site.write(serving={"rate_limit_per_minute": 100_000})
    site.stack.set_config("api_keys", automation.ConfigValue(f"{KEY}\na-new-key", secret=True))

    with Streams(site.url, at_once=1) as streams:
        lines = []
        site.stack.preview(on_output=lines.append, color="never")
        _, said = site.up()
        deadline = time.monotonic() + 240  # the kubelet looks for new content once a minute, for each pod by itself
        while time.monotonic() < deadline:
            if all(classify(site.url, "a-new-key").status_code == 200 for _ in range(12)):
                break
            time.sleep(2)

    assert "serving.rate_limit_per_minute: None -> 100000 (hot" in "\n".join(lines)
    assert KEY not in "\n".join(lines) + said
    assert all(classify(site.url, "a-new-key").status_code == 200 for _ in range(12))
    assert site.pods() == before
    assert streams.ends["cut or refused"] == 0, streams.why
    assert streams.ends["whole"] > 0


def test_a_good_candidate_is_promoted_and_no_stream_notices(site):
    before = site.pods()

    with Streams(site.url) as streams:
        code, said = site.rollout("serving.max_queue=40")

    print(said, dict(streams.ends))
    assert code == 0, said
    assert streams.ends["cut or refused"] == 0, streams.why[:5]
    assert streams.ends["whole"] >= 20
    assert not before.keys() & site.pods().keys()
    assert len(site.pods()) == 2
    assert site.stack.get_all_config()["qwen3-stack:overrides"].value == '["serving.max_queue=40"]'
    _, history = site.rollout("history")
    assert "promoted" in history


def test_an_image_that_cannot_be_pulled_is_taken_back_and_traffic_stays(site):
    before = site.pods()

    with Streams(site.url, at_once=2) as streams:
        code, said = site.rollout(f"image=nowhere.invalid/qwen3-server@sha256:{'0' * 64}")

    print(said, dict(streams.ends))
    assert code == 1
    assert "taking the candidate back" in said
    assert streams.ends["cut or refused"] == 0, streams.why[:5]
    assert site.pods() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serving.log_level=INFO"], "there is nothing to roll out"),
        (["image=qwen3-server:latest"], "is not pinned"),
        (["resource_limits.memory_gb=0.1"], "does not fit"),
        (["serving.max_qeue=1"], "did you mean 'max_queue'"),
        (["promote"], "neither key=value nor one of"),
        (["resume"], "no rollout is under way"),
    ],
)
def test_what_cannot_be_rolled_out_changes_nothing(site, words, said):
    before = site.pods()
    code, output = site.rollout(*words)

    assert code in {1, 2}
    assert said in output
    assert "Traceback" not in output
    assert site.pods() == before


def test_nothing_is_left(site):
    site.stack.destroy(on_output=lambda _: None)

    kinds = "deployment,service,hpa,pdb,networkpolicy,secret,serviceaccount,configmap"
    left = site.cluster.get(kinds, "-n", site.namespace)["items"]
    assert [item["metadata"]["name"] for item in left if "qwen3" in item["metadata"]["name"]] == []
