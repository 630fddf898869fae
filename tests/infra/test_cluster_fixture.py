"""The cluster that other tests stand on: real pods, real routes, and nothing left when it or its session ends."""

from __future__ import annotations

import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import cluster_fixture
import pytest
from cluster_fixture import CLUSTER_SH, KubectlError, started_node, why_no_cluster

BASE = "qwen3-stack/base:bookworm"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
OWN_NODE = pytest.mark.skipif("QWEN3_TEST_KUBECONFIG" in os.environ, reason="the cluster is not this session's own")


def _web_pod(**security):
    """A pod that serves /etc, the smallest real HTTP server in the image that the project builds on."""
    container = {
        "name": "web",
        "image": BASE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "http.server", "8000", "--directory", "/etc"],
        "readinessProbe": {"httpGet": {"path": "/os-release", "port": 8000}, "periodSeconds": 1},
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"automountServiceAccountToken": False, "containers": [container]},
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
}


@pytest.fixture(scope="session")
def base_image(cluster):
    subprocess.run([CLUSTER_SH.with_name("base-image.sh")], check=True, timeout=280)
    cluster.load_image(BASE)


@OWN_NODE
@pytest.mark.cluster
@pytest.mark.docker
def test_a_restricted_pod_becomes_ready_and_its_service_routes_from_this_machine(cluster, base_image):
    with cluster.namespace() as namespace:
        cluster.apply([_web_pod(**RESTRICTED), SERVICE], namespace)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "-n", namespace, "--timeout=60s")

        address = cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"]
        body = _read_once_it_routes(f"http://{address}/os-release")
        user = cluster.kubectl("exec", "-n", namespace, "web", "--", "id", "-u").strip()
        processes = [Path(f"/proc/{pid}/cmdline").read_text() for pid in cluster.container_pids(namespace, "web")]
        seen_inside = cluster.kubectl("exec", "-n", namespace, "web", "--", "cat", "/etc/os-release")

    assert body == seen_inside
    assert "bookworm" in body
    assert user == "65532"
    assert [line.split("\0")[2] for line in processes] == ["http.server"]
    with pytest.raises(KubectlError, match="not found"):
        cluster.kubectl("get", "namespace", namespace)


def _read_once_it_routes(url):
    # Endpoints follow readiness, and kube-proxy follows them: a moment each.
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.cluster
def test_the_restricted_standard_is_enforced(cluster):
    with cluster.namespace() as namespace, pytest.raises(KubectlError, match="violates PodSecurity"):
        cluster.apply(_web_pod(runAsUser=0), namespace)


@OWN_NODE
@pytest.mark.cluster
def test_pods_reach_a_component_by_its_process_and_this_machine_by_its_address(cluster):
    assert Path(f"/proc/{cluster.pid('kubelet')}/comm").read_text() == "kubelet\n"
    with pytest.raises(LookupError, match="no nothing runs"):
        cluster.pid("nothing")
    links = subprocess.run(["ip", "-br", "address"], capture_output=True, text=True, check=True).stdout
    assert f" {cluster.host_ip}/30" in links


@OWN_NODE
@pytest.mark.cluster
@pytest.mark.docker
def test_pods_of_a_second_node_answer_until_it_dies(cluster, base_image):
    with cluster.namespace() as namespace, cluster.second_node() as second:
        second.load_image(BASE)
        pod = _web_pod(**RESTRICTED)
        pod["spec"]["nodeName"] = "node2"
        cluster.apply([pod, SERVICE], namespace)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "-n", namespace, "--timeout=60s")
        url = f"http://{cluster.get('service', 'web', '-n', namespace)['spec']['clusterIP']}/os-release"

        assert "bookworm" in _read_once_it_routes(url)

        os.kill(int((second.state / "pid").read_text()), signal.SIGKILL)
        with pytest.raises(OSError):  # timed out, unreachable, reset: as it goes
            urllib.request.urlopen(url, timeout=3)


