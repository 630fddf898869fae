"""What is in the image, as CycloneDX 1.6 JSON: Debian packages, Python packages, the server and its model.

Run by the image's own Python, so that it says what is there and not what was asked for; standard library only::

    docker run --rm -i --network none --entrypoint python IMAGE - VERSION < infra/image/sbom.py > sbom.cdx.json

The same image gives the same bytes: no time, no serial number.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]


def debian(status: Path = Path("/var/lib/dpkg/status"), release: Path = Path("/etc/os-release")) -> list[Component]:
    """Installed packages; none where the base is not a Debian."""
    if not status.exists():
        return []
    system = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)', release.read_text(), re.MULTILINE))
    distro = f"{system['ID']}-{system.get('VERSION_ID', '')}".rstrip("-")
    found = []
    for paragraph in status.read_text(errors="replace").split("\n\n"):
        field = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", paragraph, re.MULTILINE))
        if field.get("Status", "").endswith(" installed"):
            where = f"pkg:deb/{system['ID']}/{quote(field['Package'])}@{quote(field['Version'], safe='')}"
            purl = f"{where}?arch={field['Architecture']}&distro={distro}"
            found.append(_component("library", field["Package"], field["Version"], purl))
    return found


def python() -> list[Component]:
    found = []
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        purl = f"pkg:pypi/{quote(name)}@{quote(package.version, safe='')}"
        found.append(_component("library", package.name, package.version, purl))
    return found


def models(folder: Path = Path("/opt/qwen3/models")) -> list[Component]:
    """By the digest of their manifest, which holds the digest of every file."""
    found = []
    for manifest in folder.glob("*/manifest.json"):
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        component = _component("machine-learning-model", manifest.parent.name, digest[:12], None)
        found.append(component | {"hashes": [{"alg": "SHA-256", "content": digest}]})
    return found


def _component(kind: str, name: str, version: str, purl: str | None) -> Component:
    reference = purl or f"{kind}:{name}@{version}"
    component = {"type": kind, "bom-ref": reference, "name": name, "version": version}
    return component if purl is None else component | {"purl": purl}


def main(version: str) -> None:
    components = sorted([*debian(), *python(), *models()], key=lambda component: component["bom-ref"])
    server = _component("container", "qwen3-server", version, None)
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    print(json.dumps({**bom, "metadata": {"component": server}, "components": components}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "unknown")
