"""One command for all of it: real processes, one Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import urllib.request

import psutil
import pytest

from model_server import deployment
from monitoring import files, laptop
from monitoring.files import Settings
from monitoring.laptop import _Asked, _commands, main
from monitoring.request_files import read_recent


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def start(command, monkeypatch, free_port, tmp_path):
    """Starts all with the server on a free port and the files in ``tmp_path/logs``."""
    monkeypatch.setenv("MODEL_SERVER_SERVING__PORT", str(free_port))
    return lambda *words: command("monitoring.laptop", f"logs={tmp_path}/logs", *words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_server_and_monitor_run_together_and_end_together(start, free_port, tmp_path, number, until):
    laptop = start()
    laptop.said("recording into")
    laptop.said("ready: ")
    post(f"http://127.0.0.1:{free_port}/api/v1/classify", {"text": "宽带断了"})
    until(lambda: read_recent(tmp_path / "logs", 5), "a line")
    children = psutil.Process(laptop.process.pid).children(recursive=True)
    assert len(children) >= 3, "server, its engine, monitor"
    code, last = laptop.end(number)

    assert (code, last["ended_first"], last["exit_code"]) == (0, None, 0)
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert (len(gone), alive) == (len(children), [])


def test_one_that_ends_by_itself_ends_all_and_is_named(start, free_port):
    with socket.create_server(("127.0.0.1", free_port)):
        laptop = start()
        code, last = laptop.ended()

    assert (code, last["ended_first"]) == (2, "model_server")
    said = laptop.log.read_text()
    assert f"port {free_port} on 127.0.0.1 is in use" in said
    assert "python -m model_server ended by itself (exit code 2), and with it the rest" in said


def test_one_that_is_killed_ends_all(start, until):
    laptop = start()
    laptop.said("recording into")
    [monitor] = [
        child for child in psutil.Process(laptop.process.pid).children() if "monitoring.files" in child.cmdline()
    ]
    monitor.kill()
    code, last = laptop.ended()

    assert (code, last["ended_first"]) == (1, "monitoring.files")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv on PATH: apt-get install util-linux")
def test_a_kill_that_cannot_be_caught_leaves_nobody_behind(start):
    laptop = start()
    laptop.said("recording into")
    laptop.said("ready: ")
    children = psutil.Process(laptop.process.pid).children(recursive=True)
    laptop.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=15)

    assert (len(gone), alive) == (len(children), [])
    assert len(gone) >= 3, "server, its engine, monitor"


@pytest.mark.ollama
def test_a_plain_ollama_is_recorded_instead(command, ollama, tmp_path, free_port, until):
    words = (f"ollama={ollama.url}", f"listen=127.0.0.1:{free_port}", f"logs={tmp_path}/logs")
    laptop = command("monitoring.laptop", *words)
    laptop.said("recording into")
    post(f"http://127.0.0.1:{free_port}/api/generate", {"model": "tiny", "prompt": "hello", "stream": False})
    until(lambda: read_recent(tmp_path / "logs", 5), "a line")
    assert laptop.end()[0] == 0

    assert read_recent(tmp_path / "logs", 5)[0].model == "tiny"
    with urllib.request.urlopen(f"{ollama.url}/api/version", timeout=5) as answer:
        assert answer.status == 200, "Ollama itself runs on"


def test_an_ollama_that_is_down_is_said_with_its_exit_code(command, tmp_path, free_port):
    words = (f"ollama=http://127.0.0.1:{free_port}", "listen=127.0.0.1:0", f"logs={tmp_path}/logs")
    laptop = command("monitoring.laptop", *words)

    assert laptop.ended()[0] == 4
    assert "is 'ollama serve' running" in laptop.log.read_text()


def test_every_part_gets_the_same_folder_and_what_it_stands_beside(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_SERVER_SERVING__PORT", "8123")
    commands = _commands(_Asked(logs=tmp_path), deployment.load(_Asked().environment))
    of_ollama = _commands(_Asked(ollama="http://127.0.0.1:11434"), None)

    assert list(commands)[:2] == ["model_server", "monitoring.files"]
    assert f"serving.log_dir={tmp_path}" in commands["model_server"]
    assert {f"logs={tmp_path}", "server=http://127.0.0.1:8123", "wait=true"} == set(commands["monitoring.files"])
    assert "ollama=http://127.0.0.1:11434" in of_ollama["monitoring.files"]
    assert "model_server" not in of_ollama


def test_the_help_tells_the_defaults_that_hold():
    for settings, text in ((Settings, files.DESCRIPTION), (_Asked, laptop.DESCRIPTION)):
        for name, value in settings().model_dump(mode="json").items():
            told = f"{name}=URL" if value is None else f"{name}={str(value).lower() if value is False else value}"
            assert f"  {told}".removesuffix(".0") in text.replace("server=URL | ", "  server=URL\n  "), told


def test_what_cannot_be_used_is_said_in_one_line(capsys):
    for words, told in (
        (["environment=no.yml"], "cannot read no.yml"),
        (["enviroment=x"], "did you mean 'environment'"),
        (["ollama=11434"], "should match pattern"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
