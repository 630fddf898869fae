"""``playbooks/lmdeploy.yml`` on a bare server: LMDeploy 0.18's real server, its engine replaced by one for the CPU.

The engine is a process of its own behind ZeroMQ, as the PyTorch backend runs it: what can die behind the API process.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from hosts import REPOSITORY, Site, changed, ssh_key
from lmdeploy_host import STEP_S, VENV, lmdeploy_host, write
from traffic import wait_until

from model_server.deployment import DeploymentConfig, timings
from model_server.engines.lmdeploy import LMDeployEngine

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.lmdeploy, pytest.mark.timeout(1500)]

PORT = 23333
WATCHDOG_S = 12
LOAD_S = 600  # imports alone take from 20 s to minutes, by what else the machine does
ENVIRONMENT = {
    "model_name": "tiny",
    "model_version": "1",
    "model_source": "/opt/models/tiny",
    "deployment_type": "server",
    "engine": "lmdeploy",
    "resource_limits": {"cpu_cores": 1, "memory_gb": 2, "disk_gb": 1},
    "optimization_settings": {
        "enable_quantization": False,
        "quantization_bits": 16,
        "max_batch_size": 4,
        "max_sequence_length": 512,
    },
    "serving": {"engine_url": f"http://127.0.0.1:{PORT}", "request_timeout_s": 30, "drain_s": 35},
}
STOP_S = timings(DeploymentConfig.model_validate(ENVIRONMENT)).timeout_stop_s


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, REPOSITORY / "tests/tools/tiny_qwen3.py", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("site")
    key = ssh_key(folder)
    with lmdeploy_host(f"qwen3-lmdeploy-{secrets.token_hex(3)}", key) as server:
        site = Site(folder, [server], ENVIRONMENT, key)
        site.given = {
            "lmdeploy_model": str(tiny),
            "lmdeploy_virtualenv": VENV,
            "lmdeploy_device_check": False,
            "lmdeploy_backend": "pytorch",
            "lmdeploy_watchdog_s": WATCHDOG_S,
            "lmdeploy_start_limit_s": LOAD_S,
            "lmdeploy_install_packages": False,  # no kernel is compiled here
        }
        before = files(server)
        code, said = play(site, "--check", "--diff")
        assert code == 0, said
        assert files(server) == before
        code, said = play(site)
        print(said, journal(server))
        assert code == 0
        yield site


@pytest.fixture
def server(site):
    """With LMDeploy healthy, whatever the test before did to it."""
    [server] = site.servers
    server.run("systemctl", "start", "lmdeploy@0", check=False)
    wait_until(lambda: state(server) == "active", "LMDeploy is healthy", limit_s=LOAD_S)
    return server


@pytest.fixture(scope="module")
def door(site):
    """LMDeploy's port, which is open on the server's loopback alone, on this machine."""
    with forwarded(site, PORT) as port:
        yield port


def play(site, *words, **given):
    return site.play("lmdeploy", "-e", json.dumps(site.given | given), *words)


def files(server):
    """What is on it, by time of change."""
    found = "find /etc /opt /var/cache -newermt @0 -printf '%p %s %T@\\n' | sort | sha256sum"
    return server.run("sh", "-c", found)


def journal(server, lines=60):
    return server.run("journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", "lmdeploy@0")


def state(server):
    return server.property("lmdeploy@0", "ActiveState")


def key_of(server):
    return server.run("cat", "/etc/lmdeploy/key.env").strip().removeprefix("LMDEPLOY_API_KEY=")


def process(server, which):
    """Id of a process of the unit by a word of its command line."""
    lines = server.run("ps", "-eo", "pid,args").splitlines()
    [found] = [line.split()[0] for line in lines if which in line and "lmdeploy/bin/python" in line]
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def forwarded(site, port):
    [server] = site.servers
    here = free_port()
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ExitOnForwardFailure=yes"]
    words = ["ssh", "-N", *(word for option in options for word in ("-o", option)), "-i", site.key]
    words += ["-p", str(server.port), "-L", f"{here}:127.0.0.1:{port}", "root@127.0.0.1"]
    with subprocess.Popen(words) as tunnel:
        try:
            wait_until(lambda: answers(here), "the tunnel is there")
            yield here
        finally:
            tunnel.terminate()


def post(port, body, key=None, limit_s=120):
    """Status and lines of a chat."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi 你好"}]} | body
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, [line.decode() for line in answer.read().splitlines() if line]
    finally:
        connection.close()


