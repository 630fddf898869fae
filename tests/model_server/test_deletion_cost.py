"""The keeper of deletion costs against an API server and pods that are local HTTP servers."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import certifi
import pytest

from model_server import deletion_cost
from model_server.deletion_cost import COST, Api, keep, main, read_gauge
from model_server.metrics import Metrics


class Kubernetes(BaseHTTPRequestHandler):
    """Lists ``server.pods`` and keeps what is patched, as the API server does for these two calls."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self._say(200, {"items": list(self.server.pods.values())})

    def do_PATCH(self):
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.rpartition("/")[2]
        self.server.written.append((name, patch["metadata"]["annotations"][COST], self.headers["Content-Type"]))
        if name in self.server.refused:
            self._say(self.server.refused[name], {})
            return
        self.server.pods[name]["metadata"].setdefault("annotations", {}).update(patch["metadata"]["annotations"])
        self._say(200, {})

    def _say(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Instance(Kubernetes):
    """/metrics of a server, by the server's own program."""

    def do_GET(self):
        metrics = Metrics()
        metrics.active_connections.set(self.server.in_flight)
        data = metrics.render()[0] if self.server.in_flight is not None else b"something_else 1\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def listening(handler, host, port=0, **state):
    with ThreadingHTTPServer((host, port), handler) as server:
        vars(server).update(state)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


class Site:
    """A namespace of pods; ``in_flight``: number of requests of each, None: no such gauge."""

    def __init__(self, stack, account, in_flight):
        (account / "token").write_text("a-token")
        (account / "namespace").write_text("site")
        shutil.copy(certifi.where(), account / "ca.crt")
        self.account, self.port = account, 0
        self.instances = []
        for number, each in enumerate(in_flight):
            instance = stack.enter_context(listening(Instance, f"127.0.0.{number + 2}", self.port, in_flight=each))
            self.port = instance.server_port  # the same for all, as in a cluster
            self.instances.append(instance)
        pods = {
            f"pod{number}": {"metadata": {"name": f"pod{number}"}, "status": {"podIP": f"127.0.0.{number + 2}"}}
            for number in range(len(in_flight))
        }
        self.kubernetes = stack.enter_context(
            listening(Kubernetes, "127.0.0.1", pods=pods, asked=[], written=[], refused={})
        )

    def keep(self):
        """One round; what it wrote."""
        self.kubernetes.written.clear()
        url = f"http://127.0.0.1:{self.kubernetes.server_port}"
        keep(Api(url, self.account), "app=qwen3-inference", self.port)
        return {name: cost for name, cost, _ in self.kubernetes.written}


@pytest.fixture
def site(tmp_path):
    with ExitStack() as stack:
        yield lambda *in_flight: Site(stack, tmp_path, in_flight)


def test_each_pod_is_written_its_requests_and_only_what_changed(site):
    found = site(5, 0, 2)

    assert found.keep() == {"pod0": "5", "pod2": "2"}  # none written is 0 to Kubernetes
    assert found.keep() == {}
    found.instances[2].in_flight = 3
    found.instances[0].in_flight = 0
    assert found.keep() == {"pod0": "0", "pod2": "3"}


def test_it_asks_as_the_api_server_wants_to_be_asked(site):
    found = site(5, 0)
    found.keep()

    path = "/api/v1/namespaces/site/pods?labelSelector=app%3Dqwen3-inference"
    assert found.kubernetes.asked == [(path, "Bearer a-token")]
    assert found.kubernetes.written == [("pod0", "5", "application/merge-patch+json")]


def test_the_token_of_now_is_used(site):
    """The kubelet replaces it about hourly."""
    found = site(5, 0)
    found.keep()
    (found.account / "token").write_text("the-next")
    found.keep()

    assert [token for _, token in found.kubernetes.asked] == ["Bearer a-token", "Bearer the-next"]


def test_a_pod_that_does_not_say_keeps_its_cost_and_others_do_not_wait(site, monkeypatch):
    monkeypatch.setattr(deletion_cost, "LIMIT_S", 0.3)
    found = site(5, None, 4, 7)
    found.kubernetes.pods["pod2"]["status"]["podIP"] = "127.0.0.99"  # nobody listens
    annotations = {COST: "9"}
    for name in ("pod1", "pod2"):
        found.kubernetes.pods[name]["metadata"]["annotations"] = dict(annotations)

    assert found.keep() == {"pod0": "5", "pod3": "7"}


@pytest.mark.parametrize("without", ["podIP", "deletionTimestamp"])
def test_of_pods_that_start_or_end_nothing_is_asked(site, without):
    found = site(5, 3, 2)
    if without == "podIP":
        del found.kubernetes.pods["pod0"]["status"]["podIP"]
    else:
        found.kubernetes.pods["pod0"]["metadata"]["deletionTimestamp"] = "2026-11-25T00:00:00Z"

    assert found.keep() == {"pod1": "3", "pod2": "2"}


def test_where_there_is_nothing_to_choose_nothing_is_written(site):
    assert site(5).keep() == {}


def test_a_pod_that_ended_meanwhile_is_no_failure_and_a_refusal_is(site):
    found = site(5, 3)
    found.kubernetes.refused["pod0"] = 404
    assert found.keep() == {"pod0": "5", "pod1": "3"}

    found = site(5, 3)
    found.kubernetes.refused["pod0"] = 403
    with pytest.raises(OSError, match="403"):
        found.keep()


def test_the_gauge_is_told_from_names_that_begin_alike():
    assert read_gauge("qwen3_active_connections_total 9\nqwen3_active_connections 4.0\n") == 4
    with pytest.raises(ValueError, match="no qwen3_active_connections"):
        read_gauge("# HELP qwen3_active_connections x\n")


def test_it_is_alive_after_a_round_and_not_long_after(tmp_path, monkeypatch):
    monkeypatch.setattr(deletion_cost, "ALIVE", tmp_path / "alive")
    assert main(["alive"]) == 1

    (tmp_path / "alive").touch()
    assert main(["alive"]) == 0

    past = time.time() - deletion_cost.ALIVE_S - 1
    os.utime(tmp_path / "alive", (past, past))
    assert main(["alive"]) == 1
