"""The server's image, built by ``pulumi up`` where neither environment nor stack names one.

Its tag is the hash of all that its content follows from, so a plan knows it before anything is built, equal sources
give the same pods, and a changed line of the server rolls them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pulumi
import pulumi_docker as docker
from pydantic import Field

import runconfig
from infra.sources import CODE, REQUIREMENTS, digest
from model_server.errors import ConfigurationError
from runconfig import RunConfig

DOCKERFILE = "infra/image/Dockerfile"
SOURCES = (
    ".dockerignore",
    DOCKERFILE,
    "infra/image/health.py",
    "models/complaints-tiny",
    REQUIREMENTS,
    *CODE,
)
"""Everything that the image's content follows from, besides its base."""


class Build(RunConfig):
    """``build`` of a stack: with what, and where the result goes."""

    base_image: Annotated[str, Field(min_length=1)]
    """Debian with Python 3.11 or newer, pinned; there is no default, because a site may have no public registry."""
    builder_image: str | None = None
    """The same with pip and venv; null: the base image has them."""
    registry: str | None = None
    """Where it is pushed, such as registry.example/team; null: it stays in the Docker Engine, for a cluster that shares
    its images."""


def read_build(raw: object) -> Build:
    """``build`` as the stack has it.

    Raises:
        ConfigurationError: With one line per problem; or it is not there.
    """
    if raw is None:
        raise ConfigurationError(
            "no image: neither the environment nor the stack names one (`pulumi config set image NAME@sha256:DIGEST`), "
            "and to build it the stack needs a base: `pulumi config set --path build.base_image NAME@sha256:DIGEST`"
        )
    try:
        return runconfig.validate(Build, raw, "the stack's build")  # type: ignore[arg-type]
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error


def content_tag(root: Path, base: str) -> str:
    """``qwen3-server:<12 hex digits>`` of the sources under ``root`` and the name or id of the base image."""
    return f"qwen3-server:{digest(root, SOURCES, base)}"


def image_name(root: Path, build: Build) -> str:
    """Under which the image is found once it is built."""
    tag = content_tag(root, f"{build.base_image} {build.builder_image}")
    return tag if build.registry is None else f"{build.registry.rstrip('/')}/{tag}"


def image_of(root: Path, build: Build) -> docker.Image:
    """The resource that builds and pushes it."""
    args = {"BASE_IMAGE": build.base_image, "BUILDER_IMAGE": build.builder_image or build.base_image}
    return docker.Image(
        "qwen3-server",
        image_name=image_name(root, build),
        skip_push=build.registry is None,
        build={"context": str(root), "dockerfile": str(root / DOCKERFILE), "args": args, "platform": "linux/amd64"},
        opts=pulumi.ResourceOptions(retain_on_delete=True),  # pods of the version before may start again
    )