class Stream(threading.Thread):
    """One of ``tokens`` tokens straight from LMDeploy, begun when the constructor returns."""

    def __init__(self, server, door, tokens):
        super().__init__()
        self.key, self.door, self.tokens, self.lines, self.begun = key_of(server), door, tokens, [], threading.Event()
        self.start()
        assert self.begun.wait(30), "the first token came"

    def run(self):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, "ignore_eos": True}
        body |= {"max_completion_tokens": self.tokens, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.door, timeout=200)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            for line in connection.getresponse():
                self.begun.set()
                if line.strip():
                    self.lines.append(line.decode().strip())
        except (OSError, http.client.HTTPException) as error:
            self.lines.append(repr(error))
        finally:
            connection.close()

    def whole(self):
        self.join()
        usage = json.loads(self.lines[-2].removeprefix("data: "))["usage"]
        return self.lines[-1] == "data: [DONE]" and usage["completion_tokens"] == self.tokens


# -- what the play makes -----------------------------------------------------------------------------------------------


def test_a_second_play_changes_nothing_and_a_rehearsal_foresees_nothing(site):
    words = ("lmdeploy_instances=1", f"lmdeploy_watchdog_s={WATCHDOG_S}", "lmdeploy_device_check=false")
    code, said = play(site, *(word for each in words for word in ("-e", each)))  # as text, too
    assert (code, changed(said)) == (0, 0), said
    code, said = play(site, "--check", "--diff")
    assert (code, changed(said)) == (0, 0), said


def test_lmdeploy_is_started_as_the_model_server_would_start_its_own(server):
    """One place decides how LMDeploy is told (engines/lmdeploy.py); the unit may not drift from it."""
    line = server.run("cat", f"/proc/{server.property('lmdeploy@0', 'MainPID')}/cmdline").rstrip("\0").split("\0")
    config = DeploymentConfig.model_validate(ENVIRONMENT)
    settings = config.optimization_settings
    engine = LMDeployEngine(
        model=config.model_name,
        path=config.model_source,
        backend="pytorch",
        slots=settings.max_batch_size,
        context_tokens=settings.max_sequence_length,
        kv_cache_bits=settings.kv_cache_bits,
        prefix_caching=settings.enable_prefix_caching,
    )

    assert sorted(line[2:]) == sorted(engine._arguments(PORT))
    assert line[line.index("--max-batch-size") + 1] == "4"
    assert "--max-concurrent-requests" not in line


def test_the_waiting_times_are_the_environments(server):
    assert server.property("lmdeploy@0", "TimeoutStopUSec") == f"{STOP_S}s"
    assert server.property("lmdeploy@0", "TimeoutStartUSec") == f"{LOAD_S // 60}min"
    assert server.property("lmdeploy@0", "WatchdogUSec") == f"{WATCHDOG_S}s"


def test_the_model_server_in_front_answers_a_chat_and_a_stream(site, server, wheelhouse):
    """Both playbooks, one after the other, and nothing between them but the port: the key comes by a drop-in."""
    code, said = site.play("site", "-e", f"model_server_wheelhouse={wheelhouse}")
    print(said, server.run("journalctl", "--no-pager", "-o", "cat", "-n", "30", "-u", "qwen3@1"))
    assert code == 0

    with forwarded(site, 8000) as port:
        status, [answer] = post(port, {"max_tokens": 8})
        streamed, lines = post(port, {"max_tokens": 24, "stream": True, "ignore_eos": True})
    assert (status, streamed) == (200, 200)
    assert json.loads(answer)["choices"][0]["message"]["content"]
    assert json.loads(answer)["usage"]["completion_tokens"] <= 8
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert "lmdeploy@0.service" in server.property("qwen3@1", "After"), "at a shutdown it drains before LMDeploy stops"


