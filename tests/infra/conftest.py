"""The server's image for all tests that start it, and Pulumi programs run on the engine's mocks."""

from __future__ import annotations

import asyncio
import os
import runpy
import subprocess
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pulumi
import pytest
from stack_site import LiveSite, engine, engine_path

from infra.image_build import content_tag

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    """The first test that asks for the image may have to build it and its base: 4 minutes on 2 cores."""
    for item in items:
        if "server_image" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


COMPUTED = {
    "docker:index/remoteImage:RemoteImage": {"imageId": f"sha256:{'1' * 64}"},
    "docker:index/image:Image": {"repoDigest": f"sha256:{'2' * 64}"},
}
"""What a provider adds to the inputs, as far as others read it."""


class Recorder(pulumi.runtime.Mocks):
    def __init__(self):
        self.made = []

    def new_resource(self, args):
        self.made.append(args)
        return args.name, args.inputs | COMPUTED.get(args.typ, {})

    def call(self, args):
        return {}


@pytest.fixture
def render():
    """Run a program to the end; what it registered, in order."""
    # The mocks ask for a loop in this thread, which ``asyncio.run`` in an earlier test has left without one, and in
    # those that register; one that they have to make themselves is never closed.
    loops = []

    def with_loop():
        loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(loops[-1])

    with_loop()
    threads = ThreadPoolExecutor(initializer=with_loop)
    loops[0].set_default_executor(threads)

    def run(program):
        recorder = Recorder()
        pulumi.runtime.set_mocks(recorder, project="qwen3-stack", stack="production")

        # Returns once every registration has drained.
        @pulumi.runtime.test
        def drained():
            program()

        drained()
        return recorder.made

    yield run
    asyncio.set_event_loop(None)
    threads.shutdown()
    for loop in loops:
        loop.close()


@pytest.fixture
def program(render, tmp_path, monkeypatch):
    """Run infra/__main__.py for an environment and the stack's settings; what it registered."""
    monkeypatch.chdir(REPOSITORY)  # the program goes there; this brings the test back
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def run(environment, **settings):
        values = {"environment": f"environments/{environment}.yml"} | settings
        names = {f"qwen3-stack:{name}": value for name, value in values.items()}
        pulumi.runtime.set_all_config(names, ["qwen3-stack:api_keys"])
        try:
            return render(lambda: runpy.run_path(str(REPOSITORY / "infra/__main__.py")))
        finally:
            pulumi.runtime.set_all_config({}, [])

    return run


@pytest.fixture(scope="session")
def base_images():
    """BASE_IMAGE and BUILDER_IMAGE: a site's own from variables of these names, else made from Debian packages."""
    base = os.environ.get("BASE_IMAGE")
    if base is not None:
        return {"BASE_IMAGE": base, "BUILDER_IMAGE": os.environ.get("BUILDER_IMAGE", base)}
    made = subprocess.run([REPOSITORY / "tests/tools/base-image.sh"], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return {"BASE_IMAGE": "qwen3-stack/base:bookworm", "BUILDER_IMAGE": "qwen3-stack/builder:bookworm"}
    reason = f"no base image: name a pinned one in BASE_IMAGE; {made.stderr.strip()[-500:]}"
    if "docker" in os.environ.get("REQUIRE_TIERS", "").split():
        pytest.fail(reason, pytrace=False)
    return pytest.skip(reason)


@pytest.fixture(scope="session")
def server_image(base_images):
    """``qwen3-server:<12 hex digits>``: the digits follow from the content, so it is built once."""
    base = _docker("image", "inspect", "-f", "{{.Id}}", base_images["BASE_IMAGE"])
    tag = content_tag(REPOSITORY, base)
    if subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=False).returncode != 0:
        started = time.monotonic()
        version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["version"]
        revision = subprocess.run(
            ["git", "-C", REPOSITORY, "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True, check=False
        )
        build(tag, **base_images, VERSION=version, REVISION=revision.stdout.strip() or "unknown")
        print(f"built {tag} in {time.monotonic() - started:.0f} s")
    return tag


@pytest.fixture(scope="module")
def new_site(cluster, server_image, tmp_path_factory):
    """Makes stacks, each for a namespace; keywords are the environment's."""
    cluster.load_image(server_image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", engine_path())  # the Automation API looks for the engine there

        def make(namespace, **environment):
            folder = tmp_path_factory.mktemp("site")
            site = LiveSite(folder / "project", cluster, server_image, namespace, engine(folder))
            site.write(**environment)
            return site

        yield make


def build(tag, **arguments):
    words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    return _docker("build", "-f", "infra/image/Dockerfile", *words, "-t", tag, ".")


def _docker(*words):
    done = subprocess.run(["docker", *words], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()
