"""A stack as a rollout uses it: its configuration, ``pulumi up``, and what an interrupted one has left behind.

Not infra/site.py: Pulumi puts infra/ on the path of modules, where that would stand before Python's own ``site``.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pulumi import automation

from infra.tracks import Rollout
from model_server import deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError

LONGEST_UP_S = 3600
"""So long an orphaned `pulumi` is waited for."""
_LOCK = re.compile(r"created by (?P<who>\S+?)@(?P<host>\S+) \(pid (?P<pid>\d+)\)")


class RolloutError(DeploymentError):
    """The cluster did not take a step."""


class BusyError(DeploymentError):
    """Somebody else is at work on this stack; nothing was changed."""


@dataclass(frozen=True)
class Site:
    """Where a rollout happens, and what it writes."""

    stack: automation.Stack
    root: Path
    environment: Path
    folder: Path

    @classmethod
    def open(cls, root: Path, name: str, folder: Path) -> Site:
        """
        Raises:
            ConfigurationError: There is no such stack, or no `pulumi`.
        """
        try:
            stack = _select(root, name)
        except automation.StackNotFoundError as error:
            raise ConfigurationError(
                f"there is no stack {name!r}: `pulumi stack init {name}` and `pulumi up` first"
            ) from error
        except automation.CommandError as error:
            raise ConfigurationError(f"the stack {name!r} cannot be opened: {reason(str(error))}") from error
        except FileNotFoundError as error:
            raise ConfigurationError("the program `pulumi` is not on PATH") from error
        return cls(stack, root, root / "environments" / f"{name}.yml", folder)

    def setting(self, name: str) -> Any:
        """A mapping or list of the stack's configuration; None where there is none."""
        found = self.text(f"qwen3-stack:{name}")
        return None if found is None else json.loads(found)

    def text(self, key: str) -> str | None:
        """A word of the stack's configuration, by its whole key."""
        return self._settings.get(key)

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        """Asked once until something is written: each question is a process."""
        return {key: str(found.value) for key, found in self.stack.get_all_config().items()}

    def write(self, state: Rollout, **settings: Any) -> None:
        """``state``, and what changes with it, in one command: a kill leaves all of it or nothing."""
        values = {name: json.dumps(value) for name, value in settings.items()} | {"rollout": state.model_dump_json()}
        self.stack.set_all_config({name: automation.ConfigValue(value) for name, value in values.items()})
        self.__dict__.pop("_settings", None)

    def forget(self) -> None:
        """There is no rollout any more."""
        self.stack.remove_config("rollout")
        self.__dict__.pop("_settings", None)

    def config(self, *more: str) -> DeploymentConfig:
        return deployment.load(self.environment, more)

    def kubectl(self) -> list[str]:
        """The command that reaches the cluster of this stack.

        Raises:
            ConfigurationError: The stack holds a kubeconfig itself.
        """
        options = []
        for name in ("kubeconfig", "context"):
            if (value := self.text(f"kubernetes:{name}")) is not None:
                if "\n" in value:
                    raise ConfigurationError(
                        "kubernetes:kubeconfig of the stack is the content of a file; name the file, or set KUBECONFIG"
                    )
                options.append(f"--{name}={value}")
        return ["kubectl", *options]

    def up(self, what: str) -> None:
        """One ``pulumi up``, to its end.

        Raises:
            RolloutError: The engine's own words, shortened to what they say is wrong.
            BusyError: Somebody else changes this stack now.
        """
        say(what)
        with (self.folder / "pulumi.log").open("a", encoding="utf-8") as log:
            try:
                self._alone(lambda: self.stack.up(on_output=_into(log), color="never"))
            except automation.CommandError as error:
                raise RolloutError(f"{what}: {reason(str(error))}; all of it: {log.name}") from error

    def refresh(self) -> None:
        """What the cluster has become meanwhile: the autoscaler may have raised the number of instances.

        Raises:
            RolloutError: The cluster does not answer.
            BusyError: Somebody else changes this stack now.
        """
        with (self.folder / "pulumi.log").open("a", encoding="utf-8") as log:
            try:
                self._alone(lambda: self.stack.refresh(on_output=_into(log), color="never"))
            except automation.CommandError as error:
                raise RolloutError(f"the cluster's state cannot be read: {reason(str(error))}") from error

    def recover(self) -> None:
        """After an interruption: the state and the cluster are alike again.

        What an ``up`` was just making when it was killed may be there, and the state only says that it was begun. It is
        taken into the state, and the refresh drops what is not there; otherwise taking the candidate back would leave
        it in the cluster, known to nobody.

        Raises:
            RolloutError: The cluster does not answer.
            BusyError: Somebody else changes this stack now.
        """
        self._alone(self._adopt)
        self.refresh()

    def _adopt(self) -> None:
        found = self.stack.export_stack()
        state: dict[str, Any] = dict(found.deployment or {})
        pending = state.pop("pending_operations", None)
        if not pending:
            return
        say(f"changes under way when it was interrupted: {len(pending)}; looking at what became of them")
        known = {each["urn"] for each in state["resources"]}
        for operation in pending:
            resource = operation["resource"]
            metadata = (resource.get("inputs") or {}).get("metadata") or {}
            if operation["type"] == "creating" and resource["urn"] not in known and "name" in metadata:
                path = (metadata["namespace"], metadata["name"]) if "namespace" in metadata else (metadata["name"],)
                state["resources"].append(resource | {"id": "/".join(path), "outputs": resource["inputs"]})
        self.stack.import_stack(automation.Deployment(version=found.version, deployment=state))

    def resources(self) -> list[Mapping[str, Any]]:
        """Of the stack's state."""
        found = self.stack.export_stack().deployment or {}
        resources: list[Mapping[str, Any]] = found.get("resources") or []
        return resources

    def note(self, **what: object) -> None:
        """A line of the history."""
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **what}
        with (self.folder / "history.jsonl").open("a+", encoding="utf-8") as history:
            # A kill may have left half a line, which this one must not continue.
            begin = "\n" if history.tell() and not _ends_with_newline(Path(history.name)) else ""
            history.write(begin + json.dumps(line, ensure_ascii=False) + "\n")

    def _alone(self, operation: Callable[[], Any]) -> None:
        """``operation``, after what a killed one has left of its lock."""
        deadline = time.monotonic() + LONGEST_UP_S
        told = False
        while True:
            try:
                operation()
            except automation.ConcurrentUpdateError as error:
                holder = _LOCK.search(str(error))
                if holder is None or holder["host"] != socket.gethostname() or time.monotonic() > deadline:
                    raise BusyError(
                        f"another `pulumi` is at work on this stack ({_who(holder)}): wait until it has ended; if it "
                        "was killed, `pulumi cancel` takes its lock away"
                    ) from error
                if _runs(int(holder["pid"])):
                    if not told:
                        say(f"`pulumi` (process {holder['pid']}) is still at work on this stack: waiting for its end")
                    told = True
                    time.sleep(2)
                    continue
                say(f"`pulumi` (process {holder['pid']}) was killed at its work: its lock is taken away")
                self.stack.cancel()
            else:
                return


