"""The image of the model server, built and run for real; infra/image/README.md states what these tests hold it to."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import http.client
import json
import re
import shutil
import subprocess
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from infra.image import health
from model_server.cache import environment_python

REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "infra" / "image"
SITE = re.compile(r"opt/qwen3/venv/lib/python3\.\d+/site-packages/(?P<package>[^/]+)")
ENVIRONMENT = """\
model_name: complaints-tiny
model_version: "1"
model_source: models/complaints-tiny
deployment_type: kubernetes
engine: openvino
resource_limits: {cpu_cores: 1, memory_gb: 1, disk_gb: 1}
optimization_settings:
  {enable_quantization: true, quantization_bits: 8, max_batch_size: 8, max_sequence_length: 1024}
serving: {host: 0.0.0.0, api_keys_file: /run/secrets/api_keys}
"""
LOCKED_DOWN = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65532"),
    *("--tmpfs", "/tmp", "--memory", "1g", "--memory-swap", "1g", "--cpus", "1"),
)
KEY = "a-key-of-a-test"

docker_tier = pytest.mark.docker
policy_tier = pytest.mark.policy


def docker(*words, check=True, **options):
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout if check else done


class Running:
    """One container of the image; ``url`` on this machine."""

    def __init__(self, image, folder, *words):
        (folder / "environment.yml").write_text(ENVIRONMENT)
        (folder / "api_keys").write_text(KEY)
        folder.chmod(0o755)
        mounts = [
            *("-v", f"{folder / 'environment.yml'}:/etc/qwen3/environment.yml:ro"),
            *("-v", f"{folder / 'api_keys'}:/run/secrets/api_keys:ro"),
        ]
        self.started = time.monotonic()
        self.name = docker("run", "-d", "-p", "127.0.0.1::8000", *LOCKED_DOWN, *mounts, image, *words).strip()
        port = docker("port", self.name, "8000").split()[0].rpartition(":")[2]
        self.url = f"http://127.0.0.1:{port}"

    def state(self):
        return json.loads(docker("inspect", "-f", "{{json .State}}", self.name))

    def wait(self, done, what, limit_s=120.0):
        while not done():
            state = self.state()
            assert state["Running"], f"ended with {state['ExitCode']} before {what}: {docker('logs', self.name)}"
            assert time.monotonic() - self.started < limit_s, f"no {what}: {state} {docker('logs', self.name)}"
            time.sleep(0.05)

    def answers(self, path):
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            return False

    def classify(self, text):
        request = urllib.request.Request(
            f"{self.url}/api/v1/classify",
            data=json.dumps({"text": text}).encode(),
            headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def run(server_image, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*words):
            container = Running(server_image, tmp_path, *words)
            stack.callback(docker, "rm", "-f", container.name)
            return container

        yield start


@pytest.fixture(scope="session")
def files(server_image, tmp_path_factory):
    """Every file of the image, unpacked: (folder, tar entries)."""
    root = tmp_path_factory.mktemp("image")
    container = docker("create", server_image).strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            with tarfile.open(fileobj=export.stdout, mode="r|") as tar:
                entries = []
                for entry in tar:
                    entries.append(entry)
                    if entry.isfile():
                        tar.extract(entry, root, filter="data")
            export.stdout.read()  # the padding after the archive's end
        assert export.returncode == 0
        yield root, entries
    finally:
        docker("rm", container)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def tools():
    """Folder of the scanners' commands."""
    return environment_python("policy").parent


