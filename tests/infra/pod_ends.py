"""What each pod that ends was doing at that moment, by the API server's events and the pod's own log."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from cluster_fixture import tools_env
from traffic import Traffic

LEFT_S = 2.0
PRE_STOP_S = 5.0
"""The preStop sleep of model_server/deployment.py: SIGTERM comes so long after the deletion."""


@dataclass(frozen=True)
class End:
    """Of one pod."""

    pod: str
    at_deletion: int
    """Streams that began before the pod was deleted and had 2 s or more to go."""
    at_sigterm: int
    """Likewise when its process was told to end."""


class PodEnds:
    """Watches a namespace within its context; :meth:`ends` afterwards.

    Args:
        ask: Address of a pod -> what became of one stream. Each pod has ``clients`` of its own from when it is ready
            until it is deleted, beside those that come by the Service: a track that has had no traffic for longer than
            a stream lasts would otherwise end with nothing that could be cut.
    """

    def __init__(self, cluster, namespace, ask=None, clients=0):
        self._kubectl = ["kubectl", "--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
        self._logs = {}
        self._ask, self._clients = ask, clients
        self._own = {}

    def __enter__(self):
        words = ["get", "pods", "-l", "app=qwen3-inference", "--watch", "-o", "json"]
        self._watch = self._start(*words)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._watch.terminate()
        self._thread.join()
        self._watch.communicate()
        for traffic in self._own.values():
            traffic.__exit__()

    @property
    def answers(self):
        """Of the pods' own clients."""
        return [answer for traffic in self._own.values() for answer in traffic.answers]

    def ends(self):
        """One of each pod that was deleted, once its log is over."""
        return [self._end(pod, *found) for pod, found in self._logs.items()]

    def _follow(self):
        decoder, text = json.JSONDecoder(), ""
        for line in self._watch.stdout:
            text += line
            if line != "}\n":  # the end of a whole object, as kubectl indents it
                continue
            pod, _ = decoder.raw_decode(text)
            text = ""
            name = pod["metadata"]["name"]
            if self._ask is not None:
                self._keep_busy(name, pod)
            if "deletionTimestamp" in pod["metadata"] and name not in self._logs:
                # Into a file: a pipe that nobody reads would hold the log back until its pod is gone.
                file = tempfile.TemporaryFile("w+")  # noqa: SIM115
                self._logs[name] = (time.time(), file, self._start("logs", "--follow", name, into=file))

    def _keep_busy(self, name, pod):
        if "deletionTimestamp" in pod["metadata"]:
            if name in self._own:
                self._own[name].at_once = 0
            return
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
        if conditions.get("Ready") == "True" and name not in self._own:
            self._own[name] = Traffic(partial(self._ask, pod["status"]["podIP"]), self._clients)
            self._own[name].__enter__()

    def _end(self, pod, deleted, file, log):
        log.wait(timeout=120)
        with file:
            file.seek(0)
            rows = [json.loads(line) for line in file if line.startswith("{")]
        streams = []
        for row in rows:
            if row.get("event") == "request" and row["endpoint"] == "chat_completions":
                end = datetime.fromisoformat(row["timestamp"]).timestamp()
                streams.append((end - row["latency_ms"] / 1000, end))

        def open_at(moment):
            return sum(begin < moment and end >= moment + LEFT_S for begin, end in streams)

        return End(pod, open_at(deleted), open_at(deleted + PRE_STOP_S))

    def _start(self, *words, into=subprocess.PIPE):
        return subprocess.Popen(
            [*self._kubectl, *words], stdout=into, stderr=subprocess.DEVNULL, text=True, env=tools_env()
        )
