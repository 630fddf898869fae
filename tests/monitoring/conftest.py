"""Servers on free ports in the test's own event loop, and real ones as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from model_server import listener
from model_server.cache import cache_dir

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tests" / "tools"


@pytest.fixture
async def listen():
    """Starts an ASGI application; returns its URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(app, *, lifespan=True):
            sock = socket.create_server(("127.0.0.1", 0))
            server = listener.listen(app, body_s=60, lifespan=lifespan)
            server.config.timeout_graceful_shutdown = 1
            task = asyncio.create_task(server.serve(sockets=[sock]))

            async def stop():
                server.should_exit = True
                await task

            stack.push_async_callback(stop)
            while not server.started:
                await asyncio.sleep(0.01)
            return f"http://127.0.0.1:{sock.getsockname()[1]}"

        yield start


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def free_port():
    return unused_port()


def wait_until(check, what, seconds=60):
    """Until ``check()`` is true; an OSError of it is not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if check():
                return
        time.sleep(0.05)
    raise TimeoutError(what)


@pytest.fixture
def until():
    return wait_until


class RealOllama:
    """``ollama serve`` with a tiny Qwen3 named tiny."""

    def __init__(self, binary, home):
        self.url = f"http://127.0.0.1:{unused_port()}"
        self.environ = os.environ | {"OLLAMA_HOST": self.url, "HOME": str(home), "OLLAMA_MODELS": str(home / "models")}
        self._binary, self._home, self._process = binary, home, None

    def start(self):
        with (self._home / "log").open("a") as log:
            self._process = subprocess.Popen(
                [self._binary, "serve"], env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, "ollama serve")

    def _answers(self):
        with urllib.request.urlopen(f"{self.url}/api/version", timeout=5) as answer:
            return answer.status == 200

    def stop(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def create(self, name, modelfile):
        (self._home / "Modelfile").write_text(modelfile)
        command = [self._binary, "create", name, "-f", str(self._home / "Modelfile")]
        subprocess.run(command, env=self.environ, check=True, capture_output=True)

    def command(self, *words, host=None):
        """The output of ``ollama WORDS``; ``host``: asked instead."""
        environ = self.environ | ({"OLLAMA_HOST": host} if host else {})
        done = subprocess.run([self._binary, *words], env=environ, check=True, capture_output=True, text=True)
        return done.stdout


@pytest.fixture(scope="session")
def ollama(tmp_path_factory):
    binary = shutil.which("ollama") or shutil.which("ollama", path=cache_dir() / "bin")
    home = tmp_path_factory.mktemp("ollama")
    for command in (
        [TOOLS / "tiny_qwen3.py", home / "tiny"],
        ["-m", "training.gguf_model", home / "tiny", home / "tiny.gguf", "f32"],
    ):
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
    real = RealOllama(binary, home)
    try:
        real.start()
        template = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        real.create("tiny", f'FROM {home}/tiny.gguf\nTEMPLATE """{template}"""\nPARAMETER num_predict 16')
        yield real
    finally:
        real.stop()


@pytest.fixture
def command(tmp_path):
    """Starts ``python -m MODULE WORDS``; what it says goes to .log, and its output to .out."""
    started = []

    class Command:
        def __init__(self, module, *words, cwd=ROOT):
            self.log, self.out = (tmp_path / f"{module}.{len(started)}.{kind}" for kind in ("log", "out"))
            with self.log.open("w") as log, self.out.open("w") as out:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, words)],
                    cwd=cwd,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdout=out,
                    stderr=log,
                    start_new_session=True,
                )
            started.append(self)

        def said(self, text, seconds=60):
            """Wait until it says so."""

            def check():
                return text in self.log.read_text()

            def told():
                if self.process.poll() is not None:
                    assert check(), (self.process.returncode, self.log.read_text())
                return check()

            wait_until(told, (text, self.log), seconds)

        def end(self, number=signal.SIGINT):
            """Its exit code and its last line."""
            self.process.send_signal(number)
            return self.ended()

        def ended(self):
            code = self.process.wait(timeout=60)
            lines = self.out.read_text().splitlines()
            return code, json.loads(lines[-1]) if lines else None

    yield Command
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()  # asked first: it may have started others
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
