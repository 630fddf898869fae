"""Lines on their way from a node to a collector: the real rsyslog, files as the kubelet writes them, a TCP receiver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from syslog_collector import Collector

from monitoring import log_shipping
from monitoring.log_shipping import Shipping, configuration, manifests
from runconfig import ConfigError, validate

IMAGE = f"registry.example/rsyslog@sha256:{'a' * 64}"
RSYSLOGD = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin")
POD = "qwen3-inference-7d9f8c6b5-x2x4z"
needs_rsyslog = pytest.mark.skipif(RSYSLOGD is None, reason="no rsyslogd on PATH: apt-get install rsyslog")


class Node:
    """Files of a node, and rsyslog that reads them as the DaemonSet's does."""

    def __init__(self, folder, port, **settings):
        self.folder, self.pods, self.state = folder, folder / "pods", folder / "state"
        self.state.mkdir()
        shipping = Shipping(ship_to=f"127.0.0.1:{port}", image=IMAGE, **settings)
        (folder / "rsyslog.conf").write_text(configuration(shipping, pods=str(self.pods), state=str(self.state)))
        self.log(POD)
        self.process = None

    def log(self, pod, namespace="qwen3", container="qwen3-server"):
        path = self.pods / f"{namespace}_{pod}_0f3c/{container}/0.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def start(self):
        modules = Path(RSYSLOGD).parents[1] / "lib" / f"{os.uname().machine}-linux-gnu" / "rsyslog"
        command = [RSYSLOGD, "-n", "-i", self.folder / "pid", "-f", self.folder / "rsyslog.conf"]
        command += ["-M", str(modules)] if modules.is_dir() else []
        with (self.folder / "said").open("ab") as said:
            environ = os.environ | {"NODE_NAME": "node-1"}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=environ)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


def cri(line, stream="stdout", flag="F", at="2026-11-26T12:00:00.123456789Z"):
    """A line as containerd writes it (CRI's log format)."""
    return f"{at} {stream} {flag} {line}\n"