@docker_tier
def test_it_answers_with_nothing_but_tmp_to_write_to(run, capsys):
    """Read-only, without capabilities, as 65532, within 1 GiB and 1 core, from the model that the image carries."""
    server = run()
    server.wait(lambda: server.answers("/ready"), "/ready")
    ready_s = time.monotonic() - server.started

    calls = [json.loads(line) for line in (REPOSITORY / "data/calls.jsonl").read_text("utf-8").splitlines()[:40]]
    answers = [server.classify(call["input_text"])["category"] for call in calls]
    right = sum(answer == call["complaint_category"] for answer, call in zip(answers, calls, strict=True))
    assert right >= 30, f"{right} of 40 labelled calls; 12 categories, so that chance would be 3"

    status = docker("exec", server.name, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+65532\s+65532\s+65532\s+65532$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert docker("exec", server.name, "ls", "-A", "/tmp") == "", "written while starting"
    assert docker("exec", server.name, "touch", "/opt/qwen3/x", check=False).returncode != 0
    size = int(
        docker("image", "inspect", "-f", "{{.Size}}", docker("inspect", "-f", "{{.Image}}", server.name).strip())
    )
    with capsys.disabled():
        print(f"\nimage: {size / 1e6:.0f} MB; docker run to /ready with 1 core: {ready_s:.2f} s")


@docker_tier
def test_it_becomes_healthy_where_its_settings_say_and_ends_on_sigterm(run):
    """The check follows a port given on the command line; ``docker stop`` sends SIGTERM and gets exit code 0."""
    server = run("/etc/qwen3/environment.yml", "serving.port=8123")
    server.wait(lambda: server.state()["Health"]["Status"] == "healthy", "health")
    assert not server.answers("/health"), "it does not listen on 8000"
    docker("stop", "-t", "60", server.name)
    assert server.state()["ExitCode"] == 0


@docker_tier
def test_the_health_check_fails_with_a_reason_where_nothing_answers(run):
    server = run()
    server.wait(lambda: server.answers("/health"), "/health")
    check = ("python", "/opt/qwen3/app/health.py")
    assert docker("exec", server.name, *check) == ""
    refused = docker("exec", "-e", "MODEL_SERVER_SERVING__PORT=1", server.name, *check, check=False)
    assert refused.returncode == 1
    assert re.fullmatch(r"unhealthy: .*refused.*\n", refused.stderr)


@docker_tier
def test_settings_that_cannot_be_served_end_it_with_one_line(server_image):
    """Without a mounted environment: exit code 2 and the path that is missing, no traceback."""
    done = docker("run", "--rm", *LOCKED_DOWN, server_image, check=False)
    assert done.returncode == 2
    assert "/etc/qwen3/environment.yml" in done.stderr
    assert "Traceback" not in done.stderr


@docker_tier
def test_the_image_says_what_it_is(server_image):
    settings = json.loads(docker("image", "inspect", "-f", "{{json .Config}}", server_image))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert settings["User"] == "65532:65532"
    assert settings["Entrypoint"] == ["python", "-m", "model_server"]
    assert settings["Cmd"] == ["/etc/qwen3/environment.yml"]
    assert settings["StopSignal"] == "SIGTERM"
    assert settings["Healthcheck"]["Test"][0] == "CMD"
    assert settings["Labels"]["org.opencontainers.image.version"] == project["version"]
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", settings["Labels"]["org.opencontainers.image.revision"])


@docker_tier
def test_no_file_raises_privileges_or_can_be_changed(files):
    _, entries = files
    paths = {entry.name: entry for entry in entries}
    assert "opt/qwen3/models/complaints-tiny/openvino_model.bin" in paths, "the listing is the image's"
    kept = [entry for entry in entries if not entry.issym() and not entry.name.rstrip("/").endswith(("/.", "tmp"))]
    assert [entry.name for entry in kept if entry.mode & 0o6000] == []
    assert [entry.name for entry in kept if entry.mode & 0o002 and not entry.name.startswith("dev/")] == []
    assert [entry.name for entry in entries if 65532 in (entry.uid, entry.gid)] == []


@docker_tier
def test_nothing_is_in_it_that_only_building_needs(files):
    """No compiler, no torch, no pip for the server, no caches; no package that reports to others."""
    _, entries = files
    names = [entry.name.rstrip("/") for entry in entries]
    commands = {name.rpartition("/")[2] for name in names if "/bin/" in f"/{name}"}
    assert "python3" in commands
    assert commands & {"cc", "gcc", "g++", "clang", "ld", "make", "go", "rustc", "pip", "git", "curl"} == set()
    packages = {match["package"] for name in names if (match := SITE.match(name))}
    assert {"openvino", "fastapi", "uvloop"} <= packages
    assert packages & {"torch", "transformers", "pip", "setuptools", "openvino_telemetry", "locust", "pulumi"} == set()
    caches = re.compile(
        r"(^|/)(\.cache|pip-[\w-]+-cache)(/|$)|^var/(cache/apt/archives|lib/apt/lists)/.*\w\.?(deb|Packages)$"
    )
    assert [name for name in names if caches.search(name)] == []
    assert [
        name for name in names if name.startswith(("root/", "home/")) and not name.endswith((".bashrc", ".profile"))
    ] == []


KEY_FILES = re.compile(
    r"(^|/)(id_(rsa|dsa|ecdsa|ed25519)|\.netrc|_netrc|\.pypirc|\.npmrc|\.pgpass|\.git-credentials|\.htpasswd|\.env"
    r"|\.docker/config\.json|\.aws/credentials|\.kube/config|kubeconfig|api_keys|shadow-?|gshadow-?)$"
    r"|\.(key|p12|pfx|jks|keystore|kdbx|ppk|ovpn)$"
)


@docker_tier
def test_no_file_is_called_as_those_with_secrets_are(files):
    """Nor is one's first line that of a private key. Debian's shadow files hold no password."""
    root, entries = files
    called = {entry.name for entry in entries if not entry.isdir() and KEY_FILES.search(entry.name)}
    assert "etc/shadow" in called, "the listing is the image's"
    assert called <= {"etc/shadow", "etc/gshadow"}
    passwords = [line.split(":")[1] for line in (root / "etc/shadow").read_text().splitlines()]
    assert set(passwords) <= {"*", "!", "!*"}
    private = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----$", re.MULTILINE)
    small = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size < 1 << 16]
    assert len(small) > 5000
    assert [str(path.relative_to(root)) for path in small if private.search(path.read_bytes())] == []


