"""Log lines from a Kubernetes cluster to a central collector: rsyslog on every node, as the role ``logs`` on servers.

    python -m monitoring.log_shipping ship_to=logs.example:6514 image=NAME@sha256:... | kubectl apply -f -

One shipper for both, because it is one: the same program, the same queue on the disk, the same RFC 5424 over TCP, so a
collector (Loki's or Elastic's agents, an OpenTelemetry Collector's syslog receiver) takes both alike, and what is
tested on one is known of the other. It needs no rights in the cluster: labels come from the files' names. Lines can
also go by OTLP straight from the server (``serving.otlp_endpoint``), with nothing on the nodes; files stay when the
collector is away.

The pods' namespace enforces the restricted standard, which permits no files of the node: the DaemonSet lives in
another (``into``). The image needs rsyslog (with rsyslog-gnutls for TLS): Debian's package is enough. Retention on the
node is the kubelet's (containerLogMaxSize, containerLogMaxFiles); the archive is the collector's.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import yaml
from pydantic import Field, field_validator

import runconfig
from runconfig import ConfigError, RunConfig

TEMPLATE = Path(__file__).with_suffix(".conf.j2")
NAME = "qwen3-logs"
STATE = "/var/lib/qwen3-logs"
PODS = "/var/log/pods"
CONFIGURATION = "/etc/qwen3-logs"
CA = "/etc/qwen3-logs-ca/ca.crt"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Manifest = dict[str, Any]

EXAMPLES = """\
ends with 0, or 2 where a setting is wrong; the manifests go to stdout
"""


class Shipping(RunConfig):
    """Where lines come from and go to."""

    ship_to: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9.]*:[0-9]{1,5}$")]
    """The collector, HOST:PORT."""
    image: str
    """Image with rsyslog, pinned by digest: NAME@sha256:..."""
    namespace: Name = "qwen3"
    """Of the model server's pods."""
    into: Name = "monitoring"
    """Namespace of the DaemonSet, which may mount the nodes' files; it has to be there."""
    framing: Literal["traditional", "octet-counted"] = "traditional"
    """How the collector tells messages apart: by a line feed, or by a length in front (RFC 5425)."""
    ca_config_map: Name | None = None
    """ConfigMap in ``into`` whose ca.crt signs the collector's certificate: lines go over TLS, and to that name only.
    null: in the clear."""
    queue_mib: Annotated[int, Field(ge=4, le=65_536)] = 512
    """Lines that wait for the collector on each node's disk, MiB."""

    @field_validator("image")
    @classmethod
    def _pinned(cls, image: str) -> str:
        if re.search(r"@sha256:[0-9a-f]{64}$", image) is None:
            raise ValueError(
                f"{image!r} is not pinned, and a tag may name something else tomorrow: write NAME@sha256:..."
            )
        return image

    @field_validator("ship_to")
    @classmethod
    def _a_port(cls, ship_to: str) -> str:
        if int(ship_to.rpartition(":")[2]) not in range(1, 65536):
            raise ValueError(f"{ship_to!r} has no port: write HOST:PORT, port 1 to 65535")
        return ship_to


def configuration(settings: Shipping, *, pods: str = PODS, state: str = STATE) -> str:
    """rsyslog's, for one node, whose name the variable NODE_NAME has."""
    host, _, port = settings.ship_to.rpartition(":")
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  no page
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        host=host,
        port=port,
        namespace=settings.namespace,
        framing=settings.framing,
        queue_mib=settings.queue_mib,
        ca="" if settings.ca_config_map is None else CA,
        pods=pods,
        state=state,
    )


def manifests(settings: Shipping) -> list[Manifest]:
    """ServiceAccount, ConfigMap and DaemonSet, in the order in which they have to be made."""
    text = configuration(settings)
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "qwen3-stack"}

    def made(api: str, kind: str, **rest: Any) -> Manifest:
        metadata = {"name": NAME, "namespace": settings.into, "labels": labels}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}

    volumes: list[Manifest] = [
        {"name": "configuration", "configMap": {"name": NAME}},
        {"name": "pods", "hostPath": {"path": PODS, "type": "Directory"}},
        {"name": "state", "hostPath": {"path": STATE, "type": "DirectoryOrCreate"}},
    ]
    mounts: list[Manifest] = [
        {"name": "configuration", "mountPath": CONFIGURATION, "readOnly": True},
        {"name": "pods", "mountPath": PODS, "readOnly": True},
        {"name": "state", "mountPath": STATE},
    ]
    if settings.ca_config_map is not None:
        volumes.append({"name": "ca", "configMap": {"name": settings.ca_config_map}})
        mounts.append({"name": "ca", "mountPath": str(Path(CA).parent), "readOnly": True})
    container = {
        "name": "rsyslog",
        "image": settings.image,
        "command": ["rsyslogd", "-n", "-i", f"{STATE}/rsyslogd.pid", "-f", f"{CONFIGURATION}/rsyslog.conf"],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "250m", "memory": "128Mi"}},
        # The kubelet's files are root's, and root without a capability reads its own.
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }
    pod = {
        "metadata": {
            "labels": labels,
            # Another configuration is another pod: rsyslog reads it once.
            "annotations": {"qwen3/configuration": hashlib.sha256(text.encode()).hexdigest()[:12]},
        },
        "spec": {
            "serviceAccountName": NAME,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 15,
            "containers": [container],
            "volumes": volumes,
            # Nodes that carry models may be tainted for them.
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        },
    }
    return [
        made("v1", "ServiceAccount", automountServiceAccountToken=False),
        made("v1", "ConfigMap", data={"rsyslog.conf": text}),
        made("apps/v1", "DaemonSet", spec={"selector": {"matchLabels": labels}, "template": pod}),
    ]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.log_shipping",
        description="Print what ships the model server's log lines from a Kubernetes cluster, for kubectl apply -f -.",
        epilog="settings:\n" + _described() + "\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    try:
        settings = runconfig.load(Shipping, None, parser.parse_intermixed_args(words).settings)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(yaml.safe_dump_all(manifests(settings), sort_keys=False), end="")
    return 0


def _described() -> str:
    return "".join(f"  {name}: {field.description}\n" for name, field in Shipping.model_fields.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
