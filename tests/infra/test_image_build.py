"""The image that Pulumi builds, with the engine's mocks: its provider needs a plugin that is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.image_build import SOURCES, Build, content_tag, image_name, image_of, read_build
from infra.manifests import pinned
from model_server.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
BASE = f"debian@sha256:{'b' * 64}"


@pytest.fixture
def sources(tmp_path):
    """A copy of what the tag follows from."""
    for name in SOURCES:
        here, there = ROOT / name, tmp_path / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, there)
    return tmp_path


def test_the_tag_follows_the_content(sources):
    before = content_tag(sources, BASE)

    assert before == content_tag(ROOT, BASE)
    assert pinned(before) == before
    assert content_tag(sources, "another") != before
    (sources / "model_server/app.py").write_text("another")
    changed = content_tag(sources, BASE)
    assert changed != before
    (sources / "README.md").write_text("not in the image")
    assert content_tag(sources, BASE) == changed


def test_the_dockerfile_copies_nothing_that_the_tag_does_not_see():
    """COPY lines that read the build's context, not another stage."""
    copied = []
    for line in (ROOT / "infra/image/Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            copied += [word for word in words[1:-1] if not word.startswith("--")]

    assert copied
    assert {name for name in copied if name not in SOURCES} == set()


def test_the_image_is_built_from_the_repository_and_pushed_where_there_is_a_registry(render):
    (made,) = render(lambda: image_of(ROOT, Build(base_image=BASE, registry="registry.example/team/")))

    inputs = made.inputs
    assert inputs["imageName"] == f"registry.example/team/{content_tag(ROOT, f'{BASE} None')}"
    assert inputs["imageName"] == image_name(ROOT, Build(base_image=BASE, registry="registry.example/team"))
    assert inputs["skipPush"] is False
    assert inputs["build"]["args"] == {"BASE_IMAGE": BASE, "BUILDER_IMAGE": BASE}
    assert (ROOT / inputs["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize(
    ("raw", "said"), [(None, "build.base_image"), ({}, "base_image: missing"), ({"base": "x"}, "unknown key")]
)
def test_a_build_without_a_base_says_what_to_set(raw, said):
    with pytest.raises(ConfigurationError, match=said):
        read_build(raw)