@docker_tier
def test_no_module_is_compiled_at_the_start(server_image):
    """It would cost seconds at each start of a read-only container. Python tells where the code of a module is from."""
    imports = "import model_server.app, model_server.engines.openvino_child, model_server.__main__"
    said = docker("run", "--rm", "--entrypoint", "python", server_image, "-v", "-c", imports, check=False)
    assert said.returncode == 0
    origins = re.findall(r"^# code object from '?(.+?)'?$", said.stderr, re.MULTILINE)
    assert len(origins) > 300
    assert [origin for origin in origins if not origin.endswith(".pyc")] == []


@docker_tier
def test_every_file_of_a_package_is_as_in_its_wheel(files):
    """Wheels are pinned by hash, so nothing of the building machine can be in what equals their own records."""
    root, _ = files
    (site,) = (root / "opt/qwen3/venv/lib").glob("python3*/site-packages")
    recorded = {}
    for record in site.glob("*.dist-info/RECORD"):
        recorded |= {row[0]: row[1] for row in csv.reader(record.read_text().splitlines())}
    added = {"RECORD", "INSTALLER", "REQUESTED"}  # by pip: no hash of theirs is recorded, or only by itself
    altered = []
    for path in site.rglob("*"):
        if path.is_dir() or path.suffix == ".pyc" or path.name in added:
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        if recorded.get(str(path.relative_to(site))) != f"sha256={digest}":
            altered.append(str(path.relative_to(site)))
    assert len(recorded) > 2000
    assert altered == []


@docker_tier
@policy_tier
def test_no_secret_and_nothing_of_the_machine_that_built_it(server_image, files, tools, tmp_path):
    """
    detect-secrets finds a planted key, and nothing in what the project and its settings put into the image; in
    system files, whose random-looking constants are theirs, it looks for keys of known forms.
    """
    root, _ = files
    guesses = ("HexHighEntropyString", "Base64HighEntropyString", "KeywordDetector", "BasicAuthDetector")

    def found(folder, *ignored):
        disabled = [word for name in ignored for word in ("--disable-plugin", name)]
        skipped = ["--exclude-files", r"\.(pyc|so[.\d]*)$"]  # what compilers wrote of the sources beside them
        skipped += ["--exclude-lines", "TOKENIZERS_PARALLELISM"]  # says whether, not what
        command = [tools / "detect-secrets", "-C", folder, "scan", "--all-files", *skipped, *disabled, "."]
        report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return {(name, one["type"], one["line_number"]) for name, hits in report["results"].items() for one in hits}

    (tmp_path / "planted.txt").write_text("aws_key = 'AKIA" + "QWERTYUIOPASDFGH'\n")
    assert {kind for _, kind, _ in found(tmp_path, *guesses)} == {"AWS Access Key"}

    (root / "image.json").write_text(
        docker("image", "inspect", "-f", "{{json .Config}}", server_image)
        + docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", server_image)
    )
    # Digests of model files are what a manifest is for; the words of a vocabulary look like anything.
    assert found(root / "opt" / "qwen3" / "app") == set()
    assert found(root / "opt" / "qwen3" / "models", *guesses) == set()
    assert found(root / "etc", *guesses) == set()
    (tmp_path / "planted.txt").write_text((root / "image.json").read_text())
    assert found(tmp_path, *guesses) == set()
    assert found(root / "opt" / "qwen3" / "venv" / "bin") == set()

    said = (root / "image.json").read_text()
    assert not re.search(r"\bPIP_|_PROXY|index-url|PASSWORD|TOKEN=", said, re.IGNORECASE)
    assert not (root / "etc" / "pip.conf").exists()


