"""Bare servers for playbooks: containers with systemd as PID 1, reached over SSH."""

from __future__ import annotations

import ipaddress
import itertools
import os
import secrets
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import testinfra
import yaml
from traffic import wait_until

REPOSITORY = Path(__file__).parents[2]
IMAGE = "qwen3-stack/host:bookworm"
# SYS_PTRACE: who starts services has to see /proc of others behind ProtectProc, as root of a server does.
AS_A_SERVER = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE", "--stop-signal", "SIGRTMIN+3"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
)


def control_groups():
    """Those of this machine. Version 1 hierarchies one by one: systemd adds folders beside them and makes what holds
    them read-only, which must not be this machine's.
    """
    root = Path("/sys/fs/cgroup")
    mounted = [path for path in sorted(root.iterdir()) if path.is_mount()]
    if not mounted:
        return ["-v", f"{root}:{root}"]
    return ["--tmpfs", str(root), *(word for path in mounted for word in ("-v", f"{path}:{path}"))]


@dataclass
class Host:
    name: str
    port: int
    """Of SSH, on loopback."""
    address: str
    """Where other containers reach it."""
    roles: tuple[str, ...] = ("model_server",)

    def run(self, *words, check=True):
        """A command on it, as root, beside Ansible."""
        command = ["docker", "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=check).stdout

    def looked_at(self, key):
        """Through pytest-testinfra, over SSH."""
        words = "&ssh_extra_args=-o%20StrictHostKeyChecking=no%20-o%20UserKnownHostsFile=/dev/null"
        return testinfra.get_host(f"ssh://root@127.0.0.1:{self.port}?ssh_identity_file={key}{words}")

    def property(self, unit, name):
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def started(self):
        """Wait until systemd has done with what it starts at boot."""
        done = ("running", "degraded")
        wait_until(lambda: self.run("systemctl", "is-system-running", check=False).strip() in done, "systemd runs")
        wait_until(lambda: self.run("systemctl", "is-active", "ssh", check=False).strip() == "active", "sshd runs")

    def reboot(self):
        """As a container can: its systemd ends, and Docker starts it again."""
        self.run("systemctl", "reboot", check=False)
        subprocess.run(["docker", "wait", self.name], check=True, capture_output=True, timeout=120)
        subprocess.run(["docker", "start", self.name], check=True, capture_output=True)
        self.started()


@contextmanager
def network():
    """Addresses that stay when a host is rebooted: the network's name, and one address after the other."""
    name = f"qwen3-tests-{secrets.token_hex(3)}"
    for third in range(64):
        subnet = ipaddress.ip_network(f"172.31.{third}.0/24")
        made = subprocess.run(
            ["docker", "network", "create", "--subnet", str(subnet), name], check=False, capture_output=True, text=True
        )
        if made.returncode == 0:
            break
        assert "overlap" in made.stderr, made.stderr
    try:
        yield name, map(str, itertools.islice(subnet.hosts(), 9, None))
    finally:
        subprocess.run(["docker", "network", "rm", name], check=False, capture_output=True)


@contextmanager
def host(name, key, *roles, place=None):
    """A server that lets ``key`` in as root.

    Args:
        place: Name of a :func:`network` and an address in it; None: Docker's own, an address by chance.
    """
    subprocess.run([REPOSITORY / "tests/tools/host-image.sh", IMAGE], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # the same after a reboot
    words = [] if place is None else ["--network", place[0], "--ip", place[1]]
    command = ["docker", "run", "-d", "--name", name, "--hostname", name, *AS_A_SERVER, *control_groups(), *words]
    subprocess.run([*command, "-p", f"127.0.0.1:{port}:22", IMAGE], check=True, capture_output=True)
    try:
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = subprocess.check_output(["docker", "inspect", "-f", form, name], text=True).strip()
        server = Host(name, port, address, roles or Host.roles)
        server.started()
        # As systemd finds it on a server and leaves it in a container: LoadCredential mounts in a namespace of its own.
        shared = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/mount --make-rshared /\n"
        shared += "[Install]\nWantedBy=sysinit.target\n"
        server.run("sh", "-c", f"printf '{shared}' > /etc/systemd/system/shared-mounts.service")
        server.run("systemctl", "enable", "--now", "shared-mounts.service")
        server.run("mkdir", "-p", "-m", "700", "/root/.ssh")
        server.run("sh", "-c", f"echo '{key.with_suffix('.pub').read_text().strip()}' > /root/.ssh/authorized_keys")
        yield server
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=False, capture_output=True)


class Site:
    """Servers, an environment, and the playbooks run against them."""

    def __init__(self, folder, servers, environment, key):
        self.folder, self.servers, self.key = folder, servers, key
        self.words = ()
        """For every play."""
        self.machine = None
        """Address of this machine, where a monitor of the site could be."""
        self.rows = [
            {"name": each.name, "address": "127.0.0.1", "port": each.port, "internal_address": each.address}
            | {"roles": list(each.roles)}
            for each in servers
        ]
        self.write_hosts(self.rows)
        self.usual = environment
        self.write(environment)

    def __getitem__(self, role):
        """The servers of a role, in order."""
        return [each for each in self.servers if role in each.roles]

    @contextmanager
    def environment(self, **changes):
        """Plays within have an environment that differs."""
        self.write(self.usual | changes)
        try:
            yield
        finally:
            self.write(self.usual)

    def write(self, environment):
        (self.folder / "site.yml").write_text(yaml.safe_dump(environment))

    def write_hosts(self, rows):
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"hosts": rows}))

    def begin(self, name, *words):
        """A play in a group of processes of its own."""
        ansible = Path(sys.executable).with_name("ansible-playbook")
        variables = {
            **os.environ,
            "QWEN3_HOSTS": str(self.folder / "hosts.yml"),
            "QWEN3_ENVIRONMENT": str(self.folder / "site.yml"),
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.key),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [ansible, "-i", REPOSITORY / "playbooks/inventory", REPOSITORY / f"playbooks/{name}.yml"]
        return subprocess.Popen(
            [*command, *self.words, *words],
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def play(self, name, *words):
        """Exit code and what was said."""
        running = self.begin(name, *words)
        said, _ = running.communicate()
        return running.returncode, said


def changed(said):
    """Tasks that changed something, over all hosts."""
    recap = said.rsplit("PLAY RECAP", 1)[1]
    return sum(int(word.removeprefix("changed=")) for word in recap.split() if word.startswith("changed="))


def ssh_key(folder):
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path
