"""``pulumi up`` and ``python -m infra.rollout`` on a real engine, a real cluster and the real image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml
from cluster_fixture import TINY
from pulumi import automation

from model_server.cache import cache_dir

REPOSITORY = Path(__file__).parents[2]
KEY = "a-key-of-the-tests"
STACK = "live"
# Two instances that end within seconds, so that a rollout of them fits a test.
ENVIRONMENT = TINY | {
    "replicas": {"min": 2, "max": 3},
    "serving": TINY["serving"] | {"request_timeout_s": 20, "drain_s": 25},
    "rollout": {"strategy": "canary", "steps": [50, 100]},
}

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.timeout(900)]


class Site:
    """A project folder whose programs are the repository's and whose environment is a test's own."""

    def __init__(self, folder, cluster, image, namespace, env):
        self.folder, self.cluster, self.namespace = folder, cluster, namespace
        self.env = {**env, "KUBECONFIG": str(cluster.kubeconfig)}
        (folder / "environments").mkdir(parents=True)
        (folder / "infra").mkdir()
        shutil.copy(REPOSITORY / "infra/__main__.py", folder / "infra")
        for name in ("benchmarks", "data", "models"):
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "Pulumi.yaml").write_text((REPOSITORY / "Pulumi.yaml").read_text())
        self.write()
        options = automation.LocalWorkspaceOptions(env_vars=self.env)
        self.stack = automation.create_or_select_stack(stack_name=STACK, work_dir=str(folder), opts=options)
        settings = {
            "image": automation.ConfigValue(image),
            "api_keys": automation.ConfigValue(KEY, secret=True),
            "cluster": automation.ConfigValue(
                json.dumps(
                    {"namespace": namespace, "create_namespace": False, "weights": "image", "autoscaling": "cpu"}
                )
            ),
        }
        self.stack.set_all_config(settings)

    def write(self, **serving):
        environment = ENVIRONMENT | {"serving": ENVIRONMENT["serving"] | serving}
        (self.folder / f"environments/{STACK}.yml").write_text(yaml.safe_dump(environment))

    def up(self):
        lines = []
        found = self.stack.up(on_output=lines.append, color="never")
        return found.summary.resource_changes, "\n".join(lines)

    def rollout(self, *words):
        command = [sys.executable, "-m", "infra.rollout", "-C", str(self.folder), STACK, *words]
        environ = os.environ | self.env
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=800)
        return done.returncode, done.stdout + done.stderr

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


def engine_path():
    return os.pathsep.join([str(REPOSITORY / ".venv/bin"), str(cache_dir() / "bin"), os.environ["PATH"]])


def engine(folder):
    """Variables of a Pulumi engine whose state lies in ``folder``; skips where there is none."""
    path = engine_path()
    for name in ("pulumi", "pulumi-language-python", "pulumi-resource-kubernetes"):
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


@pytest.fixture(scope="module")
def site(cluster, server_image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    cluster.load_image(server_image)
    with cluster.namespace() as namespace, pytest.MonkeyPatch.context() as patch:
        # The Automation API looks for the engine on the PATH of this process.
        patch.setenv("PATH", engine_path())
        yield Site(folder / "project", cluster, server_image, namespace, engine(folder))


def classify(url, key=KEY):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/api/v1/classify", json={"text": "宽带断了三天没人来修"}, headers=headers, timeout=20)


class Streams:
    """Streams through the common Service all the time, each some seconds long."""

    def __init__(self, url, at_once=4, tokens=60):
        self.url, self.tokens = url, tokens
        self.ends = Counter()
        self.why = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(at_once)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        body = {"model": "complaints-tiny", "stream": True, "max_tokens": self.tokens, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "你好"}]
        headers = {"Authorization": f"Bearer {KEY}"}
        while not self._stop.is_set():
            last = ""
            try:
                # A connection for each: a kept one would stay with its instance and know nothing of a rollout.
                with httpx.stream(
                    "POST", f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30
                ) as answer:
                    for line in answer.iter_lines():
                        last = line or last
                    end = "whole" if last == "data: [DONE]" else f"{answer.status_code} {last[:200]}"
            except httpx.HTTPError as error:
                end = f"{type(error).__name__} {error}"
            self.ends["whole" if end == "whole" else "cut or refused"] += 1
            if end != "whole":
                self.why.append(end)


def test_from_nothing_to_ready_and_then_nothing_to_do(site):
    changes, said = site.up()

    assert changes["create"] >= 10
    assert "fits:" in said
    assert len(site.pods()) == 2
    answer = classify(site.url)
    assert (answer.status_code, "category" in answer.json()) == (200, True)
    assert classify(site.url, "another").status_code == 401
    again, _ = site.up()
    assert set(again) == {"same"}


def test_what_the_autoscaler_did_is_no_difference_and_what_somebody_did_is(site):
    site.cluster.kubectl("scale", "deployment/qwen3-inference", "--replicas=3", "-n", site.namespace)
    site.stack.preview(expect_no_changes=True)
    site.cluster.kubectl("scale", "deployment/qwen3-inference", "--replicas=2", "-n", site.namespace)

    patch = '{"spec": {"minReplicas": 1}}'
    site.cluster.kubectl("patch", "hpa/qwen3-inference", "-n", site.namespace, "--type=merge", "-p", patch)
    site.stack.refresh(on_output=lambda _: None)
    changes, _ = site.up()
    assert changes.get("update") == 1
    hpa = site.cluster.get("hpa/qwen3-inference", "-n", site.namespace)
    assert hpa["spec"]["minReplicas"] == 2


def test_a_hot_change_reaches_the_pods_that_run(site):
    before = site.pods()
    site.write(rate_limit_per_minute=100_000)
    site.stack.set_config("api_keys", automation.ConfigValue(f"{KEY}\na-new-key", secret=True))

    with Streams(site.url, at_once=1) as streams:
        lines = []
        site.stack.preview(on_output=lines.append, color="never")
        _, said = site.up()
        deadline = time.monotonic() + 240  # the kubelet looks for new content once a minute, for each pod by itself
        while time.monotonic() < deadline:
            if all(classify(site.url, "a-new-key").status_code == 200 for _ in range(12)):
                break
            time.sleep(2)

    assert "serving.rate_limit_per_minute: None -> 100000 (hot" in "\n".join(lines)
    assert KEY not in "\n".join(lines) + said
    assert all(classify(site.url, "a-new-key").status_code == 200 for _ in range(12))
    assert site.pods() == before
    assert streams.ends["cut or refused"] == 0, streams.why
    assert streams.ends["whole"] > 0


def test_a_good_candidate_is_promoted_and_no_stream_notices(site):
    before = site.pods()

    with Streams(site.url) as streams:
        code, said = site.rollout("serving.max_queue=40")

    print(said, dict(streams.ends))
    assert code == 0, said
    assert streams.ends["cut or refused"] == 0, streams.why[:5]
    assert streams.ends["whole"] >= 20
    assert not before.keys() & site.pods().keys()
    assert len(site.pods()) == 2
    assert site.stack.get_all_config()["qwen3-stack:overrides"].value == '["serving.max_queue=40"]'
    _, history = site.rollout("history")
    assert "promoted" in history


def test_an_image_that_cannot_be_pulled_is_taken_back_and_traffic_stays(site):
    before = site.pods()

    with Streams(site.url, at_once=2) as streams:
        code, said = site.rollout(f"image=nowhere.invalid/qwen3-server@sha256:{'0' * 64}")

    print(said, dict(streams.ends))
    assert code == 1
    assert "taking the candidate back" in said
    assert streams.ends["cut or refused"] == 0, streams.why[:5]
    assert site.pods() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serving.log_level=INFO"], "there is nothing to roll out"),
        (["image=qwen3-server:latest"], "is not pinned"),
        (["resource_limits.memory_gb=0.1"], "does not fit"),
        (["serving.max_qeue=1"], "did you mean 'max_queue'"),
        (["promote"], "neither key=value nor one of"),
        (["resume"], "no rollout is under way"),
    ],
)
def test_what_cannot_be_rolled_out_changes_nothing(site, words, said):
    before = site.pods()
    code, output = site.rollout(*words)

    assert code in {1, 2}
    assert said in output
    assert "Traceback" not in output
    assert site.pods() == before


def test_nothing_is_left(site):
    site.stack.destroy(on_output=lambda _: None)

    kinds = "deployment,service,hpa,pdb,networkpolicy,secret,serviceaccount,configmap"
    left = site.cluster.get(kinds, "-n", site.namespace)["items"]
    assert [item["metadata"]["name"] for item in left if "qwen3" in item["metadata"]["name"]] == []
