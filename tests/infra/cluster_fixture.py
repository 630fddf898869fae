"""A real Kubernetes cluster for tests (``cluster``), and the settings of a real Pulumi engine (``pulumi_env``).

The cluster is the one that ``QWEN3_TEST_KUBECONFIG`` names, or a node that tests/tools/cluster.sh starts from binaries
on PATH or in the cache (tests/tools/build.sh cluster engine; Debian's containerd and the rest: its first lines). One
lasts for a session; sessions can run beside each other, and a session that is killed takes its node with it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_server.cache import cache_dir

CLUSTER_SH = Path(__file__).parents[1] / "tools" / "cluster.sh"
STATE = Path("/var/tmp")
"""Where a node keeps its state: on a disk (images are gigabytes, /tmp may be memory), and short enough for sockets."""
BUILT = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "pause")
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
}
TINY: dict[str, Any] = {
    "model_name": "complaints-tiny",
    "model_version": "1",
    "model_source": "models/complaints-tiny",
    "deployment_type": "kubernetes",
    "engine": "openvino",
    "resource_limits": {"cpu_cores": 0.5, "memory_gb": 0.75, "disk_gb": 1},
    "optimization_settings": {
        "enable_quantization": True,
        "quantization_bits": 8,
        "max_batch_size": 8,
        "max_sequence_length": 1024,
    },
    "serving": {"host": "0.0.0.0", "metrics_port": 9000, "api_keys_file": "/run/secrets/qwen3/api_keys"},
}
"""An environment of the embedded model, which the image carries, small enough for several instances on a node."""
ENGINE = ("pulumi", "pulumi-resource-kubernetes")


class KubectlError(RuntimeError):
    """kubectl refused; the message is what it said."""


@dataclass(frozen=True)
class Cluster:
    """A cluster to test on.

    Attributes:
        kubeconfig: Its owner may do everything.
        state: Folder of the node that this session started, with one log per component and the node's first process
            in ``pid``: the node dies with it. None for a cluster that was there before.
    """

    kubeconfig: Path
    state: Path | None = None

    def kubectl(self, *words: str, input: str | None = None) -> str:  # noqa: A002  the name subprocess gives it
        """What ``kubectl WORDS`` prints.

        Raises:
            KubectlError: It exits with anything but 0.
        """
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), *words]
        done = subprocess.run(command, input=input, capture_output=True, text=True, env=tools_env(), check=False)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        """``kubectl get WORDS`` as an object."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, manifests: Mapping[str, Any] | Sequence[Mapping[str, Any]], namespace: str | None = None) -> str:
        """Apply one manifest or several; into ``namespace`` where they name none."""
        items = [manifests] if isinstance(manifests, Mapping) else list(manifests)
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        return self.kubectl("apply", *(["-n", namespace] if namespace else []), "-f", "-", input=document)

    def load_image(self, tag: str) -> None:
        """Copy an image from the Docker Engine into the node; pods then use it with ``imagePullPolicy: Never``.

        A cluster that was there before gets its images by its own means.
        """
        if self.state is not None:
            subprocess.run([CLUSTER_SH, "load", self.state, tag], env=tools_env(), check=True, timeout=280)

    @contextmanager
    def namespace(self, *, restricted: bool = True) -> Iterator[str]:
        """A namespace of its own, by default one that enforces the restricted pod security standard.

        At the end it and all in it is gone, without waiting for the grace periods of its pods.
        """
        name = f"test-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"} if restricted else {}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            self.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")  # first, so that nothing replaces the pods
            self.kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0")
            self.kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=120s")

    @contextmanager
    def second_node(self) -> Iterator[Cluster]:
        """Another node, ``node2``, beside the one that this session started: images are loaded into it by itself."""
        with started_node(self) as node:
            yield node
        self.kubectl("delete", "node", "node2")

    @contextmanager
    def served_api(self, group: str, version: str, port: int) -> Iterator[None]:
        """An API group that a process of this machine serves with TLS on ``host_ip``, as prometheus-adapter does.

        Once it is available, ``kubectl get --raw /apis/GROUP/VERSION`` and autoscalers reach it.
        """
        name, namespace = f"{version}.{group}", "kube-system"
        service = name.replace(".", "-")
        labels = {"kubernetes.io/service-name": service}
        backend = {"name": service, "namespace": namespace, "port": 443}
        objects = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": service, "namespace": namespace},
                "spec": {"clusterIP": "None", "ports": [{"port": 443, "targetPort": port}]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": service, "namespace": namespace, "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": "", "port": port, "protocol": "TCP"}],
                "endpoints": [{"addresses": [self.host_ip]}],
            },
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": name},
                "spec": {
                    "group": group,
                    "version": version,
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "insecureSkipTLSVerify": True,  # the process makes its own certificate
                    "service": backend,
                },
            },
        ]
        self.apply(objects)
        try:
            self.kubectl("wait", "--for=condition=Available", f"apiservice/{name}", "--timeout=60s")
            yield
        finally:
            self.kubectl("delete", f"apiservice/{name}")
            self.kubectl("delete", f"service/{service}", f"endpointslice/{service}", "-n", namespace)

    @property
    def host_ip(self) -> str:
        """Where pods and the API server reach a process that listens on this machine."""
        return f"198.18.{4 * self._number()}.2"

    def pid(self, component: str) -> int:
        """The process of a component (``kubelet``, ``kube-apiserver``, ...) of the node that this session started.

        Raises:
            LookupError: It does not run.
        """
        assert self.state is not None, "not a node of this session"
        inside = Path("/proc", (self.state / "pid").read_text().strip(), "ns/pid").readlink()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                program = process.joinpath("cmdline").read_bytes().split(b"\0")[0].decode()
                if Path(program).name == component and (process / "ns/pid").readlink() == inside:
                    return int(process.name)
        raise LookupError(f"no {component} runs in {self.state}")

    def container_pids(self, namespace: str, pod: str) -> list[int]:
        """The processes, on this machine, of a pod of the node that this session started."""
        group = f"/pod{self.get('pod', pod, '-n', namespace)['metadata']['uid']}/"
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                program = process.joinpath("cmdline").read_bytes().split(b"\0")[0]
                if group in process.joinpath("cgroup").read_text() and program != b"/pause":
                    pids.append(int(process.name))
        return sorted(pids)

    def _number(self) -> int:
        assert self.state is not None, "not a node of this session"
        return int((self.state / "number").read_text())