def test_the_key_guards_lmdeploy_and_is_nowhere_to_be_read(server, door):
    key = key_of(server)
    assert len(key) == 48
    assert post(door, {"max_tokens": 2})[0] == 401
    assert post(door, {"max_tokens": 2}, key)[0] == 200

    shown = server.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
    assert "cpu_lmdeploy.py" in shown
    assert key not in shown
    main = server.property("lmdeploy@0", "MainPID")
    assert key not in server.run("cat", f"/proc/{main}/environ"), "a credential, and no variable"
    assert key not in server.run("systemctl", "show", "lmdeploy@0", "qwen3@1")
    assert key not in server.run("journalctl", "--no-pager")
    assert server.run("stat", "-c", "%a %U", "/etc/lmdeploy/key.env").strip() == "600 root"
    holding = server.run("sh", "-c", f"grep -rlF {key} /etc /opt /var /run /tmp /root /home", check=False).split()
    assert "/etc/lmdeploy/key.env" in holding
    assert [path for path in holding if int(server.run("stat", "-c", "%a", path).strip()[-1])] == []


def test_the_unit_is_shut_in_and_may_open_the_gpus(server):
    said = server.run("systemd-analyze", "security", "--no-pager", "lmdeploy@0.service")
    print(said.splitlines()[-1])
    assert float(re.search(r"exposure level for lmdeploy@0.service: ([\d.]+)", said)[1]) <= 1.5
    assert "char-nvidia* rw" in server.property("lmdeploy@0", "DeviceAllow")
    listening = server.run("ss", "-ltnH").splitlines()
    mine = [line.split()[3] for line in listening if str(PORT) in line]
    assert mine == [f"127.0.0.1:{PORT}"]


# -- what systemd does with it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_an_engine_that_died_or_hangs_behind_its_api_process_is_replaced(server, signal):
    """LMDeploy's next probe, its time limit, and WatchdogSec without a heartbeat: what the role's manual promises."""
    main, restarts = server.property("lmdeploy@0", "MainPID"), int(server.property("lmdeploy@0", "NRestarts"))
    server.run("kill", f"-{signal}", process(server, "spawn_main"))
    time.sleep(WATCHDOG_S / 3)
    assert server.run("ps", "-o", "comm=", "-p", main).strip() == "python", "the API process outlives its engine"
    assert state(server) == "active", "Restart= alone does nothing"

    noticed = WATCHDOG_S / 3 + wait_until(lambda: state(server) != "active", "it is noticed")
    back = noticed + wait_until(lambda: state(server) == "active", "it is back", limit_s=LOAD_S)

    print(f"engine gets SIG{signal}: noticed after {noticed:.1f} s, healthy again after {back:.1f} s")
    assert noticed <= (5 / 16 + 1 / 4 + 1) * WATCHDOG_S + 1
    assert server.property("lmdeploy@0", "MainPID") != main
    assert int(server.property("lmdeploy@0", "NRestarts")) > restarts
    assert f"Watchdog timeout (limit {WATCHDOG_S}s)" in journal(server, 400)


def test_a_watchdog_that_is_killed_takes_lmdeploy_with_it_and_both_come_back(server):
    main = server.property("lmdeploy@0", "MainPID")
    server.run("kill", "-KILL", process(server, "lmdeploy_watchdog"))

    noticed = wait_until(lambda: state(server) != "active", "LMDeploy ended", limit_s=45)
    wait_until(lambda: state(server) == "active", "it is back", limit_s=LOAD_S)

    print(f"watchdog killed: LMDeploy ended after {noticed:.1f} s")
    assert server.property("lmdeploy@0", "MainPID") != main
    assert process(server, "lmdeploy_watchdog")


