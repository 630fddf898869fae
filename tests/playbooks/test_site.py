"""``playbooks/site.yml``: from bare servers to answers through the balancer, over SSH."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from functools import partial

import pytest
from hosts import changed
from traffic import KEY, TEXT, Traffic, call, stream, wait_until

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]
SLOW = pytest.mark.slow

IN_IT = ("ConnectionResetError", "RemoteDisconnected", "IncompleteRead", "502 ", "200 ")
"""What a client may see of an instance that is killed with its request in it; 200: a stream without its end."""


@pytest.fixture
def door(site):
    """Where clients come in, once all instances get requests."""
    [balancer] = site["load_balancer"]
    wait_until(lambda: up(balancer) == 4, "all four instances are up")
    return balancer.address


def up(balancer):
    """Instances that HAProxy sends requests to."""
    said = balancer.run("curl", "-s", f"http://{balancer.address}:8405/metrics")
    return sum(line.endswith(" 1") for line in said.splitlines() if is_up(line))


def is_up(line):
    return line.startswith('haproxy_server_status{proxy="model_servers"') and 'state="UP"' in line


def in_service(balancer, name):
    said = balancer.run("curl", "-s", f"http://{balancer.address}:8405/metrics")
    return any(is_up(line) and f'server="{name}"' in line and line.endswith(" 1") for line in said.splitlines())


def ask(server, address, port):
    words = ("-H", f"Authorization: Bearer {KEY}", "-d", json.dumps({"text": TEXT}))
    return server.run("curl", "-sSf", *words, f"http://{address}:{port}/api/v1/classify")


def restarts(server, number):
    return int(server.property(f"qwen3@{number}", "NRestarts"))


def test_bare_servers_answer_through_the_balancer_after_one_command_and_a_second_changes_nothing(site, door):
    for server in site["model_server"]:
        assert "category" in ask(server, server.address, 8000)
        assert "category" in ask(server, server.address, 8001)
    assert call(door) == "whole"
    assert stream(door) == "whole"

    code, said = site.play("site")
    assert (code, changed(said)) == (0, 0), said
    code, said = site.play("site", "--check", "--diff")
    assert (code, changed(said)) == (0, 0), said


def test_requests_are_spread_over_all_instances_of_all_hosts(site, door):
    with Traffic(partial(call, door), 8) as calls:
        wait_until(lambda: len(calls.answers) >= 200, "two hundred requests")
    assert set(calls.counts()) == {"whole"}
    [balancer] = site["load_balancer"]
    said = balancer.run("curl", "-s", f"http://{balancer.address}:8405/metrics")
    lines = [line for line in said.splitlines() if line.startswith("haproxy_server_http_responses_total")]
    answered = [int(line.rsplit(" ", 1)[1]) for line in lines if 'code="2xx"' in line]
    print(answered)
    assert len(answered) == 4
    assert min(answered) >= 20


def test_clients_of_an_instance_that_is_killed_see_an_error_on_what_was_in_it_and_on_nothing_else(site, door):
    victim = site["model_server"][0]
    before = restarts(victim, 1)
    with (
        Traffic(partial(call, door), 4) as calls,
        Traffic(partial(stream, door, tokens=200), 4) as streams,
    ):
        wait_until(lambda: len(streams.answers) >= 4, "streams")
        killed = time.monotonic()
        victim.run("kill", "-9", victim.property("qwen3@1", "MainPID"))
        wait_until(lambda: restarts(victim, 1) > before, "systemd started it again")
        wait_until(lambda: victim.property("qwen3@1", "ActiveState") == "active", "it serves again")
        print(f"serves again after {time.monotonic() - killed:.1f} s")
        wait_until(lambda: len(calls.counts(since=killed + 1)) > 0, "requests after the kill")
    print(f"classifications {dict(calls.counts())}, streams {dict(streams.counts())}")

    assert all(what == "whole" or what.startswith(IN_IT) for what in {*calls.counts(), *streams.counts()})
    # Those that began later than the kill found another instance.
    assert set(calls.counts(since=killed + 0.5)) == {"whole"}
    assert set(streams.counts(since=killed + 0.5)) == {"whole"}


def test_a_hung_instance_is_taken_out_by_the_check_and_started_again_by_the_watchdog(site, door):
    victim, [balancer] = site["model_server"][1], site["load_balancer"]
    name, before = f"{victim.name}-2", restarts(victim, 2)
    with Traffic(partial(call, door, limit_s=60), 2, pause_s=0.2) as calls:
        victim.run("kill", "-STOP", victim.property("qwen3@2", "MainPID"))
        stopped = time.monotonic()
        wait_until(lambda: not in_service(balancer, name), "it is taken out")
        out = time.monotonic()
        wait_until(lambda: restarts(victim, 2) > before, "the watchdog ends it", limit_s=90)
        again = time.monotonic()
        wait_until(lambda: in_service(balancer, name), "it is in service again", limit_s=90)
    print(f"out after {out - stopped:.1f} s, started again after {again - stopped:.1f} s: {dict(calls.counts())}")

    assert out - stopped < 10  # inter 1 s, timeout 2 s, fall 2
    assert again - stopped < 30 + 5 + 10  # WatchdogSec, TimeoutAbortSec, a busy machine
    assert set(calls.counts(since=out + 0.5)) == {"whole"}


def test_after_the_reboot_of_a_host_its_instances_serve_again_and_nobody_noticed(site, door):
    victim, [balancer] = site["model_server"][0], site["load_balancer"]
    with Traffic(partial(call, door), 4, pause_s=0.1) as calls:
        began = time.monotonic()
        victim.reboot()
        wait_until(lambda: up(balancer) == 4, "all serve again", limit_s=120)
        print(f"serves again {time.monotonic() - began:.1f} s after the reboot began: {dict(calls.counts())}")
    # systemd ends the instances as it always does: they finish what they have.
    assert set(calls.counts()) == {"whole"}


def test_on_a_full_disk_the_instances_go_on_and_a_rollout_is_refused(site, door):
    server = site["model_server"][1]
    server.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/var/log")
    try:
        server.run("dd", "if=/dev/zero", "of=/var/log/full", "bs=1M", check=False)
        for port in (8000, 8001):
            assert "category" in ask(server, server.address, port)
    finally:
        server.run("umount", "-l", "/var/log")
    with site.environment(resource_limits={"cpu_cores": 0.25, "memory_gb": 0.75, "disk_gb": 100_000}):
        code, said = site.play("site")
    assert code != 0
    assert "resource_limits.disk_gb asks for 102400000 MiB: free some, or lower it" in said


def test_the_limits_and_waiting_times_are_the_environments(site):
    server = site["model_server"][0]
    assert server.property("qwen3@1", "CPUQuotaPerSecUSec") == "250ms"
    assert server.property("qwen3@1", "MemoryMax") == str(768 * 2**20)
    assert server.property("qwen3@1", "TimeoutStopUSec") == "2min 15s"


def test_keys_and_rate_limits_apply_without_a_restart(site, door):
    server = site["model_server"][0]
    before = server.property("qwen3@1", "MainPID")
    (site.folder / "keys").write_text(f"tests:{KEY}\nmore:another-key-of-the-tests\n")
    try:
        with site.environment(serving=site.usual["serving"] | {"log_level": "DEBUG"}):
            code, said = site.play("site", "--tags", "all")
        assert code == 0, said
        words = ("-H", "Authorization: Bearer another-key-of-the-tests", "-d", json.dumps({"text": TEXT}))
        assert "category" in server.run("curl", "-sSf", *words, f"http://{server.address}:8000/api/v1/classify")
    finally:
        (site.folder / "keys").write_text(f"tests:{KEY}\n")
        code, said = site.play("site")
    assert code == 0
    assert server.property("qwen3@1", "MainPID") == before


def test_the_key_is_in_no_command_line_and_only_root_and_the_server_read_it(site, door):
    for server in site.servers:
        lines = server.run("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'")
        assert KEY not in lines
        assert KEY not in server.run("journalctl", "--no-pager")
        readable = server.run(
            "sh", "-c", f"grep -rlF {KEY} /etc /opt /var 2>/dev/null | xargs -r stat -c '%a %n'", check=False
        )
        assert [line for line in readable.splitlines() if int(line.split()[0][-1]) & 4] == []
    for server in site["model_server"]:
        assert server.run("stat", "-c", "%a %U", "/etc/qwen3/api_keys").strip() == "600 root"


def test_each_host_is_what_its_roles_say(site):
    for server in site.servers:
        looked_at = server.looked_at(site.key)
        assert looked_at.service("qwen3-firewall").is_enabled
        assert looked_at.file("/etc/logrotate.d/qwen3").exists
    for server in site["model_server"]:
        looked_at = server.looked_at(site.key)
        assert looked_at.user("qwen3").shell == "/usr/sbin/nologin"
        for number, port in ((1, 8000), (2, 8001)):
            unit = looked_at.service(f"qwen3@{number}")
            assert (unit.is_enabled, unit.is_running) == (True, True)
            assert looked_at.socket(f"tcp://{server.address}:{port}").is_listening
            assert looked_at.file(f"/opt/qwen3/instances/{number}").is_symlink
        assert not looked_at.socket("tcp://0.0.0.0:8000").is_listening
        assert [each.comm for each in looked_at.process.filter(user="qwen3", ppid=1)] == ["python", "python"]
        keys = looked_at.file("/etc/qwen3/api_keys")
        assert (keys.user, keys.group, keys.mode) == ("root", "root", 0o600)
        running = looked_at.file("/opt/qwen3/current")
        assert looked_at.file("/opt/qwen3/instances/1").linked_to == running.linked_to
    [balancer] = site["load_balancer"]
    looked_at = balancer.looked_at(site.key)
    assert looked_at.package("haproxy").is_installed
    assert looked_at.service("haproxy").is_running
    assert looked_at.socket("tcp://0.0.0.0:80").is_listening
    assert looked_at.file("/etc/haproxy/haproxy.cfg").mode == 0o644


def test_the_unit_is_shut_in(site):
    server = site["model_server"][0]
    said = server.run("systemd-analyze", "security", "--no-pager", "qwen3@1.service")
    print(said.splitlines()[-1])
    exposure = float(said.rsplit("exposure level for", 1)[1].split(":")[1].split()[0])
    assert exposure <= 1.5


def test_other_hosts_reach_the_door_and_nothing_behind_it(site, door):
    def reached(server, port):
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex((server.address, port)) == 0

    [balancer] = site["load_balancer"]
    for server in site["model_server"]:
        server.run("systemd-run", "--unit=left-open", "python3", "-m", "http.server", "8200")
    try:
        wait_until(lambda: ":8200" in site.servers[0].run("ss", "-Hltn"), "it listens")
        for server in site["model_server"]:
            # This machine is a monitor of the site, and no balancer.
            ports = (22, 80, 8000, 8001, 8200, 9000, 9001)
            assert [port for port in ports if reached(server, port)] == [22, 9000, 9001]
            assert "category" in ask(balancer, server.address, 8000)
            said = balancer.run("curl", "-sS", "-m", "2", f"http://{server.address}:8200", check=False)
            assert said == ""
        assert [port for port in (22, 80, 443, 8000, 8405, 9000) if reached(balancer, port)] == [22, 80, 8405]
    finally:
        for server in site["model_server"]:
            server.run("systemctl", "stop", "left-open")

    said = balancer.run("systemd-analyze", "security", "--no-pager", "qwen3-firewall.service")
    print(said.splitlines()[-1])
    assert float(said.rsplit("exposure level for", 1)[1].split(":")[1].split()[0]) <= 1.5


def test_a_running_site_is_looked_at_from_end_to_end(site, door):
    code, said = site.play("validate")
    assert code == 0, said
    print(said[said.index("Show the instances") :])
    assert "4 instances serve 1-" in said

    victim = site["model_server"][1]
    victim.run("systemctl", "stop", "qwen3@2")
    try:
        code, said = site.play("validate")
    finally:
        victim.run("systemctl", "start", "qwen3@2")
    assert code != 0
    assert f"not in service: {victim.name}-2" in said


def test_with_a_certificate_keys_cross_the_network_in_secret(site, door):
    [balancer] = site["load_balancer"]
    names = ("-subj", "/CN=door", "-addext", f"subjectAltName=IP:{balancer.address}")
    words = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", "key.pem", "-out", "certificate.pem")
    subprocess.run(["openssl", "req", *words, *names], cwd=site.folder, check=True, capture_output=True)
    pem = site.folder / "site.pem"
    pem.write_text((site.folder / "certificate.pem").read_text() + (site.folder / "key.pem").read_text())
    trusted = ("--cacert", site.folder / "certificate.pem", "-sSf", "-H", f"Authorization: Bearer {KEY}")
    url = f"https://{balancer.address}/api/v1/classify"
    try:
        code, said = site.play("site", "-e", f"haproxy_certificate={pem}", "--limit", "load_balancers")
        assert code == 0, said
        command = ["curl", *trusted, "-d", json.dumps({"text": TEXT}), url]
        assert "category" in subprocess.check_output(command, text=True)
        assert balancer.run("stat", "-c", "%a %U", "/etc/haproxy/certificates/site.pem").strip() == "600 root"
        assert call(balancer.address) == "ConnectionRefusedError"

        code, said = site.play("site", "-e", f"haproxy_certificate={site.folder / 'key.pem'}", "--limit", door_of(site))
        assert code != 0
        assert "must hold the certificate (chain) and its private key" in said
    finally:
        code, said = site.play("site", "--limit", "load_balancers")
    assert code == 0, said


def door_of(site):
    return site["load_balancer"][0].name


@SLOW
def test_a_reload_that_fails_is_noticed(site, door):
    """HAProxy takes a file that its check accepts, fails, and goes on as it was; systemd says that it reloaded."""
    try:
        code, said = site.play("site", "-e", "haproxy_max_connections=1000000000", "--limit", "load_balancers")
        assert code != 0
        assert call(door) == "whole"
    finally:
        code, said = site.play("site", "--limit", "load_balancers")
    assert code == 0, said


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("model_server_api_keys_file=", "give the file with the keys"),
        (
            "model_server_wheel_house=/srv",
            "no role has the variable model_server_wheel_house (did you mean model_server_wheelhouse?)",
        ),
        (f"model_server_wheelhouse={os.devnull}", "there are no wheels in /dev/null"),
        pytest.param("model_server_api_keys_file=keys", "keys: give the whole path", marks=SLOW),
        pytest.param("model_server_model=/nowhere", "/nowhere: give the whole path", marks=SLOW),
        pytest.param('{"model_server_allow_jit": "perhaps"}', "model_server_allow_jit", marks=SLOW),
        pytest.param("model_server_python=/usr/bin/python9", "/usr/bin/python9", marks=SLOW),
        pytest.param("haproxy_certificate=/nowhere.pem", "/nowhere.pem is no whole path of a file", marks=SLOW),
        pytest.param("haproxy_port=22", "port 22 is taken by sshd", marks=SLOW),
    ],
)
def test_what_cannot_work_stops_before_the_host_is_changed(site, variable, said):
    listing = "find /etc /opt -newermt @0 -not -name __pycache__ -not -name '*.pyc' -printf '%p %T@\\n' | sort"
    before = [server.run("sh", "-c", listing) for server in site.servers]

    code, told = site.play("site", "-e", variable)

    assert code != 0
    assert said in told
    assert [server.run("sh", "-c", listing) for server in site.servers] == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resource_limits": {"cpu_cores": 1, "memory_gb": 0.1, "disk_gb": 1}}, "ResourceInsufficientError"),
        ({"resource_limits": {"cpu_cores": 1, "memory_gb": 10_000, "disk_gb": 1}}, "lower the host's instances"),
        ({"deployment_type": "kubernetes"}, "playbooks are for environments of type 'server'"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_with_the_arithmetic(site, changes, said):
    with site.environment(**changes):
        code, told = site.play("site")
    assert code != 0
    assert said in told


def test_a_port_that_something_else_has_is_refused_with_its_name(site):
    server = site["model_server"][0]
    server.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8100")
    try:
        wait_until(lambda: ":8100" in server.run("ss", "-Hltn"), "it listens")
        with site.environment(serving=site.usual["serving"] | {"port": 8100}):
            server.run("systemctl", "stop", "qwen3@1")
            code, told = site.play("site")
    finally:
        server.run("systemctl", "stop", "squatter")
        server.run("systemctl", "start", "qwen3@1")
    assert code != 0
    assert "port 8100, which instance 1 is to have, is taken by python3" in told


def test_a_system_that_the_roles_do_not_know_is_refused(site):
    server = site["model_server"][0]
    server.run("sh", "-c", "echo 3.20.3 > /etc/alpine-release")  # where Ansible finds Alpine Linux, before Debian
    try:
        code, told = site.play("site")
    finally:
        server.run("rm", "/etc/alpine-release")
    assert code != 0
    assert f"{server.name} runs Alpine: this role knows Debian and Ubuntu" in told


def test_sudo_needs_its_password(site):
    server = site["model_server"][0]
    server.run("sh", "-c", "useradd -m admin && usermod -aG sudo admin && echo admin:right | chpasswd")
    server.run("cp", "-r", "/root/.ssh", "/home/admin/")
    server.run("chown", "-R", "admin:", "/home/admin/.ssh")
    secret = site.folder / "secret.yml"
    site.write_hosts([row | ({"user": "admin"} if row["name"] == server.name else {}) for row in site.rows])
    try:
        secret.write_text("ansible_become_password: wrong\n")
        code, told = site.play("site", "-e", f"@{secret}", "--limit", server.name)
        assert code != 0
        assert "Incorrect sudo password" in told
        assert "changed=0" in told
        secret.write_text("ansible_become_password: right\n")
        code, told = site.play("site", "-e", f"@{secret}", "--limit", server.name)
        assert (code, changed(told)) == (0, 0), told
    finally:
        site.write_hosts(site.rows)
        server.run("userdel", "-r", "admin", check=False)


def test_a_host_that_does_not_answer_ends_the_play(site):
    rows = (site.folder / "hosts.yml").read_text()
    (site.folder / "hosts.yml").write_text(rows.replace(f"port: {site.servers[0].port}", "port: 1"))
    try:
        code, told = site.play("site", "--limit", site.servers[0].name)
    finally:
        (site.folder / "hosts.yml").write_text(rows)
    assert code == 4
    assert "UNREACHABLE" in told


def test_a_host_that_is_decommissioned_keeps_nothing_and_no_client_notices(site, door):
    """The last test: the site has one model server afterwards."""
    leaver, stayer = site["model_server"][1], site["model_server"][0]
    code, said = site.play("decommission", "--limit", leaver.name)
    assert code != 0
    assert f"say so with -e decommission={leaver.name}" in said
    assert call(leaver.address, port=8000) == "TimeoutError"  # the firewall is there as before

    with Traffic(partial(call, door), 4) as calls, Traffic(partial(stream, door, tokens=300), 4) as streams:
        wait_until(lambda: len(streams.answers) >= 4, "streams")
        code, said = site.play("decommission", "--limit", leaver.name, "-e", f"decommission={leaver.name}")
    print(f"classifications {dict(calls.counts())}, streams {dict(streams.counts())}")
    assert code == 0, said
    assert set(calls.counts()) | set(streams.counts()) == {"whole"}

    left = leaver.run(
        "sh", "-c", "find / -xdev -name '*qwen3*' -not -path '/proc/*' -not -path '/var/log/*' 2>/dev/null"
    )
    assert left == ""
    assert "qwen3" not in leaver.run("getent", "passwd")
    assert "qwen3" not in leaver.run("nft", "list", "ruleset")
    assert leaver.run("systemctl", "list-units", "--all", "--no-legend", "qwen3*") == ""

    rows = [row for row in site.rows if row["name"] != leaver.name]
    site.write_hosts(rows)
    code, said = site.play("site")
    assert code == 0, said
    assert call(door) == "whole"
    assert "category" in ask(stayer, stayer.address, 8000)
