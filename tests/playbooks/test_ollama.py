"""``playbooks/ollama.yml`` on a bare server: a real Ollama, and a small Qwen3 that becomes its model."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts import REPOSITORY, Site, changed, host, ssh_key
from traffic import wait_until

from model_server.cache import cache_dir
from model_server.engine import Message, Sampling
from model_server.engines.ollama import OllamaEngine

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.ollama, pytest.mark.timeout(900)]

PORT = 11434
ENVIRONMENT = {
    "model_name": "tiny",
    "model_version": "1",
    "model_source": "tiny:f32",
    "deployment_type": "server",
    "engine": "ollama",
    "resource_limits": {"cpu_cores": 1, "memory_gb": 1, "disk_gb": 1},
    "optimization_settings": {
        "enable_quantization": False,
        "quantization_bits": 16,
        "max_batch_size": 2,
        "max_sequence_length": 512,
    },
    "serving": {
        "engine_url": f"http://127.0.0.1:{PORT}",
        "max_queue": 5,
        "request_timeout_s": 30,
        "drain_s": 36,
    },
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_qwen3(folder, seed):
    """A GGUF file with weights of their own."""
    make = f"import sys; sys.path.insert(0, '{REPOSITORY / 'tests/tools'}'); import pathlib, tiny_qwen3; "
    make += f"tiny_qwen3.write(pathlib.Path('{folder}/{seed}'), seed={seed})"
    subprocess.run([sys.executable, "-c", make], check=True)
    command = [sys.executable, "-m", "training.gguf_model", folder / str(seed), folder / f"{seed}.gguf", "f32"]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return folder / f"{seed}.gguf"


@pytest.fixture(scope="module")
def binary():
    found = shutil.which("ollama") or shutil.which("ollama", path=cache_dir() / "bin")
    return Path(found).resolve()


@pytest.fixture(scope="module")
def site(tmp_path_factory, binary):
    folder = tmp_path_factory.mktemp("ollama")
    archive = folder / "ollama-linux-amd64.tgz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(binary, "bin/ollama")
    gguf = small_qwen3(folder, 0)
    key = ssh_key(folder)
    with host(f"qwen3-ollama-{secrets.token_hex(3)}", key) as server:
        site = Site(folder, [server], ENVIRONMENT, key)
        site.gguf, site.archive = gguf, archive
        site.words = words(ollama_archive=archive, ollama_sha256=sha256(archive), ollama_gguf=gguf)
        code, said = site.play("ollama", "--check", "--diff")
        assert code == 0, said
        code, said = site.play("ollama")
        print(said, server.run("journalctl", "--no-pager", "-n", "40", "-u", "ollama"))
        assert code == 0
        yield site


@pytest.fixture
def server(site):
    return site.servers[0]


def words(**variables):
    return tuple(word for name, value in variables.items() for word in ("-e", f"{name}={value}"))


def generate(server, prompt="the", tokens=8):
    body = {"model": "tiny:f32", "prompt": prompt, "raw": True, "stream": False}
    body["options"] = {"num_predict": tokens, "temperature": 0, "num_ctx": 512}
    said = server.run("curl", "-sS", "-d", json.dumps(body), f"http://127.0.0.1:{PORT}/api/generate")
    return json.loads(said)


def answers(server):
    return server.run("curl", "-s", f"http://127.0.0.1:{PORT}/api/version", check=False) != ""


def runner(server):
    """PID and command line of the process that computes."""
    found = server.run("pgrep", "-a", "-f", "ollama runner", check=False).strip()
    return found.split(maxsplit=1)


def test_a_bare_server_generates_and_a_second_run_changes_nothing(site, server):
    answer = generate(server)
    assert answer["done"], answer
    assert answer["eval_count"] == 8
    assert len(answer["response"]) >= 8

    code, said = site.play("ollama")
    assert (code, changed(said)) == (0, 0), said
    code, said = site.play("ollama", "--check", "--diff")
    assert (code, changed(said)) == (0, 0), said


def test_the_model_is_the_file_that_was_given_and_no_copy_stays_behind(site, server):
    digest = sha256(site.gguf)
    blob = f"/var/lib/ollama/models/blobs/sha256-{digest}"
    assert server.run("sha256sum", blob).split()[0] == digest
    assert server.run("find", "/opt", "/var/lib/ollama", "/tmp", "/root/.ansible", "-name", "*.gguf", check=False) == ""
    assert server.run("stat", "-c", "%U %a", "/var/lib/ollama/models").strip() == "ollama 750"


def test_slots_context_queue_limits_and_waiting_times_are_the_environments(server):
    generate(server)
    pid = server.property("ollama", "MainPID")
    environ = set(server.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines())
    assert {"OLLAMA_MAX_QUEUE=7", "OLLAMA_KEEP_ALIVE=-1", "OLLAMA_CONTEXT_LENGTH=512"} <= environ
    _, command = runner(server)
    assert "--parallel 2" in command
    assert "--ctx-size 1024" in command, "512 tokens for each of two slots"
    assert "--threads 1" in command, "one core is what the quota gives, whatever the machine has"
    assert server.property("ollama", "CPUQuotaPerSecUSec") == "1s"
    assert server.property("ollama", "MemoryMax") == str(2**30)
    assert server.property("ollama", "TimeoutStopUSec") == "46s"
    print("memory with a small model:", server.property("ollama", "MemoryCurrent"))


def test_a_request_that_names_no_context_gets_the_environments_and_the_model_stays(server):
    body = {"model": "tiny:f32", "prompt": "the", "stream": False, "options": {"num_predict": 1}}
    server.run("curl", "-sSf", "-d", json.dumps(body), f"http://127.0.0.1:{PORT}/api/generate")
    [model] = json.loads(server.run("curl", "-sSf", f"http://127.0.0.1:{PORT}/api/ps"))["models"]
    assert model["context_length"] == 512
    assert model["expires_at"] > "2100", "a model that is never unloaded ends in a far year"


def test_ollama_is_started_again_after_it_was_killed_and_after_its_runner_was(server):
    expected = generate(server)["response"]
    restarts = int(server.property("ollama", "NRestarts"))
    main, (child, _) = server.property("ollama", "MainPID"), runner(server)

    server.run("kill", "-9", main)
    wait_until(lambda: server.property("ollama", "MainPID") not in ("0", main) and answers(server), "it is back")
    assert int(server.property("ollama", "NRestarts")) == restarts + 1
    assert server.run("sh", "-c", f"ls -d /proc/{child}", check=False) == "", "its runner did not outlive it"
    assert generate(server)["response"] == expected

    server.run("kill", "-9", runner(server)[0])
    wait_until(lambda: generate(server).get("response") == expected, "Ollama replaces the runner")
    assert int(server.property("ollama", "NRestarts")) == restarts + 1


def test_it_comes_back_after_a_reboot(server):
    server.reboot()
    wait_until(lambda: answers(server), "Ollama answers")
    assert generate(server)["done"]


def test_nobody_else_reaches_it(server):
    listening = server.run("ss", "-Hltn").splitlines()
    assert [line.split()[3] for line in listening if f":{PORT}" in line] == [f"127.0.0.1:{PORT}"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.address, PORT), timeout=5)


def test_the_unit_is_shut_in(server):
    said = server.run("systemd-analyze", "security", "--no-pager", "ollama.service")
    print(said.splitlines()[-1])
    exposure = float(said.rsplit("exposure level for", 1)[1].split(":")[1].split()[0])
    assert exposure <= 1.5
    assert server.run("ps", "-o", "user=", "-p", server.property("ollama", "MainPID")).strip() == "ollama"


@contextmanager
def forwarded(site):
    """URL of the server's Ollama here, over SSH."""
    [server] = site.servers
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes")
    where = ("-L", f"127.0.0.1:{port}:127.0.0.1:{PORT}", "-p", str(server.port), "root@127.0.0.1")
    tunnel = subprocess.Popen(["ssh", "-q", "-N", "-i", site.key, *options, *where])

    def open_():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(open_, "the tunnel is there")
        yield f"http://127.0.0.1:{port}"
    finally:
        tunnel.terminate()
        tunnel.wait()


