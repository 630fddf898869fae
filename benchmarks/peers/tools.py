"""The clients: how each is run, and what its own report says."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_server.cache import cache_dir

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models" / "complaints-tiny"
OUTPUT_TOKENS = 64
PROMPT = "Parcel number {number} has not come. What can I do?"


@dataclass(frozen=True, slots=True)
class Work:
    """What one client is asked to do: so many chat streams, so many at once. ``model`` chooses the server's mode."""

    url: str
    model: str
    streams: int
    requests: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Figures:
    """What a client reports, in its own definitions; milliseconds, medians over requests. None: it reports none."""

    succeeded: int
    failed: int
    ttft_ms: float | None
    tpot_ms: float | None
    tokens: float | None
    """Output tokens per request that succeeded."""
    itl_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tool:
    """``command`` writes its inputs into the work's folder; ``read`` reads what came of it there."""

    name: str
    version: str
    command: Callable[[Work], list[str]]
    read: Callable[[Path], Figures]
    environ: Mapping[str, str]

    @property
    def python(self) -> Path:
        return environment(self.name) / "bin" / "python"

    @property
    def absent(self) -> str | None:
        """Why it cannot be run here; None where it can."""
        if self.name == "ours" or (environment(self.name) / ".ready").exists():
            return None
        return f"no environment: python -m benchmarks.peers install {self.name}"


def environment(name: str) -> Path:
    return cache_dir() / "venvs" / f"peer-{name}"


def install(name: str) -> None:
    """Make the environment of a peer from its pins, at the lowest priority: it is gigabytes.

    Raises:
        subprocess.CalledProcessError: uv could not.
    """
    uv = [sys.executable, "-m", "uv"]
    folder = environment(name)
    subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder)], check=True)
    pins = HERE / "requirements" / f"{name}.txt"
    python = str(folder / "bin" / "python")
    subprocess.run(
        ["nice", "-n", "19", *uv, "pip", "install", "-q", "-p", python, "--require-hashes", "-r", str(pins)], check=True
    )
    (folder / ".ready").touch()


def texts(count: int) -> list[str]:
    return [PROMPT.format(number=number) for number in range(count)]


def tokenizer_folder(folder: Path) -> Path:
    """tokenizer.json and config.json without weights: what transformers asks for where there is no network."""
    made = folder / "tokenizer"
    if not made.exists():
        made.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            (made / name).write_bytes((MODELS / name).read_bytes())
    return made


# Ours


def ours(work: Work) -> list[str]:
    return [
        *(sys.executable, "-m", "benchmarks", "run", str(HERE / "scenario.yml")),
        *(f"url={work.url}", f"model={work.model}", f"users={work.streams}", f"requests={work.requests}"),
        *(f"texts={json.dumps(texts(8))}", f"max_tokens={OUTPUT_TOKENS}", f"out={work.folder / 'run'}"),
        *("--quiet", "--json"),
    ]


def read_ours(folder: Path) -> Figures:
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    import pandas as pd

    records = pd.read_parquet(folder / "run" / "requests.parquet", columns=["phase", "error", "output_tokens"])
    measured = records[(records["phase"] == "measure") & records["error"].isna()]
    tokens = measured["output_tokens"].mean()
    return Figures(
        succeeded=summary["successful_requests"],
        failed=summary["total_requests"] - summary["successful_requests"],
        ttft_ms=summary["ttft_p50_ms"],
        tpot_ms=summary["tpot_p50_ms"],
        tokens=None if pd.isna(tokens) else float(tokens),
    )


# guidellm


def guidellm(work: Work) -> list[str]:
    tokenizer = tokenizer_folder(work.folder)
    return [
        *(str(environment("guidellm") / "bin" / "guidellm"), "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={work.url},model={work.model}"),
        *("--profile", f"kind=concurrent,streams={work.streams}"),
        *("--constraint", f"kind=max_requests,count={work.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={OUTPUT_TOKENS}"),
        *("--output", f"kind=json,path={work.folder / 'guidellm.json'}"),
    ]


