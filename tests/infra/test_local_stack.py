"""The stack of a laptop: its arguments with Pulumi's mocks, and the same arguments on a real Docker Engine."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import secrets
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pulumi
import pulumi_docker as docker_args
import pytest
import yaml

from infra import local_containers as containers
from infra.local_containers import GRAFANA, LOOPBACK, PROMETHEUS, LocalSettings, read_settings
from infra.local_stack import LocalStack, LocalStackArgs, state_folder, write
from infra.manifests import NAME
from model_server import deployment
from model_server.deployment import memory_limit_bytes, timings
from model_server.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
IMAGE = f"sha256:{'a' * 64}"
ALL = LocalSettings(prometheus_image=f"prom/prometheus@sha256:{'b' * 64}", grafana_image=f"g/g@sha256:{'c' * 64}")
KEYS = ["serving.api_keys_file=keys.txt", "serving.metrics_port=9000"]
KEY = "a-key-of-a-test"


def config(*overrides):
    return deployment.load(ROOT / "environments/local.yml", overrides, environ={})


def stack(folder, *overrides, settings=ALL, keys=None, image=IMAGE, root=ROOT):
    args = LocalStackArgs(
        config=config(*overrides), settings=settings, image=image, root=root, folder=folder, api_keys=keys
    )
    return LocalStack("qwen3", args)


@pytest.fixture
def made(render, tmp_path):
    """Containers by name, and every other resource, of one program."""

    def run(*overrides, **options):
        found = render(lambda: stack(tmp_path / "state", *overrides, **options))
        boxes = {each.inputs["name"]: each.inputs for each in found if each.typ.endswith(":Container")}
        return boxes, [each for each in found if not each.typ.endswith(":Container")]

    return run


# What the arguments say -----------------------------------------------------------------------------------


def test_server_prometheus_and_grafana_share_a_network_and_keep_their_data(made):
    boxes, others = made()

    assert set(boxes) == {NAME, PROMETHEUS, GRAFANA}
    kinds = [each.typ.rsplit(":", 1)[1] for each in others]
    assert sorted(kinds) == ["LocalStack", "Network", "RemoteImage", "RemoteImage", "Volume", "Volume"]
    (network,) = [each.inputs["name"] for each in others if each.typ.endswith(":Network")]
    assert {each["networksAdvanced"][0]["name"] for each in boxes.values()} == {network}
    volumes = {each.inputs["name"] for each in others if each.typ.endswith(":Volume")}
    mounted = {mount["source"] for box in boxes.values() for mount in box["mounts"] if mount["type"] == "volume"}
    assert mounted == volumes
    images = [each.inputs for each in others if each.typ.endswith(":RemoteImage")]
    assert {each["name"] for each in images} == {ALL.prometheus_image, ALL.grafana_image}
    assert all(each["keepLocally"] for each in images)


def test_every_container_is_limited_unprivileged_and_reached_from_this_machine_alone(made):
    boxes, _ = made(*KEYS, keys=KEY)

    for box in boxes.values():
        assert box["readOnly"] is True
        assert box["capabilities"] == {"drops": ["ALL"]}
        assert box["securityOpts"] == ["no-new-privileges:true"]
        assert "privileged" not in box
        assert int(box["user"].split(":")[0]) > 0
        assert box["memory"] == box["memorySwap"] > 0
        assert float(box["cpus"]) > 0
        assert {port["ip"] for port in box["ports"]} == {LOOPBACK}
        assert box["healthcheck"]["tests"][0] == "CMD"
        assert box["stopTimeout"] == box["destroyGraceSeconds"] > 0
        assert {mount["readOnly"] for mount in box["mounts"] if mount["type"] == "bind"} == {True}


def test_the_provider_knows_every_word(made):
    """Below an argument dictionaries go through unchecked: a misspelled key would be dropped."""
    known = {
        "healthcheck": docker_args.ContainerHealthcheckArgs,
        "mounts": docker_args.ContainerMountArgs,
        "ports": docker_args.ContainerPortArgs,
        "networksAdvanced": docker_args.ContainerNetworksAdvancedArgs,
        "capabilities": docker_args.ContainerCapabilitiesArgs,
    }
    boxes, _ = made(*KEYS, keys=KEY)
    for box in boxes.values():
        for name, kind in known.items():
            words = [
                re.sub("_(.)", lambda found: found[1].upper(), word) for word in inspect.signature(kind).parameters
            ]
            for each in box[name] if isinstance(box[name], list) else [box[name]]:
                assert each.keys() <= set(words), name


@pytest.mark.parametrize(
    "words", [[], ["resource_limits.cpu_cores=0.5", "resource_limits.memory_gb=0.75", "serving.drain_s=200"]]
)
def test_limits_and_times_are_the_environments(made, words):
    boxes, _ = made(*words)
    times = timings(config(*words))
    server = boxes[NAME]

    assert server["memory"] * 2**20 == memory_limit_bytes(config(*words))
    assert float(server["cpus"]) == config(*words).resource_limits.cpu_cores
    assert server["stopTimeout"] == times.timeout_stop_s > config(*words).serving.drain_s
    assert server["healthcheck"]["startPeriod"] == f"{times.startup.budget_s}s"
    assert server["image"] == IMAGE


def test_the_server_reads_the_environment_as_a_container_needs_it(made, tmp_path):
    """What differs is where it listens, logs and finds keys; the plan for a container is the plan for the laptop."""
    boxes, _ = made(*KEYS, keys=f"{KEY}\n")
    mounts = {mount["target"]: Path(mount["source"]) for mount in boxes[NAME]["mounts"]}

    read = deployment.load(mounts["/etc/qwen3"] / "environment.yml", environ={})
    differing = {path for path, _ in deployment.changes(config(*KEYS), read)}
    assert differing == {"serving.host", "serving.log_dir", "serving.api_keys_file"}
    assert boxes[NAME]["command"] == ["/etc/qwen3/environment.yml"]
    assert (read.serving.host, read.serving.log_dir) == ("0.0.0.0", None)
    assert (mounts[str(read.serving.api_keys_file.parent)] / "api_keys").read_text() == f"{KEY}\n"
    assert mounts["/opt/qwen3/models/complaints-tiny"] == ROOT / "models/complaints-tiny"
    assert KEY not in json.dumps(boxes)


def test_files_are_for_the_containers_and_nobody_else(made, tmp_path):
    made(*KEYS, keys=KEY)
    folder = tmp_path / "state"

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    inner = [path for path in folder.rglob("*") if path.is_file()]
    assert len(inner) >= 5  # environment, keys, scrape configuration, rules, data source
    assert {stat.S_IMODE(path.stat().st_mode) for path in inner} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_dir()} == {0o755}


@pytest.mark.parametrize(
    ("word", "replaced"),
    [
        ("serving.log_level=DEBUG", set()),
        ("serving.max_queue=3", {NAME}),
        ("alerts.low_qps=2", {PROMETHEUS}),
        ("serving.port=8100", {NAME, PROMETHEUS}),
    ],
)
def test_a_change_replaces_the_containers_that_cannot_take_it_over(made, word, replaced):
    before, _ = made()
    after, _ = made(word)

    assert {name for name in before if before[name] != after[name]} == replaced


def test_a_hot_change_is_written_where_the_server_reads(made):
    boxes, _ = made("serving.log_level=DEBUG")
    (folder,) = [mount["source"] for mount in boxes[NAME]["mounts"] if mount["target"] == "/etc/qwen3"]

    assert yaml.safe_load(Path(folder, "environment.yml").read_text())["serving"]["log_level"] == "DEBUG"


def test_a_preview_writes_nothing(render, tmp_path, monkeypatch):
    monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
    render(lambda: stack(tmp_path / "state", *KEYS, keys=KEY))

    assert not (tmp_path / "state").exists()


def test_grafana_asks_prometheus_and_takes_dashboards_when_there_are_some(made, tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    without, _ = made(root=tmp_path)
    (tmp_path / "monitoring/dashboards").mkdir(parents=True)
    boxes, _ = made(root=tmp_path)
    targets = {mount["target"]: mount["source"] for mount in boxes[GRAFANA]["mounts"]}

    provisioned = Path(targets["/etc/grafana/provisioning"])
    (source,) = yaml.safe_load((provisioned / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://{PROMETHEUS}:{int(boxes[PROMETHEUS]['ports'][0]['internal'])}"
    (provider,) = yaml.safe_load((provisioned / "dashboards/qwen3.yml").read_text())["providers"]
    assert targets[provider["options"]["path"]] == str(tmp_path / "monitoring/dashboards")
    before = {mount["target"]: mount["source"] for mount in without[GRAFANA]["mounts"]}
    assert before.keys() == targets.keys() - {provider["options"]["path"]}
    assert not Path(before["/etc/grafana/provisioning"], "dashboards").exists()


def test_without_images_the_server_alone_is_started(made):
    boxes, others = made(settings=LocalSettings())

    assert set(boxes) == {NAME}
    assert sorted(each.typ.rsplit(":", 1)[1] for each in others) == ["LocalStack", "Network"]
    assert containers.not_started(LocalSettings()) == (
        "not started, because the stack names no image: local.prometheus_image, local.grafana_image"
    )
    assert containers.not_started(ALL) is None


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["serving.port=0"], {}, "any free one"),
        (["replicas.min=2", "replicas.max=2"], {}, "replicas.min is 2"),
        (["resource_limits.gpu_count=1"], {}, "gpu_count is 1"),
        (["serving.api_keys_file=k"], {"prometheus_image": ALL.prometheus_image}, "a port of its own"),
        (["serving.port=9090"], {"prometheus_image": ALL.prometheus_image}, "must differ"),
        (["serving.otlp_endpoint=http://localhost:4318"], {}, "otlp_endpoint is 'http://localhost:4318'"),
        (["engine=ollama"], {}, "without serving.engine_url"),
        (["model_fallback=org/name"], {}, "org/name is no path on this machine"),
    ],
)
def test_what_a_container_of_a_laptop_cannot_have_is_refused(words, settings, said):
    with pytest.raises(ConfigurationError) as caught:
        containers.inside(config(*words), LocalSettings(**settings), ROOT)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("x", "must be a mapping"),
        ({"prometheus": "x"}, "did you mean 'prometheus_port'"),
        ({"prometheus_image": "prom/prometheus:latest"}, "prometheus_image: image 'prom/prometheus:latest' is not"),
        ({"grafana_image": ALL.grafana_image}, "nothing to show"),
        ({"grafana_port": 0}, "grafana_port"),
    ],
)
def test_wrong_settings_are_named(raw, said):
    with pytest.raises(ConfigurationError) as caught:
        read_settings(raw)

    assert said in str(caught.value)


# The whole program ----------------------------------------------------------------------------------------


def test_the_stack_starts_the_image_that_it_names(program):
    made = program("local", image="qwen3-server:0123456789ab")

    by_type = {each.typ.rsplit(":", 1)[1]: each for each in made}
    assert by_type["RemoteImage"].inputs["name"] == "qwen3-server:0123456789ab"
    assert by_type["Container"].inputs["image"] == f"sha256:{'1' * 64}"
    assert state_folder("production").is_dir()


def test_the_stack_starts_the_image_that_it_builds(program):
    made = program("local", build=json.dumps({"base_image": f"debian@sha256:{'b' * 64}"}))

    by_type = {each.typ.rsplit(":", 1)[1]: each for each in made}
    assert by_type["Image"].inputs["skipPush"] is True
    assert by_type["Container"].inputs["image"] == f"sha256:{'2' * 64}"


# On a Docker Engine ---------------------------------------------------------------------------------------


def docker(*words):
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def docker_run(arguments, site):
    """``docker run`` with what pulumi_docker is told; names get ``site`` before them, to leave a real stack alone."""
    check = arguments["healthcheck"]
    words = ["run", "-d", "--name", f"{site}-{arguments['name']}", "--user", arguments["user"]]
    words += ["--read-only"] if arguments["readOnly"] else []
    words += ["--memory", f"{int(arguments['memory'])}m", "--memory-swap", f"{int(arguments['memorySwap'])}m"]
    words += ["--cpus", arguments["cpus"], "--restart", arguments["restart"]]
    words += ["--log-driver", arguments["logDriver"], "--stop-timeout", str(int(arguments["stopTimeout"]))]
    words += [word for each in arguments["capabilities"]["drops"] for word in ("--cap-drop", each)]
    words += [word for each in arguments["securityOpts"] for word in ("--security-opt", each)]
    words += [word for target, how in arguments["tmpfs"].items() for word in ("--tmpfs", f"{target}:{how}")]
    words += [word for name, value in arguments["logOpts"].items() for word in ("--log-opt", f"{name}={value}")]
    for port in arguments["ports"]:
        words += ["--publish", f"{port['ip']}:{int(port['external'])}:{int(port['internal'])}"]
    for mount in arguments["mounts"]:
        source = mount["source"] if mount["type"] == "bind" else f"{site}-{mount['source']}"
        how = f"type={mount['type']},source={source},target={mount['target']}"
        words += ["--mount", how + (",readonly" if mount["readOnly"] else "")]
    for network in arguments["networksAdvanced"]:
        words += ["--network", f"{site}-{network['name']}", "--network-alias", arguments["name"]]
    words += ["--health-cmd", shlex.join(check["tests"][1:]), "--health-interval", check["interval"]]
    words += ["--health-timeout", check["timeout"], "--health-retries", str(int(check["retries"]))]
    words += ["--health-start-period", check["startPeriod"]]
    return docker(*words, arguments["image"], *arguments["command"])


def until(done, what, limit_s=90.0):
    started = time.monotonic()
    while not (found := done()):
        assert time.monotonic() - started < limit_s, f"no {what} within {limit_s:g} s"
        time.sleep(0.2)
    return found


def free_port():
    with socket.create_server((LOOPBACK, 0)) as listener:
        return listener.getsockname()[1]


class Engine:
    """What the arguments of one stack make on the Docker Engine; ``boxes``: name of a container -> its id."""

    def __init__(self, arguments):
        self.site, self.boxes = f"test-{secrets.token_hex(3)}", {}
        self.arguments = arguments

    def __enter__(self):
        docker("network", "create", f"{self.site}-{containers.NETWORK}")
        for name, arguments in self.arguments.items():
            self.boxes[name] = docker_run(arguments, self.site)
        return self

    def __exit__(self, *_):
        for name in self.arguments:
            docker("rm", "-f", "-v", f"{self.site}-{name}")
        docker("network", "rm", f"{self.site}-{containers.NETWORK}")
        for volume in docker("volume", "ls", "-q", "-f", f"name={self.site}-").split():
            docker("volume", "rm", volume)

    def inspect(self, name):
        (found,) = json.loads(docker("inspect", self.boxes[name]))
        return found

    def healthy(self, name):
        state = self.inspect(name)["State"]
        assert state["Running"], f"{name} ended with {state['ExitCode']}: {docker('logs', self.boxes[name])}"
        return state["Health"]["Status"] == "healthy"


@pytest.fixture
def engine(made, server_image):
    """Starts the stack of an environment: the server, and Prometheus when its image is given."""
    with contextlib.ExitStack() as ends:

        def start(*overrides, prometheus_image=None):
            settings = LocalSettings(prometheus_image=prometheus_image, prometheus_port=free_port())
            words = [*KEYS, f"serving.port={free_port()}", "resource_limits.cpu_cores=1", *overrides]
            boxes, _ = made(*words, settings=settings, keys=KEY, image=server_image)
            pulled = {PROMETHEUS: prometheus_image, NAME: server_image}
            running = Engine({name: box | {"image": pulled[name]} for name, box in boxes.items()})
            return ends.enter_context(running)

        yield start


def address(running, name):
    return f"http://{LOOPBACK}:{int(running.arguments[name]['ports'][0]['external'])}"


def ready(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200


@pytest.mark.docker
def test_the_server_answers_within_its_limits_and_can_change_nothing(engine):
    running = engine()
    url = address(running, NAME)
    until(lambda: ready(url), "/ready")

    call = {"text": "宽带断了三天没人来修"}
    answers = [
        httpx.post(f"{url}/api/v1/classify", json=call, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        for key in (KEY, "another")
    ]
    assert [answer.status_code for answer in answers] == [200, 401]
    until(lambda: running.healthy(NAME), "health")

    box = running.boxes[NAME]
    found = running.inspect(NAME)
    assert found["HostConfig"]["Memory"] == found["HostConfig"]["MemorySwap"] == 2**30
    assert found["HostConfig"]["NanoCpus"] == 10**9
    status = dict(
        line.split(":\t", 1) for line in docker("exec", box, "cat", "/proc/1/status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split()[1:4] for line in docker("exec", box, "cat", "/proc/1/mounts").splitlines()]
    assert {options.split(",")[0] for place, _, options in mounts if place in {"/", "/etc/qwen3", "/run/secrets"}} == {
        "ro"
    }
    for place in ("/opt/qwen3", "/etc/qwen3", "/run/secrets", "/opt/qwen3/models/complaints-tiny", "/var/tmp"):
        done = subprocess.run(["docker", "exec", box, "touch", f"{place}/x"], capture_output=True, check=False)
        assert done.returncode != 0, f"{place} can be written"
    assert {port["HostIp"] for ports in found["NetworkSettings"]["Ports"].values() for port in ports or ()} == {
        LOOPBACK
    }


@pytest.mark.docker
def test_a_key_that_is_added_reaches_the_running_server(engine, tmp_path):
    running = engine()
    url = address(running, NAME)
    until(lambda: ready(url), "/ready")
    before = running.inspect(NAME)["State"]["StartedAt"]

    write(tmp_path / "state/keys", {"api_keys": f"{KEY}\na-new-key\n"})

    def accepted():
        headers = {"Authorization": "Bearer a-new-key"}
        return httpx.get(f"{url}/v1/models", headers=headers, timeout=5).status_code == 200

    until(accepted, "new key", 10)
    assert running.inspect(NAME)["State"]["StartedAt"] == before


@pytest.mark.docker
def test_a_stopped_server_ends_its_streams_first(engine, capsys):
    running = engine()
    url = address(running, NAME)
    until(lambda: ready(url), "/ready")
    body = {"model": "complaints-tiny", "stream": True, "max_tokens": 900, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": "你好"}]
    begun, ends = threading.Barrier(9), []

    def stream():
        last, first = "", True
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                if first:
                    first = False
                    begun.wait(30)
                last = line or last
        ends.append((last, time.monotonic()))

    threads = [threading.Thread(target=stream) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    stopped = time.monotonic()
    docker("stop", running.boxes[NAME])  # waits for as long as the container says
    for thread in threads:
        thread.join()

    assert [last for last, _ in ends] == ["data: [DONE]"] * 8
    went_on_s = min(end for _, end in ends) - stopped
    with capsys.disabled():
        print(f"\n8 streams went on for at least {went_on_s:.1f} s after docker stop")
    assert went_on_s > 0.5, "nothing had to be drained"
    assert running.inspect(NAME)["State"]["ExitCode"] == 0


@pytest.fixture(scope="module")
def prometheus_image(base_images):
    """Debian's Prometheus in an image of its own: no registry has to be reached for it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("prometheus", "promtool"):  # of one package
            shutil.copy(shutil.which(name), folder)
        Path(folder, "Dockerfile").write_text(
            f"FROM {base_images['BASE_IMAGE']}\nCOPY prometheus promtool /bin/\n"
            "RUN mkdir /prometheus && chown 65534:65534 /prometheus\nUSER 65534\n"
            'VOLUME /prometheus\nENTRYPOINT ["/bin/prometheus"]\n'
        )
        return docker("build", "-q", folder)


