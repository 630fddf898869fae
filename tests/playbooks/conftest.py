from __future__ import annotations

import ipaddress
import json
import secrets
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_fixture import TINY
from traffic import KEY

from model_server.cache import cache_dir

sys.path.insert(0, str(Path(__file__).parent))

from hosts import REPOSITORY, Site, host, network, ssh_key

ENVIRONMENT = TINY | {
    "model_source": "/opt/qwen3/models/complaints-tiny",
    "deployment_type": "server",
    # Streams last for seconds, and may last much longer than on a machine with nothing else to do.
    "resource_limits": {"cpu_cores": 0.25, "memory_gb": 0.75, "disk_gb": 1},
    "replicas": {"min": 2, "max": 2},
    "serving": {
        "metrics_port": 9000,
        "api_keys_file": "/etc/qwen3/api_keys",
        "request_timeout_s": 120,
        "drain_s": 125,
    },
}


@pytest.fixture(scope="session")
def wheelhouse():
    """The server's packages, as a site without the internet would bring them."""
    folder = cache_dir() / "wheelhouse"
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", REPOSITORY / "requirements/server.txt"]
    subprocess.run([*command, "-d", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory, wheelhouse):
    """Two model servers of two instances each behind a balancer, from bare servers, by site.yml alone."""
    folder = tmp_path_factory.mktemp("site")
    key = ssh_key(folder)
    (folder / "keys").write_text(f"tests:{KEY}\n")
    with ExitStack() as stack:
        name, addresses = stack.enter_context(network())
        tail = secrets.token_hex(2)
        servers = [
            stack.enter_context(host(f"{who}-{tail}", key, role, place=(name, next(addresses))))
            for who, role in (("web1", "model_server"), ("web2", "model_server"), ("door", "load_balancer"))
        ]
        site = Site(folder, servers, ENVIRONMENT, key)
        site.machine = str(ipaddress.ip_network(f"{servers[0].address}/24", strict=False)[1])
        site.words = (
            *("-e", f"model_server_api_keys_file={folder / 'keys'}", "-e", f"model_server_wheelhouse={wheelhouse}"),
            *("-e", f"model_server_model={REPOSITORY / 'models/complaints-tiny'}", "-e", "haproxy_listen=*"),
            *("-e", json.dumps({"firewall_more_monitors": [site.machine]})),
        )
        code, said = site.play("site", "--check")
        assert code == 0, said
        code, said = site.play("site")
        print(said, servers[0].run("journalctl", "--no-pager", "-n", "40", "-u", "qwen3@1"))
        assert code == 0
        yield site
