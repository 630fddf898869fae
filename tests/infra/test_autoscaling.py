"""The autoscaler on its own signal: real pods, Prometheus, prometheus-adapter with our rules, and no CPU metric."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from cluster_fixture import TINY, KubectlError
from live_site import METRICS_PORT, PORT, engine, environment
from pod_ends import PodEnds
from pulumi import automation
from traffic import KEY, Traffic, stream, wait_until

from infra.cluster import ClusterSettings
from infra.component import ModelServer, ModelServerArgs
from infra.manifests import NAME, SIGNAL
from model_server.cache import cache_dir
from model_server.deployment import hpa_target

REPOSITORY = Path(__file__).parents[2]
OWN_NODE = pytest.mark.skipif("QWEN3_TEST_KUBECONFIG" in os.environ, reason="the cluster is not this session's own")
SHORT, LONG = 600, 4000
"""Tokens. With a quarter of a core for each instance a long stream takes 15 s and more: one that is there when its pod
is deleted mostly goes on after the SIGTERM, 5 s later."""
CONFIG = environment(
    replicas={"min": 1, "max": 3},
    resource_limits=TINY["resource_limits"] | {"cpu_cores": 0.25},
    serving=TINY["serving"] | {"request_timeout_s": 240, "drain_s": 245},
    optimization_settings=TINY["optimization_settings"] | {"max_sequence_length": 4096},
)
API = "custom.metrics.k8s.io"
TARGETS = "targets.json"

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(900), OWN_NODE]


class Hasty(ModelServerArgs):
    """The environment's objects but for the autoscaler's windows: 180 and 90 s down, 30 s up are made 15, 5 and 5 s."""

    def manifests(self):
        found = super().manifests()
        (hpa,) = (each for each in found if each["kind"] == "HorizontalPodAutoscaler")
        down, up = hpa["spec"]["behavior"]["scaleDown"], hpa["spec"]["behavior"]["scaleUp"]
        assert (down["stabilizationWindowSeconds"], down["policies"][0]["periodSeconds"]) == (180, 90)
        down["stabilizationWindowSeconds"] = 15
        down["policies"][0]["periodSeconds"] = up["policies"][0]["periodSeconds"] = 5
        return found


@contextmanager
def process(log, *command):
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as running:
        try:
            yield running
        finally:
            running.terminate()


def free_port(host):
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


@contextmanager
def prometheus(folder):
    """Its address; it scrapes what ``Watch`` finds: Debian's is built without the discovery of Kubernetes."""
    discovery = {"files": [str(folder / TARGETS)], "refresh_interval": "1s"}
    job = {"job_name": NAME, "file_sd_configs": [discovery]}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "2s"}, "scrape_configs": [job]}))
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    words = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
    with process(folder / "prometheus.log", "prometheus", *words):
        yield f"http://{address}"


@contextmanager
def adapter(folder, cluster, prometheus_url):
    """prometheus-adapter as a site runs it, with the rules that we ship."""
    port = free_port(cluster.host_ip)
    program = shutil.which("prometheus-adapter") or str(cache_dir() / "bin" / "prometheus-adapter")
    words = {
        "prometheus-url": prometheus_url,
        "config": REPOSITORY / "infra" / "prometheus_adapter.yml",
        "metrics-relist-interval": "5s",
        "bind-address": cluster.host_ip,
        "secure-port": port,
        "cert-dir": folder / "certificates",
        "lister-kubeconfig": cluster.kubeconfig,
        "authentication-kubeconfig": cluster.kubeconfig,
        "authorization-kubeconfig": cluster.kubeconfig,
    }
    with (
        process(folder / "adapter.log", program, *(f"--{name}={value}" for name, value in words.items())),
        cluster.served_api(API, "v1beta1", port),
    ):
        yield


class Watch:
    """The pods of the Deployment over time, told to Prometheus with the labels that discovery would give."""

    def __init__(self, cluster, namespace, folder):
        self._cluster, self._namespace, self._targets = cluster, namespace, folder / TARGETS
        self._began = time.monotonic()
        self.steps = []

    def replicas(self):
        pods = self._pods()
        self._tell(pods)
        ready = sum(
            all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
        )
        if not self.steps or self.steps[-1][1] != ready:
            self.steps.append((round(time.monotonic() - self._began), ready))
        return ready

    def addresses(self):
        """Name -> address, of the pods that are not ending."""
        return {
            pod["metadata"]["name"]: pod["status"].get("podIP")
            for pod in self._pods()
            if "deletionTimestamp" not in pod["metadata"]
        }

    def _pods(self):
        return self._cluster.get("pods", "-n", self._namespace, "-l", f"app={NAME}")["items"]

    def _tell(self, pods):
        targets = [
            {
                "targets": [f"{pod['status']['podIP']}:{METRICS_PORT}"],
                "labels": {"namespace": self._namespace, "pod": pod["metadata"]["name"]},
            }
            for pod in pods
            if "podIP" in pod["status"]
        ]
        self._targets.with_suffix(".new").write_text(json.dumps(targets))
        self._targets.with_suffix(".new").rename(self._targets)


