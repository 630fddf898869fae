"""Bare servers for playbooks: containers with systemd as PID 1, reached over SSH."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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

    def property(self, unit, name):
        return self.run("systemctl", "show", "-P", name, unit).strip()


@contextmanager
def host(name, key, *roles):
    """A server that lets ``key`` in as root."""
    subprocess.run([REPOSITORY / "tests/tools/host-image.sh", IMAGE], check=True, capture_output=True)
    subprocess.run(
        [
            "docker",
            "run",
            "-d",
            "--name",
            name,
            "--hostname",
            name,
            *AS_A_SERVER,
            *control_groups(),
            "-p",
            "127.0.0.1::22",
            IMAGE,
        ],
        check=True,
        capture_output=True,
    )
    try:
        port = int(subprocess.check_output(["docker", "port", name, "22"], text=True).rsplit(":", 1)[1])
        form = "{{.NetworkSettings.IPAddress}}"
        address = subprocess.check_output(["docker", "inspect", "-f", form, name], text=True).strip()
        server = Host(name, port, address, roles or Host.roles)
        wait_until(lambda: "running" in server.run("systemctl", "is-system-running", check=False), "systemd runs")
        # As systemd finds it on a server and leaves it in a container: LoadCredential mounts in a namespace of its own.
        server.run("mount", "--make-rshared", "/")
        server.run("mkdir", "-p", "-m", "700", "/root/.ssh")
        server.run("sh", "-c", f"echo '{key.with_suffix('.pub').read_text().strip()}' > /root/.ssh/authorized_keys")
        wait_until(lambda: server.run("systemctl", "is-active", "ssh", check=False).strip() == "active", "sshd runs")
        yield server
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=False, capture_output=True)


class Site:
    """Servers, an environment, and the playbooks run against them."""

    def __init__(self, folder, servers, environment, key):
        self.folder, self.servers, self.key = folder, servers, key
        self.words = ()
        """For every play."""
        rows = [
            {"name": each.name, "address": "127.0.0.1", "port": each.port, "internal_address": each.address}
            | {"roles": list(each.roles)}
            for each in servers
        ]
        (folder / "hosts.yml").write_text(yaml.safe_dump({"hosts": rows}))
        self.write(environment)

    def write(self, environment):
        self.environment = environment
        (self.folder / "site.yml").write_text(yaml.safe_dump(environment))

    def play(self, name, *words):
        """Exit code and what was said."""
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
        command += [*self.words, *words]
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


def changed(said):
    """Tasks that changed something, over all hosts."""
    recap = said.rsplit("PLAY RECAP", 1)[1]
    return sum(int(word.removeprefix("changed=")) for word in recap.split() if word.startswith("changed="))


def ssh_key(folder):
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path
