"""What dies or hangs on a real cluster, and what new requests see of it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import pytest
from live_site import PORT, LiveSite, environment
from traffic import Traffic, call, stream, wait_until

from model_server.deployment import timings

OWN_NODE = pytest.mark.skipif("QWEN3_TEST_KUBECONFIG" in os.environ, reason="the cluster is not this session's own")
pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(600), OWN_NODE]

CONFIG = environment(replicas={"min": 2, "max": 2})
ORIGINAL_FIRST_LOOK_S = 30
"""initialDelaySeconds of the original design's readiness probe: no request before that, however fast the start."""
NODE_MONITOR_GRACE_S = 50
"""Kubernetes' default since 1.32: a node silent for so long is not ready, and its pods leave the Services."""
OUT_OF_SERVICE_S = 5
"""After a kill: the pod that refuses requests has left its Service by then."""


@pytest.fixture(scope="module")
def site(cluster, server_image):
    cluster.load_image(server_image)
    with cluster.namespace() as namespace:
        found = LiveSite(cluster, namespace, CONFIG, server_image)
        found.ready(2)
        yield found


@contextmanager
def callers(site):
    """Twenty new requests a second through the common Service; printed: what became of them."""
    wait_until(lambda: len(site.endpoints()) == 2, "two pods behind the Service")
    with Traffic(partial(call, site.host, limit_s=3), 2, pause_s=0.1) as calls:
        yield calls
        time.sleep(1)
    failed = [answer for answer in calls.answers if answer.what != "whole"]
    span = f", the last {failed[-1].ended - calls.answers[0].started:.1f} s after the first of all" if failed else ""
    print(f"{len(calls.answers)} requests: {dict(calls.counts())}{span}")


def _container(pod):
    return pod["status"]["containerStatuses"][0]


def _ready_after_s(pod):
    """From the container's start to readiness, whole seconds, as the kubelet writes it."""
    (ready,) = (each for each in pod["status"]["conditions"] if each["type"] == "Ready")
    moments = (ready["lastTransitionTime"], _container(pod)["state"]["running"]["startedAt"])
    ready_at, started_at = (datetime.fromisoformat(moment) for moment in moments)
    return (ready_at - started_at).total_seconds()


def test_pods_are_ready_when_they_can_serve_and_not_at_a_fixed_time(site):
    seconds = [_ready_after_s(pod) for pod in site.pods().values()]
    print(f"ready {seconds} s after the start; the original design looks first after {ORIGINAL_FIRST_LOOK_S} s")

    assert max(seconds) < ORIGINAL_FIRST_LOOK_S
    assert call(site.host) == "whole"