def test_the_autoscaler_follows_the_requests_up_and_down_and_no_stream_notices(
    cluster, server_image, pulumi_env, tmp_path
):
    for name in ("prometheus", "prometheus-adapter"):
        if shutil.which(name) is None and not (cache_dir() / "bin" / name).exists():
            pytest.skip(f"no {name} on PATH: apt-get install prometheus, tests/tools/build.sh prometheus-adapter")
    cluster.load_image(server_image)
    with cluster.namespace() as namespace, prometheus(tmp_path) as url:

        def program():
            settings = ClusterSettings(namespace=namespace, create_namespace=False, weights="image")
            ModelServer("qwen3", Hasty(config=CONFIG, cluster=settings, image=server_image, api_keys=KEY))

        variables = pulumi_env | {"KUBECONFIG": str(cluster.kubeconfig)}
        options = automation.LocalWorkspaceOptions(work_dir=str(tmp_path), env_vars=variables)
        stack = automation.create_or_select_stack("hpa", project_name="hpa", program=program, opts=options)
        engine(stack.up)
        with adapter(tmp_path, cluster, url):
            _scales(cluster, namespace, stack, Watch(cluster, namespace, tmp_path))
        engine(stack.destroy)


def _scales(cluster, namespace, stack, watch):
    with pytest.raises(KubectlError):
        cluster.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1")
    assert watch.replicas() == 1
    path = f"/apis/{API}/v1beta1/namespaces/{namespace}/pods/*/{SIGNAL}"
    wait_until(lambda: '"value"' in _raw(cluster, path), "the adapter has the signal")

    host = cluster.get("service", NAME, "-n", namespace)["spec"]["clusterIP"]
    enough_for_three = 3 * hpa_target(CONFIG) - 2
    ask = partial(stream, tokens=LONG, limit_s=250)
    with (
        PodEnds(cluster, namespace) as ends,
        Traffic(partial(stream, host, tokens=SHORT, limit_s=250), enough_for_three) as streams,
    ):
        wait_until(lambda: watch.replicas() == 3, "three pods", 240, 0.5)
        assert _hpa(cluster, namespace)["ScalingActive"] == "ValidMetricFound"
        assert engine(stack.preview, expect_no_changes=True).change_summary.keys() == {"same"}

        # On the way down one client comes by the Service, and each pod has two streams of its own until it is told to
        # go: the keeper of costs would otherwise leave little to cut.
        streams.at_once, down = 1, time.monotonic()
        with ExitStack() as clients:
            own = {
                name: clients.enter_context(Traffic(partial(ask, address, PORT), 2))
                for name, address in watch.addresses().items()
            }

            def one_left():
                for name in own.keys() - watch.addresses().keys():
                    own[name].at_once = 0
                return watch.replicas() == 1 and _alone(cluster, namespace)

            wait_until(one_left, "one pod, the others gone", 300, 0.5)
        for each in own.values():
            streams.answers += each.answers
        after = time.monotonic() - down
    ended = ends.ends()
    print(f"ready pods at second: {watch.steps}; ended: {ended}")
    print(
        f"streams {dict(streams.counts())}, of them {dict(streams.counts(since=down))} begun in the {after:.0f} s down"
    )

    assert engine(stack.preview, expect_no_changes=True).change_summary.keys() == {"same"}
    assert set(streams.counts()) == {"whole"}
    assert len(ended) == 2
    assert sum(each.at_sigterm for each in ended) > 0  # otherwise nothing could have been cut


def _alone(cluster, namespace):
    return len(cluster.get("pods", "-n", namespace, "-l", f"app={NAME}")["items"]) == 1


def _raw(cluster, path):
    try:
        return cluster.kubectl("get", "--raw", path)
    except KubectlError as error:
        return str(error)


def _hpa(cluster, namespace):
    """Its conditions: type -> reason."""
    found = cluster.get("hpa", NAME, "-n", namespace)["status"]
    return {each["type"]: each["reason"] for each in found.get("conditions", [])}
