"""``python -m infra.release [WHEELHOUSE]``: what a bare server is given, as one archive; prints its path and version.

    app/               the server's sources, two names on a path
    requirements.txt   its packages, pinned with hashes
    wheels/            those packages, where a wheelhouse is given

The version is a digest of the sources and pins: the same on every machine, and another one for any change.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from infra.sources import CODE, REQUIREMENTS, digest, files
from model_server.cache import cache_dir
from model_server.errors import ConfigurationError

PROJECT = Path(__file__).resolve().parents[1]


def pack(project: Path, wheelhouse: Path | None, into: Path) -> tuple[str, Path]:
    """Version, and the archive in ``into``; nothing is packed twice.

    Raises:
        ConfigurationError: The wheelhouse is not there or empty.
    """
    version = digest(project, (*CODE, REQUIREMENTS))
    members = {f"app/{path.relative_to(project)}": path for path in files(project, CODE)}
    members["requirements.txt"] = project / REQUIREMENTS
    archive = into / f"{version}.tar"
    if wheelhouse is not None:
        wheels = sorted(wheelhouse.glob("*.whl"))
        if not wheels:
            raise ConfigurationError(f"there are no wheels in {wheelhouse}: fill it with `pip download`")
        members |= {f"wheels/{path.name}": path for path in wheels}
        names = hashlib.sha256("\0".join(path.name for path in wheels).encode()).hexdigest()[:8]
        archive = into / f"{version}-{names}.tar"
    if not archive.exists():
        into.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for name, path in sorted(members.items()):
                _add(tar, name, path)
        part.replace(archive)
    return version, archive


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """Without owner, time and mode of this machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as content:
        tar.addfile(entry, content)


def main(words: Sequence[str]) -> int:
    wheelhouse = Path(words[0]) if words and words[0] else None
    try:
        version, archive = pack(PROJECT, wheelhouse, cache_dir() / "releases")
    except (ConfigurationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"version": version, "archive": str(archive)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
