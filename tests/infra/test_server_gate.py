"""How the gate reaches instances on bare servers, and with which key."""

from __future__ import annotations

import json
import socket

import pytest

from infra import gate, server_gate
from infra.server_gate import reached
from model_server.auth import read_keys
from model_server.errors import ConfigurationError

PLACES = ("192.0.2.1:8000", "192.0.2.1:8001")


@pytest.mark.parametrize(
    "text", ["a-key\n", "team:a-key\nother:b-key\n", "# of the site\n\n  team:a-key  \n", "a:b:a-key\n"]
)
def test_the_gates_key_is_one_that_the_server_takes(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    assert gate.first_key(text) == "a-key"
    assert read_keys(tmp_path / "keys").name_of(b"Bearer a-key")


def test_a_file_without_keys_has_no_first():
    assert gate.first_key("# none yet\n") is None


def test_without_ssh_instances_are_reached_where_they_are():
    with reached(None, PLACES) as urls:
        assert urls == [f"http://{place}" for place in PLACES]


def test_a_balancer_that_cannot_be_reached_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ssh = {"host": "127.0.0.1", "port": port, "user": "nobody"}
    with (
        pytest.raises(ConfigurationError, match=r"through the balancer, which failed: .*Connection refused"),
        reached(ssh, PLACES),
    ):
        pytest.fail("not reached")


@pytest.fixture
def asked(monkeypatch):
    """The gate says these codes, one after the other; what it was asked with."""
    calls = []

    def says(*codes):
        said = iter(codes)

        def ask(scenario, a, b, out, **options):
            calls.append((str(scenario), a, b, out.name, options["key"]))
            return next(said)

        monkeypatch.setattr(gate, "ask", ask)
        return calls

    return says


def test_the_gate_is_asked_with_the_sites_key_and_its_answer_is_the_exit_code(asked, tmp_path, capsys):
    (tmp_path / "keys").write_text("team:a-key\n")
    calls = asked(gate.FAIL)
    words = ["gate.yml", f"a={PLACES[0]}", f"b={PLACES[1]}", f"out={tmp_path / 'web1-1'}", f"keys={tmp_path / 'keys'}"]
    assert server_gate.main(words) == gate.FAIL
    assert calls == [("gate.yml", f"http://{PLACES[0]}", f"http://{PLACES[1]}", "web1-1", "a-key")]
    assert json.loads(capsys.readouterr().out)["verdicts"] == ["FAIL"]


@pytest.mark.parametrize(
    ("first", "codes", "expected"),
    [
        ("true", [gate.NO_VERDICT], gate.NO_VERDICT),
        ("false", [gate.NO_VERDICT], gate.PASS),
        ("false", [gate.INVALID, gate.PASS], gate.PASS),
        ("true", [gate.INVALID, gate.INVALID], gate.INVALID),
    ],
)
def test_the_first_must_pass_and_an_invalid_run_is_repeated_in_a_folder_of_its_own(asked, first, codes, expected):
    calls = asked(*codes)
    assert server_gate.main(["gate.yml", "a=x:1", "b=y:2", "out=runs/web1-1", f"first={first}"]) == expected
    assert [call[3] for call in calls] == ["web1-1", "web1-1-2"][: len(codes)]


@pytest.mark.parametrize("words", [[], ["gate.yml", "a=x:1"], ["gate.yml", "a=x:1", "b=y:2", "out=o", "frist=true"]])
def test_words_that_mean_nothing_are_refused(words, capsys):
    assert server_gate.main(words) == 2
    assert "python -m infra.server_gate SCENARIO" in capsys.readouterr().err