def test_a_stop_lets_a_stream_end_however_long_the_heartbeat_is_missing(server, door):
    tokens = round(WATCHDOG_S * 1.5 / STEP_S)
    stream = Stream(server, door, tokens)
    began = time.monotonic()
    server.run("systemctl", "stop", "lmdeploy@0")
    took = time.monotonic() - began

    print(f"stop with a stream in flight: {took:.1f} s")
    assert stream.whole(), stream.lines[-2:]
    assert WATCHDOG_S < took < STOP_S, "longer than WatchdogSec, and not killed"
    assert (state(server), server.property("lmdeploy@0", "Result")) == ("inactive", "success")
    assert processes(server) == []


def test_a_stop_that_hangs_ends_when_its_time_is_up(server, door):
    stream = Stream(server, door, 400)
    server.run("kill", "-STOP", process(server, "spawn_main"))
    began = time.monotonic()
    server.run("systemctl", "stop", "lmdeploy@0")
    took = time.monotonic() - began
    stream.join()

    print(f"stop with a hung engine: {took:.1f} s")
    assert STOP_S - 1 < took < STOP_S + 5
    assert server.property("lmdeploy@0", "Result") == "timeout"
    assert processes(server) == []


def processes(server):
    return [line for line in server.run("ps", "-eo", "args").splitlines() if f"{VENV}/bin/python" in line]


def test_an_instance_that_is_too_many_is_stopped_and_forgotten(site, server):
    first = server.property("lmdeploy@0", "MainPID")
    code, said = play(site, lmdeploy_instances=2)
    assert code == 0, said
    environ = server.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{server.property('lmdeploy@1', 'MainPID')}/environ")
    assert "CUDA_VISIBLE_DEVICES=1" in environ.split()
    status = server.run("curl", "-sS", f"http://127.0.0.1:{PORT + 1}/health")
    assert json.loads(status)["status"] == "healthy"

    code, said = play(site)
    assert code == 0, said
    assert server.property("lmdeploy@1", "ActiveState") == "inactive"
    assert server.run("systemctl", "is-enabled", "lmdeploy@1", check=False).strip() == "disabled"
    assert server.property("lmdeploy@0", "MainPID") == first, "the other went on"
    code, said = play(site)
    assert (code, changed(said)) == (0, 0), said


def test_a_backend_that_lmdeploy_fell_back_to_ends_the_play(site, server):
    """TurboMind cannot load without a GPU; LMDeploy then takes PyTorch, and says that in its log alone."""
    code, said = play(site, lmdeploy_backend="turbomind")
    assert code != 0
    assert "lmdeploy@0 must compute with turbomind, and came up with the other backend" in " ".join(said.split())

    code, said = play(site)
    assert code == 0, said


