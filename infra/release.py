"""``python -m infra.release ENVIRONMENT.yml [wheelhouse=DIR] [model=PATH] [model_sha256=HEX] [python=3.11]``

What bare servers are given, as archives; prints names and paths as JSON. Everything is looked at before a host is.

    release    digest of sources, pins and the unit: the same on every machine, and another one for any change;
               ``archive`` has app/ (two names on a path) and requirements.txt
    packages   digest of the pins and the Python they are for: a virtual environment serves all releases that need the
               same; ``wheels`` is an archive of the wheelhouse, or empty
    version    the release and the environment, without what applies while it runs (keys, rate limit, log level): what a
               rollout brings, and what a rollback brings back
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.manifests import checksum
from infra.sources import CODE, REQUIREMENTS, digest, files
from model_server import deployment
from model_server.cache import cache_dir
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError
from model_server.model_source import resolve

PROJECT = Path(__file__).resolve().parents[1]
UNIT = "playbooks/roles/model_server/templates"
WORDS = ("wheelhouse", "model", "model_sha256", "python")


def pack(project: Path, into: Path) -> tuple[str, Path]:
    """Release, and its archive in ``into``."""
    release = digest(project, (*CODE, REQUIREMENTS, UNIT))
    members = {f"app/{path.relative_to(project)}": path for path in files(project, CODE)}
    return release, _archive(into / f"{release}.tar", members | {"requirements.txt": project / REQUIREMENTS})


def pack_wheels(wheelhouse: Path, into: Path) -> Path:
    """
    Raises:
        ConfigurationError: The wheelhouse is not there or empty.
    """
    wheels = sorted(wheelhouse.glob("*.whl"))
    if not wheels:
        raise ConfigurationError(f"there are no wheels in {wheelhouse}: fill it with `pip download`")
    names = hashlib.sha256("\0".join(path.name for path in wheels).encode()).hexdigest()[:12]
    return _archive(into / f"wheels-{names}.tar", {path.name: path for path in wheels})


def _archive(archive: Path, members: Mapping[str, Path]) -> Path:
    """Nothing is packed twice: its name says what is in it."""
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        # Each host asks, and they ask at once: a file of one's own, put in place as a whole.
        with tempfile.NamedTemporaryFile(dir=archive.parent, suffix=".part", delete=False) as part:
            with tarfile.open(fileobj=part, mode="w") as tar:
                for name, path in sorted(members.items()):
                    _add(tar, name, path)
            Path(part.name).replace(archive)
    return archive


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """Without owner, time and mode of this machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as content:
        tar.addfile(entry, content)


def version(release: str, config: DeploymentConfig) -> str:
    """The model's version, for people, and 8 hex digits of all that takes a restart."""
    label = re.sub(r"[^A-Za-z0-9.]+", "-", config.model_version).strip("-.")
    return f"{label}-{hashlib.sha256(f'{release} {checksum(config)}'.encode()).hexdigest()[:8]}"


def check_wheelhouse(wheelhouse: Path, requirements: Path, python: str) -> None:
    """
    Raises:
        ConfigurationError: A package that ``requirements`` pins is not there for that Python, or is another file.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--dry-run"]
        command += ["--no-index", "--find-links", str(wheelhouse), "--no-deps", "--only-binary", ":all:"]
        command += ["--require-hashes", "-r", str(requirements), "--python-version", python, "--target", nowhere]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if "ERROR" in line]
        reason = next((line for line in errors if "No matching distribution" in line), (errors or [done.stderr])[0])
        raise ConfigurationError(
            f"the wheelhouse {wheelhouse} cannot install {requirements.name} for Python {python}: {reason}; fill it "
            f"with `pip download --no-deps --only-binary :all: --require-hashes --python-version {python} "
            f"-r {requirements}`"
        )


def check_model(model: Path, sha256: str, config: DeploymentConfig) -> None:
    """
    Raises:
        ConfigurationError: It is an archive whose checksum is not given or another one, or holds more than one folder.
        ModelLoadError: It is a folder or file that cannot be used, or differs from its own manifest.
    """
    if model.is_dir() or model.suffix == ".gguf":
        resolve(str(model), engine=config.engine)
        return
    if not sha256:
        raise ConfigurationError(f"{model} is an archive: give its checksum too (`sha256sum {model.name}`)")
    with model.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ConfigurationError(
            f"{model} has sha256 {found} and {sha256} was given: it is another archive, or was damaged on "
            "the way; fetch it again"
        )
    with tarfile.open(model) as tar:
        tops = sorted({name.removeprefix("./").split("/")[0] for name in tar.getnames()} - {"", "."})
    if len(tops) != 1:
        raise ConfigurationError(f"{model} holds {', '.join(tops) or 'nothing'}: expected one folder, the model's")


def release(environment: Path, given: Mapping[str, str]) -> dict[str, str]:
    """All that the model_server role is told.

    Raises:
        DeploymentError: Something is missing or damaged.
    """
    config = deployment.load(environment, (), {})
    into, python, wheels = cache_dir() / "releases", given.get("python", "3.11"), None
    if given.get("wheelhouse"):
        wheels = pack_wheels(Path(given["wheelhouse"]), into)
        check_wheelhouse(Path(given["wheelhouse"]), PROJECT / REQUIREMENTS, python)
    if given.get("model"):
        check_model(Path(given["model"]), given.get("model_sha256", ""), config)
    name, archive = pack(PROJECT, into)
    return {
        "release": name,
        "version": version(name, config),
        "archive": str(archive),
        "packages": f"{digest(PROJECT, (REQUIREMENTS,))}-python{python}",
        "wheels": "" if wheels is None else str(wheels),
    }


def main(words: Sequence[str]) -> int:
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if not words or words[0] in ("-h", "--help") or len(given) < len(words) - 1 or set(given) - set(WORDS):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(json.dumps(release(Path(words[0]), given)))
    except (DeploymentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
