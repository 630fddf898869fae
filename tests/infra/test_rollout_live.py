"""Rollouts on a real cluster with the real image: streams that are open all the time, kills, two at once.

SLOW=1 python -m pytest -s -m slow tests/infra/test_rollout_live.py      prints its tables
"""

from __future__ import annotations

import random
import secrets
import shutil
import signal
from pathlib import Path

import httpx2 as httpx
import pytest
from live_site import PORT
from pod_ends import PodEnds
from stack_site import Streams, classify
from traffic import KEY, stream

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(1200)]

KILLED = Path(__file__).with_name("killed_rollout.py")
AT_ONCE, OWN, CORES = 8, 16, 0.25
"""Streams by the Service, and to each instance itself: its eight slots and as many that wait, so that what it has
accepted when it is deleted takes such a part of a core seconds, also without any new ones."""
TOKENS = (650, 750, 850, 950)
"""Of several lengths, so that an instance's streams do not all end at one moment."""
BLUE_GREEN = {"strategy": "blue-green", "steps": [100]}
CANARY = {"strategy": "canary", "steps": [50, 100]}
ENVIRONMENT = {
    "resource_limits": {"cpu_cores": CORES, "memory_gb": 0.75, "disk_gb": 1},
    "serving": {"request_timeout_s": 120, "drain_s": 125},  # a stream that a busy machine holds up is not cut
}
NO_DRAIN = """\
import dataclasses
import infra.manifests

timings = infra.manifests.timings
infra.manifests.timings = lambda config: dataclasses.replace(
    timings(config), pre_stop_s=1, termination_grace_period_s=1
)
"""
"""Before the program: pods are killed a second after their deletion, which no environment can ask for."""


@pytest.fixture(scope="module")
def site(cluster, new_site):
    with cluster.namespace() as namespace:
        site = new_site(namespace, **ENVIRONMENT)
        site.up()
        yield site


def rolled_out_among_streams(site, version, meanwhile=lambda: None):
    """Exit code, the streams, how each pod ended."""

    def ask(address):
        return stream(address, PORT, random.choice(TOKENS), limit_s=200)

    with (
        PodEnds(site.cluster, site.namespace, ask, OWN) as pods,
        Streams(site.url, at_once=AT_ONCE, tokens=TOKENS[-1]) as streams,
        site.begin(f"model_version={version}") as rollout,
    ):
        meanwhile()
        said, _ = rollout.communicate()
    streams.answers += pods.answers
    print(said)
    return rollout.returncode, streams, pods.ends()


def assert_nobody_noticed(streams, ends):
    cut = streams.ends["cut or refused"]
    print(f"streams: {streams.ends['whole']} whole, {cut} cut or refused {streams.why[:5]}")
    print("pods that ended, streams with 2 s left at the deletion and at SIGTERM:")
    print(*(f"  {end.pod} {end.at_deletion} {end.at_sigterm}" for end in ends), sep="\n")
    assert ends
    assert all(end.at_deletion >= 1 for end in ends), ends
    assert cut == 0, streams.why[:5]


def instances_behind(site, service):
    """How many answer a client that opens a connection for each call, as their logs say."""
    found = site.cluster.get("service", service, "-n", site.namespace)
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": secrets.token_hex(16)}
    for _ in range(16):
        url = f"http://{found['spec']['clusterIP']}/api/v1/classify"
        httpx.post(url, json={"text": "宽带断了"}, headers=headers, timeout=20).raise_for_status()
    stable = ("-n", site.namespace, "-l", "app=qwen3-inference,track=stable")
    pods = [item["metadata"]["name"] for item in site.cluster.get("pods", *stable)["items"]]
    logs = [site.cluster.kubectl("logs", pod, "-n", site.namespace) for pod in pods]
    return sum(headers["X-Request-Id"] in log for log in logs)


