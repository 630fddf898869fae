"""Does a run fit, and how long will it take? Asked before it starts.

    python -m training.plan training/configs/finetune_tiny.yml [key=value ...]

reads the data, computes the peak memory from shapes, loads the base, measures a few micro-batches and prints the
prediction. Exit status 2 where it does not fit; :mod:`training.finetune` asks the same first.

What a step needs beside the weights is not estimated by a formula: the real model code runs on tensors without
storage (torch's FakeTensorMode) at two depths, each allocation counted until it is freed, and the line through
both gives the full depth.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

import runconfig
from model_server import cgroup
from model_server.errors import ConfigurationError, DeploymentError, ResourceInsufficientError
from training import base_model, inputs
from training.errors import TrainingError
from training.inputs import Inputs
from training.label_tokens import label_logits, label_loss
from training.settings import FineTuningSettings

_MIB, _GIB = 2**20, 2**30

# Resident memory on Linux, torch 2.15 (CUDA build on a CPU), transformers 5.23, peft 0.21, bitsandbytes 0.50.
_SLACK = 1.25  # of a step: what the C library keeps of freed blocks, buffers of matrix kernels
_FOUR_BIT_BYTES = 0.53  # of a weight in NF4 with double quantisation: 4 bits and 0.127 of scales
_CONVERTING_BYTES = 3.5  # of such a weight while it is made, which a step then reuses: 1,465 MiB for Qwen3-0.6B
_GPU_CONTEXT_BYTES = 600 * _MIB
_USABLE_SHARE = 0.95  # of what is free; the kernel kills without a word

_DEPTH = 4
"""Layers up to which a network is run as it is."""

_PROBED = 3
"""Micro-batches that are measured; the first one, which warms up, is not counted."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What one process uses at its peak, bytes.

    Attributes:
        process_bytes: Interpreter, libraries and the calls, as this process has them now.
        weights_bytes: Frozen or trained.
        optimiser_bytes: Gradients and both moments of what is trained.
        step_bytes: The most that a micro-batch holds besides.
        loading_bytes: Peak while a base is converted; 0 where it is used as it lies on the disk.
        disk_bytes: Of all checkpoints that are kept at once, one being written, and best/.
    """

    process_bytes: int
    weights_bytes: int
    optimiser_bytes: int
    step_bytes: int
    loading_bytes: int
    disk_bytes: int
    trainable_parameters: int

    @property
    def training_bytes(self) -> int:
        """Beside the process."""
        return self.weights_bytes + self.optimiser_bytes + self.step_bytes

    @property
    def peak_bytes(self) -> int:
        return max(self.process_bytes + self.training_bytes, self.loading_bytes)

    @property
    def arithmetic_line(self) -> str:
        parts = {
            "libraries": self.process_bytes,
            "weights": self.weights_bytes,
            "gradients and moments": self.optimiser_bytes,
            "a step": self.step_bytes,
        }
        terms = " + ".join(f"{value / _GIB:.2f} ({name})" for name, value in parts.items())
        loading = f", {self.loading_bytes / _GIB:.2f} while loading" if self.loading_bytes else ""
        return f"memory {self.peak_bytes / _GIB:.2f} GiB = {terms}{loading}"


class _LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """Counts the storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:  # noqa: SLF001  the identity of a storage
                    self._seen.add(storage._cdata)  # noqa: SLF001
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())  # noqa: SLF001
        return result

    def _free(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.now -= size


def _step_bytes(config: FineTuningSettings, given: Inputs, dtype: torch.dtype, layers: int) -> tuple[int, int]:
    """The most that forward and backward of the largest micro-batch hold beside weights and gradients, and the
    number of trainable parameters, for a network of so many layers.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    shape = AutoConfig.from_pretrained(given.path)
    shape.num_hidden_layers, shape.layer_types = layers, shape.layer_types[:layers]
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        model = network if config.method == "full" else base_model.add_adapter(network, config.lora)
    with FakeTensorMode(), _LiveBytes() as live:
        fakes: dict[int, torch.nn.Parameter] = {}  # the output layer and the embedding are one
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    fakes[id(tensor)] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                module.register_parameter(name, fakes[id(tensor)])
            for name, tensor in module.named_buffers(recurse=False):
                module.register_buffer(name, torch.empty(tensor.shape, dtype=tensor.dtype), persistent=False)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
        before = live.peak = live.now
        _calls_on(network, config, given)
        if config.replay is not None:
            _pairs_on(network, config, given)
    return live.peak - before, sum(parameter.numel() for parameter in trainable)


def _calls_on(network: torch.nn.Module, config: FineTuningSettings, given: Inputs) -> None:
    rows = [[0] * given.longest_row] * config.micro_batch
    labels = torch.arange(len(given.settings.labels))
    with base_model.mixed_precision(network):
        loss = label_loss(
            label_logits(network, given.prefix, rows, 0),
            labels,
            torch.zeros(len(rows), dtype=torch.long),
            config.mass_weight,
            divisor=1.0,
        )
    loss.backward()


def _pairs_on(network: torch.nn.Module, config: FineTuningSettings, given: Inputs) -> None:
    assert given.pairs is not None
    assert config.replay is not None
    number = math.ceil(config.replay.pairs_per_step / (config.batch // config.micro_batch))
    answer = max(map(len, given.pairs.answers))
    with base_model.mixed_precision(network):
        hidden = network.model(
            input_ids=torch.zeros(number, given.longest_pair, dtype=torch.long), use_cache=False
        ).last_hidden_state
        logits = network.lm_head(hidden[:, -answer:]).float()
        loss = torch.logsumexp(logits, -1).sum()
    loss.backward()


def memory(config: FineTuningSettings, given: Inputs, dtype: torch.dtype) -> MemoryPlan:
    """Predict the peak of a run with its longest calls."""
    shape = given.files.shape
    assert shape is not None
    high, trained = _step_bytes(config, given, dtype, min(shape.layers, _DEPTH))
    if shape.layers > _DEPTH:
        low, fewer = _step_bytes(config, given, dtype, _DEPTH - 1)
        high += (shape.layers - _DEPTH) * (high - low)
        trained += (shape.layers - _DEPTH) * (trained - fewer)
    step = int(high * _SLACK)
    parameters = base_model.parameter_count(shape)
    size = torch.finfo(dtype).bits // 8
    embedding = shape.vocab * shape.hidden
    weights = parameters * size + (0 if config.method == "full" else 4 * trained)
    process = psutil.Process().memory_info().rss
    read = given.files.weights_bytes or parameters * size  # the file is mapped, and counted while it is read
    converted = abs(read / (parameters * size) - 1) > 0.2  # from another precision; the rest is the file's header
    loading = process + read + weights if converted else 0
    if config.method == "qlora":
        quantised = parameters - embedding
        weights = int(embedding * size + quantised * _FOUR_BIT_BYTES + 4 * trained)
        loading = process + read + int(quantised * _CONVERTING_BYTES) + 3 * 4 * trained
    model_bytes = 4 * trained
    checkpoint = 3 * model_bytes  # weights and both moments
    return MemoryPlan(
        process_bytes=process,
        weights_bytes=weights,
        optimiser_bytes=3 * 4 * trained,
        step_bytes=step,
        loading_bytes=loading,
        disk_bytes=(config.keep_checkpoints + 2) * checkpoint + 2 * model_bytes,
        trainable_parameters=trained,
    )


def check(plan: MemoryPlan, config: FineTuningSettings, device: torch.device, processes: int) -> None:
    """
    Args:
        processes: Of this run on this machine.

    Raises:
        ResourceInsufficientError: Memory or disk do not suffice.
    """
    if device.type == "cuda":
        free, needed = torch.cuda.mem_get_info(device)[0], plan.training_bytes + _GPU_CONTEXT_BYTES
    else:
        free, needed = available_bytes() // processes, plan.peak_bytes - plan.process_bytes
    if needed > free * _USABLE_SHARE:
        raise ResourceInsufficientError(
            f"this run does not fit: {plan.arithmetic_line}; each process needs {needed / _GIB:.2f} GiB more and "
            f"{free / _GIB:.2f} are free: lower micro_batch or max_call_tokens, or use "
            f"{'method lora' if config.method == 'full' else 'a smaller base'}"
        )
    folder = next(path for path in (config.run_dir, *config.run_dir.absolute().parents) if path.exists())
    room = shutil.disk_usage(folder).free
    if plan.disk_bytes > room:
        raise ResourceInsufficientError(
            f"checkpoints and best/ take up to {plan.disk_bytes / _MIB:.0f} MiB, {folder} has {room / _MIB:.0f} free: "
            "make room, lower keep_checkpoints, or name another run_dir"
        )


def available_bytes() -> int:
    """Memory that can still be had: of the machine, and of the control group's limit."""
    group = cgroup.locate()
    limit, used = group.memory_limit_bytes(), group.memory_usage_bytes()
    free = int(psutil.virtual_memory().available)
    return free if limit is None or used is None else min(free, max(0, limit - used))


def seconds(config: FineTuningSettings, given: Inputs, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Load the base, measure a few micro-batches and one scoring pass, and reckon up the whole run.

    Returns:
        Seconds of loading, training and evaluating (s), and tokens of prompts per second while training.
    """
    from training import finetune

    started = time.monotonic()
    torch.manual_seed(config.seed)
    network = base_model.load_base(given.path, config.method, dtype, device)
    model = network if config.method == "full" else base_model.add_adapter(network, config.lora)
    reader = finetune.rationale_reader(config, given, network)
    loading = time.monotonic() - started
    model.train()
    micro_batches = config.batch // config.micro_batch
    trained_tokens = 0
    for probe in range(1 + _PROBED):
        if probe == 1:
            started = time.monotonic()
        step, micro = divmod(probe, micro_batches)
        finetune.backward(network, config, given, step, micro, reader)
        if probe:
            calls = given.order.calls(step)
            own = calls[micro * config.micro_batch : (micro + 1) * config.micro_batch]
            trained_tokens += sum(len(given.prefix) + len(given.train.rows[at]) for at in own)
    training = (time.monotonic() - started) / _PROBED
    rows = given.validation.rows[: 2 * config.micro_batch]
    started = time.monotonic()
    finetune.score_rows(network, config, given, rows)
    scoring = (time.monotonic() - started) / len(rows)
    evaluations = math.ceil(given.steps / config.evaluate_every)
    return {
        "loading_s": loading,
        "training_s": training * micro_batches * given.steps,
        "evaluating_s": scoring * len(given.validation.rows) * evaluations,
        "tokens_per_second": trained_tokens / (training * _PROBED),
    }


def main(arguments: Sequence[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    from training import finetune

    try:
        config = runconfig.load(FineTuningSettings, Path(arguments[0]), arguments[1:])
        given = inputs.read(config)
        device, dtype = finetune.device_and_dtype(config)
        torch.set_num_threads(config.threads or cgroup.available_threads(os.cpu_count() or 1))
        plan = memory(config, given, dtype)
        print(plan.arithmetic_line)
        check(plan, config, device, 1)
        spent = seconds(config, given, dtype, device)
    except (runconfig.ConfigError, ConfigurationError, DeploymentError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 2
    total = spent["loading_s"] + spent["training_s"] + spent["evaluating_s"]
    print(
        f"time   {total / 60:.1f} min = {spent['loading_s']:.0f} s loading + {given.steps} steps of {config.batch} "
        f"calls in {spent['training_s']:.0f} s ({spent['tokens_per_second']:.0f} tokens/s) + "
        f"{spent['evaluating_s']:.0f} s evaluations, on one process"
    )
    print(
        json.dumps(
            {
                "peak_memory_bytes": plan.peak_bytes,
                "disk_bytes": plan.disk_bytes,
                "trainable_parameters": plan.trainable_parameters,
                "steps": given.steps,
                "seconds": round(total, 1),
                **{name: round(value, 1) for name, value in spent.items()},
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
