"""The gate inside rollouts on a real cluster: good candidates are promoted, planted bad ones taken back.

``SLOW=1 python -m pytest -s tests/infra/test_planted.py`` prints a line for each.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from pulumi import automation

pytestmark = [pytest.mark.cluster, pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(7200)]

MODEL = Path(__file__).parents[2] / "models/complaints-tiny"
EACH = 3
PLANTED = {
    "good": ["model_version=good-{}"],
    "slower": ["model_version=slower-{}"],
    "2 % errors": ["model_version=errors-{}"],
    "wrong weights": ["model_version=other-{}", "model_source=models/complaints-other"],
}
"""Kind -> how a candidate differs. All of them, and what runs, are one image, whose faults a version calls up. (Half of
the CPU is no plant: where the machine is busy with other things, nobody is slower for it.)"""
# Runs of some seconds on half a core of a shared machine differ by 5 to 40 %: pairs and margins for that.
GATE = """\
name: planted
dialect: classify
calls: data/calls.jsonl
users: 4
requests: 300
cover_calls: true
pairs: 4
max_pairs: 30
budget_s: 900
verdict:
  primary: latency_p50
  margin: 0.3
  guards: {qps: 0.3, error_rate: 0.01}
  max_accuracy_drop: 0.03
  max_macro_f1_drop: 0.05
  min_agreement: 0.95
  max_error_rate: 0.005
"""
FAULTS = """

_create_app = create_app


def create_app(engine, config, **options):
    app = _create_app(engine, config, **options)
    for name, fault in (("errors", _Errors), ("slower", _Slower)):
        if config.model_version.startswith(name):
            app.add_middleware(fault)
    return app


class _Errors:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        import random

        if scope["type"] == "http" and scope["path"] == "/api/v1/classify" and random.random() < 0.02:
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


class _Slower:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        begun = time.monotonic()

        async def late(message):
            if message["type"] == "http.response.start" and scope["path"] == "/api/v1/classify":
                await asyncio.sleep(3 * (time.monotonic() - begun))
            await send(message)

        await self.app(scope, receive, late)
"""
"""Behind model_server/app.py: one request of fifty fails; every answer takes four times as long (twice would leave
the server half as busy, and then it is as quick as the other)."""


@pytest.fixture(scope="module")
def planted(server_image, tmp_path_factory):
    """An image with faults that an environment's version calls up and with other weights; and the model of these."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(MODEL, folder / "complaints-other")
    garble(folder / "complaints-other")
    (folder / "faults.py").write_text(FAULTS)
    (folder / "Dockerfile").write_text(
        f"FROM {server_image}\n"
        "USER 0\n"
        "COPY complaints-other /opt/qwen3/models/complaints-other\n"
        "COPY faults.py /tmp/faults.py\n"
        "RUN cat /tmp/faults.py >> /opt/qwen3/app/model_server/app.py && rm /tmp/faults.py "
        "/opt/qwen3/app/model_server/__pycache__/app.*\n"  # which is trusted without a look at the source
        "USER 65532:65532\n"
    )
    tag = f"qwen3-server-planted:{hashlib.sha256((server_image + FAULTS).encode()).hexdigest()[:12]}"
    subprocess.run(["docker", "build", "-q", "-t", tag, folder], check=True, capture_output=True)
    return tag, folder / "complaints-other"


def garble(model):
    """Every matrix with its weights in reverse: a model of the same speed that knows nothing."""
    weights = bytearray((model / "openvino_model.bin").read_bytes())
    for _, offset, size in re.findall(
        r'element_type="u8" shape="(\d+, 128)" offset="(\d+)" size="(\d+)"', (model / "openvino_model.xml").read_text()
    ):
        at = slice(int(offset), int(offset) + int(size))
        weights[at] = weights[at][::-1]
    (model / "openvino_model.bin").write_bytes(weights)
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"]["openvino_model.bin"]["sha256"] = hashlib.sha256(weights).hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))


def test_bad_candidates_are_taken_back_and_good_ones_promoted(cluster, new_site, planted):
    image, other = planted
    cluster.load_image(image)
    ends = []
    with cluster.namespace() as namespace:
        site = new_site(namespace, replicas={"min": 1, "max": 2}, rollout={"steps": [50, 100], "gate": "gate.yml"})
        (site.folder / "gate.yml").write_text(GATE)
        (site.folder / "models").unlink()  # the plan needs the sizes of both models
        (site.folder / "models").mkdir()
        for model in (MODEL, other):
            (site.folder / "models" / model.name).symlink_to(model)
        site.stack.set_config("image", automation.ConfigValue(image))
        site.up()
        for number in range(1, EACH + 1):
            for kind, words in PLANTED.items():
                started = time.monotonic()
                code, said = site.rollout(*(word.format(number) for word in words))
                assert "Traceback" not in said, said
                answers = re.findall(r"gate: ([A-Z ]+)$", said, re.MULTILINE)
                end = "promoted" if code == 0 else "taken back" if "taking the candidate back" in said else said
                ends.append((kind, end))
                print(f"{kind:<14} {number}  {end:<11} {', '.join(answers):<20} {time.monotonic() - started:4.0f} s")

    assert all(end == ("promoted" if kind == "good" else "taken back") for kind, end in ends), ends