class _Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"asked": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@OWN_NODE
@pytest.mark.cluster
def test_a_process_of_this_machine_serves_an_api_group(cluster, tmp_path):
    certificate = tmp_path / "api.pem"
    words = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=api -keyout {certificate} -out {certificate}.crt"
    )
    subprocess.run(words.split(), check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(f"{certificate}.crt", certificate)
    with http.server.ThreadingHTTPServer((cluster.host_ip, 0), _Api) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with cluster.served_api("metrics.example", "v1", server.server_port):
                answer = json.loads(cluster.kubectl("get", "--raw", "/apis/metrics.example/v1/namespaces/a/queue"))
        finally:
            server.shutdown()
            thread.join()

    assert answer == {"asked": "/apis/metrics.example/v1/namespaces/a/queue"}


SESSION = """
from cluster_fixture import started_node
with started_node() as node:
    print(node.state, flush=True)
    input()
"""


@OWN_NODE
@pytest.mark.cluster
def test_a_killed_session_leaves_nothing_and_the_next_one_starts():
    with subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cluster_fixture.__file__).parent)},
    ) as session:
        state = Path(session.stdout.readline().strip())
        first = (state / "pid").read_text().strip()
        link = f"qwen3-node{(state / 'number').read_text().strip()}"
        index = Path(f"/sys/class/net/{link}/ifindex").read_text()
        assert _processes_that_name(state)
        session.send_signal(signal.SIGKILL)

    _wait_until(lambda: not state.exists())
    assert _processes_that_name(state) == []
    assert list(Path("/sys/fs/cgroup").rglob(f"qwen3-node-{first}")) == []
    assert index not in [path.read_text() for path in Path("/sys/class/net").glob("qwen3-node*/ifindex")]
    assert str(state) not in Path("/proc/mounts").read_text()
    assert "198.18." not in subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout

    with started_node() as node:
        ready = node.get("node", "node")["status"]["conditions"]
        assert {"type": "Ready", "status": "True"}.items() <= next(c for c in ready if c["type"] == "Ready").items()
        assert node.state != state
    assert not node.state.exists()


def _processes_that_name(state):
    # Readable for every process of the node, of its pods too: all were started by one that names the folder.
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if str(state) in line]


def _wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_missing_is_named_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("QWEN3_TEST_KUBECONFIG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QWEN3_STACK_CACHE", str(tmp_path))

    assert why_no_cluster() == "no kubectl on PATH: tests/tools/build.sh cluster"

    (tmp_path / "kubectl").touch(mode=0o755)
    monkeypatch.setenv("QWEN3_TEST_KUBECONFIG", str(tmp_path / "absent"))
    assert why_no_cluster() == f"QWEN3_TEST_KUBECONFIG names no file: {tmp_path / 'absent'}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: cluster.sh up|hold DIR [FIRST]"),
        (["up"], "usage: cluster.sh up|hold DIR [FIRST]"),
        (["sideways", "/nonexistent"], "usage: cluster.sh up|hold DIR [FIRST]"),
        (["load", "/nonexistent", "image"], "cluster.sh: no node runs in /nonexistent"),
        (["up", "/run/node"], "cluster.sh: /run/node lies under /run"),
        (["up", "/var/tmp/" + "n" * 60], "cluster.sh: the path of DIR is too long for sockets below it: 69 characters"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(words, message):
    done = subprocess.run([CLUSTER_SH, *words], capture_output=True, text=True, check=False)

    assert done.returncode in (1, 2)
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_holds_no_node_is_not_removed(tmp_path):
    (tmp_path / "thesis.tex").touch()

    done = subprocess.run([CLUSTER_SH, "down", tmp_path], capture_output=True, text=True, check=False)

    assert done.stderr == f"cluster.sh: {tmp_path} holds no node, so it is not removed\n"
    assert done.returncode == 1
    assert (tmp_path / "thesis.tex").exists()