@pytest.mark.docker
@pytest.mark.promtool
def test_prometheus_scrapes_the_server_and_knows_the_alerts(engine, prometheus_image):
    """A real Prometheus takes the configuration, finds the server by its name, and evaluates the rules."""
    running = engine(prometheus_image=prometheus_image)
    url = address(running, PROMETHEUS)
    until(lambda: running.healthy(PROMETHEUS), "health of Prometheus")

    def asked(path):
        return httpx.get(f"{url}/api/v1/{path}", timeout=5).json()["data"]

    (target,) = until(lambda: [each for each in asked("targets")["activeTargets"] if each["health"] == "up"], "scrape")
    assert target["scrapeUrl"] == f"http://{NAME}:9000/metrics"
    until(lambda: asked("query?query=qwen3_active_connections")["result"], "samples")
    rules = until(lambda: [rule for group in asked("rules")["groups"] for rule in group["rules"]], "rules")
    assert {"high_latency", "memory_usage"} <= {rule["name"] for rule in rules}
    kept = {mount["Destination"]: mount.get("Name") for mount in running.inspect(PROMETHEUS)["Mounts"]}
    assert kept["/prometheus"] == f"{running.site}-{PROMETHEUS}"
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


@pytest.mark.promtool
def test_promtool_accepts_what_prometheus_is_given(made):
    boxes, _ = made(*KEYS, keys=KEY)
    (folder,) = [mount["source"] for mount in boxes[PROMETHEUS]["mounts"] if mount["type"] == "bind"]

    checked = subprocess.run(
        ["promtool", "check", "config", f"{folder}/prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout
    Path(folder, "prometheus.yml").write_text("scrape_configs: [{job: x}]")
    refused = subprocess.run(
        ["promtool", "check", "config", f"{folder}/prometheus.yml"], capture_output=True, check=False
    )
    assert refused.returncode != 0
