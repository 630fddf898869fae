"""Who may roll out: decided by a Lease, here one that a test's kubectl keeps in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from stack_site import KUBECTL

from infra import lease as module
from infra.lease import Lease, LeaseError
from model_server.errors import ConfigurationError


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    path = tmp_path / "kubectl"
    path.write_text(KUBECTL)
    path.chmod(0o755)
    monkeypatch.setenv("LEASE", str(tmp_path / "lease.json"))
    monkeypatch.setattr(module, "RENEW_S", 0.2)
    monkeypatch.setattr(module, "DURATION_S", 2.0)
    return [str(path)]


@pytest.fixture
def dead():
    """A process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return module._identity(process.pid)


def found(tmp_path):
    return json.loads((tmp_path / "lease.json").read_text())


def test_it_is_held_renewed_and_gone_in_the_end(kubectl, tmp_path):
    lease = Lease(kubectl, "ns", "r1")
    lease.take()
    first = found(tmp_path)
    with lease:
        wait_for_renewal(tmp_path, first)
        lease.check()
        assert found(tmp_path)["spec"]["holderIdentity"].split("/")[1] == str(os.getpid())
        assert lease.end() is None
        lease.check()  # an ended one is nobody's to lose
        lease.look()

    assert not (tmp_path / "lease.json").exists()


def wait_for_renewal(tmp_path, first):
    for _ in range(100):
        if found(tmp_path)["spec"]["renewTime"] != first["spec"]["renewTime"]:
            return
        module.time.sleep(0.1)
    raise AssertionError


@pytest.mark.parametrize("rollout", ["r1", "r2"])
def test_while_it_is_renewed_nobody_else_gets_it(kubectl, rollout):
    first = Lease(kubectl, "ns", "r1")
    first.take()

    with first:
        for ask in (Lease.look, Lease.take):
            with pytest.raises(LeaseError, match=f"the rollout r1 is at work here .*process {os.getpid()}"):
                ask(Lease(kubectl, "ns", rollout))


def test_what_a_dead_process_of_this_machine_left_is_taken_over_at_once(kubectl, dead, monkeypatch, tmp_path):
    Lease(kubectl, "ns", "r1", holder=dead).take()
    monkeypatch.setattr(module, "DURATION_S", 1e9)

    Lease(kubectl, "ns", "r1").take()

    assert found(tmp_path)["spec"]["holderIdentity"].split("/")[1] == str(os.getpid())


def test_what_another_machine_left_is_taken_over_when_nobody_renews_it(kubectl, tmp_path):
    Lease(kubectl, "ns", "r1", holder="somebody@elsewhere/1/otherboot").take()

    Lease(kubectl, "ns", "r1").take()

    assert found(tmp_path)["spec"]["holderIdentity"].split("/")[1] == str(os.getpid())


def test_another_rollout_that_has_not_ended_is_named_with_its_place(kubectl, dead):
    Lease(kubectl, "ns", "r1", holder=dead).take()

    with pytest.raises(LeaseError, match=r"the rollout r1 was begun by .* has not ended: `resume` or `rollback` it"):
        Lease(kubectl, "ns", "r2").take()


def test_whoever_was_away_too_long_stops(kubectl, dead):
    first = Lease(kubectl, "ns", "r1", holder=dead)
    first.take()
    Lease(kubectl, "ns", "r1").take()

    with pytest.raises(LeaseError, match="taken over"):
        first.check()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-kubectl"], "`kubectl` is not on PATH"),
        (["sh", "-c", "echo 'Error from server (Forbidden): leases is forbidden' >&2; exit 1"], "is forbidden"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(command, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        Lease(command, "ns", "r1").take()
    assert "\n" not in str(caught.value)


def test_a_renewal_whose_answer_was_lost_is_no_loss(kubectl, tmp_path):
    lease = Lease(kubectl, "ns", "r1")
    lease.take()
    lease._version = "0"  # another was written, and this is what was heard of last

    lease.check()

    assert lease._version == found(tmp_path)["metadata"]["resourceVersion"]
