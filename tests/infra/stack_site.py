"""A project folder whose programs are the repository's and whose environment is a test's own, on a real Pulumi engine.

:class:`LiveSite` stands on a cluster. :class:`FolderSite` needs none: the Kubernetes provider writes the manifests into
a folder, so that an ``up`` takes seconds; its kubectl and its gate are a test's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import yaml
from cluster_fixture import ENGINE, TINY
from pulumi import automation
from traffic import KEY, TEXT, Traffic, stream

from model_server.cache import cache_dir

REPOSITORY = Path(__file__).parents[2]
STACK = "live"
# Two instances that end within seconds, so that a rollout of them fits a test.
ENVIRONMENT = TINY | {
    "replicas": {"min": 2, "max": 3},
    "serving": TINY["serving"] | {"request_timeout_s": 20, "drain_s": 25},
    "rollout": {"strategy": "canary", "steps": [50, 100]},
}
GATE = """\
# Says what the file `verdicts` has for the tracks that have traffic, {"stable": 0, "both": 1}; else PASS.
import json, pathlib, sys, time
time.sleep(1)
out = pathlib.Path(dict(word.split("=", 1) for word in sys.argv[3:])["out"])
out.mkdir(parents=True)
with open("asked", "a") as asked:
    print(*sys.argv[1:], file=asked)