def append(path, *lines):
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def until(check, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def collector():
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def node(tmp_path, collector):
    found = Node(tmp_path, collector.port)
    yield found
    found.stop()


def request_line(request_id, level="info"):
    return json.dumps(
        {"level": level, "event": "request", "request_id": request_id, "城": '上海\\"x', "n": 1.5}
    ).replace('": "', '":"')


@needs_rsyslog
def test_a_line_arrives_unchanged_with_its_labels_and_is_found_by_its_request_id(node, collector):
    node.start()
    line = request_line("0af7651916cd43dd8448eb211c80319c")
    text = cri("Traceback, no JSON", stream="stderr", at="2026-11-26T20:00:00.5+08:00")
    append(node.log(POD), cri(line), text)
    until(lambda: len(collector.messages()) == 2, node.folder / "said")

    [found] = [each for each in collector.messages() if "0af7651916cd43dd8448eb211c80319c" in each["line"]]
    assert found["line"] == line
    assert json.loads(found["line"])["request_id"] == "0af7651916cd43dd8448eb211c80319c"
    labels = {
        name: found[name] for name in ("priority", "time", "node", "app", "namespace", "pod", "container", "stream")
    }
    assert labels == {
        "priority": "134",
        "time": "2026-11-26T12:00:00.123456Z",
        "node": "node-1",
        "app": POD,
        "namespace": "qwen3",
        "pod": POD,
        "container": "qwen3-server",
        "stream": "stdout",
    }
    [other] = [each for each in collector.messages() if each is not found and each["stream"] == "stderr"]
    assert (other["line"], other["time"]) == ("Traceback, no JSON", "2026-11-26T20:00:00.5+08:00")


@needs_rsyslog
def test_what_is_dropped_and_what_is_another_matter_does_not_arrive(node, collector):
    node.start()
    for pod, container in ((POD, "istio-proxy"), ("web-1", "qwen3-server")):
        append(node.log(pod, container=container), cri(request_line("foreign")))
    append(node.log(POD, namespace="other"), cri(request_line("foreign")))
    levels = ("debug", "info", "warning", "error", "critical")
    append(node.log(POD), *(cri(request_line(level, level)) for level in levels), cri(request_line("last")))
    until(lambda: b"last" in collector.data, "the last line arrives")

    told = {json.loads(each["line"])["request_id"]: each["priority"] for each in collector.messages()}
    assert told == {"info": "134", "warning": "132", "error": "131", "critical": "130", "last": "134"}


@needs_rsyslog
@pytest.mark.timeout(120)
def test_lines_wait_for_a_collector_that_is_away_and_a_restart_repeats_none(node, collector):
    node.start()
    log = node.log(POD)
    append(log, cri(request_line("before")))
    until(lambda: b"before" in collector.data, "it sends")
    port = collector.port
    collector.close()
    # TCP has no receipts: what is in flight when a collector goes is lost, as the role says. These are, until it is
    # noticed.
    for _ in range(4):
        append(log, cri(request_line("in flight")))
        time.sleep(0.7)
    append(log, *(cri(request_line(f"away-{n}")) for n in range(500)))
    time.sleep(1)
    node.stop()
    node.start()
    again = Collector(port)
    # What waited keeps its order. A line that comes meanwhile is sent by another worker, before, among or after it.
    append(log, cri(request_line("meanwhile")))
    try:
        until(lambda: b"away-499" in again.data and b"meanwhile" in again.data, "it sends again", 60)
        append(log, cri(request_line("after")))
        until(lambda: b"after" in again.data, "it goes on")
        ids = [json.loads(each["line"])["request_id"] for each in again.messages()]
    finally:
        again.close()
    assert ids.count("meanwhile") == 1
    assert [name for name in ids if name not in ("in flight", "meanwhile")] == [
        *(f"away-{n}" for n in range(500)),
        "after",
    ]


@needs_rsyslog
def test_a_new_pod_and_a_rotated_file_are_followed(node, collector):
    node.start()
    log = node.log(POD)
    append(log, cri(request_line("first")))
    until(lambda: b"first" in collector.data, "the first arrives")
    log.rename(log.with_name("0.log.20261126-120000"))
    append(node.log(POD), cri(request_line("rotated")))
    append(node.log("qwen3-inference-canary-1-abcde"), cri(request_line("young")))
    until(lambda: b"rotated" in collector.data and b"young" in collector.data, collector.data)

    pods = {json.loads(each["line"])["request_id"]: each["pod"] for each in collector.messages()}
    assert pods == {"first": POD, "rotated": POD, "young": "qwen3-inference-canary-1-abcde"}


@needs_rsyslog
def test_rsyslog_takes_the_configuration_with_and_without_tls(tmp_path):
    for name, more in (("plain", {}), ("tls", {"ca_config_map": "logs-ca", "framing": "octet-counted"})):
        text = configuration(Shipping(ship_to="logs.example:6514", image=IMAGE, **more), state=str(tmp_path))
        assert ('StreamDriver="gtls"' in text) == (name == "tls")
        path = tmp_path / f"{name}.conf"
        path.write_text(text)
        modules = Path(RSYSLOGD).parents[1] / "lib" / f"{os.uname().machine}-linux-gnu" / "rsyslog"
        words = ["-M", str(modules)] if modules.is_dir() else []
        done = subprocess.run([RSYSLOGD, "-N1", "-f", path, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_manifests_are_what_the_api_server_takes():
    import kubernetes_validate

    made = manifests(Shipping(ship_to="logs.example:6514", image=IMAGE, ca_config_map="logs-ca"))
    for each in made:
        kubernetes_validate.validate(each, "1.34", strict=True)
    assert [each["kind"] for each in made] == ["ServiceAccount", "ConfigMap", "DaemonSet"]
    assert {each["metadata"]["namespace"] for each in made} == {"monitoring"}
    pod = made[-1]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {"state"}


def test_hosts_and_nodes_have_one_queue_and_one_format():
    """What the role logs says of waiting lines holds for nodes: the same queue, the same action."""
    role = Path("playbooks/roles/logs/templates/10-qwen3.conf.j2").read_text()
    own = log_shipping.TEMPLATE.read_text()
    for word in (
        "queue.size",
        "queue.highWatermark",
        "queue.lowWatermark",
        "queue.timeoutEnqueue",
        "queue.maxFileSize",
    ):
        assert re.search(rf'qwen3_ship.*?{word}="(\w+)"', role, re.DOTALL)[1] == re.search(rf'{word}="(\w+)"', own)[1]
    defaults = yaml.safe_load(Path("playbooks/roles/logs/defaults/main.yml").read_text())
    assert Shipping.model_fields["queue_mib"].default == defaults["logs_ship_queue_mib"]
    assert Shipping.model_fields["framing"].default == defaults["logs_ship_framing"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": "rsyslog:latest"}, "is not pinned"),
        ({"ship_to": "logs.example"}, "ship_to"),
        ({"ship_to": "logs.example:70000"}, "port 1 to 65535"),
        ({"namespace": "Qwen3"}, "namespace"),
        ({"queue_mib": 1}, "queue_mib"),
        ({"shipto": "a:1"}, "did you mean"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_key(change, said):
    with pytest.raises(ConfigError, match=said):
        validate(Shipping, {"ship_to": "logs.example:6514", "image": IMAGE} | change, "test")


def test_the_command_prints_manifests_or_says_what_is_wrong():
    command = [sys.executable, "-m", "monitoring.log_shipping"]
    done = subprocess.run(
        [*command, "ship_to=logs.example:6514", f"image={IMAGE}"], capture_output=True, text=True, check=True
    )
    assert [each["kind"] for each in yaml.safe_load_all(done.stdout)] == ["ServiceAccount", "ConfigMap", "DaemonSet"]
    wrong = subprocess.run(
        [*command, "ship_to=logs.example:6514", "image=x"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "pinned" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "ship_to" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
