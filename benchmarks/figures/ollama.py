"""A real Ollama with the same weights, for comparison."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.deployments import stop
from benchmarks.figures.processes import free_port, request
from benchmarks.figures.workload import gguf_of
from model_server.cache import cache_dir


@dataclass
class Ollama:
    """An Ollama under way; ``present`` False where there is no binary or no GGUF file."""

    present: bool
    port: int = 0

    def generate(self, prompts: Sequence[str]) -> float:
        """Seconds until all prompts, sent at once, have one token."""
        body = {"model": "figures", "stream": False, "raw": True, "options": {"num_predict": 1, "temperature": 0}}
        failures: list[str] = []

        def ask(prompt: str) -> None:
            status, answer = request(self.port, "POST", "/api/generate", body | {"prompt": prompt}, timeout_s=300)
            if status != 200 or not json.loads(answer)["done"]:
                failures.append(answer.decode()[:200])

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError(f"Ollama refused: {failures[0]}")
        return time.perf_counter() - begin


@contextmanager
def serving_ollama(model: Path, folder: Path, slots: int) -> Iterator[Ollama]:
    """Ollama with the weights of ``model`` at Q4_0."""
    binary = shutil.which("ollama") or str(cache_dir() / "bin" / "ollama")
    weights = gguf_of(model)
    if not Path(binary).exists() or not weights.exists():
        print(f"no Ollama ({binary}) or no {weights}: its row is left out", flush=True)
        yield Ollama(present=False)
        return
    port = free_port()
    variables = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "ollama"),
        "OLLAMA_NUM_PARALLEL": str(slots),
        "OLLAMA_CONTEXT_LENGTH": "1024",
        "OLLAMA_KEEP_ALIVE": "-1",
    }
    with (folder / "ollama.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "serve"], env=os.environ | variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(200):
            try:
                request(port, "GET", "/api/tags")
                break
            except OSError:
                time.sleep(0.1)
        modelfile = folder / "Modelfile"
        modelfile.write_text(f"FROM {weights.absolute()}\n")
        subprocess.run(
            [binary, "create", "figures", "-f", str(modelfile)],
            env=os.environ | variables,
            check=True,
            capture_output=True,
        )
        yield Ollama(present=True, port=port)
    finally:
        stop(process)
