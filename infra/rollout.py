"""``python -m infra.rollout``: a new version beside the running one, measured against it, promoted or taken back.

Each step is one ``pulumi up`` of the stack with another ``rollout`` in its configuration, which is written first: after
a kill at any moment, ``resume`` goes on with the step that the file names. What may go wrong ends in the state that
worked: the candidate is removed, the stable track was never smaller than before.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from infra import gate
from infra.image_build import image_name, read_build
from infra.lease import Lease
from infra.manifests import manifests, read_cluster
from infra.rollout_site import BusyError, RolloutError, Site, say
from infra.tracks import CANARY, STABLE, Rollout, Step, read_rollout, steps
from model_server import capacity, deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
examples:
  python -m infra.rollout staging image=qwen3-server@sha256:...
      bring up the candidate, gate it, shift the traffic, promote it or take it back
  python -m infra.rollout production optimization_settings.max_batch_size=48 --plan
      what would be done, and which shares of traffic the numbers of instances can make; nothing is changed
  python -m infra.rollout production resume      go on after an interruption, also of a kill -9
  python -m infra.rollout production rollback    take the candidate back
  python -m infra.rollout production history     what was rolled out, when, and how it ended

the gate: before any traffic it must say PASS. At each later share it is asked again, and there only FAIL, or a run that
is invalid twice, takes the candidate back: what passed once is taken back on evidence against it, not for want of
evidence. Where the candidate has all of the traffic, errors and answers are judged, not speed: the other track is idle.

exit codes: 0 promoted (or rolled back on request); 1 the gate said FAIL, or the candidate did not become ready: it was
taken back; 2 usage or settings, or another rollout is at work: nothing was changed; 3 the gate came to no verdict,
4 its run was invalid: taken back; 130 stopped by Ctrl-C: `resume` goes on
"""
VERBS = ("resume", "rollback", "history")
PROMOTED, FAILED, USAGE = gate.PASS, gate.FAIL, gate.USAGE
"""And what else the gate may say: infra/gate.py."""
INTERRUPTED = 130
ASKED = {
    "stable": "gate: must say PASS, or the candidate is taken back",
    "both": "gate: asked again; FAIL, or an invalid run twice, takes the candidate back",
    "canary": "gate: asked again about errors and answers; FAIL, or an invalid run twice, takes the candidate back",
}
"""By which tracks have traffic."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.rollout",
        usage="python -m infra.rollout ENVIRONMENT key=value ... | resume | rollback | history",
        description="Roll out a new version of an environment on Kubernetes; it takes traffic when the gate says PASS.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", help="name of the stack and of environments/NAME.yml")
    parser.add_argument("words", nargs="+", metavar="key=value", help="how the candidate differs; or a verb")
    parser.add_argument("--plan", action="store_true", help="say what would be done and stop")
    parser.add_argument("-C", "--cwd", type=Path, default=ROOT, help="folder of Pulumi.yaml and environments/")
    words = parser.parse_intermixed_args(list(argv))
    try:
        return rollout(words.cwd.absolute(), words.environment, words.words, plan=words.plan)
    except RolloutError as error:
        print(f"rollout: {error}", file=sys.stderr)
        return FAILED
    except DeploymentError as error:
        print(f"rollout: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("rollout: interrupted: `resume` goes on, `rollback` takes the candidate back", file=sys.stderr)
        return INTERRUPTED


def rollout(root: Path, name: str, words: list[str], *, plan: bool) -> int:
    """Do what ``words`` say for the stack ``name``; returns the exit code.

    Raises:
        ConfigurationError: Nothing was changed.
        BusyError: Somebody else is at work.
        RolloutError: A step failed, and so did taking it back; ``resume`` tries that again.
    """
    os.chdir(root)  # where the paths of an environment begin
    folder = root / "runs" / "rollouts" / name
    folder.mkdir(parents=True, exist_ok=True)
    if words == ["history"]:
        return show_history(folder)
    verb = words[0] if len(words) == 1 and words[0] in VERBS else None
    if verb is None and (wrong := [word for word in words if "=" not in word]):
        raise ConfigurationError(f"{wrong[0]!r} is neither key=value nor one of {', '.join(VERBS)}")
    with locked(folder / "lock"):
        site = Site.open(root, name, folder)
        under_way = read_rollout(site.setting("rollout"))
        if verb is None:
            if under_way is not None:
                raise ConfigurationError(
                    f"the rollout {under_way.id} is under way ({' '.join(under_way.overrides)}): "
                    f"`python -m infra.rollout {name} resume` or `rollback` it first"
                )
            first = begin(site, words, plan=plan)
            return PROMOTED if first is None else under_lease(site, first)
        if under_way is None:
            raise ConfigurationError(f"no rollout is under way: there is nothing to {verb}; begin one with key=value")
        if plan:
            say(f"the rollout {under_way.id} is at its {under_way.phase}; {verb} would go on from there")
            return PROMOTED
        return under_lease(site, under_way, verb)


def begin(site: Site, words: Sequence[str], *, plan: bool) -> Rollout | None:
    """The first step of a rollout that can be done; None where only the plan was asked for.

    Raises:
        ConfigurationError: It cannot; the message says why.
    """
    promoted: list[str] = site.setting("overrides") or []
    state = Rollout(
        id=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        overrides=tuple(words),
        stable=0,
        canary=1,
        traffic="stable",
        before=tuple(promoted),
    )
    candidate = site.config(*state.after)
    changed = deployment.changes(site.config(*state.before), candidate)
    if not changed:
        raise ConfigurationError(f"{' '.join(words)} is what runs: there is nothing to roll out")
    capacity.check(candidate)
    image = candidate.image or site.text("qwen3-stack:image")
    image = image or image_name(site.root, read_build(site.setting("build")))
    manifests(candidate, read_cluster(site.setting("cluster") or {}, "cluster"), image)  # refuses what cannot run
    if not plan:
        lease_of(site, state).look()
    site.refresh()
    replicas = stable_replicas(site)
    way = steps(candidate, replicas)
    show(way, changed, candidate)
    return None if plan else at_step(state, way[0])


def under_lease(site: Site, state: Rollout, verb: str | None = None) -> int:
    """All that changes something; nobody else does so meanwhile."""
    lease = lease_of(site, state)
    if verb is None:
        site.write(state)  # before the Lease: a kill must leave none that nobody can resume
    try:
        lease.take()
    except DeploymentError:
        if verb is None:
            site.forget()
        raise
    with lease:
        if verb is None:
            site.note(id=state.id, event="begun", overrides=state.overrides, replicas=state.stable)
        else:
            site.note(id=state.id, event=verb, phase=state.phase)
            site.recover()
        if verb == "rollback":
            return take_back(site, lease, state, "asked for", code=PROMOTED)
        return go_on(site, lease, state)


def lease_of(site: Site, state: Rollout) -> Lease:
    return Lease(site.kubectl(), read_cluster(site.setting("cluster") or {}, "cluster").namespace, state.id)


def go_on(site: Site, lease: Lease, state: Rollout) -> int:
    """From ``state``, which the cluster may have reached or not, to the end."""
    if state.phase == "removal":
        return remove(site, lease, state)
    candidate = site.config(*state.after)
    for step in steps_left(candidate, state):
        state = at_step(state, step)
        site.write(state)
        lease.check()
        try:
            site.up(f"{step.canary} of the candidate beside {step.stable}, {step.percent:.0f} % of the traffic")
        except RolloutError as error:
            return take_back(site, lease, state, str(error), code=FAILED)
        site.note(id=state.id, event="step", canary=step.canary, stable=step.stable, percent=round(step.percent, 1))
        code = judge(site, candidate, state)
        if code != PROMOTED:
            return take_back(site, lease, state, f"the gate said {gate.WORDS.get(code, code)}", code=code)
    return promote(site, lease, state)


def steps_left(candidate: DeploymentConfig, state: Rollout) -> list[Step]:
    """From the one that ``state`` names; none when the stable track is being promoted already."""
    if state.phase != "share":
        return []
    way = steps(candidate, state.stable)
    here = [at for at, step in enumerate(way) if (step.canary, step.traffic) == (state.canary, state.traffic)]
    return way[here[0] if here else 0 :]


def judge(site: Site, candidate: DeploymentConfig, state: Rollout) -> int:
    """What the gate's answer means at this share: 0 goes on, anything else takes the candidate back with that code."""
    if candidate.rollout.gate is None:
        return PROMOTED
    return gate.judge(lambda: ask_gate(site, candidate, state), first=state.traffic == "stable")