async def test_the_model_servers_engine_gets_its_own_chat_template_from_it(site):
    async def said(engine):
        await engine.load()
        prompt = engine.prompt([Message("user", "the 你好")])
        chunks = [chunk async for chunk in engine.generate(prompt, Sampling(max_tokens=12))]
        await engine.close()
        return "".join(chunk.text for chunk in chunks), chunks[-1].prompt_tokens

    with forwarded(site) as url:
        common = {"model": "tiny", "source": "tiny:f32", "url": url, "context_tokens": 512, "slots": 2}
        theirs = await said(OllamaEngine(**common))
        ours = await said(OllamaEngine(**common, raw_chat=True))
    assert theirs == ours
    assert theirs[0]


def test_another_file_replaces_the_model_and_another_program_ollama(site, server, binary, tmp_path):
    before, main = generate(server)["response"], server.property("ollama", "MainPID")
    other = small_qwen3(tmp_path, 1)

    code, said = site.play("ollama", *words(ollama_gguf=other))
    assert code == 0, said
    assert generate(server)["response"] != before
    assert server.property("ollama", "MainPID") == main, "a model needs no restart"
    assert changed(site.play("ollama", *words(ollama_gguf=other))[1]) == 0

    code, said = site.play("ollama", *words(ollama_archive=binary, ollama_sha256=sha256(binary)))
    assert code == 0, said
    assert generate(server)["response"] == before, "and the first model is back"
    assert server.property("ollama", "MainPID") != main
    versions = server.run("ls", "/opt/ollama/versions").split()
    assert set(versions) == {sha256(binary)[:12], sha256(site.archive)[:12]}
    assert server.run("readlink", "/opt/ollama/current").strip().endswith(sha256(binary)[:12])
    code, said = site.play("ollama")
    assert code == 0, said


