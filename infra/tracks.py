"""Two versions side by side: the stable track keeps its name, the candidate is ``qwen3-inference-canary``.

The state of a rollout is data in the stack's configuration (``rollout``), written before each step, so that a rollout
that was interrupted anywhere goes on from what the cluster was last told. Traffic follows the numbers of ready
instances behind the common Service; until the gate has said PASS that Service selects the stable track alone.
A Service of each track alone is what the gate asks. It keeps a client at one instance, so that one of the stable
track is compared with one of the candidate, however many there are of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

import runconfig
from infra.cluster import ClusterSettings
from infra.manifests import NAME, Manifest, config_map, server, service
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError
from runconfig import RunConfig

CANARY = f"{NAME}-canary"
STABLE = f"{NAME}-stable"
"""Services of one track alone, by which the gate reaches them."""
Traffic = Literal["stable", "both", "canary"]
Phase = Literal["share", "promotion", "removal"]


class Rollout(RunConfig):
    """One step of a rollout, as the cluster is told."""

    id: Annotated[str, Field(min_length=1)]
    """When it began and what for; in the history."""
    overrides: tuple[str, ...]
    """``key=value`` words by which the candidate's environment differs, such as ``image=NAME@sha256:...``."""
    stable: Annotated[int, Field(ge=0)]
    """Instances of the stable track; the autoscaler is held at this number."""
    canary: Annotated[int, Field(ge=1)]
    """Instances of the candidate."""
    traffic: Traffic
    """Which tracks the common Service reaches."""
    phase: Phase = "share"
    """share: the candidate stands beside the stable track; promotion: the stable track takes over its version;
    removal: the candidate goes."""
    before: tuple[str, ...] = ()
    """Words of what was promoted earlier, by which the stable track differs from its environment's file."""
    code: int = 0
    """Removal: the exit code with which the rollout then ends."""

    @property
    def after(self) -> tuple[str, ...]:
        """Words of the candidate: they replace those of ``before`` that have the same key."""
        keys = {word.partition("=")[0] for word in self.overrides}
        return (*(word for word in self.before if word.partition("=")[0] not in keys), *self.overrides)


class Step(RunConfig):
    """Numbers of instances, and the share of traffic that they make."""

    stable: int
    """Instances."""
    canary: int
    """Instances."""
    traffic: Traffic
    """Which tracks get traffic."""
    asked_percent: int
    """Share that the environment asks for."""

    @property
    def percent(self) -> float:
        """Share of traffic that the candidate gets."""
        if self.traffic == "both":
            return 100 * self.canary / (self.stable + self.canary)
        return 100.0 if self.traffic == "canary" else 0.0


def read_rollout(raw: object) -> Rollout | None:
    """The step under way, as the stack's configuration has it.

    Raises:
        ConfigurationError: Somebody wrote it by hand, and wrongly.
    """
    if raw is None:
        return None
    try:
        return runconfig.validate(Rollout, raw, "the stack's rollout")  # type: ignore[arg-type]
    except runconfig.ConfigError as error:
        raise ConfigurationError(str(error)) from error


def versions(rollout: Rollout | None, promoted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """By which words the two tracks differ from their environment's file; None: there is no candidate.

    Args:
        promoted: What the stack says while there is no rollout.
    """
    if rollout is None or rollout.phase == "removal":
        return tuple(promoted), None
    return (rollout.after if rollout.phase == "promotion" else rollout.before), rollout.after


def steps(config: DeploymentConfig, replicas: int) -> list[Step]:
    """The way of a candidate up to, not including, its promotion; ``replicas``: how many are stable now.

    Never fewer stable instances than there are: a rollout that stops leaves the capacity that was there. A share is
    rounded to the next that whole instances can make, at least one of them and at most as many as are stable.
    """
    if config.rollout.strategy == "blue-green":
        return [
            Step(stable=replicas, canary=replicas, traffic="stable", asked_percent=0),
            Step(stable=replicas, canary=replicas, traffic="canary", asked_percent=100),
        ]
    found = [Step(stable=replicas, canary=1, traffic="stable", asked_percent=0)]
    for percent in config.rollout.steps[:-1]:
        canary = min(replicas, max(1, round(replicas * percent / (100 - percent))))
        step = Step(stable=replicas, canary=canary, traffic="both", asked_percent=percent)
        if (step.canary, step.traffic) == (found[-1].canary, found[-1].traffic):
            found[-1] = step  # whole instances cannot tell the two shares apart
        else:
            found.append(step)
    return found


def candidate(config: DeploymentConfig, cluster: ClusterSettings, image: str, replicas: int) -> list[Manifest]:
    """What stands beside the stable objects while a rollout lasts; ``config``: the candidate's."""
    settings = config_map(config, cluster)
    name = settings["metadata"]["name"].replace(NAME, CANARY)
    settings["metadata"]["name"] = name
    found = server(config, cluster, image)
    found["metadata"]["name"] = CANARY
    spec = found["spec"]
    spec["replicas"] = replicas
    spec["selector"]["matchLabels"]["track"] = spec["template"]["metadata"]["labels"]["track"] = "canary"
    for volume in spec["template"]["spec"]["volumes"]:
        if volume["name"] == "config":
            volume["configMap"]["name"] = name
    return [settings, *(_track_service(cluster, track) for track in (STABLE, CANARY)), found]


def _track_service(cluster: ClusterSettings, name: str) -> Manifest:
    found = service(cluster)
    found["metadata"]["name"] = name
    found["spec"]["selector"] = {"app": NAME, "track": name.removeprefix(f"{NAME}-")}
    found["spec"]["sessionAffinity"] = "ClientIP"
    return found


def under_rollout(stable: list[Manifest], rollout: Rollout) -> list[Manifest]:
    """The stable objects with the autoscaler held and the common Service pointed as ``rollout`` says."""
    for found in stable:
        if found["kind"] == "HorizontalPodAutoscaler":
            found["spec"] |= {"minReplicas": max(1, rollout.stable), "maxReplicas": max(1, rollout.stable)}
        if found["kind"] == "Service" and found["metadata"]["name"] == NAME:
            track = {} if rollout.traffic == "both" else {"track": rollout.traffic}
            found["spec"]["selector"] = {"app": NAME, **track}
    return stable