def ask_gate(site: Site, candidate: DeploymentConfig, state: Rollout) -> int:
    """The candidate against the stable track, by their own Services; the gate's exit code."""
    assert candidate.rollout.gate is not None
    scenario = site.root / candidate.rollout.gate
    addresses = site.stack.outputs()["addresses"].value
    name = f"gate-{state.traffic}-{state.canary}"
    asked = len(list((site.folder / state.id).glob(f"{name}*")))  # an interrupted one has left its folder
    out = site.folder / state.id / (f"{name}-{asked + 1}" if asked else name)
    keyed = candidate.serving.api_keys_file is not None
    key = gate.first_key(site.text("qwen3-stack:api_keys") or "") if keyed else None
    words = without_speed(scenario) if state.traffic == "canary" else []
    say(f"gate: candidate against stable, results in {out.relative_to(site.root)}")
    a, b = (f"http://{addresses[track]}" for track in (STABLE, CANARY))
    code = gate.ask(scenario, a, b, out, key=key, words=words, cwd=site.root)
    said = gate.WORDS.get(code)
    say(f"gate: {said or f'could not run (exit code {code})'}")
    site.note(
        id=state.id,
        event="gate",
        verdict=said or code,
        traffic=state.traffic,
        canary=state.canary,
        report=str(out),
    )
    return code


