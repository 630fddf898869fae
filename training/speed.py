"""What a training step costs with Qwen3-0.6B, beside a plain loop; and the memory of whole runs.

    python -m training.speed [rounds=12] [tokens=256] [threads=1] [methods=[lora,qlora]]

in the training environment. The base is the random-weight model of the exact shape (training/random_model.py), made
in the cache when it is not there. The plain loop is what one would write without this project: forward pass,
cross-entropy over the vocabulary at the last position, backward, AdamW, on the same adapter in the same precision.
Both take turns in one process, and CPU time is compared, so that what else runs on the machine does not count. Peak
memory is that of ``training.finetune`` in a process of its own. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from accelerate import PartialState
from pydantic import Field
from transformers import Qwen3ForCausalLM

import runconfig
from model_server.cache import cache_dir
from training import base_model, finetune, inputs, random_model
from training.calls import CallSettings, make_splits
from training.inputs import Inputs
from training.settings import FineTuningSettings

SPEED_BAR = 0.95
"""Tokens per second, of those of the plain loop."""
MEMORY_BARS_GIB = {"lora": 4.0, "qlora": 4.2}


class SpeedSettings(runconfig.RunConfig):
    rounds: int = Field(default=12, ge=4)
    """Steps of each loop; the first of each, which warms up, is not counted."""
    tokens: int = Field(default=256, ge=200)
    """Of a prompt."""
    threads: int = Field(default=1, ge=1)
    methods: tuple[Literal["lora", "qlora"], ...] = ("lora", "qlora")
    """Whose memory is measured."""


def write_calls(folder: Path) -> None:
    """Calls that are longer than any limit, so that all prompts have the same length."""
    for part, calls in make_splits(CallSettings(), {"train": 24, "validation": 2}).items():
        rows = [
            {**call.model_dump(), "input_text": call.input_text * 20, "metadata": json.dumps(call.metadata)}
            for call in calls
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{part}.parquet")


def run_settings(folder: Path, base: Path, words: SpeedSettings, call_tokens: int, method: str) -> FineTuningSettings:
    return FineTuningSettings.model_validate(
        {
            "base_model": str(base),
            "data": folder,
            "run_dir": folder / f"run-{method}",
            "method": method,
            "steps": 6,
            "batch": 1,
            "micro_batch": 1,
            "evaluate_every": 3,
            "max_call_tokens": call_tokens,
            "threads": words.threads,
        }
    )


def plain_step(
    model: torch.nn.Module, network: Qwen3ForCausalLM, optimiser: torch.optim.Optimizer, row: list[int], label: int
) -> None:
    model.train()
    optimiser.zero_grad()
    with base_model.mixed_precision(network):
        hidden = network.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
        logits = network.lm_head(hidden[:, -1])
    torch.nn.functional.cross_entropy(logits.float(), torch.tensor([label])).backward()
    optimiser.step()


def ratios(config: FineTuningSettings, given: Inputs, rounds: int) -> np.ndarray:
    """CPU seconds of the plain loop over those of ours, for each round, (rounds - 1,)."""
    torch.manual_seed(0)
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    network = base_model.load_base(given.path, "lora", torch.bfloat16, torch.device("cpu"))
    model = base_model.add_adapter(network, config.lora)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=config.learning_rate, fused=True)
    state = PartialState(cpu=True)
    label_ids = list(given.settings.label_ids.values())
    spent: dict[str, list[float]] = {"plain": [], "ours": []}
    for step in range(rounds):
        for name in ("plain", "ours") if step % 2 else ("ours", "plain"):
            started = time.process_time()
            if name == "ours":
                model.train()
                finetune.update(network, config, given, state, [optimiser], step)
            else:
                row = [*given.prefix, *given.train.rows[step]]
                plain_step(model, network, optimiser, row, label_ids[given.train.truth[step]])
            spent[name].append(time.process_time() - started)
        print(
            f"round {step}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in spent.items()), file=sys.stderr, flush=True
        )
    tokens = len(given.prefix) + len(given.train.rows[0])
    for name, seconds in spent.items():
        print(f"{name:6} {tokens / float(np.median(seconds[1:])):7.1f} tokens per CPU second (median)")
    return np.divide(spent["plain"][1:], spent["ours"][1:])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval by 10,000 seeded bootstrap draws."""
    logs = np.log(values)
    draws = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(1)
    low, high = np.exp(np.quantile(draws, [0.025, 0.975]))
    return float(np.exp(logs.mean())), float(low), float(high)


def main(words: SpeedSettings) -> int:
    base = cache_dir() / "models" / "random-0.6b"
    if not base.exists():
        random_model.write_model(random_model.SHAPES["0.6b"], base, 0, "0.6b")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_calls(folder)
        probe = inputs.read(run_settings(folder, base, words, 64, "lora"))
        call_tokens = words.tokens - len(probe.prefix) - probe.suffix_tokens
        report: dict[str, object] = {"tokens": words.tokens, "threads": words.threads}
        met = True
        for method in words.methods:
            config = run_settings(folder, base, words, call_tokens, method)
            (folder / "run.yml").write_text(runconfig.dump(config))
            command = [sys.executable, "-m", "training.finetune", str(folder / "run.yml")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peak = json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"] / 2**30
            print(f"{method:6} peak memory {peak:.2f} GiB, bar {MEMORY_BARS_GIB[method]:.1f}")
            report[f"{method}_peak_gib"] = round(peak, 3)
            met &= peak <= MEMORY_BARS_GIB[method]
        config = run_settings(folder, base, words, call_tokens, "lora")
        given = inputs.read(config)
        longest = max(map(len, given.train.rows))
        print(f"prompts of {len(given.prefix) + longest} tokens, {len(given.prefix)} of them the common prefix")
        ratio, low, high = interval(ratios(config, given, words.rounds))
    print(
        f"tokens per CPU second, of the plain loop's: {ratio:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"bar {SPEED_BAR}"
    )
    report |= {"ratio": round(ratio, 4), "ratio_95": [round(low, 4), round(high, 4)]}
    met &= ratio >= SPEED_BAR
    print(json.dumps(report))
    return 0 if met else 1


def run(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0
    try:
        return main(runconfig.load(SpeedSettings, None, arguments))
    except runconfig.ConfigError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
