"""Lines of real pods on a real cluster: kubelet's files, rsyslog in the DaemonSet as it is printed, a TCP receiver."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from live_site import PORT, LiveSite, environment
from syslog_collector import Collector
from traffic import KEY, wait_until

from monitoring.log_shipping import NAME, Shipping, manifests

IMAGE_SCRIPT = Path(__file__).parents[1] / "tools" / "shipper-image.sh"
pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def shipper_image(cluster):
    digest = subprocess.run([IMAGE_SCRIPT], capture_output=True, text=True, check=True).stdout.strip()
    cluster.load_image("qwen3-stack/rsyslog:bookworm")
    return digest


def test_what_pods_log_arrives_with_labels_once_and_across_a_restart(cluster, server_image, shipper_image):
    cluster.load_image(server_image)
    with cluster.namespace() as namespace, cluster.namespace(restricted=False) as into:
        site = LiveSite(cluster, namespace, environment(replicas={"min": 2, "max": 2}), server_image)
        collector = Collector(host=cluster.host_ip)
        settings = Shipping(
            ship_to=f"{cluster.host_ip}:{collector.port}",
            image=f"qwen3-stack/rsyslog@{shipper_image}",
            namespace=namespace,
            into=into,
        )
        try:
            cluster.apply([of_this_node(each) for each in manifests(settings)])
            site.ready(2)
            cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "-n", into, "--timeout=90s")
            asked = {f"{number:032x}": pod for number, pod in enumerate(sorted(site.pods()) * 10, 1)}
            for request_id, pod in list(asked.items())[:10]:
                classify(site, pod, request_id)
            wait_until(lambda: len(arrived(collector, asked)) == 10, f"10 lines, {said(cluster, into)}")

            cluster.kubectl("delete", "pods", "--all", "-n", into, "--wait=false")
            for request_id, pod in list(asked.items())[10:]:
                classify(site, pod, request_id)
                time.sleep(0.5)
            cluster.kubectl("rollout", "status", f"daemonset/{NAME}", "-n", into, "--timeout=90s")
            wait_until(lambda: len(arrived(collector, asked)) >= 20, f"20 lines, {said(cluster, into)}")
            time.sleep(3)  # one that comes twice comes now
        finally:
            collector.close()

    found = arrived(collector, asked)
    assert {request_id: message["pod"] for request_id, message in found} == asked
    assert len(found) == 20
    for _, message in found:
        labels = (message["namespace"], message["container"], message["app"], message["stream"])
        assert labels == (namespace, "qwen3-server", message["pod"], "stdout")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.]\d{1,6}(Z|[+-]\d\d:\d\d)", message["time"])
    assert len({message["node"] for _, message in found}) == 1


def of_this_node(made):
    """The image was copied to the node, and is known there by its tag."""
    if made["kind"] == "DaemonSet":
        [container] = made["spec"]["template"]["spec"]["containers"]
        container |= {"image": "docker.io/qwen3-stack/rsyslog:bookworm", "imagePullPolicy": "Never"}
    return made


def classify(site, pod, request_id):
    ip = site.pods()[pod]["status"]["podIP"]
    connection = http.client.HTTPConnection(ip, PORT, timeout=30)
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": request_id}
    connection.request("POST", "/api/v1/classify", json.dumps({"text": "宽带断了三天没人来修"}), headers)
    assert connection.getresponse().status == 200
    connection.close()


def arrived(collector, asked):
    """(request id, message) of each line that a request made."""
    lines = [message for message in collector.messages() if message["line"].startswith("{")]
    parsed = [(json.loads(message["line"]), message) for message in lines]
    return [
        (line["request_id"], message)
        for line, message in parsed
        if line.get("request_id") in asked and line.get("event") == "request"
    ]


def said(cluster, into):
    return cluster.kubectl("logs", f"daemonset/{NAME}", "-n", into, "--tail=20")