@docker_tier
@policy_tier
def test_it_lists_its_components(server_image, tools, tmp_path):
    """The CycloneDX list is valid, the same each time, and has exactly the packages that are installed."""
    script = (IMAGE / "sbom.py").read_text()
    command = ["run", "--rm", "-i", "--network", "none", "--entrypoint", "python", server_image]
    written = docker(*command, "-", "0.1.0", input=script)
    assert written == docker(*command, "-", "0.1.0", input=script)
    (tmp_path / "sbom.cdx.json").write_text(written)
    check = (
        "import sys\nfrom cyclonedx.schema import SchemaVersion\n"
        "from cyclonedx.validation.json import JsonStrictValidator\n"
        "sys.exit(str(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()) or '') or 0)"
    )
    subprocess.run([tools / "python", "-c", check, tmp_path / "sbom.cdx.json"], check=True)

    components = json.loads(written)["components"]
    purls = {component["purl"].partition("?")[0] for component in components if "purl" in component}
    listing = docker("run", "--rm", "--entrypoint", "dpkg-query", server_image, "-f", "${Package}\n", "-W").split()
    assert {purl.split("/")[2].partition("@")[0] for purl in purls if purl.startswith("pkg:deb/")} == {
        name.replace("+", "%2B") for name in listing
    }
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / "requirements/server.txt").read_text(), re.MULTILINE)
    wanted = {f"pkg:pypi/{name}@{version}" for name, version in pinned}
    listed = {purl for purl in purls if purl.startswith("pkg:pypi/")}
    assert listed <= wanted, "something else is installed than what is pinned"
    assert {"fastapi", "openvino-genai", "pydantic"} <= {purl[9:].partition("@")[0] for purl in listed}
    assert "complaints-tiny" in {component["name"] for component in components}


@policy_tier
def test_hadolint_has_nothing_to_say(tools, tmp_path):
    """No rule is switched off for the Dockerfile; a careless one is noticed."""
    done = subprocess.run([tools / "hadolint", IMAGE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in (IMAGE / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install fastapi\n")
    careless = subprocess.run(
        [tools / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", careless.stdout))


@docker_tier
def test_a_build_without_a_base_image_says_what_is_missing():
    build = ["build", "-f", "infra/image/Dockerfile", "."]
    done = docker(*build, check=False, cwd=REPOSITORY)
    assert done.returncode != 0
    assert "BASE_IMAGE=NAME@sha256:DIGEST" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::", "[::1]")],
)
def test_the_health_check_asks_where_the_server_listens(tmp_path, monkeypatch, host, asked):
    """File < variable < word, as the server; every address means the nearest."""
    (tmp_path / "environment.yml").write_text(ENVIRONMENT)
    words = (str(tmp_path / "environment.yml"), f"serving.host='{host}'")
    assert health.url(*words) == f"http://{asked}:8000/health"
    monkeypatch.setenv("MODEL_SERVER_SERVING__PORT", "8001")
    assert health.url(*words) == f"http://{asked}:8001/health"
    assert health.url(*words, "serving.port=8002") == f"http://{asked}:8002/health"


def test_the_health_check_finds_the_server_beside_an_init(tmp_path):
    processes = {
        "1": ["/sbin/docker-init", "--", "python", "-m", "model_server", "a.yml"],
        "10": ["python", "-m", "model_server.engines.openvino_child", "5"],
        "9": ["python", "-m", "model_server", "b.yml", "serving.port=1"],
    }
    for pid, argv in processes.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text("".join(f"{word}\0" for word in argv))
    assert health.words(tmp_path) == ["b.yml", "serving.port=1"]
    shutil.rmtree(tmp_path / "9")
    with pytest.raises(LookupError, match="no process runs"):
        health.words(tmp_path)