def tools_env() -> dict[str, str]:
    """Environment variables with the tools of the cache on PATH after those of the machine."""
    return os.environ | {"PATH": _path()}


def _path() -> str:
    # sbin: iptables and conntrack lie there, and a user's PATH may be without it.
    return os.pathsep.join([os.environ.get("PATH", ""), str(cache_dir() / "bin"), "/usr/local/sbin", "/usr/sbin"])


def why_no_cluster() -> str | None:
    """Why there is no cluster to test on, in one line; None where there is one or one can be started."""
    if shutil.which("kubectl", path=_path()) is None:
        return "no kubectl on PATH: tests/tools/build.sh cluster"
    if named := os.environ.get("QWEN3_TEST_KUBECONFIG"):
        return None if Path(named).is_file() else f"QWEN3_TEST_KUBECONFIG names no file: {named}"
    if os.geteuid() != 0:
        return "a node needs root; QWEN3_TEST_KUBECONFIG=... names a cluster that is there"
    for name in BUILT:
        if shutil.which(name, path=_path()) is None:
            return f"no {name} on PATH: tests/tools/build.sh cluster"
    for name, package in PACKAGES.items():
        if shutil.which(name, path=_path()) is None:
            return f"no {name} on PATH: apt-get install {package}"
    if not any(Path(folder, "bridge").exists() for folder in ("/usr/lib/cni", "/opt/cni/bin")):
        return "no CNI plugins in /usr/lib/cni or /opt/cni/bin: apt-get install containernetworking-plugins"
    return None


@contextmanager
def started_node(first: Cluster | None = None) -> Iterator[Cluster]:
    """A node that lasts as long as this context or this process: a cluster of its own, or the second node of ``first``.

    Raises:
        RuntimeError: It did not start.
    """
    _remove_remains()
    state = Path(tempfile.mkdtemp(prefix=f"qwen3-node-{os.getpid()}-", dir=STATE))
    # cluster.sh ends the node when its standard input ends: when this closes it, and when this is killed.
    with subprocess.Popen(
        [CLUSTER_SH, "hold", state, *([first.state] if first else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tools_env(),
        start_new_session=True,  # Ctrl-C is for the tests, which then end it
    ) as holder:
        if not (kubeconfig := holder.stdout.readline().strip()):
            raise RuntimeError(holder.communicate()[1].strip())
        yield Cluster(Path(kubeconfig), state)


def _remove_remains() -> None:
    # Of sessions that were killed together with cluster.sh: files, no process.
    for state in STATE.glob("qwen3-node-*-*"):
        if not Path("/proc", state.name.split("-")[2]).exists():
            subprocess.run([CLUSTER_SH, "down", state], env=tools_env(), capture_output=True, check=False)
            shutil.rmtree(state, ignore_errors=True)


def _skip(reason: str) -> None:
    # As tests/conftest.py does for a whole tier: what CI requires must not go missing silently.
    required = "cluster" in os.environ.get("REQUIRE_TIERS", "").split()
    (pytest.fail if required else pytest.skip)(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last: an idle node takes a twentieth of a core, which tests that measure should have for themselves.
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_no_cluster():
        _skip(reason)
    if named := os.environ.get("QWEN3_TEST_KUBECONFIG"):
        yield Cluster(Path(named).resolve())
        return
    with started_node() as node:
        yield node


@pytest.fixture
def pulumi_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Environment variables for a real Pulumi engine whose state lies in a folder of this test and nowhere else.

    This process has them too, because the Automation API asks for the engine's version without those it is given.
    """
    path = os.pathsep.join([str(cache_dir() / "bin"), os.environ.get("PATH", "")])
    for name in ENGINE:
        if shutil.which(name, path=path) is None:
            _skip(f"no {name} on PATH: tests/tools/build.sh engine")
    (tmp_path / "pulumi-state").mkdir()
    variables = {
        "PATH": path,
        "PULUMI_BACKEND_URL": f"file://{tmp_path / 'pulumi-state'}",
        "PULUMI_CONFIG_PASSPHRASE": "a passphrase of a test",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_HOME": str(tmp_path / "pulumi-home"),
        "PULUMI_SKIP_UPDATE_CHECK": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables
