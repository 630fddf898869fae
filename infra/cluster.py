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
    weights_claim_gb: Annotated[float, Field(gt=0, le=1_048_576)] | None = None
    """GiB of a claim that is made here, empty, for somebody to fill; it and its namespace stay when the rest is taken
    down. null: the claim is there."""
    weights_storage_class: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")] | None = None
    """Of the claim that is made; null: the cluster's default."""
    weights_access: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """Of the claim that is made. ReadWriteOnce: storage that one node at a time can mount, for a cluster of one."""
    autoscaling: Literal["requests", "cpu"] = "requests"
    """What the autoscaler looks at. requests: running and waiting ones, through prometheus-adapter with
    infra/prometheus_adapter.yml; cpu: where there is no adapter, and worse (one long answer keeps all threads busy)."""
    deletion_cost: bool = True
    """Where the number of instances changes, keep each pod's deletion cost at its requests in flight, so that the
    idlest goes first; takes a Role that lists and patches pods. False: where none may be made."""
    monitoring_namespace: Name = "monitoring"
    """From where the metrics port may be reached."""
    prometheus_operator: bool = False
    """Make a ServiceMonitor and a PrometheusRule; the operator's resource types have to be there."""
    grafana_dashboards: bool = False
    """Make a ConfigMap of Grafana's dashboards, with the label grafana_dashboard that the sidecar of Grafana's chart
    looks for."""
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
    def _a_claim_is_made_where_one_is_mounted(self) -> ClusterSettings:
        if self.weights_claim_gb is not None and self.weights != "claim":
            raise ValueError(
                f"weights_claim_gb is {self.weights_claim_gb:g}, but weights is {self.weights!r}: nothing would mount "
                "the claim; set weights to 'claim', or weights_claim_gb to null"
            )
        return self

    @model_validator(mode="after")
    def _metrics_come_from_elsewhere(self) -> ClusterSettings:
        if self.monitoring_namespace == self.namespace and self.create_namespace:
            raise ValueError(
                f"monitoring_namespace and namespace are both {self.namespace!r}: Prometheus would not start under "
                "the restricted standard; give it a namespace of its own"
            )
        return self