def test_a_unit_that_systemd_would_read_in_part_is_not_written(site, server):
    unit = "/etc/systemd/system/lmdeploy@.service"
    main, before = server.property("lmdeploy@0", "MainPID"), server.run("cat", unit)

    code, said = play(site, lmdeploy_memory_max="lots")

    assert code != 0
    assert "Invalid memory limit 'lots', ignoring" in said
    assert server.run("cat", unit) == before
    assert server.property("lmdeploy@0", "MainPID") == main


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lmdeploy_device_check": True}, "has 0 NVIDIA devices"),
        ({"lmdeploy_backend": "vllm"}, "must be one of: turbomind, pytorch"),
        ({"lmdeploy_instances": 0}, "lmdeploy_instances is 0 (1 or more)"),
        ({"lmdeploy_watchdog_s": 1}, "lmdeploy_watchdog_s 1 (4 or more)"),
        ({"lmdeploy_model": "models"}, "models: give the whole path"),
        ({"lmdeploy_model": "/usr"}, "there is no config.json in /usr"),
        ({"lmdeploy_wheelhouse": "/nowhere"}, "/nowhere: give the whole path"),
        ({"lmdeploy_virtualenv": "/srv/nothing"}, "/srv/nothing holds no LMDeploy"),
        ({"lmdeploy_virtualenv": "/srv/a b"}, "/srv/a b: letters, digits"),
        ({"lmdeploy_virtualenv": "", "lmdeploy_disk_gb": 90000}, "GB free for /opt/lmdeploy, and LMDeploy needs 90000"),
        ({"lmdeploy_virtualenv": "", "lmdeploy_python": "python4"}, "python4 on {name} is not there"),
        ({"lmdeploy_virtualenv": "", "lmdeploy_python": "/srv/python3.10"}, "is 3.10: the pins need Python 3.11 to"),
    ],
)
def test_what_cannot_work_stops_before_the_host_is_changed(site, given, said):
    [server] = site.servers
    write(server, "/srv/python3.10", "#!/bin/sh\necho 3.10\n")
    server.run("chmod", "+x", "/srv/python3.10")
    before = files(server)

    code, told = play(site, **given)

    assert code != 0
    assert said.format(name=server.name) in " ".join(told.split())
    assert files(server) == before


def test_each_instance_needs_a_gpu(site):
    [server] = site.servers
    server.run("touch", "/dev/nvidia0")
    _, without = play(site, "--check", lmdeploy_device_check=True)
    server.run("touch", "/dev/nvidia-uvm")
    enough, said = play(site, "--check", lmdeploy_device_check=True)
    _, too_many = play(site, "--check", lmdeploy_device_check=True, lmdeploy_instances=2)
    server.run("rm", "/dev/nvidia0", "/dev/nvidia-uvm")

    assert "has 1 NVIDIA devices (/dev/nvidia0, ...) without /dev/nvidia-uvm" in " ".join(without.split())
    assert (enough, changed(said)) == (0, 0), said
    assert "and /dev/nvidia-uvm, and lmdeploy_instances is 2: install the driver" in " ".join(too_many.split())


def test_another_distribution_is_refused_by_its_name(site):
    [server] = site.servers
    server.run("cp", "/usr/lib/os-release", "/root/os-release")
    write(server, "/usr/lib/os-release", 'NAME="Arch Linux"\nID=arch\n')
    server.run("touch", "/etc/arch-release")
    try:
        before = files(server)
        code, said = play(site)
        assert files(server) == before
    finally:
        server.run("mv", "/root/os-release", "/usr/lib/os-release")
        server.run("rm", "/etc/arch-release")

    assert code != 0
    assert "runs Archlinux on x86_64 with systemd 252: this role knows Debian and Ubuntu" in " ".join(said.split())


@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"engine": "openvino"}, "the environment's engine is openvino: set it to lmdeploy"),
        ({"serving": {}}, "serving.engine_url is null: this role runs LMDeploy for the model server of the same host"),
        ({"serving": {"engine_url": "http://10.0.0.5:23333"}}, "serving.engine_url is http://10.0.0.5:23333"),
        ({"model_source": "/opt/models/other"}, "there is no config.json in /opt/models/other"),
        ({"model_source": "models/tiny"}, "model_source must be a whole path on the host"),
        ({"model_name": "tiny %i"}, "tiny %i: letters, digits"),
    ],
)
def test_an_environment_that_lmdeploy_cannot_serve_stops_before_the_host_is_changed(site, different, said):
    [server] = site.servers
    before = files(server)
    site.write(ENVIRONMENT | different)
    try:
        code, told = play(site, **({"lmdeploy_model": ""} if "model_source" in different else {}))
    finally:
        site.write(ENVIRONMENT)

    assert code != 0
    assert said in " ".join(told.split())
    assert files(server) == before
