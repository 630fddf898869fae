"""Scaling down on a real cluster: the idlest pod goes, and none of this needs its keeper to live."""

from __future__ import annotations

import urllib.request

import pytest
from cluster_fixture import KubectlError
from live_site import METRICS_PORT, PORT, LiveSite, environment
from traffic import Traffic, call, stream, wait_until

from infra.manifests import KEEPER
from model_server.deletion_cost import COST, read_gauge

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(600)]


def test_the_idlest_pod_goes_and_without_the_keeper_pods_still_go_without_a_cut(cluster, server_image):
    cluster.load_image(server_image)
    with cluster.namespace() as namespace:
        site = LiveSite(cluster, namespace, environment(replicas={"min": 3, "max": 4}), server_image)
        site.ready(3)
        cluster.kubectl("rollout", "status", f"deployment/{KEEPER}", "-n", namespace, "--timeout=60s")
        _has_no_more_rights_than_it_needs(cluster, namespace)

        # Of equals of about one age Kubernetes ends the one whose UID is least: the idle one is the last by that.
        busiest, busy, idle = sorted(site.pods().values(), key=lambda pod: pod["metadata"]["uid"])
        wanted = {_name(idle): 0, _name(busy): 1, _name(busiest): 3}
        with (
            Traffic(lambda: stream(_ip(busy), PORT, tokens=900), 1) as one,
            Traffic(lambda: stream(_ip(busiest), PORT, tokens=900), 3) as three,
            Traffic(lambda: call(site.host), 1, pause_s=0.2) as calls,
        ):
            took = wait_until(lambda: _costs(site) == wanted, f"costs {wanted}, last {_costs(site)}")
            print(f"costs {wanted} after {took:.1f} s")
            site.scale(2)
            wait_until(lambda: len(site.pods()) == 2, "a pod ends")
            left = set(site.pods())
            assert left == {_name(busy), _name(busiest)}

            # Nobody keeps the costs any more. What is written is out of date soon; whoever goes is drained.
            cluster.kubectl("scale", f"deployment/{KEEPER}", "--replicas=0", "-n", namespace)
            wait_until(lambda: not _keepers(cluster, namespace), "the keeper ends")
            site.scale(1)
            wait_until(lambda: len(site.pods()) == 1, "a pod ends")
            (gone,) = left - set(site.pods())
            in_flight = _in_flight(busy if gone == _name(busy) else busiest)
            one.at_once = three.at_once = 0
        print(
            f"streams {one.counts() + three.counts()}, calls {calls.counts()}; {gone} ended with {in_flight} in flight"
        )

    assert in_flight > 0
    assert set(one.counts() + three.counts()) == {"whole"}
    assert set(calls.counts()) == {"whole"}


def _has_no_more_rights_than_it_needs(cluster, namespace):
    who = f"--as=system:serviceaccount:{namespace}:{KEEPER}"

    def may(*words):
        try:
            return cluster.kubectl("auth", "can-i", *words, who).strip() == "yes"
        except KubectlError:
            return False

    assert may("list", "pods", "-n", namespace)
    assert may("patch", "pods", "-n", namespace)
    for words in (
        ("delete", "pods", "-n", namespace),
        ("create", "pods", "-n", namespace),
        ("get", "secrets", "-n", namespace),
        ("patch", "deployments", "-n", namespace),
        ("list", "pods", "-n", "kube-system"),
        ("list", "nodes"),
    ):
        assert not may(*words), words


def _costs(site):
    return {name: int(pod["metadata"].get("annotations", {}).get(COST, 0)) for name, pod in site.pods().items()}


def _keepers(cluster, namespace):
    return cluster.get("pods", "-n", namespace, "-l", f"app={KEEPER}")["items"]


def _in_flight(pod):
    with urllib.request.urlopen(f"http://{_ip(pod)}:{METRICS_PORT}/metrics", timeout=5) as answer:
        return read_gauge(answer.read().decode())


def _name(pod):
    return pod["metadata"]["name"]


def _ip(pod):
    return pod["status"]["podIP"]
