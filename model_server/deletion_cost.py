"""Writes onto every instance's pod how many requests it has in flight, so that scaling down removes the idlest.

    python -m model_server.deletion_cost app=qwen3-inference 9000    (label of the pods, port of their /metrics)
    python -m model_server.deletion_cost alive                       (exit 0: it got through a round lately)

Of pods that are equally ready Kubernetes ends the one with the least ``controller.kubernetes.io/pod-deletion-cost``.
This runs in a pod of its own, whose token may list and patch pods of its namespace; servers have no token. Without it
the costs stay as they are: the wrong pod may be chosen, and drains as any other.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

SIGNAL = "qwen3_active_connections"
"""Running and waiting requests of one instance: it goes on rising when all slots are taken."""
COST = "controller.kubernetes.io/pod-deletion-cost"
PERIOD_S = 5
"""Between two looks. Kubernetes asks not to write costs often (each is a write of a pod): one pod's at most once in
this time, and only when it changed."""
LIMIT_S = 2
"""For one answer, of a pod or of the API server."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ALIVE = Path("/tmp/alive")  # noqa: S108  of the container
ALIVE_S = 60

Pod = dict[str, Any]
Fetch = Callable[[urllib.request.Request], bytes]


class Api:
    """The pods of this pod's namespace, as far as its token allows."""

    def __init__(self, url: str, account: Path = ACCOUNT) -> None:
        # Read anew for each round: the token and the authority are replaced while this runs.
        self._token = (account / "token").read_text()
        self._pods = f"{url}/api/v1/namespaces/{(account / 'namespace').read_text()}/pods"
        self._fetch = opener(ssl.create_default_context(cafile=account / "ca.crt"))

    def pods(self, selector: str) -> list[Pod]:
        items: list[Pod] = json.loads(self._call("GET", f"?labelSelector={quote(selector)}"))["items"]
        return items

    def write(self, pod: str, cost: int) -> None:
        """Set the cost of ``pod``; one that has ended meanwhile needs none."""
        try:
            self._call("PATCH", f"/{pod}", {"metadata": {"annotations": {COST: str(cost)}}})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/merge-patch+json"}
        data = None if body is None else json.dumps(body).encode()
        return self._fetch(urllib.request.Request(self._pods + path, data, headers, method=method))  # noqa: S310


def opener(context: ssl.SSLContext | None = None) -> Fetch:
    """Fetches within :data:`LIMIT_S`, and through no proxy: everything is in the cluster."""
    handlers = [urllib.request.HTTPSHandler(context=context)] if context else []
    director = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)

    def fetch(request: urllib.request.Request) -> bytes:
        with director.open(request, timeout=LIMIT_S) as answer:
            body: bytes = answer.read()
            return body

    return fetch


def keep(api: Api, selector: str, port: int) -> None:
    """One round: ask every pod, write what changed.

    Raises:
        OSError: The API server does not answer, or refuses.
    """
    pods = [pod for pod in api.pods(selector) if _may_be_chosen(pod)]
    if len(pods) < 2:
        return
    for pod, cost in _in_flight(pods, port):
        if cost != _written(pod):
            api.write(pod["metadata"]["name"], cost)


def _may_be_chosen(pod: Pod) -> bool:
    return "podIP" in pod["status"] and "deletionTimestamp" not in pod["metadata"]


def _in_flight(pods: list[Pod], port: int) -> Iterator[tuple[Pod, int]]:
    """Of each pod that says it. One that does not keeps its cost: not ready, it goes before all others anyway."""
    fetch = opener()

    def ask(pod: Pod) -> int | None:
        host = pod["status"]["podIP"]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
        try:
            return read_gauge(fetch(urllib.request.Request(url)).decode())
        except (OSError, HTTPException, ValueError):
            return None

    with ThreadPoolExecutor(8) as threads:
        for pod, cost in zip(pods, threads.map(ask, pods), strict=True):
            if cost is not None:
                yield pod, cost


def read_gauge(text: str) -> int:
    """:data:`SIGNAL` of an exposition.

    Raises:
        ValueError: It is not there.
    """
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == SIGNAL:
            return int(float(value))
    raise ValueError(f"no {SIGNAL} in what /metrics says")


def _written(pod: Pod) -> int:
    return int(pod["metadata"].get("annotations", {}).get(COST, 0))  # the API server takes integers only


def main(words: list[str]) -> int:
    if words == ["alive"]:
        return 0 if ALIVE.exists() and time.time() - ALIVE.stat().st_mtime < ALIVE_S else 1
    selector, port = words
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # PID 1 has to say so itself
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    while True:
        try:
            keep(Api(url), selector, int(port))
            ALIVE.touch()
        except (OSError, HTTPException) as error:  # not for long, or somebody has to read it: the pod stops being ready
            print(f"costs stay as they are: {error}", file=sys.stderr)
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