def without_speed(scenario: Path) -> list[str]:
    """Words that leave only errors and answers to be judged: the tracks are not loaded alike."""
    guards = (yaml.safe_load(scenario.read_text(encoding="utf-8")).get("verdict") or {}).get("guards") or {}
    kept = {name: margin for name, margin in guards.items() if name == "error_rate"}
    return ["verdict.margin=0.99", f"verdict.guards={json.dumps(kept)}"]


def promote(site: Site, lease: Lease, state: Rollout) -> int:
    """The stable track becomes the candidate, instance by instance, while the candidate still serves."""
    state = state.model_copy(update={"phase": "promotion"})
    site.write(state)
    lease.check()
    try:
        site.up("promoting: the stable track takes over the candidate's version")
    except RolloutError as error:
        return take_back(site, lease, state, str(error), code=FAILED)
    site.note(id=state.id, event="promoted", overrides=list(state.overrides), before=list(state.before))
    state = state.model_copy(update={"phase": "removal", "code": PROMOTED})
    site.write(state, overrides=state.after)
    code = remove(site, lease, state)
    say(
        f"promoted; to keep it, write {' '.join(state.overrides)} into {site.environment.relative_to(site.root)} "
        "and `pulumi config rm overrides`"
    )
    return code


def take_back(site: Site, lease: Lease, state: Rollout, why: str, *, code: int) -> int:
    """All traffic to the stable track, then the candidate's removal: its streams end by themselves."""
    say(f"taking the candidate back: {why}")
    site.note(id=state.id, event="rolled back", reason=why)
    state = state.model_copy(update={"phase": "removal", "code": code})
    site.write(state, overrides=state.before)
    return remove(site, lease, state)


def remove(site: Site, lease: Lease, state: Rollout) -> int:
    """The candidate's track goes, whether its version was promoted or not; the code that the rollout ends with."""
    lease.check()
    site.up("removing the candidate's track; the stable track has all the traffic")
    if (why := lease.end()) is not None:
        raise RolloutError(f"the candidate is removed, but not the rollout's Lease: {why}; `resume` tries that again")
    site.forget()
    site.note(id=state.id, event="ended", code=state.code)
    return state.code


def stable_replicas(site: Site) -> int:
    """Instances of the stable track now, which the autoscaler may have raised."""
    for resource in site.resources():
        if resource["type"].endswith(":Deployment") and resource["urn"].endswith("::qwen3-inference-deployment"):
            status = resource.get("outputs", {}).get("status") or {}
            return max(int(status.get("replicas", 0)), site.config(*(site.setting("overrides") or [])).replicas.min)
    raise ConfigurationError("the stack has no deployment yet: `pulumi up` first, then there is something to compare")


def show(way: Sequence[Step], changed: Sequence[tuple[str, str]], candidate: DeploymentConfig) -> None:
    gated = candidate.rollout.gate is not None
    for path, takes in changed:
        say(f"changes {path} ({takes})")
    for step in way:
        asked = "" if step.traffic != "both" else f" (asked for: {step.asked_percent} %)"
        say(f"step: stable {step.stable}, candidate {step.canary}: {step.percent:.0f} % of the traffic{asked}")
        if gated:
            say(f"  {ASKED[step.traffic]}")
    say("then: promotion")


def show_history(folder: Path) -> int:
    path = folder / "history.jsonl"
    if not path.exists():
        print("nothing was rolled out here yet")
        return 0
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half a line: its writer was killed
        rest = ", ".join(f"{key}={value}" for key, value in line.items() if key not in {"at", "id", "event"})
        print(f"{line['at']}  {line['id']}  {line['event']:<12} {rest}")
    return 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One rollout of a stack at a time from this folder; what others do is up to the Lease and Pulumi's own lock."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another rollout of this stack is at work here; wait until it has ended") from None
        yield


def at_step(state: Rollout, step: Step) -> Rollout:
    return state.model_copy(update={"stable": step.stable, "canary": step.canary, "traffic": step.traffic})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
