"""From nothing to a served classifier: the commands that make the embedded model, one after the other.

    python -m training.tiny [out=runs/tiny] [seed=0] [difficulty=hard] [steps=700] [publish=models/complaints-tiny]

in the default environment; those for training and export must be there (``make training-env export-env``). Minutes on
two cores: generate calls, prepare them, make a base, fine-tune it in two processes, evaluate, export in INT8, serve
that and compare what it answers over HTTP with what was evaluated. Started again it goes on with the first command
that did not finish. Each command is printed as it could be typed.

exit codes: 0 all done and the served labels agree; 1 they do not; 2 usage; otherwise that of the command that failed
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

import runconfig
from model_server.cache import environment_python
from model_server.errors import ConfigurationError
from training.calls import CallSettings, Difficulty, Split

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path("training/configs")
"""From ROOT, where all commands run, as NATURAL: what is written down about a model holds no path of this machine."""
HELD: dict[Split, int] = {"validation": 800, "test": 1_000}
"""Calls that are not trained on."""
NATURAL = Path("training/natural/test.jsonl")
READY_S = 60


class TinySettings(runconfig.RunConfig):
    """What to make; the rest is in configs/data_tiny.yml, new_base_tiny.yml and finetune_tiny.yml."""

    out: Path = Path("runs/tiny")
    seed: int = Field(default=0, ge=0)
    """Of calls, weights and order."""
    difficulty: Difficulty = "hard"
    train_calls: int = Field(default=25_000, ge=100)
    steps: int = Field(default=700, ge=1)
    processes: int = Field(default=2, ge=1, le=2)
    """That train together, a core each. One gives the same but for rounding."""
    publish: Path | None = None
    """Folder that the served form replaces."""
    serve: bool = True
    """False ends after the evaluation."""

    @property
    def calls(self) -> CallSettings:
        return CallSettings(seed=self.seed, difficulty=self.difficulty)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        done: What lies there when it has finished; None runs it each time.
    """

    title: str
    command: Sequence[str]
    done: Path | None


class StepFailedError(Exception):
    def __init__(self, title: str, status: int, told: str) -> None:
        super().__init__(title, status, told)
        self.title, self.status, self.told = title, status, told


def steps_of(config: TinySettings) -> list[Step]:
    """Up to the exported form; ``served`` follows."""
    python, training = sys.executable, str(environment_python("training"))
    out, run = config.out, config.out / "complaints-tiny"
    calls, data, chat, base = out / "calls", out / "data", out / "chat.jsonl", out / "base"
    splits = {"train": config.train_calls, **HELD}
    sources = [{"path": str(calls / f"{part}.jsonl"), "part": part} for part in splits]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={config.processes}"] if config.processes > 1 else []
    finetune = [
        *("-m", "training.finetune", str(CONFIGS / "finetune_tiny.yml"), f"data={data}", f"base_model={base}"),
        *(f"run_dir={run}", f"replay.file={chat}", f"seed={config.seed}", f"steps={config.steps}"),
        f"evaluate_every={max(1, config.steps // 2)}",
    ]
    drawn = [f"seed={config.seed}", f"difficulty={config.difficulty}", f"splits={json.dumps(splits)}"]
    steps = [
        Step("calls", [python, "-m", "training.calls", f"out={calls}", *drawn], calls / "test.jsonl"),
        Step(
            "data",
            [
                *(python, "-m", "training.data", str(CONFIGS / "data_tiny.yml"), f"out={data}"),
                f"sources={json.dumps(sources)}",
            ],
            data / "manifest.json",
        ),
        Step("chat", [python, "-m", "training.dialogue", f"data={data}", f"out={chat}"], chat),
        Step(
            "base",
            [
                *(training, "-m", "training.new_base", str(CONFIGS / "new_base_tiny.yml"), f"out={base}"),
                *(f"data={data}", f"replay={chat}", f"seed={config.seed}"),
            ],
            base / "manifest.json",
        ),
        Step("train", [training, *launch, *finetune], None),
        Step(
            "evaluate",
            [training, "-m", "training.evaluate", f"run_dir={run}", f"more={json.dumps({'natural': str(NATURAL)})}"],
            run / "evaluation" / "evaluation.json",
        ),
    ]
    if config.serve:
        export = [training, "-m", "training.export", f"run_dir={run}", "forms=[openvino-int8]", "overwrite=true"]
        steps.append(Step("export", export, run / "openvino-int8" / "manifest.json"))
    return steps


