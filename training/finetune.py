"""Fine-tune a Qwen3 to name the category of a complaint call with one letter.

    python -m training.finetune training/configs/finetune_tiny.yml [key=value ...]
    accelerate launch --config_file training/configs/accelerate_2_cpu.yml -m training.finetune CONFIG.yml
    torchrun --nproc-per-node 2 -m training.finetune CONFIG.yml

in the training environment. Writes into ``run_dir``: ``config.yml`` (resolved), ``manifest.json`` (what the result
depends on), ``metrics.jsonl`` (a line for each step and each evaluation, nothing in it depends on the clock),
``checkpoints/`` and ``best/``, the model of the best evaluation: an adapter, or with method full the whole model.
Started again with the same settings it goes on from the newest undamaged checkpoint, bit for bit; batches, order
and random numbers follow from seed and step alone.

Loss, at the position of the label only: cross-entropy over the K label logits plus ``mass_weight`` times
-log(probability of any label). Cross-entropy over the whole vocabulary is the same with weight 1 and learns
far slower; weight 0 leaves half of the probability outside the labels (measured, 0.98 M parameters, 700
steps: macro-F1 .704, .975 with label mass .448, and .957 with label mass .954 for 0.1).

Exit status: 0 done, 1 the loss is not finite, 2 settings, data or base do not do, 4 no checkpoint could be written
or read or 4-bit gradients are wrong, 130 and 143 stopped by a signal with a checkpoint written.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist
from transformers import Qwen3ForCausalLM

import runconfig
from model_server import cgroup
from model_server.classification import unweighted, write_settings
from model_server.errors import ConfigurationError, DeploymentError
from training import base_model, batches, checkpoints, inputs, plan, quantized
from training.durable_files import sha256
from training.errors import (
    CheckpointError,
    InterruptedRunError,
    LossNotFiniteError,
    RunMismatchError,
    TrainingError,
)
from training.inputs import Inputs
from training.label_tokens import answer_loss, hidden_states, label_loss, last_logits, pad, score
from training.live_view import LiveView
from training.metrics import macro_f1
from training.settings import FREE_TO_CHANGE, FineTuningSettings

# Shapes: B calls, N validation calls, T tokens, V vocabulary, K labels.

READER = "rationale_reader"
BETAS = (0.9, 0.98)
"""Of AdamW: its second moment remembers 50 steps, where runs have hundreds."""
_VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy")


def learning_rate(config: FineTuningSettings, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``learning_rate_floor``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    floor = config.learning_rate_floor
    return config.learning_rate * warm * (floor + (1 - floor) * (1 + math.cos(math.pi * step / steps)) / 2)


def backward(
    network: Qwen3ForCausalLM,
    config: FineTuningSettings,
    given: Inputs,
    step: int,
    micro: int,
    reader: torch.nn.Linear | None = None,
) -> Tensor:
    """Add the gradient of one micro-batch; the sum over all of a step is that of the mean over its calls.

    Args:
        reader: Of rationales, from the states below the last layer to the K labels.

    Returns:
        Its share of the step's loss, of the loss of the replayed pairs and of that of the rationales, (3,).
    """
    number = config.batch // config.micro_batch
    seed = batches.seed_of(config.seed, step, micro)
    torch.manual_seed(seed)  # dropout: the same masks wherever this micro-batch is computed
    rng = random.Random(seed)
    calls = given.order.calls(step)
    share = config.corruption * (1 - step / given.steps)
    words, fill = given.tokenizer.vocab_size, given.tokenizer.pad_token_id
    own = calls[micro * config.micro_batch : (micro + 1) * config.micro_batch]
    rows = [batches.corrupt(given.train.rows[at], share, given.suffix_tokens, rng, words) for at in own]
    truth = given.train.truth
    weights = given.class_weights
    with base_model.mixed_precision(network):
        hidden = hidden_states(network, given.prefix, rows, fill, below=reader is not None)
        logits = last_logits(network, hidden if reader is None else hidden[1], rows)
    loss = label_loss(
        logits,
        torch.tensor(list(given.settings.label_ids.values()), device=network.device),
        torch.tensor([truth[at] for at in own], device=network.device),
        config.mass_weight,
        class_weights=None if weights is None else torch.tensor(weights, device=network.device),
        focal_gamma=config.focal_gamma,
        divisor=float(len(calls)) if weights is None else max(1e-9, sum(weights[truth[at]] for at in calls)),
    )
    read = torch.zeros((), device=network.device)
    if reader is not None:
        marks = pad([given.train.rationales[at] for at in own], batches.UNTOLD).to(network.device)
        told = sum(mark != batches.UNTOLD for at in calls for mark in given.train.rationales[at])
        read = rationale_loss(reader(hidden[0].float()), marks) / max(1, told)
    (loss + config.rationale_weight * read).backward()
    replayed = torch.zeros((), device=network.device)
    if config.replay is not None and given.pairs is not None:
        drawn = batches.pairs_of_step(config.seed, step, config.replay.pairs_per_step, given.pairs)
        if mine := drawn[micro::number]:
            prompts, answers = ([part[at] for at in mine] for part in (given.pairs.prompts, given.pairs.answers))
            tokens = sum(len(given.pairs.answers[at]) for at in drawn)
            with base_model.mixed_precision(network):
                replayed = answer_loss(network, prompts, answers, fill, tokens)
            (config.replay.weight * replayed).backward()
    return torch.stack([loss.detach(), replayed.detach(), read.detach()])


def rationale_reader(config: FineTuningSettings, given: Inputs, network: Qwen3ForCausalLM) -> torch.nn.Linear | None:
    """A linear layer from the states below the last layer to the K labels, drawn anew; None where nobody asked."""
    if not config.rationale_weight:
        return None
    return torch.nn.Linear(network.config.hidden_size, len(given.settings.labels), device=network.device)


def rationale_loss(logits: Tensor, marks: Tensor) -> Tensor:
    """Cross-entropy of the category that each marked token tells of, summed, nats; (B, T, K) and (B, T)."""
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), marks, ignore_index=batches.UNTOLD, reduction="sum"
    )


def optimisers_for(
    config: FineTuningSettings, trainable: dict[str, torch.nn.Parameter]
) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW for all, or Muon for the matrices inside the layers and AdamW for the rest."""
    inside = [
        name for name, each in trainable.items() if config.optimiser == "muon" and ".layers." in name and each.ndim == 2
    ]
    rest = [each for name, each in trainable.items() if name not in inside]
    decay = config.weight_decay
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=BETAS, weight_decay=decay, fused=True)
    ]
    if inside:
        # With its steps as long as AdamW's (Liu et al., 2025, arXiv 2502.16982) one learning rate does for both.
        matrices = [trainable[name] for name in inside]
        found.append(
            torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    return tuple(found)


def update(
    network: Qwen3ForCausalLM,
    config: FineTuningSettings,
    given: Inputs,
    state: PartialState,
    optimisers: Sequence[torch.optim.Optimizer],
    step: int,
    caught: int = 0,
    reader: torch.nn.Linear | None = None,
) -> tuple[dict[str, Any], int]:
    """One step: all micro-batches, over all processes.

    Args:
        caught: Signal that this process has got, 0 for none.

    Returns:
        The line for ``metrics.jsonl``, and the signal that any process has got, SIGTERM where they got several.

    Raises:
        LossNotFiniteError: Before anything is changed.
    """
    number = config.batch // config.micro_batch
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    trainable = [parameter for group in groups for parameter in group["params"]]
    for optimiser in optimisers:
        optimiser.zero_grad()
    # One row for each micro-batch, filled by the process that computed it; the last one tells of signals.
    losses = torch.zeros(number + 1, 3, device=network.device)
    for micro in range(state.process_index, number, state.num_processes):
        losses[micro] = backward(network, config, given, step, micro, reader)
    losses[-1] = torch.tensor([float(caught), float(caught > 0), 0.0])
    if state.num_processes > 1:  # gradients are shares of one sum: adding them is all that has to be told
        _add_up([losses, *(parameter.grad for parameter in trainable if parameter.grad is not None)])
    norm = torch.nn.utils.clip_grad_norm_(trainable, config.clip_norm)
    _check_finite(losses[:-1], norm, step, config, given)
    rate = learning_rate(config, step, given.steps)
    for group in groups:
        group["lr"] = rate
    for optimiser in optimisers:
        optimiser.step()
    loss, replayed, read = losses[:-1].sum(0).tolist()
    calls = given.order.calls(step)
    line = {"step": step + 1, "loss": loss, "grad_norm": float(norm), "learning_rate": rate}
    if config.replay is not None:
        line["replay_loss"] = replayed
    if reader is not None:
        line["rationale_loss"] = read
    line["tokens"] = sum(len(given.prefix) + len(given.train.rows[at]) for at in calls)
    total, number_caught, _ = losses[-1].tolist()
    stop = int(total / number_caught) if number_caught else 0
    return line, stop if stop in {0, signal.SIGINT, signal.SIGTERM} else int(signal.SIGTERM)


def _add_up(tensors: Sequence[Tensor]) -> None:
    """Each becomes its sum over all processes. In one message: some fifty small ones took longer than the sums."""
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def score_rows(
    network: Qwen3ForCausalLM, config: FineTuningSettings, given: Inputs, rows: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probabilities of the labels, (rows, K); two micro-batches at once need less memory than training one."""
    label_ids = torch.tensor(list(given.settings.label_ids.values()), device=network.device)
    with base_model.mixed_precision(network):
        return score(network, given.prefix, rows, label_ids, given.tokenizer.pad_token_id, 2 * config.micro_batch)


def evaluate(
    network: Qwen3ForCausalLM, config: FineTuningSettings, given: Inputs, state: PartialState
) -> dict[str, Any]:
    """Figures of the validation calls; every process scores its share and gets all scores."""
    labels, rows, at_once = given.settings.labels, given.validation.rows, 2 * config.micro_batch
    scores = torch.zeros(len(rows), len(labels), device=network.device)
    passes = range(0, len(rows), at_once)
    for start in passes[state.process_index :: state.num_processes]:
        part = score_rows(network, config, given, rows[start : start + at_once])
        scores[start : start + at_once] = part.to(scores.device)
    if state.num_processes > 1:
        dist.all_reduce(scores)
    names, truth = list(labels.values()), torch.tensor(given.validation.truth)
    scores = torch.from_numpy(unweighted(scores.cpu().numpy(), given.settings))
    chosen = scores.argmax(1).tolist()
    return {
        "validation_macro_f1": macro_f1([names[t] for t in given.validation.truth], [names[c] for c in chosen]),
        "validation_accuracy": sum(t == c for t, c in zip(given.validation.truth, chosen, strict=True)) / len(rows),
        "validation_nll": float(torch.nn.functional.cross_entropy(scores, truth)),
        "validation_label_mass": float(scores.exp().sum(1).mean()),
    }


def device_and_dtype(config: FineTuningSettings) -> tuple[torch.device, torch.dtype]:
    """
    Raises:
        ConfigurationError: A GPU is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, but torch finds no GPU here: use device=cpu or device=auto")
    device = "cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda"
    automatic = "float32" if config.method == "full" else "bfloat16"
    return torch.device(device), getattr(torch, automatic if config.dtype == "auto" else config.dtype)


def main(config: FineTuningSettings) -> dict[str, Any]:
    # --- where it runs
    device, dtype = device_and_dtype(config)
    cuda = device.type == "cuda"
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS sums in one order only with it
    state = PartialState(cpu=not cuda)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    threads = config.threads or max(1, cgroup.available_threads(os.cpu_count() or 1) // local)
    torch.set_num_threads(threads)
    # Attention kernels of some GPUs have no deterministic form: there a warning, an error would forbid training.
    torch.use_deterministic_algorithms(True, warn_only=cuda)
    micro_batches = config.batch // config.micro_batch
    if micro_batches % state.num_processes:
        raise ConfigurationError(
            f"a step has {micro_batches} micro-batches (batch {config.batch} / micro_batch {config.micro_batch}), "
            f"which {state.num_processes} processes cannot share evenly: change batch or micro_batch"
        )

    # --- what it learns from, and whether that fits
    given = inputs.read(config)
    memory = plan.memory(config, given, dtype)
    plan.check(memory, config, state.device, local)
    run = _describe(config, given, state, threads, dtype)
    resumed = _open_run(config, run, state)
    view = LiveView(resumed["step"], given.steps, silent=not state.is_main_process)
    if resumed["finished"]:
        view.say(f"{config.run_dir} holds this run already, finished")
        return _report(config, resumed, None)
    view.say(
        f"{len(given.train.rows)} training and {len(given.validation.rows)} validation calls, {given.steps} steps of "
        f"{config.batch}, method {config.method}, {state.num_processes} x {state.device}; {memory.arithmetic_line}"
    )

    # --- network: seeded first, since the adapter is drawn when it is made
    torch.manual_seed(config.seed)
    network = base_model.load_base(given.path, config.method, dtype, state.device)
    if config.method == "qlora":
        error = quantized.check_gradients(network, quantized.dequantised(network))
        view.say(f"4-bit gradients after a pass in eval mode: relative error {error:.4f}")
    model = network if config.method == "full" else base_model.add_adapter(network, config.lora)
    if config.adapter is not None:
        base_model.load_weights(model, config.adapter)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    reader = rationale_reader(config, given, network)
    if reader is not None:
        trainable |= {f"{READER}.{name}": parameter for name, parameter in reader.named_parameters()}
    optimisers = optimisers_for(config, trainable)
    if resumed["step"]:
        checkpoint = checkpoints.path_of(config.run_dir / "checkpoints", resumed["step"])
        base_model.load_weights(model, checkpoint / "model")
        if reader is not None:
            reader.load_state_dict(load_file(checkpoint / f"{READER}.safetensors"))
        _load_optimisers(optimisers, trainable, checkpoint / "optimizer.safetensors")
        view.say(f"going on from {checkpoint}")

    # --- training
    folder = config.run_dir / "checkpoints"
    progress = {key: resumed[key] for key in ("best_macro_f1", "best_step", "stale", "finished")}
    log = (config.run_dir / "metrics.jsonl").open("a", encoding="utf-8") if state.is_main_process else None

    def record(line: dict[str, Any]) -> None:
        if log is not None:
            log.write(json.dumps(line, allow_nan=False) + "\n")
            log.flush()

    def fill(directory: Path, step: int) -> None:
        base_model.save(model, given.tokenizer, run["base"], directory / "model")
        write_settings(given.settings, directory / "model")
        if reader is not None:
            save_file(reader.state_dict(), directory / f"{READER}.safetensors")
        _save_optimisers(optimisers, trainable, directory / "optimizer.safetensors")
        shutil.copyfile(config.run_dir / "metrics.jsonl", directory / "metrics.jsonl")
        text = json.dumps({"step": step, **progress})
        (directory / "state.json").write_text(text + "\n", encoding="utf-8")

    def keep(step: int) -> None:
        """Checkpoint, then what follows from it: each may be lost and is made again from the one before."""
        if state.is_main_process:
            checkpoint = checkpoints.write(folder, step, lambda directory: fill(directory, step))
            if progress["best_step"] == step:
                checkpoints.publish(checkpoint / "model", config.run_dir / "best")
            checkpoints.prune(folder, config.keep_checkpoints, progress["best_step"])
        state.wait_for_everyone()

    with view, _signals() as caught:
        for step in range(resumed["step"], given.steps):
            model.train()
            line, stop = update(network, config, given, state, optimisers, step, caught[0] if caught else 0, reader)
            record(line)
            view.step(line)

            done, last = step + 1, step + 1 == given.steps
            due = last or done % config.evaluate_every == 0
            if due:
                figures = evaluate(network, config, given, state)
                better = figures["validation_macro_f1"] > progress["best_macro_f1"]
                progress["stale"] = 0 if better else progress["stale"] + 1
                if better:
                    progress |= {"best_macro_f1": figures["validation_macro_f1"], "best_step": done}
                early = config.patience is not None and progress["stale"] >= config.patience
                progress["finished"] = "all steps" if last else "early stop" if early else ""
                line = {"step": done, **figures, **{key: progress[key] for key in ("best_macro_f1", "best_step")}}
                record(line)
                view.evaluation(line)
            if due or stop or (config.checkpoint_every is not None and done % config.checkpoint_every == 0):
                keep(done)
            if progress["finished"]:
                break
            if stop:
                raise InterruptedRunError(stop, done, f"python -m training.finetune {config.run_dir / 'config.yml'}")
    if log is not None:
        log.close()
    return _report(config, {"step": done, **progress}, view)


# --- the run directory -------------------------------------------------------------------------------------


def _describe(
    config: FineTuningSettings, given: Inputs, state: PartialState, threads: int, dtype: torch.dtype
) -> dict[str, Any]:
    """``manifest.json``: what the result depends on."""
    base = base_model.digests(given.path)
    if config.adapter is not None:
        base_model.check_adapter(config.adapter, base)
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    data = {f"{part}.parquet": sha256(config.data / f"{part}.parquet") for part in ("train", "validation")}
    others = {"replay": None if config.replay is None else config.replay.file}
    others["adapter"] = None if config.adapter is None else config.adapter / "adapter_model.safetensors"
    return {
        "format": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "steps": given.steps,
        "base": {"source": str(config.base_model), "path": str(given.path), "sha256": base},
        "data": data | {name: sha256(path) for name, path in others.items() if path is not None},
        "order_sha256": given.order.sha256(given.steps, given.train.conversation_ids),
        "prompt_sha256": given.settings.prompt_sha256,
        "git_revision": _git_revision(),
        "versions": versions,
        "device": str(state.device.type),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": state.num_processes,
        "threads": threads,
    }


def _open_run(config: FineTuningSettings, run: dict[str, Any], state: PartialState) -> dict[str, Any]:
    """Begin a run directory, or find where to go on in it.

    Returns:
        The state of the newest undamaged checkpoint, step 0 where there is none.

    Raises:
        RunMismatchError: It holds another run; says what differs.
        CheckpointError: None of its checkpoints can be used.
    """
    new: dict[str, Any] = {"step": 0, "best_macro_f1": -1.0, "best_step": None, "stale": 0, "finished": ""}
    folder, manifest = config.run_dir / "checkpoints", config.run_dir / "manifest.json"
    if manifest.is_file():
        if config.resume == "never":
            raise RunMismatchError(f"{config.run_dir} is a run already: resume=auto goes on with it, or name another")
        _check_same_run(json.loads(manifest.read_bytes()), run, config.run_dir)
    checkpoint, damaged = checkpoints.newest_valid(folder)
    if state.is_main_process:
        for name, reason in damaged.items():
            print(f"skipping the damaged checkpoint {folder / name}: {reason}", file=sys.stderr, flush=True)
    if checkpoint is None and damaged:
        raise CheckpointError(
            f"none of the checkpoints in {folder} can be used ({', '.join(damaged)}): name another run_dir"
        )
    resumed: dict[str, Any] = new if checkpoint is None else json.loads((checkpoint / "state.json").read_bytes())
    state.wait_for_everyone()  # nobody reads any more when the first process begins to change things
    if state.is_main_process:
        try:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            if not manifest.is_file():
                checkpoints.write_text(config.run_dir / "config.yml", runconfig.dump(config))
                checkpoints.write_text(manifest, json.dumps(run, ensure_ascii=False, indent=1) + "\n")
            if checkpoint is None:
                checkpoints.write_text(config.run_dir / "metrics.jsonl", "")
            else:
                # What was written after the checkpoint happens again.
                text = (checkpoint / "metrics.jsonl").read_text(encoding="utf-8")
                checkpoints.write_text(config.run_dir / "metrics.jsonl", text)
        except OSError as error:
            raise ConfigurationError(f"run_dir {config.run_dir} cannot be written: {error.strerror}") from error
        if checkpoint is not None:
            _restore_best(config.run_dir, resumed["best_step"])
            checkpoints.prune(folder, config.keep_checkpoints + len(damaged), resumed["best_step"])
    state.wait_for_everyone()
    return resumed


def _restore_best(run_dir: Path, best_step: int | None) -> None:
    """A crash between a checkpoint and its copy leaves an older ``best/``, or none."""
    if best_step is None:
        return
    checkpoint = checkpoints.path_of(run_dir / "checkpoints", best_step)
    if checkpoints.problem(checkpoint) is None and not checkpoints.same_weights(checkpoint / "model", run_dir / "best"):
        checkpoints.publish(checkpoint / "model", run_dir / "best")


def _check_same_run(before: dict[str, Any], now: dict[str, Any], run_dir: Path) -> None:
    pairs = [(f"config.{key}", before["config"].get(key), value) for key, value in now["config"].items()]
    pairs = [pair for pair in pairs if pair[0].removeprefix("config.") not in FREE_TO_CHANGE]
    for section in ("data", "order_sha256", "prompt_sha256"):
        pairs.append((section, before[section], now[section]))
    pairs.append(("base", before["base"]["sha256"], now["base"]["sha256"]))
    different = [f"  {name}: was {_short(old)}, is {_short(new)}" for name, old, new in pairs if old != new]
    if different:
        raise RunMismatchError(
            f"{run_dir} holds a run that differs from this one:\n" + "\n".join(different) + "\n"
            "set it back to go on with that run, or name another run_dir"
        )
    for name in ("versions", "processes", "threads", "device", "dtype"):
        if before[name] != now[name]:
            print(
                f"{name} differ from when the run began ({_short(before[name])}, now {_short(now[name])}): it goes on, "
                "but not bit for bit",
                file=sys.stderr,
            )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 200 else f"{text[:200]}..."


def _save_optimisers(
    optimisers: Sequence[torch.optim.Optimizer], trainable: dict[str, torch.nn.Parameter], path: Path
) -> None:
    names = {parameter: name for name, parameter in trainable.items()}
    tensors = {
        f"{key}/{names[parameter]}": value.contiguous()
        for optimiser in optimisers
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }
    save_file(tensors, path)


def _load_optimisers(
    optimisers: Sequence[torch.optim.Optimizer], trainable: dict[str, torch.nn.Parameter], path: Path
) -> None:
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        moment, _, name = key.partition("/")
        tensors.setdefault(name, {})[moment] = tensor
    names = {parameter: name for name, parameter in trainable.items()}
    for optimiser in optimisers:
        for parameter in (each for group in optimiser.param_groups for each in group["params"]):
            moments = tensors[names[parameter]]
            optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


def _report(config: FineTuningSettings, progress: dict[str, Any], view: LiveView | None) -> dict[str, Any]:
    report = {
        "run_dir": str(config.run_dir),
        "best": str(config.run_dir / "best"),
        "best_step": progress["best_step"],
        "best_validation_macro_f1": progress["best_macro_f1"],
        "steps": progress["step"],
        "finished": progress["finished"],
    }
    if view is not None:
        report |= {
            "seconds": round(view.seconds, 1),
            "tokens_per_second": round(view.tokens_per_second, 1),
            "peak_memory_bytes": peak_memory_bytes(),
        }
    return report


def peak_memory_bytes() -> int:
    """The most that this process has used: of the GPU where there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, or no git


# --- one step ----------------------------------------------------------------------------------------------


def _check_finite(losses: Tensor, norm: Tensor, step: int, config: FineTuningSettings, given: Inputs) -> None:
    """Before the weights change: what was kept is the state before this step."""
    if bool(torch.isfinite(losses).all()) and bool(torch.isfinite(norm)):
        return
    calls = given.order.calls(step)
    bad = [micro for micro, finite in enumerate(torch.isfinite(losses).all(1).tolist()) if not finite]
    of = [calls[m * config.micro_batch : (m + 1) * config.micro_batch] for m in bad] or [calls]
    kept, _ = checkpoints.newest_valid(config.run_dir / "checkpoints")
    raise LossNotFiniteError(
        step + 1,
        "loss" if bad else "gradient",
        [given.train.conversation_ids[at] for part in of for at in part],
        None if kept is None else str(kept),
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, to stop after the step; the second one ends the process at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if arguments else 2
    try:
        report = main(runconfig.load(FineTuningSettings, Path(arguments[0]), arguments[1:]))
    except (runconfig.ConfigError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped at once; what the last checkpoint holds is kept", file=sys.stderr)
        return 130
    if PartialState().is_main_process:
        print(json.dumps(report, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    status = run(sys.argv[1:])
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(status)
