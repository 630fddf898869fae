"""One rollout of a namespace at a time, from whichever machine: a Lease in the cluster, written with kubectl.

It lasts as long as the rollout, not as long as the process: another machine knows nothing of a rollout that was
interrupted here, because its steps are in this machine's ``Pulumi.<stack>.yaml``. That somebody is at work is told by
``renewTime``, which is written anew all the time (Kubernetes' own way of electing leaders).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from model_server.errors import ConfigurationError, DeploymentError

NAME = "qwen3-inference-rollout"
ROLLOUT = "qwen3-stack/rollout"
"""Annotation: the rollout's id."""
DURATION_S, RENEW_S = 15.0, 5.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LeaseError(DeploymentError):
    """Somebody else rolls out here; nothing was changed."""


class _KubectlError(Exception):
    """The message is kubectl's."""


@dataclass(slots=True)
class Lease:
    """:meth:`take` it, use it as a context, :meth:`end` it when the rollout is over; else it stays for ``resume``."""

    kubectl: Sequence[str]
    """The command with the options that choose the cluster."""
    namespace: str
    rollout: str
    """Id."""
    holder: str = field(default_factory=lambda: _identity(os.getpid()))
    _version: str = ""
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _left: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def look(self) -> None:
        """Whether it could be taken, before anything is asked of the cluster that only its holder should ask.

        Raises:
            LeaseError: Another rollout is under way.
            ConfigurationError: kubectl or the cluster does not answer, or the rights are missing.
        """
        try:
            self._refuse(json.loads(self._run("get", "lease", NAME, "-o", "json")))
        except _KubectlError as error:
            if "NotFound" not in str(error):
                raise ConfigurationError(f"no Lease can be read in {self.namespace}: {error}") from error

    def take(self) -> None:
        """
        Raises:
            LeaseError: Another rollout is under way, or this one in another process.
            ConfigurationError: kubectl or the cluster does not answer, or the rights are missing.
        """
        try:
            self._take()
        except _KubectlError as error:
            raise ConfigurationError(f"no Lease can be written in the namespace {self.namespace}: {error}") from error

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._renew_until_left, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Before each step: is it still this process that rolls out?

        Raises:
            LeaseError: It was away for so long that another one took over.
        """
        try:
            self._renew()
        except _KubectlError as error:
            if any(word in str(error) for word in ("Conflict", "NotFound")):
                raise LeaseError(
                    f"this rollout was taken over or ended elsewhere (the Lease {NAME} changed): stopped, nothing more "
                    "is done here"
                ) from error
            # A cluster that does not answer is what the step itself will say.

    def end(self) -> str | None:
        """Why it could not be removed; None: it is gone."""
        with self._mutex:
            self._left.set()
            try:
                self._run("delete", "lease", NAME, "--ignore-not-found")
            except _KubectlError as error:
                return str(error)
        return None

    def _take(self) -> None:
        try:
            self._version = _version(self._run("create", "-f", "-", "-o", "json", document=self._document()))
        except _KubectlError as error:
            if "AlreadyExists" not in str(error):
                raise
        else:
            return
        found = json.loads(self._run("get", "lease", NAME, "-o", "json"))
        self._refuse(found)
        document = self._document() | {"metadata": found["metadata"]}
        try:
            self._version = _version(self._run("replace", "-f", "-", "-o", "json", document=document))
        except _KubectlError as error:
            if "Conflict" not in str(error):
                raise
            raise LeaseError(f"the rollout {self.rollout} was just resumed elsewhere") from error

    def _refuse(self, found: dict[str, Any]) -> None:
        holder, theirs = found["spec"]["holderIdentity"], found["metadata"]["annotations"][ROLLOUT]
        if self._is_at_work(found):
            raise LeaseError(f"the rollout {theirs} is at work here ({_who(holder)}): wait until it has ended")
        if theirs != self.rollout:
            raise LeaseError(
                f"the rollout {theirs} was begun by {_who(holder)} and has not ended: `resume` or `rollback` it there; "
                f"where that is lost, `kubectl delete lease {NAME} -n {self.namespace}`"
            )

    def _is_at_work(self, found: dict[str, Any]) -> bool:
        """Whether its holder renews it. Seen here, not reckoned from ``renewTime``: clocks of machines differ."""
        _, pid, boot = found["spec"]["holderIdentity"].split("/")
        if boot == _boot() and not Path("/proc", pid).exists():
            return False
        deadline = time.monotonic() + DURATION_S
        while time.monotonic() < deadline:
            time.sleep(1)
            now = json.loads(self._run("get", "lease", NAME, "-o", "json"))
            if now["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
                return True
        return False

    def _renew_until_left(self) -> None:
        while not self._left.wait(RENEW_S):
            try:
                self._renew()
            except _KubectlError:
                continue  # the next step's check says so where it matters

    def _renew(self) -> None:
        with self._mutex:
            if self._left.is_set():
                return
            try:
                self._version = self._patched()
            except _KubectlError as error:
                if "Conflict" not in str(error):
                    raise
                # The answer to an earlier renewal may have been lost.
                found = json.loads(self._run("get", "lease", NAME, "-o", "json"))
                if found["spec"]["holderIdentity"] != self.holder:
                    raise
                self._version = found["metadata"]["resourceVersion"]
                self._version = self._patched()

    def _patched(self) -> str:
        patch = {"metadata": {"resourceVersion": self._version}, "spec": {"renewTime": _now()}}
        return _version(self._run("patch", "lease", NAME, "--type=merge", "-p", json.dumps(patch), "-o", "json"))

    def _document(self) -> dict[str, Any]:
        spec = {"holderIdentity": self.holder, "leaseDurationSeconds": int(DURATION_S), "renewTime": _now()}
        metadata = {"name": NAME, "annotations": {ROLLOUT: self.rollout}}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    def _run(self, *words: str, document: dict[str, Any] | None = None) -> str:
        command = [*self.kubectl, *words, "-n", self.namespace, "--request-timeout=10s"]
        given = None if document is None else json.dumps(document)
        try:
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise ConfigurationError("the program `kubectl` is not on PATH") from error
        if done.returncode:
            raise _KubectlError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "kubectl failed")
        return done.stdout


def _identity(pid: int) -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}/{pid}/{_boot()}"


def _who(holder: str) -> str:
    person, pid, _ = holder.split("/")
    return f"{person}, process {pid}"


def _boot() -> str:
    """Which machine, and since which start: a process number says nothing elsewhere."""
    return BOOT_ID.read_text().strip()[:8] if BOOT_ID.exists() else "unknown"


def _version(document: str) -> str:
    version: str = json.loads(document)["metadata"]["resourceVersion"]
    return version


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
