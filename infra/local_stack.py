"""The stack of a laptop, as a Pulumi component: network, images, files and the containers of infra/local_containers.py.

Not run with the real provider here, whose plugin is downloaded: tests hold the arguments to Pulumi's mocks, and run
the same arguments on a real Docker Engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_docker as docker

from infra import local_containers as containers
from infra.local_containers import KEYS_DIR, LOOPBACK, NETWORK, Arguments, LocalSettings
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class LocalStackArgs:
    """What runs.

    Attributes:
        config: The environment.
        settings: The stack's ``local``.
        image: Of the server: its id, or its pinned name.
        root: The repository; relative model paths begin there.
        folder: Where the containers' files are kept, while they are there.
        api_keys: One a line; required when ``serving.api_keys_file`` is set.
    """

    config: DeploymentConfig
    settings: LocalSettings
    image: pulumi.Input[str]
    root: Path
    folder: Path
    api_keys: pulumi.Input[str] | None = None


def state_folder(stack: str) -> Path:
    """``$XDG_STATE_HOME/qwen3-stack/<stack>``: no cache, since containers that start again mount it."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "qwen3-stack" / stack


class LocalStack(pulumi.ComponentResource):
    """Server, and Prometheus and Grafana where the stack names their images.

    Attributes:
        urls: server, prometheus, grafana -> where it answers on this machine.
    """

    urls: dict[str, str]

    def __init__(self, name: str, args: LocalStackArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("qwen3:infra:LocalStack", name, {}, opts)
        self._root, self._folder = args.root, args.folder
        settings, config = args.settings, containers.inside(args.config, args.settings, args.root)
        _keep_private(self._folder)
        self._there: list[pulumi.Resource] = [docker.Network(NETWORK, name=NETWORK, opts=self._child())]
        self._server(config, args)
        self.urls = {"server": f"http://{LOOPBACK}:{config.serving.port}"}
        if settings.prometheus_image is not None:
            files = containers.prometheus_files(config)
            where = self._files(containers.named("prometheus", files), files)
            self._with_volume(containers.prometheus(settings, where), settings.prometheus_image)
            self.urls["prometheus"] = f"http://{LOOPBACK}:{settings.prometheus_port}"
        if settings.grafana_image is not None:
            files = containers.grafana_files(dashboards=(args.root / containers.DASHBOARDS).is_dir())
            where = self._files(containers.named("grafana", files), files)
            self._with_volume(containers.grafana(settings, where, args.root), settings.grafana_image)
            self.urls["grafana"] = f"http://{LOOPBACK}:{settings.grafana_port}"
        self.register_outputs({"urls": self.urls})

    def _server(self, config: DeploymentConfig, args: LocalStackArgs) -> None:
        where = self._files(containers.server_folder(config), containers.server_files(config))
        arguments = containers.server(config, where, args.root)
        if args.api_keys is not None:
            # Running servers read the file anew. The path is no secret, and it is known once the keys are written.
            folder = pulumi.Output.from_input(args.api_keys).apply(
                lambda keys: str(self._files("keys", {"api_keys": keys}))
            )
            keys = {"type": "bind", "source": pulumi.Output.unsecret(folder), "target": KEYS_DIR, "read_only": True}
            arguments["mounts"].append(keys)
        self._container(arguments, args.image)

    def _files(self, name: str, files: Mapping[str, str]) -> Path:
        """Their folder; written by an ``up``, not by a preview."""
        folder = self._folder / name
        if not pulumi.runtime.is_dry_run():
            write(folder, files)
        return folder

    def _container(self, arguments: Arguments, image: pulumi.Input[str]) -> None:
        # Its name and port cannot be there twice, so the old one ends first.
        opts = pulumi.ResourceOptions(parent=self, depends_on=self._there, delete_before_replace=True)
        docker.Container(arguments["name"], image=image, **arguments, opts=opts)

    def _with_volume(self, arguments: Arguments, image: str) -> None:
        name = arguments["name"]
        self._there.append(docker.Volume(name, name=name, opts=self._child()))
        self._container(arguments, pulled(name, image, self._child()))

    def _child(self) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self)


def pulled(name: str, image: str, opts: pulumi.ResourceOptions | None = None) -> pulumi.Output[str]:
    """Id of ``image``, pulled when the Docker Engine has it not; it stays there at the end."""
    found: pulumi.Output[str] = docker.RemoteImage(f"{name}-image", name=image, keep_locally=True, opts=opts).image_id
    return found


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Each file whole or not at all, readable by the containers' users.

    Those are other users than this machine's. What keeps the others of this machine out is the folder above, which a
    container does not pass through.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        each.chmod(0o755)


def _keep_private(folder: Path) -> None:
    if pulumi.runtime.is_dry_run():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot keep the containers' files in {folder}: {error.strerror}") from error
