"""The gate between an instance on a bare server and its traffic; ``playbooks/rollout.yml`` asks it.

    python -m infra.server_gate SCENARIO a=ADDRESS:PORT b=ADDRESS:PORT out=DIR [first=true] [keys=FILE] [ssh=JSON]

``b`` is the new instance, ``a`` one that still runs the old version. Both are reached through one SSH connection to a
balancer, where requests come from in service too: nothing is opened for a measurement, and both answers travel the same
way. ``ssh`` has host, port, user, and where needed key and options; without it the addresses are reached from here.

Exit code 0: go on; otherwise the gate's own (benchmarks/gate.py).
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra import gate
from model_server.errors import ConfigurationError

PROJECT = Path(__file__).resolve().parents[1]
WORDS = ("a", "b", "out", "first", "keys", "ssh")
CONNECT_S = 30


@contextmanager
def reached(ssh: Mapping[str, Any] | None, places: Sequence[str]) -> Iterator[list[str]]:
    """URLs at which ``places`` (address:port) are reached meanwhile.

    Raises:
        ConfigurationError: The balancer's sshd does not let us through.
    """
    if ssh is None:
        yield [f"http://{place}" for place in places]
        return
    ports = _free_ports(len(places))
    # A connection of our own: one that Ansible keeps would keep the forwarding after us.
    command = ["ssh", "-N", "-o", "ControlPath=none", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
    command += ["-o", "Compression=no", "-o", "ServerAliveInterval=5", "-o", f"ConnectTimeout={CONNECT_S}"]
    for port, place in zip(ports, places, strict=True):
        command += ["-L", f"127.0.0.1:{port}:{place}"]
    command += ["-i", ssh["key"]] if ssh.get("key") else []
    command += [*shlex.split(ssh.get("options") or ""), "-p", str(ssh["port"]), f"{ssh['user']}@{ssh['host']}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tunnel:
        try:
            _wait(tunnel, ports)
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            tunnel.terminate()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(tunnel: subprocess.Popen[str], ports: Sequence[int]) -> None:
    """Until ssh listens: it does once it is let in."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            for port in ports:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if tunnel.poll() is not None or time.monotonic() > deadline:
                tunnel.terminate()
                assert tunnel.stderr is not None  # a pipe, as above
                said = tunnel.stderr.read().strip().splitlines()
                raise ConfigurationError(
                    f"the gate reaches the instances by SSH through the balancer, which failed: "
                    f"{said[-1] if said else f'no connection within {CONNECT_S} s'}"
                ) from None
            time.sleep(0.1)
        else:
            return


def main(words: Sequence[str]) -> int:
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if not words or {"-h", "--help"} & set(words) or not {"a", "b", "out"} <= set(given) <= set(WORDS):
        print(__doc__, file=sys.stderr)
        return gate.USAGE
    key = gate.first_key(Path(given["keys"]).read_text(encoding="utf-8")) if given.get("keys") else None
    out = Path(given["out"])
    ssh = json.loads(given["ssh"]) if given.get("ssh") else None
    said: list[int] = []

    def asked() -> int:
        folder = out if not said else out.with_name(f"{out.name}-{len(said) + 1}")
        with reached(ssh, (given["a"], given["b"])) as (a, b):
            said.append(gate.ask(Path(words[0]), a, b, folder, key=key, cwd=PROJECT))
        return said[-1]

    try:
        code = gate.judge(asked, first=given.get("first") == "true")
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return gate.USAGE
    verdicts = [gate.WORDS.get(each, f"could not run (exit code {each})") for each in said]
    print(json.dumps({"verdicts": verdicts, "goes_on": code == gate.PASS, "results": str(out)}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