def run_step(step: Step) -> None:
    """
    Raises:
        StepFailedError: With the end of what it printed.
    """
    done = subprocess.run(
        step.command,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise StepFailedError(step.title, done.returncode, done.stdout[-2000:])


@contextlib.contextmanager
def served(run: Path, log: Path) -> Iterator[str]:
    """The model server on the run's folder; its address.

    Raises:
        StepFailedError: It is not ready in time, or does not end as it should.
    """
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    command = [
        *(sys.executable, "-m", "model_server", "environments/local.yml", f"model_source={run}"),
        *("serving.host=127.0.0.1", f"serving.port={port}", "serving.log_dir=null"),
    ]
    print(f"  $ {shlex.join(command)}", file=sys.stderr, flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > end:
                raise StepFailedError("serve", process.poll() or 1, log.read_text(errors="replace")[-2000:])
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        status = process.wait(timeout=READY_S)
    if status:
        raise StepFailedError("serve", status, log.read_text(errors="replace")[-2000:])


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "/ready", timeout=5) as answer:  # noqa: S310 - made above
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def begin(config: TinySettings) -> None:
    """
    Raises:
        ConfigurationError: The folder holds what other settings made.
    """
    kept = config.out / "settings.json"
    chosen = config.model_dump(mode="json", exclude={"out", "publish", "serve", "processes"})
    if kept.is_file() and (before := json.loads(kept.read_text("utf-8"))) != chosen:
        raise ConfigurationError(f"{config.out} was made with {before}: set that again, or name another folder")
    config.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(chosen) + "\n", encoding="utf-8")


def main(config: TinySettings) -> dict[str, Any]:
    """
    Raises:
        ConfigurationError: An environment is missing, or ``out`` holds something else.
        StepFailedError: A command failed.
    """
    begin(config)
    run = config.out / "complaints-tiny"
    steps = steps_of(config)
    started, seconds = time.monotonic(), {}
    for number, step in enumerate(steps, 1):
        there = step.done is not None and step.done.exists()
        print(f"[{number}/{len(steps) + config.serve}] {step.title}{' is there' if there else ''}", file=sys.stderr)
        if not there:
            print(f"  $ {shlex.join(step.command)}", file=sys.stderr, flush=True)
            begun = time.monotonic()
            run_step(step)
            seconds[step.title] = round(time.monotonic() - begun, 1)
    if config.serve:
        print(f"[{len(steps) + 1}/{len(steps) + 1}] serve and compare", file=sys.stderr)
        begun = time.monotonic()
        with served(run, config.out / "server.log") as url:
            compare = [sys.executable, "-m", "training.parity", f"run_dir={run}", f"urls={json.dumps({'http': url})}"]
            compare.append("forms=[openvino-int8]")
            print(f"  $ {shlex.join(compare)}", file=sys.stderr, flush=True)
            run_step(Step("compare", compare, None))
        seconds["serve"] = round(time.monotonic() - begun, 1)
    if config.publish is not None:
        publish(run / "openvino-int8", config.publish)
    return {**figures(run), "seconds": seconds, "total_s": round(time.monotonic() - started, 1)}


def publish(form: Path, place: Path) -> None:
    """Replace a folder by a copy of the form; there is always one."""
    partial, old = (place.parent / f".{place.name}.{word}-{os.getpid()}" for word in ("new", "old"))
    shutil.copytree(form, partial)
    if place.exists():
        place.rename(old)
    partial.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def figures(run: Path) -> dict[str, Any]:
    """What was measured, in one line."""
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text("utf-8"))
    test, others = evaluation["parts"]["test"], evaluation["baselines"]
    ordinal = test["slices"].get("kind=ordinal")
    return {
        "macro_f1": test["macro_f1"],
        "ordinal_accuracy": None if ordinal is None else ordinal["accuracy"],
        "ece_15": test["ece_15"],
        "natural_accuracy": evaluation["parts"]["natural"]["accuracy"],
        **{f"{name}_macro_f1": row["macro_f1"] for name, row in others.items()},
        "report": str(run / "evaluation" / "index.html"),
    }


def show(found: Mapping[str, Any], run: Path) -> None:
    """For people."""
    rows = [f"  {name:32} {value:.3f}" for name, value in found.items() if isinstance(value, float)]
    print("\n".join(rows))
    print(f"report: {found['report']}\nserve it: python -m model_server environments/local.yml model_source={run}")


def run(words: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    if {"-h", "--help"} & set(words):
        print(__doc__, file=sys.stderr)
        return 0
    try:
        config = runconfig.load(TinySettings, None, words)
        found = main(config)
    except (runconfig.ConfigError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        return 2
    except StepFailedError as error:
        print(f"{error.told}\n{error.title} failed with exit code {error.status}", file=sys.stderr)
        return error.status
    show(found, config.out / "complaints-tiny")
    print(json.dumps(found, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