def test_blue_and_green_change_places_no_stream_notices_and_another_machine_is_refused(site, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(site.folder, elsewhere, symlinks=True, ignore=shutil.ignore_patterns("runs"))
    refused, compared = [], []

    def from_elsewhere():
        words = ("lease/qwen3-inference-rollout", "-n", site.namespace, "--timeout=60s")
        site.cluster.kubectl("wait", "--for=create", *words)
        refused.append(site.rollout("model_version=red", folder=elsewhere))
        words = ("service/qwen3-inference-stable", "-n", site.namespace, "--timeout=60s")
        site.cluster.kubectl("wait", "--for=create", *words)
        compared.append([instances_behind(site, name) for name in ("qwen3-inference", "qwen3-inference-stable")])

    site.write(rollout=BLUE_GREEN, **ENVIRONMENT)
    code, streams, ends = rolled_out_among_streams(site, "green", from_elsewhere)

    assert code == 0
    assert_nobody_noticed(streams, ends)
    assert len(ends) == 4, "two stable ones and two of the candidate"
    assert site.setting("overrides") == ["model_version=green"]
    assert classify(site.url).status_code == 200
    assert compared == [[2, 1]], "the gate must meet one instance of the stable track"
    [(code, said)] = refused
    assert (code, "is at work" in said.splitlines()[-1]) == (2, True), said


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["within creation#1", "within up#3", "within up#4"])
def test_a_kill_in_the_middle_of_an_up_is_gone_on_from(site, tmp_path, moment):
    version = f"model_version=after-{moment[-1]}"
    with Streams(site.url, at_once=2, tokens=200) as streams:
        code, said = site.rollout(version, program=(str(KILLED), moment, str(tmp_path / "trace")))
        assert code == -signal.SIGKILL, said
        code, said = site.rollout("resume")

    print(said)
    assert code == 0, said
    assert "Traceback" not in said
    assert streams.ends["cut or refused"] == 0, streams.why[:5]
    assert site.setting("rollout") is None
    assert site.setting("overrides") == [version]
    assert len(site.pods()) == 2
    with pytest.raises(Exception, match="not found"):
        site.cluster.get("deployment", "qwen3-inference-canary", "-n", site.namespace)
    assert set(site.up()[0]) == {"same"}


@pytest.mark.slow
def test_what_a_killed_up_was_making_is_taken_back_with_the_rest(site, tmp_path):
    before = site.pods()
    code, said = site.rollout("model_version=lost", program=(str(KILLED), "within creation#1", str(tmp_path / "trace")))
    assert code == -signal.SIGKILL, said

    code, said = site.rollout("rollback")

    print(said)
    assert code == 0, said
    assert site.pods() == before
    everything = "deployment,configmap,service"
    left = site.cluster.get(everything, "-n", site.namespace)["items"]
    assert [item["metadata"]["name"] for item in left if "canary" in item["metadata"]["name"]] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_a_thousand_streams_none_is_cut_or_refused(site):
    site.write(rollout=CANARY, **ENVIRONMENT)
    whole, ends, rollouts = 0, [], 0
    while whole < 1000:
        rollouts += 1
        code, streams, found = rolled_out_among_streams(site, f"round-{rollouts}")
        assert code == 0
        assert_nobody_noticed(streams, found)
        whole, ends = whole + streams.ends["whole"], ends + found

    open_at = sum(end.at_deletion for end in ends), sum(end.at_sigterm for end in ends)
    print(f"{rollouts} rollouts: {whole} streams whole, 0 cut or refused; {len(ends)} pods ended, each with a stream")
    print("that had 2 s left; such streams in all: {} at deletions, {} at SIGTERMs".format(*open_at))


@pytest.mark.slow
def test_without_a_drain_the_same_test_fails(cluster, new_site):
    with cluster.namespace() as namespace:
        site = new_site(namespace, rollout=CANARY, **ENVIRONMENT)
        program = site.folder / "infra/__main__.py"
        text = program.read_text()
        program.write_text(text.replace("import pulumi\n", f"import pulumi\n{NO_DRAIN}", 1))
        site.up()

        code, streams, ends = rolled_out_among_streams(site, "hasty")

        assert code == 0
        with pytest.raises(AssertionError):
            assert_nobody_noticed(streams, ends)
        assert streams.ends["cut or refused"] > 0