def read_guidellm(folder: Path) -> Figures:
    metrics = json.loads((folder / "guidellm.json").read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]

    def of(name: str, statistic: str = "median") -> float | None:
        found = metrics[name]["successful"]
        return float(found[statistic]) if found and found["count"] else None

    return Figures(
        succeeded=totals["successful"],
        failed=totals["errored"] + totals["incomplete"],
        ttft_ms=of("time_to_first_token_ms"),
        tpot_ms=of("time_per_output_token_ms"),
        tokens=of("output_token_count", "mean"),
        itl_ms=of("inter_token_latency_ms"),
    )


# vllm bench serve


def vllm(work: Work) -> list[str]:
    conversations = [
        {"id": str(number), "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]}
        for number, text in enumerate(texts(work.requests))
    ]
    data = work.folder / "sharegpt.json"
    data.write_text(json.dumps(conversations), encoding="utf-8")
    return [
        *(str(environment("vllm") / "bin" / "vllm"), "bench", "serve", "--backend", "openai-chat"),
        *("--base-url", work.url, "--endpoint", "/v1/chat/completions", "--model", work.model),
        *("--tokenizer", str(tokenizer_folder(work.folder)), "--disable-tqdm", "--ready-check-timeout-sec", "0"),
        *("--dataset-name", "sharegpt", "--dataset-path", str(data), "--sharegpt-output-len", str(OUTPUT_TOKENS)),
        *("--num-prompts", str(work.requests), "--max-concurrency", str(work.streams)),
        *("--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--save-result", "--result-dir", str(work.folder), "--result-filename", "vllm.json"),
    ]


def read_vllm(folder: Path) -> Figures:
    found = json.loads((folder / "vllm.json").read_text(encoding="utf-8"))
    completed = found["completed"]
    return Figures(
        succeeded=completed,
        failed=found["failed"],
        ttft_ms=found["median_ttft_ms"] if completed else None,
        tpot_ms=found["median_tpot_ms"] if completed else None,
        tokens=found["total_output_tokens"] / completed if completed else None,
        itl_ms=found["median_itl_ms"] if completed else None,
    )


# Locust with its own iter_lines, as its documentation shows streams


def locust(work: Work) -> list[str]:
    return [
        *(str(environment("locust") / "bin" / "locust"), "-f", str(HERE / "locust_iter_lines.py")),
        *("--headless", "--only-summary", "--host", work.url),
        *("--users", str(work.streams), "--spawn-rate", str(work.streams)),
        *("--stream-model", work.model, "--stream-requests", str(work.requests)),
        *("--stream-out", str(work.folder / "locust.json")),
    ]


def read_locust(folder: Path) -> Figures:
    found = json.loads((folder / "locust.json").read_text(encoding="utf-8"))
    whole = [row for row in found if row["error"] is None and row["tokens"]]
    spans = [(row["last_s"] - row["first_s"]) / (row["tokens"] - 1) * 1000 for row in whole if row["tokens"] > 1]
    return Figures(
        succeeded=len(whole),
        failed=len(found) - len(whole),
        ttft_ms=statistics.median(row["first_s"] * 1000 for row in whole) if whole else None,
        tpot_ms=statistics.median(spans) if spans else None,
        tokens=statistics.fmean(row["tokens"] for row in whole) if whole else None,
    )


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
TOOLS: Sequence[Tool] = (
    Tool("ours", "", ours, read_ours, {}),
    # One worker process, which is its cheapest: it starts up to ten.
    Tool("guidellm", "0.8.1", guidellm, read_guidellm, OFFLINE | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}),
    Tool("vllm", "0.32.0", vllm, read_vllm, OFFLINE | {"VLLM_NO_USAGE_STATS": "1"}),
    Tool("locust", "2.47.0", locust, read_locust, {}),
)


def environ(tool: Tool) -> dict[str, str]:
    """The environment of the process: of ours what it needs, so that no path of ours leads a peer to our packages."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return kept | dict(tool.environ)
