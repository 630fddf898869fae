"""One of two CPUs: threads derived from the quota against one thread per core, with the kernel's count of stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures.classification import interleave
from benchmarks.figures.processes import Raw
from benchmarks.figures.table import Figure, ratio_figure
from benchmarks.figures.workload import environment, plan_words, prompts, rendered
from model_server import cgroup

ROOT = Path("/sys/fs/cgroup")


def measure(model: Path, folder: Path, pairs: int) -> list[Figure]:
    if os.geteuid() != 0:
        raise RuntimeError("this figure makes control groups: run it as root, or leave it out with only=...")
    path = environment(folder, model, max_batch_size=8)
    texts = [rendered(model, text) for text in prompts(model, 4, tokens=64)]
    command = {"prompts": texts, "max_tokens": 32}
    derived_rates: list[float] = []
    naive_rates: list[float] = []
    with group("qwen3-derived") as derived_group, group("qwen3-naive") as naive_group:
        words = [word for word in plan_words(path) if not word.startswith("threads=")]
        derived = inside(derived_group, lambda: cgroup.available_threads(os.cpu_count() or 1))
        if derived != 1:
            raise RuntimeError(f"a quota of one core should give one thread, got {derived}")
        with (
            Raw("benchmarks.raw_openvino", model, [*words, f"threads={derived}"]) as ours,
            Raw("benchmarks.raw_openvino", model, [*words, f"threads={os.cpu_count()}"]) as naive,
        ):
            enter(derived_group, ours.process.pid)
            enter(naive_group, naive.process.pid)

            def run_derived() -> None:
                derived_rates.append(rate(ours))

            def run_naive() -> None:
                naive_rates.append(rate(naive))

            def rate(raw: Raw) -> float:
                answer = raw.ask(command)
                return float(answer["tokens"] / answer["seconds"])

            interleave(pairs, run_derived, run_naive, forget=(derived_rates, naive_rates))
            stops = {name: throttled(at) for name, at in (("derived", derived_group), ("naive", naive_group))}
    return [
        ratio_figure(
            f"quota of 1 CPU: {derived} thread (derived) / {os.cpu_count()} threads (naive)",
            naive_rates,
            derived_rates,
            at_least=1.0,
            unit="tok/s",
        ),
        Figure.of(
            "quota of 1 CPU: nr_throttled derived / naive",
            stops["derived"] / max(1, stops["naive"]),
            at_most=1.0,
            detail=f"{stops['derived']} against {stops['naive']} periods",
        ),
    ]


@contextmanager
def group(name: str) -> Iterator[Path]:
    """A control group with one core's quota."""
    hierarchy = ROOT / "cpu" if (ROOT / "cpu").is_dir() else ROOT
    path = hierarchy / name
    path.mkdir(exist_ok=True)
    if (path / "cpu.max").exists():
        (path / "cpu.max").write_text("100000 100000")
    else:
        (path / "cpu.cfs_period_us").write_text("100000")
        (path / "cpu.cfs_quota_us").write_text("100000")
    try:
        yield path
    finally:
        path.rmdir()


def enter(path: Path, pid: int) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        tasks = path / "tasks"
        if tasks.exists():
            tasks.write_text(thread.name)
        else:
            (path / "cgroup.procs").write_text(str(pid))
            return


def throttled(path: Path) -> int:
    counters = dict(line.split() for line in (path / "cpu.stat").read_text().splitlines())
    return int(counters["nr_throttled"])


def inside(path: Path, ask: Callable[[], int]) -> int:
    """What ``ask`` answers in a process inside the group."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def answer() -> None:
        (path / "cgroup.procs").write_text("0")
        sender.send(ask())

    process = context.Process(target=answer)
    process.start()
    found: int = receiver.recv()
    process.join()
    return found