def test_what_is_on_the_host_already_is_used(site, server):
    server.run("cp", "/opt/ollama/current/bin/ollama", "/usr/local/bin/ollama")
    there = words(ollama_archive="", ollama_sha256="", ollama_gguf="")
    try:
        code, said = site.play("ollama", *there)
        assert code == 0, said
        assert server.run("readlink", f"/proc/{server.property('ollama', 'MainPID')}/exe").strip() == (
            "/usr/local/bin/ollama"
        )
        assert generate(server)["done"]
        assert changed(site.play("ollama", *there)[1]) == 0
    finally:
        code, said = site.play("ollama")
        server.run("rm", "/usr/local/bin/ollama")
    assert code == 0, said


def state(server):
    return server.run("sh", "-c", "find /etc /opt /usr/local /var/lib/ollama -printf '%p %T@ %m\\n' | sort | sha256sum")


LIMITS = ENVIRONMENT["resource_limits"]


@pytest.mark.parametrize(
    ("changes", "variables", "said"),
    [
        ({}, {"ollama_sha256": "0" * 64}, "get the file again, or give the checksum that its publisher names"),
        ({}, {"ollama_sha256": ""}, "and ollama_sha256 is empty"),
        ({}, {"ollama_archive": "ollama.tgz"}, "ollama.tgz: give the whole path of a file"),
        ({}, {"ollama_gguf": "/nowhere.gguf"}, "/nowhere.gguf: give the whole path of a file"),
        ({}, {"ollama_archive": ""}, "has no program /usr/local/bin/ollama: give Ollama's archive"),
        ({"model_source": "absent"}, {"ollama_gguf": ""}, "has no model absent:latest in /var/lib/ollama/models"),
        ({"model_source": "/opt/tiny.gguf"}, {}, "model_source is /opt/tiny.gguf: with engine ollama it is the name"),
        ({"engine": "openvino"}, {}, "the environment's engine is openvino: set it to ollama"),
        ({"serving": {"engine_url": "http://10.0.0.1:11434"}}, {}, "it listens on loopback alone"),
        ({"serving": {"engine_url": "http://127.0.0.1:80"}}, {}, "with a port above 1023"),
        ({"resource_limits": LIMITS | {"gpu_count": 1}}, {}, "resource_limits.gpu_count is 1"),
        ({"resource_limits": LIMITS | {"memory_gb": 4096}}, {}, "and Ollama may use 4194304 MiB"),
    ],
)
def test_what_cannot_work_stops_before_the_host_is_changed(site, server, changes, variables, said):
    before = state(server)

    with site.environment(**changes):
        code, told = site.play("ollama", *words(**variables))

    assert code != 0
    assert said in " ".join(told.split())
    assert state(server) == before


def test_a_file_that_the_memory_or_the_disk_does_not_hold_is_refused_with_the_numbers(site, server, tmp_path):
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(950 * 2**20)
    before = state(server)
    code, told = site.play("ollama", *words(ollama_gguf=large))
    assert code != 0
    assert "needs 1078 MiB of memory before the first token" in " ".join(told.split())
    assert "gives Ollama 1024 MiB" in " ".join(told.split())

    server.run("mkdir", "/srv/small")
    server.run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/srv/small")
    with large.open("wb") as file:
        file.truncate(40 * 2**20)
    code, told = site.play("ollama", *words(ollama_gguf=large, ollama_models="/srv/small/models"))
    assert code != 0
    assert "has 64 MiB free for /srv/small/models, and 80 MiB are needed" in " ".join(told.split())
    assert state(server) == before
