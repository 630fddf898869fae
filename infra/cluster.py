"""What a site says about its cluster, beside the environment: ``cluster`` in ``Pulumi.<stack>.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from runconfig import RunConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A DNS label (RFC 1123)."""


class Capacity(RunConfig):
    """What the nodes that these pods may use can give, all together."""

    cpu_cores: Annotated[float, Field(gt=0)]
    """Cores."""
    memory_gb: Annotated[float, Field(gt=0)]
    """GiB."""


class ClusterSettings(RunConfig):
    """One cluster."""

    namespace: Name = "qwen3"
    """Where everything lives; made by the program, with the restricted pod security standard, unless
    ``create_namespace`` is false."""
    create_namespace: bool = True
    """False: it is there, and whose it is is not ours to say."""
    weights: Literal["image", "claim", "download"] = "claim"
    """Where ``model_source`` comes from. image: the image carries it; claim: a PersistentVolumeClaim that is mounted
    where relative paths begin; download: a hub id, fetched at each start into the pod's own disk."""
    weights_claim: Name = "qwen3-models"
    """Name of the claim, read by all instances (ReadOnlyMany or ReadWriteMany, unless there is one node)."""
    autoscaling: Literal["requests", "cpu"] = "requests"
    """What the autoscaler looks at. requests: running and waiting ones, through prometheus-adapter with
    infra/prometheus_adapter.yml; cpu: where there is no adapter, and worse (one long answer keeps all threads busy)."""
    monitoring_namespace: Name = "monitoring"
    """From where the metrics port may be reached."""
    prometheus_operator: bool = False
    """Make a ServiceMonitor and a PrometheusRule; the operator's resource types have to be there."""
    capacity: Capacity | None = None
    """null: not checked."""
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of the server, MODEL_SERVER_SECTION__KEY, which win over the environment's file. No secrets: variables
    can be read by whoever may read the pod."""

    @field_validator("env")
    @classmethod
    def _only_settings(cls, env: dict[str, str]) -> dict[str, str]:
        if foreign := sorted(name for name in env if not name.startswith("MODEL_SERVER_")):
            raise ValueError(
                f"{', '.join(foreign)}: only MODEL_SERVER_SECTION__KEY is read, such as MODEL_SERVER_SERVING__LOG_LEVEL"
            )
        if derived := sorted(
            env.keys() & {f"MODEL_SERVER_SERVING__{name}" for name in ("HOST", "PORT", "METRICS_PORT")}
        ):
            raise ValueError(f"{', '.join(derived)}: Services and probes follow from the environment; change it there")
        return env

    @model_validator(mode="after")
    def _metrics_come_from_elsewhere(self) -> ClusterSettings:
        if self.monitoring_namespace == self.namespace and self.create_namespace:
            raise ValueError(
                f"monitoring_namespace and namespace are both {self.namespace!r}: Prometheus would not start under "
                "the restricted standard; give it a namespace of its own"
            )
        return self