path = pathlib.Path("verdicts")
sys.exit(json.loads(path.read_text()).get(out.name.split("-")[1], 0) if path.exists() else 0)
"""
KUBECTL = """\
#!/usr/bin/env python3
# The few verbs a Lease needs, on a file; whole documents are put in place at once, as the API server does.
import fcntl, json, os, sys
path = os.environ["LEASE"]
words = sys.argv[1:]
verb = next(word for word in words if not word.startswith("-"))
with open(path + ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    there = json.load(open(path)) if os.path.exists(path) else None
    if verb == "delete":
        if there:
            os.remove(path)
        sys.exit(0)
    if verb == "create":
        if there:
            sys.exit("Error from server (AlreadyExists): leases already exists")
        new = json.load(sys.stdin)
        new["metadata"]["resourceVersion"] = "1"
    elif not there:
        sys.exit("Error from server (NotFound): leases not found")
    elif verb == "get":
        new = there
    else:
        given = json.loads(words[words.index("-p") + 1]) if verb == "patch" else json.load(sys.stdin)
        if given["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            sys.exit("Error from server (Conflict): the object has been modified")
        new = {**there, "spec": {**there["spec"], **given["spec"]}} if verb == "patch" else given
        new["metadata"] = {**there["metadata"], **given["metadata"]}
        new["metadata"]["resourceVersion"] = str(int(there["metadata"]["resourceVersion"]) + 1)
    if verb != "get":
        with open(path + ".part", "w") as part:
            json.dump(new, part)
        os.replace(path + ".part", path)
    print(json.dumps(new))
"""


PROGRAM = """\
# What the tracks are told, as outputs: an `up` of this takes a second or two.
import pulumi
from infra.tracks import read_rollout, versions

class Track(pulumi.ComponentResource):
    def __init__(self, name):
        super().__init__("test:apps/v1:Deployment", name)
        self.register_outputs({"status": {"replicas": 2}})

settings = pulumi.Config()
rollout = read_rollout(settings.get_object("rollout"))
stable, candidate = versions(rollout, settings.get_object("overrides") or [])
Track("qwen3-inference-deployment")
if candidate is not None:
    Track("qwen3-inference-canary-deployment")
pulumi.export("addresses", {"qwen3-inference-stable": "a", "qwen3-inference-canary": "b"})
pulumi.export("stable", list(stable))
pulumi.export("candidate", None if candidate is None else [*candidate, rollout.canary, rollout.traffic])
"""


class StackSite:
    """A stack and the environment it comes from."""

    def __init__(self, folder, env, settings, environment):
        self.folder, self.env, self.environment = folder, env, environment
        (folder / "environments").mkdir(parents=True)
        (folder / "infra").mkdir()
        shutil.copy(REPOSITORY / "infra/__main__.py", folder / "infra")
        for name in ("data", "models"):
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "Pulumi.yaml").write_text((REPOSITORY / "Pulumi.yaml").read_text())
        self.write()
        options = automation.LocalWorkspaceOptions(env_vars=self.env)
        self.stack = automation.create_or_select_stack(stack_name=STACK, work_dir=str(folder), opts=options)
        self.stack.set_all_config({"api_keys": automation.ConfigValue(KEY, secret=True), **settings})

    def write(self, *, serving=None, rollout=None, **changes):
        """The environment's file."""
        environment = self.environment | changes
        environment["serving"] = environment["serving"] | (serving or {})
        environment["rollout"] = environment["rollout"] | (rollout or {})
        (self.folder / f"environments/{STACK}.yml").write_text(yaml.safe_dump(environment))

    def up(self):
        lines = []
        found = self.stack.up(on_output=lines.append, color="never")
        return found.summary.resource_changes, "\n".join(lines)

    program = ("-m", "infra.rollout")

    def begin(self, *words, program=None, folder=None):
        """A rollout as a process of its own, in a group of its own."""
        command = [sys.executable, *(program or self.program), "-C", str(folder or self.folder), STACK, *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | self.env,
            start_new_session=True,
        )

    def rollout(self, *words, **options):
        """Exit code and output of one that ends by itself."""
        with self.begin(*words, **options) as process:
            said, _ = process.communicate(timeout=1200)
        return process.returncode, said

    def setting(self, name):
        found = self.stack.get_all_config().get(f"qwen3-stack:{name}")
        return None if found is None else json.loads(found.value)


class LiveSite(StackSite):
    """In a namespace of a cluster."""

    def __init__(self, folder, cluster, image, namespace, env):
        self.cluster, self.namespace = cluster, namespace
        place = {"namespace": namespace, "create_namespace": False, "weights": "image", "autoscaling": "cpu"}
        settings = {
            "image": automation.ConfigValue(image),
            "cluster": automation.ConfigValue(json.dumps(place)),
        }
        super().__init__(folder, {**env, "KUBECONFIG": str(cluster.kubeconfig)}, settings, ENVIRONMENT)
        (folder / "benchmarks").symlink_to(REPOSITORY / "benchmarks")

    def pods(self):
        """Name -> when its container started."""
        items = self.cluster.get("pods", "-n", self.namespace, "-l", "app=qwen3-inference")["items"]
        return {
            item["metadata"]["name"]: item["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
            for item in items
            if "deletionTimestamp" not in item["metadata"]
        }

    @property
    def url(self):
        service = self.cluster.get("service", "qwen3-inference", "-n", self.namespace)
        return f"http://{service['spec']['clusterIP']}"


class FolderSite(StackSite):
    """Its cluster is a folder of manifests."""

    program = (str(Path(__file__).with_name("killed_rollout.py")), "none", os.devnull)

    def __init__(self, folder, env, program=None):
        tools = folder.parent / "tools"
        tools.mkdir()
        (tools / "kubectl").write_text(KUBECTL)
        (tools / "kubectl").chmod(0o755)
        self.lease = folder.parent / "lease.json"
        self.manifests = folder.parent / "manifests"
        env = {**env, "PATH": f"{tools}{os.pathsep}{env['PATH']}", "LEASE": str(self.lease)}
        env |= {"ONLY_WRITTEN": "1"} if program is None else {}
        settings = {
            "image": automation.ConfigValue(f"registry.example/qwen3-server@sha256:{'a' * 64}"),
            "cluster": automation.ConfigValue(json.dumps({"weights": "image"})),
            "kubernetes:renderYamlToDirectory": automation.ConfigValue(str(self.manifests)),
        }
        super().__init__(folder, env, settings, ENVIRONMENT)
        if program is not None:
            (folder / "infra/__main__.py").write_text(program)
        self.write(rollout={"gate": "gate.yml"})
        (folder / "gate.yml").write_text("verdict: {guards: {qps: 0.05, error_rate: 0.005}}\n")
        (folder / "benchmarks").mkdir()
        (folder / "benchmarks/__init__.py").touch()
        (folder / "benchmarks/__main__.py").write_text(GATE)

    def objects(self):
        """What the folder holds: file -> manifest."""
        if not self.manifests.exists():
            return {name: output.value for name, output in self.stack.outputs().items()}
        return {path.name: yaml.safe_load(path.read_text()) for path in sorted(self.manifests.rglob("*.yaml"))}


def engine_path():
    return os.pathsep.join([str(REPOSITORY / ".venv/bin"), str(cache_dir() / "bin"), os.environ["PATH"]])


def engine(folder):
    """Variables of a Pulumi engine whose state lies in ``folder``; skips where there is none."""
    path = engine_path()
    for name in (*ENGINE, "pulumi-language-python"):
        if shutil.which(name, path=path) is None:
            required = "cluster" in os.environ.get("REQUIRE_TIERS", "").split()
            (pytest.fail if required else pytest.skip)(f"no {name} on PATH: tests/tools/build.sh engine")
    (folder / "state").mkdir()
    return {
        "PATH": path,
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "a passphrase of a test",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_SKIP_UPDATE_CHECK": "1",
    }


def classify(url, key=KEY):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/api/v1/classify", json={"text": TEXT}, headers=headers, timeout=20)


class Streams(Traffic):
    """Streams through the common Service all the time, each some seconds long."""

    def __init__(self, url, at_once=4, tokens=60):
        parts = urlsplit(url)
        super().__init__(partial(stream, parts.hostname, parts.port or 80, tokens, limit_s=200), at_once)

    @property
    def ends(self):
        return Counter("whole" if answer.what == "whole" else "cut or refused" for answer in self.answers)

    @property
    def why(self):
        return [answer.what for answer in self.answers if answer.what != "whole"]