def _select(root: Path, name: str) -> automation.Stack:
    """The stack; where its state lies in a folder, also after a kill in the middle of a write.

    Pulumi puts the state itself in place at once, but writes the attributes beside it piece by piece, and reads
    neither when these are empty. It does without them.
    """
    try:
        return automation.select_stack(stack_name=name, work_dir=str(root))
    except automation.CommandError as error:
        backend = automation.LocalWorkspace(work_dir=str(root)).who_am_i().url or ""
        if "failed to load checkpoint: EOF" not in str(error) or not backend.startswith("file://"):
            raise
        folder = Path(backend.removeprefix("file://")).expanduser() / ".pulumi" / "stacks"
        for path in folder.glob(f"*/{name}.json.attrs"):
            if path.stat().st_size == 0:
                say(f"a write of the state was interrupted: removing the empty {path}")
                path.unlink()
        return automation.select_stack(stack_name=name, work_dir=str(root))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def reason(text: str) -> str:
    """The lines in which the engine says what is wrong."""
    lines = [line.strip() for line in text.splitlines()]
    errors = [line for line in lines if line.startswith(("error:", "* ", "warning: [Pod", "- ["))]
    return " ".join(dict.fromkeys(errors))[:1000] or text.strip()[-500:]


def _into(log: Any) -> Callable[[str], None]:
    return lambda line: print(line, file=log, flush=True)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path("/proc", str(pid), "stat")
    return not stat.exists() or ") Z " not in stat.read_text()  # ended, and nobody has asked for its end


def _who(holder: re.Match[str] | None) -> str:
    return "nobody says whose" if holder is None else f"{holder['who']}@{holder['host']}, process {holder['pid']}"