def test_a_killed_server_starts_again_and_takes_only_its_own_requests_with_it(site):
    victim, other = site.pods()
    addresses = {name: pod["status"]["podIP"] for name, pod in site.pods().items()}
    with callers(site) as calls, Traffic(partial(stream, addresses[other], PORT, tokens=300), 2) as streams:
        killed = time.monotonic()
        os.kill(site.cluster.container_pids(site.namespace, victim)[0], signal.SIGKILL)
        wait_until(lambda: _container(site.pods()[victim])["restartCount"] == 1, "the container starts again")
        print(f"started again after {time.monotonic() - killed:.1f} s")
        wait_until(lambda: site.endpoints() == {victim, other}, "both serve again")
        print(f"serves again after {time.monotonic() - killed:.1f} s")
        # It may serve again before that moment: some requests must begin after it.
        time.sleep(max(0.0, killed + OUT_OF_SERVICE_S + 2 - time.monotonic()))

    assert site.pods().keys() == {victim, other}
    assert set(streams.counts()) == {"whole"}
    # Until the pod has left the Service: refused at once, not left waiting.
    assert set(calls.counts()) <= {"whole", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected"}
    assert set(calls.counts(since=killed + OUT_OF_SERVICE_S)) == {"whole"}


def test_a_hung_server_leaves_the_service_and_is_replaced_within_the_derived_budget(site):
    """SIGSTOP: its port takes connections, and nobody answers."""
    times = timings(CONFIG)
    out_s = times.readiness.budget_s + times.readiness.timeout_s
    restarted_s = times.liveness.budget_s + times.liveness.timeout_s + times.hung_grace_period_s
    victim, other = site.pods()
    restarts = _container(site.pods()[victim])["restartCount"]
    with (
        callers(site) as calls,
        Traffic(partial(stream, site.pods()[other]["status"]["podIP"], PORT, 300), 2) as streams,
    ):
        for pid in site.cluster.container_pids(site.namespace, victim):
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: site.endpoints() == {other}, "the hung one leaves the Service")
        left = time.monotonic()
        wait_until(
            lambda: _container(site.pods()[victim])["restartCount"] > restarts, "it is replaced", restarted_s + 60
        )
        replaced = time.monotonic()
        wait_until(lambda: site.endpoints() == {victim, other}, "both serve again")
    print(
        f"left the Service after {left - stopped:.1f} s (derived: {out_s}), replaced after {replaced - stopped:.1f} s "
        f"(derived: {restarted_s}); while it was out: {dict(calls.counts(since=left + 1))}"
    )

    # A second of kubelet's own for each probe, and some for a busy machine.
    assert left - stopped <= out_s + 5
    assert replaced - stopped <= restarted_s + 10
    assert set(calls.counts(since=left + 1)) == {"whole"}
    assert set(streams.counts()) == {"whole"}


@pytest.fixture
def spread(site):
    """One pod on each of two nodes: (site, the second node, pod there, pod here)."""
    with site.cluster.second_node() as second:
        image = site.pods().popitem()[1]["spec"]["containers"][0]["image"]
        second.load_image(image)
        site.scale(1)
        wait_until(lambda: len(site.pods()) == 1, "one pod ends")
        site.scale(2)
        wait_until(lambda: len(site.endpoints()) == 2, "the pod on the new node serves")
        where = {pod["spec"]["nodeName"]: name for name, pod in site.pods().items()}
        yield second, where["node2"], where["node"]


def test_a_node_whose_kubelet_dies_loses_no_request(site, spread):
    """Its pods go on serving while nobody speaks for them; and when the machine goes too, nobody is sent there."""
    second, there, here = spread
    with callers(site) as calls:
        os.kill(second.pid("kubelet"), signal.SIGKILL)
        died = time.monotonic()
        wait_until(lambda: site.endpoints() == {here}, "the node's pod leaves the Service", 2 * NODE_MONITOR_GRACE_S)
        print(f"{there} left the Service {time.monotonic() - died:.1f} s after its kubelet")
        os.kill(int((second.state / "pid").read_text()), signal.SIGKILL)
        time.sleep(3)

    assert set(calls.counts()) == {"whole"}
    assert call(site.host) == "whole"


@pytest.mark.slow
def test_a_node_that_is_gone_costs_its_share_of_new_requests_until_it_is_missed(site, spread):
    """What Kubernetes promises and no more: until the node counts as lost, the Service goes on choosing its pod."""
    second, there, here = spread
    with callers(site) as calls:
        os.kill(int((second.state / "pid").read_text()), signal.SIGKILL)
        died = time.monotonic()
        wait_until(lambda: site.endpoints() == {here}, "the node's pod leaves the Service", 2 * NODE_MONITOR_GRACE_S)
        left = time.monotonic()
        time.sleep(3)
    meanwhile = [answer for answer in calls.answers if died <= answer.started < left]
    lost = sum(answer.what != "whole" for answer in meanwhile)
    print(
        f"{there} left the Service after {left - died:.1f} s; until then {lost} of {len(meanwhile)} requests were lost"
    )

    assert left - died < NODE_MONITOR_GRACE_S + 15
    assert set(calls.counts(since=left + 1)) == {"whole"}
