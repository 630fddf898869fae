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
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pulumi import automation

from infra.image_build import image_name, read_build
from infra.manifests import manifests, read_cluster
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
  python -m infra.rollout production resume      go on after an interruption
  python -m infra.rollout production rollback    take the candidate back
  python -m infra.rollout production history     what was rolled out, when, and how it ended

exit codes: 0 promoted (or rolled back on request); 1 the gate said FAIL, or the candidate did not become ready: it was
taken back; 2 usage or settings; 3 the gate came to no verdict, 4 its run was invalid: taken back
"""
VERBS = ("resume", "rollback", "history")
PROMOTED, FAILED, USAGE = 0, 1, 2
GATE_WORDS = {0: "PASS", 1: "FAIL", 3: "NO VERDICT", 4: "INVALID"}


class RolloutError(DeploymentError):
    """The cluster did not take a step, or somebody else is at it."""


@dataclass(frozen=True)
class Site:
    """Where a rollout happens, and what it writes."""

    stack: automation.Stack
    root: Path
    environment: Path
    folder: Path

    def setting(self, name: str) -> Any:
        """A mapping or list of the stack's configuration; None where there is none."""
        found = self.text(name)
        return None if found is None else json.loads(found)

    def text(self, name: str) -> str | None:
        """A word of the stack's configuration."""
        found = self.stack.get_all_config().get(f"qwen3-stack:{name}")
        return None if found is None else str(found.value)

    def set(self, name: str, value: Any) -> None:
        if value is None:
            self.stack.remove_config(name)
        else:
            text = value.model_dump_json() if isinstance(value, Rollout) else json.dumps(value)
            self.stack.set_config(name, automation.ConfigValue(text))

    def config(self, *more: str) -> DeploymentConfig:
        return deployment.load(self.environment, [*(self.setting("overrides") or []), *more])

    def up(self, what: str) -> None:
        """One ``pulumi up``, to its end.

        Raises:
            RolloutError: The engine's own words, shortened to what they say is wrong.
        """
        say(what)
        log = (self.folder / "pulumi.log").open("a", encoding="utf-8")
        with log:
            try:
                self.stack.up(on_output=lambda line: print(line, file=log, flush=True), color="never")
            except automation.CommandError as error:
                raise RolloutError(f"{what}: {_reason(str(error))}; all of it: {log.name}") from error

    def refresh(self) -> None:
        """What the cluster has become meanwhile: the autoscaler may have raised the number of instances.

        Raises:
            RolloutError: The cluster does not answer.
        """
        try:
            self.stack.refresh(on_output=lambda _: None, color="never")
        except automation.CommandError as error:
            raise RolloutError(f"the cluster's state cannot be read: {_reason(str(error))}") from error

    def note(self, **what: object) -> None:
        """A line of the history."""
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **what}
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line, ensure_ascii=False) + "\n")


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
    except DeploymentError as error:
        print(f"rollout: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigurationError) else FAILED


def rollout(root: Path, name: str, words: list[str], *, plan: bool) -> int:
    """Do what ``words`` say for the stack ``name``; returns the exit code.

    Raises:
        ConfigurationError: Nothing was changed.
        RolloutError: The step that failed was taken back where that was possible; the message says so.
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
        site = Site(_select(root, name), root, root / "environments" / f"{name}.yml", folder)
        under_way = read_rollout(site.setting("rollout"))
        match verb:
            case "rollback":
                if under_way is None:
                    raise ConfigurationError("no rollout is under way; nothing to take back")
                return take_back(site, under_way, "asked for", code=0)
            case "resume":
                if under_way is None:
                    raise ConfigurationError("no rollout is under way; begin one with key=value words")
                return go_on(site, under_way)
            case _:
                if under_way is not None:
                    raise ConfigurationError(
                        f"the rollout {under_way.id} is under way ({' '.join(under_way.overrides)}): "
                        f"`python -m infra.rollout {name} resume` or `rollback` it first"
                    )
        candidate = site.config(*words)
        changed = deployment.changes(site.config(), candidate)
        if not changed:
            raise ConfigurationError(f"{' '.join(words)} is what runs: there is nothing to roll out")
        capacity.check(candidate)
        image = candidate.image or site.text("image") or image_name(root, read_build(site.setting("build")))
        manifests(candidate, read_cluster(site.setting("cluster") or {}, "cluster"), image)  # refuses what cannot run
        site.refresh()
        replicas = stable_replicas(site)
        way = steps(candidate, replicas)
        show(way, changed)
        if plan:
            return 0
        begun = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        first = _state(begun, words, way[0])
        site.note(id=first.id, event="begun", overrides=words, replicas=replicas)
        return go_on(site, first)


def go_on(site: Site, state: Rollout) -> int:
    """From ``state``, which the cluster may have reached or not, to the end."""
    candidate = site.config(*state.overrides)
    way = steps(candidate, state.stable)
    left = [step for step in way if (step.canary, step.traffic) == (state.canary, state.traffic)]
    position = way.index(left[0]) if left else 0
    for step in way[position:]:
        state = _state(state.id, state.overrides, step)
        try:
            site.set("rollout", state)
            site.up(f"{step.canary} of the candidate beside {step.stable}, {step.percent:.0f} % of the traffic")
        except RolloutError as error:
            return take_back(site, state, str(error), code=FAILED)
        site.note(id=state.id, event="step", canary=step.canary, stable=step.stable, percent=round(step.percent, 1))
        # Once: a gate that an equal candidate passes in 95 of 100 times, asked at three steps, aborts one of seven.
        if candidate.rollout.gate is not None and step.traffic == "stable":
            code = gate(site, candidate, state)
            if code != PROMOTED:
                return take_back(site, state, f"the gate said {GATE_WORDS.get(code, code)}", code=code)
    return promote(site, state)


def gate(site: Site, candidate: DeploymentConfig, state: Rollout) -> int:
    """The candidate against the stable track, by their own Services; the gate's exit code."""
    assert candidate.rollout.gate is not None
    addresses = site.stack.outputs()["addresses"].value
    out = site.folder / state.id / f"gate-{state.traffic}-{state.canary}"
    command = [sys.executable, "-m", "benchmarks", "gate", str(site.root / candidate.rollout.gate)]
    command += [f"a=http://{addresses[STABLE]}", f"b=http://{addresses[CANARY]}", f"out={out}"]
    say(f"gate: candidate against stable, results in {out.relative_to(site.root)}")
    code = subprocess.run(command, cwd=site.root, check=False, stdout=subprocess.DEVNULL).returncode
    say(f"gate: {GATE_WORDS.get(code, f'could not run (exit code {code})')}")
    site.note(id=state.id, event="gate", verdict=GATE_WORDS.get(code, code), canary=state.canary, report=str(out))
    return code


def promote(site: Site, state: Rollout) -> int:
    """The stable track becomes the candidate, instance by instance, while the candidate still serves."""
    before = list(site.setting("overrides") or [])
    keys = {word.partition("=")[0] for word in state.overrides}
    after = [word for word in before if word.partition("=")[0] not in keys] + list(state.overrides)
    site.set("overrides", after)
    try:
        site.up("promoting: the stable track takes over the candidate's version")
    except RolloutError as error:
        site.set("overrides", before or None)
        return take_back(site, state, str(error), code=FAILED)
    site.note(id=state.id, event="promoted", overrides=list(state.overrides), before=before)
    site.set("rollout", None)
    site.up("removing the candidate's track")
    say(
        f"promoted; to keep it, write {' '.join(state.overrides)} into {site.environment.relative_to(site.root)} "
        "and `pulumi config rm overrides`"
    )
    return PROMOTED


def take_back(site: Site, state: Rollout, reason: str, *, code: int) -> int:
    """All traffic to the stable track, then the candidate's removal: its streams end by themselves."""
    say(f"taking the candidate back: {reason}")
    site.note(id=state.id, event="rolled back", reason=reason)
    site.set("rollout", None)
    site.up("removing the candidate; the stable track has all the traffic")
    return code


def stable_replicas(site: Site) -> int:
    """Instances of the stable track now, which the autoscaler may have raised."""
    found = site.stack.export_stack().deployment or {}
    for resource in found.get("resources", []):
        if resource["type"].endswith(":Deployment") and resource["urn"].endswith("::qwen3-inference-deployment"):
            status = resource.get("outputs", {}).get("status", {})
            return max(int(status.get("replicas", 0)), site.config().replicas.min)
    raise ConfigurationError("the stack has no deployment yet: `pulumi up` first, then there is something to compare")


def show(way: Sequence[Step], changed: Sequence[tuple[str, str]]) -> None:
    for path, takes in changed:
        say(f"changes {path} ({takes})")
    for step in way:
        asked = "" if step.traffic != "both" else f" (asked for: {step.asked_percent} %)"
        say(f"step: stable {step.stable}, candidate {step.canary}: {step.percent:.0f} % of the traffic{asked}")
    say("then: promotion")


def show_history(folder: Path) -> int:
    path = folder / "history.jsonl"
    if not path.exists():
        print("nothing was rolled out here yet")
        return 0
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        rest = ", ".join(f"{key}={value}" for key, value in line.items() if key not in {"at", "id", "event"})
        print(f"{line['at']}  {line['id']}  {line['event']:<12} {rest}")
    return 0


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One rollout of a stack at a time on this machine; between machines Pulumi's own lock of the stack stands."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RolloutError("another rollout of this stack is at work here; wait until it has ended") from None
        yield


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _state(begun: str, words: Sequence[str], step: Step) -> Rollout:
    return Rollout(id=begun, overrides=tuple(words), stable=step.stable, canary=step.canary, traffic=step.traffic)


def _select(root: Path, name: str) -> automation.Stack:
    try:
        return automation.select_stack(stack_name=name, work_dir=str(root))
    except automation.StackNotFoundError as error:
        raise ConfigurationError(
            f"there is no stack {name!r}: `pulumi stack init {name}` and `pulumi up` first"
        ) from error
    except automation.CommandError as error:
        raise ConfigurationError(f"the stack {name!r} cannot be opened: {_reason(str(error))}") from error
    except FileNotFoundError as error:
        raise ConfigurationError("the program `pulumi` is not on PATH") from error


def _reason(text: str) -> str:
    """The lines in which the engine says what is wrong."""
    lines = [line.strip() for line in text.splitlines()]
    errors = [line for line in lines if line.startswith(("error:", "* ", "warning: [Pod", "- ["))]
    return " ".join(dict.fromkeys(errors))[:1000] or text.strip()[-500:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
